//! `bench packet`: what a packet costs, by test runs in the kernel.
//!
//! Everything runs on one CPU. Contenders take turns within each round, and so does the program that only sends, whose
//! time is subtracted: whatever else goes on with the machine concerns all of them alike.

mod peers;

use std::thread;

use anyhow::{Context, Result, ensure};
use lb_common::abi::Counter;

use self::peers::Peers;
use super::{
    Args,
    contender::{BASELINE, Contender, Loaded, PEER},
    counters::{Counters, Counts},
    flows::{Flow, Net},
    machine::CPU,
    report::{Cost, Range, Report},
    visits::Order,
};
use crate::{
    bench::{progress::Progress, samples::ratio},
    kernel_run::{Callee, Player, Tape, XDP_PASS, XDP_TX, pin_to_cpu},
};

/// Frames of a sample, at least: no longer than it takes to forget what the turn before left in the caches.
const LEAST_FRAMES: u32 = 300_000;
/// Where new flows are measured, tables are made for so many at least.
const LEAST_NEW: u32 = 1024;

/// How much is measured.
struct Plan {
    flows: &'static [u32],
    orders: &'static [Order],
    rounds: u32,
}

const FULL: Plan = Plan {
    flows: &[1, 1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20],
    orders: &[Order::Random, Order::Zipf],
    rounds: 9,
};
const QUICK: Plan = Plan { flows: &[1, 1 << 12, 1 << 16], orders: &[Order::Random], rounds: 5 };

/// A kind of packets of established flows, or of none.
struct Case {
    name: &'static str,
    frame: fn(Net, u32, &Flow) -> Vec<u8>,
    action: u32,
    /// Whether `baseline-lru` does the same with it.
    baseline: bool,
}

fn cases(net: Net) -> Vec<Case> {
    let case = |name, frame, action, baseline| Case { name, frame, action, baseline };
    match net {
        Net::V4 => vec![
            case("nat-request", |net, _, flow| net.request(flow), XDP_TX, true),
            case("nat-reply", |net, _, flow| net.reply(flow), XDP_TX, true),
            case("pass", |net, n, _| net.foreign(n), XDP_PASS, true),
            case("refused", |net, n, _| net.to_closed_port(n), XDP_TX, false),
        ],
        Net::V6 => vec![
            case("nat-request-v6", |net, _, flow| net.request(flow), XDP_TX, true),
            case("nat-reply-v6", |net, _, flow| net.reply(flow), XDP_TX, true),
        ],
        Net::Vlan => vec![case("nat-request-vlan", |net, _, flow| net.request(flow), XDP_TX, true)],
    }
}

/// The first frame of the n-th client's flow.
type FirstFrame = fn(Net, u32) -> Vec<u8>;

/// Kinds of packets that begin flows.
const NEW: [(&str, FirstFrame); 2] =
    [("new-tcp", |net, n| net.syn(n)), ("new-udp", |net, n| net.datagram(n))];

/// Measures all cases, and adds them to the report.
pub(super) fn measure(args: &Args, report: &mut Report) -> Result<()> {
    let plan = if args.quick { QUICK } else { FULL };
    let peers = Peers::load(args)?;
    let orders = (plan.flows.len() - 1) * plan.orders.len() + 1;
    let measurements = orders * 7 + plan.flows.len() * NEW.len();
    let progress = Progress::new(measurements as u64);
    progress.say("What a packet costs, in ns, by kind and number of flows.");
    // A thread of its own, for its CPU.
    thread::scope(|scope| {
        let measuring = scope.spawn(|| Bench { plan, peers, progress: &progress, report }.run());
        measuring.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

struct Bench<'a> {
    plan: Plan,
    peers: Peers,
    progress: &'a Progress,
    report: &'a mut Report,
}

/// A contender's frames of one case, and what they took.
struct Deck {
    program: &'static str,
    tape: Tape,
    whole: Player,
    alone: Player,
    /// What is to be done with each frame; none where that is the program's own matter.
    action: Option<u32>,
    net: Vec<f64>,
    writing: Vec<f64>,
    counters: Counters,
    /// Of the last round.
    counts: Counts,
}

impl Bench<'_> {
    fn run(mut self) -> Result<()> {
        pin_to_cpu(CPU).context("cannot pin the measurement to a CPU")?;
        let sender = Callee::that_sends()?;
        for net in [Net::V4, Net::V6, Net::Vlan] {
            self.established(net, &sender).with_context(|| format!("with established flows ({net:?})"))?;
        }
        for flows in self.plan.flows {
            for (case, frame) in NEW {
                let told = || format!("{case}, {flows} flows");
                self.new_flows(case, frame, *flows, &sender).with_context(told)?;
            }
        }
        if let Some(program) = self.peers.program.take() {
            self.report.programs.push(program);
        }
        compare(&mut self.report.packet);
        Ok(())
    }

    fn established(&mut self, net: Net, sender: &Callee) -> Result<()> {
        let most = self.plan.flows.iter().copied().max().unwrap_or(1);
        self.progress.say(&format!("Loading programs with tables for {most} flows ({net:?})."));
        let mut contenders = [Contender::kanmon(net, most)?, Contender::baseline(net, most)?];
        if net == Net::V4 {
            for contender in &contenders {
                self.report.programs.push(contender.describe(most)?);
            }
        }
        for flows in self.plan.flows.iter().copied() {
            for contender in &mut contenders {
                contender.establish(net, flows)?;
            }
            for case in cases(net) {
                for order in self.plan.orders.iter().filter(|order| flows > 1 || **order == Order::Random) {
                    let told = || format!("{}, {flows} flows", case.name);
                    let mut decks = Vec::new();
                    let visits = order.of(flows);
                    for contender in contenders.iter_mut().filter(|it| case.baseline || it.name != BASELINE) {
                        let made = contender.establish(net, flows)?.iter().zip(0..);
                        let frames: Vec<_> = made.map(|(flow, n)| (case.frame)(net, n, flow)).collect();
                        let action = Some(case.action);
                        let deck =
                            Deck::new(contender.name, &contender.callee, sender, &frames, &visits, action);
                        decks.push(deck.with_context(told)?);
                    }
                    decks.extend(self.peer_deck(case.name, flows, *order, sender)?);
                    for round in 0..=self.plan.rounds {
                        for deck in &mut decks {
                            deck.play(round > 0).with_context(told)?;
                        }
                    }
                    self.add(case.name, flows, *order, decks);
                }
            }
        }
        Ok(())
    }

    /// The peer with its own frames, where there are so many of this case.
    fn peer_deck(&self, case: &str, flows: u32, order: Order, sender: &Callee) -> Result<Option<Deck>> {
        let Some((callee, frames)) = self.peers.frames(case, flows) else { return Ok(None) };
        let told = || format!("the peer's frames for {case}");
        Deck::new(PEER, callee, sender, frames, &order.of(flows), None).map(Some).with_context(told)
    }

    /// Half as many as tables are made for, one after the other, from empty tables on.
    fn new_flows(
        &mut self,
        case: &'static str,
        frame: FirstFrame,
        flows: u32,
        sender: &Callee,
    ) -> Result<()> {
        let net = Net::V4;
        let room = flows.max(LEAST_NEW);
        let frames: Vec<_> = (0..room / 2).map(|n| frame(net, n)).collect();
        let visits = Order::Random.of(frames.len() as u32);
        let mut kanmon = Contender::kanmon(net, room)?;
        let deck = |contender: &Contender| {
            Deck::new(contender.name, &contender.callee, sender, &frames, &visits, Some(XDP_TX))
        };
        let mut own = deck(&kanmon)?;
        let mut baseline_deck: Option<Deck> = None;
        let mut peer = self.peer_deck(case, flows, Order::Random, sender)?;
        for round in 0..=self.plan.rounds {
            own.open(&mut kanmon, round > 0)?;
            // Empty again, as Kanmon's tables are.
            let fresh = Contender::baseline(net, room)?;
            let mut other = deck(&fresh)?;
            other.play_once(round > 0)?;
            match &mut baseline_deck {
                Some(all) => all.take_from(other),
                None => baseline_deck = Some(other),
            }
            if let Some(peer) = &mut peer {
                peer.play(round > 0)?;
            }
        }
        let decks = [Some(own), baseline_deck, peer].into_iter().flatten().collect();
        self.add(case, flows, Order::Random, decks);
        Ok(())
    }

    fn add(&mut self, case: &'static str, flows: u32, order: Order, decks: Vec<Deck>) {
        let mut parts = Vec::new();
        for deck in decks {
            let cost = Cost {
                case,
                flows,
                order: order.name(),
                program: deck.program,
                ns: Range::of(&deck.net),
                writing_ns: Range::of(&deck.writing),
                counts: deck.counts,
                to_baseline: None,
            };
            parts.push(format!("{} {}", cost.program, cost.ns));
            self.report.packet.push(cost);
        }
        self.progress.done(&format!("{case}, {flows} flows, {}: {}", order.name(), parts.join(", ")));
    }
}

impl Deck {
    fn new(
        program: &'static str,
        callee: &Callee,
        sender: &Callee,
        frames: &[Vec<u8>],
        visits: &[u32],
        action: Option<u32>,
    ) -> Result<Deck> {
        let tape = Tape::new(frames, visits)?;
        let (whole, alone) = (tape.player(callee)?, tape.player(sender)?);
        Ok(Deck {
            program,
            tape,
            whole,
            alone,
            action,
            net: Vec::new(),
            writing: Vec::new(),
            counters: Counters::open(),
            counts: Counts::default(),
        })
    }

    /// Plays the tape, often enough to be timed.
    fn play(&mut self, counts: bool) -> Result<()> {
        let times = LEAST_FRAMES.div_ceil(self.tape.len());
        self.play_frames(times * self.tape.len(), counts)
    }

    /// Plays the tape once.
    fn play_once(&mut self, counts: bool) -> Result<()> {
        self.play_frames(self.tape.len(), counts)
    }

    fn play_frames(&mut self, frames: u32, counts: bool) -> Result<()> {
        self.tape.rewind();
        let (alone, alone_counts) = self.counters.during(|| self.alone.play(frames));
        self.tape.rewind();
        let (whole, whole_counts) = self.counters.during(|| self.whole.play(frames));
        let ((writing, _), (whole, action)) = (alone?, whole?);
        self.counts = whole_counts.beyond(alone_counts, frames);
        let expected = self.action.unwrap_or(action);
        ensure!(action == expected, "{} did {action} with the last frame, not {expected}", self.program);
        if counts {
            self.writing.push(writing);
            self.net.push(whole - writing);
        }
        Ok(())
    }

    /// Plays the tape once to Kanmon's empty tables.
    fn open(&mut self, kanmon: &mut Contender, counts: bool) -> Result<()> {
        let opened = |kanmon: &Contender| match &kanmon.loaded {
            Loaded::Kanmon(kernel) => kernel.tables.counter(Counter::FlowOpened),
            Loaded::Baseline(_) => 0,
        };
        if let Loaded::Kanmon(kernel) = &kanmon.loaded {
            kernel.tables.forget_packets();
        }
        kanmon.drain();
        self.play_once(counts)?;
        let (opened, frames) = (opened(kanmon), u64::from(self.tape.len()));
        // While a table fills up, a few find both of their buckets full.
        ensure!(opened >= frames - frames / 1000, "{opened} of {frames} frames opened a flow");
        Ok(())
    }

    fn take_from(&mut self, other: Deck) {
        self.net.extend(other.net);
        self.writing.extend(other.writing);
    }
}

/// Puts each figure beside the baseline's.
fn compare(costs: &mut [Cost]) {
    let baselines: Vec<Cost> = costs.iter().filter(|cost| cost.program == BASELINE).cloned().collect();
    for cost in costs {
        let same =
            |other: &&Cost| (other.case, other.flows, other.order) == (cost.case, cost.flows, cost.order);
        let baseline = baselines.iter().find(same);
        cost.to_baseline = baseline.and_then(|baseline| ratio(cost.ns.median, baseline.ns.median));
    }
}

/// The names of all cases, for who gives a peer's packets.
fn names() -> Vec<&'static str> {
    let established = [Net::V4, Net::V6, Net::Vlan].into_iter().flat_map(cases).map(|case| case.name);
    established.chain(NEW.map(|(name, _)| name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::figures::contender::KANMON;

    #[test]
    fn a_figure_stands_beside_the_baseline_of_its_case_flows_and_order() {
        let cost = |program, flows, median| Cost {
            case: "nat-request",
            flows,
            order: "random",
            program,
            ns: Range { min: 1.0, median, max: 99.0 },
            writing_ns: Range::default(),
            counts: Counts::default(),
            to_baseline: None,
        };
        let mut costs =
            [cost(KANMON, 1, 20.0), cost(BASELINE, 1, 40.0), cost(KANMON, 2, 30.0), cost(PEER, 1, 60.0)];
        compare(&mut costs);
        let ratios: Vec<_> = costs.iter().map(|cost| cost.to_baseline).collect();
        assert_eq!(ratios, [Some(0.5), Some(1.0), None, Some(1.5)]);
    }

    #[test]
    fn no_two_cases_have_one_name() {
        let mut all = names();
        all.sort_unstable();
        assert!(all.windows(2).all(|two| two[0] != two[1]));
    }
}
