//! What is left to do for the first packet of a new flow before it is forwarded: the backend that its client stays with,
//! the flow log, its counters, and whether a SYN may go to another backend.
//!
//! A program of its own, for the verifier's sake: together with the making of the flow it is too much for Linux 6.1.

use core::hint::black_box;

use super::{
    Family, Maps, Outcome, PacketMut, affinity, events, flow_stats,
    flow_table::{self, Slot},
    member::{self, MemberHead},
    parse::{self, Ip},
    setup, sources, syn,
};
use crate::abi::{Config, Counter, EventKind, FLOW_WAYS, TCP, member_flags};

/// Does it. The flow may have changed hands meanwhile; then it is as good as the one that was made.
#[inline(always)]
pub(super) fn opened<F: Family, P: PacketMut, M: Maps>(
    packet: &P,
    maps: &M,
    config: &Config,
    ip: &Ip<F>,
) -> Outcome {
    let Some(ports) = parse::ports(packet, ip.transport_offset) else { return Outcome::Again };
    let hash = super::flow_hash::<F>(config, ip, ports);
    let Some(found) = flow_table::find(maps, config, hash) else { return Outcome::Again };
    let slot = Slot { way: black_box(found.way) & (FLOW_WAYS - 1), ..found };
    let Some(member) = maps.member(slot.word.member()) else { return Outcome::Again };
    let service = member::service(member);
    let asked = sources::asked(maps, service);
    if asked.stay() > 0 {
        let client_ports = parse::Ports { source: 0, ..ports };
        let ring_hash = setup::ring_hash::<F>(config, ip.source, ip.destination, client_ports, ip.protocol);
        affinity::remember(maps, config, asked, ring_hash, slot.word, maps.now());
    }
    if events::noted(maps, service).notes(hash.tag()) {
        let counted = MemberHead::load(member).has(member_flags::COUNTED);
        if counted && !flow_stats::begin(maps, config, slot.reference(), maps.now()) {
            maps.count(Counter::FlowUncounted);
        }
        let about = events::About::<F> {
            kind: EventKind::Opened,
            client: ip.source,
            client_port: ports.source,
            protocol: ip.protocol,
            flow: slot.word,
            slot: slot.reference().slot,
            service,
            detail: 0,
            reason: 0,
            before_generation: 0,
        };
        events::log(maps, config, &about);
    }
    if ip.protocol == TCP {
        syn::admit(packet, maps, config, ip, hash, &slot, service);
    }
    Outcome::Again
}
