//! `bench packet`: what a packet costs, by test runs in the kernel.
//!
//! Everything runs on one CPU. Contenders take turns within each round, and so does the program that only sends, whose
//! time is subtracted: whatever else goes on with the machine concerns all of them alike.

mod peers;

use std::thread;

use anyhow::{Context, Result};

use self::peers::Peers;
use super::{
    Args,
    contender::{BASELINE, Contender, PEER},
    deck::Deck,
    flows::{Flow, Net},
    machine::CPU,
    report::{Cost, Report},
    visits::Order,
};
use crate::{
    bench::{progress::Progress, samples::ratio},
    kernel_run::{Callee, XDP_PASS, XDP_TX, pin_to_cpu},
};

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

/// What is done with a frame that goes on: all of these come from the interface that they leave by.
const SENT: &[u32] = &[XDP_TX];

/// A kind of packets of established flows, or of none.
struct Case {
    name: &'static str,
    frame: fn(Net, u32, &Flow) -> Vec<u8>,
    /// What Kanmon and the baseline do with it.
    actions: &'static [u32],
    /// Whether `baseline-lru` does the same with it.
    baseline: bool,
}

fn cases(net: Net) -> Vec<Case> {
    let case = |name, frame, actions, baseline| Case { name, frame, actions, baseline };
    match net {
        Net::V4 => vec![
            case("nat-request", |net, _, flow| net.request(flow), SENT, true),
            case("nat-reply", |net, _, flow| net.reply(flow), SENT, true),
            case("pass", |net, n, _| net.foreign(n), &[XDP_PASS], true),
            case("refused", |net, n, _| net.to_closed_port(n), SENT, false),
        ],
        Net::V6 => vec![
            case("nat-request-v6", |net, _, flow| net.request(flow), SENT, true),
            case("nat-reply-v6", |net, _, flow| net.reply(flow), SENT, true),
        ],
        Net::Vlan => vec![case("nat-request-vlan", |net, _, flow| net.request(flow), SENT, true)],
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
                        let (name, callee) = (contender.name, &contender.callee);
                        let deck = Deck::new(name, callee, sender, &frames, &visits, case.actions);
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
        let given = self.peers.callee.as_ref().zip(self.peers.frames(case, flows));
        let Some((callee, frames)) = given else { return Ok(None) };
        let told = || format!("the peer's frames for {case}");
        let deck = Deck::new(PEER, callee, sender, &frames, &order.of(flows), peers::actions(case));
        deck.map(Some).with_context(told)
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
            Deck::new(contender.name, &contender.callee, sender, &frames, &visits, SENT)
        };
        let mut own = deck(&kanmon)?;
        let mut baseline_deck: Option<Deck> = None;
        // As many: but nobody empties its tables.
        let mut peer = self.peer_deck(case, room / 2, Order::Random, sender)?;
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
            let cost = deck.cost(case, flows, order);
            parts.push(format!("{} {}", cost.program, cost.ns));
            self.report.packet.push(cost);
        }
        self.progress.done(&format!("{case}, {flows} flows, {}: {}", order.name(), parts.join(", ")));
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
    use crate::bench::figures::{contender::KANMON, counters::Counts, report::Range};

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
