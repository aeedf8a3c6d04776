//! What scenario tests share: waiting for a condition, and a line in the report of a run.

use std::{
    fs::OpenOptions,
    io::Write,
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::client::Tally;

/// Where a run of the tests wants JSON lines about scenarios.
const REPORT: &str = "KANMON_SCENARIO_REPORT";

/// Waits until `done` holds.
///
/// # Panics
/// When it does not within `patience`.
pub fn eventually(what: &str, patience: Duration, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !done() {
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A scenario's line in the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Scenario<'a> {
    /// The test's name.
    pub name: &'a str,
    /// Requests made, or connections where they were held.
    pub requests: u64,
    /// How many of them failed.
    pub failed: u64,
    /// How many of those were reset.
    pub reset: u64,
}

impl<'a> Scenario<'a> {
    /// The counts of a tally.
    pub fn of(name: &'a str, tally: &Tally) -> Scenario<'a> {
        let reset = tally.failures.get("reset").copied().unwrap_or(0);
        Scenario { name, requests: tally.requests, failed: tally.failed, reset }
    }

    /// Appends the line to the file that the environment names, if it names one.
    ///
    /// # Panics
    /// When that file cannot be written.
    pub fn report(&self) {
        let Some(path) = std::env::var_os(REPORT) else { return };
        let line = serde_json::to_string(self).expect("plain fields are JSON") + "\n";
        let file = OpenOptions::new().create(true).append(true).open(&path);
        // One write: lines of tests that run side by side don't mix.
        file.and_then(|mut file| file.write_all(line.as_bytes()))
            .unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    }
}
