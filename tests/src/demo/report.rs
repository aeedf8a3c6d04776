//! What `--report` writes.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use crate::{
    client::{Outcome, Tally},
    output::{kernel_release, write_for_caller},
};

/// How far a share of a ring may be from what was asked for, in points.
const RING_TOLERANCE: f64 = 0.1;

/// The whole run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// The kernel's release.
    pub(super) kernel: String,
    /// How the agent's program is attached: "native". Empty when the agent did not start.
    pub(super) attach: String,
    /// Whether there were steps and all of them were ok.
    pub(super) ok: bool,
    pub(super) seconds: f64,
    /// Why there are no steps, where the network or the agent could not be started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    pub(super) steps: Vec<StepReport>,
}

impl Report {
    pub(super) fn new() -> Result<Report> {
        Ok(Report {
            kernel: kernel_release()?,
            attach: String::new(),
            ok: false,
            seconds: 0.0,
            error: None,
            steps: Vec::new(),
        })
    }

    /// Sums up.
    pub(super) fn close(&mut self, took: Duration, error: Option<&anyhow::Error>) {
        self.seconds = tenths(took);
        self.error = error.map(|error| format!("{error:#}"));
        self.ok = error.is_none() && !self.steps.is_empty() && self.steps.iter().all(|step| step.ok);
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        write_for_caller(path, &(serde_json::to_string_pretty(self)? + "\n")).context("the report is lost")
    }
}

/// One step.
#[derive(Debug, Default, Serialize)]
pub(super) struct StepReport {
    pub(super) name: String,
    pub(super) ok: bool,
    pub(super) requests: u64,
    pub(super) failed: u64,
    pub(super) by_cluster: BTreeMap<String, u64>,
    pub(super) by_pod: BTreeMap<String, u64>,
    /// Milliseconds from the injected fault, as the step defines; null where none is injected.
    pub(super) ms: Option<u64>,
    /// What `ms` should be at most; it does not decide `ok`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) goal_ms: Option<u64>,
    /// Percent of the slots of the service's ring, read from the pinned maps when the requests began, by cluster or
    /// zone: where new flows are sent.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) ring_share: BTreeMap<String, f64>,
    /// Percent of the answers, by the same names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) traffic_share: BTreeMap<String, f64>,
    /// SYNs that the clients' kernels sent again, by TCP_INFO.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) syn_retransmissions: Option<u64>,
    /// The same, of the connection that needed most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) most_syn_retransmissions: Option<u32>,
    /// How the watched share of the ring moved, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) transitions: Vec<Move>,
    /// Failures by class.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) failures: BTreeMap<String, u64>,
    /// What was not as expected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) why: Option<String>,
    pub(super) seconds: f64,
    /// What else the step measured.
    #[serde(flatten)]
    pub(super) details: BTreeMap<String, Value>,
}

/// A share of a ring that went from one value to another, without turning round on the way.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Move {
    /// When it was where it stayed, from the step's first fault.
    pub(super) ms: u64,
    /// Percent before.
    pub(super) from: f64,
    /// Percent after.
    pub(super) to: f64,
}

impl StepReport {
    /// A step with these requests, ok until an expectation fails.
    pub(super) fn of(tally: &Tally) -> StepReport {
        let tally = tally.clone();
        StepReport {
            ok: true,
            requests: tally.requests,
            failed: tally.failed,
            by_cluster: tally.by_cluster,
            by_pod: tally.by_pod,
            failures: tally.failures,
            ..StepReport::default()
        }
    }

    /// Makes the step fail if a request did.
    pub(super) fn expect_none_failed(&mut self) {
        let failed = self.failed;
        self.expect(failed == 0, || format!("{failed} failed"));
    }

    /// Records how often clients sent their SYNs again.
    pub(super) fn count_syns(&mut self, tally: &Tally) {
        self.syn_retransmissions = Some(tally.repeated_syns());
        self.most_syn_retransmissions = Some(tally.most_repeated_syns());
    }

    /// Records a share of the ring and of the answers, in percent, and expects both near `wanted`.
    pub(super) fn expect_share(&mut self, of: &str, ring: f64, traffic: f64, wanted: f64, tolerance: f64) {
        self.ring_share.insert(of.to_owned(), hundredths(ring));
        self.traffic_share.insert(of.to_owned(), hundredths(traffic));
        self.expect((ring - wanted).abs() <= RING_TOLERANCE, || {
            format!("{of} has {ring:.2}% of the ring instead of {wanted}%")
        });
        self.expect((traffic - wanted).abs() <= tolerance, || {
            format!("{of} answered {traffic:.2}% instead of {wanted}%")
        });
    }

    /// A step that did not get as far as its requests.
    pub(super) fn failed(why: String) -> StepReport {
        StepReport { why: Some(why), ..StepReport::default() }
    }

    /// Makes the step fail, and say why, unless `holds`.
    pub(super) fn expect(&mut self, holds: bool, why: impl FnOnce() -> String) {
        if !holds {
            self.ok = false;
            let before = self.why.take().map(|before| before + "; ").unwrap_or_default();
            self.why = Some(before + &why());
        }
    }

    /// Records something else that was measured.
    pub(super) fn detail(&mut self, name: &str, value: impl Into<Value>) {
        self.details.insert(name.to_owned(), value.into());
    }

    pub(super) fn finish(&mut self, name: &str, took: Duration) {
        name.clone_into(&mut self.name);
        self.seconds = tenths(took);
    }
}

/// From the fault to the start of the last request that failed, in ms; 0 if none did.
pub(super) fn until_last_failure(outcomes: &[Outcome], fault: Instant) -> u64 {
    let failed = outcomes.iter().filter(|outcome| outcome.result.is_err());
    failed.map(|outcome| millis(outcome.started.saturating_duration_since(fault))).max().unwrap_or(0)
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Rounds a percentage for people.
pub(super) fn hundredths(percent: f64) -> f64 {
    (percent * 100.0).round() / 100.0
}

fn tenths(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Failure;

    #[test]
    fn the_report_has_the_promised_fields() {
        let mut step = StepReport::of(&Tally { requests: 3, failed: 1, ..Tally::default() });
        step.expect(true, || unreachable!());
        step.expect(false, || "one failed".into());
        step.expect(false, || "and more".into());
        step.detail("moved", 0.25);
        step.finish("udp", Duration::from_millis(1240));
        let json = serde_json::to_value(&step).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "name": "udp", "ok": false, "requests": 3, "failed": 1, "by_cluster": {}, "by_pod": {},
                "ms": null, "why": "one failed; and more", "seconds": 1.2, "moved": 0.25
            })
        );
        let mut report = Report::new().unwrap();
        report.close(Duration::from_secs(1), None);
        assert!(!report.ok, "a run without steps is not ok");
        report.steps.push(StepReport::of(&Tally::default()));
        report.close(Duration::from_secs(1), None);
        assert!(report.ok);
    }

    #[test]
    fn a_share_is_held_to_a_tenth_of_a_point_in_the_ring_and_to_its_tolerance_in_the_answers() {
        let ok = |ring, traffic| {
            let mut step = StepReport::of(&Tally::default());
            step.expect_share("shanghai", ring, traffic, 10.0, 1.5);
            step.ok
        };
        assert!(ok(10.099, 8.501) && ok(9.901, 11.499));
        assert!(!ok(10.101, 10.0) && !ok(9.899, 10.0), "the ring");
        assert!(!ok(10.0, 8.49) && !ok(10.0, 11.51), "the answers");
    }

    #[test]
    fn figures_of_a_step_are_there_only_where_it_has_them() {
        let mut step =
            StepReport::of(&Tally { syn_retransmissions: [(1, 3), (2, 1)].into(), ..Tally::default() });
        step.count_syns(&Tally { syn_retransmissions: [(1, 3), (2, 1)].into(), ..Tally::default() });
        step.expect_share("shanghai", 9.998, 10.2, 10.0, 1.5);
        step.transitions.push(Move { ms: 700, from: 100.0, to: 0.0 });
        let json = serde_json::to_value(&step).unwrap();
        assert_eq!((&json["syn_retransmissions"], &json["most_syn_retransmissions"]), (&5.into(), &2.into()));
        assert_eq!(json["ring_share"], serde_json::json!({"shanghai": 10.0}));
        assert_eq!(json["traffic_share"], serde_json::json!({"shanghai": 10.2}));
        assert_eq!(json["transitions"], serde_json::json!([{"ms": 700, "from": 100.0, "to": 0.0}]));
    }

    #[test]
    fn the_last_failure_is_timed_by_its_start() {
        let zero = Instant::now();
        let at = |ms| zero + Duration::from_millis(ms);
        let failed = |started, finished| Outcome {
            started: at(started),
            finished: at(finished),
            result: Err(Failure::Timeout),
        };
        assert_eq!(until_last_failure(&[], zero), 0);
        assert_eq!(until_last_failure(&[failed(40, 2000), failed(70, 900)], at(10)), 60);
        assert_eq!(until_last_failure(&[failed(5, 50)], at(10)), 0, "it was under way when the fault came");
    }
}
