//! The agent: what `kanmon run` does from start to end.
//!
//! ```text
//! settings → checks → lock → maps made or adopted ─► loop: sources, verdicts, next hops ─► target ─► plan ─► maps
//!                                                     beside it: sweep, events, flow log, probes, the socket
//! ```
//!
//! One task owns the model of the maps. Whatever changes (clusters, verdicts, next hops, what the sweep
//! counted) wakes it, and it plans anew.

mod cleanup;
mod clock;
mod core;
mod drains;
mod events;
mod first_plan;
mod flow_log;
mod log;
mod policies;
mod pressure;
mod problems;
mod programmed;
mod published;
mod queue;
mod report;
mod signals;
mod start;
mod steering;
mod sweep;
mod target;

pub use cleanup::cleanup;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::{Level, Subscriber};
use tracing_subscriber::filter::{EnvFilter, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use self::core::{Core, Inputs, Interfaces, Outputs};
use crate::bpf::Kernel;
use crate::cluster::{self, LastGood};
use crate::config::{self, LogLevel, Options, Settings};
use crate::desired::Place;
use crate::health::{Prober, probe};
use crate::network::NetworkWatcher;
use crate::plan::Limits;
use crate::status::health::Pulse;
use crate::status::view;
use drains::Keeper;
use published::{Facts, Published};
use report::Report;
use signals::{Ending, Signals};
use start::{Started, remove_unless_adopted, start};

/// How long the end waits for API servers, to let go of Leases.
const LET_GO: Duration = Duration::from_secs(2);
/// Trips that may wait for the loop.
const TRIPS: usize = 256;

/// Runs the agent until a signal ends it.
///
/// # Errors
/// When it can't start: nothing was touched then, or it was put back.
pub fn run(options: Options) -> Result<()> {
    let settings = config::load(options)?;
    log_to_stderr(settings.log_level);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        // Names of API servers are looked up in such threads: one whose name server hangs must not keep the
        // others waiting.
        .max_blocking_threads(64)
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let result = runtime.block_on(serve(settings));
    // A thread that still reads files must not hold the end up.
    runtime.shutdown_timeout(Duration::from_millis(500));
    result
}

async fn serve(settings: Settings) -> Result<()> {
    let mut signals = Signals::take().context("cannot handle signals")?;
    let started = tokio::select! {
        started = start(settings) => started?,
        _ = signals.ending() => return Ok(()),
    };
    let pin_dir = started.settings.pin_dir.clone();
    let (server, report, core) = assemble(started)?;
    let server = tokio::spawn(server.serve(Arc::new(report)));
    let (core, ended) = core::run(core, &mut signals).await;
    signals.force_on_next();
    // The socket goes with its task.
    server.abort();
    let _ = server.await;
    match ended {
        Ok(ending) => end(let_go(core, ending).await, ending, pin_dir).await,
        Err(error) => {
            remove_unless_adopted(core.kernel);
            Err(error)
        }
    }
}

/// Puts the tasks beside the loop to work and connects them with it.
fn assemble(started: Started) -> Result<(crate::status::server::Server, Report, Core)> {
    let Started {
        settings,
        mut kernel,
        interfaces,
        network,
        clusters,
        desired,
        programmed,
        allocations,
        drains,
        ..
    } = started;
    let (targets, probed) = watch::channel(Arc::default());
    let (verdicts_out, verdicts) = watch::channel(Arc::default());
    tokio::spawn(probe::run(Prober::new(probe::default_in_flight(), rand::random()), probed, verdicts_out));

    let (teller, log, records) = flow_log::flow_log();
    let (naming, named) = watch::channel(Arc::default());
    tokio::spawn(log.run(named, kernel.memory()));
    if let Some(output) = started.flow_log {
        output.follow(records.subscribe()).context("cannot write the flow log")?;
    }

    let (orders, ordered) = watch::channel(sweep::Orders::default());
    let (passes_out, passes) = watch::channel(Arc::default());
    tokio::spawn(sweep::run(kernel.memory(), *kernel.config(), ordered, passes_out, teller.clone()));

    let (trips_out, trips) = mpsc::channel(TRIPS);
    let (turned_away_out, turned_away) = mpsc::channel(TRIPS);
    if let Some(events) = kernel.take_events().context("cannot read events of the packet program")? {
        tokio::spawn(events::run(events, trips_out, turned_away_out, teller));
    }
    let (last_good, kept) = watch::channel(None);
    tokio::spawn(keep_last_good(settings.state_dir.clone(), kept));

    let (drains_out, drains) = watch::channel(Arc::new(drains));
    let (drained, in_force) = watch::channel(Arc::default());
    let (published_out, published) = watch::channel(Arc::new(Published::default()));
    let pulse = Arc::new(Pulse::default());
    if let Some(health) = started.health {
        let published = published.clone();
        tokio::spawn(health.serve(pulse.clone(), move || published.borrow().ready));
    }
    let sizes = *kernel.sizes();
    let plan = sizes.memory();
    let mut memory: BTreeMap<String, u64> =
        plan.maps.iter().map(|map| (map.name.to_owned(), map.bytes)).collect();
    memory.insert("total".to_owned(), plan.total());
    let place = Place { region: settings.region.clone(), zone: settings.zone.clone() };
    let report = Report {
        facts: Facts {
            since: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            region: settings.region,
            zone: settings.zone,
            pin_dir: settings.pin_dir.display().to_string(),
            adopted: kernel.adopted(),
            capacity: u64::from(sizes.flows),
            memory,
            snat: view::Snat {
                addresses: started.snat_addresses.iter().copied().collect(),
                ports: started.snat_ports.to_string(),
            },
            redirects_uncounted: kernel.redirects_uncounted().map(str::to_owned),
        },
        published,
        passes: passes.clone(),
        node_clients: network.node_clients(),
        memory: kernel.memory(),
        config: *kernel.config(),
        keeper: Keeper::new(settings.state_dir, drains_out, in_force),
        records,
    };
    let core = Core {
        inputs: Inputs {
            clusters,
            verdicts,
            next_hops: network.next_hops(),
            addresses: network.local_addresses(),
            passes,
            trips,
            turned_away,
            drains,
        },
        outputs: Outputs {
            targets,
            orders,
            drained,
            published: published_out,
            last_good,
            desired,
            programmed,
            naming,
        },
        interfaces: Interfaces { names: settings.interfaces, indices: interfaces, mode: settings.xdp_mode },
        snat_addresses: started.snat_addresses,
        echo: settings.echo,
        place,
        limits: Limits {
            services: sizes.descriptor_count(),
            backends: sizes.backend_count(),
            members: sizes.member_count(),
            ring_pairs: sizes.ring_pairs(),
            source_ranges: sizes.source_ranges,
            drain_timeout: settings.drain_timeout,
        },
        allocations,
        kernel,
        network,
        pulse,
    };
    Ok((started.server, report, core))
}

/// Ends what follows the clusters, and waits a moment until its Leases are another gateway's to take.
/// Whether this gateway will be missed is told first.
async fn let_go(core: Core, ending: Ending) -> Rest {
    let Core { kernel, network, inputs, outputs, .. } = core;
    if ending == Ending::CleanUp {
        outputs.programmed.send_modify(|told| Arc::make_mut(told).leaving = true);
    }
    drop(inputs);
    if timeout(LET_GO, outputs.programmed.closed()).await.is_err() {
        tracing::info!("an API server that does not answer keeps this gateway's Lease until that runs out");
    }
    Rest { kernel, network }
}

/// What is left of the loop when nothing listens to it any more.
struct Rest {
    kernel: Kernel,
    network: NetworkWatcher,
}

async fn end(rest: Rest, ending: Ending, pin_dir: PathBuf) -> Result<()> {
    match ending {
        Ending::Leave => {
            tracing::info!(
                "SIGTERM: ending; the program stays attached and forwards with what is pinned below {}",
                pin_dir.display()
            );
        }
        Ending::CleanUp => {
            let removed = rest.kernel.remove().context("cannot clean up; `kanmon cleanup` tries again")?;
            if let Err(error) = rest.network.release().await {
                tracing::warn!("cannot give neighbours back to the kernel: {error}");
            }
            tracing::info!(
                "SIGINT: cleaned up; {}",
                cleanup::describe(&removed).trim_end().replace('\n', ", ")
            );
        }
    }
    Ok(())
}

/// Writes each last good state to the disk, one after another.
async fn keep_last_good(directory: PathBuf, mut states: watch::Receiver<Option<Arc<LastGood>>>) {
    let mut complained = false;
    while states.changed().await.is_ok() {
        let Some(state) = states.borrow_and_update().clone() else { continue };
        let directory = directory.clone();
        let stored = spawn_blocking(move || cluster::store_last_good(&directory, &state)).await;
        match stored {
            Ok(Ok(())) => complained = false,
            Ok(Err(error)) if !complained => {
                complained = true;
                tracing::warn!("the last good endpoints are not kept for the next start: {error}");
            }
            Ok(Err(_)) | Err(_) => {}
        }
    }
}

/// Libraries that log each failed request or try; what it means for the gateway is logged by us.
const QUIET: &str = "aya=warn,hyper=warn,tower=warn,kube_client=off,kube_runtime=off,kube_lease_manager=off";

/// Libraries that log what API servers answer, Secrets among it, below the level of information.
const TALKATIVE: [&str; 9] = [
    "kube",
    "kube_client",
    "kube_runtime",
    "kube_lease_manager",
    "hyper",
    "hyper_util",
    "h2",
    "tower",
    "rustls",
];

/// Logs for people go to stderr; `RUST_LOG` overrides the level.
fn log_to_stderr(level: LogLevel) {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(format!("{level},{QUIET}")));
    logger(filter, std::io::stderr, std::io::stderr().is_terminal()).init();
}

/// Writes what the filter lets through, but nothing that may hold a secret.
fn logger<W>(filter: EnvFilter, writer: W, ansi: bool) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(ansi)
        .with_target(false)
        .finish()
        .with(filter_fn(|metadata| *metadata.level() <= Level::INFO || !is_talkative(metadata.target())))
}

fn is_talkative(target: &str) -> bool {
    let library = target.split_once("::").map_or(target, |(library, _)| library);
    TALKATIVE.contains(&library)
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn however_far_the_log_is_opened_it_holds_no_answers_of_api_servers() {
        for opened in ["trace", "kube_client=trace,hyper=trace,kanmon=trace"] {
            let lines = Lines::default();
            let writer = lines.clone();
            let logger = logger(EnvFilter::new(opened), move || writer.clone(), false);
            tracing::subscriber::with_default(logger, || {
                tracing::trace!(target: "kube_client::client", "body: secret");
                tracing::debug!(target: "hyper", "headers: secret");
                tracing::warn!(target: "kube_client::client", "a warning");
                tracing::trace!(target: "kanmon::agent", "our own");
            });
            let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
            assert!(!text.contains("secret"), "{opened}: {text}");
            assert!(text.contains("a warning") && text.contains("our own"), "{opened}: {text}");
        }
    }
}
