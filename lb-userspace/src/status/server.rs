//! The agent's end of the socket.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::sync::broadcast::Receiver;
use tokio::time::timeout;

use super::follow::follow;
use super::protocol::{Answer, Change, FlowFilter, MAX_REQUEST, Message, Request};
use super::view::{Backend, Drained, Flow, FlowRecord, Service, Status};

/// Clients that are served at once; more wait.
const CLIENTS: usize = 8;
/// Clients that may follow the flow log at once; more are refused.
const FOLLOWERS: usize = 16;
/// How long a client may take to send its line, or to read ours.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where answers come from. Called on a thread that may block.
pub trait Source: Send + Sync + 'static {
    /// The agent at a glance.
    fn status(&self) -> Status;
    /// Every service.
    fn services(&self) -> Vec<Service>;
    /// Every backend of every service.
    fn backends(&self) -> Vec<Backend>;
    /// The flows that pass the filter, in no particular order.
    fn flows(&self, filter: &FlowFilter) -> Vec<Flow>;
    /// Records of flows, from now on.
    fn follow(&self) -> Receiver<Arc<FlowRecord>>;
    /// Does as it is told. Called within the runtime.
    ///
    /// # Errors
    /// It can't be done, and nothing has changed; a sentence for people.
    fn change(&self, change: &Change) -> Result<Drained, String>;
}

/// The socket while it listens; its file goes when this is dropped.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
}

impl Server {
    /// Makes the socket, for root and its group, and the directory it is in. A file that a former agent left
    /// is replaced; must be called within a tokio runtime.
    ///
    /// # Errors
    /// When somebody answers at the socket, when the path is something else than a socket, or when it can't
    /// be made.
    pub fn bind(path: &Path) -> Result<Self> {
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            fs::create_dir_all(dir)
                .with_context(|| format!("cannot make the socket's directory {}", dir.display()))?;
        }
        remove_stale(path)?;
        let listener = UnixListener::bind(path)
            .with_context(|| format!("cannot make the socket {} (--socket names another)", path.display()))?;
        fs::set_permissions(path, Permissions::from_mode(0o660))
            .with_context(|| format!("cannot set the permissions of {}", path.display()))?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Answers until it is dropped.
    pub async fn serve(self, source: Arc<dyn Source>) {
        let clients = Arc::new(Semaphore::new(CLIENTS));
        let followers = Arc::new(Semaphore::new(FOLLOWERS));
        loop {
            let Ok(permit) = clients.clone().acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let (source, followers) = (source.clone(), followers.clone());
                    tokio::spawn(async move {
                        let follower = match timeout(3 * PATIENCE, answer(stream, source.clone())).await {
                            Ok(Ok(follower)) => follower,
                            Ok(Err(error)) => {
                                return tracing::debug!("a client of the socket went away: {error:#}");
                            }
                            Err(_) => return tracing::debug!("a client of the socket was too slow"),
                        };
                        // Who follows does so for long, and takes no place from those that ask.
                        drop(permit);
                        if let Some((stream, filter)) = follower {
                            let permit = followers.try_acquire_owned();
                            if let Err(error) = follow(stream, &filter, source.follow(), permit.is_ok()).await
                            {
                                tracing::debug!("a follower of the flow log went away: {error:#}");
                            }
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!("cannot accept a client on {}: {error}", self.path.display());
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Gone already when somebody cleaned up before us; nothing else is to be done about it.
        let _ = fs::remove_file(&self.path);
    }
}

fn remove_stale(path: &Path) -> Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot look at {}", path.display())),
    };
    if !metadata.file_type().is_socket() {
        bail!("{} exists and is not a socket: remove it or name another with --socket", path.display());
    }
    match StdUnixStream::connect(path) {
        Ok(_) => bail!(
            "an agent already answers at {}: stop it, or give this one another --socket and --pin-dir",
            path.display()
        ),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path)
            .with_context(|| format!("cannot remove the stale socket {}", path.display())),
        Err(error) => Err(error).with_context(|| format!("cannot tell who owns {}", path.display())),
    }
}

/// Answers a client, or gives it back with what it wants to follow.
async fn answer(mut stream: UnixStream, source: Arc<dyn Source>) -> Result<Option<(UnixStream, FlowFilter)>> {
    let mut line = String::new();
    timeout(PATIENCE, BufReader::new((&mut stream).take(MAX_REQUEST)).read_line(&mut line)).await??;
    let mut text = match Message::parse(&line) {
        Ok(Message::Get(Request::Follow(filter))) => return Ok(Some((stream, filter))),
        Ok(message) => tokio::task::spawn_blocking(move || dispatch(&*source, &message)).await??,
        Err(error) => serde_json::to_string(&Answer::<()>::Error(format!("not a request: {error}")))?,
    };
    text.push('\n');
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await?;
    Ok(None)
}

fn dispatch(source: &dyn Source, message: &Message) -> serde_json::Result<String> {
    fn ok<T: Serialize>(value: T) -> serde_json::Result<String> {
        serde_json::to_string(&Answer::Ok(value))
    }
    match message {
        Message::Get(Request::Status) => ok(source.status()),
        Message::Get(Request::Services) => ok(source.services()),
        Message::Get(Request::Backends) => ok(source.backends()),
        Message::Get(Request::Flows(filter)) => ok(source.flows(filter)),
        // Answered line by line, elsewhere.
        Message::Get(Request::Follow(_)) => ok(()),
        Message::Do(change) => match source.change(change) {
            Ok(done) => ok(done),
            Err(why) => serde_json::to_string(&Answer::<()>::Error(why)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::client;
    use crate::status::protocol::Named;

    struct Fixed;

    impl Source for Fixed {
        fn status(&self) -> Status {
            Status {
                ready: true,
                since: "2026-01-01T00:00:00Z".into(),
                version: "0".into(),
                abi: 1,
                kernel: "6.18".into(),
                pid: 1,
                region: None,
                zone: None,
                pin_dir: "/pins".into(),
                adopted: false,
                attach: Vec::new(),
                clusters: Vec::new(),
                services: 0,
                backends: Default::default(),
                flows: Default::default(),
                memory: Default::default(),
                counters: Default::default(),
                snat: Default::default(),
                redirects_uncounted: None,
                drained: Vec::new(),
                node_is_no_client: Vec::new(),
                problems: Vec::new(),
            }
        }
        fn services(&self) -> Vec<Service> {
            Vec::new()
        }
        fn backends(&self) -> Vec<Backend> {
            Vec::new()
        }
        fn flows(&self, filter: &FlowFilter) -> Vec<Flow> {
            let flow = Flow {
                client: "198.51.100.2:40000".parse().unwrap(),
                vip: "192.168.100.10:80".parse().unwrap(),
                protocol: "TCP".into(),
                upstream_host: "10.0.1.10:8080".parse().unwrap(),
                service: None,
                cluster: None,
                pod: None,
                state: "established".into(),
                snat: "192.168.0.2:12288".parse().unwrap(),
                idle_seconds: 0.0,
            };
            vec![flow; filter.limit.unwrap_or(2)]
        }
        fn follow(&self) -> Receiver<Arc<FlowRecord>> {
            tokio::sync::broadcast::channel(1).1
        }
        fn change(&self, change: &Change) -> Result<Drained, String> {
            match change {
                Change::Drain(named) => Ok(Drained {
                    names: vec![named.what.clone()],
                    drained: true,
                    changed: true,
                    in_force: true,
                    backends: 3,
                    flows: 200,
                    notes: Vec::new(),
                }),
                Change::Undrain(named) => Err(format!("there is no {}", named.what)),
            }
        }
    }

    fn start(path: &Path) -> tokio::task::JoinHandle<()> {
        let server = Server::bind(path).unwrap();
        tokio::spawn(server.serve(Arc::new(Fixed)))
    }

    #[tokio::test]
    async fn a_client_gets_the_view_it_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/agent.sock");
        let _server = start(&path);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let asked = path.clone();
        let (status, flows) = tokio::task::spawn_blocking(move || {
            let status: Status = client::ask(&asked, &Request::Status).unwrap();
            let filter = FlowFilter { limit: Some(5), ..Default::default() };
            let flows: Vec<Flow> = client::ask(&asked, &Request::Flows(filter)).unwrap();
            (status, flows)
        })
        .await
        .unwrap();
        assert_eq!(status, Fixed.status());
        assert_eq!(flows.len(), 5);
    }

    #[tokio::test]
    async fn an_order_is_carried_out_or_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let _server = start(&path);
        let (done, refused) = tokio::task::spawn_blocking(move || {
            let named = || Named { what: "hangzhou".into() };
            let done: Drained = client::ask(&path, &Change::Drain(named())).unwrap();
            (done, client::ask::<Drained>(&path, &Change::Undrain(named())).unwrap_err().to_string())
        })
        .await
        .unwrap();
        assert_eq!((done.names, done.flows), (vec!["hangzhou".to_owned()], 200));
        assert_eq!(refused, "the agent says: there is no hangzhou");
    }

    #[tokio::test]
    async fn what_is_no_request_is_answered_with_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let _server = start(&path);
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert!(text.starts_with(r#"{"error":"not a request"#), "{text}");
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let _server = start(&path);
        let error = Server::bind(&path).unwrap_err().to_string();
        assert!(error.contains("already answers"), "{error}");
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        fs::write(&path, "precious").unwrap();
        assert!(Server::bind(&path).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
