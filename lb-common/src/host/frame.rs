//! Frames as clients and backends send them, built byte by byte.

use std::{
    net::{IpAddr, SocketAddr},
    vec::Vec,
};

use crate::abi::{TCP, UDP};

/// TCP flag.
pub const FIN: u8 = 0x01;
/// TCP flag.
pub const SYN: u8 = 0x02;
/// TCP flag.
pub const RST: u8 = 0x04;
/// TCP flag.
pub const ACK: u8 = 0x10;

/// Ethertype of an IEEE 802.1Q tag.
pub const TAG_8021Q: u16 = 0x8100;
/// Ethertype of an IEEE 802.1ad service tag.
pub const TAG_8021AD: u16 = 0x88a8;

/// The transport layer of a [`Frame`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP: flags, sequence number, acknowledgement number, options (a multiple of four bytes, at most 40).
    Tcp {
        /// Flags.
        flags: u8,
        /// Sequence number.
        seq: u32,
        /// Acknowledgement number.
        ack: u32,
        /// Options.
        options: Vec<u8>,
    },
    /// UDP, with a checksum or with 0 in its place.
    Udp {
        /// Whether there is a checksum.
        checksum: bool,
    },
    /// ICMP, or ICMPv6 where the addresses are: an eight-byte header, and the payload.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// The header's last four bytes: identifier and sequence number, an MTU, or nothing.
        rest: [u8; 4],
    },
    /// Anything else: the payload follows the network header.
    Other {
        /// IP protocol.
        protocol: u8,
    },
}

/// A frame to build. All fields are what a test may want to change; checksums and lengths follow from them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Destination MAC address.
    pub destination_mac: [u8; 6],
    /// Source MAC address.
    pub source_mac: [u8; 6],
    /// VLAN tags, outer first: ethertype and tag control information.
    pub tags: Vec<(u16, u16)>,
    /// Source; of the destination's family.
    pub source: SocketAddr,
    /// Destination.
    pub destination: SocketAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// IPv4 options: a multiple of four bytes, at most 40.
    pub ip_options: Vec<u8>,
    /// IPv4: identification.
    pub id: u16,
    /// IPv4: flags and fragment offset, as one word in host order.
    pub fragment: u16,
    /// IPv6 extension headers, in order: number, and the content after the first two bytes (6 + 8n bytes).
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// Transport layer.
    pub transport: Transport,
    /// Payload.
    pub payload: Vec<u8>,
    /// Bytes after the packet, such as Ethernet's padding.
    pub padding: usize,
}

impl Frame {
    /// A TCP segment without payload.
    #[must_use]
    pub fn tcp(source: SocketAddr, destination: SocketAddr, flags: u8) -> Self {
        let transport = Transport::Tcp { flags, seq: 1000, ack: 0, options: Vec::new() };
        Self::new(source, destination, transport)
    }

    /// A UDP datagram without payload.
    #[must_use]
    pub fn udp(source: SocketAddr, destination: SocketAddr) -> Self {
        Self::new(source, destination, Transport::Udp { checksum: true })
    }

    /// A packet of another protocol without payload.
    #[must_use]
    pub fn other(source: IpAddr, destination: IpAddr, protocol: u8) -> Self {
        Self::new((source, 0).into(), (destination, 0).into(), Transport::Other { protocol })
    }

    /// An ICMP or ICMPv6 message without payload.
    #[must_use]
    pub fn icmp(source: IpAddr, destination: IpAddr, kind: u8, code: u8, rest: [u8; 4]) -> Self {
        Self::new((source, 0).into(), (destination, 0).into(), Transport::Icmp { kind, code, rest })
    }

    fn new(source: SocketAddr, destination: SocketAddr, transport: Transport) -> Self {
        Self {
            destination_mac: [0x02, 0, 0, 0, 0, 0x01],
            source_mac: [0x02, 0, 0, 0, 0, 0x02],
            tags: Vec::new(),
            source,
            destination,
            ttl: 64,
            ip_options: Vec::new(),
            id: 0x1234,
            fragment: 0,
            extensions: Vec::new(),
            transport,
            payload: Vec::new(),
            padding: 0,
        }
    }

    /// With a payload.
    #[must_use]
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// With a TTL or hop limit.
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// With TCP sequence and acknowledgement numbers; other transports stay as they are.
    #[must_use]
    pub fn numbers(mut self, new_seq: u32, new_ack: u32) -> Self {
        if let Transport::Tcp { seq, ack, .. } = &mut self.transport {
            (*seq, *ack) = (new_seq, new_ack);
        }
        self
    }

    /// With VLAN tags.
    #[must_use]
    pub fn tags(mut self, tags: &[(u16, u16)]) -> Self {
        self.tags = tags.to_vec();
        self
    }

    /// From and to other MAC addresses.
    #[must_use]
    pub fn macs(mut self, source: [u8; 6], destination: [u8; 6]) -> Self {
        (self.source_mac, self.destination_mac) = (source, destination);
        self
    }

    /// With IPv4 options.
    #[must_use]
    pub fn ip_options(mut self, options: &[u8]) -> Self {
        self.ip_options = options.to_vec();
        self
    }

    /// With another IPv6 extension header: number and length of its content in bytes (6 + 8n).
    #[must_use]
    pub fn extension(mut self, number: u8, length: usize) -> Self {
        // PadN over the whole content, where it is a header with options.
        let mut content = std::vec![0; length];
        content[..2].copy_from_slice(&[1, (length - 2) as u8]);
        self.extensions.push((number, content));
        self
    }

    /// Without a UDP checksum.
    #[must_use]
    pub fn without_checksum(mut self) -> Self {
        self.transport = Transport::Udp { checksum: false };
        self
    }

    /// Offset of the network header in the built frame.
    #[must_use]
    pub fn network_offset(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    /// Offset of the transport header in the built frame.
    #[must_use]
    pub fn transport_offset(&self) -> usize {
        let header = match self.source {
            SocketAddr::V4(_) => 20 + self.ip_options.len(),
            SocketAddr::V6(_) => {
                40 + self.extensions.iter().map(|(_, content)| content.len() + 2).sum::<usize>()
            }
        };
        self.network_offset() + header
    }

    /// The frame's bytes.
    ///
    /// # Panics
    /// Where source and destination are of different families.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let segment = self.segment();
        let mut frame = Vec::new();
        frame.extend(self.destination_mac);
        frame.extend(self.source_mac);
        for (ethertype, control) in &self.tags {
            frame.extend(ethertype.to_be_bytes());
            frame.extend(control.to_be_bytes());
        }
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend(0x0800_u16.to_be_bytes());
                frame.extend(self.ipv4(source.octets(), destination.octets(), segment.len()));
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                frame.extend(0x86dd_u16.to_be_bytes());
                frame.extend(self.ipv6(source.octets(), destination.octets(), segment.len()));
            }
            (source, destination) => panic!("{source} and {destination} are of different families"),
        }
        frame.extend(segment);
        frame.extend(core::iter::repeat_n(0, self.padding));
        frame
    }

    pub(super) fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Tcp { .. } => TCP,
            Transport::Udp { .. } => UDP,
            Transport::Icmp { .. } if self.source.is_ipv4() => 1,
            Transport::Icmp { .. } => 58,
            Transport::Other { protocol } => protocol,
        }
    }

    fn ipv4(&self, source: [u8; 4], destination: [u8; 4], segment: usize) -> Vec<u8> {
        let length = 20 + self.ip_options.len();
        let mut header = Vec::from([0x40 | (length / 4) as u8, 0]);
        header.extend(((length + segment) as u16).to_be_bytes());
        header.extend(self.id.to_be_bytes());
        header.extend(self.fragment.to_be_bytes());
        header.extend([self.ttl, self.protocol(), 0, 0]);
        header.extend(source);
        header.extend(destination);
        header.extend(&self.ip_options);
        let check = checksum(&header);
        header[10..12].copy_from_slice(&check.to_be_bytes());
        header
    }

    fn ipv6(&self, source: [u8; 16], destination: [u8; 16], segment: usize) -> Vec<u8> {
        let length: usize = self.extensions.iter().map(|(_, content)| content.len() + 2).sum();
        let mut numbers = self.extensions.iter().map(|(number, _)| *number).chain([self.protocol()]);
        let mut header = Vec::from([0x60, 0x12, 0x34, 0x56]);
        header.extend(((length + segment) as u16).to_be_bytes());
        header.extend([numbers.next().unwrap_or(59), self.ttl]);
        header.extend(source);
        header.extend(destination);
        for ((number, content), following) in self.extensions.iter().zip(numbers) {
            // A fragment header's second byte is reserved, not a length.
            header.extend([following, if *number == 44 { 0 } else { (content.len() / 8) as u8 }]);
            header.extend(content);
        }
        header
    }

    /// The transport header and the payload.
    fn segment(&self) -> Vec<u8> {
        let mut segment = Vec::new();
        if matches!(self.transport, Transport::Tcp { .. } | Transport::Udp { .. }) {
            segment.extend(self.source.port().to_be_bytes());
            segment.extend(self.destination.port().to_be_bytes());
        }
        let place = match &self.transport {
            Transport::Tcp { flags, seq, ack, options } => {
                segment.extend(seq.to_be_bytes());
                segment.extend(ack.to_be_bytes());
                let data_offset = ((5 + options.len() / 4) * 16) as u8;
                segment.extend([data_offset, *flags, 0xff, 0xff, 0, 0, 0, 0]);
                segment.extend(options);
                Some(16)
            }
            Transport::Udp { checksum } => {
                segment.extend(((8 + self.payload.len()) as u16).to_be_bytes());
                segment.extend([0, 0]);
                checksum.then_some(6)
            }
            Transport::Icmp { kind, code, rest } => {
                segment.extend([*kind, *code, 0, 0]);
                segment.extend(rest);
                Some(2)
            }
            Transport::Other { .. } => None,
        };
        segment.extend(&self.payload);
        if let Some(place) = place {
            let sum = pseudo_header(self.source.ip(), self.destination.ip(), self.protocol(), segment.len());
            let check = !fold(sum + ones_complement_sum(&segment));
            let check = if check == 0 && self.protocol() == UDP { 0xffff } else { check };
            segment[place..place + 2].copy_from_slice(&check.to_be_bytes());
        }
        segment
    }
}

/// The sum of the pseudo header (RFC 9293, §3.1; RFC 8200, §8.1), not folded. ICMP over IPv4 has none (RFC 792).
pub(super) fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u64 {
    if protocol == 1 {
        return 0;
    }
    let address = |address: IpAddr| match address {
        IpAddr::V4(address) => ones_complement_sum(&address.octets()),
        IpAddr::V6(address) => ones_complement_sum(&address.octets()),
    };
    address(source) + address(destination) + protocol as u64 + length as u64
}

/// The sum of big-endian 16-bit words, an odd last byte padded with 0 (RFC 1071), not folded.
#[must_use]
pub fn ones_complement_sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|word| (word[0] as u64) << 8 | word.get(1).copied().unwrap_or_default() as u64).sum()
}

/// The Internet checksum of bytes.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    !fold(ones_complement_sum(bytes))
}

/// Folds a sum into 16 bits.
pub(super) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
