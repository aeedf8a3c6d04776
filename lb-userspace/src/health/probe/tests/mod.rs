//! Probes against real sockets on loopback.

mod grpc;
mod https;

use std::collections::HashSet;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::desired::HealthCheck;
use crate::health::Verdict;
use crate::network::snat::{DEFAULT_NODE_PORTS, PortRequest, PortsInUse, choose};

fn target(address: SocketAddr, kind: HealthCheckKind) -> ProbeTarget {
    ProbeTarget { address, check: HealthCheck { kind, ..HealthCheck::default() } }
}

fn http(path: &str) -> HealthCheckKind {
    HealthCheckKind::Http { path: path.into(), expected_status: 200..=299 }
}

/// Answers every connection with `response`; gives back the heads of the requests.
async fn serve(
    address: &str,
    response: &'static str,
) -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind(address).await.expect("bind");
    let local = listener.local_addr().expect("local address");
    let (heads, received) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = vec![0; 4096];
            let length = stream.read(&mut head).await.unwrap_or(0);
            // The test may have ended; then nobody listens, and nothing is lost.
            let _ = heads.send(String::from_utf8_lossy(&head[..length]).into_owned());
            let _ = stream.write_all(response.as_bytes()).await;
        }
    });
    (local, received)
}

fn reason(outcome: Outcome) -> String {
    match outcome {
        Outcome::Failure { reason } => reason.to_string(),
        other => panic!("not a failure: {other:?}"),
    }
}

#[tokio::test]
async fn a_listening_port_is_healthy() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("local address");
    assert_eq!(probe_once(&target(address, HealthCheckKind::Tcp)).await, Outcome::Success);
}

#[tokio::test]
async fn a_probed_server_sees_a_reset_and_no_time_wait_stays() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("local address");
    assert_eq!(probe_once(&target(address, HealthCheckKind::Tcp)).await, Outcome::Success);
    let (mut stream, _) = listener.accept().await.expect("accept");
    let error = stream.read(&mut [0]).await.expect_err("a reset, not an end of file");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_closed_port_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("local address");
    drop(listener);
    let outcome = probe_once(&target(address, HealthCheckKind::Tcp)).await;
    assert_eq!(reason(outcome), "cannot connect: connection refused");
}

#[tokio::test]
async fn no_probe_comes_from_a_snat_port() {
    let in_use = PortsInUse::read(DEFAULT_NODE_PORTS).expect("the kernel tells");
    let snat = choose(&PortRequest::Auto, &in_use).expect("free ports");
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(address).await.expect("bind");
        let address = listener.local_addr().expect("local address");
        // Open at the same time, so that each has another port.
        let mut open = Vec::new();
        for _ in 0..100 {
            open.push(tcp::connect(address).await.expect("accepted"));
            listener.accept().await.expect("accept");
        }
        for stream in open {
            let port = stream.local_addr().expect("local address").port();
            assert!(in_use.ephemeral.contains(&port), "{port} is not of the kernel's range {in_use:?}");
            assert!(!(snat.base..=snat.last()).contains(&port), "{port} is of the SNAT ports {snat}");
        }
    }
}

#[tokio::test]
async fn http_asks_for_the_path_at_the_address() {
    let (address, mut heads) = serve("127.0.0.1:0", "HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(probe_once(&target(address, http("/healthz?full=1"))).await, Outcome::Success);
    let head = heads.recv().await.expect("a request").to_lowercase();
    assert!(head.starts_with("get /healthz?full=1 http/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("host: {address}\r\n")), "{head}");
}

#[tokio::test]
async fn http_over_ipv6_has_brackets_in_its_host() {
    let (address, mut heads) = serve("[::1]:0", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(address.ip(), Ipv6Addr::LOCALHOST);
    assert_eq!(probe_once(&target(address, http("/"))).await, Outcome::Success);
    let head = heads.recv().await.expect("a request").to_lowercase();
    assert!(head.contains(&format!("host: [::1]:{}\r\n", address.port())), "{head}");
}

#[tokio::test]
async fn an_unexpected_status_is_a_failure() {
    let (address, _heads) = serve("127.0.0.1:0", "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n").await;
    let outcome = probe_once(&target(address, http("/"))).await;
    assert_eq!(reason(outcome), "HTTP status 503, expected 200–299");
}

#[tokio::test]
async fn what_is_not_http_is_a_failure() {
    let (address, _heads) = serve("127.0.0.1:0", "SSH-2.0-OpenSSH\r\n").await;
    let outcome = probe_once(&target(address, http("/"))).await;
    assert!(reason(outcome).starts_with("HTTP failed: "));
}

#[tokio::test]
async fn a_server_that_never_answers_fails_by_its_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let mut silent = target(listener.local_addr().expect("local address"), http("/"));
    silent.check.timeout = Duration::from_millis(50);
    let mut prober = Prober::new(4, 1);
    let now = Instant::now();
    prober.set_targets(now, &HashSet::from([silent]));
    let probe = prober.poll_probe(now + Duration::from_secs(1)).expect("due");
    let (_, outcome) = execute(probe).await;
    assert_eq!(reason(outcome), "no answer within 50ms");
}

#[tokio::test]
async fn the_driver_publishes_verdicts_and_follows_its_targets() {
    let (address, _heads) = serve("127.0.0.1:0", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let first = target(address, http("/"));
    let second = target(address, HealthCheckKind::Tcp);
    let (to_driver, targets) = watch::channel(Arc::new(HashSet::from([first.clone()])));
    let (sender, mut verdicts) = watch::channel(Arc::default());
    let driver = tokio::spawn(run(Prober::new(4, 1), targets, sender));
    let limit = Duration::from_secs(10);
    let healthy = |target: ProbeTarget| move |all: &Arc<Verdicts>| *all.of(&target) == Verdict::Healthy;
    timeout(limit, verdicts.wait_for(healthy(first.clone()))).await.expect("in time").expect("running");
    to_driver.send(Arc::new(HashSet::from([second.clone()]))).expect("running");
    let latest = timeout(limit, verdicts.wait_for(healthy(second))).await.expect("in time").expect("running");
    assert_eq!(*latest.of(&first), Verdict::Unknown);
    drop(latest);
    drop(to_driver);
    timeout(limit, driver).await.expect("ends with its channel").expect("no panic");
}
