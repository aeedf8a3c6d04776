//! A small API server on loopback, for what a real one cannot be asked to do: to answer with a chosen status, to
//! accept and never answer, to be gone and come back.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio::task::{JoinHandle, JoinSet};

use super::super::access::Access;

/// How requests are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// As an API server does.
    Serve,
    /// Everything with this status.
    Refuse(u16),
    /// Lists and watches of these objects with this status, the rest as usual.
    RefuseKind(&'static str, u16),
    /// Never.
    Hang,
}

/// The server; it ends with this.
pub(super) struct FakeApi {
    state: Arc<State>,
    address: SocketAddr,
    task: Option<JoinHandle<()>>,
}

struct State {
    mode: Mutex<Mode>,
    minor: &'static str,
    collections: Mutex<BTreeMap<String, Collection>>,
    requests: Mutex<Vec<String>>,
}

struct Collection {
    objects: BTreeMap<String, Value>,
    version: u64,
    /// Everything that happened, with the version that it made.
    log: Vec<(u64, Value)>,
    /// What happened up to here is forgotten.
    compacted: u64,
    events: broadcast::Sender<Value>,
}

impl Default for Collection {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            version: 1,
            log: Vec::new(),
            compacted: 0,
            events: broadcast::channel(64).0,
        }
    }
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

impl Drop for FakeApi {
    fn drop(&mut self) {
        self.stop();
    }
}

impl FakeApi {
    /// A server of a version before lists could be streamed.
    pub(super) async fn start() -> Self {
        Self::of_version("33").await
    }

    /// A server of version 1.`minor`. Like one whose administrator switched that off, it refuses to stream lists.
    pub(super) async fn of_version(minor: &'static str) -> Self {
        let state = State {
            mode: Mutex::new(Mode::Serve),
            minor,
            collections: Mutex::default(),
            requests: Mutex::default(),
        };
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(state);
        let task = Some(tokio::spawn(accept(listener, state.clone())));
        Self { state, address, task }
    }

    pub(super) fn access(&self) -> Access {
        Access::Plain(format!("http://{}", self.address))
    }

    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn answer(&self, mode: Mode) {
        *self.state.mode.lock().unwrap() = mode;
    }

    /// Ends all connections; new ones are refused.
    pub(super) fn stop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }

    /// Comes back at the same address.
    pub(super) async fn restart(&mut self) {
        let listener = loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        self.task = Some(tokio::spawn(accept(listener, self.state.clone())));
    }

    /// Puts an object into a collection, named by its path, and tells the watches.
    pub(super) fn put(&self, path: &str, object: Value) {
        self.state.change(path, object, true);
    }

    /// Takes an object away and tells the watches.
    pub(super) fn remove(&self, path: &str, name: &str) {
        let object = self.get(path, name).unwrap();
        self.state.change(path, object, false);
    }

    /// Ends the watches of a collection as a compaction does; `change` happens where nobody sees it.
    pub(super) fn expire(&self, path: &str, change: impl FnOnce(&mut BTreeMap<String, Value>)) {
        let mut collections = self.state.collections.lock().unwrap();
        let collection = collections.entry(path.to_owned()).or_default();
        change(&mut collection.objects);
        collection.version += 1;
        collection.compacted = collection.version;
        let _ = collection.events.send(gone());
    }

    /// The object as it is now.
    pub(super) fn get(&self, path: &str, name: &str) -> Option<Value> {
        self.state.collections.lock().unwrap().get(path)?.objects.get(name).cloned()
    }

    /// How many requests there were whose method and target contain this.
    pub(super) fn requests(&self, part: &str) -> usize {
        self.state.requests.lock().unwrap().iter().filter(|request| request.contains(part)).count()
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    // Connections end with the task.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let state = state.clone();
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let state = state.clone();
                async move { Ok::<_, Infallible>(state.respond(request).await) }
            });
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

impl State {
    fn change(&self, path: &str, mut object: Value, present: bool) {
        let mut collections = self.collections.lock().unwrap();
        let collection = collections.entry(path.to_owned()).or_default();
        collection.version += 1;
        object["metadata"]["resourceVersion"] = collection.version.to_string().into();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let known = collection.objects.remove(&name);
        let kind = match (present, known.is_some()) {
            (true, false) => "ADDED",
            (true, true) => "MODIFIED",
            (false, _) => "DELETED",
        };
        if present {
            collection.objects.insert(name, object.clone());
        }
        let event = json!({"type": kind, "object": object});
        collection.log.push((collection.version, event.clone()));
        let _ = collection.events.send(event);
    }

    async fn respond(&self, request: Request<Incoming>) -> Response<Body> {
        let target = request.uri().to_string();
        self.requests.lock().unwrap().push(format!("{} {target}", request.method()));
        let mode = *self.mode.lock().unwrap();
        match mode {
            Mode::Hang => return std::future::pending().await,
            Mode::Refuse(code) => return refuse(code),
            Mode::RefuseKind(kind, code) if target.contains(kind) => return refuse(code),
            Mode::RefuseKind(..) | Mode::Serve => {}
        }
        let path = request.uri().path().to_owned();
        match *request.method() {
            Method::GET if path == "/version" => answer(
                json!({"major": "1", "minor": self.minor, "gitVersion": format!("v1.{}.0", self.minor)}),
            ),
            Method::GET if path == "/api/v1/namespaces/kube-system" => {
                answer(json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                    "metadata": {"name": "kube-system", "uid": self.collections_uid()}}))
            }
            Method::GET if target.contains("sendInitialEvents=true") => refuse(422),
            Method::GET if target.contains("watch=true") => self.watch(&path, &target),
            Method::GET => self.list(&path),
            Method::POST if path.ends_with("selfsubjectaccessreviews") => {
                answer(json!({"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1",
                    "metadata": {}, "spec": {}, "status": {"allowed": true}}))
            }
            Method::POST => {
                let object = read(request).await;
                self.change(&path, object.clone(), true);
                answer(object)
            }
            Method::PATCH => {
                let patch = read(request).await;
                let (path, name) = path.strip_suffix("/status").unwrap_or(&path).rsplit_once('/').unwrap();
                let known =
                    self.collections.lock().unwrap().get(path).and_then(|c| c.objects.get(name).cloned());
                let Some(mut object) = known else { return refuse(404) };
                object["status"] = patch["status"].clone();
                self.change(path, object.clone(), true);
                answer(object)
            }
            Method::DELETE => {
                let (path, name) = path.rsplit_once('/').unwrap();
                self.change(path, json!({"metadata": {"name": name}}), false);
                answer(status(200))
            }
            _ => refuse(405),
        }
    }

    /// Who this cluster is.
    fn collections_uid(&self) -> String {
        let collections = self.collections.lock().unwrap();
        let namespace = collections.get("/uid").and_then(|identity| identity.objects.keys().next().cloned());
        namespace.unwrap_or_else(|| "a-cluster".to_owned())
    }

    fn list(&self, path: &str) -> Response<Body> {
        // The name of one object: a Lease, for example.
        if path.contains("/leases") {
            return refuse(404);
        }
        let mut collections = self.collections.lock().unwrap();
        let collection = collections.entry(path.to_owned()).or_default();
        let items: Vec<&Value> = collection.objects.values().collect();
        answer(json!({"kind": "List", "apiVersion": "v1",
            "metadata": {"resourceVersion": collection.version.to_string()}, "items": items}))
    }

    fn watch(&self, path: &str, target: &str) -> Response<Body> {
        let mut collections = self.collections.lock().unwrap();
        let collection = collections.entry(path.to_owned()).or_default();
        let (_, from) = target.split_once("resourceVersion=").unwrap();
        let digits: String = from.chars().take_while(char::is_ascii_digit).collect();
        let from: u64 = digits.parse().unwrap();
        let missed: Vec<Value> = if from < collection.compacted {
            vec![gone()]
        } else {
            let later = collection.log.iter().filter(|(version, _)| *version > from);
            later.map(|(_, event)| event.clone()).collect()
        };
        let events = collection.events.subscribe();
        let later = futures::stream::unfold(events, |mut events| async move {
            let event = events.recv().await.ok()?;
            Some((event, events))
        });
        let lines = futures::stream::iter(missed)
            .chain(later)
            .map(|event| Ok(Frame::data(Bytes::from(format!("{event}\n")))));
        Response::new(BodyExt::boxed_unsync(StreamBody::new(lines.boxed())))
    }
}

async fn read(request: Request<Incoming>) -> Value {
    let bytes = request.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&bytes).unwrap()
}

fn answer(value: Value) -> Response<Body> {
    Response::new(BodyExt::boxed_unsync(Full::new(Bytes::from(value.to_string()))))
}

fn refuse(code: u16) -> Response<Body> {
    let mut response = answer(status(code));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

fn gone() -> Value {
    json!({"type": "ERROR", "object": status(410)})
}

fn status(code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": format!("answered with {code}"), "reason": "Test", "code": code})
}
