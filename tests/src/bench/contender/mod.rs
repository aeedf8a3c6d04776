//! Who is compared: each serves the bed's VIP from the gateway's namespace, one at a time.

mod haproxy;
mod kanmon;
mod nftables;

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::topology::{Bed, program};

/// How often pods are looked at. Two failures in a row condemn one, two successes bring it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Checks {
    /// From one look to the next.
    pub(super) interval: Duration,
    /// How long a pod may take to answer.
    pub(super) timeout: Duration,
}

/// In a row, for a pod to count as dead, or as alive again.
const THRESHOLD: u32 = 2;

/// One that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contender {
    /// The XDP program and its agent.
    Kanmon,
    /// A proxy: each connection is two, joined in a process.
    HaProxy,
    /// The kernel's own address translation, by rules; nobody looks whether pods live.
    Nftables,
}

/// A contender at work.
pub(super) trait Serving {
    /// Ends it, and puts the gateway back into the state that it found.
    fn stop(self: Box<Self>) -> Result<()>;
}

impl Contender {
    /// All of them, in the order in which they are shown.
    pub(super) const ALL: [Contender; 3] = [Contender::Kanmon, Contender::HaProxy, Contender::Nftables];

    /// What it is called.
    pub(super) fn name(self) -> &'static str {
        match self {
            Contender::Kanmon => "Kanmon",
            Contender::HaProxy => "HAProxy",
            Contender::Nftables => "nftables",
        }
    }

    /// The version that would run.
    ///
    /// # Errors
    /// When it is not on this machine.
    pub(super) fn version(self) -> Result<String> {
        let (path, argument) = match self {
            Contender::Kanmon => (program("kanmon")?, "--version"),
            Contender::HaProxy => (PathBuf::from("haproxy"), "-v"),
            Contender::Nftables => (PathBuf::from("nft"), "--version"),
        };
        let output = Command::new(&path).arg(argument).output();
        let output = output.with_context(|| {
            format!("cannot start {}; `cargo xtask bench` gets what is missing", path.display())
        })?;
        let text = String::from_utf8_lossy(&output.stdout);
        let said = text.lines().next().unwrap_or_default();
        ensure!(output.status.success(), "`{} {argument}` failed ({})", path.display(), output.status);
        let version = version(said);
        version.with_context(|| format!("`{} {argument}` names no version: {said:?}", path.display()))
    }

    /// Starts it in the gateway's namespace for the bed's VIP and pods.
    ///
    /// # Errors
    /// When it cannot be started or does not serve in time.
    pub(super) fn start(self, bed: &Bed, checks: Checks) -> Result<Box<dyn Serving + '_>> {
        Ok(match self {
            Contender::Kanmon => Box::new(kanmon::start(bed, checks)?),
            Contender::HaProxy => Box::new(haproxy::start(bed, checks)?),
            Contender::Nftables => Box::new(nftables::start(bed)?),
        })
    }
}

/// The first word that is a version, as in "nftables v1.0.6 (Lester Gooch #5)".
fn version(line: &str) -> Option<String> {
    let words = line.split_whitespace().map(|word| word.strip_prefix('v').unwrap_or(word));
    words.into_iter().find(|word| word.starts_with(|c: char| c.is_ascii_digit())).map(str::to_owned)
}

/// A time as HAProxy's and Kanmon's settings take it.
fn in_millis(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_found_in_what_each_contender_says() {
        let found = |line| version(line).unwrap_or_default();
        assert_eq!(found("kanmon 0.1.0"), "0.1.0");
        assert_eq!(
            found("HAProxy version 2.6.12-1+deb12u4 2026/08/27 - https://haproxy.org/"),
            "2.6.12-1+deb12u4"
        );
        assert_eq!(found("nftables v1.0.6 (Lester Gooch #5)"), "1.0.6");
        assert_eq!(version("version unknown"), None);
    }
}
