//! Rewriting a frame: transport header, network header, then the link layer in the egress's shape.

use core::mem::offset_of;

use network_types::{eth::EthHdr, tcp::TcpHdr, udp::UdpHdr};

use super::{
    Family, PacketMut,
    checksum::Sum,
    last_hop::Egress,
    parse::{self, Ip, Link, Ports},
};
use crate::abi::{Counter, TCP};

/// The new addresses and ports of a packet, raw.
#[derive(Clone, Copy)]
pub(super) struct Tuple<F: Family> {
    pub source: F::Address,
    pub source_port: u16,
    pub destination: F::Address,
    pub destination_port: u16,
}

/// Checksum differences that were computed beforehand for the constant side of a rewrite, folded.
#[derive(Clone, Copy)]
pub(super) struct Constant {
    /// Of address and port.
    pub transport: u16,
    /// Of the address alone.
    pub header: u16,
}

/// Which side of the tuple [`Constant`] covers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Covered {
    /// The destination: a request.
    Destination,
    /// The source: a reply.
    Source,
}

/// Rewrites the frame, and gives it the link-layer header of its egress.
///
/// # Errors
/// [`Counter::DropMalformed`] where a header lies beyond the end, [`Counter::DropNoRoom`] where the tags
/// don't fit, [`Counter::DropNoChecksum`] where there must be a checksum and is none. The frame may then be half
/// rewritten and must be dropped.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(super) fn rewrite<F: Family, P: PacketMut>(
    packet: &mut P,
    link: &Link,
    ip: &Ip<F>,
    ports: Ports,
    new: &Tuple<F>,
    constant: Constant,
    covered: Covered,
    egress: &Egress,
) -> Result<(), Counter> {
    let changed = match covered {
        Covered::Destination => F::add(F::sub(Sum::ZERO, ip.source), new.source),
        Covered::Source => F::add(F::sub(Sum::ZERO, ip.destination), new.destination),
    };
    let header_delta = changed.add16(constant.header);
    let transport_delta = match covered {
        Covered::Destination => changed.sub16(ports.source).add16(new.source_port),
        Covered::Source => changed.sub16(ports.destination).add16(new.destination_port),
    }
    .add16(constant.transport);
    transport(packet, ip, new, transport_delta)?;
    F::write_header(packet, ip, new.source, new.destination, header_delta).ok_or(Counter::DropMalformed)?;
    link_layer::<F, P>(packet, link, egress)
}

/// Sends the frame back to where it came from: the two MAC addresses change places.
#[inline(always)]
pub(super) fn turn_back<P: PacketMut>(packet: &mut P) -> Option<()> {
    let [d0, d1, d2, s0, s1, s2] = packet.read::<[u16; 6], 0>(0)?;
    packet.write::<[u16; 6], 0>(0, [s0, s1, s2, d0, d1, d2])
}

#[inline(always)]
fn transport<F: Family, P: PacketMut>(
    packet: &mut P,
    ip: &Ip<F>,
    new: &Tuple<F>,
    delta: Sum,
) -> Result<(), Counter> {
    const BEYOND: Counter = Counter::DropMalformed;
    let offset = ip.transport_offset;
    if ip.protocol == TCP {
        const CHECK: usize = offset_of!(TcpHdr, check);
        let check: u16 = packet.read::<_, CHECK>(offset).ok_or(BEYOND)?;
        packet.write::<u16, CHECK>(offset, delta.apply(check)).ok_or(BEYOND)?;
    } else {
        const CHECK: usize = offset_of!(UdpHdr, check);
        let check: u16 = packet.read::<_, CHECK>(offset).ok_or(BEYOND)?;
        // RFC 768: 0 means no checksum, so a computed 0 is sent as its other form. IPv6 has no such thing
        // (RFC 8200, §8.1): its receiver would drop the datagram.
        if check != 0 {
            let check = delta.apply(check);
            packet.write::<u16, CHECK>(offset, if check == 0 { 0xffff } else { check }).ok_or(BEYOND)?;
        } else if F::NUMBER == 6 {
            return Err(Counter::DropNoChecksum);
        }
    }
    packet.write::<[u16; 2], 0>(offset, [new.source_port, new.destination_port]).ok_or(BEYOND)
}

/// Whether a UDP datagram has a checksum.
#[inline(always)]
pub(super) fn has_checksum<F: Family, P: PacketMut>(packet: &P, ip: &Ip<F>) -> bool {
    packet.read::<u16, { offset_of!(UdpHdr, check) }>(ip.transport_offset).is_some_and(|check| check != 0)
}

/// Gives the frame the link-layer header of its egress.
///
/// # Errors
/// As [`rewrite`].
#[inline(always)]
pub(super) fn link_layer<F: Family, P: PacketMut>(
    packet: &mut P,
    link: &Link,
    egress: &Egress,
) -> Result<(), Counter> {
    // As most frames come and leave: the type is right already.
    if link.vlan_count == 0 && egress.vlan_count == 0 {
        return write_addresses(packet, egress).ok_or(Counter::DropMalformed);
    }
    let surplus = link.vlan_count as i32 - egress.vlan_count as i32;
    if surplus != 0 && !packet.adjust_head(surplus * 4) {
        return Err(Counter::DropNoRoom);
    }
    write_link_layer::<F, P>(packet, egress).ok_or(Counter::DropMalformed)
}

/// Writes the link-layer header of an egress.
#[inline(always)]
pub(super) fn write_link_layer<F: Family, P: PacketMut>(packet: &mut P, egress: &Egress) -> Option<()> {
    const TYPE: usize = offset_of!(EthHdr, ether_type);
    write_addresses(packet, egress)?;
    let [_, _, _, outer] = bytemuck::cast::<_, [u16; 4]>(egress.destination);
    let [_, _, _, inner] = bytemuck::cast::<_, [u16; 4]>(egress.source);
    let network = parse::ethertype(F::NETWORK);
    match egress.vlan_count {
        0 => packet.write::<u16, TYPE>(0, network),
        1 => packet.write::<[u16; 3], TYPE>(0, [parse::vlan_ethertype(egress.service_tag), outer, network]),
        _ => packet.write::<[u16; 5], TYPE>(
            0,
            [parse::vlan_ethertype(egress.service_tag), outer, parse::vlan_ethertype(false), inner, network],
        ),
    }
}

/// Writes the two MAC addresses.
#[inline(always)]
fn write_addresses<P: PacketMut>(packet: &mut P, egress: &Egress) -> Option<()> {
    const SOURCE: usize = offset_of!(EthHdr, src_addr);
    let [s0, s1, s2, _] = bytemuck::cast::<_, [u16; 4]>(egress.source);
    // The tag behind the destination makes a whole word of it; the source takes its place.
    packet.write::<u64, 0>(0, egress.destination)?;
    packet.write::<u32, SOURCE>(0, bytemuck::cast([s0, s1]))?;
    packet.write::<u16, { SOURCE + 4 }>(0, s2)
}
