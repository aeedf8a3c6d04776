//! Who has which address in this merge, and who may join whom.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::super::fronts::Front;
use super::super::types::ObjectName;
use super::SHARED_ADDRESS_ANNOTATION;

/// A Service that has an address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Holder<'a> {
    pub(super) front: &'a Front<'a>,
    /// What it says in `kanmon.dev/shared-address`.
    pub(super) key: Option<&'a str>,
}

/// Why a Service cannot join those who have an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Conflict {
    /// One who has it.
    pub(super) owner: ObjectName,
    /// What would have to be otherwise, for people.
    pub(super) hint: String,
}

/// Who has which address.
#[derive(Debug, Default)]
pub(super) struct Ledger<'a>(BTreeMap<IpAddr, Vec<Holder<'a>>>);

impl<'a> Ledger<'a> {
    pub(super) fn is_held(&self, address: IpAddr) -> bool {
        self.0.contains_key(&address)
    }

    pub(super) fn holders(&self, address: IpAddr) -> &[Holder<'a>] {
        self.0.get(&address).map_or(&[], Vec::as_slice)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (IpAddr, &[Holder<'a>])> {
        self.0.iter().map(|(address, holders)| (*address, holders.as_slice()))
    }

    /// Gives the address to one more; whether it may have it has been asked before.
    pub(super) fn hold(&mut self, address: IpAddr, holder: Holder<'a>) {
        self.0.entry(address).or_default().push(holder);
    }

    /// Why it cannot have the address; `None`: it can.
    pub(super) fn conflict(&self, address: IpAddr, candidate: Holder<'_>) -> Option<Conflict> {
        self.holders(address).iter().find_map(|holder| {
            let hint = obstacle(holder, candidate)?;
            Some(Conflict { owner: holder.front.name.clone(), hint })
        })
    }
}

/// What keeps two Services from sharing an address.
fn obstacle(holder: &Holder<'_>, candidate: Holder<'_>) -> Option<String> {
    if holder.key.is_none() || holder.key != candidate.key {
        return Some(format!(
            "to share it, both must say the same in {SHARED_ADDRESS_ANNOTATION} and have different ports"
        ));
    }
    let same = holder.front.ports.iter().find(|port| {
        candidate.front.ports.iter().any(|other| (other.port, other.protocol) == (port.port, port.protocol))
    })?;
    Some(format!("they share it, but both have port {}/{}", same.port, same.protocol))
}
