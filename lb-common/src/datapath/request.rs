//! A client's packet of a flow that exists.

use core::mem::offset_of;

use network_types::tcp::TcpHdr;

use super::{
    Cells, Family, Maps, Outcome, PacketMut, events, flow_stats,
    flow_table::Slot,
    last_hop::Egress,
    member::{self, MemberHead},
    mss, mtu,
    parse::{Ip, Link, Ports},
    rescue,
    rewrite::{Constant, Covered, Tuple, rewrite},
    tcp::{self, ClientStep, Flags},
};
use crate::{
    abi::{CloseReason, Config, Counter, FlowState, TCP, UDP, member_flags},
    clock,
};

/// Offset of the flags in a TCP header: the low byte of the bit field.
pub(super) const TCP_FLAGS: usize = offset_of!(TcpHdr, _bitfield_1) + 1;

/// Forwards it, or finds that it begins a new flow. `before` sees it before it is rewritten, with what it will say.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(super) fn forward<F: Family, P: PacketMut, M: Maps, const WHOLE: bool>(
    packet: &mut P,
    maps: &M,
    config: &Config,
    link: &Link,
    ip: &Ip<F>,
    ports: Ports,
    slot: Slot<M::Cells>,
    before: impl FnOnce(&mut P, &Slot<M::Cells>, &Tuple<F>),
) -> Outcome {
    let Some(member) = maps.member(slot.word.member()) else {
        return Outcome::Drop(Counter::DropStaleMember);
    };
    let head = MemberHead::load(member);
    let flags = Flags(if ip.protocol == TCP {
        match packet.read::<u8, TCP_FLAGS>(ip.transport_offset) {
            Some(flags) => flags,
            None => return Outcome::Drop(Counter::DropMalformed),
        }
    } else {
        0
    });
    if !head.is_of(slot.word) {
        let begins = ip.protocol == UDP || flags.is_open();
        return if begins { Outcome::NewFlow(F::NETWORK) } else { Outcome::Drop(Counter::DropStaleMember) };
    }
    if ip.protocol == UDP && head.has(member_flags::REMOVED) {
        return Outcome::NewFlow(F::NETWORK);
    }
    if ip.ttl <= 1 {
        return Outcome::Drop(Counter::DropTtl);
    }
    let now = maps.now();
    if ip.protocol == TCP {
        if WHOLE && flags.is_open() && rescue::is_due(maps, &slot, now) {
            return Outcome::Retry(F::NETWORK);
        }
        if let Some(outcome) = step(packet, maps, config, ip, ports, &slot, member, flags) {
            return outcome;
        }
    } else if slot.word.state() as u8 == FlowState::UdpReplied as u8 {
        slot.advance(FlowState::UdpAssured);
    }
    slot.touch(clock::tick(now));
    send::<F, P, M, WHOLE>(packet, maps, config, link, ip, ports, &slot, member, head, flags, before)
}

/// Moves the flow's state; an outcome only where the packet is not to be forwarded as part of this flow.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn step<F: Family, P: PacketMut, M: Maps>(
    packet: &P,
    maps: &M,
    config: &Config,
    ip: &Ip<F>,
    ports: Ports,
    slot: &Slot<M::Cells>,
    member: M::Cells,
    flags: Flags,
) -> Option<Outcome> {
    match tcp::from_client(slot.word.state(), flags) {
        ClientStep::Stay => {}
        ClientStep::NewFlow => return Some(Outcome::NewFlow(F::NETWORK)),
        ClientStep::To(state) => {
            if slot.advance(state) && state as u8 == FlowState::Closed as u8 {
                let end = events::End::<F> {
                    client: ip.source,
                    client_port: ports.source,
                    word: slot.word,
                    flow: slot.reference(),
                    tag: slot.tag(),
                    service: member::service(member),
                    reason: CloseReason::Fin,
                    idle: 0,
                };
                events::ended(maps, config, &end);
            }
        }
        ClientStep::Prove(state) => {
            if acknowledges_answer(packet, maps, ip, slot) && slot.advance(state) {
                maps.count(Counter::FlowEstablished);
            }
        }
    }
    None
}

/// Whether the segment acknowledges the server's initial sequence number, which only somebody who received
/// the SYN-ACK knows.
#[inline(always)]
fn acknowledges_answer<F: Family, P: PacketMut, M: Maps>(
    packet: &P,
    maps: &M,
    ip: &Ip<F>,
    slot: &Slot<M::Cells>,
) -> bool {
    let Some(ack) = packet.read::<u32, { offset_of!(TcpHdr, ack_seq) }>(ip.transport_offset) else {
        return false;
    };
    rescue::handshake(maps, slot).is_proven_by(slot.word.version(), u32::from_be(ack))
}

/// Rewrites a client's packet towards its flow's backend.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn send<F: Family, P: PacketMut, M: Maps, const WHOLE: bool>(
    packet: &mut P,
    maps: &M,
    config: &Config,
    link: &Link,
    ip: &Ip<F>,
    ports: Ports,
    slot: &Slot<M::Cells>,
    member: M::Cells,
    head: MemberHead,
    flags: Flags,
    before: impl FnOnce(&mut P, &Slot<M::Cells>, &Tuple<F>),
) -> Outcome {
    if !head.has(member_flags::NEXT_HOP) {
        return Outcome::Drop(Counter::DropNoNextHop);
    }
    let flow = slot.word;
    let bytes = packet.len() as u64;
    let egress = Egress::of_member(member);
    // The flow has heard of it all the same: its sender will say the same again in shorter packets.
    if !mtu::fits::<F, P, M, WHOLE>(packet, maps, ip, egress.mtu) {
        return Outcome::Drop(Counter::DropTooBig);
    }
    let exceeds = WHOLE && flags.has_syn() && mss::may_exceed(packet, maps, ip, egress.mtu, egress.ifindex);
    let (transport, header) = member::deltas(member);
    let new = Tuple::<F> {
        source: F::snat_address(config, flow.snat()),
        source_port: flow.port().to_be(),
        destination: F::member_address(member),
        destination_port: head.port(),
    };
    before(packet, slot, &new);
    let constant = Constant { transport, header };
    if let Err(counter) = rewrite(packet, link, ip, ports, &new, constant, Covered::Destination, &egress) {
        return Outcome::Drop(counter);
    }
    if let Some(stats) = maps.member_stats(flow.member(), config.member_count) {
        stats.add(1, 1);
        stats.add(2, bytes);
    }
    if head.has(member_flags::COUNTED) {
        flow_stats::count(maps, config, slot.reference(), flow_stats::IN, bytes);
    }
    if exceeds { Outcome::Clamp } else { Outcome::Send(egress.ifindex) }
}
