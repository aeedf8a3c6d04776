//! A service of each family over several backends, and frames that are read back with all of their checksums.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_common::{
    abi::{RingWord, TCP},
    datapath::Cells,
    host::{ACK, Frame, Gateway, GatewayConfig, RST, SYN, Seen, Sizes},
};
use tests::kernel_run::{Clock, KernelProgram, Runner, mirror_element};

use super::{
    gateway::Family,
    ledger,
    pace::{self, Pace},
};

/// Steps that a client takes, at most, until a packet of his goes through: another CPU may hold what it needs.
const PATIENCE: u32 = 10_000;
/// A descriptor's cell with the ring's word.
const RING: usize = 0;

/// The kernel's program, and the host's maps that it was filled from.
pub(crate) struct Bed {
    pub(crate) kernel: KernelProgram,
    pub(crate) gateway: Gateway,
    backends: u8,
}

/// The way of a flow behind the gateway: what a backend sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    pub(crate) backend: SocketAddr,
    pub(crate) snat: SocketAddr,
}

impl Bed {
    /// Loads the program with an injected clock that stands still, and a TCP service of each family; `ask` says what
    /// else is asked for a service.
    pub(crate) fn load(backends: u8, ask: impl Fn(&mut Gateway, u32)) -> Bed {
        let members = 2 * u32::from(backends) + 1;
        let sizes = Sizes {
            flow_buckets: 16_384,
            reverse_v4_buckets: 16_384,
            reverse_v6_buckets: 16_384,
            members,
            backends: members,
            ..GatewayConfig::default().sizes
        };
        let mut gateway = Gateway::new(&GatewayConfig { sizes, ..GatewayConfig::default() }, 99);
        for (service, family) in (0..).zip([Family::V4, Family::V6]) {
            let all: Vec<SocketAddr> = (0..backends).map(|n| backend(family, n)).collect();
            assert_eq!(gateway.add_service(vip(family), TCP, &all), service);
            ask(&mut gateway, service);
        }
        let mut kernel =
            KernelProgram::load(&sizes, Clock::Injected).expect("the kernel takes the packet program");
        kernel.mirror(&gateway.maps).expect("the maps take it");
        kernel.tables.set_clock(gateway.maps.clock());
        Bed { kernel, gateway, backends }
    }

    /// The members of a family's service.
    pub(crate) fn members(&self, family: Family) -> Vec<u32> {
        let first = u32::from(self.backends) * family as u32 + 1;
        (first..first + u32::from(self.backends)).collect()
    }

    /// Another ring, over these members, that no service has yet.
    pub(crate) fn ring(&mut self, members: &[u32]) -> RingWord {
        let word = self.gateway.write_ring(members);
        for index in 0..self.kernel.tables.rings.len() {
            mirror_element(&self.kernel.tables.rings, &self.gateway.maps.rings, index);
        }
        word
    }

    /// Gives a family's service a ring, as the agent does: by one store.
    pub(crate) fn set_ring(&self, family: Family, ring: RingWord) {
        let cells = self.kernel.tables.descriptors.get(family as u32).expect("the service has a descriptor");
        cells.store(RING, ring.0);
    }

    /// Says whether new flows may go to a backend of a family.
    pub(crate) fn set_usable(&mut self, family: Family, n: u8, usable: bool) {
        let index = self.gateway.backend(backend(family, n), TCP);
        self.gateway.set_usable(index, usable);
        mirror_element(&self.kernel.tables.backends, &self.gateway.maps.backends, index);
    }

    /// Sees whether the tables agree with each other, while no packet is on its way, and forgets all flows and clients.
    pub(crate) fn check_and_forget(&self, told: &str) -> usize {
        let tables = &self.kernel.tables;
        let flows = ledger::check(tables).unwrap_or_else(|error| panic!("{told}: {error}"));
        for table in [
            &tables.flows,
            &tables.reverse_v4,
            &tables.reverse_v6,
            &tables.ports,
            &tables.affinity,
            &tables.syns,
        ] {
            table.clear();
        }
        flows
    }
}

pub(crate) fn vip(family: Family) -> SocketAddr {
    match family {
        Family::V4 => ([203, 0, 113, 20], 80).into(),
        Family::V6 => (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x20), 80).into(),
    }
}

/// A family's n-th backend.
pub(crate) fn backend(family: Family, n: u8) -> SocketAddr {
    match family {
        Family::V4 => ([10, 0, 1, n + 1], 8080).into(),
        Family::V6 => (Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 1, u16::from(n) + 1), 8080).into(),
    }
}

/// The n-th client, of the family that it has by its number.
pub(crate) fn client(n: u32, port: u16) -> SocketAddr {
    match Family::of(n) {
        Family::V4 => (Ipv4Addr::from_bits(0x6440_0000 + n), port).into(),
        Family::V6 => (Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, (n >> 16) as u16, n as u16), port).into(),
    }
}

/// A client's first segment.
pub(crate) fn syn(client: SocketAddr) -> Frame {
    Frame::tcp(client, vip(family_of(client)), SYN)
}

/// The client's answer to a backend's SYN-ACK.
pub(crate) fn ack(client: SocketAddr) -> Frame {
    Frame::tcp(client, vip(family_of(client)), ACK).numbers(1001, 5001)
}

/// A backend's answer to a SYN.
pub(crate) fn syn_ack(path: Path) -> Frame {
    Frame::tcp(path.backend, path.snat, SYN | ACK).numbers(5000, 1001)
}

/// A backend's refusal of a SYN.
pub(crate) fn refusal(path: Path) -> Frame {
    Frame::tcp(path.backend, path.snat, RST | ACK).numbers(0, 1001)
}

const fn family_of(address: SocketAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// What the program sends when it gets a frame; none where it doesn't.
///
/// # Panics
/// When a checksum of what is sent is wrong.
pub(crate) fn send(runner: &mut Runner, frame: &Frame) -> Option<Seen> {
    let sent = pace::run(runner, &frame.build())?;
    Some(Seen::parse(sent).unwrap_or_else(|error| panic!("{frame:?} came out wrong: {error}")))
}

/// The way of what was sent to a backend; none of what went to a client.
pub(crate) fn path_of(seen: &Seen) -> Option<Path> {
    let family = family_of(seen.destination);
    let is_backend = seen.destination.port() == backend(family, 0).port();
    is_backend.then_some(Path { backend: seen.destination, snat: seen.source })
}

/// Sends a client's segment until it goes to a backend: whoever gets no answer sends it again.
pub(crate) fn insist(runner: &mut Runner, frame: &Frame) -> Path {
    let sent = (0..PATIENCE).find_map(|_| path_of(&send(runner, frame)?));
    sent.unwrap_or_else(|| panic!("{frame:?} goes nowhere"))
}

/// Where both threads wait for each other: counts the steps that they take.
pub(crate) struct Steps<'a> {
    pace: &'a Pace,
    thread: usize,
    taken: u32,
}

impl<'a> Steps<'a> {
    pub(crate) const fn new(pace: &'a Pace, thread: usize) -> Self {
        Self { pace, thread, taken: 0 }
    }

    /// Goes on when the other thread is there too.
    pub(crate) fn meet(&mut self) {
        self.pace.meet(self.thread, self.taken);
        self.taken += 1;
    }

    /// Says at last that all is done.
    pub(crate) fn done(self) {
        self.pace.threads[self.thread].store(self.taken, std::sync::atomic::Ordering::Release);
    }
}
