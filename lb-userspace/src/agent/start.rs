//! What happens before the loop: every check that can fail, in an order in which nothing has been touched
//! while anything can still be refused.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use tokio::sync::watch;

use super::drains::{self, Drains};
use super::flow_log::Output;
use crate::bpf::{self, AgentLock, Kernel, LOCK_DIR, host};
use crate::cluster::{self, LastGood, Programmed};
use crate::config::{Settings, Source};
use crate::desired::{Allocations, Desired};
use crate::network::snat::{self, DEFAULT_NODE_PORTS, PortRange, PortRequest, PortsInUse, WORD};
use crate::network::{NetworkWatcher, default_snat_addresses, is_local, list_links};
use crate::status::health::HealthServer;
use crate::status::server::Server;

/// Events of the flow log that one CPU may send within one tick of 268 ms: at most 4,000 a second from each.
const FLOW_EVENTS_PER_TICK: u32 = 1024;
/// Events of all kinds: what the flow log can't use up is for those that the agent acts on.
const EVENTS_PER_TICK: u32 = FLOW_EVENTS_PER_TICK + 64;

/// Everything that the loop begins with. Nothing is attached yet.
pub(super) struct Started {
    pub(super) settings: Settings,
    pub(super) kernel: Kernel,
    /// Indices of the interfaces to attach to.
    pub(super) interfaces: BTreeSet<u32>,
    pub(super) network: NetworkWatcher,
    pub(super) clusters: watch::Receiver<Arc<cluster::Snapshot>>,
    /// Where the loop tells the source what became of it.
    pub(super) desired: watch::Sender<Arc<Desired>>,
    /// The same, of the packet program.
    pub(super) programmed: watch::Sender<Arc<Programmed>>,
    /// VIPs that came from pools in an earlier run.
    pub(super) allocations: Allocations,
    /// What was drained by hand in an earlier run.
    pub(super) drains: Drains,
    pub(super) snat_addresses: BTreeSet<IpAddr>,
    pub(super) snat_ports: PortRange,
    pub(super) server: Server,
    pub(super) health: Option<HealthServer>,
    pub(super) flow_log: Option<Output>,
}

/// Checks everything, and loads the packet program over new or adopted maps.
///
/// # Errors
/// When something is wrong; what this call made is removed again.
pub(super) async fn start(settings: Settings) -> Result<Started> {
    host::check()?;
    let interfaces = resolve(&settings.interfaces).await?;
    let lock = AgentLock::acquire(Path::new(LOCK_DIR), &settings.pin_dir)?;
    bpf::refuse_foreign_programs(&settings.pin_dir, &settings.interfaces)?;
    let server = Server::bind(&settings.socket)?;
    let health = match settings.health_address {
        Some(address) => Some(HealthServer::bind(address).await?),
        None => None,
    };
    let flow_log = settings.flow_log.as_deref().map(open_flow_log).transpose()?;

    let last_good = load_last_good(&settings.state_dir);
    let allocations = last_good.as_ref().map(|state| state.allocations.clone()).unwrap_or_default();
    let drains = load_drains(&settings.state_dir);
    let (desired, merged) = watch::channel(Arc::default());
    let (programmed, forwarded) = watch::channel(Arc::default());
    let clusters = follow(&settings, last_good, merged, forwarded).await?;

    let network = NetworkWatcher::start(&interfaces).await.context("cannot watch the node's network")?;
    let snat_addresses = snat_addresses(&settings, &network, &interfaces)?;
    let in_use = PortsInUse::read(DEFAULT_NODE_PORTS).context("cannot tell which ports the node uses")?;
    let request = PortRequest::from(settings.snat_ports);
    let mut snat_ports = snat::choose(&request, &in_use)?;

    let sizes = table_sizes(&settings, &snat_addresses);
    tracing::info!("memory of the tables:\n{}", sizes.memory());
    let mut kernel = Kernel::load(&settings.pin_dir, sizes, lock)?;
    if kernel.adopted() {
        tracing::info!("going on with the maps below {}: flows live on", settings.pin_dir.display());
        let found = kernel.config();
        if request == PortRequest::Auto && found.port_words > 0 {
            snat_ports = PortRange { base: found.port_base, words: found.port_words };
        }
    }
    let configured = kernel.configure(&bpf::Settings {
        cluster_set_id: settings.cluster_set_id.clone(),
        snat_addresses: snat_addresses.clone(),
        port_base: snat_ports.base,
        port_count: snat_ports.words * WORD,
        timeouts: settings.timeouts.to_abi(),
        events_per_tick: EVENTS_PER_TICK,
        flow_events_per_tick: FLOW_EVENTS_PER_TICK,
        refusals_per_tick: settings.refusals_per_tick(),
    });
    if let Err(error) = configured {
        remove_unless_adopted(kernel);
        return Err(error.into());
    }
    Ok(Started {
        interfaces: interfaces.into_iter().collect(),
        snat_addresses: snat_addresses.into_iter().collect(),
        settings,
        kernel,
        network,
        clusters,
        desired,
        programmed,
        allocations,
        drains,
        snat_ports,
        server,
        health,
        flow_log,
    })
}

/// Follows the clusters, wherever they are found.
async fn follow(
    settings: &Settings,
    last_good: Option<LastGood>,
    merged: watch::Receiver<Arc<Desired>>,
    forwarded: watch::Receiver<Arc<Programmed>>,
) -> Result<watch::Receiver<Arc<cluster::Snapshot>>> {
    match &settings.source {
        Source::Manifests(directory) => cluster::manifests::watch(directory.clone(), last_good)
            .await
            .context("cannot start from these manifests (--manifests names their directory)"),
        Source::Kubernetes(kubernetes) => {
            let set = settings.cluster_set_id.clone();
            cluster::kubernetes::watch(kubernetes.clone(), set, last_good, merged, forwarded)
                .await
                .context("cannot start from Kubernetes (--kubeconfig names the gateway cluster's)")
        }
    }
}

fn open_flow_log(path: &Path) -> Result<Output> {
    Output::open(path)
        .with_context(|| format!("cannot write the flow log to {} (--flow-log)", path.display()))
}

/// Takes back what this process made. Maps that were found belong to flows that go on.
pub(super) fn remove_unless_adopted(kernel: Kernel) {
    if !kernel.adopted()
        && let Err(error) = kernel.remove()
    {
        tracing::warn!("cannot remove what was pinned: {error}; `kanmon cleanup` does");
    }
}

async fn resolve(names: &[String]) -> Result<Vec<u32>> {
    let links = list_links().await.context("cannot list the interfaces")?;
    let mut indices = Vec::new();
    for name in names {
        let Some(link) = links.iter().find(|link| link.name == *name) else {
            let existing: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
            bail!("there is no interface {name}; there are: {}", existing.join(", "));
        };
        if !link.up {
            tracing::warn!("{name} is down: nothing arrives until `ip link set {name} up`");
        }
        indices.push(link.ifindex);
    }
    Ok(indices)
}

/// The last good state is a help, not a condition: without it only what is read now counts.
fn load_last_good(directory: &Path) -> Option<LastGood> {
    cluster::load_last_good(directory).unwrap_or_else(|error| {
        tracing::warn!("starting without the last good endpoints: {error}");
        None
    })
}

/// A broken file is not a reason to serve nobody.
fn load_drains(directory: &Path) -> Drains {
    let drains = drains::load(directory).unwrap_or_else(|error| {
        tracing::error!(
            "what was drained by hand gets new connections again, because it is not known: {error:#}"
        );
        Drains::default()
    });
    for (name, drain) in drains.iter() {
        tracing::info!("{name} is drained by hand since {}", drain.since);
    }
    drains
}

fn snat_addresses(settings: &Settings, network: &NetworkWatcher, attached: &[u32]) -> Result<Vec<IpAddr>> {
    let local = network.local_addresses().borrow().clone();
    if settings.snat_addresses.is_empty() {
        let addresses = default_snat_addresses(&local, attached);
        if addresses.is_empty() {
            bail!(
                "{} has no address that backends could answer to: give it one (`ip addr add …`), or name the \
                 gateway's own with --snat-addresses",
                settings.interfaces.join(", ")
            );
        }
        return Ok(addresses);
    }
    for address in settings.snat_addresses.iter().filter(|address| !is_local(&local, **address)) {
        tracing::warn!("SNAT address {address} is on no interface: replies arrive only if it is routed here");
    }
    Ok(settings.snat_addresses.clone())
}

fn table_sizes(settings: &Settings, snat_addresses: &[IpAddr]) -> bpf::TableSizes {
    let tables = settings.tables;
    let v4 = snat_addresses.iter().filter(|address| address.is_ipv4()).count();
    bpf::TableSizes {
        flows: tables.flows,
        flows_v6: tables.flows_v6.max(1),
        services: tables.services,
        backends: tables.backends,
        members: tables.members,
        ring_slots: tables.ring_slots,
        flow_counters: tables.flow_counters,
        source_ranges: tables.source_ranges,
        snat_count: v4.max(snat_addresses.len() - v4) as u32,
        cpus: possible_cpus(),
    }
}

/// The highest possible CPU's number + 1: per-CPU blocks are addressed by it.
fn possible_cpus() -> u32 {
    fs::read_to_string("/sys/devices/system/cpu/possible")
        .ok()
        .and_then(|text| highest_cpu(&text))
        .map_or(1, |highest| highest + 1)
}

/// The highest number in the kernel's notation, for example `0-3,8-11`.
fn highest_cpu(text: &str) -> Option<u32> {
    text.trim().split([',', '-']).filter_map(|number| number.parse().ok()).max()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_highest_cpu_is_found_in_ranges_with_gaps() {
        assert_eq!(super::highest_cpu("0-1\n"), Some(1));
        assert_eq!(super::highest_cpu("0,2-3,8-11\n"), Some(11));
        assert_eq!(super::highest_cpu("0\n"), Some(0));
    }
}
