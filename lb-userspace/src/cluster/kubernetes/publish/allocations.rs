//! Who has which address, written down: AddressAllocations in the gateway cluster.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::{Action, Kind, MANAGED_BY, Write, short_hash};
use crate::config::MemberSelector;
use crate::desired::{
    AddressAllocation, AddressAllocationSpec, CLUSTER_SET_LABEL, Claim, GROUP_LABEL, Owner, ServiceReference,
    allocation_name,
};

/// AddressAllocations.
pub(super) const KIND: Kind = Kind {
    group: "kanmon.dev",
    version: "v1alpha1",
    kind: "AddressAllocation",
    plural: "addressallocations",
};

/// The group of the gateways that look after the members of this selector ([`Owner::group`]).
pub(in super::super) fn group(selector: &MemberSelector) -> String {
    if *selector == MemberSelector::default() {
        return String::new();
    }
    short_hash(&selector.to_string())
}

/// What is missing between what should be written (`claims`, of the last merge) and what is (`present`: all
/// allocations of the gateway cluster, as the watch shows them now, with uid and resourceVersion).
///
/// An address that somebody else was faster with is left to them: a Create that finds one is no error, the watch shows
/// whose it is, and the next merge looks for another address. What the last merge has not seen is not touched.
pub(in super::super) fn writes(
    claims: &BTreeMap<IpAddr, Claim>,
    present: &[AddressAllocation],
    owner: &Owner,
) -> Vec<Write> {
    let present: BTreeMap<&str, &AddressAllocation> =
        present.iter().filter_map(|object| Some((object.metadata.name.as_deref()?, object))).collect();
    let mut writes = Vec::new();
    for (&address, claim) in claims {
        let name = allocation_name(address);
        let action = match present.get(name.as_str()) {
            None if claim.services.is_empty() => None,
            None => Some(Action::Create(object(address, claim, owner, None))),
            Some(object) if object.owner().as_ref() != Some(owner) => None,
            Some(object) => change(object, address, claim, owner),
        };
        writes.extend(action.map(|action| Write { kind: KIND, namespace: String::new(), name, action }));
    }
    writes
}

/// What is to be done about an allocation of ours.
fn change(present: &AddressAllocation, address: IpAddr, claim: &Claim, owner: &Owner) -> Option<Action> {
    if claim.services.is_empty() {
        return Some(Action::delete(&present.metadata));
    }
    let mut written = present.spec.clone();
    written.services.sort();
    (written != spec(address, claim)).then(|| Action::Replace(object(address, claim, owner, Some(present))))
}

fn spec(address: IpAddr, claim: &Claim) -> AddressAllocationSpec {
    AddressAllocationSpec {
        address: address.to_string(),
        pool: claim.pool.clone(),
        shared_address: claim.shared_address.clone(),
        services: claim.services.iter().map(ServiceReference::from).collect(),
    }
}

fn object(address: IpAddr, claim: &Claim, owner: &Owner, present: Option<&AddressAllocation>) -> Value {
    let mut labels = present.and_then(|object| object.metadata.labels.clone()).unwrap_or_default();
    labels.insert(CLUSTER_SET_LABEL.to_owned(), owner.cluster_set_id.clone());
    labels.insert(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned());
    if !owner.group.is_empty() {
        labels.insert(GROUP_LABEL.to_owned(), owner.group.clone());
    }
    let mut metadata = json!({"name": allocation_name(address), "labels": labels});
    if let Some(present) = present {
        metadata["resourceVersion"] = json!(present.metadata.resource_version);
        metadata["uid"] = json!(present.metadata.uid);
    }
    json!({"metadata": metadata, "spec": spec(address, claim)})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner() -> Owner {
        Owner { cluster_set_id: "prod".to_owned(), group: String::new() }
    }

    fn claim(services: &[&str]) -> Claim {
        let services = services.iter().map(|name| name.to_string().try_into().unwrap()).collect();
        Claim { pool: Some("p".to_owned()), shared_address: None, services }
    }

    fn claims(address: &str, claim: Claim) -> BTreeMap<IpAddr, Claim> {
        BTreeMap::from([(address.parse().unwrap(), claim)])
    }

    /// As an API server would have it after the write.
    fn stored(write: &Write) -> AddressAllocation {
        let (Action::Create(value) | Action::Replace(value)) = &write.action else { panic!("{write:?}") };
        let mut value = value.clone();
        value["apiVersion"] = json!("kanmon.dev/v1alpha1");
        value["kind"] = json!("AddressAllocation");
        value["metadata"]["uid"] = json!("u1");
        value["metadata"]["resourceVersion"] = json!("7");
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_is_claimed_is_created_once_by_the_name_of_the_address() {
        let claims = claims("2001:db8::1", claim(&["demo/web"]));
        let writes = writes(&claims, &[], &owner());
        assert_eq!(writes.len(), 1);
        assert_eq!(writes[0].name, "2001-0db8-0000-0000-0000-0000-0000-0001");
        let made = stored(&writes[0]);
        assert_eq!(made.owner(), Some(owner()));
        assert_eq!(made.spec.address(), Some("2001:db8::1".parse().unwrap()));
        assert_eq!(super::writes(&claims, &[made], &owner()), [], "a steady state writes nothing");
    }

    #[test]
    fn who_joins_or_leaves_is_changed_under_the_version_that_was_seen() {
        let made = stored(&writes(&claims("192.0.2.1", claim(&["demo/web"])), &[], &owner())[0]);
        let both = claims("192.0.2.1", claim(&["demo/api", "demo/web"]));
        let changed = writes(&both, std::slice::from_ref(&made), &owner());
        let Action::Replace(value) = &changed[0].action else { panic!("{changed:?}") };
        assert_eq!(value["metadata"]["resourceVersion"], "7");
        assert_eq!(writes(&both, &[stored(&changed[0])], &owner()), []);
        let deleted = writes(&claims("192.0.2.1", Claim::default()), &[made], &owner());
        let expected = Action::Delete { uid: "u1".to_owned(), resource_version: Some("7".to_owned()) };
        assert_eq!(deleted[0].action, expected);
    }

    #[test]
    fn others_allocations_and_those_that_no_merge_has_seen_are_left_alone() {
        let ours = stored(&writes(&claims("192.0.2.1", claim(&["demo/web"])), &[], &owner())[0]);
        assert_eq!(writes(&BTreeMap::new(), std::slice::from_ref(&ours), &owner()), []);
        for other in [
            Owner { cluster_set_id: "test".to_owned(), group: String::new() },
            Owner { group: "0a1b2c3d".to_owned(), ..owner() },
        ] {
            for claim in [Claim::default(), claim(&["demo/api"])] {
                assert_eq!(writes(&claims("192.0.2.1", claim), std::slice::from_ref(&ours), &other), []);
            }
        }
        let mut unlabelled = ours;
        unlabelled.metadata.labels = None;
        assert_eq!(writes(&claims("192.0.2.1", Claim::default()), &[unlabelled], &owner()), []);
    }

    #[test]
    fn gateways_of_another_selector_are_another_group() {
        let all = MemberSelector::default();
        let some: MemberSelector = "location=cn-hangzhou".parse().unwrap();
        assert_eq!(group(&all), "");
        assert_eq!(group(&some).len(), 8);
        let owner = Owner { group: group(&some), ..owner() };
        let made = stored(&writes(&claims("192.0.2.1", claim(&["demo/web"])), &[], &owner)[0]);
        assert_eq!(made.owner(), Some(owner));
    }
}
