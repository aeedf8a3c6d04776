//! The report: suites, their scenarios, and the sums.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::{Map, Value};

/// All suites.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    passed: usize,
    failed: usize,
    skipped: usize,
    suites: Vec<Suite>,
}

/// One suite's outcome.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Suite {
    /// Its name.
    pub(crate) name: String,
    /// Scenarios that passed.
    pub(crate) passed: usize,
    /// Scenarios that failed.
    pub(crate) failed: usize,
    /// Scenarios that were skipped.
    pub(crate) skipped: usize,
    /// All of them.
    pub(crate) scenarios: Vec<Scenario>,
}

/// One test.
#[derive(Debug, Serialize)]
pub(crate) struct Scenario {
    /// Its full name.
    pub(crate) name: String,
    /// Whether it counts as good: passed, or skipped where that is allowed.
    pub(crate) ok: bool,
    /// Why it was skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) skipped: Option<String>,
    /// What a failed one printed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) output: Option<String>,
    /// What the test itself reported.
    #[serde(flatten)]
    pub(crate) extra: Map<String, Value>,
}

impl Scenario {
    /// One that passed.
    pub(crate) fn passed(name: &str) -> Self {
        Self { name: name.to_owned(), ok: true, skipped: None, output: None, extra: Map::new() }
    }

    /// One that failed, with what it printed.
    pub(crate) fn failed(name: &str, output: &str) -> Self {
        Self { ok: false, output: Some(output.to_owned()), ..Self::passed(name) }
    }

    /// One that was skipped; `allowed` says whether that may be.
    pub(crate) fn skipped(name: &str, reason: &str, allowed: bool) -> Self {
        if allowed {
            Self { skipped: Some(reason.to_owned()), ..Self::passed(name) }
        } else {
            Self::failed(name, &format!("skipped where nothing may be (CI is set): {reason}"))
        }
    }
}

impl Suite {
    /// An empty suite.
    pub(crate) fn named(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// Adds a scenario and counts it.
    pub(crate) fn add(&mut self, scenario: Scenario) {
        match (scenario.ok, &scenario.skipped) {
            (false, _) => self.failed += 1,
            (true, Some(_)) => self.skipped += 1,
            (true, None) => self.passed += 1,
        }
        self.scenarios.push(scenario);
    }

    /// Merges what tests reported about themselves, one JSON object a line; returns the lines that
    /// belong to no scenario.
    ///
    /// A line names its scenario in full or by the last part of its name. It can't overrule the harness:
    /// `name`, `ok`, `skipped` and `output` stay.
    pub(crate) fn merge(&mut self, lines: &str) -> Vec<String> {
        let mut strangers = Vec::new();
        for line in lines.lines().filter(|line| !line.trim().is_empty()) {
            let scenario = serde_json::from_str::<Map<String, Value>>(line).ok().and_then(|object| {
                let name = object.get("name")?.as_str()?.to_owned();
                let scenario = self.scenarios.iter_mut().find(|scenario| {
                    scenario.name == name || scenario.name.rsplit("::").next() == Some(name.as_str())
                })?;
                Some((scenario, object))
            });
            match scenario {
                Some((scenario, object)) => scenario.extra.extend(
                    object
                        .into_iter()
                        .filter(|(key, _)| !matches!(key.as_str(), "name" | "ok" | "skipped" | "output")),
                ),
                None => strangers.push(line.to_owned()),
            }
        }
        strangers
    }

    /// `N passed, N failed, N skipped`.
    pub(crate) fn counts(&self) -> String {
        counts(self.passed, self.failed, self.skipped)
    }
}

impl Report {
    /// Adds a suite; one without scenarios is nothing to report.
    pub(crate) fn add(&mut self, suite: Suite) {
        if suite.scenarios.is_empty() {
            return;
        }
        self.passed += suite.passed;
        self.failed += suite.failed;
        self.skipped += suite.skipped;
        // Some run side by side: by name, whichever ended first.
        let place = self.suites.partition_point(|other| other.name <= suite.name);
        self.suites.insert(place, suite);
    }

    /// Writes what is known so far, as JSON, where a file is named for it.
    ///
    /// # Errors
    /// The file can't be written.
    pub(crate) fn write(&self, file: Option<&Path>) -> Result<()> {
        let Some(path) = file else { return Ok(()) };
        let json = serde_json::to_string_pretty(self).context("write the report as JSON")?;
        fs::write(path, json + "\n").with_context(|| format!("write {}", path.display()))
    }

    /// The one line that ends a run.
    pub(crate) fn closing_line(&self) -> String {
        counts(self.passed, self.failed, self.skipped)
    }

    /// Whether the run is a good one.
    ///
    /// # Errors
    /// Something failed, or nothing ran at all.
    pub(crate) fn verdict(&self) -> Result<()> {
        if self.failed > 0 {
            bail!("{} of {} tests failed", self.failed, self.passed + self.failed + self.skipped);
        }
        if self.suites.is_empty() {
            bail!("no test ran: nothing matches");
        }
        Ok(())
    }
}

fn counts(passed: usize, failed: usize, skipped: usize) -> String {
    format!("{passed} passed, {failed} failed, {skipped} skipped")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suite() -> Suite {
        let mut suite = Suite::named("traffic");
        suite.add(Scenario::passed("nat::replies_come_back"));
        suite.add(Scenario::failed("nat::vlan", "left: 1"));
        suite.add(Scenario::skipped("kube::merge", "no Go", true));
        suite
    }

    #[test]
    fn sums_agree_with_the_scenarios() {
        let mut report = Report::default();
        report.add(suite());
        report.add(suite());
        assert_eq!(report.closing_line(), "2 passed, 2 failed, 2 skipped");
        assert!(report.verdict().is_err());
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["suites"][0]["failed"], 1);
        assert_eq!(json["suites"][0]["scenarios"][0]["name"], "nat::replies_come_back");
        assert_eq!(json["suites"][0]["scenarios"][0]["ok"], true);
        assert_eq!(json["suites"][0]["scenarios"][1]["ok"], false);
        assert_eq!(json["suites"][0]["scenarios"][2]["skipped"], "no Go");
    }

    #[test]
    fn a_skip_where_none_may_be_is_a_failure() {
        let mut suite = Suite::named("kube");
        suite.add(Scenario::skipped("merge", "no Go", false));
        assert_eq!(suite.counts(), "0 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn empty_suites_are_left_out_and_an_empty_run_is_no_success() {
        let mut report = Report::default();
        report.add(Suite::named("loom"));
        assert!(serde_json::to_value(&report).unwrap()["suites"].as_array().unwrap().is_empty());
        assert!(report.verdict().is_err());
    }

    #[test]
    fn what_tests_report_is_merged_by_name() {
        let mut suite = suite();
        let strangers = suite.merge(
            "{\"name\":\"replies_come_back\",\"flows\":14000,\"ok\":false}\n\nnot json\n{\"name\":\"nobody\"}\n",
        );
        assert_eq!(strangers, ["not json", "{\"name\":\"nobody\"}"]);
        let json = serde_json::to_value(&suite).unwrap();
        assert_eq!(json["scenarios"][0]["flows"], 14000);
        assert_eq!(json["scenarios"][0]["ok"], true);
    }
}
