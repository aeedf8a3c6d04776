//! What was measured, as the JSON has it.

use std::fmt;

use anyhow::Result;
use serde::Serialize;

use super::{counters::Counts, machine::Machine};
use crate::bench::samples::median;

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
    pub(super) ring: Vec<Timing>,
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
}

/// What is to be reached.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Goal {
    pub(super) name: String,
    pub(super) op: &'static str,
    pub(super) goal: f64,
    pub(super) value: Option<f64>,
    /// None where it needs what was not measured.
    pub(super) met: Option<bool>,
}

/// Over the repeats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Range {
    pub(super) min: f64,
    pub(super) median: f64,
    pub(super) max: f64,
}

impl Range {
    /// Of samples in any order, to a hundredth; all 0 where there are none.
    pub(super) fn of(samples: &[f64]) -> Range {
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
            ring: Vec::new(),
            goals: Vec::new(),
        })
    }

    /// What a case cost a program; in random order.
    pub(super) fn cost(&self, case: &str, flows: u32, program: &str) -> Option<&Cost> {
        self.packet.iter().find(|cost| {
            cost.case == case && cost.flows == flows && cost.program == program && cost.order == "random"
        })
    }
}
