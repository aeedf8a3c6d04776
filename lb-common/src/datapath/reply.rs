//! A backend's packet: back to the client that it is for.

use core::mem::offset_of;

use network_types::tcp::TcpHdr;

use super::{
    Cells, Family, Maps, Outcome, PacketMut, events, flow_table,
    flow_table::Slot,
    last_hop,
    member::{self, MemberHead},
    parse::{self, Ip, Link, Shape},
    request::TCP_FLAGS,
    reverse_table::{self, Reverse},
    rewrite::{Constant, Covered, Tuple, rewrite},
    tcp::{self, BackendStep, Flags},
};
use crate::{
    abi::{Config, Counter, EventKind, FlowState, ReverseState, TCP, member_flags},
    clock,
};

/// Forwards it; `None` where it is not the reply of a live flow.
#[inline(always)]
pub(super) fn forward<F: Family, P: PacketMut, M: Maps>(
    packet: &mut P,
    maps: &M,
    config: &Config,
    link: &Link,
    ip: &Ip<F>,
) -> Option<Outcome> {
    if ip.shape != Shape::Whole {
        return None;
    }
    let ports = parse::ports(packet, ip.transport_offset)?;
    let port = u16::from_be(ports.destination);
    if port.wrapping_sub(config.port_base) >= config.port_words.wrapping_mul(64) {
        return None;
    }
    let snat = F::snat_index(config, ip.destination)?;
    let backend = F::backend(maps, ip.source, ports.source, ip.protocol)?;
    let entry = reverse_table::find::<F, M>(maps, config, backend, snat, port)?;
    let member = maps.member(entry.member)?;
    let head = MemberHead::load(member);
    if !head.has(member_flags::VALID) || head.generation() != entry.generation {
        return Some(Outcome::Drop(Counter::DropStaleMember));
    }
    if ip.ttl <= 1 {
        return Some(Outcome::Drop(Counter::DropTtl));
    }
    learn(packet, maps, config, ip, &entry)?;
    entry.touch(clock::tick(maps.now()));
    Some(send(packet, maps, config, link, ip, ports, &entry, member))
}

/// Lets the packet move the flow's state. Only the first reply and segments with FIN, SYN or RST need the
/// forward entry.
#[inline(always)]
fn learn<F: Family, P: PacketMut, M: Maps>(
    packet: &P,
    maps: &M,
    config: &Config,
    ip: &Ip<F>,
    entry: &Reverse<F, M::Cells>,
) -> Option<()> {
    if ip.protocol != TCP {
        if !entry.word.is_replied() {
            // Only a flow that knows of a reply needs no other one to tell it.
            if let Some(slot) = flow_table::by_reference(maps, entry.flow)
                && (slot.word.state() == FlowState::UdpReplied
                    || slot.word.state() == FlowState::UdpNew && slot.advance(FlowState::UdpReplied))
            {
                entry.set_state(ReverseState::Replied);
            }
        }
        return Some(());
    }
    let flags = Flags(packet.read::<u8, TCP_FLAGS>(ip.transport_offset)?);
    if entry.word.is_replied() && !tcp::backend_flags_matter(flags) {
        return Some(());
    }
    // A client that moves the state at the same moment wins once; the second look decides on what it left.
    let mut look = 0;
    while look < 2 {
        look += 1;
        let Some(slot) = flow_table::by_reference(maps, entry.flow) else { break };
        if step(packet, maps, config, ip, entry, &slot, flags)? {
            break;
        }
    }
    Some(())
}

/// True when nothing is left to do.
#[inline(always)]
fn step<F: Family, P: PacketMut, M: Maps>(
    packet: &P,
    maps: &M,
    config: &Config,
    ip: &Ip<F>,
    entry: &Reverse<F, M::Cells>,
    slot: &Slot<M::Cells>,
    flags: Flags,
) -> Option<bool> {
    match tcp::from_backend(slot.word.state(), flags) {
        BackendStep::Stay => {
            if !entry.word.is_replied() && !flags.is_reset() {
                entry.set_state(ReverseState::Replied);
            }
            Some(true)
        }
        BackendStep::Answer => {
            let isn: u32 = packet.read::<_, { offset_of!(TcpHdr, seq) }>(ip.transport_offset)?;
            let kept = u32::from_be(isn) as u64 | (slot.word.version() as u64) << 32;
            maps.handshakes(slot.bucket)?.store(slot.way as usize, kept);
            entry.set_state(ReverseState::Replied);
            Some(slot.word.state() == FlowState::SynAcked || slot.advance(FlowState::SynAcked))
        }
        BackendStep::To(state) => {
            if !slot.advance(state) {
                return Some(false);
            }
            match state {
                FlowState::Closed => {
                    events::of_flow(
                        maps,
                        config,
                        EventKind::Closed,
                        entry.client,
                        entry.client_port,
                        ip,
                        slot.word,
                    );
                }
                FlowState::BackendReset => {
                    // What comes next from this side has to be looked at: it may revive the flow.
                    entry.set_state(ReverseState::New);
                    events::of_flow(
                        maps,
                        config,
                        EventKind::Closed,
                        entry.client,
                        entry.client_port,
                        ip,
                        slot.word,
                    );
                }
                _ => entry.set_state(ReverseState::Replied),
            }
            Some(true)
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn send<F: Family, P: PacketMut, M: Maps>(
    packet: &mut P,
    maps: &M,
    config: &Config,
    link: &Link,
    ip: &Ip<F>,
    ports: parse::Ports,
    entry: &Reverse<F, M::Cells>,
    member: M::Cells,
) -> Outcome {
    let bytes = packet.len() as u64;
    let Some(egress) = last_hop::egress(maps, entry.last_hop) else {
        return Outcome::Drop(Counter::DropNotReady);
    };
    let Some(vip) = F::member_vip(maps, member) else { return Outcome::Drop(Counter::DropNotReady) };
    let (transport, header) = member::deltas(member);
    let new = Tuple::<F> {
        source: vip,
        source_port: member::vip_port(member),
        destination: entry.client,
        destination_port: entry.client_port,
    };
    // From backend to VIP is the way back: the complement.
    let constant = Constant { transport: !transport, header: !header };
    if let Err(counter) = rewrite(packet, link, ip, ports, &new, constant, Covered::Source, &egress) {
        return Outcome::Drop(counter);
    }
    if let Some(stats) = maps.member_stats(entry.member, config.member_count) {
        stats.add(3, 1);
        stats.add(4, bytes);
    }
    Outcome::Send(egress.ifindex)
}
