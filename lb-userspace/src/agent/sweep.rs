//! The sweep: passes over the flow tables, a little at a time, that evict what has expired, mend what a
//! killed agent left half done, and count who still has flows.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lb_common::abi::{Config, FRAGMENT_TICKS, FlowRef, FlowState, LAST_HOPS, PORT_BITMAP_WORDS};
use lb_common::clock::{TICK_NS, age};
use lb_common::datapath::sweep::{self, Client, Ended, Observer, Suspects};
use lb_common::datapath::{Cells, Tables, V4, V6};
use tokio::sync::watch;

use crate::bpf::Memory;
use crate::plan::FlowUsage;

use super::clock;
use super::flow_log::{Teller, Told};

/// How long a pass over all tables should take. It must be longer than a tick: ports are given back when they
/// looked orphaned in two passes that lie a tick apart.
const PASS: Duration = Duration::from_secs(2);
const _: () = assert!(PASS.as_nanos() > TICK_NS as u128);
/// How long the sweep rests after each of its chunks.
const REST: Duration = Duration::from_millis(10);
/// What a backend's ports cost to sweep, in buckets.
const PORTS_COST: u32 = 64;
/// A last hop that was given to a flow, or named by one, within so many ticks stays: the flow may not name it yet, or a
/// fragment of a flow that is gone may still follow its first one. A pass later than that nobody knows of it any more.
const LAST_HOP_QUIET: u16 = FRAGMENT_TICKS as u16 + 40;

/// What one pass found.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Pass {
    /// Live flows by state, indexed by the state's number.
    pub(super) states: [u64; FlowState::ALL.len()],
    /// Who still has flows or ports.
    pub(super) usage: FlowUsage,
    /// Flows that were evicted.
    pub(super) evicted: u64,
    /// Half-made entries and ports that were cleared.
    pub(super) mended: u64,
}

/// What the sweep is told between passes.
#[derive(Clone, Debug, Default)]
pub(super) struct Orders {
    /// Number of the last plan that has been applied whole.
    pub(super) applied: u64,
    /// Members whose flows are to go, whatever their age.
    pub(super) unwanted: Arc<HashSet<u32>>,
}

/// Sweeps until the receiver of `passes` is gone.
pub(super) async fn run(
    memory: Arc<Memory>,
    config: Config,
    orders: watch::Receiver<Orders>,
    passes: watch::Sender<Arc<Pass>>,
    flow_log: Teller,
) {
    let mut sweep = Sweep::new(orders.borrow().clone());
    let chunks = u32::try_from(PASS.as_millis() / REST.as_millis()).unwrap_or(1);
    let chunk = (sweep.length(&config, memory.backends.len()) / chunks).max(256);
    let mut began = Instant::now();
    loop {
        let pass = sweep.advance(&memory.tables(&config), &config, clock::tick(), chunk, &orders);
        sweep.take_ended().for_each(|ended| flow_log.tell(Told::Ended(ended)));
        if let Some(pass) = pass {
            if passes.send(Arc::new(pass)).is_err() {
                return;
            }
            // Small tables are done in no time: a pass is no shorter for that.
            tokio::time::sleep(PASS.saturating_sub(began.elapsed())).await;
            began = Instant::now();
        } else {
            tokio::time::sleep(REST).await;
        }
        if passes.is_closed() {
            return;
        }
    }
}

/// Which table the pass is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Flows,
    ReverseV4,
    ReverseV6,
    Ports,
}

/// A pass under way.
struct Sweep {
    stage: Stage,
    /// The next bucket or backend of the stage.
    next: u32,
    seen: Seen,
    /// Ports that looked orphaned in the pass before, by (backend, SNAT address).
    suspects: HashMap<(u32, u8), Box<Suspects>>,
    /// The tick at the end of the last pass that found a flow with a last hop, by its index; `None`: no pass has ended.
    named: Vec<Option<u16>>,
}

/// What the pass has seen so far.
struct Seen {
    pass: Pass,
    last_hops: Vec<bool>,
    unwanted: Arc<HashSet<u32>>,
    /// Flows that were evicted and are not told yet.
    ended: Vec<Ended>,
    /// Flows that were evicted and whose clients the sweep has not found yet, by slot.
    without_client: HashMap<u32, Ended>,
}

impl Seen {
    fn new(orders: Orders) -> Self {
        let usage = FlowUsage { applied: orders.applied, ..FlowUsage::default() };
        Self {
            pass: Pass { usage, ..Pass::default() },
            last_hops: vec![false; LAST_HOPS as usize],
            unwanted: orders.unwanted,
            ended: Vec::new(),
            without_client: HashMap::new(),
        }
    }
}

impl Observer for Seen {
    fn flow(&mut self, state: FlowState, member: u32) {
        self.pass.states[state as usize] += 1;
        *self.pass.usage.flows.entry(member).or_default() += 1;
    }
    fn evicted(&mut self, ended: &Ended) {
        self.pass.evicted += 1;
        if ended.client.is_some() {
            self.ended.push(*ended);
        } else {
            self.without_client.insert(ended.flow.slot, *ended);
        }
    }
    fn orphan(&mut self, flow: FlowRef, client: &Client) {
        if let Some(ended) = self.without_client.remove(&flow.slot) {
            let client = (ended.flow == flow).then_some(*client);
            self.ended.push(Ended { client, ..ended });
        }
    }
    fn last_hop(&mut self, index: u16) {
        if let Some(seen) = self.last_hops.get_mut(usize::from(index)) {
            *seen = true;
        }
    }
    fn mended(&mut self) {
        self.pass.mended += 1;
    }
    fn is_unwanted(&self, member: u32) -> bool {
        self.unwanted.contains(&member)
    }
}

impl Sweep {
    fn new(orders: Orders) -> Self {
        Self {
            stage: Stage::Flows,
            next: 0,
            seen: Seen::new(orders),
            suspects: HashMap::new(),
            named: vec![None; LAST_HOPS as usize],
        }
    }

    /// What a whole pass costs, in buckets.
    fn length(&self, config: &Config, backends: u32) -> u32 {
        [config.flow_bucket_mask, config.reverse_v4_mask, config.reverse_v6_mask]
            .into_iter()
            .fold(backends.saturating_mul(PORTS_COST), |sum, mask| sum.saturating_add(mask).saturating_add(1))
    }

    /// Sweeps at most `chunk` buckets, or what costs as much; the pass when that was its end.
    fn advance<T: Tables>(
        &mut self,
        tables: &T,
        config: &Config,
        now: u16,
        chunk: u32,
        orders: &watch::Receiver<Orders>,
    ) -> Option<Pass> {
        // Fetched for each chunk, not for each pass: a member that came back keeps its new flows.
        self.seen.unwanted = orders.borrow().unwanted.clone();
        let mut left = chunk;
        while left > 0 {
            left = left.saturating_sub(if self.stage == Stage::Ports { PORTS_COST } else { 1 });
            let more = match self.stage {
                Stage::Flows => {
                    sweep::flow_bucket(tables, config, self.next, now, &mut self.seen);
                    self.next < config.flow_bucket_mask
                }
                Stage::ReverseV4 => {
                    sweep::reverse_bucket::<V4, T>(tables, config, self.next, &mut self.seen);
                    self.next < config.reverse_v4_mask
                }
                Stage::ReverseV6 => {
                    sweep::reverse_bucket::<V6, T>(tables, config, self.next, &mut self.seen);
                    self.next < config.reverse_v6_mask
                }
                Stage::Ports => self.backend(tables, config),
            };
            if more {
                self.next += 1;
                continue;
            }
            self.next = 0;
            self.stage = match self.stage {
                Stage::Flows => Stage::ReverseV4,
                Stage::ReverseV4 => Stage::ReverseV6,
                Stage::ReverseV6 => Stage::Ports,
                Stage::Ports => {
                    self.stage = Stage::Flows;
                    return Some(self.finish(tables, now, orders.borrow().clone()));
                }
            };
        }
        None
    }

    /// The flows that have been evicted since the last call.
    fn take_ended(&mut self) -> std::vec::Drain<'_, Ended> {
        self.seen.ended.drain(..)
    }

    /// Sweeps the ports of the backend whose turn it is; whether there is another one.
    fn backend<T: Tables>(&mut self, tables: &T, config: &Config) -> bool {
        let index = self.next;
        let Some(cells) = tables.backend(index) else { return false };
        // Cell 5: port, protocol, family.
        let family = cells.load(5).to_ne_bytes()[3];
        let addresses = match family {
            4 => config.snat_v4_count,
            6 => config.snat_v6_count,
            _ => return true,
        };
        for snat in 0..addresses as u8 {
            let key = (index, snat);
            let mut suspects = self.suspects.remove(&key).unwrap_or_else(|| Box::new([0; PORT_BITMAP_WORDS]));
            let sweep = if family == 4 { sweep::ports::<V4, T> } else { sweep::ports::<V6, T> };
            sweep(tables, config, index, snat, &mut suspects, &mut self.seen);
            if suspects.iter().any(|word| *word != 0) {
                self.suspects.insert(key, suspects);
            }
        }
        if !sweep::has_no_ports(tables, config, index) {
            self.seen.pass.usage.busy_backends.insert(index);
        }
        true
    }

    fn finish<T: Tables>(&mut self, tables: &T, now: u16, orders: Orders) -> Pass {
        let mut seen = std::mem::replace(&mut self.seen, Seen::new(orders));
        self.seen.ended = seen.ended;
        self.seen.ended.extend(seen.without_client.drain().map(|(_, ended)| ended));
        for ((index, seen), named) in (0_u16..).zip(seen.last_hops).zip(&mut self.named) {
            // Before the first pass an agent that is gone may have seen it named.
            if seen || named.is_none() {
                *named = Some(now);
            } else if named.is_some_and(|named| age(now, named).exceeds(LAST_HOP_QUIET)) {
                sweep::free_last_hop(tables, index, now, LAST_HOP_QUIET);
            }
        }
        seen.pass
    }
}

#[cfg(test)]
#[path = "sweep_tests.rs"]
mod tests;
