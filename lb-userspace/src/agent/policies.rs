//! How the Services of each LoadBalancingPolicy do, for whoever reports it to the clusters. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cluster::PolicyReport;
use crate::desired::{AreaStatus, Desired, ObjectName, ServiceId};
use crate::health::Usability;
use crate::locality::{AreaShare, Shares};

/// What the policies that are attached to Services should be told. `short`: what the gateway lacks for new flows of a
/// service.
pub(super) fn reports(
    desired: &Desired,
    usability: &Usability,
    shares: &BTreeMap<ServiceId, Arc<Shares>>,
    short: &dyn Fn(ServiceId) -> Option<String>,
) -> BTreeMap<ObjectName, PolicyReport> {
    let report = |services: &mut dyn Iterator<Item = &ObjectName>| {
        let mut report = PolicyReport::default();
        for service in services {
            let Some((id, shares)) = worst(service, desired, shares) else { continue };
            report.areas.extend(shares.areas.iter().map(|area| shown(&service.name, area)));
            let of_health = usability.services.get(&id).and_then(|health| health.degraded.clone());
            report.degraded = report.degraded.or_else(|| of_health.or_else(|| shares.degraded.clone()));
            report.degraded = report.degraded.or_else(|| named(service, desired).find_map(short));
        }
        report
    };
    let policies = desired.policies.iter();
    policies.map(|(name, state)| (name.clone(), report(&mut state.services.iter()))).collect()
}

/// A Service is as many services as it has addresses and ports, with the same pods behind them: the one with the fewest
/// healthy endpoints stands for all.
fn worst<'a>(
    name: &ObjectName,
    desired: &Desired,
    shares: &'a BTreeMap<ServiceId, Arc<Shares>>,
) -> Option<(ServiceId, &'a Shares)> {
    let with_shares = named(name, desired).filter_map(|id| Some((id, &**shares.get(&id)?)));
    with_shares.min_by_key(|(_, shares)| shares.areas.iter().map(|area| area.healthy).sum::<u32>())
}

/// The services of a Service.
fn named(name: &ObjectName, desired: &Desired) -> impl Iterator<Item = ServiceId> {
    let services = desired.services.values();
    let of_name = services.filter(|service| service.namespace == name.namespace && service.name == name.name);
    of_name.map(|service| service.id)
}

fn shown(service: &str, area: &AreaShare) -> AreaStatus {
    AreaStatus {
        service: service.to_owned(),
        region: area.place.region.clone(),
        zone: area.place.zone.clone(),
        endpoints: area.endpoints,
        healthy: area.healthy,
        ejected: area.ejected,
        effective_weight: area.percent,
        state: area.state.to_string(),
    }
}
