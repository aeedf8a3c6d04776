//! Two services over UDP, one a family, and the frames of their clients and backends.

use std::{fmt::Debug, net::SocketAddr, str::FromStr};

use lb_common::{
    abi::UDP,
    host::{Frame, Gateway, GatewayConfig, Sizes},
};
use tests::kernel_run::{Clock, KernelProgram};

/// The interface of all frames: everything goes out where it came in.
pub(crate) const LOOPBACK: u32 = 1;

const PAYLOAD: usize = 8;
/// Clients' port; their address tells them apart.
pub(crate) const CLIENT_PORT: u16 = 40_000;

/// IPv4 or IPv6; each has a service of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Family {
    V4,
    V6,
}

/// Loads the program with an injected clock and both services; flows time out within a few ticks.
pub(crate) fn load(sizes: &Sizes, port_words: u16) -> KernelProgram {
    let mut gateway = Gateway::new(
        &GatewayConfig {
            sizes: *sizes,
            port_words,
            timeouts_ms: [1500, 2000, 1000, 1000, 1500, 2500],
            ..GatewayConfig::default()
        },
        99,
    );
    for family in [Family::V4, Family::V6] {
        let (vip, backend) = family.service();
        gateway.add_service(address(vip), UDP, &[address(backend)]);
    }
    let mut kernel =
        KernelProgram::load(sizes, Clock::Injected).expect("the kernel takes the packet program");
    kernel.mirror(&gateway.maps).expect("the maps take it");
    kernel.tables.set_clock(gateway.maps.clock());
    kernel
}

impl Family {
    /// Which service a client asks.
    pub(crate) const fn of(client: u32) -> Self {
        if client.is_multiple_of(2) { Self::V4 } else { Self::V6 }
    }

    /// VIP and backend.
    pub(crate) const fn service(self) -> (&'static str, &'static str) {
        match self {
            Self::V4 => ("203.0.113.10:53", "10.0.0.1:5353"),
            Self::V6 => ("[2001:db8::10]:53", "[fd00:1::1]:5353"),
        }
    }

    /// The gateway's own address.
    pub(crate) const fn snat(self) -> &'static str {
        match self {
            Self::V4 => "192.168.0.2",
            Self::V6 => "fd00::2",
        }
    }

    /// The last four bytes of source and destination, and where the ports are.
    const fn offsets(self) -> (usize, usize, usize) {
        match self {
            Self::V4 => (26, 30, 34),
            Self::V6 => (34, 50, 54),
        }
    }

    /// The source port of a forwarded request.
    pub(crate) fn snat_port(self, frame: &[u8]) -> u16 {
        let (_, _, ports) = self.offsets();
        u16::from_be_bytes([frame[ports], frame[ports + 1]])
    }

    /// Whether a forwarded request goes to this family's backend.
    pub(crate) fn is_to_backend(self, frame: &[u8]) -> bool {
        let (_, destination, ports) = self.offsets();
        let last = if self == Self::V4 { [10, 0, 0, 1] } else { [0, 0, 0, 1] };
        frame[destination..destination + 4] == last && frame[ports + 2..ports + 4] == 5353_u16.to_be_bytes()
    }

    /// The client that a forwarded reply goes to; one that never was if it is none of ours.
    pub(crate) fn client(self, frame: &[u8]) -> u32 {
        let (_, destination, ports) = self.offsets();
        let last: [u8; 4] = frame[destination..destination + 4].try_into().unwrap_or_default();
        let port = u16::from_be_bytes([frame[ports + 2], frame[ports + 3]]);
        let number = u32::from_be_bytes(last) ^ self.network();
        if port == CLIENT_PORT { number } else { u32::MAX }
    }

    /// What clients' numbers are added to in the last four bytes of their addresses.
    pub(crate) const fn network(self) -> u32 {
        match self {
            Self::V4 => u32::from_be_bytes([100, 64, 0, 0]),
            Self::V6 => 0,
        }
    }
}

/// The frames of both families, to be filled in: a thread has its own.
pub(crate) struct Frames {
    requests: [Vec<u8>; 2],
    replies: [Vec<u8>; 2],
}

impl Frames {
    pub(crate) fn new() -> Self {
        let both = [Family::V4, Family::V6];
        Self { requests: both.map(request), replies: both.map(reply) }
    }

    /// A client's request.
    pub(crate) fn request(&mut self, family: Family, client: u32) -> &[u8] {
        let frame = &mut self.requests[family as usize];
        let (source, _, _) = family.offsets();
        frame[source..source + 4].copy_from_slice(&(family.network() | client).to_be_bytes());
        frame
    }

    /// A backend's reply to a SNAT port.
    pub(crate) fn reply(&mut self, family: Family, port: u16) -> &[u8] {
        let frame = &mut self.replies[family as usize];
        let (_, _, ports) = family.offsets();
        frame[ports + 2..ports + 4].copy_from_slice(&port.to_be_bytes());
        frame
    }
}

fn request(family: Family) -> Vec<u8> {
    let client = match family {
        Family::V4 => "100.64.0.0",
        Family::V6 => "2001:db8:c::",
    };
    udp(SocketAddr::new(address(client), CLIENT_PORT), address(family.service().0))
}

fn reply(family: Family) -> Vec<u8> {
    udp(address(family.service().1), SocketAddr::new(address(family.snat()), 0))
}

/// With the checksum of the frame as it is now: it is changed afterwards, and the gateway carries on what it finds.
fn udp(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    Frame::udp(source, destination).payload(&[0; PAYLOAD]).build()
}

/// An address of one of these services.
pub(crate) fn address<T: FromStr<Err: Debug>>(text: &str) -> T {
    text.parse().expect("an address")
}
