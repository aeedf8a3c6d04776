//! gRPC's health protocol: one unary call of `grpc.health.v1.Health/Check` over HTTP/2 with prior knowledge. Its two
//! messages have one field each, so they are written and read here.

use h2::RecvStream;
use h2::client::SendRequest;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, TE, USER_AGENT};
use hyper::{Request, StatusCode};
use tokio::net::TcpStream;

use super::{PROGRAM, failure};
use crate::health::Outcome;

/// No answer of the protocol is near as long.
const LONGEST_ANSWER: usize = 4096;

const SERVING: u64 = 1;
const NOT_FOUND: &str = "5";
const UNIMPLEMENTED: &str = "12";

/// Asks whether `service` serves; empty: the whole server.
pub(super) async fn check(stream: TcpStream, authority: &str, service: &str) -> Result<(), Outcome> {
    match call(stream, authority, service).await {
        Ok(SERVING) => Ok(()),
        Ok(status) => Err(failure(format!("gRPC health is {}", name(status)))),
        Err(error) => Err(failure(format!("gRPC failed: {error}"))),
    }
}

async fn call(stream: TcpStream, authority: &str, service: &str) -> Result<u64, String> {
    let (client, connection) =
        h2::client::handshake(stream).await.map_err(|error| format!("no HTTP/2 here: {error}"))?;
    let exchange = exchange(client, authority, service);
    tokio::pin!(exchange);
    // The connection only moves while it is polled; both end with this function.
    tokio::select! {
        biased;
        status = &mut exchange => status,
        ended = connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => Err(error.to_string()),
        },
    }
}

async fn exchange(client: SendRequest<Bytes>, authority: &str, service: &str) -> Result<u64, String> {
    let request = Request::post(format!("http://{authority}/grpc.health.v1.Health/Check"))
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .header(USER_AGENT, PROGRAM)
        .body(())
        .map_err(|error| error.to_string())?;
    let mut client = client.ready().await.map_err(|error| error.to_string())?;
    let (response, mut body) = client.send_request(request, false).map_err(|error| error.to_string())?;
    body.send_data(request_message(service).into(), true).map_err(|error| error.to_string())?;
    let (head, body) = response.await.map_err(|error| error.to_string())?.into_parts();
    if head.status != StatusCode::OK {
        return Err(format!("HTTP status {}", head.status.as_u16()));
    }
    // A call that fails at once has its status in the head and no trailers.
    if head.headers.contains_key("grpc-status") {
        judge(&head.headers)?;
    }
    let (message, trailers) = read(body).await?;
    judge(&trailers)?;
    serving_status(&message).ok_or_else(|| "the answer is no HealthCheckResponse".to_owned())
}

async fn read(mut body: RecvStream) -> Result<(Vec<u8>, HeaderMap), String> {
    let mut message = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.map_err(|error| error.to_string())?;
        message.extend_from_slice(&chunk);
        if message.len() > LONGEST_ANSWER {
            return Err("the answer is too long for a HealthCheckResponse".to_owned());
        }
        body.flow_control().release_capacity(chunk.len()).map_err(|error| error.to_string())?;
    }
    let trailers = body.trailers().await.map_err(|error| error.to_string())?;
    Ok((message, trailers.unwrap_or_default()))
}

/// What the call itself came to.
fn judge(headers: &HeaderMap) -> Result<(), String> {
    let text = |key: &str| headers.get(key).and_then(|value| value.to_str().ok());
    match text("grpc-status") {
        Some("0") => Ok(()),
        None => Err("the answer has no grpc-status".to_owned()),
        Some(UNIMPLEMENTED) => Err("the server has no grpc.health.v1.Health".to_owned()),
        Some(NOT_FOUND) => Err("the server doesn't know the service".to_owned()),
        Some(status) => {
            Err(format!("status {status} {}", text("grpc-message").unwrap_or_default()).trim_end().to_owned())
        }
    }
}

/// A HealthCheckRequest behind the five bytes that begin every message: not compressed, length.
fn request_message(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        put_varint(&mut message, service.len() as u64);
        message.extend_from_slice(service.as_bytes());
    }
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [&[0], length.to_be_bytes().as_slice(), &message].concat()
}

/// The status in a HealthCheckResponse; 0 where it is left out. `None`: it is no such message.
fn serving_status(framed: &[u8]) -> Option<u64> {
    let ([0], rest) = framed.split_first_chunk::<1>()? else { return None };
    let (length, mut message) = rest.split_first_chunk::<4>()?;
    if u32::from_be_bytes(*length) as usize != message.len() {
        return None;
    }
    let mut status = 0;
    while !message.is_empty() {
        let key = take_varint(&mut message)?;
        match (key >> 3, key & 7) {
            (1, 0) => status = take_varint(&mut message)?,
            (_, 0) => drop(take_varint(&mut message)?),
            (_, 1) => message = message.get(8..)?,
            (_, 2) => {
                let length = usize::try_from(take_varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            (_, 5) => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn put_varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

fn take_varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn name(status: u64) -> String {
    match status {
        0 => "UNKNOWN".to_owned(),
        2 => "NOT_SERVING".to_owned(),
        3 => "SERVICE_UNKNOWN".to_owned(),
        other => format!("{other}, which means nothing"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_its_service_with_its_length() {
        assert_eq!(request_message(""), [0, 0, 0, 0, 0]);
        assert_eq!(request_message("a.B"), [0, 0, 0, 0, 5, 0x0a, 3, b'a', b'.', b'B']);
        let long = request_message(&"x".repeat(200));
        assert_eq!(long[..8], [0, 0, 0, 0, 203, 0x0a, 0xc8, 0x01]);
    }

    #[test]
    fn the_status_is_found_among_unknown_fields() {
        assert_eq!(serving_status(&[0, 0, 0, 0, 0]), Some(0));
        assert_eq!(serving_status(&[0, 0, 0, 0, 2, 0x08, 1]), Some(SERVING));
        let others = [0x12, 2, 8, 2, 0x1d, 1, 2, 3, 4, 0x21, 1, 2, 3, 4, 5, 6, 7, 8, 0x28, 0x80, 1, 0x08, 2];
        let framed = [&[0, 0, 0, 0, others.len() as u8], others.as_slice()].concat();
        assert_eq!(serving_status(&framed), Some(2));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for bytes in [
            &[][..],
            &[0, 0, 0],
            // Compressed; cut short; longer than it says.
            &[1, 0, 0, 0, 2, 0x08, 1],
            &[0, 0, 0, 0, 3, 0x08, 1],
            &[0, 0, 0, 0, 1, 0x08, 1],
            // A varint without an end; a field beyond the message; a group.
            &[0, 0, 0, 0, 2, 0x08, 0x80],
            &[0, 0, 0, 0, 2, 0x12, 9],
            &[0, 0, 0, 0, 1, 0x0b],
        ] {
            assert_eq!(serving_status(bytes), None, "{bytes:?}");
        }
        assert_eq!(serving_status(&[&[0, 0, 0, 0, 12, 0x08][..], &[0xff; 11]].concat()), None);
    }
}
