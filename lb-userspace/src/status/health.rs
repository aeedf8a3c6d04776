//! `/healthz` and `/readyz` for whoever restarts agents and rolls them out, by HTTP.
//!
//! Live is an agent whose loop still turns: whether API servers, members or pods answer has no part in it, because a
//! restart would mend none of that. Ready is one that has attached the packet program and written its first plan.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

/// The loop turns every 2 s at least: every pass of the sweep wakes it. Long map writes may hold it up.
const STALLED: Duration = Duration::from_secs(60);
/// How long a client may take to ask.
const PATIENCE: Duration = Duration::from_secs(5);

/// When the agent's loop turned last.
#[derive(Debug)]
pub struct Pulse {
    began: Instant,
    /// Milliseconds after `began`.
    last: AtomicU64,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { began: Instant::now(), last: AtomicU64::new(0) }
    }
}

impl Pulse {
    /// It turns now.
    pub fn beat(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    /// How long ago it turned.
    fn age(&self) -> Duration {
        self.began.elapsed().saturating_sub(Duration::from_millis(self.last.load(Ordering::Relaxed)))
    }
}

/// The listener, before it is answered.
#[derive(Debug)]
pub struct HealthServer(TcpListener);

impl HealthServer {
    /// Begins to listen.
    ///
    /// # Errors
    /// The address is not the machine's own, or taken.
    pub async fn bind(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address} for probes (--health-address)"))?;
        Ok(Self(listener))
    }

    /// Answers until it is dropped. `ready` says whether the agent forwards.
    pub async fn serve(self, pulse: Arc<Pulse>, ready: impl Fn() -> bool + Clone + Send + 'static) {
        loop {
            let stream = match self.0.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!("cannot accept a probe: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (pulse, ready) = (pulse.clone(), ready.clone());
            tokio::spawn(async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    let (status, text) = answer(request.method(), request.uri().path(), pulse.age(), ready());
                    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
                    *response.status_mut() = status;
                    async { Ok::<_, Infallible>(response) }
                });
                let mut server = http1::Builder::new();
                server.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false);
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    }
}

fn answer(method: &Method, path: &str, age: Duration, ready: bool) -> (StatusCode, &'static str) {
    match (method, path) {
        (&Method::GET, "/healthz") if age < STALLED => (StatusCode::OK, "ok\n"),
        (&Method::GET, "/healthz") => {
            (StatusCode::SERVICE_UNAVAILABLE, "the agent's loop has not turned for a minute\n")
        }
        (&Method::GET, "/readyz") if ready => (StatusCode::OK, "ok\n"),
        (&Method::GET, "/readyz") => {
            (StatusCode::SERVICE_UNAVAILABLE, "not attached, or the first plan is not written yet\n")
        }
        (&Method::GET, _) => (StatusCode::NOT_FOUND, "there are /healthz and /readyz\n"),
        _ => (StatusCode::METHOD_NOT_ALLOWED, "GET only\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_is_who_turns_and_ready_is_who_forwards() {
        let ask = |path: &str, age: u64, ready: bool| {
            answer(&Method::GET, path, Duration::from_secs(age), ready).0.as_u16()
        };
        assert_eq!(ask("/healthz", 2, false), 200, "one that waits for its clusters is not restarted");
        assert_eq!(ask("/healthz", 61, true), 503);
        assert_eq!((ask("/readyz", 2, true), ask("/readyz", 2, false)), (200, 503));
        assert_eq!(ask("/metrics", 2, true), 404);
        assert_eq!(answer(&Method::POST, "/healthz", Duration::ZERO, true).0.as_u16(), 405);
    }

    #[test]
    fn a_pulse_ages_until_it_beats() {
        let pulse = Pulse { began: Instant::now() - Duration::from_secs(90), last: AtomicU64::new(0) };
        assert!(pulse.age() > STALLED);
        pulse.beat();
        assert!(pulse.age() < Duration::from_secs(1));
    }
}
