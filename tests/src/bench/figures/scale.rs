//! `bench scale`: how what the others measure grows with services and backends, and memory with flows.
//!
//! Gateways with ever more services take turns in each round; the smallest one is what the others are compared to. What
//! flows do to a packet and to the wire is in those figures already.

use std::thread;

use anyhow::{Context, Result};
use lb_common::{abi::TCP, host::NextHop};

use super::{
    contender::Contender,
    deck::Deck,
    flows::{Net, Serving},
    machine::CPU,
    report::{Growth, Range, Report, Timing},
    ring,
    visits::Order,
    wire,
};
use crate::{
    bench::{progress::Progress, samples::ratio},
    kernel_run::{Callee, XDP_PASS, XDP_TX, pin_to_cpu},
};

/// How much is measured.
struct Plan {
    services: &'static [u32],
    /// Flows of all services together.
    flows: u32,
    /// Flows that tables are made for where that is what grows.
    tables: &'static [u32],
    rounds: u32,
}

const FULL: Plan = Plan {
    services: &[1, 10, 100, 1000, 10_000],
    flows: 1 << 16,
    tables: &[1 << 10, 1 << 14, 1 << 18, 1 << 20, 1 << 22],
    rounds: 9,
};
const QUICK: Plan =
    Plan { services: &[1, 100, 1000], flows: 1 << 14, tables: &[1 << 10, 1 << 18], rounds: 3 };
/// Backends of a service.
const BACKENDS: u32 = 10;
const MEGABYTE: f64 = 1e6;

/// Measures all, and adds it to the report.
pub(super) fn measure(quick: bool, report: &mut Report) -> Result<()> {
    let plan = if quick { QUICK } else { FULL };
    let progress = Progress::new(plan.services.len() as u64 * 4);
    progress.say("What grows with services and backends.");
    // A thread of its own, for its CPU.
    let packets = thread::scope(|scope| {
        let measuring = scope.spawn(|| packets(&plan, &progress));
        measuring.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    report.scale.extend(packets.context("with many services")?);
    report.scale.extend(on_the_wire(&plan, quick, &progress).context("on the wire with many services")?);
    report.scale.extend(tables(&plan)?);
    report.scale.extend(ring::scale(quick)?.into_iter().flat_map(of_the_agent));
    compare(&mut report.scale);
    Ok(())
}

fn servings(plan: &Plan) -> Vec<Serving> {
    let serving = |services: &u32| Serving { services: *services, protocols: &[TCP], backends: BACKENDS };
    plan.services.iter().map(serving).collect()
}

fn growth(what: &str, unit: &'static str, serving: Serving, flows: Option<u32>, value: Range) -> Growth {
    let (services, backends) = (serving.services, serving.all_backends());
    Growth { what: what.to_owned(), unit, services, backends, flows, value, to_smallest: None }
}

/// What a packet takes, and what the maps take.
fn packets(plan: &Plan, progress: &Progress) -> Result<Vec<Growth>> {
    pin_to_cpu(CPU).context("cannot pin the measurement to a CPU")?;
    let (net, sender) = (Net::V4, Callee::that_sends()?);
    let servings = servings(plan);
    let mut gateways = Vec::new();
    for serving in &servings {
        progress.begin(&format!("loading {} services", serving.services));
        gateways.push(Contender::kanmon_serving(net, *serving, plan.flows, &NextHop::default())?);
    }
    let visits = Order::Random.of(plan.flows);
    let mut rows = Vec::new();
    for what in ["nat-request", "pass", "new-tcp"] {
        let mut decks = Vec::new();
        for (gateway, serving) in gateways.iter_mut().zip(&servings) {
            let (action, frames): (&[u32], Vec<_>) = match what {
                "nat-request" => {
                    let flows = gateway.establish(net, plan.flows)?;
                    (&[XDP_TX], flows.iter().map(|flow| net.request(flow)).collect())
                }
                "pass" => (&[XDP_PASS], (0..plan.flows).map(|n| net.foreign(n)).collect()),
                _ => {
                    let syn = |n| net.syn_to(serving.vip_for(net, n), n);
                    (&[XDP_TX], (0..plan.flows / 2).map(syn).collect())
                }
            };
            let visits: Vec<u32> =
                visits.iter().copied().filter(|visit| (*visit as usize) < frames.len()).collect();
            decks.push(Deck::new(gateway.name, &gateway.callee, &sender, &frames, &visits, action)?);
        }
        for round in 0..=plan.rounds {
            for (gateway, deck) in gateways.iter_mut().zip(&mut decks) {
                match what {
                    "new-tcp" => deck.open(gateway, round > 0)?,
                    _ => deck.play(round > 0)?,
                }
            }
        }
        for (deck, serving) in decks.iter().zip(&servings) {
            let cost = deck.cost(what, plan.flows, Order::Random);
            progress.done(&format!("{what}, {} services: {}", serving.services, cost.ns));
            rows.push(growth(what, "ns", *serving, Some(plan.flows), cost.ns));
        }
    }
    for (gateway, serving) in gateways.iter().zip(&servings) {
        let bytes = Range::of(&[gateway.map_bytes()? as f64 / MEGABYTE]);
        rows.push(growth("maps", "MB", *serving, Some(plan.flows), bytes));
    }
    Ok(rows)
}

fn on_the_wire(plan: &Plan, quick: bool, progress: &Progress) -> Result<Vec<Growth>> {
    let servings = servings(plan);
    let measured = wire::with_services(quick, plan.flows, &servings)?;
    let rows = servings.iter().zip(measured).map(|(serving, ns)| {
        progress.done(&format!("wire, {} services: {ns}", serving.services));
        growth("wire", "ns", *serving, Some(plan.flows), ns)
    });
    Ok(rows.collect())
}

/// What the maps take for more and more flows.
fn tables(plan: &Plan) -> Result<Vec<Growth>> {
    let of = |flows: &u32| {
        let gateway = Contender::kanmon(Net::V4, *flows)?;
        let bytes = Range::of(&[gateway.map_bytes()? as f64 / MEGABYTE]);
        Ok(growth("maps by flows", "MB", Serving::ONE, Some(*flows), bytes))
    };
    plan.tables.iter().map(of).collect()
}

/// What the agent took, and what it filled.
fn of_the_agent(timing: Timing) -> Vec<Growth> {
    let row = |what: String, unit, value| Growth {
        what,
        unit,
        services: timing.services,
        backends: timing.backends,
        flows: None,
        value,
        to_smallest: None,
    };
    let bytes = timing.bytes.map(|bytes| Range::of(&[bytes as f64 / MEGABYTE]));
    let memory = bytes.map(|bytes| row(format!("{}, memory", timing.what), "MB", bytes));
    [Some(row(timing.what.clone(), "ms", timing.ms)), memory].into_iter().flatten().collect()
}

/// Puts each figure beside the smallest gateway's: the first of its kind.
fn compare(rows: &mut [Growth]) {
    let smallest: Vec<(String, f64)> = rows.iter().map(|row| (row.what.clone(), row.value.median)).collect();
    for row in rows {
        let first = smallest.iter().find(|(what, _)| *what == row.what);
        row.to_smallest = first.and_then(|(_, least)| ratio(row.value.median, *least));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_stands_beside_the_smallest_of_its_kind() {
        let timing = |what: &str, backends, ms, bytes| Timing {
            what: what.into(),
            slots: 251,
            services: 1,
            backends,
            ms: Range::of(&[ms]),
            disruption: None,
            bytes,
        };
        let timings = [
            timing("ring", 1, 2.0, Some(1_000_000)),
            timing("change", 10, 3.0, None),
            timing("ring", 10, 5.0, None),
        ];
        let mut rows: Vec<Growth> = timings.into_iter().flat_map(of_the_agent).collect();
        compare(&mut rows);
        let said: Vec<_> = rows.iter().map(|row| (row.what.as_str(), row.unit, row.to_smallest)).collect();
        assert_eq!(
            said,
            [
                ("ring", "ms", Some(1.0)),
                ("ring, memory", "MB", Some(1.0)),
                ("change", "ms", Some(1.0)),
                ("ring", "ms", Some(2.5))
            ]
        );
    }
}
