//! Fragments. The first one has the ports: it goes the way of a whole packet, and leaves a record. The later ones
//! follow it, and what comes before it is lost. Nothing is put together here.
//!
//! Several clients share a SNAT address, and several backends a VIP. So that a receiver does not put fragments of two
//! packets together, each packet leaves with an identification of ours.

use super::{
    Cells, Family, Maps, Outcome, PacketMut,
    checksum::Sum,
    flow_stats, flow_table,
    fragment_records::{self as records, Record},
    last_hop::{self, Egress},
    member::MemberHead,
    mtu,
    parse::{self, Fragment, Ip, Link, Shape},
    reply, request,
    rewrite::{self, Tuple},
};
use crate::abi::{Config, Counter, FragmentPath, TCP, member_flags, vip_flags};

/// The first place, in units of 8 bytes, that is sure to be behind TCP's header without options.
const BEHIND_TCP: u16 = 3;

/// Forwards a first fragment, or finds that its packet begins a flow; `None` where this is a later one.
#[inline(always)]
pub(super) fn fragment<F: Family, P: PacketMut, M: Maps>(
    packet: &mut P,
    maps: &M,
    link: &Link,
) -> Option<Outcome> {
    parsed::<F, P, M>(packet, maps, link, |packet, maps, config, link, ip, header| {
        (ip.shape == Shape::First).then(|| first(packet, maps, config, link, ip, header))
    })
}

/// Forwards a later fragment: after the first one.
#[inline(always)]
pub(super) fn follow<F: Family, P: PacketMut, M: Maps>(packet: &mut P, maps: &M, link: &Link) -> Outcome {
    let outcome = parsed::<F, P, M>(packet, maps, link, |packet, maps, config, link, ip, header| {
        (ip.shape == Shape::Fragment).then(|| later(packet, maps, config, link, ip, header))
    });
    outcome.unwrap_or(Outcome::Drop(Counter::DropMalformed))
}

/// Parses a fragment, and does with it what is to be done; `None` where `forward` says so.
#[inline(always)]
fn parsed<F: Family, P: PacketMut, M: Maps>(
    packet: &mut P,
    maps: &M,
    link: &Link,
    forward: impl FnOnce(&mut P, &M, &Config, &Link, &Ip<F>, &Fragment) -> Option<Outcome>,
) -> Option<Outcome> {
    let Some(config) = maps.config() else { return Some(Outcome::Pass(Counter::PassForeign)) };
    let tags = config.forget(link.vlan_count as u32 | (link.service_tag as u32) << 8);
    let link = &Link { vlan_count: tags as u8, service_tag: tags >> 8 != 0, ..*link };
    let Some(ip) = F::parse::<P, true>(packet, config, link.network_offset()) else {
        return Some(Outcome::Pass(Counter::PassNotIp));
    };
    let ip = &Ip { protocol: config.forget(ip.protocol as u32) as u8, ..ip };
    let header = match ip.shape {
        Shape::First | Shape::Fragment => F::fragment(packet, config, ip.network_offset),
        _ => None,
    };
    match (ip.shape, header) {
        (Shape::First | Shape::Fragment, Some(header)) => forward(packet, maps, config, link, ip, &header),
        (Shape::Other, _) => Some(not_ours(maps, config, ip, Counter::DropFragment)),
        _ => Some(not_ours(maps, config, ip, Counter::DropFragmentHeader)),
    }
}

/// What becomes of a fragment that is part of no flow.
#[inline(always)]
fn not_ours<F: Family, M: Maps>(maps: &M, config: &Config, ip: &Ip<F>, reason: Counter) -> Outcome {
    // One word: an option's content, where it has none, would be whatever is in its register.
    let vip = config.forget(F::vip(maps, ip.destination).map_or(0, |flags| flags | IS_VIP));
    if vip & vip_flags::NODE_ADDRESS != 0 {
        Outcome::Pass(Counter::PassNodeAddress)
    } else if F::snat_index(config, ip.destination).is_some() {
        Outcome::Pass(Counter::PassNoFlow)
    } else if vip != 0 {
        Outcome::Drop(reason)
    } else {
        Outcome::Pass(Counter::PassForeign)
    }
}

/// No flag of [`vip_flags`]: an address is a VIP.
const IS_VIP: u32 = 1 << 31;

/// The first fragment: like a whole packet, but for what must be seen as a whole.
#[inline(always)]
fn first<F: Family, P: PacketMut, M: Maps>(
    packet: &mut P,
    maps: &M,
    config: &Config,
    link: &Link,
    ip: &Ip<F>,
    header: &Fragment,
) -> Outcome {
    let Some(ports) = parse::ports(packet, ip.transport_offset) else {
        return Outcome::Drop(Counter::DropFragmentHeader);
    };
    let hash = super::flow_hash::<F>(config, ip, ports);
    if let Some(slot) = flow_table::find(maps, config, hash) {
        return request::forward::<F, P, M, false>(
            packet,
            maps,
            config,
            link,
            ip,
            ports,
            slot,
            |packet, slot, new| {
                let word = slot.word;
                let path = FragmentPath::to_backend(word.member(), word.generation(), word.snat());
                let record = Record { path, flow: slot.reference(), client: [0; 2] };
                begin(packet, maps, config, ip, header, new, &record);
            },
        );
    }
    if F::service(maps, ip.destination, ports.destination, ip.protocol).is_some() {
        return super::beginning(packet, maps, config, ip);
    }
    let outcome = reply::forward::<F, P, M, false>(packet, maps, config, link, ip, |packet, entry, new| {
        let path = FragmentPath::to_client(entry.member, entry.generation, entry.last_hop);
        let record = Record { path, flow: entry.flow, client: F::raw(entry.client) };
        begin(packet, maps, config, ip, header, new, &record);
    });
    match outcome {
        // Nobody sends a RST to a SYN in fragments.
        Some(Outcome::Refused(_)) => Outcome::Drop(Counter::DropFragment),
        Some(outcome) => outcome,
        None => not_ours(maps, config, ip, Counter::DropClosedPort),
    }
}

/// Records where the later fragments go, and gives the first one the packet's new identification.
#[inline(always)]
fn begin<F: Family, P: PacketMut, M: Maps>(
    packet: &mut P,
    maps: &M,
    config: &Config,
    ip: &Ip<F>,
    header: &Fragment,
    new: &Tuple<F>,
    record: &Record,
) {
    if !header.more {
        return;
    }
    let pair = records::pair(config, ip, new.source, new.destination);
    let id = records::keep(maps, config, records::key(config, ip, header), pair, record);
    // What was read can be written.
    let _ = F::write_fragment_id(packet, header, id);
}

/// By the record of the first one, if there is one.
#[inline(always)]
fn later<F: Family, P: PacketMut, M: Maps>(
    packet: &mut P,
    maps: &M,
    config: &Config,
    link: &Link,
    ip: &Ip<F>,
    header: &Fragment,
) -> Outcome {
    let Some((record, id)) = records::find(maps, config, records::key(config, ip, header)) else {
        return not_ours(maps, config, ip, Counter::DropFragment);
    };
    // It would change the header that the flow's state was read from (RFC 1858, §4; RFC 3128). A receiver of IPv6 does
    // not take what overlaps (RFC 5722).
    if ip.protocol == TCP && header.place < BEHIND_TCP {
        return Outcome::Drop(Counter::DropFragmentHeader);
    }
    let Some(member) = maps.member(record.path.member()) else {
        return Outcome::Drop(Counter::DropStaleMember);
    };
    let head = MemberHead::load(member);
    if !head.has(member_flags::VALID) || head.generation() != record.path.generation() {
        return Outcome::Drop(Counter::DropStaleMember);
    }
    if ip.ttl <= 1 {
        return Outcome::Drop(Counter::DropTtl);
    }
    match send(packet, maps, config, link, ip, header, &record, id, member, head) {
        Ok(ifindex) => Outcome::Send(ifindex),
        Err(counter) => Outcome::Drop(counter),
    }
}

/// Sends it after the first one; out of which interface.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn send<F: Family, P: PacketMut, M: Maps>(
    packet: &mut P,
    maps: &M,
    config: &Config,
    link: &Link,
    ip: &Ip<F>,
    header: &Fragment,
    record: &Record,
    id: u32,
    member: M::Cells,
    head: MemberHead,
) -> Result<u32, Counter> {
    let bytes = packet.len() as u64;
    let is_reply = record.path.is_to_client();
    let (source, destination, egress) = if is_reply {
        let egress = last_hop::egress(maps, record.path.last_hop()).ok_or(Counter::DropNotReady)?;
        let vip = F::member_vip(maps, member).ok_or(Counter::DropNotReady)?;
        (vip, F::of_raw(record.client), egress)
    } else {
        if !head.has(member_flags::NEXT_HOP) {
            return Err(Counter::DropNoNextHop);
        }
        let snat = F::snat_address(config, record.path.snat());
        (snat, F::member_address(member), Egress::of_member(member))
    };
    if !mtu::fits::<F, P, M, false>(packet, maps, ip, egress.mtu) {
        return Err(Counter::DropTooBig);
    }
    let changed = F::add(F::sub(F::add(F::sub(Sum::ZERO, ip.source), source), ip.destination), destination);
    F::write_fragment_id(packet, header, id).ok_or(Counter::DropMalformed)?;
    F::write_header(packet, ip, source, destination, changed).ok_or(Counter::DropMalformed)?;
    rewrite::link_layer::<F, P>(packet, link, &egress)?;
    // Cells of `MEMBER_STATS`: packets, and then bytes.
    let (stats, log) = if is_reply { (3, flow_stats::OUT) } else { (1, flow_stats::IN) };
    if let Some(cells) = maps.member_stats(record.path.member(), config.member_count) {
        cells.add(stats, 1);
        cells.add(stats + 1, bytes);
    }
    if head.has(member_flags::COUNTED) {
        flow_stats::count(maps, config, record.flow, log, bytes);
    }
    maps.count(Counter::FragmentForwarded);
    Ok(egress.ifindex)
}
