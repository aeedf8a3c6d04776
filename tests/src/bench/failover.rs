//! `bench failover`: a pod or a cluster is lost under a steady load. Who notices, how soon, and what does it cost?
//!
//! Contenders take turns: each fault is put to all of them in each round, and the round decides who begins. So what
//! else goes on with the machine concerns them alike.

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    contender::{Checks, Contender},
    plot,
    progress::Progress,
    report::Report,
    series::{Run, WINDOW, millis},
};
use crate::{
    client::{Failure, Outcome, SteadyLoad, row},
    netns::clean_on_signals,
    output::write_for_caller,
    topology::{Bed, Options},
};

/// Connections started each second.
pub(super) const RATE: u32 = 450;
/// How long a client waits for a connection and its answer: an unanswered SYN is sent again several times until then.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);
/// For connections to go well before anything is broken.
const WARM_UP: Duration = Duration::from_secs(15);

/// A client that starts nothing for longer, and then all of it at once, says little about a contender.
const LONGEST_PAUSE: Duration = Duration::from_millis(75);
/// How often a measurement is made where the client paused for longer; the try with the shortest pause counts.
const MOST_TRIES: u32 = 2;

const POD: &str = "hangzhou-2";
const CLUSTER: &str = "hangzhou";

/// The arguments of `bench failover`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Write what was measured as JSON to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw requests that failed or were slow over time into this SVG file.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// How often each fault is put to each contender.
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
}

/// Something that breaks.
pub(super) struct Fault {
    pub(super) name: &'static str,
    /// What happens, for people.
    pub(super) story: &'static str,
    pub(super) checks: Checks,
    inject: fn(&Bed) -> Result<()>,
    heal: fn(&Bed) -> Result<()>,
}

/// The checks of `examples/`.
const USUAL: Checks = Checks { interval: Duration::from_millis(500), timeout: Duration::from_millis(300) };
const FAST: Checks = Checks { interval: Duration::from_millis(250), timeout: Duration::from_millis(200) };

const FAULTS: [Fault; 3] = [
    Fault {
        name: "pod-killed",
        story: "1 of 6 pods refuses connections",
        checks: USUAL,
        inject: |bed| bed.kill_pod_server(POD),
        heal: |bed| bed.start_pod_server(POD),
    },
    Fault {
        name: "pod-silent",
        story: "1 of 6 pods does not answer",
        checks: USUAL,
        inject: |bed| bed.silence_pod(POD),
        heal: |bed| bed.heal_pod(POD),
    },
    Fault {
        name: "cluster-silent",
        story: "1 of 2 clusters does not answer",
        checks: FAST,
        inject: |bed| bed.silence_cluster(CLUSTER),
        heal: |bed| bed.heal_cluster(CLUSTER),
    },
];

/// Measures, prints the table, and writes the files.
pub(super) fn run(args: &Args) -> Result<()> {
    // Minutes of measuring come first: a directory that is not there should not wait for their end.
    for path in [&args.json, &args.plot].into_iter().flatten() {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        ensure!(directory.is_none_or(|dir| dir.is_dir()), "there is no directory for {}", path.display());
    }
    clean_on_signals()?;
    let report = measure_all(args.rounds)?;
    println!("{}", report.table());
    if let Some(path) = &args.json {
        write_for_caller(path, &(serde_json::to_string_pretty(&report)? + "\n"))?;
    }
    if let Some(path) = &args.plot {
        write_for_caller(path, &plot::draw(&report)?)?;
    }
    Ok(())
}

fn measure_all(rounds: u32) -> Result<Report> {
    let mut report = Report::new(rounds, &FAULTS)?;
    let progress = Progress::new(u64::from(rounds) * (FAULTS.len() * Contender::ALL.len()) as u64);
    progress.say(
        "Building the network: a client, a gateway, and two clusters of three pods each, in namespaces.",
    );
    let bed = Bed::s1(Options::default()).context("cannot build the network")?;
    for round in 0..rounds {
        for fault in &FAULTS {
            for contender in in_turn(round) {
                let what = format!("round {} of {rounds}, {}, {}", round + 1, fault.name, contender.name());
                progress.begin(&what);
                let run = measure_calmly(&bed, contender, fault, &progress).with_context(|| what.clone())?;
                progress.done(&format!("{what}: {}", line(&run)));
                report.add(fault.name, contender, run);
            }
        }
    }
    report.close();
    Ok(report)
}

/// The contenders in the order of a round.
fn in_turn(round: u32) -> impl Iterator<Item = Contender> {
    let all = Contender::ALL;
    (0..all.len()).map(move |n| all[(n + round as usize) % all.len()])
}

/// One contender, one fault, once more where the machine did not let the client keep its pace. What came of the
/// requests has no say in that.
fn measure_calmly(bed: &Bed, contender: Contender, fault: &Fault, progress: &Progress) -> Result<Run> {
    let mut calmest = measure(bed, contender, fault)?;
    for _ in 1..MOST_TRIES {
        let pause = calmest.longest_pause_ms;
        if pause <= millis(LONGEST_PAUSE) {
            break;
        }
        progress.say(&format!("The machine kept the client from its work for {pause} ms: once more."));
        let run = measure(bed, contender, fault)?;
        if run.longest_pause_ms < pause {
            calmest = run;
        }
    }
    Ok(calmest)
}

/// One contender, one fault.
fn measure(bed: &Bed, contender: Contender, fault: &Fault) -> Result<Run> {
    let serving = contender.start(bed, fault.checks)?;
    let load = SteadyLoad { timeout: TIMEOUT, ..SteadyLoad::new(bed.vip_http(), RATE) };
    let load = bed.client().load(load)?;
    let begun = Instant::now();
    // A second of requests that went well is the series' part before the fault.
    load.wait_for(begun + WARM_UP, |all| row(all, begun, RATE as usize, |_| true))
        .context("connections fail already before anything is broken")?;
    (fault.inject)(bed)?;
    // Connections that were half-way then are nobody's to save.
    let broken = Instant::now();
    thread::sleep(WINDOW);
    let outcomes = load.stop().outcomes;
    serving.stop()?;
    (fault.heal)(bed)?;
    expect_a_sound_client(&outcomes)?;
    Ok(Run::of(&outcomes, broken))
}

/// What the client itself could not do says nothing about a contender.
fn expect_a_sound_client(outcomes: &[Outcome]) -> Result<()> {
    for outcome in outcomes {
        if let Err(failure @ Failure::Local(_)) = &outcome.result {
            bail!(
                "the client could not make all of its requests ({failure}): nothing can be said about this run"
            );
        }
    }
    Ok(())
}

fn line(run: &Run) -> String {
    let until = match run.without_end {
        true => format!("without end within {} ms", millis(WINDOW)),
        false => format!("the last {} ms after the fault", run.ms_until_last_bad),
    };
    format!("{} requests, {} failed, {} slow, {until}", run.requests, run.failed, run.slow)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_round_has_every_contender_and_another_one_begins() {
        let names = |round| in_turn(round).map(Contender::name).collect::<Vec<_>>();
        assert_eq!(names(0), ["Kanmon", "HAProxy", "nftables"]);
        assert_eq!(names(1), ["HAProxy", "nftables", "Kanmon"]);
        assert_eq!(names(2), ["nftables", "Kanmon", "HAProxy"]);
        assert_eq!(names(3), names(0));
    }

    #[test]
    fn a_client_that_runs_out_of_something_makes_a_run_worthless() {
        let at = Instant::now();
        let outcome = |failure| Outcome { started: at, finished: at, result: Err(failure) };
        assert!(expect_a_sound_client(&[outcome(Failure::Timeout), outcome(Failure::Refused)]).is_ok());
        let error = expect_a_sound_client(&[outcome(Failure::Local("too many open files".into()))]);
        assert!(error.unwrap_err().to_string().contains("too many open files"));
    }
}
