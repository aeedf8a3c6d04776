//! A server in an API server's place: it gives every request the same answer, or the API server's with another time.

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result};
use http_body_util::BodyExt;
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{ACCEPT_ENCODING, CONTENT_TYPE, DATE, RETRY_AFTER},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use k8s_openapi::jiff::{SignedDuration, Timestamp, fmt::rfc2822::DateTimePrinter};
use kube::{Client, client::Body};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::oneshot,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

use super::wait;
use crate::netns::Netns;

/// What it answers.
#[derive(Clone, Debug)]
pub(super) enum Role {
    /// Every request with this failure, as an API server would put it.
    Failure(StatusCode),
    /// What the API server answers to the user of this kubeconfig, by a clock that is ahead.
    Clock { kubeconfig: PathBuf, ahead: SignedDuration },
}

/// A role that is ready to be played.
#[derive(Clone)]
enum Part {
    Failure(StatusCode),
    Clock { server: Client, ahead: SignedDuration },
}

/// The running server. Dropping it closes its connections and gives the addresses back.
#[derive(Debug)]
pub(super) struct Answers {
    stop: Option<oneshot::Sender<()>>,
    server: Option<JoinHandle<()>>,
}

impl Answers {
    /// Listens at `addresses` in `ns`, and answers as its role says. The kernel prefers a socket at one address to the
    /// API server's, which is at all of them.
    pub(super) fn start(
        ns: &Netns,
        addresses: [SocketAddr; 2],
        certificate: &Path,
        key: &Path,
        role: Role,
    ) -> Result<Answers> {
        let tls = TlsAcceptor::from(Arc::new(tls_config(certificate, key)?));
        let (bound, listens) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let ns = ns.clone();
        let server = thread::spawn(move || {
            ns.block_on(|| async move {
                let listeners = addresses.map(listen);
                let [Ok(a), Ok(b)] = listeners else {
                    let failed = listeners.into_iter().find_map(Result::err);
                    let _ = bound.send(failed);
                    return;
                };
                let part = match prepare(role).await {
                    Ok(part) => part,
                    Err(error) => return drop(bound.send(Some(error))),
                };
                let _ = bound.send(None);
                tokio::select! {
                    _ = stopped => {}
                    () = serve(a, &tls, &part) => {}
                    () = serve(b, &tls, &part) => {}
                }
            });
        });
        let answers = Answers { stop: Some(stop), server: Some(server) };
        match listens.recv().context("the server in the API server's place ended")? {
            Some(error) => Err(error),
            None => Ok(answers),
        }
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

fn tls_config(certificate: &Path, key: &Path) -> Result<ServerConfig> {
    let unusable = || format!("cannot use {} with {}", certificate.display(), key.display());
    let chain: Vec<_> = CertificateDer::pem_file_iter(certificate)
        .with_context(unusable)?
        .collect::<Result<_, _>>()
        .with_context(unusable)?;
    let key = PrivateKeyDer::from_pem_file(key).with_context(unusable)?;
    ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .with_context(unusable)
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.set_reuseport(true)?;
        socket.bind(address)?;
        socket.listen(1024)
    };
    listen().with_context(|| format!("cannot listen at {address}"))
}

async fn prepare(role: Role) -> Result<Part> {
    Ok(match role {
        Role::Failure(status) => Part::Failure(status),
        Role::Clock { kubeconfig, ahead } => Part::Clock { server: wait::client(&kubeconfig).await?, ahead },
    })
}

async fn serve(listener: TcpListener, tls: &TlsAcceptor, part: &Part) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(answer(stream, tls.clone(), part.clone()));
    }
}

/// Answers what one connection asks. What goes wrong on it is the client's to notice.
async fn answer(stream: TcpStream, tls: TlsAcceptor, part: Part) {
    if let Ok(stream) = tls.accept(stream).await {
        let service = service_fn(async |request| Ok::<_, Infallible>(part.answer(request).await));
        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }
}

impl Part {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        match self {
            Part::Failure(status) => failure(*status),
            Part::Clock { server, ahead } => {
                let answered = with_clock(server, *ahead, request).await;
                answered.unwrap_or_else(|_| failure(StatusCode::BAD_GATEWAY))
            }
        }
    }
}

/// What the API server answers, dated anew.
async fn with_clock(
    server: &Client,
    ahead: SignedDuration,
    request: Request<Incoming>,
) -> Result<Response<Body>> {
    let (mut parts, body) = request.into_parts();
    parts.headers.remove(ACCEPT_ENCODING);
    let body = body.collect().await?.to_bytes();
    let answer = server.send(Request::from_parts(parts, Body::from(body))).await?;
    let mut dated = Response::builder().status(answer.status());
    if let Some(kind) = answer.headers().get(CONTENT_TYPE) {
        dated = dated.header(CONTENT_TYPE, kind);
    }
    let date = DateTimePrinter::new().timestamp_to_rfc9110_string(&(Timestamp::now() + ahead))?;
    Ok(dated.header(DATE, date).body(answer.into_body())?)
}

/// Kubernetes' form of a failure; the wait that goes with "too many requests" is in seconds.
fn failure(status: StatusCode) -> Response<Body> {
    let message = format!("the test bed answers {status}");
    let reason = match status.as_u16() {
        401 => "Unauthorized",
        403 => "Forbidden",
        410 => "Expired",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        _ => "InternalError",
    };
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": status.as_u16(),
    });
    let mut response = Response::new(Body::from(body.to_string().into_bytes()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, "application/json".parse().expect("it is a header's value"));
    if status == StatusCode::TOO_MANY_REQUESTS {
        headers.insert(RETRY_AFTER, 1.into());
    }
    response
}
