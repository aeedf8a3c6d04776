//! What was found: JSON for programs, tables for people, and goals. Pure, but for what the machine is.

use std::fmt::{self, Write as _};

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::bench::{
    figures::{Goal, Machine, Range, at_most},
    samples::ratio,
};

/// MB (10⁶ bytes) that the largest size may take above an idle agent.
const MEMORY: f64 = 100.0;
/// ms from an endpoint's event to the maps, for 99 of 100.
const CHANGE: f64 = 10.0;
/// ms until the last ring is another one when a cluster is lost.
const LOSS: f64 = 500.0;

/// The whole benchmark.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) machine: Machine,
    pub(super) quick: bool,
    /// How long all of it took.
    pub(super) seconds: f64,
    /// From the smallest size to the largest.
    pub(super) sizes: Vec<Figures>,
    /// How much each figure of the largest size is of the smallest's.
    pub(super) growth: Vec<Growth>,
    pub(super) goals: Vec<Goal>,
}

/// What was measured at one size.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Figures {
    pub(super) services: u32,
    /// Of each service, in three clusters.
    pub(super) endpoints: u32,
    /// From the agent's start to its last write to the maps.
    pub(super) start_seconds: f64,
    /// An idle agent's own memory: nothing to serve, tables as large.
    pub(super) idle_bytes: u64,
    /// What the agent at rest has allocated above that.
    pub(super) bytes_above_idle: i64,
    /// Of one CPU.
    pub(super) cpu_at_rest_percent: f64,
    /// From an endpoint's watch event to another ring in the kernel.
    pub(super) change_ms: Quantiles,
    /// The same from the request that changed the slice.
    pub(super) change_from_write_ms: Quantiles,
    /// A member is disabled: from the request to the last of all rings.
    pub(super) loss_ms: Range,
    pub(super) storm: Storm,
    /// Endpoints of the one service that has many.
    pub(super) big_endpoints: u32,
    /// From the first request to its last ring.
    pub(super) big_load_seconds: f64,
    pub(super) big_change_ms: Quantiles,
}

/// Many changes a second.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Storm {
    pub(super) changes: u32,
    pub(super) seconds: f64,
    /// Changes that came while the last one of the same slice was not in the maps yet.
    pub(super) coalesced: u32,
    pub(super) lag_ms: Quantiles,
    /// A lag that grows shows here.
    pub(super) first_half_ms: Quantiles,
    pub(super) second_half_ms: Quantiles,
}

/// Of many samples, in ms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Quantiles {
    pub(super) count: usize,
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

/// One figure at the largest size, beside the smallest.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Growth {
    pub(super) figure: &'static str,
    pub(super) times: Option<f64>,
}

impl Quantiles {
    /// Of samples in any order, by the nearest rank; all 0 where there are none.
    pub(super) fn of(samples: &[f64]) -> Quantiles {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let rank = (share * sorted.len() as f64).ceil() as usize;
            sorted.get(rank.saturating_sub(1)).map_or(0.0, |value| (value * 100.0).round() / 100.0)
        };
        Quantiles { count: sorted.len(), p50: at(0.5), p99: at(0.99), max: at(1.0) }
    }
}

impl fmt::Display for Quantiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p50 {:.1}, p99 {:.1}, max {:.1} ms of {}", self.p50, self.p99, self.max, self.count)
    }
}

/// A figure of a size, and what it is called.
type Figure = (&'static str, fn(&Figures) -> f64);

const FIGURES: [Figure; 13] = [
    ("start to last write, s", |f| f.start_seconds),
    ("memory above idle, MB", |f| f.bytes_above_idle as f64 / 1e6),
    ("CPU at rest, %", |f| f.cpu_at_rest_percent),
    ("a change, p50 ms", |f| f.change_ms.p50),
    ("a change, p99 ms", |f| f.change_ms.p99),
    ("a change, max ms", |f| f.change_ms.max),
    ("a change from its request, p50 ms", |f| f.change_from_write_ms.p50),
    ("loss of a cluster, ms", |f| f.loss_ms.median),
    ("100 changes a second, p50 ms", |f| f.storm.lag_ms.p50),
    ("100 changes a second, p99 ms", |f| f.storm.lag_ms.p99),
    ("100 changes a second, max ms", |f| f.storm.lag_ms.max),
    ("one service of many endpoints, s", |f| f.big_load_seconds),
    ("a change of it, p50 ms", |f| f.big_change_ms.p50),
];

impl Report {
    /// Compares and judges.
    pub(super) fn close(&mut self) {
        if let (Some(first), Some(last)) = (self.sizes.first(), self.sizes.last()) {
            let grown = |(figure, of): &Figure| Growth { figure, times: ratio(of(last), of(first)) };
            self.growth = FIGURES.iter().map(grown).collect();
        }
        let last = self.sizes.last();
        let size = last.map_or_else(String::new, |last| format!("{}x{}", last.services, last.endpoints));
        let of = |value: fn(&Figures) -> f64| last.map(value);
        self.goals = vec![
            at_most(
                format!("control-plane/memory-mb/{size}"),
                MEMORY,
                of(|f| f.bytes_above_idle as f64 / 1e6),
            ),
            at_most(format!("control-plane/change-p99-ms/{size}"), CHANGE, of(|f| f.change_ms.p99)),
            at_most(format!("control-plane/loss-ms/{size}"), LOSS, of(|f| f.loss_ms.median)),
        ];
    }

    /// For the terminal.
    pub(super) fn tables(&self) -> String {
        let mut text = format!("\n{}\n", self.table().trim_fmt());
        for goal in &self.goals {
            let _ = write!(text, "\n{}", said(goal));
        }
        text
    }

    /// For docs/benchmarks.md.
    pub(super) fn markdown(&self) -> String {
        let mut text = format!(
            "## Control plane\n\n`cargo xtask bench control-plane --json FILE`, on {}, {} CPUs, Linux {}, with the API \
             servers of four clusters on the same CPUs; the run took {:.0} s. Slices are written directly, and nobody \
             probes the endpoints, which are nowhere.\n\n",
            self.machine.cpu, self.machine.cpus, self.machine.kernel, self.seconds
        );
        let mut table = self.table();
        table.load_style(presets::ASCII_MARKDOWN);
        let _ = writeln!(text, "{table}\n");
        self.goals.iter().for_each(|goal| {
            let _ = writeln!(text, "- {}", said(goal));
        });
        text
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        let sizes = self.sizes.iter().map(|size| format!("{} × {}", size.services, size.endpoints));
        let mut header = vec![String::new()];
        header.extend(sizes);
        header.push("times".to_owned());
        table.set_header(header);
        for ((name, of), growth) in FIGURES.iter().zip(&self.growth) {
            let mut row = vec![(*name).to_owned()];
            row.extend(self.sizes.iter().map(|size| format!("{:.2}", of(size))));
            row.push(growth.times.map_or_else(|| "–".to_owned(), |times| format!("{times:.1}")));
            table.add_row(row);
        }
        for column in 1..=self.sizes.len() + 1 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    }
}

fn said(goal: &Goal) -> String {
    let mark = match goal.met {
        Some(true) => "met",
        Some(false) => "missed",
        None => "not measured",
    };
    let value = goal.value.map_or_else(|| "–".to_owned(), |value| format!("{value:.2}"));
    format!("{mark}: {} is {value}, to be {} {}", goal.name, goal.op, goal.goal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(count: u32) -> Vec<f64> {
        (1..=count).rev().map(f64::from).collect()
    }

    #[test]
    fn of_a_thousand_samples_ten_are_above_the_99th_percentile() {
        let quantiles = Quantiles::of(&samples(1000));
        assert_eq!((quantiles.p50, quantiles.p99, quantiles.max), (500.0, 990.0, 1000.0));
        assert_eq!(Quantiles::of(&[]), Quantiles::default());
    }

    #[test]
    fn the_largest_size_is_judged_and_stands_beside_the_smallest() {
        let size = |services, memory| Figures {
            services,
            endpoints: 100,
            bytes_above_idle: memory,
            change_ms: Quantiles::of(&samples(9)),
            ..Figures::default()
        };
        let mut report = Report {
            machine: Machine::here().unwrap(),
            quick: true,
            seconds: 1.0,
            sizes: vec![size(100, 10_000_000), size(1000, 120_000_000)],
            growth: Vec::new(),
            goals: Vec::new(),
        };
        report.close();
        let met: Vec<_> = report.goals.iter().map(|goal| (goal.name.as_str(), goal.met)).collect();
        assert_eq!(
            met,
            [
                ("control-plane/memory-mb/1000x100", Some(false)),
                ("control-plane/change-p99-ms/1000x100", Some(true)),
                ("control-plane/loss-ms/1000x100", Some(true)),
            ]
        );
        assert_eq!(report.growth[1].times, Some(12.0));
        assert!(report.markdown().contains("| memory above idle, MB"), "{}", report.markdown());
    }
}
