//! A backend's packet: back to the client that it is for.

use super::{
    Cells, Family, Maps, Outcome, PacketMut, events, flow_stats, flow_table,
    flow_table::Slot,
    last_hop::{self, Egress},
    member::{self, MemberHead},
    mss, mtu,
    parse::{self, Ip, Link, Ports, Shape},
    request::TCP_FLAGS,
    reverse_table::{self, Reverse},
    rewrite::{Constant, Covered, Tuple, rewrite},
    syn,
    tcp::{self, BackendStep, Flags},
    trip,
};
use crate::{
    abi::{CloseReason, Config, Counter, FlowState, HandshakeWord, ReverseState, TCP, member_flags},
    clock,
};

/// A backend's packet, its reverse entry, and its member's line.
pub(super) struct Located<F: Family, C> {
    pub ports: Ports,
    pub entry: Reverse<F, C>,
    pub member: C,
}

/// Forwards it; `None` where it is not the reply of a live flow. `before` sees it before it is rewritten, with what it
/// will say.
#[inline(always)]
pub(super) fn forward<F: Family, P: PacketMut, M: Maps, const WHOLE: bool>(
    packet: &mut P,
    maps: &M,
    config: &Config,
    link: &Link,
    ip: &Ip<F>,
    before: impl FnOnce(&mut P, &Reverse<F, M::Cells>, &Tuple<F>),
) -> Option<Outcome> {
    if ip.shape != Shape::Whole && ip.shape != Shape::First {
        return None;
    }
    let Located { ports, entry, member } = locate(packet, maps, config, ip)?;
    let head = MemberHead::load(member);
    if !head.has(member_flags::VALID) || head.generation() != entry.generation {
        return Some(Outcome::Drop(Counter::DropStaleMember));
    }
    if ip.ttl <= 1 {
        return Some(Outcome::Drop(Counter::DropTtl));
    }
    let flags =
        Flags(if ip.protocol == TCP { packet.read::<u8, TCP_FLAGS>(ip.transport_offset)? } else { 0 });
    if let Some(outcome) = learn(packet, maps, config, ip, &entry, member, flags)? {
        return Some(outcome);
    }
    entry.touch(clock::tick(maps.now()));
    Some(send::<F, P, M, WHOLE>(packet, maps, config, link, ip, ports, &entry, member, flags, before))
}

/// Finds the reverse entry of a packet.
#[inline(always)]
pub(super) fn locate<F: Family, P: PacketMut, M: Maps>(
    packet: &P,
    maps: &M,
    config: &Config,
    ip: &Ip<F>,
) -> Option<Located<F, M::Cells>> {
    let ports = parse::ports(packet, ip.transport_offset)?;
    let port = u16::from_be(ports.destination);
    if port.wrapping_sub(config.port_base) >= config.port_words.wrapping_mul(64) {
        return None;
    }
    let snat = F::snat_index(config, ip.destination)?;
    let backend = F::backend(maps, ip.source, ports.source, ip.protocol)?;
    let entry = reverse_table::find::<F, M>(maps, config, backend, snat, port)?;
    let member = maps.member(entry.member)?;
    Some(Located { ports, entry, member })
}

/// The flow that an entry belongs to, unless it is gone or has another backend by now.
#[inline(always)]
pub(super) fn flow_of<F: Family, M: Maps>(maps: &M, entry: &Reverse<F, M::Cells>) -> Option<Slot<M::Cells>> {
    let slot = flow_table::by_reference(maps, entry.flow)?;
    is_current(entry, &slot).then_some(slot)
}

/// Whether a flow still has the path that the entry is of.
#[inline(always)]
fn is_current<F: Family, C: Cells>(entry: &Reverse<F, C>, slot: &Slot<C>) -> bool {
    entry.word.is_of(entry.flow, slot.word) && slot.word.member() == entry.member
}

/// Lets the packet move the flow's state; an outcome only where it is not to be forwarded. Only the first reply and
/// segments with FIN, SYN or RST need the forward entry.
#[inline(always)]
fn learn<F: Family, P: PacketMut, M: Maps>(
    packet: &P,
    maps: &M,
    config: &Config,
    ip: &Ip<F>,
    entry: &Reverse<F, M::Cells>,
    member: M::Cells,
    flags: Flags,
) -> Option<Option<Outcome>> {
    if ip.protocol != TCP {
        if !entry.word.is_replied()
            && let Some(slot) = flow_table::by_reference(maps, entry.flow)
        {
            answer(maps, entry, &slot);
        }
        return Some(None);
    }
    if entry.word.is_replied() && !tcp::backend_flags_matter(flags) {
        return Some(None);
    }
    // A client that moves the state at the same moment wins once; the second look decides on what it left.
    let mut look = 0;
    while look < 2 {
        look += 1;
        let Some(slot) = flow_table::by_reference(maps, entry.flow) else { return Some(None) };
        // A flow that is being taken to another backend, or has been: the client must not hear of this one.
        if slot.word.state() as u8 != FlowState::Empty as u8 && !is_current(entry, &slot) {
            return Some(Some(Outcome::Drop(Counter::DropMoved)));
        }
        match step(packet, maps, config, ip, entry, member, &slot, flags)? {
            Learned::Lost => {}
            Learned::Forward => return Some(None),
            Learned::Decided(outcome) => return Some(Some(outcome)),
        }
    }
    // What has not been allowed to answer does not.
    Some(flags.is_open_answer().then_some(Outcome::Drop(Counter::DropMoved)))
}

/// A datagram of the backend's moves its flow's state. One answer may be that to a forged address; an answer in
/// another tick is a stream, whose client need not speak.
#[inline(always)]
fn answer<F: Family, M: Maps>(maps: &M, entry: &Reverse<F, M::Cells>, slot: &Slot<M::Cells>) {
    match slot.word.state() {
        FlowState::UdpNew => _ = slot.advance(FlowState::UdpReplied),
        FlowState::UdpReplied if entry.last_seen() != clock::tick(maps.now()) => {
            slot.advance(FlowState::UdpAssured);
        }
        // Only a flow that knows all this needs no other answer to tell it.
        FlowState::UdpAssured => entry.set_state(ReverseState::Replied),
        _ => {}
    }
}

/// What a look at the flow's state led to.
enum Learned {
    /// Somebody else moved the state.
    Lost,
    /// The packet is forwarded.
    Forward,
    /// It is not.
    Decided(Outcome),
}

/// One look.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn step<F: Family, P: PacketMut, M: Maps>(
    packet: &P,
    maps: &M,
    config: &Config,
    ip: &Ip<F>,
    entry: &Reverse<F, M::Cells>,
    member: M::Cells,
    slot: &Slot<M::Cells>,
    flags: Flags,
) -> Option<Learned> {
    match tcp::from_backend(slot.word.state(), flags) {
        BackendStep::Stay => {
            if !entry.word.is_replied() && !flags.is_reset() {
                entry.set_state(ReverseState::Replied);
            }
            Some(Learned::Forward)
        }
        BackendStep::Answer => {
            let isn = syn::sequence(packet, ip.transport_offset)?;
            let handshakes = maps.handshakes(slot.bucket)?;
            if slot.word.state() as u8 != FlowState::SynAcked as u8 {
                // First: whoever takes the flow to another backend must not find its handshake overwritten.
                if !slot.advance(FlowState::SynAcked) {
                    return Some(Learned::Lost);
                }
                trip::answered(maps, entry.word.backend());
            }
            handshakes.store(slot.way as usize, HandshakeWord::answered(slot.word.version(), isn).0);
            entry.set_state(ReverseState::Replied);
            Some(Learned::Forward)
        }
        BackendStep::Refuse => Some(Learned::Decided(Outcome::Refused(F::NETWORK))),
        BackendStep::Swallow => Some(Learned::Decided(Outcome::Drop(Counter::DropRefused))),
        BackendStep::To(state) => {
            if !slot.advance(state) {
                return Some(Learned::Lost);
            }
            if state as u8 == FlowState::Closed as u8 {
                let end = events::End::<F> {
                    client: entry.client,
                    client_port: entry.client_port,
                    word: slot.word,
                    flow: entry.flow,
                    tag: slot.tag(),
                    service: member::service(member),
                    reason: if flags.is_reset() { CloseReason::Reset } else { CloseReason::Fin },
                    idle: 0,
                };
                events::ended(maps, config, &end);
            }
            match state {
                FlowState::Closed => {}
                // What comes next from this side has to be looked at: it may revive the flow.
                FlowState::BackendReset => entry.set_state(ReverseState::New),
                _ => entry.set_state(ReverseState::Replied),
            }
            Some(Learned::Forward)
        }
    }
}

/// Rewrites a backend's packet towards its flow's client.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(super) fn send<F: Family, P: PacketMut, M: Maps, const WHOLE: bool>(
    packet: &mut P,
    maps: &M,
    config: &Config,
    link: &Link,
    ip: &Ip<F>,
    ports: Ports,
    entry: &Reverse<F, M::Cells>,
    member: M::Cells,
    flags: Flags,
    before: impl FnOnce(&mut P, &Reverse<F, M::Cells>, &Tuple<F>),
) -> Outcome {
    let bytes = packet.len() as u64;
    let Some(egress) = last_hop::egress(maps, entry.last_hop) else {
        return Outcome::Drop(Counter::DropNotReady);
    };
    if !mtu::fits::<F, P, M, WHOLE>(packet, maps, ip, egress.mtu) {
        return Outcome::Drop(Counter::DropTooBig);
    }
    let exceeds = WHOLE
        && flags.has_syn()
        && mss::may_exceed(
            packet,
            maps,
            ip,
            mtu::smaller(egress.mtu, Egress::of_member(member).mtu),
            egress.ifindex,
        );
    let Some(vip) = F::member_vip(maps, member) else { return Outcome::Drop(Counter::DropNotReady) };
    let (transport, header) = member::deltas(member);
    let new = Tuple::<F> {
        source: vip,
        source_port: member::vip_port(member),
        destination: entry.client,
        destination_port: entry.client_port,
    };
    before(packet, entry, &new);
    // From backend to VIP is the way back: the complement.
    let constant = Constant { transport: !transport, header: !header };
    if let Err(counter) = rewrite(packet, link, ip, ports, &new, constant, Covered::Source, &egress) {
        return Outcome::Drop(counter);
    }
    if let Some(stats) = maps.member_stats(entry.member, config.member_count) {
        stats.add(3, 1);
        stats.add(4, bytes);
    }
    if MemberHead::load(member).has(member_flags::COUNTED) {
        flow_stats::count(maps, config, entry.flow, flow_stats::OUT, bytes);
    }
    if exceeds { Outcome::Clamp } else { Outcome::Send(egress.ifindex) }
}
