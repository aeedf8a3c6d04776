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
    /// Failures by class.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) failures: BTreeMap<String, u64>,
    /// What was not as expected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) why: Option<String>,
    pub(super) seconds: f64,
    /// What else the step measured.
    #[serde(flatten)]
    pub(super) details: BTreeMap<&'static str, Value>,
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
    pub(super) fn detail(&mut self, name: &'static str, value: impl Into<Value>) {
        self.details.insert(name, value.into());
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
