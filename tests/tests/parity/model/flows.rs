//! Flows as the model knows them: by their keys, in maps without bounds.

use std::net::SocketAddr;

use lb_common::{
    abi::{Config, FlowBucket, FlowState, FlowWord},
    clock,
    host::HostMaps,
};

use super::packet::{Flags, Link};

/// A flow's two ends as its client knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub client: SocketAddr,
    pub vip: SocketAddr,
    pub protocol: u8,
}

/// A port: of a backend, at one of the SNAT addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Port {
    pub backend: u32,
    pub snat: u8,
    pub port: u16,
}

/// A flow.
#[derive(Clone, Debug)]
pub(super) struct Flow {
    /// Each flow has another number.
    pub number: u64,
    pub state: FlowState,
    pub member: u32,
    pub generation: u8,
    pub snat: u8,
    pub port: u16,
    /// Backends that the SYN was taken to before this one; `None`: it goes nowhere else.
    pub attempt: Option<u8>,
    /// The member before this one.
    pub before: u32,
    /// When the SYN went to the backend, in nanoseconds.
    pub sent: u64,
    /// The client's first sequence number, and the server's.
    pub isn: u32,
    pub server_isn: Option<u32>,
    /// Tick of the client's last packet.
    pub seen: u16,
    /// Where the host put it: slot and version.
    pub slot: (u32, u16),
}

/// A port's owner: to whom a backend's packets go.
#[derive(Clone, Debug)]
pub(super) struct Path {
    pub key: Key,
    /// Its flow's number.
    pub flow: u64,
    pub member: u32,
    pub generation: u8,
    pub back: Link,
    /// Nothing that the backend says but FIN, SYN and RST moves the flow.
    pub replied: bool,
    /// Tick of the backend's last packet.
    pub seen: u16,
}

pub(super) const fn is_half_open(state: FlowState) -> bool {
    matches!(state, FlowState::SynSent | FlowState::SynAcked | FlowState::UdpNew | FlowState::Refused)
}

/// Idle ticks after which a flow in this state has expired.
pub(super) const fn timeout(config: &Config, state: FlowState) -> u16 {
    let timeouts = &config.timeouts;
    match state {
        FlowState::SynSent | FlowState::SynAcked | FlowState::Refused => timeouts.half_open,
        FlowState::Closed => timeouts.closed,
        FlowState::ClientReset | FlowState::BackendReset => timeouts.reset,
        FlowState::UdpNew => timeouts.udp_new,
        FlowState::UdpReplied => timeouts.udp_replied,
        _ => timeouts.established,
    }
}

/// What may become of a flow when another one needs its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Worth {
    /// Closed or expired.
    Dead,
    HalfOpen,
    /// It stays.
    Live,
}

/// The worth of a flow's slot. `backend_seen`: `None` where nothing is known of its backend's side.
pub(super) fn worth(config: &Config, flow: &Flow, backend_seen: Option<u16>, now: u16) -> Worth {
    let idle = |seen| clock::age(now, seen).exceeds(timeout(config, flow.state));
    if flow.state == FlowState::Closed {
        Worth::Dead
    } else if is_half_open(flow.state) {
        if idle(flow.seen) { Worth::Dead } else { Worth::HalfOpen }
    } else if idle(flow.seen) && backend_seen.is_none_or(idle) {
        Worth::Dead
    } else {
        Worth::Live
    }
}

/// Quiet ticks after which a flow that saw a RST gives up its port.
const RESET_QUIET: u16 = 3;

/// The worth of a flow's port.
pub(super) fn port_worth(config: &Config, flow: &Flow, backend_seen: Option<u16>, now: u16) -> Worth {
    let is_reset = matches!(flow.state, FlowState::ClientReset | FlowState::BackendReset);
    let quiet = |seen| clock::age(now, seen).exceeds(RESET_QUIET);
    if is_reset && quiet(flow.seen) && backend_seen.is_none_or(quiet) {
        return Worth::Dead;
    }
    worth(config, flow, backend_seen, now)
}

/// The word in a slot of the host's table.
pub(super) fn word_at(maps: &HostMaps, slot: u32) -> FlowWord {
    let FlowBucket { entries } = maps.flows.read(slot / 4);
    FlowWord(entries[slot as usize % 4].word)
}

/// The slot in which the host has the flow with this tag, in one of two buckets.
pub(super) fn slot_of(maps: &HostMaps, buckets: [u32; 2], tag: u64) -> Option<(u32, FlowWord)> {
    buckets.into_iter().find_map(|bucket| {
        let FlowBucket { entries } = maps.flows.read(bucket);
        (0..).zip(entries).find_map(|(way, entry)| {
            let word = FlowWord(entry.word);
            let [a, b, c] = entry.tag.map(u64::from);
            let is_it = word.state().is_live() && a | b << 16 | c << 32 == word.masked_tag(tag);
            is_it.then_some((bucket * 4 + way, word))
        })
    })
}

/// What a client's segment does to a TCP flow (docs/adr/0003-tcp-states.md).
pub(super) enum ClientMove {
    Stay,
    To(FlowState),
    /// Only with proof.
    Prove(FlowState),
    Anew,
}

pub(super) fn client_move(state: FlowState, flags: Flags) -> ClientMove {
    use FlowState::{BackendFin, BackendReset, ClientFin, ClientReset, Closed, Established, SynAcked};
    let fin = flags.fin();
    match state {
        Closed | BackendReset if flags.opens() => ClientMove::Anew,
        _ if flags.opens() => ClientMove::Stay,
        Established | ClientFin | BackendFin if flags.rst() => ClientMove::To(ClientReset),
        _ if flags.rst() => ClientMove::Stay,
        SynAcked if flags.ack() && !flags.syn() => {
            ClientMove::Prove(if fin { ClientFin } else { Established })
        }
        Established if fin => ClientMove::To(ClientFin),
        BackendFin if fin => ClientMove::To(Closed),
        ClientReset => ClientMove::To(if fin { ClientFin } else { Established }),
        _ => ClientMove::Stay,
    }
}

/// What a backend's segment does to one.
pub(super) enum BackendMove {
    Stay,
    To(FlowState),
    Answer,
    Refuse,
    Swallow,
}

pub(super) fn backend_move(state: FlowState, flags: Flags) -> BackendMove {
    use FlowState::{BackendFin, BackendReset, ClientFin, Closed, Established, Refused, SynAcked, SynSent};
    let fin = flags.fin();
    match state {
        SynSent if flags.rst() => BackendMove::Refuse,
        Refused if flags.rst() => BackendMove::Swallow,
        SynAcked if flags.rst() => BackendMove::To(Closed),
        Established | ClientFin | BackendFin if flags.rst() => BackendMove::To(BackendReset),
        _ if flags.rst() => BackendMove::Stay,
        SynSent | SynAcked | Refused if flags.answers() => BackendMove::Answer,
        Established if fin => BackendMove::To(BackendFin),
        ClientFin if fin => BackendMove::To(Closed),
        BackendReset => BackendMove::To(if fin { BackendFin } else { Established }),
        _ => BackendMove::Stay,
    }
}
