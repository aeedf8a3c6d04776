//! What a frame says, read by slicing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_common::abi::{TCP, UDP};

/// Protocol numbers (IANA).
pub(super) const ICMP: u8 = 1;
pub(super) const ICMP_V6: u8 = 58;

/// Extension headers that are read (RFC 8200, §4), at most so many, each at most so long.
const EXTENSIONS: [u8; 4] = [0, 43, FRAGMENT, 60];
const FRAGMENT: u8 = 44;
const MOST_EXTENSIONS: usize = 4;
const LONGEST_EXTENSION: u8 = 7;

/// What may be done with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Whole,
    /// Not looked into, or a later one.
    Fragment,
    /// A first fragment, with all of its transport header.
    First,
    Other,
    Malformed,
}

/// The link layer: from whom, to whom, by which tags and interface.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Link {
    pub to: [u8; 6],
    pub from: [u8; 6],
    pub ifindex: u32,
    /// The interface's MTU, or the next hop's; 0: unknown.
    pub mtu: u16,
    /// Tag control information, outer first.
    pub tags: Vec<[u8; 2]>,
    /// The outer tag is 802.1ad.
    pub service_tag: bool,
}

impl Link {
    /// Reads it; the ethertype behind the tags, and the network header's offset.
    fn read(frame: &[u8], ifindex: u32, mtu: u16) -> Option<(Self, u16, usize)> {
        let mut tags = Vec::new();
        let mut at = 12;
        let mut ethertype = word(frame, at)?;
        let service_tag = ethertype == 0x88a8;
        while (tags.is_empty() && matches!(ethertype, 0x8100 | 0x88a8))
            || (tags.len() == 1 && ethertype == 0x8100)
        {
            tags.push(frame.get(at + 2..at + 4)?.try_into().ok()?);
            at += 4;
            ethertype = word(frame, at)?;
        }
        let (to, from) = (frame.get(..6)?.try_into().ok()?, frame.get(6..12)?.try_into().ok()?);
        Some((Self { to, from, ifindex, mtu, tags, service_tag }, ethertype, at + 2))
    }

    /// The other way.
    pub(super) fn back(&self) -> Self {
        Self { to: self.from, from: self.to, ..self.clone() }
    }

    /// Its bytes, before a packet of this IP version.
    pub(super) fn bytes(&self, is_v4: bool) -> Vec<u8> {
        let mut bytes = [self.to, self.from].concat();
        for (index, tag) in self.tags.iter().enumerate() {
            let ethertype: u16 = if index == 0 && self.service_tag { 0x88a8 } else { 0x8100 };
            bytes.extend(ethertype.to_be_bytes());
            bytes.extend(tag);
        }
        bytes.extend(if is_v4 { [8, 0] } else { [0x86, 0xdd] });
        bytes
    }
}

/// What a packet's headers say of it as a fragment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    /// The identification's bytes, IPv4's the first two, and where they stand.
    pub id: [u8; 4],
    pub at: usize,
    /// Where it lies in its packet, in units of eight bytes.
    pub place: u16,
    /// There are others behind it.
    pub more: bool,
}

impl Part {
    fn v4(bytes: &[u8]) -> Option<Self> {
        let place = word(bytes, 6)?;
        let id = [bytes[4], bytes[5], 0, 0];
        Some(Self { id, at: 4, place: place & 0x1fff, more: place & 0x2000 != 0 })
    }

    /// By the header at `header`.
    fn v6(bytes: &[u8], header: usize) -> Option<Self> {
        let place = word(bytes, header + 2)?;
        let at = header + 4;
        let id = bytes.get(at..at + 4)?.try_into().ok()?;
        Some(Self { id, at, place: place >> 3, more: place & 1 != 0 })
    }
}

/// Whether a fragment header, at this place, is of a fragment that is all of its packet: no fragment at all.
fn is_all(bytes: &[u8], at: usize) -> bool {
    word(bytes, at + 2).is_some_and(|place| place & 0xfff9 == 0)
}

/// An IP packet in a frame.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    pub link: Link,
    /// From the network header on, padding included.
    pub bytes: Vec<u8>,
    /// Length of the packet itself, as its header says.
    pub total: usize,
    /// Where the transport header begins.
    pub transport: usize,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub ttl: u8,
    pub protocol: u8,
    pub shape: Shape,
    pub part: Option<Part>,
}

impl Packet {
    /// Reads a frame; `None` where it holds no IP packet.
    pub(super) fn read(frame: &[u8], ifindex: u32, mtu: u16) -> Option<Self> {
        let (link, ethertype, at) = Link::read(frame, ifindex, mtu)?;
        let bytes = frame.get(at..)?.to_vec();
        match ethertype {
            0x0800 => Self::v4(link, bytes, false),
            0x86dd => Self::v6(link, bytes, false),
            _ => None,
        }
    }

    /// The same, and of a first fragment what is behind the network header.
    pub(super) fn looked_into(&self) -> Self {
        let (link, bytes) = (self.link.clone(), self.bytes.clone());
        let read = if self.is_v4() { Self::v4(link, bytes, true) } else { Self::v6(link, bytes, true) };
        read.expect("it has been read before")
    }

    fn v4(link: Link, bytes: Vec<u8>, firsts: bool) -> Option<Self> {
        let header = bytes.get(..20)?;
        if header[0] >> 4 != 4 {
            return None;
        }
        let transport = usize::from(header[0] & 15) * 4;
        let total = usize::from(word(&bytes, 2)?);
        let shape = if transport < 20 || total < transport || total > bytes.len() {
            Shape::Malformed
        } else if firsts && word(&bytes, 6)? & 0x3fff == 0x2000 {
            shape(header[9], &bytes[transport..], total - transport, false).of_first()
        } else if word(&bytes, 6)? & 0x3fff != 0 {
            Shape::Fragment
        } else {
            shape(header[9], &bytes[transport..], total - transport, true)
        };
        let part = Part::v4(&bytes).filter(|part| part.more || part.place != 0);
        let (source, destination) = (v4_at(&bytes, 12)?, v4_at(&bytes, 16)?);
        let (ttl, protocol) = (header[8], header[9]);
        Some(Self { link, total, transport, source, destination, ttl, protocol, shape, part, bytes })
    }

    fn v6(link: Link, bytes: Vec<u8>, firsts: bool) -> Option<Self> {
        let header = bytes.get(..40)?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let total = 40 + usize::from(word(&bytes, 4)?);
        let (source, destination, ttl) = (v6_at(&bytes, 8)?, v6_at(&bytes, 24)?, header[7]);
        let mut protocol = header[6];
        let mut transport = 40;
        let mut found = (total > bytes.len()).then_some(Shape::Malformed);
        let mut extensions = 0;
        let (mut part, mut parted, mut all) = (None, false, true);
        while found.is_none() && EXTENSIONS.contains(&protocol) {
            extensions += 1;
            let header = bytes.get(transport..transport + 2);
            match header.filter(|_| extensions <= MOST_EXTENSIONS) {
                _ if protocol == FRAGMENT && !firsts && !is_all(&bytes, transport) => {
                    found = Some(Shape::Fragment);
                }
                // A fragment of a fragment.
                Some(_) if protocol == FRAGMENT && parted => found = Some(Shape::Malformed),
                Some(&[next, _]) if protocol == FRAGMENT => {
                    part = Part::v6(&bytes, transport);
                    let place = word(&bytes, transport + 2).unwrap_or(0);
                    if place & 0xfff8 != 0 {
                        found = Some(Shape::Fragment);
                        continue;
                    }
                    (parted, all) = (true, place & 1 == 0);
                    protocol = next;
                    transport += 8;
                }
                Some(&[next, length]) if length <= LONGEST_EXTENSION => {
                    protocol = next;
                    transport += (usize::from(length) + 1) * 8;
                }
                _ => found = Some(Shape::Malformed),
            }
        }
        let shape = found.unwrap_or_else(|| match total.checked_sub(transport) {
            Some(length) => {
                let shape = shape(protocol, bytes.get(transport..).unwrap_or_default(), length, all);
                if all { shape } else { shape.of_first() }
            }
            None => Shape::Malformed,
        });
        Some(Self { link, total, transport, source, destination, ttl, protocol, shape, part, bytes })
    }

    pub(super) fn is_v4(&self) -> bool {
        self.source.is_ipv4()
    }

    /// Length of IPv4's header.
    pub(super) fn header(&self) -> usize {
        usize::from(self.bytes[0] & 15) * 4
    }

    pub(super) fn is_icmp(&self) -> bool {
        self.protocol == if self.is_v4() { ICMP } else { ICMP_V6 }
    }

    /// From the transport header to the packet's end.
    pub(super) fn segment(&self) -> &[u8] {
        &self.bytes[self.transport..self.total]
    }

    pub(super) fn from(&self) -> SocketAddr {
        SocketAddr::new(self.source, word(self.segment(), 0).unwrap_or(0))
    }

    pub(super) fn to(&self) -> SocketAddr {
        SocketAddr::new(self.destination, word(self.segment(), 2).unwrap_or(0))
    }

    /// TCP's flags; 0 of another protocol.
    pub(super) fn flags(&self) -> Flags {
        Flags(if self.protocol == TCP { self.segment()[13] } else { 0 })
    }

    pub(super) fn sequence(&self) -> u32 {
        number(self.segment(), 4)
    }

    pub(super) fn acknowledged(&self) -> u32 {
        number(self.segment(), 8)
    }

    /// Length of TCP's header.
    pub(super) fn tcp_header(&self) -> usize {
        usize::from(self.segment()[12] >> 4) * 4
    }

    pub(super) fn has_data(&self) -> bool {
        self.segment().len() != self.tcp_header()
    }

    /// The sum of what its transport checksum covers, the checksum included.
    pub(super) fn covered(&self) -> u64 {
        let mut segment = self.segment();
        if self.protocol == UDP {
            segment = &segment[..usize::from(word(segment, 4).unwrap_or(0)).min(segment.len())];
        }
        let pseudo = octets(self.source).len() as u64 > 0 && self.protocol != ICMP;
        let ends = if pseudo {
            sum(&octets(self.source))
                + sum(&octets(self.destination))
                + u64::from(self.protocol)
                + segment.len() as u64
        } else {
            0
        };
        ends + sum(segment)
    }
}

/// TCP's flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flags(pub u8);

impl Flags {
    pub(super) const fn fin(self) -> bool {
        self.0 & 1 != 0
    }
    pub(super) const fn syn(self) -> bool {
        self.0 & 2 != 0
    }
    pub(super) const fn rst(self) -> bool {
        self.0 & 4 != 0
    }
    pub(super) const fn ack(self) -> bool {
        self.0 & 16 != 0
    }
    /// A connection's first segment.
    pub(super) const fn opens(self) -> bool {
        self.syn() && !self.ack() && !self.rst() && !self.fin()
    }
    /// The answer to it.
    pub(super) const fn answers(self) -> bool {
        self.syn() && self.ack() && !self.rst() && !self.fin()
    }
}

impl Shape {
    /// The shape of a first fragment whose transport header has this one.
    fn of_first(self) -> Self {
        if self == Self::Whole { Self::First } else { self }
    }
}

/// The shape of a packet with so many bytes behind its network header, or where that is not `all`, of a part of one.
fn shape(protocol: u8, behind: &[u8], length: usize, all: bool) -> Shape {
    let fits = match protocol {
        // What is behind the packet's end may be read, but not counted.
        TCP => behind
            .get(12)
            .map(|offset| usize::from(offset >> 4) * 4)
            .is_some_and(|header| (20..=length).contains(&header)),
        UDP => word(behind, 4).is_some_and(|datagram| {
            let datagram = usize::from(datagram);
            datagram >= 8 && length >= if all { datagram } else { 8 }
        }),
        _ => return Shape::Other,
    };
    if fits { Shape::Whole } else { Shape::Malformed }
}

/// A packet as an ICMP error quotes it: at least eight bytes of its transport header are there.
pub(super) struct Quoted {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub protocol: u8,
    /// Where its network and transport headers begin in the packet that quotes.
    pub at: usize,
    pub transport: usize,
}

impl Quoted {
    /// Reads what an ICMP message quotes.
    pub(super) fn read(message: &Packet) -> Option<Self> {
        let bytes = &message.bytes;
        let at = message.transport + 8;
        let (source, destination, protocol, transport) =
            if message.is_v4() { Self::v4(bytes, at)? } else { Self::v6(bytes, at)? };
        if transport + 8 > message.total {
            return None;
        }
        let source = SocketAddr::new(source, word(bytes, transport)?);
        let destination = SocketAddr::new(destination, word(bytes, transport + 2)?);
        Some(Self { source, destination, protocol, at, transport })
    }

    fn v4(bytes: &[u8], at: usize) -> Option<(IpAddr, IpAddr, u8, usize)> {
        let header = bytes.get(at..at + 20)?;
        let length = usize::from(header[0] & 15) * 4;
        let first = word(header, 6)? & 0x1fff == 0;
        (header[0] >> 4 == 4 && length >= 20 && first).then_some(())?;
        Some((v4_at(header, 12)?, v4_at(header, 16)?, header[9], at + length))
    }

    fn v6(bytes: &[u8], at: usize) -> Option<(IpAddr, IpAddr, u8, usize)> {
        let header = bytes.get(at..at + 40)?;
        (header[0] >> 4 == 6).then_some(())?;
        let mut protocol = header[6];
        let mut transport = at + 40;
        let mut extensions = 0;
        while EXTENSIONS.contains(&protocol) {
            let extension = bytes.get(transport..transport + 4)?;
            extensions += 1;
            if extensions > MOST_EXTENSIONS || extension[1] > LONGEST_EXTENSION {
                return None;
            }
            if protocol == FRAGMENT {
                (word(extension, 2)? & 0xfff8 == 0).then_some(())?;
                transport += 8;
            } else {
                transport += (usize::from(extension[1]) + 1) * 8;
            }
            protocol = extension[0];
        }
        Some((v6_at(header, 8)?, v6_at(header, 24)?, protocol, transport))
    }
}

/// Two bytes, the first one first.
pub(super) fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Four bytes that are known to be there.
fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn v4_at(bytes: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(Ipv4Addr::from(octets).into())
}

fn v6_at(bytes: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
    Some(Ipv6Addr::from(octets).into())
}

/// An address as it is on the wire.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The sum of words of two bytes, an odd last one padded with 0 (RFC 1071).
pub(super) fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0))).sum()
}

/// A sum in two bytes.
pub(super) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
