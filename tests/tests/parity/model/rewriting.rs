//! Packets rewritten, every checksum computed over all that it covers, before and after: what came with an error
//! leaves with the same one.

use std::net::{IpAddr, SocketAddr};

use lb_common::abi::{TCP, UDP};

use super::packet::{Packet, Quoted, fold, octets, sum, word};

/// A checksum after what it covers has gone from one sum to another.
fn carried(check: u16, before: u64, after: u64) -> u16 {
    !fold(u64::from(!check) + u64::from(!fold(before)) + after)
}

/// The same of UDP, which says 0 where it has none.
fn carried_udp(check: u16, before: u64, after: u64) -> u16 {
    match (check, carried(check, before, after)) {
        (0, _) => 0,
        (_, 0) => 0xffff,
        (_, new) => new,
    }
}

fn put(bytes: &mut [u8], at: usize, new: &[u8]) {
    bytes[at..at + new.len()].copy_from_slice(new);
}

/// Writes both addresses of the network header at `at`, and IPv4's checksum; `ttl` too, where it changes.
fn network(bytes: &mut [u8], at: usize, source: IpAddr, destination: IpAddr, ttl: Option<u8>) {
    let is_v4 = source.is_ipv4();
    let length = if is_v4 { usize::from(bytes[at] & 15) * 4 } else { 40 };
    let before = sum(&bytes[at..at + length]);
    let (addresses, ttl_at) = if is_v4 { (12, 8) } else { (8, 7) };
    put(bytes, at + addresses, &[octets(source), octets(destination)].concat());
    if let Some(ttl) = ttl {
        bytes[at + ttl_at] = ttl;
    }
    if is_v4 {
        let after = sum(&bytes[at..at + length]);
        let check = carried(word(bytes, at + 10).expect("a header"), before, after);
        put(bytes, at + 10, &check.to_be_bytes());
    }
}

fn ends(source: IpAddr, destination: IpAddr) -> u64 {
    sum(&octets(source)) + sum(&octets(destination))
}

/// A TCP or UDP packet between two other ends, one hop on.
pub(super) fn forwarded(packet: &Packet, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut bytes = packet.bytes.clone();
    let (start, end) = (packet.transport, packet.total);
    let before = ends(packet.source, packet.destination) + sum(&bytes[start..end]);
    put(&mut bytes, start, &source.port().to_be_bytes());
    put(&mut bytes, start + 2, &destination.port().to_be_bytes());
    let after = ends(source.ip(), destination.ip()) + sum(&bytes[start..end]);
    let at = start + if packet.protocol == TCP { 16 } else { 6 };
    let check = word(&bytes, at).expect("a whole header");
    let check = if packet.protocol == UDP {
        carried_udp(check, before, after)
    } else {
        carried(check, before, after)
    };
    put(&mut bytes, at, &check.to_be_bytes());
    network(&mut bytes, 0, source.ip(), destination.ip(), Some(packet.ttl - 1));
    bytes
}

/// An ICMP error between two other ends, one hop on, about a packet between two other ends.
pub(super) fn error(
    packet: &Packet,
    quoted: &Quoted,
    ends_now: (IpAddr, IpAddr),
    quoted_now: (SocketAddr, SocketAddr),
) -> Vec<u8> {
    let mut bytes = packet.bytes.clone();
    let (start, end) = (packet.transport, packet.total);
    let pseudo = |source, destination| if packet.is_v4() { 0 } else { ends(source, destination) };
    let before = pseudo(packet.source, packet.destination) + sum(&bytes[start..end]);
    let at = quoted.transport;
    let inner_before = ends(quoted.source.ip(), quoted.destination.ip()) + sum(&bytes[at..at + 4]);
    network(&mut bytes, quoted.at, quoted_now.0.ip(), quoted_now.1.ip(), None);
    put(&mut bytes, at, &quoted_now.0.port().to_be_bytes());
    put(&mut bytes, at + 2, &quoted_now.1.port().to_be_bytes());
    let inner_after = ends(quoted_now.0.ip(), quoted_now.1.ip()) + sum(&bytes[at..at + 4]);
    if quoted.protocol == TCP {
        // It may not be quoted that far.
        if at + 18 <= end {
            let check = carried(word(&bytes, at + 16).expect("within"), inner_before, inner_after);
            put(&mut bytes, at + 16, &check.to_be_bytes());
        }
    } else {
        let check = carried_udp(word(&bytes, at + 6).expect("within"), inner_before, inner_after);
        put(&mut bytes, at + 6, &check.to_be_bytes());
    }
    let after = pseudo(ends_now.0, ends_now.1) + sum(&bytes[start..end]);
    let check = carried(word(&bytes, start + 2).expect("a header"), before, after);
    put(&mut bytes, start + 2, &check.to_be_bytes());
    network(&mut bytes, 0, ends_now.0, ends_now.1, Some(packet.ttl - 1));
    bytes
}

/// TTL of the gateway's own packets.
const OWN_TTL: u8 = 64;

/// The answer to an echo request.
pub(super) fn echo(packet: &Packet) -> Vec<u8> {
    let mut bytes = packet.bytes.clone();
    // What says that it is a request is read even where the packet ends before it.
    let (start, end) = (packet.transport, packet.total.max(packet.transport + 2));
    let before = sum(&bytes[start..end]);
    put(&mut bytes, start, &[if packet.is_v4() { 0 } else { 129 }, 0]);
    let after = sum(&bytes[start..end]);
    let check = carried(word(&bytes, start + 2).expect("a header"), before, after);
    put(&mut bytes, start + 2, &check.to_be_bytes());
    network(&mut bytes, 0, packet.destination, packet.source, Some(OWN_TTL));
    bytes
}

/// A packet of the gateway's own, whose checksum lies at `check` of its segment.
pub(super) fn own(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    class: u8,
    mut segment: Vec<u8>,
    check: usize,
) -> Vec<u8> {
    let pseudo = if protocol == super::packet::ICMP {
        0
    } else {
        ends(source, destination) + u64::from(protocol) + segment.len() as u64
    };
    let value = !fold(pseudo + sum(&segment));
    put(&mut segment, check, &value.to_be_bytes());
    let length = segment.len() as u16;
    let mut header = if source.is_ipv4() {
        let [high, low] = (20 + length).to_be_bytes();
        vec![0x45, class, high, low, 0, 0, 0x40, 0, OWN_TTL, protocol, 0, 0]
    } else {
        let [high, low] = length.to_be_bytes();
        vec![0x60 | class >> 4, class << 4, 0, 0, high, low, protocol, OWN_TTL]
    };
    header.extend(octets(source));
    header.extend(octets(destination));
    if source.is_ipv4() {
        let value = !fold(sum(&header));
        put(&mut header, 10, &value.to_be_bytes());
    }
    header.extend(segment);
    header
}
