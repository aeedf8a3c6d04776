//! The edge of health checking: connections, the clock, and a file for each protocol that is spoken on them.

mod grpc;
mod http;
pub(crate) mod tcp;
mod tls;

use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::time::{sleep_until, timeout};

use super::{News, Outcome, Probe, ProbeId, ProbeTarget, Prober, Verdicts};
use crate::desired::HealthCheckKind;

/// What probes call themselves.
const PROGRAM: &str = concat!("kanmon-probe/", env!("CARGO_PKG_VERSION"));

/// The set of targets, as the agent hands it to the driver.
pub type Targets = Arc<std::collections::HashSet<ProbeTarget>>;

/// Verdicts are published at most once in this time, so that a whole cluster's death is a few updates and not
/// thousands.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(10);

/// A probe that failed without changing a verdict is worth less haste: of ten thousand targets on a lossy link one
/// always has.
const PUBLISH_LATEST_INTERVAL: Duration = Duration::from_millis(100);

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
        let delay = prober.take_news().map(|news| match news {
            News::LatestProbes => PUBLISH_LATEST_INTERVAL,
            News::Verdicts => PUBLISH_INTERVAL,
        });
        publish_at = delay.map(|delay| now + delay).into_iter().chain(publish_at).min();
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
    match ask(target).await {
        Ok(()) => Outcome::Success,
        Err(outcome) => outcome,
    }
}

async fn ask(target: &ProbeTarget) -> Result<(), Outcome> {
    let ProbeTarget { address, check } = target;
    let host = check.host.clone().unwrap_or_else(|| address.to_string());
    let stream = tcp::connect(*address).await?;
    match &check.kind {
        HealthCheckKind::None | HealthCheckKind::Tcp => Ok(()),
        HealthCheckKind::Http { path, expected_status } => {
            http::get(stream, &host, path, expected_status).await
        }
        HealthCheckKind::Https { path, expected_status } => {
            http::get(tls::connect(stream, *address, check).await?, &host, path, expected_status).await
        }
        HealthCheckKind::Grpc { service } => grpc::check(stream, &host, service).await,
    }
}

fn failure(reason: String) -> Outcome {
    Outcome::Failure { reason: reason.into() }
}

fn inconclusive(reason: String) -> Outcome {
    Outcome::Inconclusive { reason: reason.into() }
}

#[cfg(test)]
mod tests;
