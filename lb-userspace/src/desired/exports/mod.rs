//! ServiceExports: which of them count, what the import looks like, and what each export is told (KEP-1645).
//!
//! An export counts if its cluster's endpoints are used and its Service can be exported. Of those that count the
//! oldest decides field by field; of equally old ones the first by name of cluster; those without a timestamp come
//! last. Ages are what the API servers wrote when the exports were made: every gateway comes to the same result,
//! whatever its own clock and those of the clusters say.

mod conflicts;
mod ports;

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service as KubeService, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::LOAD_BALANCER_CLASS;
use super::index::{Clusters, is_exportable};
use super::mcs::{ImportType, ServiceExportSpec, ServiceImportSpec};
use super::members::{Member, Members};
use super::problems::{Problems, cluster_place};
use super::resources::MemberState;
use super::types::{ExportJudgement, ExportState, FrontState, Judgement, ObjectName, Reason};

pub(super) use ports::open as open_ports;

/// The exports of one namespace and name.
#[derive(Debug, Default)]
pub(super) struct Exported<'a> {
    /// Those that count, the oldest first.
    sources: Vec<Source<'a>>,
    /// The clusters whose export does not count, and why.
    aside: BTreeMap<&'a str, Aside>,
}

/// An export that counts.
#[derive(Debug)]
struct Source<'a> {
    cluster: &'a str,
    created: Option<&'a Time>,
    /// Of the Service.
    spec: &'a ServiceSpec,
    export: &'a ServiceExportSpec,
}

/// Why an export does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aside {
    NoService,
    ExternalName,
    /// The MemberCluster is Disabled.
    Disabled,
    /// The MemberCluster's networks are an older one's.
    Refused,
}

/// Finds the exports of all clusters: of those that are `used`, and of those that are refused.
pub(super) fn gather<'a>(
    used: &Clusters<'a>,
    refused: &Clusters<'a>,
    members: &Members,
) -> BTreeMap<ObjectName, Exported<'a>> {
    let mut all: BTreeMap<ObjectName, Exported<'a>> = BTreeMap::new();
    for &(cluster, ref index) in used.iter().chain(refused) {
        for (name, export) in &index.exports {
            let exported = all.entry(name.clone()).or_default();
            match standing(members.get(cluster), index.service(name)) {
                Ok(spec) => exported.sources.push(Source {
                    cluster,
                    created: export.metadata.creation_timestamp.as_ref(),
                    spec,
                    export: &export.spec,
                }),
                Err(aside) => {
                    exported.aside.insert(cluster, aside);
                }
            }
        }
    }
    for exported in all.values_mut() {
        exported.sources.sort_by_key(|source| (source.created.is_none(), source.created, source.cluster));
    }
    all
}

/// The spec of the Service whose export counts.
fn standing<'a>(member: Option<&Member>, service: Option<&'a KubeService>) -> Result<&'a ServiceSpec, Aside> {
    let service = service.ok_or(Aside::NoService)?;
    if !is_exportable(service) {
        return Err(Aside::ExternalName);
    }
    match member {
        Some(member) if member.refused => Err(Aside::Refused),
        Some(member) if member.state == MemberState::Disabled => Err(Aside::Disabled),
        _ => service.spec.as_ref().ok_or(Aside::NoService),
    }
}

/// What becomes of all exports. `fronts` say which VIPs the imports have.
pub(super) fn judge(
    exported: &BTreeMap<ObjectName, Exported<'_>>,
    fronts: &BTreeMap<ObjectName, FrontState>,
    problems: &mut Problems,
) -> BTreeMap<ObjectName, ExportState> {
    let mut states = BTreeMap::new();
    for (name, exported) in exported {
        let state = exported.state(name, fronts.get(name));
        exported.report(name, &state, problems);
        states.insert(name.clone(), state);
    }
    states
}

impl Exported<'_> {
    fn state(&self, name: &ObjectName, front: Option<&FrontState>) -> ExportState {
        let mut state = ExportState::default();
        for (&cluster, &aside) in &self.aside {
            state.exports.insert(cluster.to_owned(), aside.judgement(name));
        }
        let Some(oldest) = self.sources.first() else { return state };

        let pending = if oldest.is_headless() { None } else { pending(name, front) };
        let ready = condition(
            "Ready",
            pending.is_none(),
            if pending.is_some() { "Pending" } else { "Exported" },
            pending.clone().unwrap_or_default(),
        );
        let conflict = conflicts::judge(&self.sources);
        for source in &self.sources {
            let conditions = vec![condition("Valid", true, "Valid", ""), ready.clone(), conflict.clone()];
            state.exports.insert(source.cluster.to_owned(), ExportJudgement { conditions });
        }
        state.clusters = self.sources.iter().map(|source| source.cluster.to_owned()).collect();
        state.clusters.sort_unstable();
        state.import_conditions = vec![condition(
            "Ready",
            pending.is_none(),
            if pending.is_some() { "Pending" } else { "Ready" },
            pending.unwrap_or_default(),
        )];
        state.import = Some(self.import(oldest, front));
        state.labels = oldest.export.exported_labels.clone().unwrap_or_default();
        state.annotations = oldest.export.exported_annotations.clone().unwrap_or_default();
        state
    }

    fn import(&self, oldest: &Source<'_>, front: Option<&FrontState>) -> ServiceImportSpec {
        let spec = oldest.spec;
        let vips = front.filter(|_| !oldest.is_headless()).map_or(&[][..], |front| &front.vips);
        // An import has at most one VIP of each family.
        let of_family = |v4: bool| vips.iter().find(|vip| vip.is_ipv4() == v4);
        let vips: Vec<&IpAddr> = of_family(true).into_iter().chain(of_family(false)).collect();
        let ip_families = match vips.as_slice() {
            [] => oldest.families().unwrap_or_default(),
            vips => vips.iter().map(|vip| family(vip).to_owned()).collect(),
        };
        let affinity = oldest.affinity();
        ServiceImportSpec {
            ports: ports::union(&self.sources).ports,
            ips: vips.into_iter().map(IpAddr::to_string).collect(),
            type_: if oldest.is_headless() { ImportType::Headless } else { ImportType::ClusterSetIp },
            session_affinity: Some(affinity.to_owned()),
            session_affinity_config: spec.session_affinity_config.clone().filter(|_| affinity == "ClientIP"),
            ip_families,
            internal_traffic_policy: spec.internal_traffic_policy.clone(),
            traffic_distribution: spec.traffic_distribution.clone(),
        }
    }

    /// What the conditions say, for `kanmon status`: without Kubernetes nobody sees conditions.
    fn report(&self, name: &ObjectName, state: &ExportState, problems: &mut Problems) {
        let object = format!("ServiceExport {name}");
        let decides = self.sources.first().map(|oldest| oldest.cluster);
        for (cluster, judgement) in &state.exports {
            let counts = !self.aside.contains_key(cluster.as_str());
            for Judgement { kind, holds, message, .. } in &judgement.conditions {
                match (*kind, *holds) {
                    ("Valid", Some(false)) => {
                        problems.error(cluster, &object, Reason::InvalidExport, message)
                    }
                    ("Ready", Some(false)) if counts => {
                        problems.warning(cluster, &object, Reason::ExportPending, message);
                    }
                    ("Conflict", Some(true)) if decides != Some(cluster) => {
                        problems.warning(cluster, &object, Reason::ExportConflict, message);
                    }
                    _ => {}
                }
            }
        }
    }

    fn is_headless(&self) -> bool {
        self.sources.first().is_some_and(Source::is_headless)
    }
}

impl Source<'_> {
    fn is_headless(&self) -> bool {
        self.spec.cluster_ip.as_deref() == Some("None")
    }

    fn affinity(&self) -> &str {
        self.spec.session_affinity.as_deref().unwrap_or("None")
    }

    /// As the Service says, else as its addresses tell; unknown for a Service that no API server has filled in.
    fn families(&self) -> Option<Vec<String>> {
        let told = self.spec.ip_families.clone().filter(|families| !families.is_empty());
        told.or_else(|| {
            let addresses = self.spec.cluster_ips.iter().flatten().filter_map(|ip| ip.parse().ok());
            let families: Vec<String> = addresses.map(|ip: IpAddr| family(&ip).to_owned()).collect();
            (!families.is_empty()).then_some(families)
        })
    }
}

fn family(address: &IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// Why the import of a service that is not headless cannot be used yet.
fn pending(name: &ObjectName, front: Option<&FrontState>) -> Option<String> {
    match front {
        None => Some(format!(
            "no address yet: no cluster has a Service {name} that is served; make one with `type: LoadBalancer` \
             and `loadBalancerClass: {LOAD_BALANCER_CLASS}` in the gateway cluster or a member"
        )),
        Some(front) if front.vips.is_empty() => {
            let place = cluster_place(&front.cluster);
            Some(format!("no address yet: the Service {name} in {place} waits for one; see its conditions"))
        }
        Some(_) => None,
    }
}

impl Aside {
    fn judgement(self, name: &ObjectName) -> ExportJudgement {
        let valid = match self {
            Self::NoService => condition(
                "Valid",
                false,
                "NoService",
                format!("this cluster has no Service {name}; make it, or delete the ServiceExport"),
            ),
            Self::ExternalName => condition(
                "Valid",
                false,
                "InvalidServiceType",
                "the Service is of type ExternalName, which has no endpoints to export; delete the \
                 ServiceExport, or give the Service another type",
            ),
            Self::Disabled | Self::Refused => condition("Valid", true, "Valid", ""),
        };
        let (reason, message) = match self {
            Self::NoService => ("Pending", "waits for the Service"),
            Self::ExternalName => ("Failed", "is not exported, because it is not valid"),
            Self::Disabled => (
                "Pending",
                "is not exported: the MemberCluster of this cluster says `state: Disabled`; say `state: Active`",
            ),
            Self::Refused => (
                "Failed",
                "is not exported: nothing of this cluster is used, because its networks overlap those of an \
                 older member; see the MemberCluster's conditions",
            ),
        };
        let ready = condition("Ready", false, reason, message);
        let conflict = condition("Conflict", false, "NoConflicts", "it takes no part");
        ExportJudgement { conditions: vec![valid, ready, conflict] }
    }
}

fn condition(
    kind: &'static str,
    holds: bool,
    reason: impl Into<String>,
    message: impl Into<String>,
) -> Judgement {
    Judgement { kind, holds: Some(holds), reason: reason.into(), message: message.into() }
}
