//! gRPC probes, and what servers say to them.

use h2::server::SendResponse;
use hyper::body::Bytes;
use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Request, Response};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;

/// What a server answers.
#[derive(Clone, Copy)]
enum Answer {
    /// A HealthCheckResponse with this status, and grpc-status 0.
    Status(u8),
    /// No message; this grpc-status in the head.
    Fails(&'static str),
    /// This status of HTTP.
    Http(u16),
    /// A message without trailers.
    Unfinished,
    /// More than any answer has.
    Endless,
}

/// Answers every call; gives back the requests with their bodies.
async fn serve_grpc(
    address: &str,
    answer: Answer,
) -> (SocketAddr, UnboundedReceiver<(Request<()>, Vec<u8>)>) {
    let listener = TcpListener::bind(address).await.expect("bind");
    let local = listener.local_addr().expect("local address");
    let (calls, received) = unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut connection) = h2::server::handshake(stream).await else { continue };
            while let Some(Ok((request, respond))) = connection.accept().await {
                let calls = calls.clone();
                // The connection has to be polled on while the call is answered.
                tokio::spawn(async move {
                    let (head, mut body) = request.into_parts();
                    let mut message = Vec::new();
                    while let Some(Ok(chunk)) = body.data().await {
                        message.extend_from_slice(&chunk);
                    }
                    respond_with(respond, answer);
                    let _ = calls.send((Request::from_parts(head, ()), message));
                });
            }
        }
    });
    (local, received)
}

fn respond_with(mut respond: SendResponse<Bytes>, answer: Answer) {
    let head = Response::builder().header("content-type", "application/grpc");
    let trailers =
        HeaderMap::from_iter([("grpc-status".parse().expect("a name"), HeaderValue::from_static("0"))]);
    let message = |status| Bytes::from(vec![0, 0, 0, 0, 2, 8, status]);
    let (head, message, trailers) = match answer {
        Answer::Status(status) => (head, Some(message(status)), Some(trailers)),
        Answer::Fails(status) => {
            (head.header("grpc-status", status).header("grpc-message", "no"), None, None)
        }
        Answer::Http(status) => (head.status(status), None, None),
        Answer::Unfinished => (head, Some(message(1)), None),
        Answer::Endless => (head, Some(Bytes::from(vec![0; 16_000])), Some(trailers)),
    };
    let head = head.body(()).expect("a head");
    // The client may have gone by then; nothing is lost.
    let Ok(mut body) = respond.send_response(head, message.is_none()) else { return };
    if let Some(message) = message {
        let _ = body.send_data(message, trailers.is_none());
    }
    if let Some(trailers) = trailers {
        let _ = body.send_trailers(trailers);
    }
}

fn grpc(address: SocketAddr, service: &str) -> ProbeTarget {
    target(address, HealthCheckKind::Grpc { service: service.into() })
}

async fn failure_of(answer: Answer) -> String {
    let (address, _calls) = serve_grpc("127.0.0.1:0", answer).await;
    reason(probe_once(&grpc(address, "")).await)
}

#[tokio::test]
async fn a_server_that_serves_is_healthy() {
    let (address, mut calls) = serve_grpc("127.0.0.1:0", Answer::Status(1)).await;
    assert_eq!(probe_once(&grpc(address, "shop.Cart")).await, Outcome::Success);
    let (request, message) = calls.recv().await.expect("a call");
    assert_eq!(request.method(), "POST");
    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
    assert_eq!(request.uri().authority().expect("an authority").as_str(), address.to_string());
    assert_eq!(request.headers()["content-type"], "application/grpc");
    assert_eq!(request.headers()["te"], "trailers");
    assert_eq!(message, [&[0, 0, 0, 0, 11, 0x0a, 9], b"shop.Cart".as_slice()].concat());
}

#[tokio::test]
async fn a_host_is_the_authority_of_the_call() {
    let (address, mut calls) = serve_grpc("[::1]:0", Answer::Status(1)).await;
    let mut named = grpc(address, "");
    assert_eq!(probe_once(&named).await, Outcome::Success);
    named.check.host = Some("cart.example".into());
    assert_eq!(probe_once(&named).await, Outcome::Success);
    let mut authority =
        async || calls.recv().await.expect("a call").0.uri().authority().map(ToString::to_string);
    assert_eq!(authority().await, Some(address.to_string()));
    assert_eq!(authority().await.as_deref(), Some("cart.example"));
}

#[tokio::test]
async fn a_server_that_does_not_serve_is_a_failure() {
    assert_eq!(failure_of(Answer::Status(2)).await, "gRPC health is NOT_SERVING");
    assert_eq!(failure_of(Answer::Status(0)).await, "gRPC health is UNKNOWN");
}

#[tokio::test]
async fn a_call_that_fails_is_a_failure() {
    assert_eq!(failure_of(Answer::Fails("12")).await, "gRPC failed: the server has no grpc.health.v1.Health");
    assert_eq!(failure_of(Answer::Fails("5")).await, "gRPC failed: the server doesn't know the service");
    assert_eq!(failure_of(Answer::Fails("13")).await, "gRPC failed: status 13 no");
    assert_eq!(failure_of(Answer::Http(404)).await, "gRPC failed: HTTP status 404");
    assert_eq!(failure_of(Answer::Unfinished).await, "gRPC failed: the answer has no grpc-status");
    assert_eq!(
        failure_of(Answer::Endless).await,
        "gRPC failed: the answer is too long for a HealthCheckResponse"
    );
}

#[tokio::test]
async fn what_is_not_http2_is_a_failure() {
    let (address, _heads) = serve("127.0.0.1:0", "HTTP/1.1 400 Bad Request\r\n\r\n").await;
    let text = reason(probe_once(&grpc(address, "")).await);
    assert!(text.starts_with("gRPC failed: "), "{text}");
}
