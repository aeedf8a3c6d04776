//! From groups and their health to percentages, weights and states.

use std::collections::BTreeMap;

use super::groups::{Candidate, Group, Groups, Tally};
use super::{AreaShare, AreaState, Input, Place, Shares, distribute, levels, weights};
use crate::desired::{BackendId, Locality, Policy};
use crate::maglev::quotas;

/// The shares of a service with its health as it is: nothing is held back.
#[must_use]
pub fn shares(input: &Input<'_>) -> Shares {
    let groups = Groups::of(input);
    let health = health(&groups, input.policy);
    compute(input.policy, &groups, &health, &health)
}

/// The health of each group that may serve, 0 to 100: what is held back when it rises.
pub(super) fn health(groups: &Groups<'_>, policy: &Policy) -> Vec<u32> {
    let of = |group: &Group<'_>| match policy.locality {
        Locality::Distribute { .. } if group.tally().healthy > 0 => 100,
        Locality::Distribute { .. } => 0,
        Locality::Even | Locality::Failover { .. } => level_health(&group.tally(), policy),
    };
    groups.serving.iter().map(of).collect()
}

/// The shares of a service whose groups have a health, and count with another, held one.
pub(super) fn compute(policy: &Policy, groups: &Groups<'_>, health: &[u32], held: &[u32]) -> Shares {
    let served = percents(policy, groups, held)
        .zip(percents(policy, groups, health))
        .map(|(percents, unheld)| serve(policy, groups, &percents, &unheld));
    let mut shares = served.unwrap_or_else(|| fail_open(policy, groups));
    if let Some(group) = &groups.excluded {
        for (place, tally) in &group.places {
            shares.areas.push(area(*place, groups.serving.len(), tally, 0, AreaState::Excluded));
        }
    }
    shares
}

/// The percentage of each group that may serve; `None` if none has a healthy endpoint.
fn percents(policy: &Policy, groups: &Groups<'_>, held: &[u32]) -> Option<Vec<u32>> {
    let groups = groups.serving.iter().map(Group::tally).zip(held);
    if let Locality::Distribute { shares } = &policy.locality {
        let wanted = shares.iter().map(|(_, wanted)| *wanted).chain([0]);
        let parts: Vec<_> = groups
            .zip(wanted)
            .map(|((tally, held), wanted)| distribute::Part {
                wanted,
                capacity: tally.size.div_ceil(tally.healthy.max(1)).min(*held),
                healthy: tally.healthy,
            })
            .collect();
        return distribute::percents(&parts);
    }
    let (alive, capacity): (Vec<u32>, Vec<u32>) = groups
        .map(|(tally, held)| {
            let health = levels::health(policy.overprovisioning_percent, tally.size, tally.endpoints);
            (u32::from(tally.healthy > 0), health.min(*held))
        })
        .unzip();
    // A few healthy ones among hundreds are a health of 0, and better than none.
    levels::loads(&capacity).or_else(|| levels::loads(&alive))
}

fn level_health(tally: &Tally, policy: &Policy) -> u32 {
    levels::health(policy.overprovisioning_percent, tally.healthy * 100, tally.endpoints)
}

/// Gives each group its percentage. `unheld` is what it would have if nothing were held back.
fn serve(policy: &Policy, groups: &Groups<'_>, percents: &[u32], unheld: &[u32]) -> Shares {
    let alone = percents.contains(&100);
    let parts: Vec<weights::Part> = groups
        .serving
        .iter()
        .zip(percents)
        .map(|(group, percent)| {
            let all = alone || keeps_unhealthy(group, policy);
            let counts = |candidate: &&Candidate| candidate.healthy || all;
            let sharing = group.candidates.iter().filter(counts).copied().collect();
            weights::Part { percent: *percent, sharing }
        })
        .collect();
    let mut areas = Vec::new();
    for (level, (group, arriving)) in groups.serving.iter().zip(arriving(&parts)).enumerate() {
        let sizes: Vec<u32> = group.places.values().map(|tally| tally.size).collect();
        for ((place, tally), percent) in group.places.iter().zip(quotas(arriving, &sizes)) {
            let state = match tally {
                Tally { endpoints: 0, .. } => AreaState::Empty,
                Tally { healthy: 0, .. } => AreaState::Failed,
                _ if percents[level] < unheld[level] => AreaState::FailingBack,
                _ if percents[level] == 0 => AreaState::Standby,
                tally if level_health(tally, policy) < 100 => AreaState::Impaired,
                _ => AreaState::Active,
            };
            areas.push(area(*place, level, tally, percent, state));
        }
    }
    let mut weights = weights::weights(&parts);
    for backend in candidates(groups) {
        weights.entry(backend).or_insert(0);
    }
    Shares { areas, weights, degraded: None }
}

/// Whether the unhealthy of a group that does not serve alone keep their weight.
///
/// The lookup walks on from an unhealthy backend to any other of the ring. So as a rule it stays in the ring, and
/// a probe that fails moves nobody else and rebuilds nothing; where several groups serve, the walk carries some
/// new flows to the others, against the percentages. So the unhealthy weigh nothing in a distribution, whose
/// percentages somebody chose, and in a level without full health, whose percentage follows each of its endpoints
/// anyhow.
fn keeps_unhealthy(group: &Group<'_>, policy: &Policy) -> bool {
    !matches!(policy.locality, Locality::Distribute { .. }) && level_health(&group.tally(), policy) == 100
}

/// The percentage of new flows that arrives at each part: what the ring gives to its healthy ones, and of the
/// rest, which walks on, as much again.
fn arriving(parts: &[weights::Part]) -> Vec<u32> {
    let size = |part: &weights::Part, which: fn(&&Candidate) -> bool| -> u32 {
        part.sharing.iter().filter(which).map(|candidate| candidate.size).sum()
    };
    let found = |part: &weights::Part| {
        let (healthy, all) = (size(part, |candidate| candidate.healthy), size(part, |_| true));
        // In millionths of the ring.
        (u64::from(part.percent) * 10_000 * u64::from(healthy) / u64::from(all.max(1))) as u32
    };
    quotas(100, &parts.iter().map(found).collect::<Vec<_>>())
}

/// Where nothing is healthy everything that is ready serves, all endpoints alike: health is as likely to be wrong
/// as all of them are to be dead.
fn fail_open(policy: &Policy, groups: &Groups<'_>) -> Shares {
    let rows: Vec<_> = groups
        .serving
        .iter()
        .enumerate()
        .flat_map(|(level, group)| group.places.iter().map(move |(place, tally)| (level, *place, *tally)))
        .collect();
    let ready: Vec<u32> = rows.iter().map(|(_, _, tally)| tally.ready).collect();
    let areas = rows
        .iter()
        .zip(quotas(100, &ready))
        .map(|((level, place, tally), percent)| {
            let state = if tally.endpoints == 0 { AreaState::Empty } else { AreaState::Failed };
            area(*place, *level, tally, percent, state)
        })
        .collect();
    let weights: BTreeMap<BackendId, u32> = candidates(groups).map(|backend| (backend, 1)).collect();
    Shares { areas, weights, degraded: degraded(policy, groups) }
}

/// What is to be said where nothing is healthy.
fn degraded(policy: &Policy, groups: &Groups<'_>) -> Option<String> {
    let tally = groups.tally();
    if tally.ready > 0 {
        let ejected = match tally.ejected {
            0 => String::new(),
            some => format!(" ({some} are ejected)"),
        };
        return Some(format!(
            "none of the {} ready endpoints is healthy{ejected}; all of them are used alike until one is. \
             `kanmon backends` shows what is wrong with each",
            tally.ready
        ));
    }
    let elsewhere = groups.excluded.as_ref().map_or(0, |group| group.tally().ready);
    let policy = policy.name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
    (elsewhere > 0).then(|| {
        format!(
            "no endpoint is ready where the policy{policy} allows any, and it is strict: new flows are refused, \
             though {elsewhere} endpoints elsewhere are ready"
        )
    })
}

/// All that may get new flows.
fn candidates<'a>(groups: &'a Groups<'_>) -> impl Iterator<Item = BackendId> + 'a {
    groups.serving.iter().flat_map(|group| group.candidates.iter().map(|candidate| candidate.backend))
}

fn area(
    (region, zone): (&str, &str),
    level: usize,
    tally: &Tally,
    percent: u32,
    state: AreaState,
) -> AreaShare {
    AreaShare {
        place: Place { region: region.to_owned(), zone: zone.to_owned() },
        level,
        endpoints: tally.endpoints,
        healthy: tally.healthy,
        ejected: tally.ejected,
        percent,
        state,
    }
}
