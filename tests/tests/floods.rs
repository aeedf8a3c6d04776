//! A flood of forged SYNs through the packet program in the kernel: 5,000,000 in 30 s of its clock, against 100,000
//! established flows of twelve backends with one SNAT address. None of these is lost, real clients get in, and at the
//! end only what was proven is left. (`lb-common/tests/datapath/floods.rs` has the other kinds of floods.)
//!
//! `KANMON_TEST_LONG=1` sends all of them, otherwise it is half a million in 3 s.

use std::{env, net::SocketAddr};

use anyhow::{Context, Result, ensure};
use lb_common::{
    abi::{Counter, FlowState, PORT_BITMAP_WORDS, TCP},
    clock,
    datapath::{
        Cells as _, V4,
        sweep::{self, Ended, Observer},
    },
    host::{ACK, Frame, Gateway, GatewayConfig, RST, SYN, Seen, Sizes, Transport},
};
use tests::kernel_run::{Clock, KernelProgram, MAX_HEAD_ROOM, Runner, XDP_TX, pin_to_cpu};

const VIP: &str = "203.0.113.10:80";
/// The last 16 bits and the port are the forger's to choose.
const FORGED: &str = "198.18.0.0:0";
const BACKENDS: u8 = 12;
const ESTABLISHED: u32 = 100_000;
const LOOPBACK: u32 = 1;
/// Forged SYNs between two looks at the clock, and what it goes on by.
const CHUNK: u32 = 2000;
const CHUNK_TIME: u64 = 12_000_000;
/// Chunks from a SYN to its answer, from there to the client's ACK, and to a SYN that is sent again.
const ANSWER: u64 = 1;
const PROOF: u64 = 4;
const RETRANSMISSIONS: [u64; 2] = [84, 84 + 167];
/// What Linux sends with a SYN.
const OPTIONS: [u8; 20] = [2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 1, 3, 3, 7];
const SERVER_ISN: u32 = 5000;

#[derive(Clone, Copy, Debug)]
struct Flow {
    client: SocketAddr,
    snat: SocketAddr,
    backend: SocketAddr,
}

/// The gateway and everybody who is not a forger.
struct World {
    kernel: KernelProgram,
    runner: Runner,
    vip: SocketAddr,
}

impl World {
    fn new() -> Result<Self> {
        let settings = GatewayConfig {
            sizes: Sizes {
                flow_buckets: 1 << 16,
                reverse_v4_buckets: 1 << 16,
                reverse_v6_buckets: 1 << 8,
                cpus: std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32),
                ..GatewayConfig::default().sizes
            },
            ..GatewayConfig::default()
        };
        let vip = VIP.parse()?;
        let mut gateway = Gateway::new(&settings, 1);
        let backends: Vec<SocketAddr> = (1..=BACKENDS).map(|n| ([10, 0, 0, n], 8080).into()).collect();
        gateway.add_service(vip, TCP, &backends);
        let mut kernel = KernelProgram::load(&settings.sizes, Clock::Injected)?;
        kernel.mirror(&gateway.maps)?;
        kernel.tables.set_clock(1 << 40);
        let runner = kernel.runner()?;
        Ok(Self { kernel, runner, vip })
    }

    /// What comes out of the gateway, if that is not a refusal.
    fn pass(&mut self, frame: &Frame) -> Result<Option<Seen>> {
        let outcome = self.runner.run(&frame.build(), LOOPBACK, MAX_HEAD_ROOM)?;
        if outcome.action != XDP_TX {
            return Ok(None);
        }
        let seen = Seen::parse(outcome.frame).map_err(anyhow::Error::msg)?;
        Ok(Some(seen).filter(|seen| seen.flags & RST == 0))
    }

    fn open(&mut self, client: SocketAddr) -> Result<Option<Flow>> {
        let seen = self.pass(&Frame::tcp(client, self.vip, SYN))?;
        Ok(seen.map(|seen| Flow { client, snat: seen.source, backend: seen.destination }))
    }

    /// Whether the backend's answer reaches the client.
    fn answer(&mut self, flow: &Flow) -> Result<bool> {
        let answer = Frame::tcp(flow.backend, flow.snat, SYN | ACK).numbers(SERVER_ISN, 1001);
        Ok(self.pass(&answer)?.is_some_and(|seen| seen.destination == flow.client))
    }

    /// Whether a segment of the client's reaches the flow's backend.
    fn request(&mut self, flow: &Flow) -> Result<bool> {
        let request =
            Frame::tcp(flow.client, self.vip, ACK).numbers(1001, SERVER_ISN + 1).payload(b"request");
        let seen = self.pass(&request)?;
        Ok(seen.is_some_and(|seen| (seen.source, seen.destination) == (flow.snat, flow.backend)))
    }

    /// Whether a segment of the backend's reaches the flow's client.
    fn reply(&mut self, flow: &Flow) -> Result<bool> {
        let reply = Frame::tcp(flow.backend, flow.snat, ACK).numbers(SERVER_ISN + 1, 1001).payload(b"reply");
        Ok(self.pass(&reply)?.is_some_and(|seen| (seen.source, seen.destination) == (self.vip, flow.client)))
    }

    fn establish(&mut self, client: SocketAddr) -> Result<Option<Flow>> {
        let Some(flow) = self.open(client)? else { return Ok(None) };
        Ok((self.answer(&flow)? && self.request(&flow)?).then_some(flow))
    }

    fn is_whole(&mut self, flow: &Flow) -> Result<bool> {
        Ok(self.request(flow)? && self.reply(flow)?)
    }

    /// Two passes of the agent's sweep; the flows that are left, by whether they are established, and the ports.
    fn sweep(&self, now: u64) -> (u64, u64, u32) {
        let tables = &self.kernel.tables;
        let Some(config) = lb_common::datapath::Tables::config(&tables) else { return (0, 0, 0) };
        let mut left = Left::default();
        for _ in 0..3 {
            left = Left::default();
            for bucket in 0..tables.flows.len() {
                sweep::flow_bucket(&tables, config, bucket, clock::tick(now), &mut left);
            }
            for bucket in 0..tables.reverse_v4.len() {
                sweep::reverse_bucket::<V4, _>(&tables, config, bucket, &mut left);
            }
        }
        let words = (0..tables.ports.len()).filter_map(|index| tables.ports.get(index));
        let ports =
            words.flat_map(|cells| (0..PORT_BITMAP_WORDS).map(move |word| cells.load(word).count_ones()));
        (left.established, left.others, ports.sum())
    }
}

/// What the sweep has seen.
#[derive(Default)]
struct Left {
    established: u64,
    others: u64,
}

impl Observer for Left {
    fn flow(&mut self, state: FlowState, _member: u32) {
        let count = if state == FlowState::Established { &mut self.established } else { &mut self.others };
        *count += 1;
    }

    fn evicted(&mut self, _ended: &Ended) {}

    fn last_hop(&mut self, _index: u16) {}

    fn mended(&mut self) {}

    fn is_unwanted(&self, _member: u32) -> bool {
        false
    }
}

fn client(number: u32) -> SocketAddr {
    let [_, b, c, d] = number.to_be_bytes();
    ([100, b, c, d], 20_000 + (number % 40_000) as u16).into()
}

/// A client that comes during the flood, with the chunk of its next step.
struct Attempt {
    client: SocketAddr,
    retransmissions: usize,
    begun: u64,
    step: Step,
}

enum Step {
    Send(u64),
    Answer(u64, Flow),
    Prove(u64, Flow),
    Over,
}

impl Attempt {
    /// When it sends its SYN again; it is given up where it has done so twice.
    fn again(&mut self) -> Step {
        let after = RETRANSMISSIONS.get(self.retransmissions);
        self.retransmissions += 1;
        after.map_or(Step::Over, |after| Step::Send(self.begun + after))
    }

    /// What it does at `chunk`; the flow once it is proven.
    fn advance(&mut self, world: &mut World, chunk: u64) -> Result<Option<Flow>> {
        match self.step {
            Step::Send(at) if at <= chunk => {
                self.step = match world.open(self.client)? {
                    Some(flow) => Step::Answer(chunk + ANSWER, flow),
                    None => self.again(),
                };
            }
            Step::Answer(at, flow) if at <= chunk => {
                self.step =
                    if world.answer(&flow)? { Step::Prove(chunk + PROOF, flow) } else { self.again() };
            }
            Step::Prove(at, flow) if at <= chunk => {
                self.step = Step::Over;
                return Ok(world.request(&flow)?.then_some(flow));
            }
            _ => {}
        }
        Ok(None)
    }
}

#[test]
fn five_million_forged_syns_lose_nobody_and_keep_nobody_out() -> Result<()> {
    pin_to_cpu(0)?;
    let is_long = env::var("KANMON_TEST_LONG").is_ok_and(|value| value == "1");
    let chunks = if is_long { 2500 } else { 250 };
    let mut world = World::new()?;
    let mut established = Vec::new();
    for number in 0..ESTABLISHED {
        established.push(world.establish(client(number))?.context("room for 100,000 flows")?);
    }
    let mut forged = Frame::tcp(FORGED.parse()?, world.vip, SYN);
    if let Transport::Tcp { options, .. } = &mut forged.transport {
        *options = OPTIONS.to_vec();
    }
    let mut flood = world.kernel.stream(&forged)?;
    let mut now = 1 << 40;
    let mut attempts: Vec<Attempt> = Vec::new();
    let mut succeeded = [0_u64; 3];
    for chunk in 0..chunks + 300 {
        if chunk < chunks {
            // The last of a chunk may find no port, which is no failure of the flood's.
            let _ = flood.time(CHUNK);
            for _ in 0..4 {
                let client = client(1_000_000 + attempts.len() as u32);
                attempts.push(Attempt { client, retransmissions: 0, begun: chunk, step: Step::Send(chunk) });
            }
        }
        now += CHUNK_TIME;
        world.kernel.tables.set_clock(now);
        for attempt in &mut attempts {
            if let Some(flow) = attempt.advance(&mut world, chunk)? {
                succeeded[attempt.retransmissions] += 1;
                established.push(flow);
            }
        }
    }
    let count = |counter| world.kernel.tables.counter(counter);
    let (opened, exhausted) = (count(Counter::FlowOpened), count(Counter::DropPortsExhausted));
    let (full, reclaimed) = (count(Counter::DropTableFull), count(Counter::PortReclaimed));
    let mut lost = 0;
    for flow in &established {
        lost += u64::from(!world.is_whole(flow)?);
    }
    println!(
        "{} forged SYNs: {opened} flows made in all; {ESTABLISHED} flows established before and {} meanwhile, {lost} lost; \
         {} connections begun, {succeeded:?} done after 0, 1, 2 retransmissions; ports reclaimed {reclaimed}, table full \
         {full}, ports exhausted {exhausted}",
        chunks * u64::from(CHUNK),
        established.len() - ESTABLISHED as usize,
        attempts.len(),
    );
    assert_eq!(lost, 0, "established flows");
    let share = succeeded.iter().sum::<u64>() as f64 / attempts.len() as f64;
    assert!(share >= 0.99, "{share} of the connections that began in the flood");
    ensure!(opened > chunks * u64::from(CHUNK) / 2, "the flood came through: {opened}");

    // Nobody's help: the flood's flows have expired where they are.
    now += 11_000_000_000;
    world.kernel.tables.set_clock(now);
    for number in 0..1000 {
        established
            .push(world.establish(client(2_000_000 + number))?.context("a connection after the flood")?);
    }
    let left = world.sweep(now);
    assert_eq!(left, (established.len() as u64, 0, established.len() as u32), "established, others, ports");
    Ok(())
}
