//! Who has which address, as it is written in the gateway cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::super::resources::{AddressAllocation, allocation_name};
use super::super::types::{ObjectName, Owner};

/// Whose an allocation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// This group of gateways': it may be changed.
    Ours,
    /// Another group's of the same cluster set: who is in it is served, but it is not ours to change.
    OtherGroup,
    /// Somebody else's: the address is taken.
    Foreign,
}

/// One allocation.
#[derive(Debug)]
pub(super) struct Record<'a> {
    pub(super) whose: Whose,
    pub(super) pool: Option<&'a str>,
    pub(super) key: Option<&'a str>,
    pub(super) services: BTreeSet<ObjectName>,
    created: Option<&'a Time>,
}

/// All allocations.
#[derive(Debug, Default)]
pub(super) struct Records<'a> {
    by_address: BTreeMap<IpAddr, Record<'a>>,
    by_service: BTreeMap<ObjectName, Vec<IpAddr>>,
}

impl<'a> Records<'a> {
    pub(super) fn new(allocations: &'a [AddressAllocation], owner: &Owner) -> Self {
        let mut records = Self::default();
        for allocation in allocations {
            // Nobody can have what is no address; whoever wrote that has to remove it.
            let Some(address) = allocation.spec.address() else { continue };
            let well_named = allocation.metadata.name.as_deref() == Some(allocation_name(address).as_str());
            if !well_named && records.by_address.contains_key(&address) {
                continue;
            }
            records.by_address.insert(address, record(allocation, well_named, owner));
        }
        for (address, record) in
            records.by_address.iter().filter(|(_, record)| record.whose != Whose::Foreign)
        {
            for service in &record.services {
                records.by_service.entry(service.clone()).or_default().push(*address);
            }
        }
        // Where a Service has two of a family, every gateway goes for the same one.
        let by_address = &records.by_address;
        for addresses in records.by_service.values_mut() {
            addresses.sort_by_key(|address| (by_address.get(address).map(|record| record.created), *address));
        }
        records
    }

    pub(super) fn get(&self, address: IpAddr) -> Option<&Record<'a>> {
        self.by_address.get(&address)
    }

    /// The addresses that are written for a Service, the oldest first.
    pub(super) fn of(&self, service: &ObjectName) -> &[IpAddr] {
        self.by_service.get(service).map_or(&[], Vec::as_slice)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (IpAddr, &Record<'a>)> {
        self.by_address.iter().map(|(address, record)| (*address, record))
    }
}

fn record<'a>(allocation: &'a AddressAllocation, well_named: bool, owner: &Owner) -> Record<'a> {
    let spec = &allocation.spec;
    let whose = match allocation.owner() {
        _ if !well_named => Whose::Foreign,
        Some(its) if its == *owner => Whose::Ours,
        Some(its) if its.cluster_set_id == owner.cluster_set_id => Whose::OtherGroup,
        _ => Whose::Foreign,
    };
    Record {
        whose,
        pool: spec.pool.as_deref(),
        key: spec.shared_address.as_deref(),
        services: spec.services.iter().map(Into::into).collect(),
        created: allocation.metadata.creation_timestamp.as_ref(),
    }
}
