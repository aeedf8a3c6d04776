//! What `bench failover` found: JSON for programs, a table for people.

use std::time::Instant;

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::{
    contender::{Checks, Contender},
    failover::{Fault, RATE, TIMEOUT},
    samples::{median, ratio},
    series::{BIN, Bin, Run, SLOW, WINDOW, millis},
};
use crate::output::kernel_release;

/// The whole benchmark.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// The kernel's release.
    pub(super) kernel: String,
    /// How often each fault was put to each contender. Counts are sums over all rounds.
    pub(super) rounds: u32,
    /// Connections started each second.
    per_second: u32,
    /// A request without an answer for so long has failed.
    timeout_ms: u64,
    /// One whose answer took longer than this is slow.
    slow_ms: u64,
    /// Requests count that started up to here after the fault.
    window_ms: u64,
    /// The width of the bins of a series.
    bin_ms: u64,
    /// How long all of it took.
    seconds: f64,
    pub(super) faults: Vec<FaultReport>,
    #[serde(skip)]
    begun: Instant,
}

/// One fault, put to all contenders.
#[derive(Debug, Serialize)]
pub(super) struct FaultReport {
    pub(super) name: &'static str,
    /// What happened, for people.
    pub(super) story: &'static str,
    checks: ChecksReport,
    pub(super) contenders: Vec<ContenderReport>,
    kanmon_to_haproxy: Ratios,
}

#[derive(Debug, Serialize)]
struct ChecksReport {
    interval_ms: u64,
    timeout_ms: u64,
}

/// What a fault cost with one contender.
#[derive(Debug, Serialize)]
pub(super) struct ContenderReport {
    pub(super) name: &'static str,
    version: String,
    /// Requests that started after the fault and within the window.
    requests: u64,
    /// Those of them that failed.
    failed: u64,
    /// Those of them that were slow.
    slow: u64,
    /// How long the slowest answer took, over all rounds.
    slowest_ms: u64,
    /// How long those that failed or were slow took together: what the fault cost its clients in time.
    waited_ms: u64,
    /// From the fault to the start of the last request that failed or was slow, by round; 0 where none was.
    ms_until_last_bad: Vec<u64>,
    /// Rounds in which requests failed or were slow to the window's end.
    rounds_without_end: u32,
    /// The longest time in which the client began no request, by round: how far the machine disturbed it.
    longest_pause_ms: Vec<u64>,
    /// The requests by the time of their start; those before the fault show that all was well.
    pub(super) series: Vec<Bin>,
}

/// Kanmon's value divided by HAProxy's; null where HAProxy's is 0.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Ratios {
    failed: Option<f64>,
    slow: Option<f64>,
    failed_or_slow: Option<f64>,
    waited_ms: Option<f64>,
    /// Of the medians over the rounds.
    ms_until_last_bad: Option<f64>,
}

impl Report {
    /// A report without measurements.
    ///
    /// # Errors
    /// When a contender is not on this machine.
    pub(super) fn new(rounds: u32, faults: &[Fault]) -> Result<Report> {
        let versions = Contender::ALL.map(|contender| Ok((contender.name(), contender.version()?)));
        let versions = versions.into_iter().collect::<Result<Vec<_>>>()?;
        Ok(Report {
            kernel: kernel_release()?,
            rounds,
            per_second: RATE,
            timeout_ms: millis(TIMEOUT),
            slow_ms: millis(SLOW),
            window_ms: millis(WINDOW),
            bin_ms: millis(BIN),
            seconds: 0.0,
            faults: faults.iter().map(|fault| FaultReport::new(fault, &versions)).collect(),
            begun: Instant::now(),
        })
    }

    /// Adds a round's measurement.
    pub(super) fn add(&mut self, fault: &str, contender: Contender, run: Run) {
        let fault = self.faults.iter_mut().find(|report| report.name == fault);
        let name = contender.name();
        if let Some(report) =
            fault.and_then(|fault| fault.contenders.iter_mut().find(|report| report.name == name))
        {
            report.add(run);
        }
    }

    /// Sums up.
    pub(super) fn close(&mut self) {
        self.seconds = self.begun.elapsed().as_secs_f64().round();
        for fault in &mut self.faults {
            fault.kanmon_to_haproxy =
                ratios(fault.contender(Contender::Kanmon), fault.contender(Contender::HaProxy));
        }
    }

    /// The table for people.
    pub(super) fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header([
            "",
            "",
            "requests",
            "failed",
            "slow",
            "slowest ms",
            "waited s",
            "ms until last of them",
        ]);
        for fault in &self.faults {
            for (n, contender) in fault.contenders.iter().enumerate() {
                let name = if n == 0 { fault.name } else { "" };
                table.add_row([
                    name.to_owned(),
                    contender.name.to_owned(),
                    contender.requests.to_string(),
                    contender.failed.to_string(),
                    contender.slow.to_string(),
                    contender.slowest_ms.to_string(),
                    format!("{:.1}", contender.waited_ms as f64 / 1000.0),
                    self.until(contender),
                ]);
            }
        }
        for column in 2..8 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        format!(
            "\n{}\n\nRequests that started within {} ms after the fault, over {} rounds, {} a second. Failed: no answer \
             within {} ms.\nSlow: answered, after more than {} ms. \
             Waited: what those took together. The last column is the median over the rounds.\nKernel {}.",
            table.trim_fmt(),
            self.window_ms,
            self.rounds,
            self.per_second,
            self.timeout_ms,
            self.slow_ms,
            self.kernel
        )
    }

    fn until(&self, contender: &ContenderReport) -> String {
        match contender.rounds_without_end {
            0 => format!("{:.0}", contender.median_ms_until_last_bad()),
            some if some == self.rounds => "no end".to_owned(),
            some => format!("no end in {some} of {}", self.rounds),
        }
    }
}

impl FaultReport {
    fn new(fault: &Fault, versions: &[(&'static str, String)]) -> FaultReport {
        let checks = |checks: Checks| ChecksReport {
            interval_ms: millis(checks.interval),
            timeout_ms: millis(checks.timeout),
        };
        let contenders = versions.iter().map(|(name, version)| ContenderReport::new(name, version));
        FaultReport {
            name: fault.name,
            story: fault.story,
            checks: checks(fault.checks),
            contenders: contenders.collect(),
            kanmon_to_haproxy: Ratios::default(),
        }
    }

    fn contender(&self, contender: Contender) -> Option<&ContenderReport> {
        self.contenders.iter().find(|report| report.name == contender.name())
    }
}

impl ContenderReport {
    fn new(name: &'static str, version: &str) -> ContenderReport {
        ContenderReport {
            name,
            version: version.to_owned(),
            requests: 0,
            failed: 0,
            slow: 0,
            slowest_ms: 0,
            waited_ms: 0,
            ms_until_last_bad: Vec::new(),
            rounds_without_end: 0,
            longest_pause_ms: Vec::new(),
            series: Vec::new(),
        }
    }

    fn median_ms_until_last_bad(&self) -> f64 {
        let mut sorted: Vec<f64> = self.ms_until_last_bad.iter().map(|ms| *ms as f64).collect();
        sorted.sort_by(f64::total_cmp);
        median(&sorted)
    }

    fn add(&mut self, run: Run) {
        self.requests += run.requests;
        self.failed += run.failed;
        self.slow += run.slow;
        self.slowest_ms = self.slowest_ms.max(run.slowest_ms);
        self.waited_ms += run.waited_ms;
        self.longest_pause_ms.push(run.longest_pause_ms);
        self.ms_until_last_bad.push(run.ms_until_last_bad);
        self.rounds_without_end += u32::from(run.without_end);
        if self.series.is_empty() {
            self.series = run.series;
            return;
        }
        for (sum, bin) in self.series.iter_mut().zip(run.series) {
            sum.ok += bin.ok;
            sum.slow += bin.slow;
            sum.failed += bin.failed;
        }
    }
}

fn ratios(kanmon: Option<&ContenderReport>, haproxy: Option<&ContenderReport>) -> Ratios {
    let (Some(kanmon), Some(haproxy)) = (kanmon, haproxy) else { return Ratios::default() };
    let of = |value: fn(&ContenderReport) -> f64| ratio(value(kanmon), value(haproxy));
    Ratios {
        failed: of(|contender| contender.failed as f64),
        slow: of(|contender| contender.slow as f64),
        failed_or_slow: of(|contender| (contender.failed + contender.slow) as f64),
        waited_ms: of(|contender| contender.waited_ms as f64),
        ms_until_last_bad: of(ContenderReport::median_ms_until_last_bad),
    }
}

/// A report as a run of `rounds` makes it, without asking anything of the machine.
#[cfg(test)]
pub(super) fn example(faults: &[&'static str], rounds: &[[Run; 3]]) -> Report {
    let contenders = || Contender::ALL.map(|contender| ContenderReport::new(contender.name(), "1.0")).into();
    let fault = |name: &&'static str| FaultReport {
        name,
        story: "1 of 6 pods < refuses",
        checks: ChecksReport { interval_ms: 500, timeout_ms: 300 },
        contenders: contenders(),
        kanmon_to_haproxy: Ratios::default(),
    };
    let mut report = Report {
        kernel: "6.18.0".into(),
        rounds: rounds.len() as u32,
        per_second: RATE,
        timeout_ms: millis(TIMEOUT),
        slow_ms: millis(SLOW),
        window_ms: millis(WINDOW),
        bin_ms: millis(BIN),
        seconds: 0.0,
        faults: faults.iter().map(fault).collect(),
        begun: Instant::now(),
    };
    for name in faults {
        for runs in rounds {
            for (contender, run) in Contender::ALL.into_iter().zip(runs) {
                report.add(name, contender, run.clone());
            }
        }
    }
    report.close();
    report
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(failed: u64, slow: u64, last: u64) -> Run {
        Run {
            requests: 100,
            failed,
            slow,
            slowest_ms: last / 2,
            waited_ms: 1000 * failed + 100 * slow,
            ms_until_last_bad: last,
            longest_pause_ms: 9,
            without_end: last > 4500,
            series: vec![Bin { ms: 0, ok: 100 - failed - slow, slow, failed }],
        }
    }

    fn two_rounds() -> Report {
        example(
            &["pod-killed"],
            &[
                [run(0, 3, 400), run(0, 12, 1000), run(30, 0, 4990)],
                [run(0, 0, 0), run(0, 18, 600), run(34, 1, 4980)],
            ],
        )
    }

    #[test]
    fn rounds_add_up_and_the_json_has_what_programs_read() {
        let json = serde_json::to_value(two_rounds()).unwrap();
        assert_eq!((&json["kernel"], &json["rounds"]), (&json!("6.18.0"), &json!(2)));
        let fault = &json["faults"][0];
        assert_eq!(fault["name"], "pod-killed");
        assert_eq!(fault["checks"], json!({"interval_ms": 500, "timeout_ms": 300}));
        assert_eq!(
            fault["contenders"][1],
            json!({
                "name": "HAProxy", "version": "1.0", "requests": 200, "failed": 0, "slow": 30,
                "slowest_ms": 500, "waited_ms": 3000, "ms_until_last_bad": [1000, 600], "rounds_without_end": 0, "longest_pause_ms": [9, 9],
                "series": [{"ms": 0, "ok": 170, "slow": 30, "failed": 0}],
            })
        );
        assert_eq!(fault["contenders"][2]["rounds_without_end"], 2);
        assert_eq!(
            fault["kanmon_to_haproxy"],
            json!({"failed": null, "slow": 0.1, "failed_or_slow": 0.1, "waited_ms": 0.1, "ms_until_last_bad": 0.25})
        );
    }

    #[test]
    fn the_table_has_a_row_a_contender_and_says_where_it_does_not_end() {
        let table = two_rounds().table();
        let row = |name: &str| {
            let line = table.lines().find(|line| line.contains(name)).unwrap();
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(row("Kanmon"), ["pod-killed", "Kanmon", "200", "0", "3", "200", "0.3", "200"]);
        assert_eq!(row("HAProxy"), ["HAProxy", "200", "0", "30", "500", "3.0", "800"]);
        assert_eq!(row("nftables"), ["nftables", "200", "64", "1", "2495", "64.1", "no", "end"]);
        assert!(table.contains("over 2 rounds, 450 a second"), "{table}");
    }
}
