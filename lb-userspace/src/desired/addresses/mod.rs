//! Which VIPs a front gets.
//!
//! Where nobody writes down who has which address (standalone mode), what a Service names goes first, then what it had
//! before, then what its name leads to. Where it is written down (AddressAllocation), that goes before all: a merge
//! says what should be written ([`Assigned::claims`]), and an address that a pool gives is used once it is.

mod networks;
mod pools;
mod requested;
mod sharing;
mod written;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::fronts::Front;
use super::problems::{self, Problems};
use super::types::{Allocations, Claim, GatewayObjects, Knowledge, ObjectName, Reason};
use networks::{Family, first_free};
use pools::{Pool, Pools, default_family};
use requested::{ScopeWish, Wish};
use sharing::{Conflict, Holder, Ledger};
use written::{Record, Records, Whose};

pub use pools::pool_use;

/// VIPs that a Service asks for: a comma-separated list, one a family.
pub(super) const ADDRESSES_ANNOTATION: &str = "kanmon.dev/addresses";
/// `Internal` or `Public`: of which pools its address may be.
pub(super) const SCOPE_ANNOTATION: &str = "kanmon.dev/scope";
/// Services that say the same word here may have one address, where their ports differ.
pub(super) const SHARED_ADDRESS_ANNOTATION: &str = "kanmon.dev/shared-address";

/// What each front got.
#[derive(Debug, Default)]
pub(super) struct Assigned {
    /// The VIPs that are served.
    pub(super) vips: BTreeMap<ObjectName, Vec<IpAddr>>,
    /// Those of them that pools gave.
    pub(super) allocations: Allocations,
    /// What should be written down; see [`super::Desired::claims`].
    pub(super) claims: BTreeMap<IpAddr, Claim>,
}

/// Gives each front its VIPs. `previous` are those that pools gave and that were served until now.
pub(super) fn assign(
    fronts: &BTreeMap<ObjectName, Front<'_>>,
    gateway: &GatewayObjects,
    gateway_addresses: &BTreeSet<IpAddr>,
    previous: &Allocations,
    problems: &mut Problems,
) -> Assigned {
    let wishes: BTreeMap<&ObjectName, Wish> =
        fronts.iter().map(|(name, front)| (name, requested::read(front, problems))).collect();
    let pools = Pools::new(&gateway.pools, problems);
    let applicants: Vec<Applicant<'_>> = fronts
        .iter()
        .filter_map(|(name, front)| Some(Applicant::new(front, wishes.get(name)?, &pools)))
        .collect();
    let mut desk = Desk {
        fronts,
        pools: &pools,
        records: Records::new(gateway.allocations.as_deref().unwrap_or_default(), &gateway.owner),
        is_written_down: gateway.allocations.is_some(),
        knowledge: gateway.knowledge,
        gateway_addresses,
        ledger: Ledger::default(),
        problems,
    };
    let mut grants: Vec<Vec<Grant>> =
        applicants.iter().map(|applicant| desk.keep_written(applicant)).collect();
    for (applicant, granted) in applicants.iter().zip(&mut grants) {
        desk.grant_named(applicant, granted);
    }
    for (applicant, granted) in applicants.iter().zip(&mut grants) {
        desk.keep_previous(applicant, granted, previous);
    }
    for (applicant, granted) in applicants.iter().zip(&mut grants) {
        desk.give_new(applicant, granted);
    }
    desk.report_outside();
    let claims = if desk.is_written_down { desk.claims() } else { BTreeMap::new() };
    assigned(&applicants, &grants, claims)
}

fn assigned(
    applicants: &[Applicant<'_>],
    grants: &[Vec<Grant>],
    claims: BTreeMap<IpAddr, Claim>,
) -> Assigned {
    let mut assigned = Assigned { claims, ..Assigned::default() };
    for (applicant, granted) in applicants.iter().zip(grants) {
        let served = granted.iter().filter(|grant| grant.served);
        let mut vips: Vec<IpAddr> = served.map(|grant| grant.address).collect();
        if applicant.wish.named.is_none() {
            vips.sort_unstable();
            if !vips.is_empty() {
                assigned.allocations.insert(applicant.front.name.clone(), vips.clone());
            }
        }
        assigned.vips.insert(applicant.front.name.clone(), vips);
    }
    assigned
}

/// A front that asks for addresses.
struct Applicant<'a> {
    front: &'a Front<'a>,
    wish: &'a Wish,
    labels: &'a BTreeMap<String, String>,
    /// The pools that may give it an address, the preferred one first.
    offered: Vec<&'a Pool<'a>>,
    /// Which families it wants from pools, and whether it cannot do without.
    wanted: Vec<(Family, bool)>,
}

impl<'a> Applicant<'a> {
    fn new(front: &'a Front<'a>, wish: &'a Wish, pools: &'a Pools<'a>) -> Self {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        let labels = front.service.metadata.labels.as_ref().unwrap_or(&NONE);
        let offered = pools.offered(labels, wish.scope);
        let wanted = match wish.named {
            Some(_) => Vec::new(),
            None => wanted(front, default_family(&offered)),
        };
        Self { front, wish, labels, offered, wanted }
    }

    fn holder(&self) -> Holder<'a> {
        Holder { front: self.front, key: self.wish.key.as_deref() }
    }

    fn names(&self, address: IpAddr) -> bool {
        self.wish.named.as_ref().is_some_and(|named| named.contains(&address))
    }

    fn wants(&self, family: Family) -> bool {
        self.wanted.iter().any(|(wanted, _)| *wanted == family)
    }

    fn is_offered(&self, address: IpAddr) -> bool {
        self.offered.iter().any(|pool| pool.has(address))
    }
}

/// Which families a front wants, and whether it cannot do without.
fn wanted(front: &Front<'_>, default: Family) -> Vec<(Family, bool)> {
    let Some(spec) = &front.service.spec else { return Vec::new() };
    let listed: Vec<Family> = spec
        .ip_families
        .iter()
        .flatten()
        .filter_map(|family| match family.as_str() {
            "IPv4" => Some(Family::V4),
            "IPv6" => Some(Family::V6),
            _ => None,
        })
        .collect();
    match spec.ip_family_policy.as_deref() {
        Some("RequireDualStack") => vec![(Family::V4, true), (Family::V6, true)],
        Some("PreferDualStack") => {
            let first = listed.first().copied().unwrap_or(default);
            let second = if first == Family::V4 { Family::V6 } else { Family::V4 };
            vec![(first, true), (second, false)]
        }
        _ if listed.is_empty() => vec![(default, true)],
        _ => listed.into_iter().map(|family| (family, true)).collect(),
    }
}

/// An address that a front has.
struct Grant {
    address: IpAddr,
    /// Whether it is a VIP already; otherwise it has to be written down first.
    served: bool,
}

fn has(granted: &[Grant], family: Family) -> bool {
    granted.iter().any(|grant| Family::of(grant.address) == family)
}

/// Where addresses are given away.
struct Desk<'a, 'p> {
    fronts: &'a BTreeMap<ObjectName, Front<'a>>,
    pools: &'a Pools<'a>,
    records: Records<'a>,
    is_written_down: bool,
    knowledge: Knowledge,
    gateway_addresses: &'a BTreeSet<IpAddr>,
    ledger: Ledger<'a>,
    problems: &'p mut Problems,
}

impl<'a> Desk<'a, '_> {
    /// The addresses that are written for a front and that it still wants; others too while a member that would
    /// have a say may be unknown.
    fn keep_written(&mut self, applicant: &Applicant<'a>) -> Vec<Grant> {
        let mut granted = Vec::new();
        self.keep_if(applicant, true, &mut granted);
        if self.knowledge == Knowledge::Partial {
            self.keep_if(applicant, false, &mut granted);
        }
        granted
    }

    /// Keeps, of the addresses that are written for a front, those that it wants, or those that it does not.
    fn keep_if(&mut self, applicant: &Applicant<'a>, wanted: bool, granted: &mut Vec<Grant>) {
        for &address in self.records.of(&applicant.front.name) {
            let Some(record) = self.records.get(address) else { continue };
            if has(granted, Family::of(address)) || self.stays_wanted(applicant, address, record) != wanted {
                continue;
            }
            if let Some(conflict) = self.ledger.conflict(address, applicant.holder()) {
                conflicting(self.problems, applicant.front, address, &conflict);
                continue;
            }
            if !wanted {
                keeps_until_known(self.problems, applicant.front, address);
            }
            self.ledger.hold(address, applicant.holder());
            granted.push(Grant { address, served: true });
        }
    }

    /// Whether a front still wants the address that is written for it, and may have it.
    fn stays_wanted(&self, applicant: &Applicant<'_>, address: IpAddr, record: &Record<'_>) -> bool {
        if applicant.wish.named.is_some() {
            return applicant.names(address);
        }
        if !applicant.wants(Family::of(address)) {
            return false;
        }
        if applicant.is_offered(address) {
            return true;
        }
        // What a pool gave stays, though the pool lost it or is another's now. But a Service can change its scope.
        let Some(given_by) = record.pool else { return false };
        let pool = self.pools.of(address).next().or_else(|| self.pools.named(given_by));
        match applicant.wish.scope {
            ScopeWish::Only(scope) => pool.is_none_or(|pool| pool.scope == scope),
            ScopeWish::Any | ScopeWish::Unreadable => true,
        }
    }

    /// The addresses that a front names: at once where nobody has them.
    fn grant_named(&mut self, applicant: &Applicant<'a>, granted: &mut Vec<Grant>) {
        for &address in applicant.wish.named.iter().flatten() {
            if has(granted, Family::of(address)) {
                continue;
            }
            if !self.may_name(applicant, address) {
                continue;
            }
            if let Some(conflict) = self.conflict(applicant, address) {
                conflicting(self.problems, applicant.front, address, &conflict);
                continue;
            }
            self.ledger.hold(address, applicant.holder());
            granted.push(Grant { address, served: self.records.get(address).is_none() });
        }
    }

    /// Whether the pools let a front have the address that it names. One that is of no pool is anybody's.
    fn may_name(&mut self, applicant: &Applicant<'_>, address: IpAddr) -> bool {
        let (cluster, object) = (applicant.front.cluster, problems::service(&applicant.front.name));
        let mut pools = self.pools.of(address).peekable();
        let Some(first) = pools.peek() else { return true };
        let name = first.name;
        let Some(pool) = pools.find(|pool| pool.selects(applicant.labels)) else {
            let message = format!(
                "{address} is of AddressPool {name}, whose serviceSelector does not choose this Service; change \
                 its labels, or name another address"
            );
            self.problems.error(cluster, object, Reason::AddressNotAllowed, message);
            return false;
        };
        if let ScopeWish::Only(scope) = applicant.wish.scope
            && scope != pool.scope
        {
            let message = format!(
                "{SCOPE_ANNOTATION} is {scope:?}, but {address} is of AddressPool {}, which is {:?}; the address \
                 counts; remove one of the two",
                pool.name, pool.scope
            );
            self.problems.warning(cluster, object, Reason::InvalidAnnotation, message);
        }
        true
    }

    /// Why a front that is not written for an address cannot have it; `None`: it can.
    fn conflict(&self, applicant: &Applicant<'_>, address: IpAddr) -> Option<Conflict> {
        let held = self.ledger.conflict(address, applicant.holder());
        let Some(record) = self.records.get(address) else { return held };
        let written = |owner: Option<&ObjectName>, hint: &str| Conflict {
            owner: owner.cloned().unwrap_or_else(|| applicant.front.name.clone()),
            hint: hint.to_owned(),
        };
        match record.whose {
            Whose::Foreign | Whose::OtherGroup => {
                Some(held.unwrap_or_else(|| written(None, "it is written down for other gateways' Services")))
            }
            // Those that are no fronts any more, or want it no longer, are about to be crossed out.
            Whose::Ours if self.knowledge == Knowledge::Current => held,
            Whose::Ours => held.or_else(|| {
                let unknown = record.services.iter().find(|service| !self.fronts.contains_key(service))?;
                Some(written(
                    Some(unknown),
                    "it is kept while a member cluster that may have that Service is not connected",
                ))
            }),
        }
    }

    /// What pools gave a front before and it still wants, where that was not written down.
    fn keep_previous(&mut self, applicant: &Applicant<'a>, granted: &mut Vec<Grant>, previous: &Allocations) {
        for &address in previous.get(&applicant.front.name).into_iter().flatten() {
            if has(granted, Family::of(address))
                || !applicant.wants(Family::of(address))
                || !applicant.is_offered(address)
                || self.gateway_addresses.contains(&address)
            {
                continue;
            }
            if let Some(conflict) = self.conflict(applicant, address) {
                let message = format!(
                    "its VIP {address} from a pool went to Service {}, which names it or is written down for it; \
                     it gets another one",
                    conflict.owner
                );
                let object = problems::service(&applicant.front.name);
                self.problems.warning(applicant.front.cluster, object, Reason::AddressConflict, message);
                continue;
            }
            self.ledger.hold(address, applicant.holder());
            granted.push(Grant { address, served: self.records.get(address).is_none() });
        }
    }

    /// An address for each wanted family that has none.
    fn give_new(&mut self, applicant: &Applicant<'a>, granted: &mut Vec<Grant>) {
        for &(family, required) in &applicant.wanted {
            if has(granted, family) {
                continue;
            }
            let found = self.joined(applicant, family).or_else(|| self.unused(applicant, family));
            if let Some(address) = found {
                self.ledger.hold(address, applicant.holder());
                granted.push(Grant { address, served: !self.is_written_down });
            } else if required && applicant.wish.scope != ScopeWish::Unreadable {
                self.report_exhaustion(applicant, family);
            }
        }
    }

    /// The first address of those that the front may share.
    fn joined(&self, applicant: &Applicant<'_>, family: Family) -> Option<IpAddr> {
        applicant.wish.key.as_ref()?;
        let joins = |address: IpAddr| {
            Family::of(address) == family
                && applicant.is_offered(address)
                && self.conflict(applicant, address).is_none()
        };
        self.ledger.iter().map(|(address, _)| address).find(|address| joins(*address))
    }

    /// An address that nobody has, in the order of the pools and their networks.
    fn unused(&self, applicant: &Applicant<'_>, family: Family) -> Option<IpAddr> {
        let is_free = |address: IpAddr| {
            !self.ledger.is_held(address)
                && self.records.get(address).is_none()
                && !self.gateway_addresses.contains(&address)
        };
        let networks = applicant.offered.iter().flat_map(|pool| &pool.networks);
        networks
            .filter(|network| Family::of(network.addr()) == family)
            .find_map(|network| first_free(network, &applicant.front.name, is_free))
    }

    fn report_exhaustion(&mut self, applicant: &Applicant<'_>, family: Family) {
        let scope = match applicant.wish.scope {
            ScopeWish::Only(scope) => format!(" and scope {scope:?}"),
            ScopeWish::Any | ScopeWish::Unreadable => String::new(),
        };
        let message = format!(
            "no {} address is free in any AddressPool with autoAssign{scope} for this Service; add one, or name \
             an address in {ADDRESSES_ANNOTATION}",
            family.name()
        );
        let object = problems::service(&applicant.front.name);
        self.problems.error(applicant.front.cluster, object, Reason::NoAddress, message);
    }

    /// Says who keeps an address that its pool no longer has.
    fn report_outside(&mut self) {
        for (address, holders) in self.ledger.iter() {
            let given_by = self.records.get(address).and_then(|record| record.pool);
            let Some(pool) = given_by.filter(|_| self.pools.of(address).next().is_none()) else { continue };
            let names: Vec<String> =
                holders.iter().map(|holder| problems::service(&holder.front.name)).collect();
            let message = format!(
                "no longer has {address}, which {} holds and keeps; add its network again, or give the Service \
                 another address in {ADDRESSES_ANNOTATION}",
                names.join(", ")
            );
            self.problems.warning("", format!("AddressPool {pool}"), Reason::InUseOutside, message);
        }
    }

    /// What should be written down.
    fn claims(&self) -> BTreeMap<IpAddr, Claim> {
        let mut claims: BTreeMap<IpAddr, Claim> =
            self.ledger.iter().map(|(address, holders)| (address, self.claim(address, holders))).collect();
        for (address, record) in self.records.iter() {
            if record.whose != Whose::Ours {
                claims.remove(&address);
                continue;
            }
            let claim = claims.entry(address).or_default();
            let stays = |service: &&ObjectName| match self.knowledge {
                Knowledge::Partial => true,
                Knowledge::Known => !self.fronts.contains_key(service),
                Knowledge::Current => false,
            };
            claim.services.extend(record.services.iter().filter(stays).cloned());
            if !claim.services.is_empty() {
                claim.pool = claim.pool.take().or_else(|| record.pool.map(str::to_owned));
                claim.shared_address = claim.shared_address.take().or_else(|| record.key.map(str::to_owned));
            }
        }
        claims
    }

    fn claim(&self, address: IpAddr, holders: &[Holder<'_>]) -> Claim {
        let given_by = self.records.get(address).and_then(|record| record.pool);
        let mut pools = self.pools.of(address);
        let same = given_by.filter(|name| self.pools.named(name).is_some_and(|pool| pool.has(address)));
        Claim {
            pool: same.or_else(|| pools.next().map(|pool| pool.name)).or(given_by).map(str::to_owned),
            shared_address: holders.iter().find_map(|holder| holder.key).map(str::to_owned),
            services: holders.iter().map(|holder| holder.front.name.clone()).collect(),
        }
    }
}

/// Says who has the address that a front asks for.
fn conflicting(problems: &mut Problems, front: &Front<'_>, address: IpAddr, conflict: &Conflict) {
    let message = if conflict.owner == front.name {
        format!("{address} cannot be had: {}; ask for another one in {ADDRESSES_ANNOTATION}", conflict.hint)
    } else {
        format!(
            "{address} is the VIP of Service {}, which has it already or comes first by name; ask for another one \
             in {ADDRESSES_ANNOTATION} ({})",
            conflict.owner, conflict.hint
        )
    };
    problems.error(front.cluster, problems::service(&front.name), Reason::AddressConflict, message);
}

/// Says why a front does not get what it asks for now.
fn keeps_until_known(problems: &mut Problems, front: &Front<'_>, address: IpAddr) {
    let message = format!(
        "keeps the VIP {address} until all member clusters have been read: one of them may have a Service of this \
         name that decides; see which MemberCluster is not connected, and correct or remove it"
    );
    problems.warning(front.cluster, problems::service(&front.name), Reason::MembersUnknown, message);
}
