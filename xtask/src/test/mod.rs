//! `cargo xtask test`: builds every suite, runs it, and counts.

mod child;
mod clusters;
mod lanes;
mod libtest;
mod report;
mod suites;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use self::child::{End, Line};
use self::clusters::Clusters;
use self::libtest::{Parser, Verdict};
pub(crate) use self::report::Report;
use self::report::{Scenario, Suite};
use self::suites::{Binary, SuiteBinaries};
use crate::privilege::{Privilege, passed_environment};
use crate::setup::Need;
use crate::{run as start, workspace};

/// How long a suite may take, in its normal form and in its long one.
const LIMIT: Duration = Duration::from_secs(15 * 60);
const LONG_LIMIT: Duration = Duration::from_secs(60 * 60);
/// A suite that runs longer than this says how far it is, again and again.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);
/// Tests append JSON lines about themselves to the file that this names.
const SCENARIO_VARIABLE: &str = "KANMON_SCENARIO_REPORT";
/// Set where the long forms are wanted.
const LONG_VARIABLE: &str = "KANMON_TEST_LONG";

/// What to run, and where to report.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Options {
    /// Write the report to this file, as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Run only this suite (may be repeated)
    #[arg(long = "suite", value_name = "NAME")]
    suites: Vec<String>,
    /// Run only tests whose name contains this
    #[arg(long, value_name = "PATTERN")]
    only: Option<String>,
    /// Take the long forms
    #[arg(long)]
    long: bool,
}

/// Builds and runs the tests; failures are in the report, and the report is in its file.
///
/// # Errors
/// The tests can't be built or started, a suite that was asked for does not exist, or somebody stopped us.
pub(crate) fn run(options: &Options) -> Result<Report> {
    start::packet_program(Need::Run)?;
    let all = suites::build()?;
    for name in &options.suites {
        if !all.iter().any(|suite| suite.name == *name) {
            let names: Vec<_> = all.iter().map(|suite| suite.name.as_str()).collect();
            bail!("there is no suite {name:?}; there are {}", names.join(", "));
        }
    }
    let chosen: Vec<_> =
        all.iter().filter(|s| options.suites.is_empty() || options.suites.contains(&s.name)).collect();
    let clusters = match any_wants_clusters(&chosen, options)? {
        true => Clusters::provide(),
        false => Clusters::Unwanted,
    };
    child::catch_interrupts()?;
    let report = Mutex::new(Report::default());
    let run_one = |suite: &&SuiteBinaries| {
        let outcome = run_suite(suite, options, &clusters)?;
        let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
        report.add(outcome);
        // What ran before an interruption is still worth a report.
        report.write(options.report.as_deref())
    };
    lanes::run(&chosen, |suite| suite.mostly_waits(), run_one)?;
    Ok(report.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Whether a test that will run needs Kubernetes' binaries.
fn any_wants_clusters(suites: &[&SuiteBinaries], options: &Options) -> Result<bool> {
    for binary in suites.iter().flat_map(|suite| &suite.binaries).filter(|binary| binary.needs_kubernetes) {
        if !list(binary, options)?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn run_suite(binaries: &SuiteBinaries, options: &Options, clusters: &Clusters) -> Result<Suite> {
    let started = Instant::now();
    let mut suite = Suite::named(&binaries.name);
    for binary in &binaries.binaries {
        run_binary(binary, options, clusters, &mut suite)?;
    }
    // In one piece: another suite may be telling its own.
    let mut said = String::new();
    if !suite.scenarios.is_empty() {
        said +=
            &format!("{:<24} {} ({:.1} s)\n", suite.name, suite.counts(), started.elapsed().as_secs_f32());
    }
    for scenario in suite.scenarios.iter() {
        if let Some(reason) = &scenario.skipped {
            said += &format!("  skipped: {}: {reason}\n", scenario.name);
        }
        if let Some(output) = &scenario.output {
            said += &format!("  FAILED: {}\n{output}\n\n", scenario.name);
        }
    }
    print!("{said}");
    Ok(suite)
}

fn run_binary(binary: &Binary, options: &Options, clusters: &Clusters, suite: &mut Suite) -> Result<()> {
    let expected = list(binary, options)?;
    if expected.is_empty() {
        return Ok(());
    }
    let skips_allowed = std::env::var_os("CI").is_none();
    if binary.needs_kubernetes {
        let instead = expected.iter().map_while(|name| clusters.instead_of(name, skips_allowed));
        let instead: Vec<_> = instead.collect();
        if !instead.is_empty() {
            instead.into_iter().for_each(|scenario| suite.add(scenario));
            return Ok(());
        }
    }
    let file_name = format!("scenarios-{}-{}.jsonl", std::process::id(), suite.name);
    let scenario_file = workspace::target_dir().join(file_name);
    fs::write(&scenario_file, "").with_context(|| format!("write {}", scenario_file.display()))?;

    let privilege = if binary.needs_root { Privilege::detect() } else { Privilege::Root };
    let mut command = command(binary, options, clusters, &scenario_file)?;
    privilege.prepare("a test with network namespaces")?;
    let mut parser = Parser::default();
    let mut raw = String::new();
    let mut spoken = Instant::now();
    let limit = if options.long { LONG_LIMIT } else { LIMIT };
    let end = child::run(&mut command, privilege, limit, |line| match line {
        Some(Line::Out(line)) => {
            parser.line(&line);
            raw.push_str(&line);
            raw.push('\n');
        }
        Some(Line::Err(line)) => {
            raw.push_str(&line);
            raw.push('\n');
        }
        None if spoken.elapsed() >= SIGN_OF_LIFE => {
            eprintln!("{:<24} {} of {} …", suite.name, parser.verdicts().len(), expected.len());
            spoken = Instant::now();
        }
        None => {}
    })?;

    let bad_end = match end {
        End::Well => None,
        End::Badly(how) => Some(how),
        End::TooLong(limit) => Some(format!("stopped after {} minutes", limit.as_secs() / 60)),
        End::Interrupted => bail!("stopped in suite {}", suite.name),
    };
    count(suite, &expected, &parser, bad_end.as_deref(), &raw, skips_allowed);

    let extras = fs::read_to_string(&scenario_file).unwrap_or_default();
    for stranger in suite.merge(&extras) {
        eprintln!("{}: a line of {SCENARIO_VARIABLE} names no test: {stranger}", suite.name);
    }
    fs::remove_file(&scenario_file).with_context(|| format!("remove {}", scenario_file.display()))
}

/// Turns what the harness said, or failed to say, into scenarios: each expected test becomes one.
fn count(
    suite: &mut Suite,
    expected: &[String],
    parser: &Parser,
    bad_end: Option<&str>,
    raw: &str,
    skips_allowed: bool,
) {
    // What was printed is shown once: with the first test that never ended.
    let mut raw = Some(raw.trim_end());
    let mut any_failed = false;
    for name in expected {
        let verdict = parser.verdicts().iter().find(|(known, _)| known == name).map(|(_, verdict)| *verdict);
        let scenario = match verdict {
            Some(Verdict::Ok) => match parser.skip_reason(name) {
                Some(reason) => Scenario::skipped(name, reason, skips_allowed),
                None => Scenario::passed(name),
            },
            Some(Verdict::Ignored) => Scenario::skipped(name, "ignored", skips_allowed),
            Some(Verdict::Failed) => Scenario::failed(name, parser.output(name).unwrap_or_default()),
            None => {
                let how = bad_end.unwrap_or("the harness ended without a word about it");
                let printed = raw.take().map(|raw| format!("\n{raw}")).unwrap_or_default();
                Scenario::failed(name, &format!("did not end: {how}{printed}"))
            }
        };
        any_failed |= !scenario.ok;
        suite.add(scenario);
    }
    if let (Some(how), false) = (bad_end, any_failed) {
        let printed = raw.unwrap_or_default();
        suite.add(Scenario::failed("the suite's end", &format!("every test passed, then: {how}\n{printed}")));
    }
}

/// The names of the tests that the options choose.
fn list(binary: &Binary, options: &Options) -> Result<Vec<String>> {
    let mut command = Command::new(&binary.executable);
    command.args(["--list", "--format", "terse"]).args(&options.only).current_dir(&binary.package_dir);
    let output = command.output().with_context(|| format!("start {}", binary.executable.display()))?;
    Ok(libtest::listed(&String::from_utf8_lossy(&output.stdout)))
}

fn command(binary: &Binary, options: &Options, clusters: &Clusters, scenario_file: &Path) -> Result<Command> {
    let mut own: Vec<(OsString, OsString)> = vec![
        ("CARGO_MANIFEST_DIR".into(), binary.package_dir.clone().into()),
        (SCENARIO_VARIABLE.into(), scenario_file.into()),
    ];
    own.extend(clusters.environment().filter(|_| binary.needs_kubernetes));
    if options.long {
        own.push((LONG_VARIABLE.into(), "1".into()));
    }
    let mut command = if binary.needs_root {
        let mut environment = passed_environment();
        environment.extend(own);
        Privilege::detect().command(&binary.executable, &environment, "a test with network namespaces")?
    } else {
        let mut command = Command::new(&binary.executable);
        command.envs(own);
        command
    };
    command.current_dir(&binary.package_dir).arg("--show-output").args(&options.only);
    if let Some(threads) = binary.threads {
        command.arg(format!("--test-threads={threads}"));
    }
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(output: &str, bad_end: Option<&str>, skips_allowed: bool) -> Suite {
        let mut parser = Parser::default();
        output.lines().for_each(|line| parser.line(line));
        let mut suite = Suite::named("s");
        count(&mut suite, &["a".into(), "b".into()], &parser, bad_end, output, skips_allowed);
        suite
    }

    #[test]
    fn a_crash_fails_every_test_that_had_not_ended() {
        let suite = counted("test a ... ok\nfree(): invalid pointer\n", Some("killed by SIGABRT"), true);
        assert_eq!(suite.counts(), "1 passed, 1 failed, 0 skipped");
        let output = suite.scenarios[1].output.as_deref().unwrap();
        assert!(output.contains("SIGABRT") && output.contains("invalid pointer"), "{output}");
    }

    #[test]
    fn a_bad_end_after_good_tests_is_a_failure() {
        let suite = counted("test a ... ok\ntest b ... ok\n", Some("killed by SIGSEGV"), true);
        assert_eq!(suite.counts(), "2 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn a_harness_that_exits_badly_because_a_test_failed_is_counted_once() {
        let suite = counted("test a ... ok\ntest b ... FAILED\n", Some("exit code 101"), true);
        assert_eq!(suite.counts(), "1 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn skips_are_counted_and_refused_in_ci() {
        let output = "test a ... ok\ntest b ... ok\nsuccesses:\n---- b stdout ----\nKANMON-SKIP: no Go\n";
        assert_eq!(counted(output, None, true).counts(), "1 passed, 0 failed, 1 skipped");
        assert_eq!(counted(output, None, false).counts(), "1 passed, 1 failed, 0 skipped");
    }
}
