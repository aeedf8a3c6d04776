//! An HTTP/1.1 GET, over whatever carries it.

use std::ops::RangeInclusive;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{PROGRAM, failure};
use crate::health::Outcome;

/// Asks `host` for `path`; any status of `expected` will do.
pub(super) async fn get(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    host: &str,
    path: &str,
    expected: &RangeInclusive<u16>,
) -> Result<(), Outcome> {
    let status =
        status(stream, host, path).await.map_err(|error| failure(format!("HTTP failed: {error}")))?;
    if expected.contains(&status) {
        Ok(())
    } else {
        Err(failure(format!("HTTP status {status}, expected {}–{}", expected.start(), expected.end())))
    }
}

async fn status(stream: impl AsyncRead + AsyncWrite + Unpin, host: &str, path: &str) -> Result<u16, String> {
    let uri: Uri = path.parse().map_err(|error| format!("the path {path:?} is invalid: {error}"))?;
    let request = Request::get(uri)
        .header(HOST, host)
        .header(USER_AGENT, PROGRAM)
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request);
    tokio::pin!(response);
    // The connection only moves while it is polled; both end with this function.
    tokio::select! {
        biased;
        response = &mut response => response.map(|answer| answer.status().as_u16()).map_err(|e| e.to_string()),
        ended = connection => match ended {
            Ok(()) => response.await.map(|answer| answer.status().as_u16()).map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        },
    }
}
