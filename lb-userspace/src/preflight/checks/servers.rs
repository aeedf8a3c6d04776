//! API servers: whether they answer, what they are, what this account may do there, and whether their clocks agree.

use super::super::facts::{Server, ServerAnswer};
use super::super::finding::Finding;

/// The oldest Kubernetes whose API has all that is used: `status.loadBalancer.ingress.ipMode` and CEL rules of our
/// definitions.
const OLDEST: (u32, u32) = (1, 30);
/// Leases and certificates bear less than a second badly, and half a minute not at all.
const SKEW_WARNING: i64 = 2;
const SKEW_FAILED: i64 = 15;

/// `api-server`, `api-version`, `api-rights`, `definitions`, `clock` for each.
pub(in super::super) fn check(servers: &[Server]) -> Vec<Finding> {
    servers.iter().flat_map(check_one).collect()
}

fn check_one(server: &Server) -> Vec<Finding> {
    let name = &server.name;
    match &server.answer {
        Err(error) => {
            let fix =
                "check its address, the network to it, and the kubeconfig (`kanmon remote-secret create`)";
            vec![Finding::failed("api-server", name, error, fix)]
        }
        Ok(answer) => {
            let mut findings = vec![
                Finding::ok("api-server", name, "answers"),
                version(name, answer),
                rights(name, answer),
                clock(name, answer),
            ];
            if !answer.missing_definitions.is_empty() {
                findings.push(Finding::failed(
                    "definitions",
                    name,
                    format!("does not know {}", answer.missing_definitions.join(", ")),
                    "kanmon crds | kubectl apply -f -",
                ));
            }
            findings
        }
    }
}

fn version(name: &str, answer: &ServerAnswer) -> Finding {
    let oldest = format!("{}.{}", OLDEST.0, OLDEST.1);
    match answer.numbers {
        Some(numbers) if numbers < OLDEST => Finding::failed(
            "api-version",
            name,
            format!("Kubernetes {} is older than {oldest}", answer.version),
            format!("upgrade the cluster to {oldest} or newer"),
        ),
        Some(_) => Finding::ok("api-version", name, format!("Kubernetes {}", answer.version)),
        None => {
            let message = format!("does not tell its version ({:?})", answer.version);
            Finding::warning("api-version", name, message, format!("see that it is {oldest} or newer"))
        }
    }
}

fn rights(name: &str, answer: &ServerAnswer) -> Finding {
    if answer.missing_rights.is_empty() {
        return Finding::ok("api-rights", name, "the account may do all that the agent does");
    }
    let message = format!("the account may not {}", answer.missing_rights.join(", "));
    let fix = if name.starts_with("member") {
        "kanmon remote-secret create grants it; or apply deploy/member"
    } else {
        "apply deploy/ (its ClusterRole has what is needed)"
    };
    Finding::failed("api-rights", name, message, fix)
}

fn clock(name: &str, answer: &ServerAnswer) -> Finding {
    let fix = "let NTP set both clocks (chronyc tracking)";
    match answer.ahead_seconds {
        None => Finding::warning("clock", name, "the server does not tell its time", fix),
        Some(ahead) => {
            let side = if ahead < 0 { "behind" } else { "ahead of" };
            let message = format!("its clock is {} s {side} this machine's", ahead.abs());
            if ahead.abs() >= SKEW_FAILED {
                Finding::failed("clock", name, message, fix)
            } else if ahead.abs() >= SKEW_WARNING {
                Finding::warning("clock", name, message, fix)
            } else {
                Finding::ok("clock", name, "its clock agrees with this machine's")
            }
        }
    }
}
