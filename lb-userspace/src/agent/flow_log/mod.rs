//! The flow log: from what the packet program and the sweep tell of flows to records with names, for whoever follows.
//!
//! ```text
//! events ─┐                                   ┌─► `kanmon flows --follow`, each by the socket
//! sweep  ─┴─► queue ─► names, numbers, time ──┴─► file
//! ```
//!
//! Nobody waits for anybody: who is too slow loses records, and is told how many.

mod file;
mod names;
mod record;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lb_common::abi::{
    CloseReason, Counter, Event, EventKind, FlowLogWord, FlowOwner, FlowRef, FlowState, FlowStats,
};
use lb_common::clock::TICK_NS;
use lb_common::datapath::sweep::Ended;
use tokio::sync::{broadcast, mpsc, watch};

use super::clock;
use crate::bpf::Memory;
use crate::status::view::{FlowRecord, RecordState};

pub(super) use file::Output;
pub(super) use names::Naming;
use names::{Named, Names};
use record::{Moment, client_of};

/// What may wait to be named.
const QUEUE: usize = 16_384;
/// Records that a follower may lag behind.
const BACKLOG: usize = 8192;
/// Flows whose beginning is remembered here, where the packet program doesn't keep it.
const MOST_REMEMBERED: usize = 1 << 18;
/// How often it is looked whether something was lost.
const LOSSES: Duration = Duration::from_secs(1);

/// Something that happened to a flow.
#[derive(Clone, Debug)]
pub(super) enum Told {
    /// By the packet program.
    Event(Event),
    /// The sweep evicted it.
    Ended(Ended),
}

/// Where what happens to flows is told.
#[derive(Clone, Debug)]
pub(super) struct Teller {
    queue: mpsc::Sender<Told>,
    lost: Arc<AtomicU64>,
}

impl Teller {
    /// Tells it, or counts it as lost where too much waits.
    pub(super) fn tell(&self, told: Told) {
        if self.queue.try_send(told).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Where records can be had.
pub(super) type Records = broadcast::Sender<Arc<FlowRecord>>;

/// The flow log before it runs.
pub(super) struct FlowLog {
    queue: mpsc::Receiver<Told>,
    lost: Arc<AtomicU64>,
    records: Records,
}

/// The flow log, and its two ends.
pub(super) fn flow_log() -> (Teller, FlowLog, Records) {
    let (sender, queue) = mpsc::channel(QUEUE);
    let records = broadcast::channel(BACKLOG).0;
    let lost = Arc::new(AtomicU64::new(0));
    let log = FlowLog { queue, lost: lost.clone(), records: records.clone() };
    (Teller { queue: sender, lost }, log, records)
}

impl FlowLog {
    /// Runs as long as somebody may tell something. Begins once the members have names.
    pub(super) async fn run(mut self, mut naming: watch::Receiver<Arc<Naming>>, memory: Arc<Memory>) {
        if naming.changed().await.is_err() {
            return;
        }
        let mut writer = Writer {
            names: Names::default(),
            remembered: HashMap::new(),
            lost_in_kernel: memory.counter(Counter::FlowEventLost),
            lost_here: 0,
            memory,
            records: self.records,
        };
        let mut losses = tokio::time::interval(LOSSES);
        loop {
            tokio::select! {
                told = self.queue.recv() => {
                    let Some(told) = told else { return };
                    // Told before what it names was written into the maps.
                    if naming.has_changed().unwrap_or(false) {
                        writer.names.learn(&naming.borrow_and_update());
                    }
                    writer.write(&told);
                }
                _ = losses.tick() => {
                    writer.names.learn(&naming.borrow_and_update());
                    writer.tell_losses(self.lost.load(Ordering::Relaxed));
                }
            }
        }
    }
}

/// What turns one into the other.
struct Writer {
    names: Names,
    /// Version and beginning of the flow in a slot, in nanoseconds.
    remembered: HashMap<u32, (u16, u64)>,
    lost_in_kernel: u64,
    lost_here: u64,
    memory: Arc<Memory>,
    records: Records,
}

impl Writer {
    fn write(&mut self, told: &Told) {
        let record = match told {
            Told::Event(event) => self.of_event(event),
            Told::Ended(ended) => self.of_ended(ended),
        };
        if let Some(record) = record {
            // An error: nobody listens.
            let _ = self.records.send(Arc::new(record));
        }
    }

    fn of_event(&mut self, event: &Event) -> Option<FlowRecord> {
        let flow = FlowRef { slot: event.slot, version: event.version };
        let named = self.names.find(event.member, event.generation);
        let moment = Moment::of(event.time);
        let client = client_of(event.family, event.client, event.client_port);
        let blank = record::flow(moment, event.protocol, Some(client), named);
        if event.kind == EventKind::Opened as u8 {
            self.remember(flow, event.time);
            return Some(FlowRecord { state: RecordState::Opened, ..blank });
        }
        if event.kind == EventKind::Rescued as u8 {
            let before = self.names.find(event.detail, event.before_generation);
            return Some(FlowRecord {
                state: RecordState::Rescued,
                close_reason: Some(record::RESCUED.to_owned()),
                previous_upstream_host: before.map(Named::upstream_host),
                ..blank
            });
        }
        if event.kind != EventKind::Closed as u8 {
            return None;
        }
        let reason = CloseReason::from_bits(event.reason)?;
        Some(self.closed(blank, flow, reason, event.time, event.detail))
    }

    fn of_ended(&mut self, ended: &Ended) -> Option<FlowRecord> {
        let named = self.names.find(ended.word.member(), ended.word.generation());
        // What had closed before was told then.
        if ended.word.state() == FlowState::Closed {
            return None;
        }
        let one_in = named.map_or(1, |named| named.sample_one_in);
        if !FlowLogWord::one_in(one_in).notes(ended.tag) {
            return None;
        }
        let now = clock::nanoseconds();
        let client = ended.client.map(|client| client_of(client.family, client.address, client.port));
        let blank = record::flow(Moment::of(now), record::protocol_of(ended.word.state()), client, named);
        Some(self.closed(blank, ended.flow, ended.reason, now, ended.idle.into()))
    }

    /// The record of an end at `time`, of a flow whose last packet came so many ticks before.
    fn closed(
        &mut self,
        blank: FlowRecord,
        flow: FlowRef,
        reason: CloseReason,
        time: u64,
        idle: u32,
    ) -> FlowRecord {
        let stats = self.stats(flow);
        let remembered = self.forget(flow);
        let opened = stats.map(|stats| stats.opened).or(remembered);
        let last = time.saturating_sub(u64::from(idle) * TICK_NS);
        FlowRecord {
            state: RecordState::Closed,
            close_reason: Some(record::reason(reason).to_owned()),
            duration_seconds: opened.map(|opened| last.saturating_sub(opened) as f64 / 1e9),
            bytes_in: stats.map(|stats| stats.bytes_in),
            packets_in: stats.map(|stats| stats.packets_in),
            bytes_out: stats.map(|stats| stats.bytes_out),
            packets_out: stats.map(|stats| stats.packets_out),
            ..blank
        }
    }

    fn remember(&mut self, flow: FlowRef, time: u64) {
        if self.remembered.len() < MOST_REMEMBERED || self.remembered.contains_key(&flow.slot) {
            self.remembered.insert(flow.slot, (flow.version, time));
        }
    }

    fn forget(&mut self, flow: FlowRef) -> Option<u64> {
        let (version, time) = *self.remembered.get(&flow.slot)?;
        if version != flow.version {
            return None;
        }
        self.remembered.remove(&flow.slot);
        Some(time)
    }

    /// What the packet program counted of a flow; `None` where it did not, or another flow has the place by now.
    fn stats(&self, flow: FlowRef) -> Option<FlowStats> {
        let table = &self.memory.flow_stats;
        let index = flow.slot & table.len().wrapping_sub(1);
        let found: FlowStats = table.read(index)?;
        let is_ours = |stats: &FlowStats| FlowOwner(stats.owner).flow() == Some(flow);
        // Read again: it may have changed hands meanwhile.
        (is_ours(&found) && table.read(index).as_ref().is_some_and(is_ours)).then_some(found)
    }

    fn tell_losses(&mut self, lost_here: u64) {
        let in_kernel = self.memory.counter(Counter::FlowEventLost);
        let losses = [
            (in_kernel.wrapping_sub(self.lost_in_kernel), "kernel"),
            (lost_here.wrapping_sub(self.lost_here), "agent"),
        ];
        (self.lost_in_kernel, self.lost_here) = (in_kernel, lost_here);
        for (count, place) in losses.into_iter().filter(|(count, _)| *count > 0) {
            let _ = self.records.send(Arc::new(FlowRecord::lost(record::now(), count, place)));
        }
    }
}
