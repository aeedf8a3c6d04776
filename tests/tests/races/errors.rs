//! ICMP errors about packets of flows that are made, evicted and swept meanwhile.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Instant,
};

use lb_common::host::{Frame, Seen};
use tests::kernel_run::Runner;

use super::{
    bed::send,
    gateway::{CLIENT_PORT, Family, Frames, address, load},
    ledger,
    owners::{Delivery, Observation, check_deliveries},
    pace::{Pace, run},
    sweeper::beside_the_sweep,
};

/// Clients of each thread.
const CLIENTS: u32 = 200_000;
/// Flows that were seen lately, of whose packets errors speak.
const RECENT: u32 = 64;

#[test]
fn an_error_reaches_an_end_of_its_flow_or_nobody_while_flows_are_made_evicted_and_swept() {
    let kernel = load(&crate::SMALL, 8);
    let epoch = Instant::now();
    let (logs, swept) = beside_the_sweep(&kernel, |cpu, pace| {
        let mut log = Log { epoch, observations: Vec::new(), deliveries: Vec::new(), errors: [0; 2] };
        log.ask_and_complain(&mut kernel.runner().expect("a runner"), cpu, pace);
        log
    });
    ledger::check(&kernel.tables).expect("the tables agree");
    let errors = [0, 1].map(|end| logs[0].errors[end] + logs[1].errors[end]);
    println!("{} errors reached clients, {} backends", errors[0], errors[1]);
    assert!(errors.iter().all(|count| *count > CLIENTS / 10), "{errors:?} errors were forwarded");
    assert!(swept.evicted > u64::from(CLIENTS / 10), "ports hardly ever change hands: {swept}");
    let [one, other] = logs;
    let observations = [one.observations, other.observations].concat();
    let deliveries = [one.deliveries, other.deliveries].concat();
    check_deliveries(observations, &deliveries)
        .expect("each error went to an end of the flow that it is about");
}

/// What a thread saw.
struct Log {
    epoch: Instant,
    observations: Vec<Observation>,
    /// Of replies and of errors.
    deliveries: Vec<Delivery>,
    /// Errors that reached a client, and a backend.
    errors: [u32; 2],
}

impl Log {
    fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    /// Requests of ever new clients, both threads the same ones; a reply to a port that was seen lately, and errors about
    /// the packets of its flow both ways.
    fn ask_and_complain(&mut self, runner: &mut Runner, cpu: usize, pace: &Pace) {
        let mut frames = Frames::new();
        let mut recent = [None; RECENT as usize];
        for client in 0..CLIENTS {
            let family = Family::of(client);
            pace.meet(cpu, client);
            if let Some(port) = self.ask(runner, &mut frames, family, client) {
                recent[(client % RECENT) as usize] = Some((family, port, client));
            }
            // The two threads speak of different flows: one of the newest, the other of older ones.
            let back = if cpu == 0 { 0 } else { client.wrapping_mul(29) % RECENT };
            if let Some((family, port, asker)) = recent[((client + RECENT - back) % RECENT) as usize] {
                let start = self.now();
                if let Some(frame) = run(runner, frames.reply(family, port)) {
                    let client = family.client(frame);
                    self.deliveries.push(Delivery { family, port, client, start, end: self.now() });
                    self.ask(runner, &mut frames, family, asker);
                }
                self.complain_of_request(runner, family, port);
                self.complain_of_reply(runner, family, asker);
            }
        }
    }

    /// A client's request; the port that it left from.
    fn ask(&mut self, runner: &mut Runner, frames: &mut Frames, family: Family, client: u32) -> Option<u16> {
        let start = self.now();
        let port = family.snat_port(run(runner, frames.request(family, client))?);
        self.observations.push(Observation { family, port, client, start, end: self.now() });
        Some(port)
    }

    /// A router on the way to the backend could not deliver what left a SNAT port.
    fn complain_of_request(&mut self, runner: &mut Runner, family: Family, port: u16) {
        let snat = SocketAddr::new(address(family.snat()), port);
        let start = self.now();
        let Some(seen) = send(runner, &unreachable(snat.ip(), snat, backend(family))) else { return };
        let (source, destination) = quoted(&seen);
        assert_eq!(destination, vip(family), "a client hears of a packet to somebody else: {seen:?}");
        assert_eq!(source.ip(), seen.destination.ip(), "a client hears of another's packet: {seen:?}");
        let client = client_number(family, source);
        self.deliveries.push(Delivery { family, port, client, start, end: self.now() });
        self.errors[0] += 1;
    }

    /// A router on the way to a client could not deliver what left the VIP.
    fn complain_of_reply(&mut self, runner: &mut Runner, family: Family, client: u32) {
        let start = self.now();
        let message = unreachable(vip(family).ip(), vip(family), client_address(family, client));
        let Some(seen) = send(runner, &message) else { return };
        let (source, destination) = quoted(&seen);
        assert_eq!(seen.destination.ip(), backend(family).ip(), "somebody else than the backend: {seen:?}");
        assert_eq!(source, backend(family), "the backend hears of a packet that is not its own: {seen:?}");
        let snat: IpAddr = address(family.snat());
        assert_eq!(destination.ip(), snat, "the backend hears of a packet to a stranger: {seen:?}");
        let port = destination.port();
        self.deliveries.push(Delivery { family, port, client, start, end: self.now() });
        self.errors[1] += 1;
    }
}

fn vip(family: Family) -> SocketAddr {
    address(family.service().0)
}

fn backend(family: Family) -> SocketAddr {
    address(family.service().1)
}

fn client_address(family: Family, client: u32) -> SocketAddr {
    let number = family.network() | client;
    match family {
        Family::V4 => (Ipv4Addr::from_bits(number), CLIENT_PORT).into(),
        Family::V6 => {
            let [high, low] = [(number >> 16) as u16, number as u16];
            (Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, high, low), CLIENT_PORT).into()
        }
    }
}

/// The number of a client; one that never was for anybody else.
fn client_number(family: Family, address: SocketAddr) -> u32 {
    let number = match address.ip() {
        IpAddr::V4(ip) => ip.to_bits(),
        IpAddr::V6(ip) => ip.to_bits() as u32,
    };
    let client = number ^ family.network();
    if client_address(family, client) == address { client } else { u32::MAX }
}

/// "Unreachable: port", from a router, about a datagram.
fn unreachable(to: IpAddr, source: SocketAddr, destination: SocketAddr) -> Frame {
    let datagram = Frame::udp(source, destination).payload(&[0; 8]).build();
    let (router, kind, code): (IpAddr, u8, u8) = match to {
        IpAddr::V4(_) => (Ipv4Addr::new(172, 16, 0, 1).into(), 3, 3),
        IpAddr::V6(_) => (Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1).into(), 1, 4),
    };
    let quote = &datagram[Frame::udp(source, destination).network_offset()..];
    Frame::icmp(router, to, kind, code, [0; 4]).payload(quote)
}

/// Source and destination of the datagram that an error quotes.
fn quoted(seen: &Seen) -> (SocketAddr, SocketAddr) {
    let quote = &seen.payload;
    let port = |at: usize| u16::from_be_bytes([quote[at], quote[at + 1]]);
    match seen.destination {
        SocketAddr::V4(_) => {
            let ip = |at: usize| Ipv4Addr::new(quote[at], quote[at + 1], quote[at + 2], quote[at + 3]);
            ((ip(12), port(20)).into(), (ip(16), port(22)).into())
        }
        SocketAddr::V6(_) => {
            let ip = |at: usize| {
                let octets: [u8; 16] = quote[at..at + 16].try_into().expect("an address");
                Ipv6Addr::from(octets)
            };
            ((ip(8), port(40)).into(), (ip(24), port(42)).into())
        }
    }
}
