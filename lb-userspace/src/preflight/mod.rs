//! `kanmon preflight`: whether everything around a gateway is as it must be, before traffic depends on it.
//!
//! ```text
//! gather/ (kernel, netlink, API servers, connections) ─► Facts ─► checks/ (pure) ─► Report ─► a table, JSON, exit code
//! ```
//!
//! Gathering changes nothing: it reads, opens connections to endpoints and sends single datagrams. What the agent itself
//! can find out all the time it does by the same rules ([`crate::desired::conflicts`], [`crate::health::blocked`]) and
//! says so in `NetworkValid` of each MemberCluster.

mod checks;
pub mod facts;
mod finding;
mod gather;
#[cfg(test)]
mod tests;

pub use facts::Facts;
pub use finding::{Finding, Report, Status, count};
pub use gather::{Member, Request, gather};

/// Judges the facts: a finding for each thing that was looked at, in the order of the table.
#[must_use]
pub fn judge(facts: &Facts) -> Report {
    let mut findings = checks::host::check(&facts.host);
    findings.extend(checks::interfaces::check(&facts.interfaces, facts.xdp_mode, facts.host.cpus));
    findings.extend(checks::host::check_fabric(facts.host.vendor.as_deref()));
    findings.extend(checks::ports::check(&facts.ports));
    findings.extend(checks::networks::check(&facts.networks));
    findings.extend(checks::servers::check(&facts.servers));
    findings.extend(checks::paths::check(&facts.paths));
    Report { findings }
}
