//! The account against an API server in memory.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

use super::account;
use super::objects::{Account, Form};

/// Objects by path. A patch stores, as server-side apply does for a single writer; a token Secret is filled
/// at once if the controller is `working`.
#[derive(Default)]
struct Server {
    objects: BTreeMap<String, Value>,
    /// Method and path of what changed something.
    writes: Vec<String>,
    working: bool,
}

type Shared = Arc<Mutex<Server>>;
type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

fn server(working: bool) -> (Shared, Client) {
    let shared = Shared::new(Mutex::new(Server { working, ..Server::default() }));
    let state = shared.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let state = state.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.expect("a body in memory").to_bytes();
            let query = parts.uri.query().unwrap_or_default();
            Ok::<_, Infallible>(answer(&state, &parts.method, parts.uri.path(), query, &body))
        }
    });
    (shared, Client::new(service, "default"))
}

fn answer(state: &Shared, method: &Method, path: &str, query: &str, body: &[u8]) -> Answer {
    let mut server = state.lock().unwrap();
    let missing = json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404});
    let found = server.objects.get(path).cloned();
    let (code, value) = match *method {
        Method::GET if query.contains("watch=true") => return forever(),
        Method::GET if path.ends_with("/secrets") => {
            let items: Vec<&Value> = server
                .objects
                .iter()
                .filter(|(key, _)| key.starts_with(path))
                .map(|(_, value)| value)
                .collect();
            let mut list =
                json!({"kind": "SecretList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}});
            list["items"] = json!(items);
            (200, list)
        }
        Method::GET => found.map_or((404, missing), |object| (200, object)),
        Method::PATCH => {
            let mut object: Value = serde_json::from_slice(body).expect("an object");
            if server.working && object["type"] == "kubernetes.io/service-account-token" {
                // "CA" and "t0ken" in base64.
                object["data"] = json!({"ca.crt": "Q0E=", "token": "dDBrZW4="});
            }
            server.objects.insert(path.to_owned(), object.clone());
            server.writes.push(format!("PATCH {path}"));
            (200, object)
        }
        Method::DELETE => {
            server.objects.remove(path);
            server.writes.push(format!("DELETE {path}"));
            (200, json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))
        }
        _ => panic!("{method} {path}"),
    };
    let bytes = serde_json::to_vec(&value).expect("JSON");
    Response::builder().status(code).body(Full::from(bytes).boxed_unsync()).expect("an answer")
}

/// A watch on which nothing happens.
fn forever() -> Answer {
    let silence = futures::stream::pending::<Result<Frame<Bytes>, Infallible>>();
    Response::new(StreamBody::new(silence).boxed_unsync())
}

fn account(form: Form) -> Account {
    Account {
        form,
        namespace: form.namespace().to_owned(),
        service_account: form.service_account().to_owned(),
    }
}

const SERVICE_ACCOUNT: &str = "/api/v1/namespaces/istio-system/serviceaccounts/istio-reader-service-account";
const ROLE: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles/istio-reader-clusterrole-istio-system";

#[tokio::test]
async fn what_is_made_is_there_once_however_often_it_is_made_and_gone_when_it_is_deleted() {
    for form in [Form::Kanmon, Form::Istio] {
        let (state, client) = server(true);
        let mut said = Vec::new();
        let mut say = |line: &str| said.push(line.to_owned());
        account::create(&client, &account(form), &mut say).await.unwrap();
        let first = state.lock().unwrap().objects.clone();
        account::create(&client, &account(form), &mut say).await.unwrap();
        assert_eq!(state.lock().unwrap().objects, first);
        assert_eq!(first.len(), 5, "namespace, account, role, binding, token: {:?}", first.keys());

        account::delete(&client, &account(form), &mut say).await.unwrap();
        let left: Vec<String> = state.lock().unwrap().objects.keys().cloned().collect();
        assert_eq!(left, [format!("/api/v1/namespaces/{}", form.namespace())]);
        account::delete(&client, &account(form), &mut say).await.unwrap();
        assert!(said.iter().any(|line| line == &format!("ServiceAccount {} made", form.service_account())));
        assert!(said.iter().any(|line| line.ends_with("is not there")));
    }
}

#[tokio::test]
async fn credentials_go_first_when_an_account_is_deleted() {
    let (state, client) = server(true);
    account::create(&client, &account(Form::Kanmon), &mut |_| {}).await.unwrap();
    account::delete(&client, &account(Form::Kanmon), &mut |_| {}).await.unwrap();
    let server = state.lock().unwrap();
    let first = server.writes.iter().find(|write| write.starts_with("DELETE")).unwrap();
    assert!(first.ends_with("/secrets/kanmon-member-token"), "{first}");
}

#[tokio::test]
async fn what_istio_made_is_neither_changed_nor_removed() {
    let (state, client) = server(true);
    for (path, kind, name) in [
        (SERVICE_ACCOUNT, "ServiceAccount", "istio-reader-service-account"),
        (ROLE, "ClusterRole", "istio-reader-clusterrole-istio-system"),
    ] {
        let labels = json!({"app.kubernetes.io/managed-by": "Helm"});
        let object = json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "labels": labels}});
        state.lock().unwrap().objects.insert(path.to_owned(), object);
    }
    let mut said = Vec::new();
    let mut say = |line: &str| said.push(line.to_owned());
    account::create(&client, &account(Form::Istio), &mut say).await.unwrap();
    account::delete(&client, &account(Form::Istio), &mut say).await.unwrap();
    let server = state.lock().unwrap();
    for path in [SERVICE_ACCOUNT, ROLE] {
        assert!(server.objects.contains_key(path));
        assert!(server.writes.iter().all(|write| !write.ends_with(path)), "{:?}", server.writes);
    }
    let kept = "ClusterRole istio-reader-clusterrole-istio-system stays: it was not made by kanmon";
    assert!(said.iter().any(|line| line == kept), "{said:?}");
}

#[tokio::test]
async fn a_token_is_waited_for_and_its_absence_explained() {
    let (_, client) = server(true);
    account::create(&client, &account(Form::Kanmon), &mut |_| {}).await.unwrap();
    let found = account::token(&client, &account(Form::Kanmon), Duration::from_secs(30)).await.unwrap();
    assert_eq!((found.ca.as_slice(), found.token.as_str()), (&b"CA"[..], "t0ken"));

    let (_, client) = server(false);
    account::create(&client, &account(Form::Kanmon), &mut |_| {}).await.unwrap();
    let error = account::token(&client, &account(Form::Kanmon), Duration::from_millis(50)).await.unwrap_err();
    assert!(error.to_string().contains("is its kube-controller-manager running?"), "{error}");
}
