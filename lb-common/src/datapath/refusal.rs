//! A backend's RST to a SYN: the SYN goes to another backend at once, or the client hears of it.

use core::mem::offset_of;

use network_types::tcp::TcpHdr;

use super::{
    Family, Maps, Outcome, PacketMut, events, last_hop,
    member::{self, MemberHead},
    mss,
    parse::{Ip, Link, Ports},
    reply::{self, Located},
    request::TCP_FLAGS,
    rescue,
    reverse_table::Reverse,
    select::{self, Search},
    setup, syn,
    tcp::Flags,
    trip,
};
use crate::abi::{CloseReason, Config, Counter, FlowState, TCP};

/// What such a segment is: no SYN.
const RESET: Flags = Flags(0x04);

/// Makes the frame the flow's SYN again where there is another backend for it; else forwards it.
#[inline(always)]
pub(super) fn refused<F: Family, P: PacketMut, M: Maps>(
    packet: &mut P,
    maps: &M,
    config: &Config,
    link: &Link,
    ip: &Ip<F>,
) -> Outcome {
    let moved = Outcome::Drop(Counter::DropMoved);
    let Some(Located { ports, entry, member }) = reply::locate::<F, P, M>(packet, maps, config, ip) else {
        return moved;
    };
    let Some(slot) = reply::flow_of(maps, &entry) else { return moved };
    if slot.word.state() as u8 != FlowState::SynSent as u8 {
        return moved;
    }
    let pass_on = |packet: &mut P| {
        reply::send::<F, P, M, true>(
            packet,
            maps,
            config,
            link,
            ip,
            ports,
            &entry,
            member,
            RESET,
            |_, _, _| {},
        )
    };
    let Some(flags) = packet.read::<u8, TCP_FLAGS>(ip.transport_offset) else { return moved };
    let Some(ack) = packet.read::<u32, { offset_of!(TcpHdr, ack_seq) }>(ip.transport_offset) else {
        return moved;
    };
    let ack = u32::from_be(ack);
    // Any other RST may be blind. A client ignores it, and so do we.
    let kept = rescue::handshake(maps, &slot);
    if !Flags(flags).is_acknowledging() || !kept.is_acknowledged_by(slot.word.version(), ack) {
        return pass_on(packet);
    }
    let Some(tuple) = ends(maps, &entry, member) else { return Outcome::Drop(Counter::DropNotReady) };
    let reaction = rescue::reaction(maps, member::service(member));
    let now = maps.now();
    let client_ports = Ports { source: tuple.client_port, destination: tuple.vip_port };
    let (hash, ring_hash) = setup::hashes::<F>(config, tuple.client, tuple.vip, client_ports, TCP);
    // Whether there is one at all; which one it is decided when the flow moves.
    let search = Search {
        cluster: 0,
        candidates: select::FALLBACK_CANDIDATES,
        ..rescue::next(maps, &slot, member, ring_hash, now)
    };
    let has_heir = reaction.retries_on_reset()
        && slot.word.attempt() < rescue::MOST_RESCUES
        && select::select(maps, config, &search).is_some();
    if !slot.advance(if has_heir { FlowState::Refused } else { FlowState::Closed }) {
        return moved;
    }
    maps.count(Counter::ConnectRefused);
    let errors = trip::failed(maps, reaction, MemberHead::load(member).backend(), now);
    if errors != 0 {
        maps.count(Counter::BackendTripped);
        events::tripped::<F, M>(maps, config, slot.word, member::service(member), errors);
    }
    if !has_heir {
        let end = events::End::<F> {
            client: entry.client,
            client_port: entry.client_port,
            word: slot.word,
            flow: entry.flow,
            tag: slot.tag(),
            service: member::service(member),
            reason: CloseReason::Reset,
            idle: 0,
        };
        events::ended(maps, config, &end);
        return pass_on(packet);
    }
    // Read again: kept until here, they would be too much for the stack.
    let rebuilt = ends(maps, &entry, member)
        .and_then(|ends| syn::rebuild::<F, P, M>(packet, maps, config, hash, &ends, ack));
    match rebuilt {
        Some(()) => {
            let behind = last_hop::egress(maps, entry.last_hop).map_or(0, |egress| egress.mtu);
            mss::narrow::<F, P, M>(packet, maps, config, behind);
            Outcome::Retry(F::NETWORK)
        }
        None => Outcome::Drop(Counter::DropRefused),
    }
}

/// Client and VIP of a flow.
#[inline(always)]
fn ends<F: Family, M: Maps>(
    maps: &M,
    entry: &Reverse<F, M::Cells>,
    member: M::Cells,
) -> Option<syn::Ends<F>> {
    Some(syn::Ends::<F> {
        client: entry.client,
        client_port: entry.client_port,
        vip: F::member_vip(maps, member)?,
        vip_port: member::vip_port(member),
    })
}
