//! etcd's own interface, as JSON over HTTP, for what no API server does on request.

use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt, Full};
use hyper::{Request, body::Bytes, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::programs::ETCD_PORT;

/// Removes all history before the present revision, and waits until it is gone. Runs in etcd's namespace.
///
/// # Errors
/// When etcd does not answer or refuses.
pub(super) async fn compact() -> Result<()> {
    let status = post("/v3/maintenance/status", &json!({})).await?;
    let revision = &status["header"]["revision"];
    ensure!(revision.is_string(), "etcd does not say its revision: {status}");
    post("/v3/kv/compaction", &json!({"revision": revision, "physical": true})).await?;
    Ok(())
}

async fn post(path: &str, body: &Value) -> Result<Value> {
    let stream = TcpStream::connect(("127.0.0.1", ETCD_PORT)).await.context("cannot connect to etcd")?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::post(path).header(HOST, "etcd").body(Full::new(Bytes::from(body.to_string())))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let bytes = response.into_body().collect().await?.to_bytes();
    ensure!(status.is_success(), "etcd answers {path} with {status}: {}", String::from_utf8_lossy(&bytes));
    serde_json::from_slice(&bytes).with_context(|| format!("etcd's answer to {path} is not JSON"))
}
