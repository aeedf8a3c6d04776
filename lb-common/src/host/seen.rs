//! A frame read back, independently of the packet program's own parser.

use std::{
    format,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    string::{String, ToString},
    vec::Vec,
};

use super::frame::{TAG_8021AD, TAG_8021Q, fold, ones_complement_sum, pseudo_header};
use crate::abi::{TCP, UDP};

/// What a whole TCP or UDP frame says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Destination MAC address.
    pub destination_mac: [u8; 6],
    /// Source MAC address.
    pub source_mac: [u8; 6],
    /// VLAN tags, outer first: ethertype and tag control information.
    pub tags: Vec<(u16, u16)>,
    /// Source.
    pub source: SocketAddr,
    /// Destination.
    pub destination: SocketAddr,
    /// IP protocol.
    pub protocol: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// The checksum field of the transport header.
    pub checksum: u16,
    /// TCP flags; 0 for others.
    pub flags: u8,
    /// Transport payload.
    pub payload: Vec<u8>,
}

impl Seen {
    /// Reads a frame and recomputes all of its checksums over all of the bytes that they cover.
    ///
    /// # Errors
    /// What is wrong with the frame: cut short, not TCP, UDP or ICMP, or a checksum that doesn't verify.
    pub fn parse(frame: &[u8]) -> Result<Self, String> {
        let cut = || "the frame is cut short".to_string();
        let array = |at: usize| -> Result<[u8; 6], String> {
            frame.get(at..at + 6).and_then(|mac| mac.try_into().ok()).ok_or_else(cut)
        };
        let word = |at: usize| -> Result<u16, String> {
            frame.get(at..at + 2).map(|word| u16::from_be_bytes([word[0], word[1]])).ok_or_else(cut)
        };
        let mut at = 12;
        let mut tags = Vec::new();
        while matches!(word(at)?, TAG_8021Q | TAG_8021AD) {
            tags.push((word(at)?, word(at + 2)?));
            at += 4;
        }
        let ethertype = word(at)?;
        let packet = frame.get(at + 2..).ok_or_else(cut)?;
        let network = match ethertype {
            0x0800 => ipv4(packet)?,
            0x86dd => ipv6(packet)?,
            other => return Err(format!("ethertype {other:#06x}")),
        };
        let segment = network.segment;
        let sum = pseudo_header(network.source, network.destination, network.protocol, segment.len())
            + ones_complement_sum(segment);
        let be = |at: usize| u16::from_be_bytes([segment[at], segment[at + 1]]);
        let (check, header, flags) = match network.protocol {
            TCP if segment.len() >= 20 => (be(16), (segment[12] >> 4) as usize * 4, segment[13]),
            UDP if segment.len() >= 8 => (be(6), 8, 0),
            // ICMP, and ICMPv6: no ports, and what follows the header is a payload.
            1 | 58 if segment.len() >= 8 => (be(2), 8, 0),
            protocol => return Err(format!("protocol {protocol} with {} bytes", segment.len())),
        };
        let unchecked = network.protocol == UDP && check == 0;
        if !unchecked && fold(sum) != 0xffff {
            return Err(format!("the transport checksum {check:#06x} is wrong: sum {:#06x}", fold(sum)));
        }
        let has_ports = matches!(network.protocol, TCP | UDP);
        let port = |at| if has_ports { be(at) } else { 0 };
        Ok(Self {
            destination_mac: array(0)?,
            source_mac: array(6)?,
            tags,
            source: SocketAddr::new(network.source, port(0)),
            destination: SocketAddr::new(network.destination, port(2)),
            protocol: network.protocol,
            ttl: network.ttl,
            checksum: check,
            flags,
            payload: segment.get(header..).ok_or_else(cut)?.to_vec(),
        })
    }
}

struct Network<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    ttl: u8,
    segment: &'a [u8],
}

fn ipv4(packet: &[u8]) -> Result<Network<'_>, String> {
    let length = packet.first().map_or(0, |byte| (byte & 0xf) as usize * 4);
    let header = packet.get(..length.max(20)).ok_or("the IPv4 header is cut short")?;
    if fold(ones_complement_sum(header)) != 0xffff {
        return Err("the IPv4 header checksum is wrong".to_string());
    }
    let total = u16::from_be_bytes([header[2], header[3]]) as usize;
    let address =
        |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]).into();
    Ok(Network {
        source: address(12),
        destination: address(16),
        protocol: header[9],
        ttl: header[8],
        segment: packet.get(length..total).ok_or("the IPv4 packet is cut short")?,
    })
}

fn ipv6(packet: &[u8]) -> Result<Network<'_>, String> {
    let header = packet.get(..40).ok_or("the IPv6 header is cut short")?;
    let address = |at: usize| {
        let octets: [u8; 16] = header[at..at + 16].try_into().unwrap_or_default();
        Ipv6Addr::from(octets).into()
    };
    let total = 40 + u16::from_be_bytes([header[4], header[5]]) as usize;
    let packet = packet.get(..total).ok_or("the IPv6 packet is cut short")?;
    let mut protocol = header[6];
    let mut at = 40;
    while matches!(protocol, 0 | 43 | 60) {
        let extension = packet.get(at..at + 2).ok_or("an extension header is cut short")?;
        protocol = extension[0];
        at += (extension[1] as usize + 1) * 8;
    }
    Ok(Network {
        source: address(8),
        destination: address(24),
        protocol,
        ttl: header[7],
        segment: packet.get(at..).ok_or("an extension header is cut short")?,
    })
}
