//! Which Services are fronts: what clients can connect to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Service as KubeService, ServiceSpec};

use super::LOAD_BALANCER_CLASS;
use super::addresses::ADDRESSES_ANNOTATION;
use super::affinity;
use super::enforcement;
use super::health_check::{self, Check};
use super::index::{Clusters, Index, Services};
use super::members::Member;
use super::policy::Policy;
use super::problems::{self, Problems};
use super::resources::LabelSelector;
use super::sources::{self, SourceRanges};
use super::types::{ObjectName, Place, Protocol, Reason};

/// The Service that decides about VIPs, ports and health checks of its namespace and name.
#[derive(Debug)]
pub(super) struct Front<'a> {
    pub(super) name: ObjectName,
    /// The cluster whose Service it is; empty: the gateway cluster, where that is no member.
    pub(super) cluster: &'a str,
    /// The clusters whose Service of this name would be the front otherwise.
    pub(super) others: Vec<&'a str>,
    pub(super) service: &'a KubeService,
    /// In the order of the Service.
    pub(super) ports: Vec<FrontPort>,
    pub(super) check: Check,
    pub(super) policy: Arc<Policy>,
    /// From where clients may connect, as all Services of its name say; `None`: from everywhere.
    pub(super) sources: Option<SourceRanges>,
    /// For how long a client stays with its pod.
    pub(super) affinity: Option<Duration>,
    /// The members whose endpoints serve; `None`: all.
    pub(super) selector: Option<&'a LabelSelector>,
}

/// A port that clients can connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FrontPort {
    pub(super) port: u16,
    pub(super) protocol: Protocol,
    /// Empty if it has none.
    pub(super) name: String,
    /// The front itself doesn't have it, but exports of its name do.
    pub(super) exported: bool,
}

impl Front<'_> {
    /// Where it is, for messages.
    pub(super) fn place(&self) -> String {
        problems::cluster_place(self.cluster)
    }

    /// Whether the endpoints of a member serve.
    pub(super) fn selects(&self, member: &Member) -> bool {
        self.selector.is_none_or(|selector| selector.matches(&member.labels))
    }
}

/// Finds the fronts, in the order of their names. `own` are the gateway cluster's Services, which go first;
/// `local` is its name where it is a member too, so that its Services are not looked at twice. `place` is where this
/// gateway is.
pub(super) fn collect<'a>(
    own: &Services<'a>,
    clusters: &'a Clusters<'a>,
    local: Option<&'a str>,
    place: &Place,
    problems: &mut Problems,
) -> BTreeMap<ObjectName, Front<'a>> {
    let own_name = local.unwrap_or_default();
    let has_own = !own.is_empty();
    let members: Vec<&'a (&'a str, Index<'a>)> =
        clusters.iter().filter(|(cluster, _)| !(has_own && Some(*cluster) == local)).collect();
    for (cluster, index) in &members {
        report_withheld(cluster, &index.withheld, problems);
    }
    let sources = std::iter::once((own_name, own))
        .chain(members.into_iter().map(|(cluster, index)| (*cluster, &index.services)));
    let mut fronts: BTreeMap<ObjectName, Front<'a>> = BTreeMap::new();
    for (cluster, services) in sources {
        for (name, &service) in services {
            let Some(spec) = candidate(cluster, name, service, problems) else { continue };
            enforcement::report(cluster, name, service, place, problems);
            if let Some(front) = fronts.get_mut(name) {
                front.others.push(cluster);
                // Exports share the union of their ports.
                let exports = clusters.iter().any(|(other, index)| *other == cluster && index.exports(name));
                report_differences(front, cluster, name, service, !exports, problems);
                restrict(front, cluster, service, spec, problems);
            } else {
                let front = front(cluster, name, service, spec, problems);
                fronts.insert(name.clone(), front);
            }
        }
    }
    fronts
}

/// The spec of a Service that can be a front; says so if one wants to be and cannot.
fn candidate<'a>(
    cluster: &str,
    name: &ObjectName,
    service: &'a KubeService,
    problems: &mut Problems,
) -> Option<&'a ServiceSpec> {
    let spec = service.spec.as_ref()?;
    if spec.load_balancer_class.as_deref() != Some(LOAD_BALANCER_CLASS) {
        return None;
    }
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    let message = if kind != "LoadBalancer" {
        format!("loadBalancerClass is {LOAD_BALANCER_CLASS}, but type is {kind}; say `type: LoadBalancer`")
    } else if spec.cluster_ip.as_deref() == Some("None") {
        "a headless Service (`clusterIP: None`) cannot be balanced; remove clusterIP".to_owned()
    } else {
        return Some(spec);
    };
    problems.error(cluster, problems::service(name), Reason::UnsupportedService, message);
    None
}

/// Says which Services want to be fronts, and are not because their cluster gives exported ones only.
fn report_withheld(cluster: &str, withheld: &Services<'_>, problems: &mut Problems) {
    for (name, service) in withheld {
        let class = service.spec.as_ref().and_then(|spec| spec.load_balancer_class.as_deref());
        if class == Some(LOAD_BALANCER_CLASS) {
            let message = "is not used: the MemberCluster says `discovery: ServiceExport`, and no \
                           ServiceExport names it; make one of its name, or say `discovery: SameName`";
            problems.warning(cluster, problems::service(name), Reason::NotExported, message);
        }
    }
}

fn front<'a>(
    cluster: &'a str,
    name: &ObjectName,
    service: &'a KubeService,
    spec: &ServiceSpec,
    problems: &mut Problems,
) -> Front<'a> {
    Front {
        name: name.clone(),
        cluster,
        others: Vec::new(),
        service,
        ports: ports(cluster, name, spec, problems),
        check: health_check::parse(cluster, name, service.metadata.annotations.as_ref(), problems),
        policy: Arc::default(),
        sources: sources::parse(cluster, name, service, spec, problems),
        affinity: affinity::parse(cluster, name, spec, problems),
        selector: None,
    }
}

fn ports(cluster: &str, name: &ObjectName, spec: &ServiceSpec, problems: &mut Problems) -> Vec<FrontPort> {
    let mut ports: Vec<FrontPort> = Vec::new();
    let object = problems::service(name);
    for port in spec.ports.iter().flatten() {
        let Some(number) = u16::try_from(port.port).ok().filter(|&number| number > 0) else {
            let message = format!("port {} is not within 1 to 65535", port.port);
            problems.error(cluster, &object, Reason::InvalidObject, message);
            continue;
        };
        let Some(protocol) = protocol(port.protocol.as_deref()) else {
            let message = format!(
                "port {number} has protocol {}; only TCP and UDP are served",
                port.protocol.as_deref().unwrap_or_default()
            );
            problems.error(cluster, &object, Reason::UnsupportedProtocol, message);
            continue;
        };
        if ports.iter().any(|other| (other.port, other.protocol) == (number, protocol)) {
            let message = format!("port {number}/{protocol} is there twice; the first one counts");
            problems.error(cluster, &object, Reason::InvalidObject, message);
            continue;
        }
        let name = port.name.clone().unwrap_or_default();
        ports.push(FrontPort { port: number, protocol, name, exported: false });
    }
    if spec.ports.as_ref().is_none_or(Vec::is_empty) {
        problems.error(cluster, &object, Reason::InvalidObject, "has no ports; add spec.ports");
    }
    ports
}

/// The protocol of a port; unset means TCP.
pub(super) fn protocol(text: Option<&str>) -> Option<Protocol> {
    match text.unwrap_or("TCP") {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        _ => None,
    }
}

/// Says what another cluster's Service of the same name asks for in vain.
fn report_differences(
    front: &Front<'_>,
    cluster: &str,
    name: &ObjectName,
    service: &KubeService,
    compare_ports: bool,
    problems: &mut Problems,
) {
    let addresses = |service| annotation(service, ADDRESSES_ANNOTATION);
    let load_balancer_ip = |service: &KubeService| {
        service.spec.as_ref().and_then(|spec| spec.load_balancer_ip.clone()).unwrap_or_default()
    };
    let ports = |service: &KubeService| -> BTreeSet<(i32, Option<Protocol>)> {
        let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
        ports.map(|port| (port.port, protocol(port.protocol.as_deref()))).collect()
    };
    let mut differ = Vec::new();
    if addresses(service) != addresses(front.service)
        || load_balancer_ip(service) != load_balancer_ip(front.service)
    {
        differ.push("addresses");
    }
    if compare_ports && !ports(service).is_subset(&ports(front.service)) {
        differ.push("ports");
    }
    if !differ.is_empty() {
        let message = format!(
            "its {} are not those of {}, whose Service of this name is the front and decides; make them \
             equal",
            differ.join(" and "),
            front.place()
        );
        problems.warning(cluster, problems::service(name), Reason::NotFront, message);
    }
}

/// Lets only those clients connect that another cluster's Service of the same name lets in too: its pods get the
/// connections, and are not to see anybody whom their own cluster keeps out.
fn restrict(
    front: &mut Front<'_>,
    cluster: &str,
    service: &KubeService,
    spec: &ServiceSpec,
    problems: &mut Problems,
) {
    let theirs = sources::parse(cluster, &front.name, service, spec, problems);
    front.sources = sources::in_both(front.sources.take(), theirs);
    let decides = front.service.spec.as_ref().map(|spec| sources::texts(front.service, spec));
    if decides == Some(sources::texts(service, spec)) {
        return;
    }
    let is_closed = front.sources.as_ref().is_some_and(|both| both.is_empty());
    let message = format!(
        "its source ranges (loadBalancerSourceRanges) are not those of {}, so only clients that every Service of this \
         name lets in can connect{}; make them equal",
        front.place(),
        if is_closed { ", which is nobody" } else { "" }
    );
    problems.warning(cluster, problems::service(&front.name), Reason::NotFront, message);
}

/// The text of an annotation.
pub(super) fn annotation<'a>(service: &'a KubeService, key: &str) -> Option<&'a str> {
    service.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}
