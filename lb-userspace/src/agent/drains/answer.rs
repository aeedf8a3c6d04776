//! What is told of drains: to whoever asked for one, and in `kanmon status`. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::keeper::Done;
use super::{Name, refusal};
use crate::agent::published::Published;
use crate::agent::sweep::Pass;
use crate::desired::{BackendId, Endpoint, ServiceId};
use crate::status::view::{self, DrainCause};

/// What became of a done. `published` is from after it.
pub(super) fn answer(done: &Done, in_force: bool, published: &Published, pass: &Pass) -> view::Drained {
    let mut extent = Extent::default();
    for name in &done.names {
        extent += Extent::of(name, published, pass);
    }
    let mut notes = BTreeSet::new();
    if extent.backends.is_empty() {
        notes.insert("no service has an endpoint of that name now".to_owned());
    }
    if !in_force {
        notes.insert(
            "it is kept, but packets do not go by it yet; `kanmon status` shows what the gateway waits for"
                .to_owned(),
        );
    } else if done.drained {
        notes.extend(refusals(done, published));
    } else {
        notes.extend(still(done, published));
    }
    view::Drained {
        names: done.names.iter().map(Name::to_string).collect(),
        drained: done.drained,
        changed: done.changed,
        in_force,
        backends: extent.backends.len(),
        flows: extent.flows,
        notes: notes.into_iter().collect(),
    }
}

/// All that is drained by hand, for `kanmon status`.
pub(in crate::agent) fn rows(published: &Published, pass: &Pass) -> Vec<view::ByHand> {
    let row = |(name, drain): (&Name, &super::Drain)| {
        let extent = Extent::of(name, published, pass);
        let (kind, text) = match name {
            Name::Cluster(name) => ("cluster", name.clone()),
            Name::Backend(id) => ("backend", id.to_string()),
        };
        view::ByHand {
            kind: kind.to_owned(),
            name: text,
            since: drain.since.clone(),
            backends: extent.backends.len(),
            flows: extent.flows,
        }
    };
    published.drains.iter().map(row).collect()
}

fn is_meant(name: &Name, endpoint: &Endpoint) -> bool {
    match name {
        Name::Cluster(cluster) => endpoint.cluster == *cluster,
        Name::Backend(id) => endpoint.backend == *id,
    }
}

/// The listed endpoints that a change is about, with their services.
fn meant<'a>(
    done: &'a Done,
    published: &'a Published,
) -> impl Iterator<Item = (&'a crate::desired::Service, &'a Endpoint)> {
    let services = published.desired.services.values();
    let all = services.flat_map(|service| service.endpoints.iter().map(move |endpoint| (service, endpoint)));
    all.filter(|(_, endpoint)| done.names.iter().any(|name| is_meant(name, endpoint)))
}

/// What is behind a name.
#[derive(Default)]
struct Extent {
    backends: BTreeSet<BackendId>,
    flows: u64,
}

impl Extent {
    fn of(name: &Name, published: &Published, pass: &Pass) -> Self {
        let listed = published
            .desired
            .services
            .values()
            .flat_map(|service| service.endpoints.iter().map(move |endpoint| (service.id, endpoint)));
        let gone = published.gone.iter().map(|((service, _), gone)| (*service, &gone.endpoint));
        let mut extent = Self::default();
        for (service, endpoint) in listed.chain(gone).filter(|(_, endpoint)| is_meant(name, endpoint)) {
            extent.backends.insert(endpoint.backend);
            extent.flows += flows(published, pass, service, endpoint);
        }
        extent
    }
}

impl std::ops::AddAssign for Extent {
    fn add_assign(&mut self, other: Self) {
        self.backends.extend(other.backends);
        self.flows += other.flows;
    }
}

fn flows(published: &Published, pass: &Pass, service: ServiceId, endpoint: &Endpoint) -> u64 {
    let member = published.members.get(&(service, endpoint.backend));
    member.and_then(|member| pass.usage.flows.get(&member.index)).copied().unwrap_or_default()
}

/// Services that a drain leaves without an endpoint.
fn refusals(done: &Done, published: &Published) -> BTreeSet<String> {
    let services: BTreeMap<_, _> = meant(done, published).map(|(service, _)| (service.id, service)).collect();
    let refused = services.into_values().filter_map(|service| {
        let why = refusal(service, |endpoint| published.drain_cause(endpoint))?;
        Some(format!("service {} ({}/{}): {why}", service.id, service.namespace, service.name))
    });
    refused.collect()
}

/// What a person still has to undo where a change takes one of several drains away.
fn still(done: &Done, published: &Published) -> BTreeSet<String> {
    let endpoints = meant(done, published).map(|(_, endpoint)| endpoint);
    let why = |endpoint: &Endpoint| match published.drain_cause(endpoint)? {
        DrainCause::ByHand => {
            let (name, _) = published.drains.of(endpoint)?;
            Some(format!("{name} is drained by hand as well, and stays so"))
        }
        DrainCause::MemberCluster => {
            Some(format!("MemberCluster {} says `state: Drain`, so it goes on draining", endpoint.cluster))
        }
        DrainCause::Terminating | DrainCause::NotReady | DrainCause::Removed => None,
    };
    endpoints.filter_map(why).collect()
}
