//! The conditions of Services of our class.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::super::super::attendance::FORGOTTEN;
use super::super::super::lease::{NAMESPACE, heartbeat_name};
use super::super::Cluster;
use crate::desired::{
    FrontState, GatewayState, Judgement, ObjectName, Problem, Reason, Severity, cluster_place,
};

const ACCEPTED: &str = "kanmon.dev/Accepted";
const ADDRESS_ASSIGNED: &str = "kanmon.dev/AddressAssigned";
const PROGRAMMED: &str = "kanmon.dev/Programmed";
const ENFORCED: &str = "kanmon.dev/Enforced";
const NOT_FRONT: &str = "kanmon.dev/NotFront";
/// Why an address may not be served: a gateway that did is not there.
const GATEWAY_GONE: &str = "GatewayGone";

/// What a Service is told.
pub(super) struct Verdict {
    pub(super) vips: Vec<IpAddr>,
    pub(super) conditions: Vec<Judgement>,
}

/// What is known of all Services, by what is asked for.
pub(super) struct Judge<'a> {
    cluster: &'a Cluster<'a>,
    /// By what they are about and by cluster.
    problems: BTreeMap<&'a str, BTreeMap<&'a str, Vec<&'a Problem>>>,
    /// What the gateways made of each VIP.
    gateways: BTreeMap<IpAddr, &'a [GatewayState]>,
}

/// What a Service is among those of its name.
#[derive(Clone, Copy)]
enum Role<'a> {
    Front(&'a FrontState),
    /// Another cluster's is the front.
    Other(&'a FrontState),
    Refused,
}

/// Which condition a problem belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Topic {
    Acceptance,
    Address,
    Enforcement,
    Front,
}

impl Topic {
    const fn of(reason: Reason) -> Self {
        match reason {
            Reason::NoAddress
            | Reason::AddressConflict
            | Reason::AddressNotAllowed
            | Reason::InvalidAddress
            | Reason::MembersUnknown => Self::Address,
            Reason::ExternalTrafficPolicyIgnored
            | Reason::TrafficDistributionIgnored
            | Reason::ExternalIPsIgnored
            | Reason::InvalidSourceRange
            | Reason::NoSourceRange => Self::Enforcement,
            Reason::NotFront => Self::Front,
            _ => Self::Acceptance,
        }
    }
}

impl<'a> Judge<'a> {
    pub(super) fn new(cluster: &'a Cluster<'a>) -> Self {
        let mut problems: BTreeMap<&str, BTreeMap<&str, Vec<&Problem>>> = BTreeMap::new();
        for problem in &cluster.desired.problems {
            let of_object = problems.entry(&problem.object).or_default();
            of_object.entry(&problem.cluster).or_default().push(problem);
        }
        let gateways = cluster
            .allocations
            .iter()
            .filter(|allocation| cluster.is_ours(&allocation.metadata))
            .filter_map(|allocation| {
                let status = allocation.status.as_ref()?;
                Some((allocation.spec.address()?, status.gateways.as_slice()))
            })
            .collect();
        Self { cluster, problems, gateways }
    }

    /// `None`: the Service is newer than what was judged.
    pub(super) fn verdict(&self, name: &ObjectName) -> Option<Verdict> {
        let object = format!("Service {name}");
        let own = self.problems_of(&object, self.cluster.name);
        let role = match self.cluster.desired.fronts.get(name) {
            Some(front) if front.cluster == self.cluster.name => Role::Front(front),
            Some(front) if front.others.iter().any(|other| other == self.cluster.name) => Role::Other(front),
            _ => Role::Refused,
        };
        let accepted = self.accepted(role, own)?;
        let (vips, address, programmed) = match role {
            Role::Front(front) | Role::Other(front) => {
                let deciding = self.problems_of(&object, &front.cluster);
                (
                    front.vips.clone(),
                    address_assigned(&front.vips, deciding),
                    self.programmed(name, &front.vips),
                )
            }
            Role::Refused => {
                let because = |kind| judgement(kind, false, "NotAccepted", format!("see {ACCEPTED}"));
                (Vec::new(), because(ADDRESS_ASSIGNED), because(PROGRAMMED))
            }
        };
        let mut conditions = vec![accepted, address, programmed, enforced(own)];
        if let Role::Other(front) = role {
            conditions.push(not_front(front, own));
        }
        Some(Verdict { vips, conditions })
    }

    fn problems_of(&self, object: &str, cluster: &str) -> &[&'a Problem] {
        let of_object = self.problems.get(object);
        of_object.and_then(|clusters| clusters.get(cluster)).map_or(&[][..], Vec::as_slice)
    }

    fn accepted(&self, role: Role<'_>, own: &[&Problem]) -> Option<Judgement> {
        let about: Vec<&Problem> =
            own.iter().copied().filter(|problem| Topic::of(problem.reason) == Topic::Acceptance).collect();
        let errors = of_severity(&about, Severity::Error);
        if !errors.is_empty() {
            return Some(refusal(ACCEPTED, &errors));
        }
        if matches!(role, Role::Refused) {
            let withheld = about.iter().find(|problem| problem.reason == Reason::NotExported);
            return withheld.map(|problem| refusal(ACCEPTED, &[problem])).or_else(|| self.refused_with());
        }
        Some(judgement(ACCEPTED, true, "Accepted", messages(&about)))
    }

    /// Why a Service is not served that has no fault of its own.
    fn refused_with(&self) -> Option<Judgement> {
        let cluster = self.cluster;
        let title = format!("MemberCluster {}", cluster.name);
        let member = of_severity(self.problems_of(&title, ""), Severity::Error);
        let problem = member.first()?;
        let message = format!("nothing of this cluster is used: {}", problem.message);
        Some(judgement(ACCEPTED, false, &problem.reason.to_string(), message))
    }

    /// What the gateways make of the addresses.
    fn programmed(&self, name: &ObjectName, vips: &[IpAddr]) -> Judgement {
        if vips.is_empty() {
            return judgement(PROGRAMMED, false, "NoAddress", "there is no address that could be served");
        }
        let mut told = self.told(vips);
        let all = told.len();
        let gone: Vec<&str> =
            told.keys().copied().filter(|name| self.cluster.absences.gone.contains_key(*name)).collect();
        told.retain(|name, _| !gone.contains(name));
        let is_done = |states: &[(IpAddr, &GatewayState)]| {
            states.len() == vips.len() && states.iter().all(|(_, state)| state.programmed)
        };
        let done = told.values().filter(|states| is_done(states)).count();
        let count = format!("{done} of {all} gateways");
        let broken: Vec<(IpAddr, &GatewayState)> =
            told.values().flatten().copied().filter(|(_, state)| !state.programmed).collect();
        let reasons: Vec<&str> = broken
            .first()
            .map(|(_, state)| state.reason.as_str())
            .into_iter()
            .chain(gone.first().map(|_| GATEWAY_GONE))
            .collect();
        if !reasons.is_empty() {
            let of_broken = broken.iter().map(|(vip, state)| why(*vip, state));
            let of_gone = gone.iter().map(|gateway| self.why_gone(gateway));
            let parts: Vec<String> = [count].into_iter().chain(of_broken).chain(of_gone).collect();
            judgement(PROGRAMMED, false, &reasons.join(","), parts.join("; "))
        } else if told.keys().any(|gateway| self.cluster.absences.unsure.contains(*gateway))
            && let Some(written) = self.written(name, PROGRAMMED)
        {
            // Who has just started has seen nobody yet: another that did may have called one of them gone.
            written
        } else if told.is_empty() || done < told.len() {
            let message = format!("{count} have told yet");
            Judgement { holds: None, ..judgement(PROGRAMMED, false, "Pending", message) }
        } else {
            judgement(PROGRAMMED, true, "Programmed", count)
        }
    }

    /// A condition as it is.
    fn written(&self, name: &ObjectName, kind: &'static str) -> Option<Judgement> {
        let status = self.cluster.present.services.get(name)?.status.as_ref()?;
        let condition = status.conditions.iter().flatten().find(|condition| condition.type_ == kind)?;
        Some(Judgement {
            kind,
            holds: match condition.status.as_str() {
                "True" => Some(true),
                "False" => Some(false),
                _ => None,
            },
            reason: condition.reason.clone(),
            message: condition.message.clone(),
        })
    }

    /// By gateway: the states of the addresses that it has told of. What those said that are gone for good is about to
    /// be removed.
    fn told(&self, vips: &[IpAddr]) -> BTreeMap<&'a str, Vec<(IpAddr, &'a GatewayState)>> {
        let gone = &self.cluster.absences.gone;
        let mut told: BTreeMap<&str, Vec<(IpAddr, &GatewayState)>> = BTreeMap::new();
        for vip in vips {
            for state in self.gateways.get(vip).copied().unwrap_or_default() {
                if gone.get(&state.name).is_none_or(|absence| !absence.for_good) {
                    told.entry(&state.name).or_default().push((*vip, state));
                }
            }
        }
        told
    }

    fn why_gone(&self, gateway: &str) -> String {
        format!(
            "{gateway} is gone: its agent does not renew the Lease {NAMESPACE}/{} in the gateway cluster, so that nobody \
             knows whether it forwards; start its agent again and see that it reaches that cluster, or send nothing to \
             it any more: it is forgotten after {} minutes",
            heartbeat_name(self.cluster.cluster_set_id, gateway),
            FORGOTTEN.as_secs() / 60
        )
    }
}

fn why(vip: IpAddr, state: &GatewayState) -> String {
    let message = if state.message.is_empty() { &state.reason } else { &state.message };
    format!("{} does not serve {vip}: {message}", state.name)
}

fn address_assigned(vips: &[IpAddr], problems: &[&Problem]) -> Judgement {
    let about: Vec<&Problem> =
        problems.iter().copied().filter(|problem| Topic::of(problem.reason) == Topic::Address).collect();
    let errors = of_severity(&about, Severity::Error);
    if !errors.is_empty() {
        refusal(ADDRESS_ASSIGNED, &errors)
    } else if vips.is_empty() && !about.is_empty() {
        refusal(ADDRESS_ASSIGNED, &about)
    } else if vips.is_empty() {
        let message = "an address is being written down (`kubectl get addressallocations`)";
        judgement(ADDRESS_ASSIGNED, false, "Pending", message)
    } else {
        let mut parts = vec![vips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ")];
        parts.extend(about.iter().map(|problem| problem.message.clone()));
        judgement(ADDRESS_ASSIGNED, true, "Assigned", parts.join("; "))
    }
}

fn enforced(own: &[&Problem]) -> Judgement {
    let is_about = |problem: &&Problem| Topic::of(problem.reason) == Topic::Enforcement;
    let ignored: Vec<&Problem> = own.iter().copied().filter(is_about).collect();
    if ignored.is_empty() { judgement(ENFORCED, true, "Enforced", "") } else { refusal(ENFORCED, &ignored) }
}

fn not_front(front: &FrontState, own: &[&Problem]) -> Judgement {
    let mut parts = vec![format!(
        "the Service of this name in {} is the front, whose addresses, ports and annotations count; this one has its \
         addresses and gives endpoints",
        cluster_place(&front.cluster)
    )];
    let about = own.iter().filter(|problem| Topic::of(problem.reason) == Topic::Front);
    parts.extend(about.map(|problem| problem.message.clone()));
    judgement(NOT_FRONT, true, "NotFront", parts.join("; "))
}

fn of_severity<'a>(problems: &[&'a Problem], severity: Severity) -> Vec<&'a Problem> {
    problems.iter().copied().filter(|problem| problem.severity == severity).collect()
}

/// A condition that does not hold for these reasons, each named once.
fn refusal(kind: &'static str, problems: &[&Problem]) -> Judgement {
    let reasons: BTreeSet<Reason> = problems.iter().map(|problem| problem.reason).collect();
    let reasons: Vec<String> = reasons.iter().map(Reason::to_string).collect();
    judgement(kind, false, &reasons.join(","), messages(problems))
}

fn messages(problems: &[&Problem]) -> String {
    problems.iter().map(|problem| problem.message.as_str()).collect::<Vec<_>>().join("; ")
}

fn judgement(kind: &'static str, holds: bool, reason: &str, message: impl Into<String>) -> Judgement {
    Judgement { kind, holds: Some(holds), reason: reason.to_owned(), message: message.into() }
}
