//! What was measured, as the JSON has it.

use std::fmt;

use anyhow::Result;
use serde::Serialize;

use super::{counters::Counts, machine::Machine};
use crate::bench::samples::median;

/// Contenders on the wire that goals speak of: who only sends back, who only counts, and the kernel's rules.
pub(super) const XDP_TX: &str = "xdp-tx";
pub(super) const GENERATOR: &str = "generator";
pub(super) const NFTABLES: &str = "nftables";

/// A whole run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) machine: Machine,
    /// Whether fewer flows and repeats were measured.
    pub(super) quick: bool,
    /// How long all of it took.
    pub(super) seconds: f64,
    pub(super) packet: Vec<Cost>,
    pub(super) programs: Vec<Program>,
    pub(super) wire: Vec<Passage>,
    pub(super) connections: Vec<Served>,
    pub(super) ring: Vec<Timing>,
    pub(super) scale: Vec<Growth>,
    pub(super) goals: Vec<Goal>,
}

/// What a packet costs, the writing of its frame subtracted.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Cost {
    pub(super) case: &'static str,
    pub(super) flows: u32,
    pub(super) order: &'static str,
    pub(super) program: &'static str,
    pub(super) ns: Range,
    /// What was subtracted.
    pub(super) writing_ns: Range,
    /// What the processor counted in the last round, less what it counted for writing frames.
    pub(super) counts: Counts,
    /// To `baseline-lru`'s, of the medians; of the baseline itself too. None where it does not know the case.
    pub(super) to_baseline: Option<f64>,
}

/// A program that was measured.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Program {
    pub(super) name: &'static str,
    /// Instructions that the verifier went through, of each part.
    pub(super) verified_instructions: Vec<(String, u32)>,
    /// Bytes of its maps for each of the flows that these are made for; none where that is not known.
    pub(super) bytes_per_flow: Option<f64>,
}

/// What one CPU forwards, live; figures are none where something lacks.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Passage {
    pub(super) contender: &'static str,
    pub(super) flows: u32,
    /// Processor time for each frame that arrived, all on one CPU.
    pub(super) ns: Option<Range>,
    /// By that time.
    pub(super) packets_per_second: Option<Range>,
    /// The same by the wall's clock, with whatever else that CPU did.
    pub(super) wall_ns: Option<Range>,
    /// The share of frames that never arrived, in the worst round.
    pub(super) lost: Option<f64>,
    /// Why it was not measured.
    pub(super) lack: Option<String>,
}

/// What clients got through a contender.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Served {
    pub(super) contender: &'static str,
    /// `new`, `keep-alive`, `bulk` or `open`.
    pub(super) what: &'static str,
    /// Of what there is so much a second, and what takes the processor time.
    pub(super) unit: &'static str,
    pub(super) per_second: Range,
    /// None where nothing is waited for.
    pub(super) p50_ms: Option<Range>,
    pub(super) p99_ms: Option<Range>,
    pub(super) p999_ms: Option<Range>,
    /// Processor time of everybody, client and servers too, for each.
    pub(super) cpu_us: Range,
    /// What of it the direct way does not take; of the medians.
    pub(super) cpu_us_between: Option<f64>,
    /// As a share of what goes the direct way.
    pub(super) to_direct: Option<f64>,
    /// Of all rounds.
    pub(super) failed: usize,
}

/// Something that takes ms.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Timing {
    pub(super) what: String,
    pub(super) slots: u32,
    pub(super) services: u32,
    pub(super) backends: u32,
    pub(super) ms: Range,
    /// The share of a ring's slots that move without need when a backend goes; none where no backend does.
    pub(super) disruption: Option<f64>,
    /// Of a ring, or of all maps; none where that was not asked for.
    pub(super) bytes: Option<u64>,
}

/// What something takes with so many services, backends and flows loaded.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Growth {
    pub(super) what: String,
    /// `ns` a frame, `ms`, or `MB` (10⁶ bytes).
    pub(super) unit: &'static str,
    pub(super) services: u32,
    /// Of all services together.
    pub(super) backends: u32,
    /// None where flows do not matter.
    pub(super) flows: Option<u32>,
    pub(super) value: Range,
    /// To the smallest of its kind, of the medians.
    pub(super) to_smallest: Option<f64>,
}

/// What is to be reached.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(in crate::bench) struct Goal {
    pub(in crate::bench) name: String,
    pub(in crate::bench) op: &'static str,
    pub(in crate::bench) goal: f64,
    pub(in crate::bench) value: Option<f64>,
    /// None where it needs what was not measured.
    pub(in crate::bench) met: Option<bool>,
}

/// Over the repeats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(in crate::bench) struct Range {
    pub(in crate::bench) min: f64,
    pub(in crate::bench) median: f64,
    pub(in crate::bench) max: f64,
}

impl Range {
    /// Of samples in any order, to a hundredth; all 0 where there are none.
    pub(in crate::bench) fn of(samples: &[f64]) -> Range {
        let mut sorted: Vec<f64> = samples.iter().map(|sample| (sample * 100.0).round() / 100.0).collect();
        sorted.sort_by(f64::total_cmp);
        let end = |value: Option<&f64>| value.copied().unwrap_or_default();
        Range { min: end(sorted.first()), median: median(&sorted), max: end(sorted.last()) }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} ({:.1}–{:.1})", self.median, self.min, self.max)
    }
}

impl Report {
    pub(super) fn new(quick: bool) -> Result<Report> {
        Ok(Report {
            machine: Machine::here()?,
            quick,
            seconds: 0.0,
            packet: Vec::new(),
            programs: Vec::new(),
            wire: Vec::new(),
            connections: Vec::new(),
            ring: Vec::new(),
            scale: Vec::new(),
            goals: Vec::new(),
        })
    }

    /// What clients got of one kind.
    pub(super) fn served(&self, contender: &str, what: &str) -> Option<&Served> {
        self.connections.iter().find(|row| row.contender == contender && row.what == what)
    }

    /// How long a frame takes on the wire; none where that was not measured.
    pub(super) fn passage(&self, contender: &str, flows: u32) -> Option<f64> {
        let found = self.wire.iter().find(|row| row.contender == contender && row.flows == flows);
        Some(found?.ns?.median)
    }

    /// What a case cost a program; in random order.
    pub(super) fn cost(&self, case: &str, flows: u32, program: &str) -> Option<&Cost> {
        self.packet.iter().find(|cost| {
            cost.case == case && cost.flows == flows && cost.program == program && cost.order == "random"
        })
    }
}
