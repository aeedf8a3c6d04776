//! Follows the network and keeps the next hop of every backend up to date.
//!
//! The kernel resolves each address once (routes are its to decide) and the neighbours they share once. After
//! that only what a notification is about is asked again.

use std::collections::{BTreeMap, HashSet};
use std::future::pending;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use netlink_packet_route::RouteNetlinkMessage;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use super::netlink::{Monitor, Netlink, NetlinkError, Notice, parse_address, with_driver};
use super::next_hop::{Neighbour, NeighbourKey, Path, Surroundings, assemble, covered, neighbour};
use super::{Destinations, Link, LocalAddresses, NextHopError, NextHops, NoClient, NodeClients};
use crate::io_error::plain;

/// Changes come in bursts: this long after the first of them they are acted on together.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// How often neighbours that the kernel does not keep fresh by itself are asked for again.
const REASSERT: Duration = Duration::from_secs(5);
/// Route lookups under way at once.
const LOOKUPS: usize = 32;

/// A running watcher. Dropping it stops watching and leaves the neighbours to the kernel's care, so that a
/// packet program which stays attached goes on forwarding.
pub struct NetworkWatcher {
    wanted: watch::Sender<Wanted>,
    next_hops: watch::Receiver<Arc<NextHops>>,
    node_clients: watch::Receiver<Arc<NodeClients>>,
    addresses: watch::Receiver<Arc<LocalAddresses>>,
    links: watch::Receiver<Arc<Vec<Link>>>,
    task: JoinHandle<()>,
}

/// What is asked of the routes.
#[derive(Clone, Debug, Default)]
struct Wanted {
    /// Whose next hops are kept up to date.
    backends: Destinations,
    /// Whose routes say whether the node itself can be a client.
    vips: Destinations,
}

impl Wanted {
    fn contains(&self, address: &IpAddr) -> bool {
        self.backends.contains(address) || self.vips.contains(address)
    }
}

impl Drop for NetworkWatcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl NetworkWatcher {
    /// Begins to watch the network namespace of the calling thread. `attached` are the indexes of the
    /// interfaces that the packet program is attached to: only they and VLAN devices above them lead to
    /// backends. Interfaces and addresses are known when this returns.
    ///
    /// # Errors
    ///
    /// The kernel refuses the netlink sockets or the first questions.
    pub async fn start(attached: &[u32]) -> Result<Self, NetlinkError> {
        // Both sockets belong to the namespace that this thread is in now, so they come before any await.
        // Subscribing before asking leaves no gap for a change to hide in.
        let monitor = Monitor::open()?;
        let netlink = Netlink::open()?;
        let (wanted_sender, wanted) = watch::channel(Wanted::default());
        let (next_hops_sender, next_hops) = watch::channel(Arc::default());
        let (node_clients_sender, node_clients) = watch::channel(Arc::default());
        let (addresses_sender, addresses) = watch::channel(Arc::default());
        let (links_sender, links) = watch::channel(Arc::default());
        let mut state = State {
            netlink,
            surroundings: Surroundings {
                attached: attached.iter().copied().collect(),
                ..Surroundings::default()
            },
            addresses: LocalAddresses::new(),
            wanted: Wanted::default(),
            paths: BTreeMap::new(),
            asked: HashSet::new(),
            stale: Destinations::new(),
            next_hops: next_hops_sender,
            node_clients: node_clients_sender,
            addresses_out: addresses_sender,
            links_out: links_sender,
        };
        state.read_everything().await?;
        state.publish_node();
        let task = tokio::spawn(watch_network(state, monitor, wanted));
        Ok(Self { wanted: wanted_sender, next_hops, node_clients, addresses, links, task })
    }

    /// Replaces the set of addresses to resolve.
    pub fn set_addresses(&self, addresses: Destinations) {
        self.wanted.send_if_modified(|current| {
            let differs = current.backends != addresses;
            current.backends = addresses;
            differs
        });
    }

    /// Replaces the set of VIPs whose routes [`Self::node_clients`] tells of. Their neighbours are left alone.
    pub fn set_vips(&self, vips: Destinations) {
        self.wanted.send_if_modified(|current| {
            let differs = current.vips != vips;
            current.vips = vips;
            differs
        });
    }

    /// Whether the node itself can be a client of each VIP, kept up to date. A VIP has no entry until its route has been
    /// looked up.
    #[must_use]
    pub fn node_clients(&self) -> watch::Receiver<Arc<NodeClients>> {
        self.node_clients.clone()
    }

    /// The next hops, kept up to date. An address has no entry until its route has been looked up, a few
    /// milliseconds after it was asked for.
    #[must_use]
    pub fn next_hops(&self) -> watch::Receiver<Arc<NextHops>> {
        self.next_hops.clone()
    }

    /// The node's addresses, kept up to date.
    #[must_use]
    pub fn local_addresses(&self) -> watch::Receiver<Arc<LocalAddresses>> {
        self.addresses.clone()
    }

    /// The node's interfaces, kept up to date.
    #[must_use]
    pub fn links(&self) -> watch::Receiver<Arc<Vec<Link>>> {
        self.links.clone()
    }

    /// Stops watching and gives the neighbours back to the kernel: for an agent that detaches.
    ///
    /// # Errors
    ///
    /// The kernel cannot be asked, or refuses.
    pub async fn release(self) -> Result<(), NetlinkError> {
        self.task.abort();
        release_neighbours().await
    }
}

/// All interfaces of the network namespace of the calling thread.
///
/// # Errors
///
/// The kernel cannot be asked.
pub async fn list_links() -> Result<Vec<Link>, NetlinkError> {
    Netlink::open()?.links().await
}

/// Gives every neighbour back that Kanmon, in this run or an earlier one, asked the kernel to keep fresh.
///
/// # Errors
///
/// The kernel cannot be asked.
pub async fn release_neighbours() -> Result<(), NetlinkError> {
    let netlink = Netlink::open()?;
    for (key, neighbour) in netlink.neighbours().await? {
        if neighbour.ours && !neighbour.is_fixed() {
            release(&netlink, key).await;
        }
    }
    Ok(())
}

async fn release(netlink: &Netlink, key: NeighbourKey) {
    if let Err(error) = netlink.release_neighbour(key).await {
        let NeighbourKey { ifindex, address } = key;
        tracing::warn!(%address, ifindex, "cannot give a neighbour back to the kernel: {error}");
    }
}

struct State {
    netlink: Netlink,
    surroundings: Surroundings,
    addresses: LocalAddresses,
    wanted: Wanted,
    /// Every address that is wanted and has been looked up.
    paths: BTreeMap<IpAddr, Result<Path, NextHopError>>,
    /// Neighbours that the kernel was asked to resolve.
    asked: HashSet<NeighbourKey>,
    /// Addresses whose route must be looked up.
    stale: Destinations,
    next_hops: watch::Sender<Arc<NextHops>>,
    node_clients: watch::Sender<Arc<NodeClients>>,
    addresses_out: watch::Sender<Arc<LocalAddresses>>,
    links_out: watch::Sender<Arc<Vec<Link>>>,
}

async fn watch_network(mut state: State, mut monitor: Monitor, mut wanted: watch::Receiver<Wanted>) {
    let mut reassert = interval(REASSERT);
    reassert.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut act_at: Option<Instant> = None;
    let mut not_before = Instant::now();
    loop {
        let mut relevant = false;
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
                relevant = state.want(wanted.borrow_and_update().clone());
            }
            notice = monitor.next() => match notice {
                Some(Notice::Message(message)) => relevant = state.learn(message),
                Some(Notice::Overrun) => {
                    tracing::debug!("missed network changes; reading everything anew");
                    relevant = true;
                    if let Err(error) = state.read_everything().await {
                        tracing::error!("network changes were missed and cannot be read anew: {error}");
                        return;
                    }
                }
                None => {
                    tracing::error!("the kernel's network notifications ended");
                    return;
                }
            },
            _ = reassert.tick() => relevant = state.reassert_neighbours().await,
            () = until(act_at) => {
                act_at = None;
                let begin = Instant::now();
                state.act().await;
                // Under a storm of route changes lookups take at most a fifth of the time.
                not_before = Instant::now() + begin.elapsed() * 4;
            }
        }
        if relevant && act_at.is_none() {
            act_at = Some((Instant::now() + DEBOUNCE).max(not_before));
        }
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time.into()).await,
        None => pending().await,
    }
}

impl State {
    async fn read_everything(&mut self) -> Result<(), NetlinkError> {
        let links = self.netlink.links().await?;
        self.surroundings.links = links.into_iter().map(|link| (link.ifindex, link)).collect();
        self.surroundings.neighbours = self.netlink.neighbours().await?.into_iter().collect();
        self.addresses = self.netlink.addresses().await?;
        self.stale.extend(self.paths.keys());
        Ok(())
    }

    /// Takes a new set of wanted addresses; returns whether there is something to do.
    fn want(&mut self, wanted: Wanted) -> bool {
        let differs = self.wanted.backends != wanted.backends || self.wanted.vips != wanted.vips;
        self.paths.retain(|address, _| wanted.contains(address));
        self.stale.retain(|address| wanted.contains(address));
        let all = wanted.backends.iter().chain(&wanted.vips);
        self.stale.extend(all.filter(|address| !self.paths.contains_key(*address)));
        self.wanted = wanted;
        differs || !self.stale.is_empty()
    }

    /// Takes a notification; returns whether there is something to do.
    fn learn(&mut self, message: RouteNetlinkMessage) -> bool {
        match message {
            RouteNetlinkMessage::NewLink(message) => {
                Link::parse(&message).is_some_and(|link| self.learn_link(with_driver(link)))
            }
            RouteNetlinkMessage::DelLink(message) => {
                if Link::parse(&message).is_none() {
                    return false;
                }
                let known = self.surroundings.links.remove(&message.header.index).is_some();
                self.asked.retain(|key| key.ifindex != message.header.index);
                known && self.all_stale()
            }
            RouteNetlinkMessage::NewAddress(message) => {
                let Some(address) = parse_address(&message) else { return false };
                if self.addresses.contains(&address) {
                    return false;
                }
                self.forget_address(address.ifindex, address.address);
                self.addresses.push(address);
                self.all_stale()
            }
            RouteNetlinkMessage::DelAddress(message) => {
                let Some(address) = parse_address(&message) else { return false };
                self.forget_address(address.ifindex, address.address) && self.all_stale()
            }
            RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_) => self.all_stale(),
            RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message) => {
                let Some(range) = covered(&message) else { return self.all_stale() };
                let before = self.stale.len();
                self.stale.extend(self.paths.range(range).map(|(address, _)| *address));
                self.stale.len() != before
            }
            RouteNetlinkMessage::NewNeighbour(message) => {
                let Some((key, entry)) = neighbour(&message) else { return false };
                let before = self.surroundings.neighbours.insert(key, entry);
                before != Some(entry) && self.asked.contains(&key)
            }
            RouteNetlinkMessage::DelNeighbour(message) => {
                let Some((key, _)) = neighbour(&message) else { return false };
                self.surroundings.neighbours.remove(&key);
                self.asked.remove(&key)
            }
            _ => false,
        }
    }

    fn learn_link(&mut self, link: Link) -> bool {
        let before = self.surroundings.links.insert(link.ifindex, link.clone());
        if before.as_ref() == Some(&link) {
            return false;
        }
        // What the kernel refused on this interface it may grant now.
        self.surroundings.refused.retain(|key, _| key.ifindex != link.ifindex);
        self.asked.retain(|key| key.ifindex != link.ifindex);
        self.all_stale()
    }

    fn forget_address(&mut self, ifindex: u32, address: IpAddr) -> bool {
        let before = self.addresses.len();
        self.addresses.retain(|local| (local.ifindex, local.address) != (ifindex, address));
        before != self.addresses.len()
    }

    fn all_stale(&mut self) -> bool {
        self.stale.extend(self.paths.keys());
        true
    }

    /// Looks up what is stale, settles the neighbours and publishes the outcome.
    async fn act(&mut self) {
        let stale = std::mem::take(&mut self.stale);
        let netlink = &self.netlink;
        let lookups = stale.into_iter().map(|address| async move { (address, netlink.path(address).await) });
        let paths: Vec<_> = futures::stream::iter(lookups).buffer_unordered(LOOKUPS).collect().await;
        self.paths.extend(paths);
        self.settle_neighbours().await;
        self.publish_node();
        self.publish_next_hops();
        self.publish_node_clients();
    }

    /// Asks for the neighbours that are needed and gives back those that no longer are.
    async fn settle_neighbours(&mut self) {
        let needed: HashSet<_> = self
            .paths_of(&self.wanted.backends)
            .filter_map(|(_, path)| path.as_ref().ok())
            .map(|path| path.neighbour)
            .filter(|key| self.leads_out(*key))
            .collect();
        let missing: Vec<_> = needed.difference(&self.asked).copied().collect();
        for key in missing {
            self.ask_for(key).await;
        }
        let neighbours = &self.surroundings.neighbours;
        let ours = neighbours.iter().filter(|(key, entry)| {
            entry.ours && !entry.is_fixed() && !needed.contains(*key) && self.leads_out(**key)
        });
        for key in ours.map(|(key, _)| *key).collect::<Vec<_>>() {
            release(&self.netlink, key).await;
        }
        self.asked.retain(|key| needed.contains(key));
        self.surroundings.refused.retain(|key, _| needed.contains(key));
    }

    /// Whether frames to a neighbour would leave by an attached interface: others are not ours to care for.
    fn leads_out(&self, key: NeighbourKey) -> bool {
        super::links::egress(&self.surroundings.links, &self.surroundings.attached, key.ifindex).is_ok()
    }

    async fn ask_for(&mut self, key: NeighbourKey) {
        self.asked.insert(key);
        if self.surroundings.neighbours.get(&key).is_some_and(Neighbour::is_fixed) {
            return;
        }
        match self.netlink.resolve_neighbour(key).await {
            Ok(()) => self.surroundings.refused.remove(&key),
            Err(error) => self.surroundings.refused.insert(key, plain(&error)),
        };
    }

    /// Asks again for neighbours that the kernel does not keep fresh by itself: it is older than 5.16, or
    /// refused, or somebody removed the entry. Returns whether an answer changed.
    async fn reassert_neighbours(&mut self) -> bool {
        let neighbours = &self.surroundings.neighbours;
        let unmanaged = |key: &&NeighbourKey| !neighbours.get(*key).is_some_and(|entry| entry.managed);
        let unmanaged: Vec<_> = self.asked.iter().filter(unmanaged).copied().collect();
        let before = self.surroundings.refused.clone();
        for key in unmanaged {
            self.ask_for(key).await;
        }
        before != self.surroundings.refused
    }

    fn publish_node(&self) {
        let links: Vec<_> = self.surroundings.links.values().cloned().collect();
        publish(&self.links_out, links);
        publish(&self.addresses_out, self.addresses.clone());
    }

    fn publish_next_hops(&self) {
        let next_hop = |path: &Result<Path, NextHopError>| match path {
            Ok(path) => assemble(path, &self.surroundings),
            Err(error) => Err(error.clone()),
        };
        let next_hops = self.paths_of(&self.wanted.backends);
        publish(&self.next_hops, next_hops.map(|(address, path)| (address, next_hop(path))).collect());
    }

    fn publish_node_clients(&self) {
        let no_client = |(vip, path): (IpAddr, &Result<Path, NextHopError>)| match path {
            Ok(path) if path.neighbour.address != vip => (vip, None),
            Ok(path) => {
                let link = self.surroundings.links.get(&path.neighbour.ifindex);
                let interface = link.map(|link| link.name.clone()).unwrap_or_default();
                (vip, Some(NoClient::NoRouter { interface }))
            }
            Err(NextHopError::Local) => (vip, Some(NoClient::Local)),
            Err(error) => (vip, Some(NoClient::NoRoute(error.clone()))),
        };
        publish(&self.node_clients, self.paths_of(&self.wanted.vips).map(no_client).collect());
    }

    /// Those of the addresses that have been looked up.
    fn paths_of(
        &self,
        addresses: &Destinations,
    ) -> impl Iterator<Item = (IpAddr, &Result<Path, NextHopError>)> {
        addresses.iter().filter_map(|address| Some((*address, self.paths.get(address)?)))
    }
}

fn publish<T: PartialEq>(channel: &watch::Sender<Arc<T>>, value: T) {
    channel.send_if_modified(|current| {
        let differs = **current != value;
        if differs {
            *current = Arc::new(value);
        }
        differs
    });
}
