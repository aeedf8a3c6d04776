//! Floods from forged addresses against a service that has its connections: what they lose, whom they keep out, and
//! what is left of them.
//!
//! `KANMON_TEST_LONG=1`: five million packets in 30 s against 100,000 established flows, of twelve backends with one
//! SNAT address; otherwise a tenth of each, and 12 s.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    env,
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    abi::{Counter, FlowState, TCP, UDP},
    datapath::Verdict,
    hash,
    host::{ACK, Frame, GatewayConfig, RST, SYN, Seen, ledger},
};

use crate::{
    bed::{Bed, Flow, Net, SERVER_ISN, seconds},
    sweep::sweep,
};

const BACKENDS: u8 = 12;
const SECOND: u64 = 1_000_000_000;
const MILLISECOND: u64 = 1_000_000;
/// From a SYN to its answer at the gateway, and from there to the client's acknowledgement.
const BACKEND_TIME: u64 = 2 * MILLISECOND;
const CLIENT_TIME: u64 = 40 * MILLISECOND;
/// When a server that nobody acknowledges answers again: more than a tick.
const REPEAT_TIME: u64 = 400 * MILLISECOND;
/// When a client that has no answer sends again, as Linux does.
const RETRANSMISSIONS: [u64; 2] = [SECOND, 2 * SECOND];

/// What comes from forged addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A SYN, which the backend answers.
    Syn,
    /// A SYN, which the backend answers, and an acknowledgement of a number that its sender can't know.
    BlindAck,
    /// A datagram that nobody answers.
    Udp,
    /// A datagram that the backend answers.
    AnsweredUdp,
    /// A datagram that the backend answers, and answers again when nobody acknowledges that, as QUIC and SIP do.
    RepeatedUdp,
}

impl Kind {
    const fn protocol(self) -> u8 {
        match self {
            Self::Syn | Self::BlindAck => TCP,
            Self::Udp | Self::AnsweredUdp | Self::RepeatedUdp => UDP,
        }
    }

    const fn is_answered_udp(self) -> bool {
        matches!(self, Self::AnsweredUdp | Self::RepeatedUdp)
    }
}

#[derive(Clone, Copy, Debug)]
struct Scale {
    established: u32,
    buckets: u32,
    port_words: u16,
    packets: u64,
    /// Between two packets of the flood.
    gap: u64,
}

impl Scale {
    fn chosen() -> Self {
        if env::var("KANMON_TEST_LONG").is_ok_and(|value| value == "1") {
            Self {
                established: 100_000,
                buckets: 1 << 16,
                port_words: 256,
                packets: 5_000_000,
                gap: 6_000, // 30 s in all
            }
        } else {
            Self { established: 10_000, buckets: 1 << 13, port_words: 26, packets: 200_000, gap: 60_000 }
        }
    }
}

/// A real client's connection that begins during the flood.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    client: SocketAddr,
    protocol: u8,
    flow: Option<Flow>,
    retransmissions: usize,
    /// Set by each SYN: what belongs to one before it is void.
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    Sent,
    Answered,
    Done,
    Failed,
}

/// What happens next to an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    Send,
    Answer,
    Prove,
}

#[derive(Debug, Default)]
struct Figures {
    sent: u64,
    let_in: u64,
    attempts: u64,
    /// By the number of retransmissions that they took.
    succeeded: [u64; 3],
    most_unproven: usize,
    /// Answers that went to whom their flow's port was given meanwhile.
    astray: u64,
}

struct Battle {
    net: Net,
    bed: Bed,
    established: Vec<Flow>,
    attempts: Vec<Attempt>,
    agenda: BinaryHeap<Reverse<(u64, Turn, usize)>>,
    /// Forged flows whose backend answers again, and when.
    repeats: VecDeque<(u64, Flow)>,
    random: u64,
    figures: Figures,
}

impl Battle {
    fn new(net: Net, protocol: u8, scale: &Scale) -> Self {
        let mut settings = GatewayConfig { port_words: scale.port_words, ..GatewayConfig::default() };
        settings.sizes.flow_buckets = scale.buckets;
        settings.sizes.reverse_v4_buckets = scale.buckets;
        settings.sizes.reverse_v6_buckets = scale.buckets;
        let bed = Bed::sized(net, BACKENDS, &settings);
        let mut battle = Self {
            net,
            bed,
            established: Vec::new(),
            attempts: Vec::new(),
            agenda: BinaryHeap::new(),
            repeats: VecDeque::new(),
            random: 3,
            figures: Figures::default(),
        };
        for number in 0..scale.established {
            let client = battle.client(number);
            let flow = if protocol == TCP {
                battle.bed.establish_unchecked(client, net.vip())
            } else {
                battle.pass(&Frame::udp(client, net.vip())).map(|seen| Flow {
                    protocol,
                    client,
                    vip: net.vip(),
                    snat: seen.source,
                    backend: seen.destination,
                })
            };
            let flow = flow.expect("room for the flows that the tables are for");
            battle.exchange(&flow);
            battle.exchange(&flow);
            battle.established.push(flow);
        }
        battle
    }

    /// A real client.
    fn client(&self, number: u32) -> SocketAddr {
        let [a, b, c, d] = number.to_be_bytes();
        let ip = self
            .net
            .ip([100, b, c, d], [0x2001, 0xdb8, 2, 0, 0, 0, u16::from(a) << 8 | u16::from(b), number as u16]);
        (ip, 20_000 + (number % 40_000) as u16).into()
    }

    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        hash::finish(self.random)
    }

    /// An address that somebody made up, and a port.
    fn forged(&mut self) -> SocketAddr {
        let drawn = self.draw();
        let [a, b, c, d, e, f, g, _] = drawn.to_be_bytes();
        let ip: IpAddr =
            self.net.ip([11 + a % 80, b, c, d], [0x2a00, drawn as u16, (drawn >> 16) as u16, 0, 0, 0, 0, 1]);
        (ip, 1024 + u16::from_be_bytes([e % 128 + 64, f ^ g])).into()
    }

    fn now(&self) -> u64 {
        self.bed.gateway.maps.clock()
    }

    /// Sends a packet, and reads what comes out of the gateway, if that is not a refusal.
    fn pass(&self, frame: &Frame) -> Option<Seen> {
        let (verdict, packet) = self.bed.send_unchecked(frame);
        let seen = (verdict == Verdict::Transmit).then(|| Seen::parse(packet.bytes()).unwrap())?;
        (seen.flags & RST == 0).then_some(seen)
    }

    /// One packet of the flood, and what follows from it.
    fn forge(&mut self, kind: Kind) {
        let (source, vip) = (self.forged(), self.net.vip());
        self.figures.sent += 1;
        let frame = match kind {
            Kind::Syn | Kind::BlindAck => Frame::tcp(source, vip, SYN),
            Kind::Udp | Kind::AnsweredUdp | Kind::RepeatedUdp => Frame::udp(source, vip).payload(b"spoofed"),
        };
        let Some(seen) = self.pass(&frame) else { return };
        self.figures.let_in += 1;
        let (protocol, snat, backend) = (seen.protocol, seen.source, seen.destination);
        let flow = Flow { protocol, client: source, vip, snat, backend };
        match kind {
            Kind::Udp => {}
            Kind::AnsweredUdp => drop(self.pass(&flow.answer())),
            Kind::RepeatedUdp => {
                self.pass(&flow.answer());
                self.repeats.push_back((self.now() + REPEAT_TIME, flow));
            }
            Kind::Syn => drop(self.pass(&flow.reply(SYN | ACK))),
            Kind::BlindAck => {
                self.pass(&flow.reply(SYN | ACK));
                let guess = self.draw() as u32 | 1;
                let guess = if guess == SERVER_ISN + 1 { 9 } else { guess };
                self.pass(&Frame::tcp(source, vip, ACK).numbers(1001, guess).payload(b"data"));
            }
        }
    }

    /// What backends answer again.
    fn repeat(&mut self) {
        while let Some((at, flow)) = self.repeats.front().copied()
            && at <= self.now()
        {
            self.repeats.pop_front();
            self.pass(&flow.answer());
        }
    }

    /// A client begins a connection.
    fn attempt(&mut self, protocol: u8) {
        let client = self.client(1_000_000 + self.attempts.len() as u32);
        self.figures.attempts += 1;
        self.agenda.push(Reverse((self.now(), Turn::Send, self.attempts.len())));
        self.attempts.push(Attempt {
            client,
            protocol,
            flow: None,
            retransmissions: 0,
            stage: Stage::Waiting,
        });
    }

    /// Everything that clients and backends do until `until`.
    fn play(&mut self, until: u64) {
        while let Some(Reverse((at, turn, index))) = self.agenda.peek().copied()
            && at <= until
        {
            self.agenda.pop();
            self.bed.gateway.maps.set_clock(at.max(self.now()));
            self.turn(turn, index);
        }
        self.bed.gateway.maps.set_clock(until.max(self.now()));
    }

    fn turn(&mut self, turn: Turn, index: usize) {
        let mut attempt = self.attempts[index];
        let now = self.now();
        match (turn, attempt.stage) {
            (Turn::Send, Stage::Waiting | Stage::Sent) => {
                let frame = match attempt.protocol {
                    UDP => Frame::udp(attempt.client, self.net.vip()).payload(b"request"),
                    _ => Frame::tcp(attempt.client, self.net.vip(), SYN),
                };
                attempt.flow = self.pass(&frame).map(|seen| Flow {
                    protocol: seen.protocol,
                    client: attempt.client,
                    vip: self.net.vip(),
                    snat: seen.source,
                    backend: seen.destination,
                });
                attempt.stage = Stage::Sent;
                if attempt.flow.is_some() {
                    self.agenda.push(Reverse((now + BACKEND_TIME, Turn::Answer, index)));
                }
                match RETRANSMISSIONS.get(attempt.retransmissions) {
                    Some(after) => self.agenda.push(Reverse((now + after, Turn::Send, index))),
                    None if attempt.flow.is_none() => attempt.stage = Stage::Failed,
                    None => {}
                }
                attempt.retransmissions += 1;
            }
            (Turn::Answer, Stage::Sent) => {
                let flow = attempt.flow.expect("a flow that is answered");
                let frame = if flow.protocol == UDP { flow.answer() } else { flow.reply(SYN | ACK) };
                let Some(seen) = self.pass(&frame) else { return };
                if seen.destination != attempt.client {
                    self.figures.astray += 1;
                } else {
                    attempt.stage = Stage::Answered;
                    self.agenda.push(Reverse((now + CLIENT_TIME, Turn::Prove, index)));
                }
            }
            (Turn::Prove, Stage::Answered) => {
                let flow = attempt.flow.expect("a flow that was answered");
                let request = if flow.protocol == UDP {
                    flow.datagram()
                } else {
                    flow.request(ACK).payload(b"request")
                };
                let opened = self.opened();
                let seen = self.pass(&request);
                match seen {
                    // The flow had made room: a datagram makes another.
                    Some(seen) if self.opened() > opened => {
                        attempt.flow = Some(Flow { snat: seen.source, backend: seen.destination, ..flow });
                        attempt.stage = Stage::Sent;
                        self.agenda.push(Reverse((now + BACKEND_TIME, Turn::Answer, index)));
                    }
                    Some(seen) => {
                        assert_eq!((seen.source, seen.destination), (flow.snat, flow.backend));
                        attempt.stage = Stage::Done;
                        self.figures.succeeded[attempt.retransmissions - 1] += 1;
                        self.established.push(flow);
                    }
                    None => attempt.stage = Stage::Failed,
                }
            }
            _ => {}
        }
        self.attempts[index] = attempt;
    }

    /// Both ends of a flow hear each other.
    #[track_caller]
    fn exchange(&self, flow: &Flow) {
        let (request, reply) = match flow.protocol {
            UDP => (flow.datagram(), flow.answer()),
            _ => (flow.request(ACK).payload(b"request"), flow.reply(ACK).payload(b"reply")),
        };
        let there = self.pass(&request).map(|seen| (seen.source, seen.destination));
        assert_eq!(there, Some((flow.snat, flow.backend)), "{flow:?} is cut off");
        let back = self.pass(&reply).map(|seen| (seen.source, seen.destination));
        assert_eq!(back, Some((flow.vip, flow.client)), "{flow:?} is cut off");
    }

    fn opened(&self) -> u64 {
        self.bed.gateway.maps.counter(Counter::FlowOpened)
    }

    /// How many flows nothing is known of.
    fn unproven(&self) -> usize {
        ledger::forwards(&self.bed.gateway.maps).iter().filter(|flow| flow.word.state().gives_way()).count()
    }

    /// The flood, with clients that go on and clients that come.
    fn fight(&mut self, kind: Kind, scale: &Scale) {
        let mut next_pass = self.now() + 2 * SECOND;
        for number in 0..scale.packets {
            self.play(self.now() + scale.gap);
            self.repeat();
            self.forge(kind);
            if number % 200 == 0 {
                self.attempt(kind.protocol());
                let some = self.draw() as usize % self.established.len();
                self.exchange(&self.established[some]);
            }
            if self.now() >= next_pass {
                self.figures.most_unproven = self.figures.most_unproven.max(self.unproven());
                sweep(&self.bed);
                next_pass += 2 * SECOND;
            }
        }
        self.play(self.now() + 4 * SECOND);
    }
}

/// A flood of that kind loses nobody, keeps nobody out, and leaves nothing.
fn withstand(kind: Kind, net: Net) {
    let scale = Scale::chosen();
    let mut battle = Battle::new(net, kind.protocol(), &scale);
    battle.fight(kind, &scale);
    let Battle { bed, figures, established, .. } = &battle;
    let maps = &bed.gateway.maps;
    let count = |counter| maps.counter(counter);
    println!(
        "{kind:?} over {net:?}: {} forged packets, {} let in; {} flows established before, 0 lost; {} connections \
         begun, {:?} done after 0, 1, 2 retransmissions; most unproven {}; displaced {}, reclaimed {}, ports reclaimed \
         {}, table full {}, ports exhausted {}, answers astray {}",
        figures.sent,
        figures.let_in,
        scale.established,
        figures.attempts,
        figures.succeeded,
        figures.most_unproven,
        count(Counter::FlowDisplaced),
        count(Counter::FlowReclaimed),
        count(Counter::PortReclaimed),
        count(Counter::DropTableFull),
        count(Counter::DropPortsExhausted),
        figures.astray,
    );
    established.iter().for_each(|flow| battle.exchange(flow));
    bed.check();
    let succeeded: u64 = figures.succeeded.iter().sum();
    assert!(succeeded * 100 >= figures.attempts * 99, "{succeeded} of {}", figures.attempts);
    // With nobody's help: no sweep, and the flood's flows are still in the tables.
    let unanswered = if kind.is_answered_udp() { seconds(50) } else { seconds(1) };
    bed.wait(unanswered);
    established.iter().for_each(|flow| battle.exchange(flow));
    bed.wait(seconds(11));
    for number in 0..1000 {
        let client = battle.client(2_000_000 + number);
        assert!(bed.establish_unchecked(client, net.vip()).is_some(), "client {number} after the flood");
    }
    sweep(bed);
    sweep(bed);
    let alive = ledger::forwards(maps);
    let proven = |state| matches!(state, FlowState::Established | FlowState::UdpAssured);
    let unproven = alive.iter().filter(|flow| !proven(flow.word.state())).count();
    assert_eq!((alive.len(), unproven), (established.len() + 1000, 0), "only what was proven is left");
    assert_eq!(ledger::taken_ports(maps).len(), alive.len(), "its ports are back");
}

#[test]
fn forged_syns_lose_nobody_and_keep_nobody_out() {
    withstand(Kind::Syn, Net::V4);
    withstand(Kind::Syn, Net::V6);
}

#[test]
fn forged_syns_with_blind_acknowledgements_lose_nobody_and_keep_nobody_out() {
    withstand(Kind::BlindAck, Net::V4);
}

#[test]
fn forged_datagrams_lose_nobody_and_keep_nobody_out() {
    withstand(Kind::Udp, Net::V4);
}

#[test]
fn forged_datagrams_that_are_answered_lose_nobody_and_keep_nobody_out() {
    withstand(Kind::AnsweredUdp, Net::V4);
}

#[test]
fn forged_datagrams_that_are_answered_twice_lose_nobody_and_keep_nobody_out() {
    withstand(Kind::RepeatedUdp, Net::V4);
}
