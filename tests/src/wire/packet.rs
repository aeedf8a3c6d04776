//! IP packets made by hand, and read: TCP, UDP and ICMP echo over IPv4 and IPv6.

use std::net::{IpAddr, SocketAddr};

/// TCP's FIN.
pub const FIN: u8 = 0x01;
/// TCP's SYN.
pub const SYN: u8 = 0x02;
/// TCP's RST.
pub const RST: u8 = 0x04;
/// TCP's PSH.
pub const PSH: u8 = 0x08;
/// TCP's ACK.
pub const ACK: u8 = 0x10;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const TTL: u8 = 64;

/// A TCP or UDP packet as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address and port.
    pub source: SocketAddr,
    /// Destination address and port.
    pub destination: SocketAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Bytes of IPv4 options or IPv6 extension headers.
    pub options: usize,
    /// TCP's sequence number, acknowledgement and flags; none: UDP.
    pub tcp: Option<(u32, u32, u8)>,
    /// What it carries.
    pub payload: Vec<u8>,
    /// Whether the checksums (IPv4's header's, and the transport's where it has one) are right, by full
    /// recomputation.
    pub intact: bool,
}

impl Packet {
    /// Reads a packet from its IP header on; `None` for anything but whole TCP and UDP.
    pub fn parse(packet: &[u8]) -> Option<Packet> {
        let v4 = packet.first()? >> 4 == 4;
        let (header, length, protocol, ttl) = if v4 {
            if word(packet, 6)? & 0x3fff != 0 {
                return None;
            }
            let header = usize::from(packet[0] & 15) * 4;
            (header, usize::from(word(packet, 2)?), *packet.get(9)?, *packet.get(8)?)
        } else {
            let (header, protocol) = behind_extensions(packet)?;
            (header, 40 + usize::from(word(packet, 4)?), protocol, *packet.get(7)?)
        };
        let (from, to): (IpAddr, IpAddr) = if v4 {
            (octets::<4>(packet, 12)?.into(), octets::<4>(packet, 16)?.into())
        } else {
            (octets::<16>(packet, 8)?.into(), octets::<16>(packet, 24)?.into())
        };
        // What is beyond its length is the link's padding.
        let segment = packet.get(header..length)?;
        let number = |at: usize| octets::<4>(segment, at).map(u32::from_be_bytes);
        let (tcp, data) = match protocol {
            TCP => {
                (Some((number(4)?, number(8)?, *segment.get(13)?)), usize::from(*segment.get(12)? >> 4) * 4)
            }
            UDP => (None, 8),
            _ => return None,
        };
        let unchecked = protocol == UDP && word(segment, 6)? == 0;
        let sound = unchecked || sum(&[&pseudo(from, to, protocol, segment.len()), segment]) == 0xffff;
        Some(Packet {
            source: SocketAddr::new(from, word(segment, 0)?),
            destination: SocketAddr::new(to, word(segment, 2)?),
            ttl,
            options: header - if v4 { 20 } else { 40 },
            tcp,
            payload: segment.get(data..)?.to_vec(),
            intact: sound && (!v4 || sum(&[&packet[..header]]) == 0xffff),
        })
    }
}

/// A UDP packet.
///
/// # Panics
/// When the addresses are of different families.
pub fn udp(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut segment = ports(source, destination);
    segment.extend(be16(8 + payload.len()));
    segment.extend([0, 0]);
    segment.extend(payload);
    transport(source.ip(), destination.ip(), UDP, segment, 6)
}

/// A TCP segment without options.
///
/// # Panics
/// When the addresses are of different families.
pub fn tcp(
    source: SocketAddr,
    destination: SocketAddr,
    (seq, ack, flags): (u32, u32, u8),
    payload: &[u8],
) -> Vec<u8> {
    let mut segment = ports(source, destination);
    segment.extend(seq.to_be_bytes());
    segment.extend(ack.to_be_bytes());
    segment.extend([5 << 4, flags]);
    segment.extend(0xfaf0_u16.to_be_bytes());
    segment.extend([0; 4]);
    segment.extend(payload);
    transport(source.ip(), destination.ip(), TCP, segment, 16)
}

/// An ICMP or ICMPv6 echo request.
///
/// # Panics
/// When the addresses are of different families.
pub fn icmp_echo(source: IpAddr, destination: IpAddr) -> Vec<u8> {
    if source.is_ipv6() {
        return transport(source, destination, ICMPV6, vec![128, 0, 0, 0, 0, 1, 0, 1], 2);
    }
    let mut message = vec![8, 0, 0, 0, 0, 1, 0, 1];
    let check = !sum(&[&message]);
    message[2..4].copy_from_slice(&check.to_be_bytes());
    ip(source, destination, ICMP, &message)
}

/// A packet's payload as a later fragment, with more to come (IPv4: a packet of [`udp`] or [`tcp`]; IPv6:
/// likewise, with a fragment header).
pub fn fragment(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 {
        packet[6..8].copy_from_slice(&[0x20, 100]);
        packet[10..12].fill(0);
        let check = !sum(&[&packet[..20]]);
        packet[10..12].copy_from_slice(&check.to_be_bytes());
        return packet;
    }
    let header = [packet[6], 0, 3, 0x21, 0, 0, 0, 7];
    packet[6] = 44;
    packet.splice(40..40, header);
    let length = be16(packet.len() - 40);
    packet[4..6].copy_from_slice(&length);
    packet
}

fn transport(from: IpAddr, to: IpAddr, protocol: u8, mut segment: Vec<u8>, check_at: usize) -> Vec<u8> {
    let check = !sum(&[&pseudo(from, to, protocol, segment.len()), &segment]);
    let check = if check == 0 && protocol == UDP { 0xffff } else { check };
    segment[check_at..check_at + 2].copy_from_slice(&check.to_be_bytes());
    ip(from, to, protocol, &segment)
}

fn ip(from: IpAddr, to: IpAddr, protocol: u8, segment: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            packet.extend([0x45, 0]);
            packet.extend(be16(20 + segment.len()));
            packet.extend([0, 7, 0, 0, TTL, protocol, 0, 0]);
            packet.extend(from.octets());
            packet.extend(to.octets());
            let check = !sum(&[&packet]);
            packet[10..12].copy_from_slice(&check.to_be_bytes());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(be16(segment.len()));
            packet.extend([protocol, TTL]);
            packet.extend(from.octets());
            packet.extend(to.octets());
        }
        _ => panic!("{from} and {to} are not of one family"),
    }
    packet.extend(segment);
    packet
}

/// Offset and protocol of what follows the extension headers of an IPv6 packet.
fn behind_extensions(packet: &[u8]) -> Option<(usize, u8)> {
    let (mut at, mut next) = (40, *packet.get(6)?);
    while matches!(next, 0 | 43 | 60) {
        next = *packet.get(at)?;
        at += (usize::from(*packet.get(at + 1)?) + 1) * 8;
    }
    Some((at, next))
}

fn pseudo(from: IpAddr, to: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    let mut header = Vec::new();
    for address in [from, to] {
        match address {
            IpAddr::V4(v4) => header.extend(v4.octets()),
            IpAddr::V6(v6) => header.extend(v6.octets()),
        }
    }
    header.extend([0, protocol]);
    header.extend(be16(length));
    header
}

/// The one's complement sum of 16-bit words; every part but the last has an even length.
fn sum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let total: u32 =
        words.map(|word| u32::from(word[0]) << 8 | word.get(1).map_or(0, |b| u32::from(*b))).sum();
    let once = (total & 0xffff) + (total >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

fn ports(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat()
}

fn be16(length: usize) -> [u8; 2] {
    u16::try_from(length).expect("a packet of ours is shorter than 64 KiB").to_be_bytes()
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    octets::<2>(bytes, at).map(u16::from_be_bytes)
}

fn octets<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs() -> [(SocketAddr, SocketAddr); 2] {
        [("192.0.2.1:5", "192.0.2.2:6"), ("[2001:db8::1]:5", "[2001:db8::2]:6")]
            .map(|(from, to)| (from.parse().unwrap(), to.parse().unwrap()))
    }

    #[test]
    fn a_packet_is_read_as_it_was_written_and_a_changed_byte_is_noticed() {
        for (from, to) in pairs() {
            let written = tcp(from, to, (1, 2, SYN | ACK), b"odd");
            let read = Packet::parse(&written).unwrap();
            assert_eq!((read.source, read.destination, read.ttl, read.options), (from, to, 64, 0));
            assert_eq!((read.tcp, read.payload.as_slice()), (Some((1, 2, SYN | ACK)), b"odd".as_slice()));
            assert!(read.intact);
            assert!(Packet::parse(&udp(from, to, b"hello")).unwrap().intact);
            // An IPv6 hop limit, byte 7, is under no checksum.
            for at in 8..written.len() {
                let mut broken = written.clone();
                broken[at] ^= 0x10;
                let noticed = Packet::parse(&broken).is_none_or(|packet| !packet.intact);
                assert!(noticed, "byte {at}");
            }
        }
    }

    #[test]
    fn fragments_and_echoes_are_no_whole_packets() {
        for (from, to) in pairs() {
            assert_eq!(Packet::parse(&fragment(&udp(from, to, b"12345678"))), None);
            assert_eq!(Packet::parse(&icmp_echo(from.ip(), to.ip())), None);
        }
    }
}
