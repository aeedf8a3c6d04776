//! The agent under test: how it is started, and what it takes.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::unistd::{SysconfVar, sysconf};

use super::load::Size;
use crate::{
    agent::Agent,
    stage::{Gateway, KubeStage},
};

/// How long the first plan may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often we look into its log.
const LOOK: Duration = Duration::from_millis(5);
/// What it writes when nothing is left to be written to the maps.
const READY: &str = "ready: ";
/// Slots of a ring over up to 163 backends, and room for a fallback ring.
const RING: u32 = 65_537 + 1024;
/// Of one over 10,000, twice: the next one is built beside it.
const BIG_RING: u32 = 2 * (1_048_573 + 32_768);

/// A started agent, and how long it took until all was in the maps.
pub(super) struct Started {
    pub(super) agent: Agent,
    pub(super) took: Duration,
}

/// Starts an agent that finds nothing of another's, with tables that hold the largest size. Its log is called as it is,
/// which no other agent's may be: it is looked into.
pub(super) fn start(stage: &KubeStage, gateway: &Gateway, largest: Size, name: &str) -> Result<Started> {
    if gateway.state().exists() {
        fs::remove_dir_all(gateway.state()).context("cannot remove what the last agent kept")?;
    }
    // Flows are not what is measured. Some members more: one that went keeps its index for a while.
    let members = largest.all() + largest.all() / 10 + 25_000;
    let sizes = [
        "--flows=65536".to_owned(),
        "--flows-v6=1024".to_owned(),
        format!("--services={}", largest.services + 100),
        format!("--backends={members}"),
        format!("--members={members}"),
        format!("--ring-slots={}", (largest.services + 200) * RING + BIG_RING),
    ];
    let command = stage.agent_command(gateway, &sizes.each_ref().map(String::as_str))?;
    let begun = Instant::now();
    let mut agent = Agent::start(stage.run(), name, command, gateway.socket().clone())?;
    while !fs::read_to_string(agent.process().log())?.contains(READY) {
        let ended = agent.process().try_wait()?;
        if ended.is_some() || begun.elapsed() > PATIENCE {
            bail!("the agent is not ready (after {PATIENCE:?} at most): {}", agent.process().log_tail(20));
        }
        thread::sleep(LOOK);
    }
    let took = begun.elapsed();
    Ok(Started { agent, took })
}

/// Ends an agent and removes its maps.
pub(super) fn end(stage: &KubeStage, started: Started) -> Result<()> {
    started.agent.terminate()?;
    let output = stage.bed().cleanup()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Its own memory, in bytes: what it has allocated, without files, programs and maps (proc(5), `RssAnon`).
pub(super) fn anonymous_memory(agent: &mut Agent) -> Result<u64> {
    let path = format!("/proc/{}/status", agent.process().pid());
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().context("RssAnon is a number")?;
    Ok(kibibytes * 1024)
}

/// The processor time that it took so far.
pub(super) fn processor_time(agent: &mut Agent) -> Result<Duration> {
    let path = format!("/proc/{}/stat", agent.process().pid());
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // The name, in parentheses, may have blanks in it (proc(5)).
    let after = text.rsplit_once(") ").context("no process")?.1;
    let ticks = after.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>());
    let ticks: u64 = ticks.sum::<Result<_, _>>().context("ticks are numbers")?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no CLK_TCK")?;
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}
