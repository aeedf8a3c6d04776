//! Active refusal: the sender of a packet that was dropped hears of it, at once, where that can do no harm.
//!
//! A packet that may be forged, or that was for several, must not make us send: whoever is named as its sender would
//! get what he has not asked for. And no answer may be answered.

use core::{hint::black_box, mem::offset_of};

use network_types::{tcp::TcpHdr, udp::UdpHdr};

use super::{
    Cells, Family, Maps, PacketMut, Verdict,
    checksum::{self, Sum},
    icmp_error::{self, IcmpError},
    last_hop::{self, Egress},
    parse::{self, Ip, Link, Shape},
    request::TCP_FLAGS,
    rewrite,
    syn::{REST, SEQUENCE},
    tcp::Flags,
};
use crate::{
    abi::{Config, Counter, Refusal, TCP, UDP},
    clock,
};

/// Why there is no answer.
#[derive(Clone, Copy)]
enum Silence {
    /// A rule forbids one, or the packet is not what it was when it was dropped.
    Forbidden,
    /// This CPU has sent as many as it may.
    Limited,
    /// The frame can't grow.
    NoRoom,
}

/// Answers the packet that this CPU has just dropped, in the packet's own frame.
#[inline(always)]
pub(super) fn refuse<F: Family, P: PacketMut, M: Maps>(packet: &mut P, maps: &M) -> Verdict {
    let counter = match answer::<F, P, M>(packet, maps) {
        Ok(()) => {
            maps.count(Counter::RefusalSent);
            return Verdict::Transmit;
        }
        // It was counted when it was dropped.
        Err(Silence::Forbidden) => return Verdict::Drop,
        Err(Silence::Limited) => Counter::RefusalLimited,
        Err(Silence::NoRoom) => Counter::RefusalNoRoom,
    };
    maps.count(counter);
    Verdict::Drop
}

#[inline(always)]
fn answer<F: Family, P: PacketMut, M: Maps>(packet: &mut P, maps: &M) -> Result<(), Silence> {
    let config = maps.config().ok_or(Silence::Forbidden)?;
    let link = parse::link(packet).filter(|link| link.network == F::NETWORK).ok_or(Silence::Forbidden)?;
    let tags = config.forget(link.vlan_count as u32 | (link.service_tag as u32) << 8);
    let link = &Link { vlan_count: tags as u8, service_tag: tags >> 8 != 0, ..link };
    let ip = F::parse::<P, false>(packet, config, link.network_offset()).ok_or(Silence::Forbidden)?;
    let ip = &Ip { protocol: config.forget(ip.protocol as u32) as u8, ..ip };
    let cells = maps.refusals().ok_or(Silence::Forbidden)?;
    let says_protocol = cells.load(0) == Refusal::Protocol as u64;
    if !may_be_answered(packet, maps, ip, says_protocol).unwrap_or(false) {
        return Err(Silence::Forbidden);
    }
    // Before the sum over the packet, which a flood must not make us compute.
    let now = clock::tick(maps.now()) as u64;
    let spent = cells.load(2);
    let sent = if spent & 0xffff_ffff == now { spent >> 32 } else { 0 };
    if sent >= config.refusals_per_tick as u64 {
        return Err(Silence::Limited);
    }
    let total = F::total_length(packet, ip.network_offset).ok_or(Silence::Forbidden)?;
    let total = config.forget(total);
    if !is_intact(packet, config, ip, total).unwrap_or(false) {
        return Err(Silence::Forbidden);
    }
    cells.store(2, now | (sent + 1) << 32);
    // Read here: the verifier would follow each kind through the sums.
    let refusal = Refusal::of(cells.load(0)).ok_or(Silence::Forbidden)?;
    let told = if ip.protocol == TCP && refusal == Refusal::Port {
        reset(packet, link, ip, total)
    } else {
        let error = icmp::<F, P, M>(packet, maps, config, ip, refusal, cells.load(1) as u32);
        icmp_error::build(packet, config, link, ip, total, &error)
    };
    told.ok_or(Silence::NoRoom)
}

/// Whether a packet of this kind, between these two, may be answered at all (RFC 1122, §3.2.2; RFC 4443, §2.4 e).
#[inline(always)]
fn may_be_answered<F: Family, P: PacketMut, M: Maps>(
    packet: &P,
    maps: &M,
    ip: &Ip<F>,
    says_protocol: bool,
) -> Option<bool> {
    let first: u8 = packet.read::<_, 0>(0)?;
    let to_many = first & 1 != 0 || !F::is_host(ip.destination);
    // One VIP would answer the other, or itself.
    let by_nobody =
        !F::is_host(ip.source) || ip.source == ip.destination || F::vip(maps, ip.source).is_some();
    if to_many || by_nobody {
        return Some(false);
    }
    Some(match ip.shape {
        Shape::Whole if ip.protocol == TCP => {
            !Flags(packet.read::<u8, TCP_FLAGS>(ip.transport_offset)?).is_reset()
        }
        Shape::Whole => true,
        // Of ICMP, only what asks: what we don't know may be an error.
        Shape::Other if ip.protocol == F::ICMP => {
            packet.read::<[u8; 2], 0>(ip.transport_offset)?[0] == F::ECHO_REQUEST
        }
        // Nothing follows, so nothing is wrong with it (RFC 8200, §4.7).
        Shape::Other => !says_protocol || ip.protocol != NO_NEXT_HEADER,
        // The sum is over all fragments, the headers are in the first one.
        Shape::First | Shape::Fragment | Shape::Malformed => false,
    })
}

/// IPv6's "no next header".
const NO_NEXT_HEADER: u8 = 59;

/// Whether all checksums are right. `None` where the packet is too long to tell (see [`checksum::MOST_BYTES`]).
#[inline(always)]
fn is_intact<F: Family, P: PacketMut>(packet: &P, config: &Config, ip: &Ip<F>, total: u32) -> Option<bool> {
    let headers = config.forget((ip.transport_offset - ip.network_offset) as u32);
    if F::NUMBER == 4 && checksum::sum(packet, config, ip.network_offset as u32, headers)? != !0 {
        return Some(false);
    }
    let Covered { length, pseudo } = covered(packet, ip, total.checked_sub(headers)?)?;
    let pseudo = config.forget(pseudo as u32) as u16;
    let sum = checksum::sum(packet, config, ip.transport_offset as u32, length)?;
    Some(Sum::ZERO.add16(sum).add16(pseudo).fold() == !0)
}

/// What a transport checksum covers.
struct Covered {
    /// Bytes from the transport header on.
    length: u32,
    /// The sum of the pseudo header.
    pseudo: u16,
}

/// What the checksum of a packet with so many bytes behind its network header covers; `None` where it must have one and
/// has none.
#[inline(always)]
fn covered<F: Family, P: PacketMut>(packet: &P, ip: &Ip<F>, segment: u32) -> Option<Covered> {
    // Without a checksum that we know, nothing is wrong with it.
    const UNCHECKED: Covered = Covered { length: 0, pseudo: !0 };
    let mut length = segment;
    if ip.protocol == UDP {
        let at = ip.transport_offset;
        if packet.read::<u16, { offset_of!(UdpHdr, check) }>(at)? == 0 {
            // IPv6 has no datagrams without (RFC 8200, §8.1).
            return if F::NUMBER == 4 { Some(UNCHECKED) } else { None };
        }
        length = u16::from_be(packet.read::<u16, { offset_of!(UdpHdr, len) }>(at)?) as u32;
    } else if ip.protocol == F::ICMP {
        if F::NUMBER == 4 {
            return Some(Covered { length, pseudo: 0 });
        }
    } else if ip.protocol != TCP {
        return Some(UNCHECKED);
    }
    let addresses = F::add(F::add(Sum::ZERO, ip.source), ip.destination);
    let rest = addresses.add16((length as u16).to_be()).add16(u16::from_ne_bytes([0, ip.protocol]));
    Some(Covered { length, pseudo: rest.fold() })
}

/// What ICMP says, and who says it.
#[inline(always)]
fn icmp<F: Family, P: PacketMut, M: Maps>(
    packet: &P,
    maps: &M,
    config: &Config,
    ip: &Ip<F>,
    refusal: Refusal,
    mtu: u32,
) -> IcmpError<F> {
    let rest = match refusal {
        Refusal::TooBig => mtu,
        Refusal::Protocol if F::NUMBER == 6 => protocol_field(packet, ip),
        _ => 0,
    };
    // A hop on the way to the VIP is the gateway, under its own name; anything else the VIP says for itself, from
    // the only address of ours that the client is known to reach. Backends know us by the address they answer.
    let is_hop = refusal == Refusal::TimeExceeded
        && F::snat_count(config) != 0
        && F::vip(maps, ip.destination).is_some();
    let source = if is_hop { F::snat_address(config, 0) } else { ip.destination };
    IcmpError { what: F::icmp_error(refusal), rest: rest.to_be(), source }
}

/// Where in an IPv6 packet the field is that names its transport protocol.
#[inline(always)]
fn protocol_field<F: Family, P: PacketMut>(packet: &P, ip: &Ip<F>) -> u32 {
    /// In the fixed header.
    const NEXT_HEADER: u32 = 6;
    let mut field = NEXT_HEADER;
    let mut header = ip.network_offset + F::HEADER;
    let mut extension = 0_u64;
    while extension < 4 && header < ip.transport_offset {
        extension += 1;
        let Some([_, length]) = packet.read::<[u8; 2], 0>(header) else { break };
        field = (header - ip.network_offset) as u32;
        header += ((length & 7) as usize + 1) * 8;
    }
    field
}

const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Makes the frame a RST that its sender accepts (RFC 9293, §3.10.7.1).
#[inline(always)]
fn reset<F: Family, P: PacketMut>(packet: &mut P, link: &Link, ip: &Ip<F>, total: u32) -> Option<()> {
    let place = ip.transport_offset;
    let ports = parse::ports(packet, place)?;
    let [sequence, acknowledgement] = packet.read::<[u32; 2], SEQUENCE>(place)?;
    let [data_offset, flags] = packet.read::<[u8; 2], REST>(place)?;
    let flags = Flags(flags);
    let numbers = if flags.is_acknowledging() {
        [acknowledgement, 0]
    } else {
        let headers = (place - ip.network_offset) as u32 + (data_offset >> 4) as u32 * 4;
        let data = total.wrapping_sub(headers);
        let length = data.wrapping_add(flags.has_syn() as u32).wrapping_add(flags.has_fin() as u32);
        [0, u32::from_be(sequence).wrapping_add(length).to_be()]
    };
    let says = if flags.is_acknowledging() { RST } else { RST | ACK };
    let [first, second] = [u16::from_ne_bytes([0x50, says]), TcpHdr::LEN as u16];
    let sum = F::add(F::add(Sum::ZERO, ip.source), ip.destination)
        .add16(second.to_be())
        .add16(u16::from_ne_bytes([0, TCP]))
        .add16(ports.source)
        .add16(ports.destination)
        .add32(numbers[0])
        .add32(numbers[1])
        .add16(first);

    let macs: [u16; 6] = packet.read::<_, 0>(0)?;
    let network = link.network_offset();
    let length = network + F::HEADER + TcpHdr::LEN;
    // The compiler would subtract halves of two pointers, which the verifier does not allow.
    let before = black_box(packet.len());
    if !packet.adjust_head(before as i32 - length as i32) {
        return None;
    }
    turn_back::<F, P>(packet, link, macs)?;
    let fields = F::new_fields(0);
    let (from, to) = (ip.destination, ip.source);
    F::write_new_header(packet, network, fields, TCP, from, to, TcpHdr::LEN as u16)?;
    let place = network + F::HEADER;
    packet.write::<[u16; 2], 0>(place, [ports.destination, ports.source])?;
    packet.write::<[u32; 2], SEQUENCE>(place, numbers)?;
    packet.write::<[u16; 4], REST>(place, [first, 0, !sum.fold(), 0])
}

/// Writes the link layer of a frame that goes back to where one with these MAC addresses came from, with the same
/// tags.
#[inline(always)]
pub(super) fn turn_back<F: Family, P: PacketMut>(packet: &mut P, link: &Link, macs: [u16; 6]) -> Option<()> {
    let [to_low, to_mid, to_high, from_low, from_mid, from_high] = macs;
    let egress = Egress {
        destination: last_hop::pack(from_low, from_mid, from_high, link.vlan[0]),
        source: last_hop::pack(to_low, to_mid, to_high, link.vlan[1]),
        ifindex: 0,
        vlan_count: link.vlan_count,
        service_tag: link.service_tag,
        mtu: 0,
    };
    rewrite::write_link_layer::<F, P>(packet, &egress, true)
}
