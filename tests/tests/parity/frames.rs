//! The services of every world, and the frames that clients, backends and strangers send.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    abi::{TCP, UDP},
    host::{ACK, FIN, Frame, RST, SYN, Seen, TAG_8021AD, TAG_8021Q, Transport, fragment, fragments},
};

use crate::history::{Profile, Random};

/// Which rings a service has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rings {
    /// One.
    Main,
    /// The fallback ring alone.
    Fallback,
    /// None: no backend is usable.
    None,
}

/// A service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Service {
    vip: &'static str,
    /// IP protocol.
    pub(crate) protocol: u8,
    /// Backends, at most 4; those of two services with the same first port are the same.
    pub(crate) backends: u16,
    first_port: u16,
    /// Rings.
    pub(crate) rings: Rings,
    /// The VIP is an address of the node.
    pub(crate) node_address: bool,
}

const fn service(vip: &'static str, protocol: u8, backends: u16, first_port: u16) -> Service {
    Service { vip, protocol, backends, first_port, rings: Rings::Main, node_address: false }
}

/// The services of every world, by their index. The second last's VIP is a SNAT address too.
pub(crate) const SERVICES: [Service; 8] = [
    service("203.0.113.10:80", TCP, 4, 8080),
    service("203.0.113.10:53", UDP, 4, 5353),
    service("[2001:db8::10]:80", TCP, 4, 8080),
    service("[2001:db8::10]:53", UDP, 4, 5353),
    Service { node_address: true, ..service("203.0.113.11:80", TCP, 2, 8080) },
    Service { rings: Rings::None, ..service("203.0.113.12:81", TCP, 0, 8081) },
    Service { node_address: true, ..service("192.168.0.2:443", TCP, 2, 8443) },
    Service { rings: Rings::Fallback, ..service("203.0.113.13:82", TCP, 2, 8082) },
];

impl Service {
    /// VIP and port.
    pub(crate) fn vip(&self) -> SocketAddr {
        self.vip.parse().expect("an address")
    }

    /// A backend's address and port.
    pub(crate) fn backend(&self, number: u16) -> SocketAddr {
        let ip = if self.vip().is_ipv4() {
            IpAddr::from([10, 0, 0, 1 + number as u8])
        } else {
            IpAddr::from([0xfd00, 1, 0, 0, 0, 0, 0, 1 + number])
        };
        SocketAddr::new(ip, self.first_port)
    }

    fn members(&self, profile: Profile) -> u32 {
        match (self.rings, profile) {
            (Rings::None, _) => 0,
            (_, profile) if profile.is_short_of_ports() => 1,
            _ => u32::from(self.backends),
        }
    }
}

/// Members of a world: indices 1 to this.
pub(crate) fn members(profile: Profile) -> u32 {
    SERVICES.iter().map(|service| service.members(profile)).sum()
}

/// Backends of a world: indices 1 to this.
pub(crate) fn backends(profile: Profile) -> usize {
    // The fifth service's are the first one's.
    (members(profile) - SERVICES[4].members(profile)) as usize
}

/// Members with IPv6 addresses.
pub(crate) fn members_v6(profile: Profile) -> std::ops::Range<u32> {
    let before: u32 = SERVICES[..2].iter().map(|service| service.members(profile)).sum();
    let these: u32 = SERVICES[2..4].iter().map(|service| service.members(profile)).sum();
    1 + before..1 + before + these
}

/// An address.
pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A MAC address.
pub(crate) const fn mac(last: u8) -> [u8; 6] {
    [0x02, 0, 0, 0, 0, last]
}

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The client.
    Client,
    /// The backend.
    Backend,
}

/// A flow as its two ends see it.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    protocol: u8,
    /// Client.
    pub(crate) client: SocketAddr,
    vip: SocketAddr,
    /// The interface that the client's packets come in on.
    pub(crate) ingress: u32,
    tags: Vec<(u16, u16)>,
    macs: ([u8; 6], [u8; 6]),
    server_isn: u32,
    /// Backend and SNAT address, once a packet has come out.
    pub(crate) path: Option<(SocketAddr, SocketAddr)>,
    /// How far the handshake is: 0 opened, 1 answered, 2 done.
    pub(crate) phase: u8,
}

impl Flow {
    /// A new flow to one of the services. Clients are few, so that one comes back now and then.
    pub(crate) fn random(random: &mut Random, profile: Profile, ingress: u32) -> Self {
        let service = if profile.is_short_of_ports() {
            SERVICES[random.one_of([0, 1, 1, 3, 3, 3])]
        } else {
            SERVICES[random.one_of([0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 5, 6, 7])]
        };
        let vip = service.vip();
        let client = if vip.is_ipv4() {
            IpAddr::from([198, 51, 100, 1 + random.below(6) as u8])
        } else {
            IpAddr::from([0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 1 + random.below(6) as u16])
        };
        Self {
            protocol: service.protocol,
            client: SocketAddr::new(client, 40_000 + random.below(200) as u16),
            vip,
            ingress,
            tags: tags(random),
            macs: (mac(0x20 | random.below(8) as u8), mac(1)),
            server_isn: random.next() as u32,
            path: None,
            phase: 0,
        }
    }

    /// A packet of this flow, now and then in fragments; of UDP the flags say nothing. A backend's needs a path.
    pub(crate) fn frames(&self, random: &mut Random, side: Side, flags: u8) -> Vec<Vec<u8>> {
        let (source, destination) = match (side, self.path) {
            (Side::Backend, Some((backend, snat))) => (backend, snat),
            _ => (self.client, self.vip),
        };
        let mut frame = if self.protocol == TCP {
            Frame::tcp(source, destination, flags)
        } else {
            Frame::udp(source, destination)
        };
        let wrong = u32::from(random.chance(6));
        frame = match side {
            Side::Client => frame.numbers(1000, self.server_isn.wrapping_add(1 + wrong)),
            Side::Backend => frame.numbers(self.server_isn, 1001),
        };
        if side == Side::Client {
            frame.tags.clone_from(&self.tags);
            (frame.source_mac, frame.destination_mac) = self.macs;
        } else {
            frame.tags = tags(random);
        }
        decorate(random, &mut frame);
        if flags == SYN && random.chance(85) {
            // With data it would never go to another backend.
            frame.payload.clear();
        }
        if random.chance(8) { in_fragments(random, &mut frame) } else { vec![frame.build()] }
    }
}

impl Flow {
    /// The first fragments of so many packets of the client's.
    pub(crate) fn crowd(&self, count: u32) -> Vec<Vec<u8>> {
        let frame = if self.protocol == TCP {
            Frame::tcp(self.client, self.vip, ACK).numbers(1000, self.server_isn.wrapping_add(1))
        } else {
            Frame::udp(self.client, self.vip)
        };
        let frame = frame.tags(&self.tags).macs(self.macs.0, self.macs.1).payload(&[7; 100]);
        (0..count).map(|id| fragments(&frame, 1000 + id, 64).swap_remove(0)).collect()
    }
}

/// In small fragments, in their order mostly, with some that say something else. Few identifications, so that packets
/// share one; in small tables, many packets.
fn in_fragments(random: &mut Random, frame: &mut Frame) -> Vec<Vec<u8>> {
    frame.payload.resize(64 + random.below(64), 7);
    let id = random.below(48) as u32;
    let mut parts = fragments(frame, id, random.one_of([8, 24, 24, 40, 64, 200]));
    if random.chance(15) {
        let (place, more) = (random.below(4), random.chance(50));
        let part = vec![random.next() as u8; random.below(24)];
        parts.insert(random.below(parts.len() + 1), fragment(frame, id, place, more, &part));
    }
    if random.chance(15) {
        let (one, other) = (random.below(parts.len()), random.below(parts.len()));
        parts.swap(one, other);
    }
    if random.chance(10) {
        parts.push(parts[random.below(parts.len())].clone());
    }
    if random.chance(10) {
        parts.remove(0);
    }
    // More would only be more of the same.
    parts.truncate(5);
    parts
}

/// The first packet of a flow to the first or third service; another flow for each number.
pub(crate) fn opening(number: u16) -> Vec<u8> {
    let (client, service) = if number.is_multiple_of(2) {
        (ip("198.51.100.1"), SERVICES[0])
    } else {
        (ip("2001:db8:c::1"), SERVICES[2])
    };
    Frame::tcp(SocketAddr::new(client, 50_000 + number), service.vip(), SYN).build()
}

fn tags(random: &mut Random) -> Vec<(u16, u16)> {
    match random.below(10) {
        0..6 => Vec::new(),
        6 | 7 => vec![(random.one_of([TAG_8021Q, TAG_8021AD]), random.next() as u16)],
        8 => vec![(TAG_8021Q, random.next() as u16), (TAG_8021Q, random.next() as u16)],
        _ => vec![(TAG_8021AD, random.next() as u16), (TAG_8021Q, random.next() as u16)],
    }
}

/// An ICMP message about a frame that the program has sent, to where that came from; an error mostly.
pub(crate) fn message_about(random: &mut Random, sent: &[u8]) -> Option<Vec<u8>> {
    let seen = Seen::parse(sent).ok()?;
    let packet = &sent[14 + 4 * seen.tags.len()..];
    let (kinds, header) = if seen.source.is_ipv4() {
        ([3, 3, 11, 12, 5], usize::from(packet[0] & 0xf) * 4)
    } else {
        ([1, 2, 3, 4, 135], 40)
    };
    let router = ip(if seen.source.is_ipv4() { "172.16.0.1" } else { "fd77::1" });
    let from = random.one_of([router, seen.destination.ip()]);
    let rest = [0, 0, 5, random.next() as u8];
    let mut frame = Frame::icmp(from, seen.source.ip(), random.one_of(kinds), random.below(6) as u8, rest);
    let anywhere = random.below(60);
    let quoted = random.one_of([header + 8, header + 16, header + 18, header + 20, packet.len(), anywhere]);
    frame.tags = tags(random);
    complicate(random, &mut frame);
    frame.payload = packet[..quoted.min(packet.len())].to_vec();
    Some(frame.build())
}

/// Payload, and what is in [`complicate`].
fn decorate(random: &mut Random, frame: &mut Frame) {
    let length = if random.chance(4) { random.one_of([1000, 1000, 1600, 3200]) } else { 40 };
    frame.payload = (0..random.below(length)).map(|_| random.next() as u8).collect();
    complicate(random, frame);
}

/// Options, extension headers, small TTLs, fragments, padding.
fn complicate(random: &mut Random, frame: &mut Frame) {
    if random.chance(3) {
        frame.ttl = random.below(3) as u8;
    }
    if random.chance(10) {
        frame.padding = random.below(20);
    }
    if random.chance(12) {
        if frame.source.is_ipv4() {
            frame.ip_options = vec![1; 4 * (1 + random.below(10))];
        } else {
            for _ in 0..=random.below(5) {
                let number = random.one_of([0, 43, 60, 60]);
                let words = random.one_of([0, 0, 1, 7, 8]);
                frame.extensions.push((number, vec![0; 6 + 8 * words]));
            }
        }
    }
    if random.chance(2) {
        if frame.source.is_ipv4() {
            frame.fragment = random.one_of([0x2000, 0x2010, 0x0010, 0x4000, 0x8000]);
        } else {
            frame.extensions.push((44, vec![0; 6]));
        }
    }
    match &mut frame.transport {
        Transport::Udp { checksum } => *checksum = !random.chance(20),
        Transport::Tcp { options, .. } if random.chance(30) => {
            *options = vec![1; 4 * random.below(11)];
            promise(random, options);
        }
        _ => {}
    }
}

/// Puts a largest segment among options, mostly a good one.
fn promise(random: &mut Random, options: &mut [u8]) {
    if options.is_empty() || random.chance(20) {
        return;
    }
    let anywhere = random.below(options.len() - 3);
    let place = random.one_of([0, anywhere]);
    let length = if random.chance(90) { 4 } else { random.below(8) as u8 };
    let any = random.next() as u16;
    let [high, low] = random.one_of([536, 1240, 1460, 8960, any]).to_be_bytes();
    options[place..place + 4].copy_from_slice(&[2, length, high, low]);
    if random.chance(10) {
        let junk = random.below(options.len());
        options[junk] = random.next() as u8;
    }
}

/// A packet of no flow: foreign traffic, other protocols, closed ports, segments out of the blue.
pub(crate) fn stray(random: &mut Random) -> Vec<u8> {
    let v4 = random.chance(50);
    let pick = |v4_text: &str, v6_text: &str| ip(if v4 { v4_text } else { v6_text });
    let client = SocketAddr::new(pick("198.51.100.77", "2001:db8:c::77"), 1024 + random.below(60_000) as u16);
    let vip = pick("203.0.113.10", "2001:db8::10");
    let snat = pick("192.168.0.2", "fd00::2");
    let mut frame = match random.below(13) {
        12 => {
            let martian = SocketAddr::new(nobody(random, client, 80).ip(), client.port());
            Frame::tcp(martian, SocketAddr::new(vip, 80), SYN)
        }
        11 => {
            let kind = if random.chance(80) { if v4 { 8 } else { 128 } } else { random.next() as u8 };
            let to = random.one_of([vip, vip, snat]);
            let from = if random.chance(90) { client.ip() } else { pick("224.0.0.1", "::1") };
            Frame::icmp(from, to, kind, 0, [0, 7, 0, random.next() as u8])
        }
        0 => Frame::udp(client, SocketAddr::new(pick("192.0.2.1", "2001:db8:f::1"), 53)),
        1 => Frame::tcp(client, SocketAddr::new(pick("192.0.2.2", "2001:db8:f::2"), 80), SYN),
        2 => Frame::other(client.ip(), vip, random.one_of([1, 58])),
        3 => Frame::other(client.ip(), vip, random.one_of([132, 47, 50, 59])),
        4 => {
            let source = nobody(random, client, 20);
            Frame::tcp(source, SocketAddr::new(vip, 81), random.one_of([SYN, ACK, FIN, RST]))
        }
        5 => Frame::tcp(client, SocketAddr::new(vip, 80), ACK),
        6 => Frame::udp(client, SocketAddr::new(snat, 12_288 + random.below(300) as u16)),
        7 => {
            let backend = SocketAddr::new(pick("10.0.0.1", "fd00:1::1"), 8080);
            Frame::tcp(backend, SocketAddr::new(snat, 12_288 + random.below(64) as u16), ACK)
        }
        8 if v4 => Frame::tcp(client, SocketAddr::new(ip("203.0.113.11"), 22), SYN),
        8 => Frame::udp(client, SocketAddr::new(vip, 9)),
        9 => {
            let mut arp = vec![0xff; 12];
            arp.extend([0x08, 0x06]);
            arp.extend((0..random.below(60)).map(|_| random.next() as u8));
            return arp;
        }
        _ => return (0..random.below(80)).map(|_| random.next() as u8).collect(),
    };
    frame.payload = vec![7; random.below(30)];
    frame.tags = tags(random);
    if random.chance(5) {
        frame.destination_mac[0] |= 1;
    }
    decorate(random, &mut frame);
    frame.build()
}

/// A client, or so often of a hundred times one of those who can't be one.
fn nobody(random: &mut Random, client: SocketAddr, percent: usize) -> SocketAddr {
    let nobody = if client.is_ipv4() {
        ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "203.0.113.10", "203.0.113.11"]
    } else {
        ["::", "::1", "::ffff:198.51.100.77", "ff02::1", "2001:db8::10", "ff0e::1"]
    };
    let nobody = ip(random.one_of(nobody));
    if random.chance(percent) { SocketAddr::new(nobody, client.port()) } else { client }
}

/// A frame with something wrong: cut short, lengthened, a few bytes of its headers changed.
pub(crate) fn mutate(random: &mut Random, frame: &[u8]) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    match random.below(4) {
        0 => bytes.truncate(random.below(bytes.len() + 1)),
        1 => bytes.truncate(14 + random.below(60)),
        2 => bytes.extend((0..random.below(40)).map(|_| random.next() as u8)),
        _ => {}
    }
    if bytes.is_empty() {
        return bytes;
    }
    let headers = bytes.len().min(90);
    for _ in 0..random.below(4) {
        let at = random.below(headers);
        bytes[at] = match random.below(3) {
            0 => bytes[at] ^ 1 << random.below(8),
            1 => random.one_of([0, 1, 0x0f, 0x45, 0x60, 0x7f, 0x80, 0xff]),
            _ => random.next() as u8,
        };
    }
    bytes
}
