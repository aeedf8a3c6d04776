//! What this gateway makes of each VIP: its own entry in the allocations' status.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use super::allocations::KIND;
use super::{Action, Write};
use crate::cluster::Programmed;
use crate::desired::{AddressAllocation, GatewayState, Owner};

/// The longest message, in characters.
const LONGEST: usize = 1024;

/// This gateway's entries that are missing, or say something else now, in the allocations of its cluster set. Every
/// gateway writes its own, whoever holds the Lease, under a field manager of its own: an apply without an entry takes
/// back the one that it wrote.
///
/// `gateway` is the name of this one's Node, or host; `present` the allocations as the watch shows them now. Until
/// something is known nothing is written: what an earlier run of this agent said stays, for its packet program still
/// forwards.
pub(in super::super) fn writes(
    gateway: &str,
    programmed: &Programmed,
    present: &[AddressAllocation],
    owner: &Owner,
    now: Timestamp,
) -> Vec<Write> {
    if !programmed.known {
        return Vec::new();
    }
    let write = |allocation: &AddressAllocation| {
        let address = allocation.spec.address()?;
        let states = allocation.status.as_ref().map_or(&[][..], |status| &status.gateways);
        let before = states.iter().find(|state| state.name == gateway);
        let state = state(gateway, address, programmed, before, now);
        (before != state.as_ref()).then(|| apply_entry(allocation, state))
    };
    of_set(present, &owner.cluster_set_id).filter_map(write).collect()
}

/// The allocations of a cluster set.
fn of_set<'a>(
    present: &'a [AddressAllocation],
    cluster_set_id: &str,
) -> impl Iterator<Item = &'a AddressAllocation> {
    present
        .iter()
        .filter(move |allocation| allocation.owner().is_some_and(|its| its.cluster_set_id == cluster_set_id))
}

/// The gateways that have an entry in an allocation of the cluster set.
pub(in super::super) fn gateways(present: &[AddressAllocation], cluster_set_id: &str) -> BTreeSet<String> {
    let statuses = of_set(present, cluster_set_id).filter_map(|allocation| allocation.status.as_ref());
    statuses.flat_map(|status| &status.gateways).map(|state| state.name.clone()).collect()
}

/// What takes the entries of a gateway back that is gone for good, written by its field manager.
pub(in super::super) fn removals(
    gateway: &str,
    present: &[AddressAllocation],
    cluster_set_id: &str,
) -> Vec<Write> {
    let has_entry = |allocation: &&AddressAllocation| {
        let states = allocation.status.iter().flat_map(|status| &status.gateways);
        states.into_iter().any(|state| state.name == gateway)
    };
    let with_entry = of_set(present, cluster_set_id).filter(has_entry);
    with_entry.map(|allocation| apply_entry(allocation, None)).collect()
}

/// Applies a gateway's entry to an allocation's status; `None`: takes it back.
fn apply_entry(allocation: &AddressAllocation, entry: Option<GatewayState>) -> Write {
    Write {
        kind: KIND,
        namespace: String::new(),
        name: allocation.metadata.name.clone().unwrap_or_default(),
        action: Action::ApplyStatus(match entry {
            Some(entry) => json!({"status": {"gateways": [entry]}}),
            None => json!({}),
        }),
    }
}

/// What this gateway has to say of an address; `None`: nothing, it is no VIP here.
fn state(
    gateway: &str,
    address: IpAddr,
    programmed: &Programmed,
    before: Option<&GatewayState>,
    now: Timestamp,
) -> Option<GatewayState> {
    let (holds, reason, message) = match programmed.vips.get(&address)? {
        Ok(()) => (true, "Programmed", ""),
        Err(why) => (false, why.reason, why.message.as_str()),
    };
    let same = before.filter(|before| before.programmed == holds);
    Some(GatewayState {
        name: gateway.to_owned(),
        programmed: holds,
        reason: reason.to_owned(),
        message: message.chars().take(LONGEST).collect(),
        since: same.map_or(Time(now), |before| before.since.clone()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::NotProgrammed;
    use crate::desired::{
        AddressAllocationSpec, AddressAllocationStatus, CLUSTER_SET_LABEL, allocation_name,
    };

    const LATER: Timestamp = Timestamp::constant(1_000, 0);

    fn owner() -> Owner {
        Owner { cluster_set_id: "prod".to_owned(), group: String::new() }
    }

    fn allocation(address: &str) -> AddressAllocation {
        let spec = AddressAllocationSpec {
            address: address.to_owned(),
            pool: None,
            shared_address: None,
            services: Vec::new(),
        };
        let mut object = AddressAllocation::new(&allocation_name(address.parse().unwrap()), spec);
        object.metadata.labels = Some([(CLUSTER_SET_LABEL.to_owned(), "prod".to_owned())].into());
        object
    }

    fn programmed(address: &str, state: Result<(), NotProgrammed>) -> Programmed {
        let vips = [(address.parse().unwrap(), state)].into();
        Programmed { known: true, vips, ..Programmed::default() }
    }

    /// Applies the writes as an API server would, keeping the others' entries.
    fn apply(
        object: &mut AddressAllocation,
        gateway: &str,
        programmed: &Programmed,
        now: Timestamp,
    ) -> usize {
        let writes = writes(gateway, programmed, std::slice::from_ref(object), &owner(), now);
        for write in &writes {
            let Action::ApplyStatus(value) = &write.action else { panic!("{write:?}") };
            let status = object.status.get_or_insert_with(AddressAllocationStatus::default);
            status.gateways.retain(|state| state.name != gateway);
            if let Some(states) = value["status"]["gateways"].as_array() {
                status.gateways.extend(states.iter().map(|s| serde_json::from_value(s.clone()).unwrap()));
            }
        }
        writes.len()
    }

    #[test]
    fn each_gateway_says_its_own_and_only_when_it_changes() {
        let mut object = allocation("192.0.2.1");
        let good = programmed("192.0.2.1", Ok(()));
        let why = NotProgrammed { reason: "NoSnatAddress", message: "give it one".to_owned() };
        let bad = programmed("192.0.2.1", Err(why));
        assert_eq!(apply(&mut object, "gw-1", &good, Timestamp::UNIX_EPOCH), 1);
        assert_eq!(apply(&mut object, "gw-2", &bad, Timestamp::UNIX_EPOCH), 1);
        assert_eq!(apply(&mut object, "gw-1", &good, LATER), 0);
        assert_eq!(apply(&mut object, "gw-2", &bad, LATER), 0);
        assert_eq!(apply(&mut object, "gw-1", &bad, LATER), 1);
        let states = object.status.unwrap().gateways;
        let said = |name: &str| states.iter().find(|state| state.name == name).unwrap().clone();
        assert_eq!((said("gw-1").programmed, said("gw-1").since.0), (false, LATER));
        assert_eq!(
            (said("gw-2").reason.as_str(), said("gw-2").since.0),
            ("NoSnatAddress", Timestamp::UNIX_EPOCH)
        );
    }

    #[test]
    fn an_address_that_is_no_vip_here_any_more_loses_the_entry() {
        let mut object = allocation("2001:db8::1");
        apply(&mut object, "gw-1", &programmed("2001:db8::1", Ok(())), LATER);
        assert_eq!(apply(&mut object, "gw-1", &Programmed::default(), LATER), 0, "nothing is known yet");
        let nothing = Programmed { known: true, ..Programmed::default() };
        assert_eq!(apply(&mut object, "gw-1", &nothing, LATER), 1);
        assert_eq!(object.status.clone().unwrap().gateways, []);
        assert_eq!(apply(&mut object, "gw-1", &nothing, LATER), 0);
    }

    #[test]
    fn of_a_gateway_that_is_gone_for_good_its_own_entries_go() {
        let mut objects = [allocation("192.0.2.1"), allocation("192.0.2.2")];
        apply(&mut objects[0], "gw-1", &programmed("192.0.2.1", Ok(())), LATER);
        apply(&mut objects[0], "gw-2", &programmed("192.0.2.1", Ok(())), LATER);
        apply(&mut objects[1], "gw-2", &programmed("192.0.2.2", Ok(())), LATER);
        assert_eq!(gateways(&objects, "prod"), ["gw-1".to_owned(), "gw-2".to_owned()].into());
        let names = |writes: Vec<Write>| writes.into_iter().map(|write| write.name).collect::<Vec<_>>();
        assert_eq!(names(removals("gw-1", &objects, "prod")), ["192.0.2.1"]);
        assert_eq!(names(removals("gw-2", &objects, "prod")), ["192.0.2.1", "192.0.2.2"]);
        assert_eq!(removals("gw-2", &objects, "test"), [], "another set's");
    }

    #[test]
    fn another_sets_allocations_are_not_written_on() {
        let mut object = allocation("192.0.2.1");
        object.metadata.labels = None;
        assert_eq!(apply(&mut object, "gw-1", &programmed("192.0.2.1", Ok(())), LATER), 0);
    }
}
