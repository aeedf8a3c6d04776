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
    /// The version of `multicluster.x-k8s.io` that is served.
    mcs: Mutex<Option<&'static str>>,
    /// Whether whoever asks may write.
    writable: Mutex<bool>,
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
            mcs: Mutex::new(None),
            writable: Mutex::new(true),
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

    /// Serves ServiceExports and ServiceImports in this version, or not at all.
    pub(super) fn serve_mcs(&self, version: Option<&'static str>) {
        *self.state.mcs.lock().unwrap() = version;
    }

    /// Says that nothing may be written.
    pub(super) fn forbid_writes(&self) {
        *self.state.writable.lock().unwrap() = false;
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

    /// The requests that wrote something, but for Leases.
    pub(super) fn writes(&self) -> Vec<String> {
        let requests = self.state.requests.lock().unwrap();
        let is_write = |request: &&String| {
            !request.starts_with("GET") && !request.contains("/leases") && !request.contains("accessreviews")
        };
        requests.iter().filter(is_write).cloned().collect()
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
            Method::GET if path == "/apis/multicluster.x-k8s.io" => match *self.mcs.lock().unwrap() {
                Some(version) => answer(json!({"kind": "APIGroup", "apiVersion": "v1",
                    "name": "multicluster.x-k8s.io",
                    "versions": [{"groupVersion": format!("multicluster.x-k8s.io/{version}"), "version": version}]})),
                None => refuse(404),
            },
            Method::GET if target.contains("sendInitialEvents=true") => refuse(422),
            Method::GET if target.contains("watch=true") => self.watch(&path, &target),
            Method::GET if path.contains("/leases/") => self.one(&path),
            Method::GET => self.list(&path),
            Method::POST if path.ends_with("selfsubjectaccessreviews") => {
                let allowed = *self.writable.lock().unwrap();
                answer(json!({"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1",
                    "metadata": {}, "spec": {}, "status": {"allowed": allowed}}))
            }
            Method::POST => self.create(&path, read(request).await),
            Method::PATCH => self.patch(&path, &target, &read(request).await),
            Method::DELETE => self.delete(&path),
            _ => refuse(405),
        }
    }

    /// The collection that a path with a namespace is in: all that are watched are watched in all namespaces, but for
    /// Secrets.
    fn collection_of(&self, path: &str) -> String {
        let Some((group, rest)) = path.split_once("/namespaces/") else { return path.to_owned() };
        let Some((_, plural)) = rest.split_once('/') else { return path.to_owned() };
        let everywhere = format!("{group}/{plural}");
        let collections = self.collections.lock().unwrap();
        if collections.contains_key(&everywhere) { everywhere } else { path.to_owned() }
    }

    /// The object that a path names, and its collection and name.
    fn find(&self, path: &str) -> (String, String, Option<Value>) {
        let (path, name) = path.strip_suffix("/status").unwrap_or(path).rsplit_once('/').unwrap();
        let path = self.collection_of(path);
        let collections = self.collections.lock().unwrap();
        let known = collections.get(&path).and_then(|collection| collection.objects.get(name).cloned());
        (path, name.to_owned(), known)
    }

    fn one(&self, path: &str) -> Response<Body> {
        self.find(path).2.map_or_else(|| refuse(404), answer)
    }

    fn create(&self, path: &str, object: Value) -> Response<Body> {
        let path = self.collection_of(path);
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        if self.find(&format!("{path}/{name}")).2.is_some() {
            return refuse(409);
        }
        self.change(&path, object, true);
        answer(self.find(&format!("{path}/{name}")).2.unwrap())
    }

    /// Of the status all that is there becomes what is applied, and the manager's; else a merge.
    fn patch(&self, path: &str, target: &str, patch: &Value) -> Response<Body> {
        let (collection, name, known) = self.find(path);
        let Some(mut object) = known else {
            // An apply makes what is missing, but for a subresource's object.
            let applies = target.contains("force=true") && !path.ends_with("/status");
            return if applies { self.create(&collection, patch.clone()) } else { refuse(404) };
        };
        let seen = &patch["metadata"]["resourceVersion"];
        if !seen.is_null() && *seen != object["metadata"]["resourceVersion"] {
            return refuse(409);
        }
        if path.ends_with("/status") {
            let (_, manager) = target.split_once("fieldManager=").unwrap();
            let manager = manager.split('&').next().unwrap().replace("%2F", "/");
            object["status"] = patch["status"].clone();
            object["metadata"]["managedFields"] = match patch["status"].is_null() {
                true => json!([]),
                false => json!([{"manager": manager, "operation": "Apply", "subresource": "status"}]),
            };
        } else {
            merge(&mut object, patch);
        }
        let metadata = &object["metadata"];
        let is_last = !metadata["deletionTimestamp"].is_null()
            && metadata["finalizers"].as_array().is_none_or(Vec::is_empty);
        self.change(&collection, object.clone(), !is_last);
        answer(self.find(&format!("{collection}/{name}")).2.unwrap_or(object))
    }

    /// What has finalizers waits for them.
    fn delete(&self, path: &str) -> Response<Body> {
        let (collection, _, known) = self.find(path);
        let Some(mut object) = known else { return refuse(404) };
        let waits = object["metadata"]["finalizers"].as_array().is_some_and(|list| !list.is_empty());
        if waits {
            object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        self.change(&collection, object, waits);
        answer(status(200))
    }

    /// Who this cluster is.
    fn collections_uid(&self) -> String {
        let collections = self.collections.lock().unwrap();
        let namespace = collections.get("/uid").and_then(|identity| identity.objects.keys().next().cloned());
        namespace.unwrap_or_else(|| "a-cluster".to_owned())
    }

    fn list(&self, path: &str) -> Response<Body> {
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

/// RFC 7386.
fn merge(object: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        object.clone_from(patch);
        return;
    };
    for (key, value) in fields {
        if value.is_null() {
            object.as_object_mut().into_iter().for_each(|object| drop(object.remove(key)));
        } else {
            merge(&mut object[key], value);
        }
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
    let reason = match code {
        404 => "NotFound",
        409 => "Conflict",
        _ => "Test",
    };
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": format!("answered with {code}"), "reason": reason, "code": code})
}
