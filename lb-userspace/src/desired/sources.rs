//! Source ranges: from where clients may connect to a Service.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service as KubeService, ServiceSpec};

use super::fronts::annotation;
use super::problems::{self, Problems};
use super::types::{ObjectName, Reason};

/// What `spec.loadBalancerSourceRanges` was before it was a field.
const ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

/// Networks without host bits.
pub type SourceRanges = Arc<BTreeSet<IpNet>>;

/// The networks that a Service names; the field goes before the annotation. `None`: it names none, so everybody may
/// connect. What can't be read lets nobody in, and is reported; so where nothing can, nobody gets in.
pub(super) fn parse(
    cluster: &str,
    name: &ObjectName,
    service: &KubeService,
    spec: &ServiceSpec,
    problems: &mut Problems,
) -> Option<SourceRanges> {
    let texts = texts(service, spec);
    if texts.is_empty() {
        return None;
    }
    let mut ranges = BTreeSet::new();
    let mut unreadable = Vec::new();
    for text in texts {
        match text.parse::<IpNet>() {
            Ok(range) => {
                ranges.insert(range.trunc());
            }
            Err(_) => unreadable.push(format!("{text:?}")),
        }
    }
    if !unreadable.is_empty() {
        let rest = if ranges.is_empty() { ", and there is no other: nobody can connect" } else { "" };
        let message = format!(
            "loadBalancerSourceRanges: {} lets nobody in{rest}; write a network as address and prefix length, such as \
             198.51.100.0/24 or 2001:db8::/32",
            unreadable.join(", ")
        );
        problems.error(cluster, problems::service(name), Reason::InvalidSourceRange, message);
    }
    Some(Arc::new(ranges))
}

/// The networks of two Services of one name: clients that both let in may connect.
pub(super) fn in_both(one: Option<SourceRanges>, other: Option<SourceRanges>) -> Option<SourceRanges> {
    match (one, other) {
        (Some(one), Some(other)) if one != other => {
            // Of two networks that have an address in common, one is within the other.
            let within = |inner: &SourceRanges, outer: &SourceRanges| {
                let is_within = |range: &&IpNet| outer.iter().any(|outer| outer.contains(*range));
                inner.iter().filter(is_within).copied().collect::<BTreeSet<_>>()
            };
            let mut common = within(&one, &other);
            common.extend(within(&other, &one));
            Some(Arc::new(common))
        }
        (one, other) => one.or(other),
    }
}

/// What is written, in whatever form.
pub(super) fn texts<'a>(service: &'a KubeService, spec: &'a ServiceSpec) -> BTreeSet<&'a str> {
    let field = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    if !field.is_empty() {
        return field.iter().map(|text| text.trim()).collect();
    }
    let annotation = annotation(service, ANNOTATION).unwrap_or_default().trim();
    if annotation.is_empty() { BTreeSet::new() } else { annotation.split(',').map(str::trim).collect() }
}

/// Those of a VIP's family: clients of the other one cannot reach it. Says so where there is none, for then nobody can
/// connect to the VIP.
pub(super) fn for_vip(
    ranges: &SourceRanges,
    vip: IpAddr,
    cluster: &str,
    name: &ObjectName,
    problems: &mut Problems,
) -> SourceRanges {
    let fits = |range: &&IpNet| range.addr().is_ipv4() == vip.is_ipv4();
    if ranges.iter().all(|range| fits(&range)) {
        return Arc::clone(ranges);
    }
    let of_family: BTreeSet<IpNet> = ranges.iter().filter(fits).copied().collect();
    if of_family.is_empty() {
        let (family, everybody) = if vip.is_ipv4() { ("IPv4", "0.0.0.0/0") } else { ("IPv6", "::/0") };
        let message = format!(
            "loadBalancerSourceRanges has no {family} network, so nobody can connect to {vip}; add one, {everybody} for \
             everybody"
        );
        problems.warning(cluster, problems::service(name), Reason::NoSourceRange, message);
    }
    Arc::new(of_family)
}
