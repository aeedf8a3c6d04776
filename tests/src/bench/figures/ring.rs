//! `bench ring`, and what of `bench scale` is the agent's: what `kanmon-bench-ring` says (benches/ring), which has the
//! agent's own code in it.

use std::{env, process::Command};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::report::{Range, Timing};
use crate::bench::progress::Progress;

const PROGRAM: &str = "kanmon-bench-ring";

/// One of its figures.
#[derive(Debug, Deserialize)]
struct Said {
    what: String,
    slots: u32,
    services: u32,
    backends: u32,
    ms: Vec<f64>,
    disruption: Option<f64>,
    bytes: Option<u64>,
}

/// Measures rings, and what a changed endpoint takes.
pub(super) fn measure(quick: bool) -> Result<Vec<Timing>> {
    run(&[], quick)
}

/// Measures how these grow with backends and services.
pub(super) fn scale(quick: bool) -> Result<Vec<Timing>> {
    run(&["--scale"], quick)
}

/// Runs the program, which lies beside this one.
fn run(args: &[&str], quick: bool) -> Result<Vec<Timing>> {
    let progress = Progress::new(1);
    progress.begin("rings, and endpoints that change");
    let program = env::current_exe()?.with_file_name(PROGRAM);
    let mut command = Command::new(&program);
    command.args(args).args(quick.then_some("--quick")).stderr(std::process::Stdio::inherit());
    let output = command.output().with_context(|| format!("cannot start {}", program.display()))?;
    ensure!(output.status.success(), "{PROGRAM} failed ({})", output.status);
    let said: Vec<Said> = serde_json::from_slice(&output.stdout).context("it prints no JSON of ours")?;
    let timings: Vec<Timing> = said.into_iter().map(Timing::from).collect();
    for timing in &timings {
        progress.say(&format!("{}, {} backends: {} ms", timing.what, timing.backends, timing.ms));
    }
    Ok(timings)
}

impl From<Said> for Timing {
    fn from(said: Said) -> Timing {
        Timing {
            what: said.what,
            slots: said.slots,
            services: said.services,
            backends: said.backends,
            ms: Range::of(&said.ms),
            disruption: said.disruption,
            bytes: said.bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_program_prints_becomes_a_row() {
        let text = r#"{"what":"build","slots":251,"services":1,"backends":10,"ms":[3,1,2],"disruption":null,"bytes":1004}"#;
        let timing = Timing::from(serde_json::from_str::<Said>(text).unwrap());
        assert_eq!((timing.what.as_str(), timing.ms.median, timing.disruption), ("build", 2.0, None));
        assert_eq!(timing.bytes, Some(1004));
    }
}
