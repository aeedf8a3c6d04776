//! Long life: very many flows through a small table, one after the other, against a reference.
//!
//! The reference is what clients and backends know themselves: every payload says whose it is, so a delivery is right
//! or wrong on its own evidence. Beside that it knows until when each path is promised to its flow, and nothing else.
//! At the end nothing may be left.
//!
//! `KANMON_TEST_LONG=1` sends ten million flows through a table for 100,000; otherwise it is a tenth of the table, and
//! fewer flows.

use std::{cmp::Reverse, collections::BinaryHeap, env, time::Duration};

use lb_common::{
    abi::{Counter, TCP, UDP},
    clock::TICK_NS,
    datapath::{
        V4, V6, Verdict,
        sweep::{self, Suspects},
    },
    hash,
    host::{ACK, FIN, Frame, GatewayConfig, RST, SYN, Seen, ledger},
};

use crate::{
    bed::{Bed, Flow, Net, seconds},
    sweep::sweep,
};

const BACKENDS: u8 = 12;
const SECOND: u64 = 1_000_000_000;
/// How long flows live: those of issue 3, which are `GatewayConfig`'s too.
const ESTABLISHED: u64 = 3600 * SECOND;
const REPLIED: u64 = 60 * SECOND;
/// Ticks are coarse: nobody is promised the last two.
const SLACK: u64 = 2 * TICK_NS;
/// Time between two passes of the sweep.
const PASS: u64 = 30 * SECOND;

/// What one of a flow's two ends does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Syn,
    SynAck,
    Prove,
    Request,
    Reply,
    ClientFin,
    BackendFin,
    ClientReset,
    BackendReset,
    Datagram,
    Answer,
}
use Act::{
    Answer, BackendFin, BackendReset, ClientFin, ClientReset, Datagram, Prove, Reply, Request, Syn, SynAck,
};

/// How likely a life is, out of 100, and what happens in it, each thing after so many milliseconds on average.
type Life = (u32, &'static [(u64, Act)]);

const LIVES: [Life; 13] = [
    (
        24,
        &[
            (60_000, Syn),
            (10, SynAck),
            (10, Prove),
            (5, Request),
            (40_000, Reply),
            (5, ClientFin),
            (5, BackendFin),
            (5, Request),
        ],
    ),
    (10, &[(60_000, Syn), (10, SynAck), (10, Prove), (5_000, Reply), (5, BackendFin), (5, ClientFin)]),
    // Idle for nearly as long as it may be.
    (1, &[(10, Syn), (10, SynAck), (10, Prove), (1_790_000, Request), (1_790_000, Reply), (10, Request)]),
    // The client vanishes.
    (3, &[(50_000, Syn), (10, SynAck), (10, Prove), (10, Request)]),
    (3, &[(50_000, Syn)]),
    (2, &[(50_000, Syn), (10, SynAck)]),
    (3, &[(50_000, Syn), (10, SynAck), (10, Prove), (100, ClientReset), (5, Reply)]),
    (3, &[(50_000, Syn), (10, SynAck), (10, Prove), (100, BackendReset), (5, Request)]),
    (3, &[(50_000, Syn), (10, BackendReset)]),
    (30, &[(90_000, Datagram), (20, Answer)]),
    (8, &[(90_000, Datagram), (20, Answer), (28_000, Datagram), (28_000, Answer), (28_000, Request)]),
    (5, &[(90_000, Datagram), (20, Answer), (100, Datagram), (20, Answer)]),
    (5, &[(90_000, Datagram)]),
];

/// Draws numbers.
struct Random(u64);

impl Random {
    /// Below `limit`.
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        ((u128::from(hash::finish(self.0)) * u128::from(limit)) >> 64) as u64
    }
}

/// One client. It has one flow after the other.
struct Client {
    net: Net,
    number: u32,
    /// Number of its flow.
    life: u32,
    /// Its port is a new one, unless the flow before was closed in order.
    port: u16,
    acts: &'static [(u64, Act)],
    next: usize,
    flow: Option<Flow>,
    closed: bool,
}

impl Client {
    fn address(&self) -> std::net::SocketAddr {
        let [_, a, b, c] = self.number.to_be_bytes();
        let ip = self.net.ip([100, a, b, c], [0x2001, 0xdb8, 2, 0, 0, 0, a.into(), self.number as u16]);
        (ip, self.port).into()
    }

    /// What its flow's payloads say.
    fn name(&self) -> [u8; 8] {
        (u64::from(self.number) << 32 | u64::from(self.life)).to_be_bytes()
    }
}

/// What a run counted.
#[derive(Debug, Default)]
struct Tally {
    flows: u64,
    packets: u64,
    /// Flows that were not let in: no room.
    refused: u64,
    /// Flows that ended before their ends did; nothing was promised to them.
    cut: u64,
    most_live: usize,
    mended: usize,
    passes: u64,
}

struct World {
    bed: Bed,
    clients: Vec<Client>,
    /// What comes next, and whose it is.
    agenda: BinaryHeap<Reverse<(u64, u32)>>,
    /// Until when a path is promised to the flow that it was given to last.
    promised: Vec<u64>,
    random: Random,
    tally: Tally,
    goal: u64,
    suspects: Vec<Suspects>,
}

/// The number of a path: family, protocol, backend, port.
fn path_of(net: Net, flow: &Flow) -> usize {
    let backend = (1..=BACKENDS).position(|n| net.backend(n) == flow.backend).expect("a backend");
    let kind = usize::from(net == Net::V6) * 2 + usize::from(flow.protocol == UDP);
    (kind * usize::from(BACKENDS) + backend) << 16 | usize::from(flow.snat.port())
}

impl World {
    fn new(clients: u32, flow_buckets: u32, goal: u64) -> Self {
        let mut settings = GatewayConfig::default();
        settings.sizes.flow_buckets = flow_buckets;
        settings.sizes.reverse_v4_buckets = flow_buckets;
        settings.sizes.reverse_v6_buckets = flow_buckets;
        let mut bed = Bed::new(&settings);
        for net in Net::BOTH {
            let backends: Vec<_> = (1..=BACKENDS).map(|n| net.backend(n)).collect();
            bed.gateway.add_service(net.vip(), TCP, &backends);
            bed.gateway.add_service(net.vip(), UDP, &backends);
        }
        // Ticks wrap in the middle of even the shorter run.
        bed.gateway.maps.set_clock(0xb000 * TICK_NS);
        let clients: Vec<_> = (0..clients)
            .map(|number| Client {
                net: Net::BOTH[number as usize % 2],
                number,
                life: 0,
                port: 10_000,
                acts: &[],
                next: 0,
                flow: None,
                closed: false,
            })
            .collect();
        let mut world = Self {
            bed,
            agenda: BinaryHeap::with_capacity(clients.len()),
            promised: vec![0; (4 * usize::from(BACKENDS)) << 16],
            random: Random(7),
            tally: Tally::default(),
            goal,
            suspects: vec![[0; 256]; 64],
            clients,
        };
        (0..world.clients.len()).for_each(|index| world.begin_life(index));
        world
    }

    fn now(&self) -> u64 {
        self.bed.gateway.maps.clock()
    }

    /// Chooses what a client's next flow will be, unless there were enough.
    fn begin_life(&mut self, index: usize) {
        if self.tally.flows == self.goal {
            return;
        }
        self.tally.flows += 1;
        let mut dice = self.random.below(100) as u32;
        let (_, acts) = LIVES
            .iter()
            .find(|(share, _)| {
                let is_it = dice < *share;
                dice = dice.wrapping_sub(*share);
                is_it
            })
            .expect("shares that add up to 100");
        let client = &mut self.clients[index];
        if !client.closed {
            client.port = if client.port == 59_999 { 10_000 } else { client.port + 1 };
        }
        (client.life, client.acts, client.next) = (client.life + 1, acts, 0);
        (client.flow, client.closed) = (None, false);
        self.plan(index);
    }

    /// Puts a client's next act on the agenda, or its next flow's first.
    fn plan(&mut self, index: usize) {
        let client = &self.clients[index];
        match client.acts.get(client.next) {
            Some((delay, _)) => {
                let at = self.now() + self.random.below(2 * delay * 1_000_000);
                self.agenda.push(Reverse((at, index as u32)));
            }
            None => self.begin_life(index),
        }
    }

    fn run(&mut self) {
        let mut next_pass = self.now() + PASS;
        while let Some(Reverse((at, index))) = self.agenda.pop() {
            while next_pass <= at {
                self.bed.gateway.maps.set_clock(next_pass);
                self.pass();
                next_pass += PASS;
            }
            self.bed.gateway.maps.set_clock(at.max(self.now()));
            let index = index as usize;
            let (_, act) = self.clients[index].acts[self.clients[index].next];
            self.clients[index].next += 1;
            if self.perform(index, act) { self.plan(index) } else { self.begin_life(index) }
        }
    }

    /// The agent's sweep. It must never find anything to mend: nobody was killed.
    fn pass(&mut self) {
        let report = sweep(&self.bed);
        self.tally.most_live = self.tally.most_live.max(report.live);
        self.tally.mended += report.mended;
        self.tally.passes += 1;
        if self.tally.passes.is_multiple_of(4) {
            self.sweep_ports();
        }
        if self.tally.passes.is_multiple_of(64) {
            self.bed.check();
        }
    }

    fn sweep_ports(&mut self) {
        let (maps, config) = (&self.bed.gateway.maps, self.bed.config());
        let mut report = crate::sweep::Report::default();
        for (backend, suspects) in (0..).zip(&mut self.suspects).skip(1) {
            match maps.backends.read::<lb_common::abi::Backend>(backend).family {
                4 => sweep::ports::<V4, _>(&maps.cpu(0), config, backend, 0, suspects, &mut report),
                6 => sweep::ports::<V6, _>(&maps.cpu(0), config, backend, 0, suspects, &mut report),
                _ => {}
            }
        }
        self.tally.mended += report.mended;
    }

    /// Sends a client's or its backend's packet; false where the flow is over before its time.
    fn perform(&mut self, index: usize, act: Act) -> bool {
        self.tally.packets += 1;
        let client = &self.clients[index];
        let name = client.name();
        let (frame, from_client) = match (act, &client.flow) {
            (Syn, _) => (Frame::tcp(client.address(), client.net.vip(), SYN), true),
            (Datagram, None) => (Frame::udp(client.address(), client.net.vip()).payload(&name), true),
            (_, None) => unreachable!("a life begins with its first packet"),
            (Datagram, Some(flow)) => (Frame::udp(flow.client, flow.vip).payload(&name), true),
            (Request, Some(flow)) if flow.protocol == UDP => {
                (Frame::udp(flow.client, flow.vip).payload(&name), true)
            }
            (Answer, Some(flow)) => (Frame::udp(flow.backend, flow.snat).payload(&name), false),
            (SynAck, Some(flow)) => (flow.reply(SYN | ACK), false),
            (Prove, Some(flow)) => (flow.request(ACK), true),
            (Request, Some(flow)) => (flow.request(ACK).payload(&name), true),
            (Reply, Some(flow)) => (flow.reply(ACK).payload(&name), false),
            (ClientFin, Some(flow)) => (flow.request(FIN | ACK).payload(&name), true),
            (BackendFin, Some(flow)) => (flow.reply(FIN | ACK).payload(&name), false),
            (ClientReset, Some(flow)) => (flow.request(RST), true),
            (BackendReset, Some(flow)) => (flow.reply(RST | ACK), false),
        };
        let (verdict, packet) = self.bed.send_unchecked(&frame);
        let seen = (verdict == Verdict::Transmit).then(|| Seen::parse(packet.bytes()).unwrap());
        // Whoever has no flow any more may be told so.
        let seen = seen.filter(|seen| !(seen.flags & RST != 0 && act != ClientReset && act != BackendReset));
        if client.flow.is_none() {
            return self.opened(index, act, seen.as_ref());
        }
        let flow = client.flow.expect("a flow");
        let path = path_of(client.net, &flow);
        let Some(seen) = seen else {
            assert!(self.promised[path] <= self.now(), "{act:?} of {flow:?} was lost: {verdict:?}");
            self.tally.cut += 1;
            return false;
        };
        let (source, destination) =
            if from_client { (flow.snat, flow.backend) } else { (flow.vip, flow.client) };
        assert_eq!((seen.source, seen.destination), (source, destination), "{act:?} of {flow:?}");
        assert!(seen.payload.is_empty() || seen.payload == name, "{act:?} of {flow:?} has another's payload");
        self.promise(index, path, act);
        true
    }

    /// Notes until when a packet has secured its flow's path.
    fn promise(&mut self, index: usize, path: usize, act: Act) {
        let now = self.now();
        let promise = match act {
            Prove | Answer => now + if act == Prove { ESTABLISHED } else { REPLIED } - SLACK,
            // A second FIN closes it, a RST shortens its time.
            ClientReset | BackendReset => 0,
            ClientFin | BackendFin => {
                let acts = self.clients[index].acts;
                let before = &acts[..self.clients[index].next - 1];
                let is_second = before.iter().any(|(_, act)| matches!(act, ClientFin | BackendFin));
                self.clients[index].closed = is_second;
                if is_second { 0 } else { now + ESTABLISHED - SLACK }
            }
            _ if self.promised[path] == 0 => 0,
            Datagram => now + REPLIED - SLACK,
            Request if self.clients[index].flow.is_some_and(|flow| flow.protocol == UDP) => {
                now + REPLIED - SLACK
            }
            _ => now + ESTABLISHED - SLACK,
        };
        self.promised[path] = promise;
    }

    /// Notes the path that a new flow was given. It must be promised to nobody.
    fn opened(&mut self, index: usize, act: Act, seen: Option<&Seen>) -> bool {
        let Some(seen) = seen else {
            self.tally.refused += 1;
            return false;
        };
        let client = &mut self.clients[index];
        assert!(act == Syn || seen.payload == client.name());
        let (protocol, client_address) = (if act == Syn { TCP } else { UDP }, client.address());
        let flow = Flow {
            protocol,
            client: client_address,
            vip: client.net.vip(),
            snat: seen.source,
            backend: seen.destination,
        };
        assert_eq!(flow.snat.ip(), client.net.snat());
        client.flow = Some(flow);
        let path = path_of(client.net, &flow);
        assert!(self.promised[path] <= self.now(), "{flow:?} has the path of a live flow");
        self.promised[path] = 0;
        true
    }
}

#[test]
fn nothing_leaks_and_nothing_goes_astray_however_many_flows_there_were() {
    let is_long = env::var("KANMON_TEST_LONG").is_ok_and(|value| value == "1");
    let (clients, buckets, goal) =
        if is_long { (40_000, 1 << 16, 10_000_000) } else { (4_000, 1 << 13, 300_000) };
    let mut world = World::new(clients, buckets, goal);
    let began = world.now();
    world.run();
    let World { bed, tally, .. } = &world;
    let maps = &bed.gateway.maps;
    println!("{tally:?} in {:?}", Duration::from_nanos(world.now() - began));
    bed.check();
    assert_eq!(maps.counter(Counter::FlowOpened), tally.flows - tally.refused);
    // At half load one new flow in 100,000 finds no room (docs/adr/0001-flow-tables.md).
    assert!(tally.refused * 10_000 <= tally.flows, "{} were refused", tally.refused);

    bed.wait(seconds(3602));
    let evicted = sweep(bed).evicted + sweep(bed).evicted;
    assert!(evicted > 0, "the last flows were there still");
    assert!(ledger::forwards(maps).is_empty() && ledger::backwards(maps).is_empty());
    assert_eq!(ledger::taken_ports(maps), []);
    assert_eq!(world.tally.mended, 0, "nothing had to be mended");
}
