//! The edge of health checking: TCP connections, HTTP requests and the clock.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep_until, timeout};

use super::{Outcome, Probe, ProbeId, ProbeTarget, Prober, Verdicts};
use crate::desired::HealthCheckKind;

/// The set of targets, as the agent hands it to the driver.
pub type Targets = Arc<std::collections::HashSet<ProbeTarget>>;

/// Verdicts are published at most once in this time, so that a whole cluster's death is a few updates and not
/// thousands.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(10);

/// How many probes this process may run at once: a quarter of the files it may open, within 64–2,048. Only
/// targets that do not answer hold their place for long; ten thousand of them at 1 s in every 5 s need 2,000.
#[must_use]
pub fn default_in_flight() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live rlimit, which the call only fills in.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    let files = if result == 0 { limit.rlim_cur } else { 0 };
    usize::try_from(files / 4).unwrap_or(usize::MAX).clamp(64, 2048)
}

/// Probes what `targets` names and publishes what it learns to `verdicts`, until either channel closes.
///
/// All probes run inside this future, in the network namespace of the thread that polls it.
pub async fn run(
    mut prober: Prober,
    mut targets: watch::Receiver<Targets>,
    verdicts: watch::Sender<Arc<Verdicts>>,
) {
    let mut running = FuturesUnordered::new();
    let mut publish_at: Option<Instant> = None;
    let current = targets.borrow_and_update().clone();
    prober.set_targets(Instant::now(), &current);
    loop {
        let now = Instant::now();
        while let Some(probe) = prober.poll_probe(now) {
            running.push(execute(probe));
        }
        if prober.take_changed() && publish_at.is_none() {
            publish_at = Some(now + PUBLISH_INTERVAL);
        }
        tokio::select! {
            changed = targets.changed() => {
                if changed.is_err() {
                    return;
                }
                let current = targets.borrow_and_update().clone();
                prober.set_targets(Instant::now(), &current);
            }
            Some((id, outcome)) = running.next() => prober.handle_result(Instant::now(), id, outcome),
            () = sleep_until_some(prober.poll_timeout()) => {}
            () = sleep_until_some(publish_at) => {
                publish_at = None;
                if verdicts.send(Arc::new(prober.verdicts())).is_err() {
                    return;
                }
            }
        }
    }
}

async fn sleep_until_some(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time.into()).await,
        None => pending().await,
    }
}

async fn execute(probe: Probe) -> (ProbeId, Outcome) {
    let limit = probe.target.check.timeout;
    let outcome = timeout(limit, probe_once(&probe.target)).await;
    let outcome = outcome.unwrap_or_else(|_| failure(format!("no answer within {limit:?}")));
    (probe.id, outcome)
}

async fn probe_once(target: &ProbeTarget) -> Outcome {
    let stream = match connect(target.address).await {
        Ok(stream) => stream,
        Err(error) if is_local(&error) => {
            return Outcome::Inconclusive { reason: format!("the gateway cannot probe: {error}").into() };
        }
        Err(error) => return failure(format!("cannot connect: {}", plain(&error))),
    };
    match &target.check.kind {
        HealthCheckKind::None | HealthCheckKind::Tcp => Outcome::Success,
        HealthCheckKind::Http { path, expected_status } => {
            match http_status(stream, target.address, path).await {
                Ok(status) => judge_status(status, expected_status),
                Err(error) => failure(format!("HTTP failed: {error}")),
            }
        }
    }
}

/// Connects from a port of the kernel's choice, which is outside of the SNAT ports because those are chosen
/// outside of the kernel's range.
async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Closing sends a RST and leaves nothing behind: no TIME_WAIT piles up, here or at the pod.
    socket.set_zero_linger()?;
    socket.connect(address).await
}

async fn http_status(stream: TcpStream, address: SocketAddr, path: &str) -> Result<u16, String> {
    let uri: Uri = path.parse().map_err(|error| format!("the path {path:?} is invalid: {error}"))?;
    let request = Request::get(uri)
        .header(HOST, address.to_string())
        .header(USER_AGENT, concat!("kanmon-probe/", env!("CARGO_PKG_VERSION")))
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

fn judge_status(status: u16, expected: &RangeInclusive<u16>) -> Outcome {
    if expected.contains(&status) {
        Outcome::Success
    } else {
        failure(format!("HTTP status {status}, expected {}–{}", expected.start(), expected.end()))
    }
}

fn failure(reason: String) -> Outcome {
    Outcome::Failure { reason: reason.into() }
}

/// Whether an error comes from this process or node and says nothing about the target.
fn is_local(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EMFILE
                | libc::ENFILE
                | libc::ENOBUFS
                | libc::ENOMEM
                | libc::EADDRNOTAVAIL
                | libc::EACCES
                | libc::EPERM
        )
    )
}

/// The error without the number that the standard library appends.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
