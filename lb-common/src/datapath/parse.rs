//! From the frame's first byte to the transport header: Ethernet, up to two VLAN tags, IPv4 or IPv6.

use core::mem::offset_of;

use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};

use super::{Family, PacketMut};
use crate::abi::{Config, TCP, UDP};

/// Ethertypes in network order, as they are read.
const ETHERTYPE_IPV4: u16 = 0x0800_u16.to_be();
const ETHERTYPE_IPV6: u16 = 0x86dd_u16.to_be();
const ETHERTYPE_VLAN: u16 = 0x8100_u16.to_be();
const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8_u16.to_be();

/// IPv6 extension headers that may precede the transport header.
const MAX_EXTENSION_HEADERS: usize = 4;

/// The link layer of a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    /// Network layer's protocol.
    pub network: Network,
    /// VLAN tags, 0–2.
    pub vlan_count: u8,
    /// The outer of two tags is 802.1ad.
    pub service_tag: bool,
    /// Raw tag control information, outer and inner.
    pub vlan: [u16; 2],
}

/// Network layer protocols that we forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Link {
    /// Offset of the network header.
    #[inline(always)]
    pub(super) const fn network_offset(self) -> usize {
        EthHdr::LEN + 4 * self.vlan_count as usize
    }
}

/// What a packet's headers allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A whole TCP segment or UDP datagram.
    Whole,
    /// A fragment: any one, or where it was asked for first ones, another one.
    Fragment,
    /// A first fragment with the whole transport header of a TCP segment or UDP datagram, and IPv6's fragment that is
    /// all of its packet (RFC 6946). Only where it was asked for.
    First,
    /// Some other protocol.
    Other,
    /// Headers are cut short or contradict each other.
    Malformed,
}

/// The network layer of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Ip<F: Family> {
    /// Offset of the network header.
    pub network_offset: usize,
    /// Offset of the transport header, where the shape is [`Shape::Whole`] or [`Shape::First`].
    pub transport_offset: usize,
    /// Source address, raw.
    pub source: F::Address,
    /// Destination address, raw.
    pub destination: F::Address,
    /// TTL or hop limit.
    pub ttl: u8,
    /// IP protocol of the transport header.
    pub protocol: u8,
    /// What the headers allow.
    pub shape: Shape,
}

/// A TCP or UDP packet's ports, raw.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
}

/// Reads the Ethernet header and its tags; `None` where neither IPv4 nor IPv6 follows.
#[inline(always)]
pub(super) fn link<P: PacketMut>(packet: &P) -> Option<Link> {
    const TYPE: usize = offset_of!(EthHdr, ether_type);
    let outer_type: u16 = packet.read::<_, TYPE>(0)?;
    let mut link = Link { network: Network::V4, vlan_count: 0, service_tag: false, vlan: [0; 2] };
    let mut ethertype = outer_type;
    if ethertype == ETHERTYPE_VLAN || ethertype == ETHERTYPE_SERVICE_VLAN {
        link.vlan[0] = packet.read::<_, { TYPE + 2 }>(0)?;
        link.vlan_count = 1;
        link.service_tag = outer_type == ETHERTYPE_SERVICE_VLAN;
        ethertype = packet.read::<_, { TYPE + 4 }>(0)?;
        if ethertype == ETHERTYPE_VLAN {
            link.vlan[1] = packet.read::<_, { TYPE + 6 }>(0)?;
            link.vlan_count = 2;
            ethertype = packet.read::<_, { TYPE + 8 }>(0)?;
        }
    }
    link.network = match ethertype {
        ETHERTYPE_IPV4 => Network::V4,
        ETHERTYPE_IPV6 => Network::V6,
        _ => return None,
    };
    Some(link)
}

/// The ethertype to write before a network header or a tag, raw.
pub(super) const fn ethertype(network: Network) -> u16 {
    match network {
        Network::V4 => ETHERTYPE_IPV4,
        Network::V6 => ETHERTYPE_IPV6,
    }
}

/// The ethertype of a VLAN tag, raw.
#[inline(always)]
pub(super) const fn vlan_ethertype(service_tag: bool) -> u16 {
    if service_tag { ETHERTYPE_SERVICE_VLAN } else { ETHERTYPE_VLAN }
}

/// Reads an IPv4 header; `None` where it is cut short or is not version 4. With `FIRSTS` it looks into first fragments.
#[inline(always)]
pub(super) fn ipv4<F: Family<Address = u32>, P: PacketMut, const FIRSTS: bool>(
    packet: &P,
    offset: usize,
) -> Option<Ip<F>> {
    let version_ihl: u8 = packet.read::<_, { offset_of!(Ipv4Hdr, vihl) }>(offset)?;
    let total: u16 = packet.read::<_, { offset_of!(Ipv4Hdr, tot_len) }>(offset)?;
    let fragment: u16 = packet.read::<_, { offset_of!(Ipv4Hdr, frags) }>(offset)?;
    let ttl: u8 = packet.read::<_, { offset_of!(Ipv4Hdr, ttl) }>(offset)?;
    let protocol: u8 = packet.read::<_, { offset_of!(Ipv4Hdr, proto) }>(offset)?;
    let source: u32 = packet.read::<_, { offset_of!(Ipv4Hdr, src_addr) }>(offset)?;
    let destination: u32 = packet.read::<_, { offset_of!(Ipv4Hdr, dst_addr) }>(offset)?;
    if version_ihl >> 4 != 4 {
        return None;
    }
    let header = (version_ihl & 0xf) as usize * 4;
    let total = u16::from_be(total) as usize;
    let transport_offset = offset + header;
    let shape = if header < Ipv4Hdr::LEN || total < header || offset + total > packet.len() {
        Shape::Malformed
    } else if FIRSTS && fragment & 0x3fff_u16.to_be() == MORE_FRAGMENTS {
        first_shape(transport_shape(packet, protocol, transport_offset, total - header, false))
    } else if fragment & 0x3fff_u16.to_be() != 0 {
        Shape::Fragment
    } else {
        transport_shape(packet, protocol, transport_offset, total - header, true)
    };
    Some(Ip { network_offset: offset, transport_offset, source, destination, ttl, protocol, shape })
}

/// Reads an IPv6 header and its extension headers; `None` where it is cut short or is not version 6. With `FIRSTS` it
/// looks into first fragments.
#[inline(always)]
pub(super) fn ipv6<F: Family<Address = [u64; 2]>, P: PacketMut, const FIRSTS: bool>(
    packet: &P,
    config: &Config,
    offset: usize,
) -> Option<Ip<F>> {
    let version: u8 = packet.read::<_, { offset_of!(Ipv6Hdr, vcf) }>(offset)?;
    let payload: u16 = packet.read::<_, { offset_of!(Ipv6Hdr, payload_len) }>(offset)?;
    let mut next: u8 = packet.read::<_, { offset_of!(Ipv6Hdr, next_hdr) }>(offset)?;
    let ttl: u8 = packet.read::<_, { offset_of!(Ipv6Hdr, hop_limit) }>(offset)?;
    let source: [u64; 2] = packet.read::<_, { offset_of!(Ipv6Hdr, src_addr) }>(offset)?;
    let destination: [u64; 2] = packet.read::<_, { offset_of!(Ipv6Hdr, dst_addr) }>(offset)?;
    if version >> 4 != 6 {
        return None;
    }
    let payload = u16::from_be(payload) as usize;
    let mut transport_offset = offset + Ipv6Hdr::LEN;
    let mut shape = Shape::Whole;
    if offset + Ipv6Hdr::LEN + payload > packet.len() {
        shape = Shape::Malformed;
    }
    let mut extension = 0;
    // Of a first fragment; with `more` there are others.
    let (mut first, mut more) = (false, false);
    while shape == Shape::Whole && is_extension_header(next) {
        if next == NEXT_FRAGMENT && !FIRSTS {
            shape = Shape::Fragment;
            break;
        }
        if extension == MAX_EXTENSION_HEADERS {
            shape = Shape::Malformed;
            break;
        }
        extension += 1;
        let Some([following, length]) = packet.read::<[u8; 2], 0>(transport_offset) else {
            shape = Shape::Malformed;
            break;
        };
        // At most 64 bytes each, so that the offset stays below `MAX_OFFSET`. A fragment header's is always 8.
        let length = if FIRSTS && next == NEXT_FRAGMENT { 0 } else { length };
        if length > 7 {
            shape = Shape::Malformed;
            break;
        }
        if FIRSTS && next == NEXT_FRAGMENT {
            let place = packet.read::<u16, { FRAGMENT_PLACE }>(transport_offset).unwrap_or(0);
            if place & FRAGMENT_OFFSET_V6 != 0 || first {
                shape = if first { Shape::Malformed } else { Shape::Fragment };
                break;
            }
            (first, more) = (true, place & MORE_FRAGMENTS_V6 != 0);
        }
        next = following;
        transport_offset += (length as usize + 1) * 8;
    }
    let transport_offset = config.forget(transport_offset as u32) as usize;
    if shape == Shape::Whole {
        let headers = transport_offset - offset - Ipv6Hdr::LEN;
        shape = if payload < headers {
            Shape::Malformed
        } else {
            transport_shape(packet, next, transport_offset, payload - headers, !more)
        };
        if first {
            shape = first_shape(shape);
        }
    }
    Some(Ip { network_offset: offset, transport_offset, source, destination, ttl, protocol: next, shape })
}

/// The shape of a first fragment whose payload alone would have this one.
#[inline(always)]
fn first_shape(shape: Shape) -> Shape {
    if shape == Shape::Whole { Shape::First } else { shape }
}

/// What a packet's headers say of it as a fragment.
#[derive(Clone, Copy, Debug)]
pub struct Fragment {
    /// Identification, raw; IPv4's in the first two bytes.
    pub id: u32,
    /// Where its payload lies in that of the packet, in units of 8 bytes.
    pub place: u16,
    /// There are others.
    pub more: bool,
    /// Offset in the frame of the header that says so.
    pub offset: usize,
}

/// Reads what an IPv4 header says of fragments.
#[inline(always)]
pub(super) fn fragment_v4<P: PacketMut>(packet: &P, offset: usize) -> Option<Fragment> {
    let [id, place] = packet.read::<[u16; 2], { offset_of!(Ipv4Hdr, id) }>(offset)?;
    Some(Fragment {
        id: bytemuck::cast([id, 0]),
        place: u16::from_be(place) & 0x1fff,
        more: place & MORE_FRAGMENTS != 0,
        offset,
    })
}

/// Finds IPv6's fragment header; `None` where there is none within reach.
#[inline(always)]
pub(super) fn fragment_v6<P: PacketMut>(packet: &P, config: &Config, network: usize) -> Option<Fragment> {
    let mut next: u8 = packet.read::<_, { offset_of!(Ipv6Hdr, next_hdr) }>(network)?;
    let mut offset = network + Ipv6Hdr::LEN;
    let mut extension = 0;
    while next != NEXT_FRAGMENT {
        let [following, length] = packet.read::<[u8; 2], 0>(offset)?;
        if extension == MAX_EXTENSION_HEADERS || length > 7 || !is_extension_header(next) {
            return None;
        }
        extension += 1;
        next = following;
        offset += (length as usize + 1) * 8;
    }
    let offset = config.forget(offset as u32) as usize;
    let place: u16 = packet.read::<_, { FRAGMENT_PLACE }>(offset)?;
    Some(Fragment {
        id: packet.read::<_, { FRAGMENT_ID }>(offset)?,
        place: u16::from_be(place) >> 3,
        more: place & MORE_FRAGMENTS_V6 != 0,
        offset,
    })
}

/// Source, destination, protocol and offset of the transport header of an IPv4 packet that is perhaps not all there;
/// `None` where its transport header does not begin in it. `offset` is at most 256.
#[inline(always)]
pub(super) fn quoted_ipv4<P: PacketMut>(packet: &P, offset: usize) -> Option<(u32, u32, u8, usize)> {
    let version_ihl: u8 = packet.read::<_, { offset_of!(Ipv4Hdr, vihl) }>(offset)?;
    let fragment: u16 = packet.read::<_, { offset_of!(Ipv4Hdr, frags) }>(offset)?;
    let protocol: u8 = packet.read::<_, { offset_of!(Ipv4Hdr, proto) }>(offset)?;
    let source: u32 = packet.read::<_, { offset_of!(Ipv4Hdr, src_addr) }>(offset)?;
    let destination: u32 = packet.read::<_, { offset_of!(Ipv4Hdr, dst_addr) }>(offset)?;
    let header = (version_ihl & 0xf) as usize * 4;
    if version_ihl >> 4 != 4 || header < Ipv4Hdr::LEN || fragment & 0x1fff_u16.to_be() != 0 {
        return None;
    }
    Some((source, destination, protocol, offset + header))
}

/// The same of an IPv6 packet. `offset` is at most 200.
#[inline(always)]
pub(super) fn quoted_ipv6<P: PacketMut>(
    packet: &P,
    offset: usize,
) -> Option<([u64; 2], [u64; 2], u8, usize)> {
    let version: u8 = packet.read::<_, { offset_of!(Ipv6Hdr, vcf) }>(offset)?;
    let mut next: u8 = packet.read::<_, { offset_of!(Ipv6Hdr, next_hdr) }>(offset)?;
    let source: [u64; 2] = packet.read::<_, { offset_of!(Ipv6Hdr, src_addr) }>(offset)?;
    let destination: [u64; 2] = packet.read::<_, { offset_of!(Ipv6Hdr, dst_addr) }>(offset)?;
    if version >> 4 != 6 {
        return None;
    }
    let mut transport_offset = offset + Ipv6Hdr::LEN;
    let mut extension = 0;
    while is_extension_header(next) {
        let [following, length, place_high, place_low] = packet.read::<[u8; 4], 0>(transport_offset)?;
        // At most 64 bytes each, as above.
        if extension == MAX_EXTENSION_HEADERS || length > 7 {
            return None;
        }
        extension += 1;
        if next != NEXT_FRAGMENT {
            transport_offset += (length as usize + 1) * 8;
        } else if place_high == 0 && place_low & 0xf8 == 0 {
            transport_offset += 8;
        } else {
            return None;
        }
        next = following;
    }
    Some((source, destination, next, transport_offset))
}

/// IPv4: more fragments follow, raw.
const MORE_FRAGMENTS: u16 = 0x2000_u16.to_be();
/// IPv6: more fragments follow, raw.
const MORE_FRAGMENTS_V6: u16 = 1_u16.to_be();
/// IPv6: the bits of a fragment's offset, raw.
const FRAGMENT_OFFSET_V6: u16 = 0xfff8_u16.to_be();
/// Where these are in a fragment header.
const FRAGMENT_PLACE: usize = 2;
/// Where the identification is.
pub(super) const FRAGMENT_ID: usize = 4;

const NEXT_HOP_BY_HOP: u8 = 0;
const NEXT_ROUTING: u8 = 43;
const NEXT_FRAGMENT: u8 = 44;
const NEXT_DESTINATION: u8 = 60;

#[inline(always)]
const fn is_extension_header(next: u8) -> bool {
    matches!(next, NEXT_HOP_BY_HOP | NEXT_ROUTING | NEXT_FRAGMENT | NEXT_DESTINATION)
}

/// The shape of a packet whose `length` bytes of transport header and payload start at `offset`; of a part of one, which
/// begins with the header, where they are not all.
#[inline(always)]
fn transport_shape<P: PacketMut>(packet: &P, protocol: u8, offset: usize, length: usize, all: bool) -> Shape {
    match protocol {
        TCP => {
            let Some(data_offset) = packet.read::<u8, 12>(offset) else { return Shape::Malformed };
            let header = (data_offset >> 4) as usize * 4;
            if header < TcpHdr::LEN || header > length { Shape::Malformed } else { Shape::Whole }
        }
        UDP => {
            let Some(datagram) = packet.read::<u16, { offset_of!(UdpHdr, len) }>(offset) else {
                return Shape::Malformed;
            };
            let datagram = u16::from_be(datagram) as usize;
            let here = if all { datagram } else { UdpHdr::LEN };
            if datagram < UdpHdr::LEN || here > length { Shape::Malformed } else { Shape::Whole }
        }
        _ => Shape::Other,
    }
}

/// Reads the ports of a whole TCP or UDP packet.
#[inline(always)]
pub(super) fn ports<P: PacketMut>(packet: &P, offset: usize) -> Option<Ports> {
    let [source, destination] = packet.read::<[u16; 2], 0>(offset)?;
    Some(Ports { source, destination })
}
