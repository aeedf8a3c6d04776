//! ICMP and ICMPv6 to a VIP or to a SNAT address: errors about our packets go on to the end that they are for, an echo
//! request is answered.
//!
//! An error is matched by the packet that it quotes, of which only eight bytes behind the network header are sure to be
//! there (RFC 792; RFC 1812, §4.3.2.3). The quoted packet is one that we have sent: to a backend, from a SNAT address;
//! or to a client, from a VIP.

use core::hint::black_box;

use super::{
    Family, Maps, Outcome, PacketMut,
    checksum::Sum,
    flow_table,
    last_hop::{self, Egress},
    member::{self, MemberHead},
    parse::{Ip, Link, Ports},
    quoted::{self, Quoted},
    reverse_table,
    rewrite::{self, Tuple},
};
use crate::abi::{Config, Counter, TCP, UDP, member_flags, vip_flags};

/// Bytes of an ICMP header, after which an error quotes.
pub(super) const HEADER: usize = 8;
/// Offset of the checksum.
const CHECK: usize = 2;
/// Highest offset of a quoted packet: what follows stays below [`super::MAX_OFFSET`].
const LAST_QUOTE: usize = 128;
/// TTL or hop limit of what the gateway sends itself (RFC 1700).
const FRESH_TTL: u8 = 64;

/// What a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Somebody wants to know whether we are there.
    EchoRequest,
    /// A packet did not arrive.
    Error,
    /// Something else.
    Other,
}

/// Does it.
#[inline(always)]
pub(super) fn icmp<F: Family, P: PacketMut, M: Maps>(
    packet: &mut P,
    maps: &M,
    config: &Config,
    link: &Link,
    ip: &Ip<F>,
) -> Outcome {
    // One word: an option's content, where it has none, would be whatever is in its register.
    let vip = config.forget(F::vip(maps, ip.destination).map_or(0, |flags| flags | IS_VIP));
    let is_snat = F::snat_index(config, ip.destination).is_some();
    // What becomes of a message that is not ours.
    let other = if vip & vip_flags::NODE_ADDRESS != 0 {
        Outcome::Pass(Counter::PassNodeAddress)
    } else if is_snat {
        Outcome::Pass(Counter::PassNoFlow)
    } else if vip != 0 {
        Outcome::Drop(Counter::DropIcmp)
    } else {
        return Outcome::Pass(Counter::PassForeign);
    };
    // Two bytes: of one, the first, the verifier does not take the proof that it is there.
    let Some([kind, _]) = packet.read::<[u8; 2], 0>(ip.transport_offset) else { return other };
    let answers = vip & (vip_flags::ECHO | vip_flags::NODE_ADDRESS) == vip_flags::ECHO && !is_snat;
    match F::icmp_message(kind) {
        Message::EchoRequest if answers => echo(packet, maps, ip).unwrap_or(other),
        Message::Error => error(packet, maps, config, link, ip, kind).unwrap_or(other),
        _ => other,
    }
}

/// No flag of [`vip_flags`]: an address is a VIP.
const IS_VIP: u32 = 1 << 31;

/// Answers an echo request. Its checksum is carried on: where it was wrong, so is the answer's.
#[inline(always)]
fn echo<F: Family, P: PacketMut, M: Maps>(packet: &mut P, maps: &M, ip: &Ip<F>) -> Option<Outcome> {
    if !F::is_host(ip.source) || ip.source == ip.destination {
        return None;
    }
    let old: [u16; 2] = packet.read::<_, 0>(ip.transport_offset)?;
    let new = u16::from_ne_bytes([F::ECHO_REPLY, 0]);
    // The addresses change places, and so add up to what they did.
    let check = Sum::ZERO.sub16(old[0]).add16(new).apply(old[1]);
    packet.write::<[u16; 2], 0>(ip.transport_offset, [new, check])?;
    // As if it had come with one more than it leaves with.
    let ttl = FRESH_TTL + 1;
    let fresh = Ip { ttl, ..*ip };
    let delta = Sum::ZERO
        .sub16(u16::from_ne_bytes([ip.ttl, ip.protocol]))
        .add16(u16::from_ne_bytes([ttl, ip.protocol]));
    F::write_header(packet, &fresh, ip.destination, ip.source, delta)?;
    rewrite::turn_back(packet)?;
    maps.count(Counter::EchoAnswered);
    Some(Outcome::Send(packet.ingress()))
}

/// Forwards an error; `None` where it is about no flow of ours.
#[inline(always)]
fn error<F: Family, P: PacketMut, M: Maps>(
    packet: &mut P,
    maps: &M,
    config: &Config,
    link: &Link,
    ip: &Ip<F>,
    kind: u8,
) -> Option<Outcome> {
    let offset = config.forget((ip.transport_offset + HEADER) as u32) as usize;
    if offset > LAST_QUOTE {
        return None;
    }
    // Masked where the compiler can't tell that it need not be: the verifier of Linux 6.1 takes no bound from a comparison
    // of 32 bits.
    let offset = black_box(offset) & (2 * LAST_QUOTE - 1);
    let quoted = quoted::parse::<F, P>(packet, config, ip, offset)?;
    // It was sent to where it says that it was sent from.
    if quoted.source != ip.destination || (quoted.protocol != TCP && quoted.protocol != UDP) {
        return None;
    }
    let found = match to_client(maps, config, ip, kind, &quoted) {
        Some(found) => found,
        None => to_backend(maps, config, &quoted)?,
    };
    if ip.ttl <= 1 {
        return Some(Outcome::Drop(Counter::DropTtl));
    }
    let Some(egress) = found.egress else { return Some(Outcome::Drop(Counter::DropNoNextHop)) };
    let malformed = Some(Outcome::Drop(Counter::DropMalformed));
    let Some(changed) = quoted::rewrite(packet, &quoted, &found.quoted) else { return malformed };
    // ICMPv6's checksum covers the addresses, IPv4's header has its own.
    let addresses =
        F::add(F::add(F::sub(F::sub(Sum::ZERO, ip.source), ip.destination), found.source), found.destination);
    let Some(check) = packet.read::<u16, CHECK>(ip.transport_offset) else { return malformed };
    let delta = Sum(changed.0 + if F::NUMBER == 6 { addresses.fold() as u64 } else { 0 });
    if packet.write::<u16, CHECK>(ip.transport_offset, delta.apply(check)).is_none()
        || F::write_header(packet, ip, found.source, found.destination, addresses).is_none()
    {
        return malformed;
    }
    if let Err(counter) = rewrite::link_layer::<F, P>(packet, link, &egress) {
        return Some(Outcome::Drop(counter));
    }
    maps.count(Counter::IcmpForwarded);
    Some(Outcome::Send(egress.ifindex))
}

/// Where an error goes, and what it quotes there.
struct Found<F: Family> {
    source: F::Address,
    destination: F::Address,
    /// The quoted packet as its sender knows it.
    quoted: Tuple<F>,
    /// `None`: the member has no next hop.
    egress: Option<Egress>,
}

/// The client whose packet to a backend is quoted.
#[inline(always)]
fn to_client<F: Family, M: Maps>(
    maps: &M,
    config: &Config,
    ip: &Ip<F>,
    kind: u8,
    quoted: &Quoted<F>,
) -> Option<Found<F>> {
    let port = u16::from_be(quoted.ports.source);
    if port.wrapping_sub(config.port_base) >= config.port_words.wrapping_mul(64) {
        return None;
    }
    let snat = F::snat_index(config, quoted.source)?;
    let backend = F::backend(maps, quoted.destination, quoted.ports.destination, quoted.protocol)?;
    let entry = reverse_table::find::<F, M>(maps, config, backend, snat, port)?;
    let member = maps.member(entry.member)?;
    let head = MemberHead::load(member);
    if !head.has(member_flags::VALID) || head.generation() != entry.generation {
        return None;
    }
    let vip = F::member_vip(maps, member)?;
    Some(Found {
        // The VIP says it: what comes from a router's own address may be dropped where its way leads back through that
        // router. For traceroute its name is what the message is for.
        source: if kind == F::TIME_EXCEEDED && ip.source != quoted.destination { ip.source } else { vip },
        destination: entry.client,
        quoted: Tuple {
            source: entry.client,
            source_port: entry.client_port,
            destination: vip,
            destination_port: member::vip_port(member),
        },
        egress: last_hop::egress(maps, entry.last_hop),
    })
}

/// The backend whose packet to a client is quoted. The error comes from a SNAT address: another one's would be taken for
/// forged on the way.
#[inline(always)]
fn to_backend<F: Family, M: Maps>(maps: &M, config: &Config, quoted: &Quoted<F>) -> Option<Found<F>> {
    let ports = Ports { source: quoted.ports.destination, destination: quoted.ports.source };
    let hash = F::hash(
        &config.flow_key,
        quoted.destination,
        quoted.source,
        super::port_word(ports),
        quoted.protocol,
    );
    let flow = flow_table::find(maps, config, hash)?.word;
    let member = maps.member(flow.member())?;
    let head = MemberHead::load(member);
    if !head.is_of(flow) {
        return None;
    }
    let (snat, backend) = (F::snat_address(config, flow.snat()), F::member_address(member));
    Some(Found {
        source: snat,
        destination: backend,
        quoted: Tuple {
            source: backend,
            source_port: head.port(),
            destination: snat,
            destination_port: flow.port().to_be(),
        },
        egress: if head.has(member_flags::NEXT_HOP) { Some(Egress::of_member(member)) } else { None },
    })
}
