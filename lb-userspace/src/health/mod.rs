//! Which backends are usable.
//!
//! [`Prober`] decides when to probe what and what the results mean; [`Outliers`] ejects backends on which users'
//! connections fail; [`Clusters`] notices that a cluster fails as a whole. None of them does I/O or reads a clock;
//! [`probe::run`] is the prober's edge to the network. [`evaluate`] combines what they say with readiness and
//! reachability into the backends that each service may use.

mod clusters;
mod machine;
mod outlier;
pub mod probe;
mod reachability;
mod verdict;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::desired::{Endpoint, HealthCheck, HealthCheckKind};

pub use clusters::{Change, Clusters};
pub use machine::{News, Outcome, Probe, ProbeId, Prober};
pub use outlier::{Decision, Ejection, Ejections, Ending, Observation, Outliers, Sign};
pub use reachability::{Answer, blocked};
pub use verdict::{ServiceHealth, Sources, Usability, evaluate, probe_targets};

/// What is probed, and how. Backends that agree in all of this share one probe, whatever number of services
/// they are in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProbeTarget {
    /// Where the probe connects to.
    pub address: SocketAddr,
    /// Kind, times and thresholds; the kind is never [`HealthCheckKind::None`].
    pub check: HealthCheck,
}

impl ProbeTarget {
    /// The probe of an endpoint under its service's check; `None` where the endpoint is not probed.
    #[must_use]
    pub fn of(endpoint: &Endpoint, check: &HealthCheck) -> Option<Self> {
        if check.kind == HealthCheckKind::None {
            return None;
        }
        let address: IpAddr = endpoint.backend.address;
        endpoint.probe_port.map(|port| Self { address: SocketAddr::new(address, port), check: check.clone() })
    }
}

/// What probes say of a target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// No probe has ended yet, or the target is not probed: readiness decides.
    #[default]
    Unknown,
    /// It answers.
    Healthy,
    /// It does not.
    Unhealthy {
        /// How the latest probe failed, for people.
        reason: Arc<str>,
    },
}

/// What probes say of all targets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdicts(HashMap<ProbeTarget, Probed>);

/// What probes say of one target.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Probed {
    verdict: Verdict,
    /// The latest probe failed, whether or not that has changed the verdict yet.
    latest_failed: bool,
}

impl Verdicts {
    /// The verdict on a target; [`Verdict::Unknown`] where there is none.
    #[must_use]
    pub fn of(&self, target: &ProbeTarget) -> &Verdict {
        self.0.get(target).map_or(&Verdict::Unknown, |probed| &probed.verdict)
    }

    /// The verdict on an endpoint under its service's check.
    #[must_use]
    pub fn of_endpoint(&self, endpoint: &Endpoint, check: &HealthCheck) -> &Verdict {
        ProbeTarget::of(endpoint, check).map_or(&Verdict::Unknown, |target| self.of(&target))
    }

    /// Whether the verdicts are the same, whatever the latest probes said.
    #[must_use]
    pub fn agree_with(&self, other: &Self) -> bool {
        let verdict =
            |target, probed: &Probed| other.0.get(target).is_some_and(|o| o.verdict == probed.verdict);
        self.0.len() == other.0.len() && self.0.iter().all(|(target, probed)| verdict(target, probed))
    }

    /// Whether the latest probe of a target failed: it may be healthy still, by its threshold.
    #[must_use]
    pub fn latest_failed(&self, target: &ProbeTarget) -> bool {
        self.0.get(target).is_some_and(|probed| probed.latest_failed)
    }
}

impl FromIterator<(ProbeTarget, Probed)> for Verdicts {
    fn from_iter<I: IntoIterator<Item = (ProbeTarget, Probed)>>(verdicts: I) -> Self {
        Self(verdicts.into_iter().collect())
    }
}

impl FromIterator<(ProbeTarget, Verdict)> for Verdicts {
    /// The latest probes are taken to be in line with the verdicts.
    fn from_iter<I: IntoIterator<Item = (ProbeTarget, Verdict)>>(verdicts: I) -> Self {
        let probed = |verdict: Verdict| Probed {
            latest_failed: matches!(verdict, Verdict::Unhealthy { .. }),
            verdict,
        };
        verdicts.into_iter().map(|(target, verdict)| (target, probed(verdict))).collect()
    }
}
