//! Events about flows, for the agent: what it acts on, and the flow log.

use super::{Cells, Family, Maps};
use crate::abi::{
    CloseReason, Config, Counter, EventKind, FlowLogWord, FlowRef, FlowState, FlowWord, TCP, UDP,
};

/// What an event says.
pub(super) struct About<F: Family> {
    pub kind: EventKind,
    pub client: F::Address,
    /// Raw.
    pub client_port: u16,
    pub protocol: u8,
    pub flow: FlowWord,
    /// The flow's slot.
    pub slot: u32,
    pub service: u32,
    pub detail: u32,
    /// A [`CloseReason`]; 0: none.
    pub reason: u8,
    pub before_generation: u8,
}

/// Tells the agent that connections to a flow's backend failed so often in a row that it was tripped. Without the
/// client, whom the agent does not ask for: two programs that say this have no room left on their stacks.
#[inline(always)]
pub(super) fn tripped<F: Family, M: Maps>(
    maps: &M,
    config: &Config,
    flow: FlowWord,
    service: u32,
    errors: u64,
) {
    let about = About::<F> {
        kind: EventKind::Tripped,
        client: F::Address::default(),
        client_port: 0,
        protocol: TCP,
        flow,
        slot: 0,
        service,
        detail: errors as u32,
        reason: 0,
        before_generation: 0,
    };
    send(maps, config.events_per_tick, Counter::EventLost, &about);
}

/// Tells the flow log.
#[inline(always)]
pub(super) fn log<F: Family, M: Maps>(maps: &M, config: &Config, about: &About<F>) {
    send(maps, config.flow_events_per_tick, Counter::FlowEventLost, about);
}

/// Which flows of a service the flow log notes.
#[inline(always)]
pub(super) fn noted<M: Maps>(maps: &M, service: u32) -> FlowLogWord {
    FlowLogWord(maps.descriptor(service).map_or(0, |cells| cells.load(6)))
}

/// How a flow has ended.
pub(super) struct End<F: Family> {
    pub client: F::Address,
    /// Raw.
    pub client_port: u16,
    pub word: FlowWord,
    pub flow: FlowRef,
    pub tag: u64,
    pub service: u32,
    pub reason: CloseReason,
    /// Ticks since its last packet.
    pub idle: u16,
}

/// Tells the flow log that a flow has ended, if it notes that flow.
#[inline(always)]
pub(super) fn ended<F: Family, M: Maps>(maps: &M, config: &Config, end: &End<F>) {
    if !noted(maps, end.service).notes(end.tag) {
        return;
    }
    let udp = matches!(end.word.state(), FlowState::UdpNew | FlowState::UdpReplied | FlowState::UdpAssured);
    let about = About::<F> {
        kind: EventKind::Closed,
        client: end.client,
        client_port: end.client_port,
        protocol: if udp { UDP } else { TCP },
        flow: end.word,
        slot: end.flow.slot,
        service: end.service,
        detail: end.idle as u32,
        reason: end.reason as u8,
        before_generation: 0,
    };
    log(maps, config, &about);
}

/// Sends an event within the limit.
#[inline(always)]
pub(super) fn send<F: Family, M: Maps>(maps: &M, limit: u32, lost: Counter, about: &About<F>) {
    let time = maps.now();
    maps.event(time, limit, lost, || {
        // Put together from whole words: byte-wise building would cost the kernel's stack and a `memset`.
        let [client_high, client_low] = F::raw(about.client);
        let flow = about.flow;
        let ends =
            flow.member() as u64 | (about.client_port as u64) << 32 | (flow.port().to_be() as u64) << 48;
        let what = about.kind as u64
            | (F::NUMBER as u64) << 8
            | (about.protocol as u64) << 16
            | (flow.snat() as u64) << 24
            | (about.service as u64) << 32;
        let which = about.detail as u64 | (about.slot as u64) << 32;
        let incarnation = flow.version() as u64
            | (flow.generation() as u64) << 16
            | (about.reason as u64) << 24
            | (about.before_generation as u64) << 32;
        [time, client_high, client_low, ends, what, which, incarnation]
    });
}
