//! The packet program, generic over the packet and the maps: compiled for the kernel and for the host.
//!
//! The life of a packet, top to bottom: `parse` → an existing flow's `request` or `reply`, or a
//! `setup` (`select`, `flow_table`, `ports`, `reverse_table`, `last_hop`) → `rewrite` → [`Verdict`].

mod affinity;
pub mod checksum;
mod events;
mod family;
mod flow_stats;
mod flow_table;
mod fragment;
mod fragment_records;
mod icmp;
mod icmp_error;
mod last_hop;
mod limit;
mod martian;
mod member;
mod mss;
mod mtu;
mod opened;
mod packet;
mod parse;
mod ports;
mod quoted;
mod refusal;
mod refuse;
mod reply;
mod request;
mod rescue;
mod reverse_table;
mod rewrite;
mod select;
mod setup;
mod sources;
pub mod sweep;
mod syn;
mod tables;
pub mod tcp;
mod trip;

pub use family::{Family, V4, V6};
pub use packet::{MAX_FAR_OFFSET, MAX_OFFSET, PacketMut, Verdict};
pub use tables::{Cells, Maps, Tables};

use parse::{Ip, Link, Network, Ports, Shape};

use crate::{
    abi::{Config, Counter, Refusal, UDP, address_filter, vip_flags},
    hash::FlowHash,
};

/// What a step of the program decided, before it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Pass(Counter),
    Drop(Counter),
    /// Rewritten, out of this interface. Members count these.
    Send(u32),
    /// Untouched: it begins a flow of this family.
    NewFlow(Network),
    /// Untouched: it has a new flow.
    Opened(Network),
    /// A SYN whose flow may have to go to another backend.
    Retry(Network),
    /// Untouched: a backend's RST to a SYN.
    Refused(Network),
    /// It has a flow now.
    Again,
    /// Untouched: ICMP to an address that may be ours.
    Icmp(Network),
    /// Rewritten: a segment with SYN that may promise too much.
    Clamp,
    /// Untouched: a fragment to an address that may be ours.
    Fragment(Network),
}

/// Decides on a packet and rewrites it. Some verdicts ask for [`forward_any`], [`new_flow`], [`opened`], [`retry`],
/// [`refused`], [`refuse`], [`icmp()`], [`clamp`], [`fragment()`] or [`follow`], which the kernel enters by tail calls so
/// that the common path stays short.
#[inline(always)]
pub fn forward<P: PacketMut, M: Maps>(packet: &mut P, maps: &M) -> Verdict {
    if let Some(ip) = V4::parse_plain(packet) {
        return plain::<V4, P, M>(packet, maps, &ip);
    }
    if let Some(ip) = V6::parse_plain(packet) {
        return plain::<V6, P, M>(packet, maps, &ip);
    }
    Verdict::Any
}

#[inline(always)]
fn plain<F: Family, P: PacketMut, M: Maps>(packet: &mut P, maps: &M, ip: &Ip<F>) -> Verdict {
    let outcome = match maps.config() {
        Some(config) => classify(packet, maps, config, &Link::untagged(F::NETWORK), ip),
        None => Outcome::Pass(Counter::PassForeign),
    };
    conclude(packet, maps, F::NETWORK, outcome)
}

/// The same for any packet, for which [`forward`] said so: tagged, with options or extension headers, of another
/// protocol, or damaged.
#[inline(always)]
pub fn forward_any<P: PacketMut, M: Maps>(packet: &mut P, maps: &M) -> Verdict {
    let (network, outcome) = match parse::link(packet) {
        Some(link) if link.network == Network::V4 => (Network::V4, any::<V4, P, M>(packet, maps, &link)),
        Some(link) => (Network::V6, any::<V6, P, M>(packet, maps, &link)),
        None => (Network::V4, Outcome::Pass(Counter::PassNotIp)),
    };
    conclude(packet, maps, network, outcome)
}

#[inline(always)]
fn any<F: Family, P: PacketMut, M: Maps>(packet: &mut P, maps: &M, link: &Link) -> Outcome {
    let Some(config) = maps.config() else { return Outcome::Pass(Counter::PassForeign) };
    match F::parse::<P, false>(packet, config, link.network_offset()) {
        Some(ip) => classify(packet, maps, config, link, &ip),
        None => Outcome::Pass(Counter::PassNotIp),
    }
}

/// Makes the flow of a packet for which [`forward`] said so, which then forwards it.
#[inline(always)]
pub fn new_flow<F: Family, P: PacketMut, M: Maps>(packet: &mut P, maps: &M) -> Verdict {
    let outcome = match parse::link(packet) {
        Some(link) if link.network == F::NETWORK => {
            once_more::<F, P, M, true>(packet, maps, &link, Shape::Whole, |packet, maps, config, link, ip| {
                setup::open(packet, maps, config, link, ip)
            })
        }
        _ => Outcome::Pass(Counter::PassNotIp),
    };
    conclude(packet, maps, F::NETWORK, outcome)
}

/// Does what is left for the first packet of a flow, for which [`new_flow`] said so; then [`forward`] forwards it.
#[inline(always)]
pub fn opened<F: Family, P: PacketMut, M: Maps>(packet: &mut P, maps: &M) -> Verdict {
    let outcome = match parse::link(packet) {
        Some(link) if link.network == F::NETWORK => {
            once_more::<F, P, M, true>(packet, maps, &link, Shape::Whole, |packet, maps, config, _, ip| {
                opened::opened(packet, maps, config, ip)
            })
        }
        _ => Outcome::Pass(Counter::PassNotIp),
    };
    conclude(packet, maps, F::NETWORK, outcome)
}

/// Gives the flow of a SYN for which [`forward`] or [`refused`] said so another backend, where it is time for that;
/// then [`forward`] forwards it.
#[inline(always)]
pub fn retry<F: Family, P: PacketMut, M: Maps>(packet: &mut P, maps: &M) -> Verdict {
    let outcome = match parse::link(packet) {
        Some(link) if link.network == F::NETWORK => {
            once_more::<F, P, M, false>(packet, maps, &link, Shape::Whole, |packet, maps, config, _, ip| {
                rescue::retry(packet, maps, config, ip)
            })
        }
        _ => Outcome::Pass(Counter::PassNotIp),
    };
    conclude(packet, maps, F::NETWORK, outcome)
}

/// Decides on a backend's RST for which [`forward`] said so.
#[inline(always)]
pub fn refused<F: Family, P: PacketMut, M: Maps>(packet: &mut P, maps: &M) -> Verdict {
    let outcome = match parse::link(packet) {
        Some(link) if link.network == F::NETWORK => {
            once_more::<F, P, M, false>(packet, maps, &link, Shape::Whole, refusal::refused)
        }
        _ => Outcome::Pass(Counter::PassNotIp),
    };
    conclude(packet, maps, F::NETWORK, outcome)
}

/// Answers an ICMP message for which [`forward`] said so, or sends it on to the end of a flow that it is for.
#[inline(always)]
pub fn icmp<F: Family, P: PacketMut, M: Maps>(packet: &mut P, maps: &M) -> Verdict {
    let outcome = match parse::link(packet) {
        Some(link) if link.network == F::NETWORK => {
            once_more::<F, P, M, false>(packet, maps, &link, Shape::Other, icmp::icmp)
        }
        _ => Outcome::Pass(Counter::PassNotIp),
    };
    conclude(packet, maps, F::NETWORK, outcome)
}

/// Forwards a fragment for which [`forward`] said so.
#[inline(always)]
pub fn fragment<F: Family, P: PacketMut, M: Maps>(packet: &mut P, maps: &M) -> Verdict {
    let outcome = match parse::link(packet) {
        Some(link) if link.network == F::NETWORK => fragment::fragment::<F, P, M>(packet, maps, &link),
        _ => Some(Outcome::Pass(Counter::PassNotIp)),
    };
    match outcome {
        Some(outcome) => conclude(packet, maps, F::NETWORK, outcome),
        None if F::NETWORK == Network::V4 => Verdict::FollowV4,
        None => Verdict::FollowV6,
    }
}

/// Forwards a later fragment for which [`fragment()`] said so.
#[inline(always)]
pub fn follow<F: Family, P: PacketMut, M: Maps>(packet: &mut P, maps: &M) -> Verdict {
    let outcome = match parse::link(packet) {
        Some(link) if link.network == F::NETWORK => fragment::follow::<F, P, M>(packet, maps, &link),
        _ => Outcome::Pass(Counter::PassNotIp),
    };
    conclude(packet, maps, F::NETWORK, outcome)
}

/// Tells the sender of a packet that [`forward`] or [`new_flow`] dropped, if that is allowed: the frame becomes the
/// answer.
#[inline(always)]
pub fn refuse<F: Family, P: PacketMut, M: Maps>(packet: &mut P, maps: &M) -> Verdict {
    refuse::refuse::<F, P, M>(packet, maps)
}

/// Lowers the MSS of a SYN or its answer that [`forward`] has rewritten, where it is more than the way takes.
#[inline(always)]
pub fn clamp<P: PacketMut, M: Maps>(packet: &mut P, maps: &M) -> Verdict {
    let (network, outcome) = match parse::link(packet) {
        Some(link) if link.network == Network::V4 => {
            (Network::V4, mss::clamp::<V4, P, M>(packet, maps, &link))
        }
        Some(link) => (Network::V6, mss::clamp::<V6, P, M>(packet, maps, &link)),
        None => (Network::V4, Outcome::Drop(Counter::DropMalformed)),
    };
    conclude(packet, maps, network, outcome)
}

/// All of them, one after the other: the whole program, as the host runs it.
pub fn process<P: PacketMut, M: Maps>(packet: &mut P, maps: &M) -> Verdict {
    let mut verdict = forward(packet, maps);
    for _ in 0..MOST_CALLS {
        verdict = match verdict {
            Verdict::Again => forward(packet, maps),
            Verdict::Any => forward_any(packet, maps),
            Verdict::NewFlowV4 => new_flow::<V4, P, M>(packet, maps),
            Verdict::NewFlowV6 => new_flow::<V6, P, M>(packet, maps),
            Verdict::OpenedV4 => opened::<V4, P, M>(packet, maps),
            Verdict::OpenedV6 => opened::<V6, P, M>(packet, maps),
            Verdict::RetryV4 => retry::<V4, P, M>(packet, maps),
            Verdict::RetryV6 => retry::<V6, P, M>(packet, maps),
            Verdict::RefusedV4 => refused::<V4, P, M>(packet, maps),
            Verdict::RefusedV6 => refused::<V6, P, M>(packet, maps),
            Verdict::IcmpV4 => icmp::<V4, P, M>(packet, maps),
            Verdict::IcmpV6 => icmp::<V6, P, M>(packet, maps),
            Verdict::FragmentV4 => fragment::<V4, P, M>(packet, maps),
            Verdict::FragmentV6 => fragment::<V6, P, M>(packet, maps),
            Verdict::FollowV4 => follow::<V4, P, M>(packet, maps),
            Verdict::FollowV6 => follow::<V6, P, M>(packet, maps),
            Verdict::RefuseV4 => refuse::<V4, P, M>(packet, maps),
            Verdict::RefuseV6 => refuse::<V6, P, M>(packet, maps),
            Verdict::Clamp => clamp(packet, maps),
            verdict => return verdict,
        };
    }
    maps.count(Counter::DropNotReady);
    Verdict::Drop
}

/// Tail calls that the kernel lets one packet take (`MAX_TAIL_CALL_CNT`).
const MOST_CALLS: u32 = 33;

#[inline(always)]
fn conclude<P: PacketMut, M: Maps>(packet: &P, maps: &M, network: Network, outcome: Outcome) -> Verdict {
    match outcome {
        Outcome::Pass(counter) => {
            maps.count(counter);
            Verdict::Pass
        }
        Outcome::Drop(counter) => {
            maps.count(counter);
            match (Refusal::after(counter), maps.refusals()) {
                (Some(refusal), Some(cells)) => {
                    cells.store(0, refusal as u64);
                    if network == Network::V4 { Verdict::RefuseV4 } else { Verdict::RefuseV6 }
                }
                _ => Verdict::Drop,
            }
        }
        Outcome::Send(ifindex) if ifindex == packet.ingress() => Verdict::Transmit,
        Outcome::Send(ifindex) => Verdict::Redirect(ifindex),
        Outcome::NewFlow(Network::V4) => Verdict::NewFlowV4,
        Outcome::NewFlow(Network::V6) => Verdict::NewFlowV6,
        Outcome::Again => Verdict::Again,
        Outcome::Opened(Network::V4) => Verdict::OpenedV4,
        Outcome::Opened(Network::V6) => Verdict::OpenedV6,
        Outcome::Retry(Network::V4) => Verdict::RetryV4,
        Outcome::Retry(Network::V6) => Verdict::RetryV6,
        Outcome::Refused(Network::V4) => Verdict::RefusedV4,
        Outcome::Refused(Network::V6) => Verdict::RefusedV6,
        Outcome::Icmp(Network::V4) => Verdict::IcmpV4,
        Outcome::Icmp(Network::V6) => Verdict::IcmpV6,
        Outcome::Clamp => Verdict::Clamp,
        Outcome::Fragment(Network::V4) => Verdict::FragmentV4,
        Outcome::Fragment(Network::V6) => Verdict::FragmentV6,
    }
}

/// Parses a packet that has been parsed before, and does with it what is left to do. With `FIRSTS` a first fragment is as
/// good as a whole packet.
#[inline(always)]
fn once_more<F: Family, P: PacketMut, M: Maps, const FIRSTS: bool>(
    packet: &mut P,
    maps: &M,
    link: &Link,
    shape: Shape,
    rest: impl FnOnce(&mut P, &M, &Config, &Link, &Ip<F>) -> Outcome,
) -> Outcome {
    let Some(config) = maps.config() else { return Outcome::Pass(Counter::PassForeign) };
    // Five kinds of tagging, two protocols: each would be explored on its own all the way down.
    let tags = config.forget(link.vlan_count as u32 | (link.service_tag as u32) << 8);
    let link = &Link { vlan_count: tags as u8, service_tag: tags >> 8 != 0, ..*link };
    let Some(ip) = F::parse::<P, FIRSTS>(packet, config, link.network_offset()) else {
        return Outcome::Pass(Counter::PassNotIp);
    };
    let ip = Ip { protocol: config.forget(ip.protocol as u32) as u8, ..ip };
    if ip.shape != shape && !(FIRSTS && ip.shape == Shape::First) {
        return Outcome::Drop(Counter::DropMalformed);
    }
    rest(packet, maps, config, link, &ip)
}

/// To a VIP, to a SNAT address, or neither. One read of the filter settles it for foreign traffic, before any
/// rule that can drop.
#[inline(always)]
fn classify<F: Family, P: PacketMut, M: Maps>(
    packet: &mut P,
    maps: &M,
    config: &Config,
    link: &Link,
    ip: &Ip<F>,
) -> Outcome {
    let filter = maps.address_filter(F::filter_index(ip.destination));
    if filter == 0 {
        return Outcome::Pass(Counter::PassForeign);
    }
    if filter & address_filter::VIP != 0
        && let Some(outcome) = to_vip::<F, P, M>(packet, maps, config, link, ip, filter)
    {
        return outcome;
    }
    if filter & address_filter::SNAT != 0 {
        if let Some(outcome) = reply::forward::<F, P, M, true>(packet, maps, config, link, ip, |_, _, _| {}) {
            return outcome;
        }
        if ip.shape == Shape::Other && ip.protocol == F::ICMP {
            return Outcome::Icmp(F::NETWORK);
        }
        if ip.shape == Shape::Fragment {
            return Outcome::Fragment(F::NETWORK);
        }
        if F::snat_index(config, ip.destination).is_some() {
            return Outcome::Pass(Counter::PassNoFlow);
        }
    }
    Outcome::Pass(Counter::PassForeign)
}

/// A packet whose destination may be a VIP; `None` where it is none, and where it is a SNAT address too: what no service
/// claims may still be a reply.
#[inline(always)]
fn to_vip<F: Family, P: PacketMut, M: Maps>(
    packet: &mut P,
    maps: &M,
    config: &Config,
    link: &Link,
    ip: &Ip<F>,
    filter: u64,
) -> Option<Outcome> {
    let refusal = match ip.shape {
        Shape::Whole => {
            let ports = parse::ports(packet, ip.transport_offset)?;
            let hash = flow_hash::<F>(config, ip, ports);
            if let Some(slot) = flow_table::find(maps, config, hash) {
                return Some(request::forward::<F, P, M, true>(
                    packet,
                    maps,
                    config,
                    link,
                    ip,
                    ports,
                    slot,
                    |_, _, _| {},
                ));
            }
            if F::service(maps, ip.destination, ports.destination, ip.protocol).is_some() {
                return Some(beginning(packet, maps, config, ip));
            }
            Counter::DropClosedPort
        }
        Shape::Fragment | Shape::First => return Some(Outcome::Fragment(F::NETWORK)),
        Shape::Malformed => Counter::DropMalformed,
        Shape::Other if ip.protocol == F::ICMP => return Some(Outcome::Icmp(F::NETWORK)),
        Shape::Other => Counter::DropProtocol,
    };
    let is_node_address = F::vip(maps, ip.destination)? & vip_flags::NODE_ADDRESS != 0;
    let may_be_reply = is_node_address || matches!(refusal, Counter::DropClosedPort);
    if may_be_reply && filter & address_filter::SNAT != 0 && F::snat_index(config, ip.destination).is_some() {
        return None;
    }
    Some(if is_node_address { Outcome::Pass(Counter::PassNodeAddress) } else { Outcome::Drop(refusal) })
}

/// What becomes of a packet to a service that is of no flow.
#[inline(always)]
fn beginning<F: Family, P: PacketMut, M: Maps>(packet: &P, maps: &M, config: &Config, ip: &Ip<F>) -> Outcome {
    // Here, where all ways end: in the making of the flow the verifier would follow each all the way down.
    if martian::is_martian(maps, config, ip) {
        return Outcome::Drop(Counter::DropMartian);
    }
    if F::NUMBER == 6 && ip.protocol == UDP && !rewrite::has_checksum(packet, ip) {
        return Outcome::Drop(Counter::DropNoChecksum);
    }
    Outcome::NewFlow(F::NETWORK)
}

/// The keyed hash that the flow table uses.
#[inline(always)]
fn flow_hash<F: Family>(config: &Config, ip: &Ip<F>, ports: Ports) -> FlowHash {
    F::hash(&config.flow_key, ip.source, ip.destination, port_word(ports), ip.protocol)
}

#[inline(always)]
const fn port_word(ports: Ports) -> u32 {
    ports.source as u32 | (ports.destination as u32) << 16
}
