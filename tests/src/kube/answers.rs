//! A server in an API server's place that gives every request the same answer.

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::Path,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result};
use http_body_util::Full;
use hyper::{
    Response, StatusCode,
    body::Bytes,
    header::{CONTENT_TYPE, RETRY_AFTER},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
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

use crate::netns::Netns;

/// The running server. Dropping it closes its connections and gives the addresses back.
#[derive(Debug)]
pub(super) struct Answers {
    stop: Option<oneshot::Sender<()>>,
    server: Option<JoinHandle<()>>,
}

impl Answers {
    /// Listens at `addresses` in `ns`, and answers every request with `status` as an API server would. The
    /// kernel prefers a socket at one address to the API server's, which is at all of them.
    pub(super) fn start(
        ns: &Netns,
        addresses: [SocketAddr; 2],
        certificate: &Path,
        key: &Path,
        status: u16,
    ) -> Result<Answers> {
        let status = StatusCode::from_u16(status).context("an API server answers with an HTTP status")?;
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
                let _ = bound.send(None);
                tokio::select! {
                    _ = stopped => {}
                    () = serve(a, &tls, status) => {}
                    () = serve(b, &tls, status) => {}
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

async fn serve(listener: TcpListener, tls: &TlsAcceptor, status: StatusCode) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(answer(stream, tls.clone(), status));
    }
}

/// Answers what one connection asks. What goes wrong on it is the client's to notice.
async fn answer(stream: TcpStream, tls: TlsAcceptor, status: StatusCode) {
    if let Ok(stream) = tls.accept(stream).await {
        let service = service_fn(async |_| Ok::<_, Infallible>(failure(status)));
        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }
}

/// Kubernetes' form of a failure; the wait that goes with "too many requests" is in seconds.
fn failure(status: StatusCode) -> Response<Full<Bytes>> {
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
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, "application/json".parse().expect("it is a header's value"));
    if status == StatusCode::TOO_MANY_REQUESTS {
        headers.insert(RETRY_AFTER, 1.into());
    }
    response
}
