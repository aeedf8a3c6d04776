//! Kanmon as it comes: the agent with the bed's manifests, which say how pods are probed.

use anyhow::{Result, ensure};

use super::{Checks, Serving, THRESHOLD, in_millis};
use crate::{
    agent::{Agent, AgentOptions},
    topology::Bed,
};

/// Writes how to probe into the manifests, then starts the agent and waits until it uses every pod.
pub(super) fn start(bed: &Bed, checks: Checks) -> Result<Agent> {
    for cluster in bed.cluster_names() {
        let path = format!("{cluster}/service.yaml");
        let service = with_checks(&bed.manifests().read(&path)?, checks)?;
        bed.manifests().write(&path, &service)?;
    }
    bed.start_agent(AgentOptions::default())
}

impl Serving for Agent {
    fn stop(self: Box<Self>) -> Result<()> {
        self.interrupt()
    }
}

/// The manifest of a Service with other values in its annotations about probes.
fn with_checks(service: &str, checks: Checks) -> Result<String> {
    let mut service = service.to_owned();
    for (name, value) in [
        ("interval", in_millis(checks.interval)),
        ("timeout", in_millis(checks.timeout)),
        ("unhealthy-threshold", format!("\"{THRESHOLD}\"")),
        ("healthy-threshold", format!("\"{THRESHOLD}\"")),
    ] {
        service = with_annotation(&service, &format!("kanmon.dev/health-check-{name}: "), &value)?;
    }
    Ok(service)
}

fn with_annotation(service: &str, key: &str, value: &str) -> Result<String> {
    let mut found = false;
    let lines = service.lines().map(|line| {
        let indent = &line[..line.len() - line.trim_start().len()];
        match line.trim_start().starts_with(key) {
            true => {
                found = true;
                format!("{indent}{key}{value}\n")
            }
            false => format!("{line}\n"),
        }
    });
    let text = lines.collect();
    ensure!(found, "the Service has no annotation `{}`", key.trim_end_matches([':', ' ']));
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SERVICE: &str = include_str!("../../../../examples/hangzhou/service.yaml");

    #[test]
    fn probes_are_set_in_the_annotations_and_nothing_else_changes() {
        let as_it_is = Checks { interval: Duration::from_millis(500), timeout: Duration::from_millis(300) };
        assert_eq!(with_checks(SERVICE, as_it_is).unwrap(), SERVICE);
        let fast = Checks { interval: Duration::from_millis(250), timeout: Duration::from_millis(200) };
        let text = with_checks(SERVICE, fast).unwrap();
        assert!(text.contains("\n    kanmon.dev/health-check-interval: 250ms\n"), "{text}");
        assert!(text.contains("\n    kanmon.dev/health-check-timeout: 200ms\n"), "{text}");
        let changed = SERVICE.lines().zip(text.lines()).filter(|(before, after)| before != after).count();
        assert_eq!((changed, text.lines().count()), (2, SERVICE.lines().count()));
        assert!(with_checks("spec: {}\n", fast).is_err());
    }
}
