//! The status of AddressPools: how much of each is in use.

use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use super::{Action, Kind, Write, conditions};
use crate::desired::{
    AddressAllocation, AddressPool, AddressPoolStatus, Judgement, ObjectName, PoolUse, pool_use,
};

/// AddressPools.
pub(super) const KIND: Kind =
    Kind { group: "kanmon.dev", version: "v1alpha1", kind: "AddressPool", plural: "addresspools" };

/// Addresses that a message names, at most.
const NAMED: usize = 10;

/// The status of those pools that say something else now. `pools` are the gateway cluster's with status and
/// generation, `present` all of its AddressAllocations, whoever's they are: so all gateways write the same.
pub(in super::super) fn writes(
    pools: &[AddressPool],
    present: &[AddressAllocation],
    now: Timestamp,
) -> Vec<Write> {
    let uses = pool_use(pools, present);
    let write = |pool: &AddressPool| {
        let name = pool.metadata.name.clone()?;
        let status = status(pool, uses.get(&name)?, now);
        (pool.status.as_ref() != Some(&status)).then(|| Write {
            kind: KIND,
            namespace: String::new(),
            name,
            action: Action::ApplyStatus(json!({"status": status})),
        })
    };
    pools.iter().filter_map(write).collect()
}

fn status(pool: &AddressPool, pool_use: &PoolUse, now: Timestamp) -> AddressPoolStatus {
    let before = pool.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let generation = pool.metadata.generation;
    AddressPoolStatus {
        observed_generation: generation,
        used: Some(i64::try_from(pool_use.used).unwrap_or(i64::MAX)),
        free: Some(pool_use.free.to_string()),
        conditions: conditions(&[ready(pool_use), in_use_outside(pool_use)], before, generation, now),
    }
}

fn ready(pool_use: &PoolUse) -> Judgement {
    let (holds, reason, message) = if !pool_use.has_network {
        let message = format!("no network can be read: {}", pool_use.invalid.join("; "));
        (false, "InvalidCIDRs", message)
    } else if !pool_use.invalid.is_empty() {
        let message = format!("left out, the others are used: {}", pool_use.invalid.join("; "));
        (true, "SomeCIDRsInvalid", message)
    } else if pool_use.free == 0 {
        (false, "Exhausted", "no address is free; add a network to cidrs, or another pool".to_owned())
    } else {
        (true, "Ready", String::new())
    };
    Judgement { kind: "Ready", holds: Some(holds), reason: reason.to_owned(), message }
}

fn in_use_outside(pool_use: &PoolUse) -> Judgement {
    if pool_use.outside.is_empty() {
        let reason = "AllInside".to_owned();
        return Judgement { kind: "InUseOutside", holds: Some(false), reason, message: String::new() };
    }
    let mut held: Vec<String> = pool_use
        .outside
        .iter()
        .take(NAMED)
        .map(|(address, services)| {
            let services: Vec<String> = services.iter().map(ObjectName::to_string).collect();
            format!("{address} ({})", services.join(", "))
        })
        .collect();
    if pool_use.outside.len() > NAMED {
        held.push(format!("and {} more", pool_use.outside.len() - NAMED));
    }
    let message = format!(
        "Services keep addresses that are in cidrs no longer: {}; add their network again, or give these Services \
         other addresses in kanmon.dev/addresses",
        held.join(", ")
    );
    Judgement { kind: "InUseOutside", holds: Some(true), reason: "InUseOutside".to_owned(), message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::{
        AddressAllocationSpec, AddressPoolSpec, PoolScope, ServiceReference, allocation_name,
    };

    const LATER: Timestamp = Timestamp::constant(1_000, 0);

    fn pool(cidrs: &[&str]) -> AddressPool {
        let mut pool = AddressPool::new(
            "p",
            AddressPoolSpec {
                cidrs: cidrs.iter().map(|&cidr| cidr.to_owned()).collect(),
                scope: PoolScope::Internal,
                auto_assign: true,
                service_selector: None,
            },
        );
        pool.metadata.generation = Some(2);
        pool
    }

    fn allocation(address: &str, service: &str) -> AddressAllocation {
        AddressAllocation::new(
            &allocation_name(address.parse().unwrap()),
            AddressAllocationSpec {
                address: address.to_owned(),
                pool: Some("p".to_owned()),
                shared_address: None,
                services: vec![ServiceReference { namespace: "demo".to_owned(), name: service.to_owned() }],
            },
        )
    }

    /// Used, free, and the conditions as `type=status/reason`.
    fn said(pool: &AddressPool) -> (i64, String, Vec<String>) {
        let status = pool.status.clone().unwrap();
        let conditions = status.conditions.iter();
        let shown = conditions.map(|c| format!("{}={}/{}", c.type_, c.status, c.reason)).collect();
        (status.used.unwrap(), status.free.unwrap(), shown)
    }

    /// Writes until nothing is to be written; gives how often something was.
    fn settle(pool: &mut AddressPool, present: &[AddressAllocation], now: Timestamp) -> usize {
        let mut count = 0;
        while let Some(write) = writes(std::slice::from_ref(pool), present, now).pop() {
            let Action::ApplyStatus(value) = write.action else { panic!("{write:?}") };
            pool.status = Some(serde_json::from_value(value["status"].clone()).unwrap());
            count += 1;
            assert!(count < 3, "it never settles");
        }
        count
    }

    #[test]
    fn a_pool_counts_what_is_written_and_says_so_once() {
        let mut pool = pool(&["192.0.2.0/29", "192.0.2.0/30", "198.51.100.1/32"]);
        assert_eq!(settle(&mut pool, &[], Timestamp::UNIX_EPOCH), 1);
        let expected = ["Ready=True/Ready", "InUseOutside=False/AllInside"].map(str::to_owned).to_vec();
        assert_eq!(said(&pool), (0, "7".to_owned(), expected.clone()));
        let present = [allocation("192.0.2.1", "web"), allocation("198.51.100.1", "api")];
        assert_eq!(settle(&mut pool, &present, LATER), 1);
        assert_eq!(said(&pool), (2, "5".to_owned(), expected));
        let since = pool.status.unwrap().conditions[0].last_transition_time.0;
        assert_eq!(since, Timestamp::UNIX_EPOCH, "it is ready since it was");
    }

    #[test]
    fn a_pool_that_shrank_says_who_holds_what() {
        let mut pool = pool(&["192.0.2.0/30"]);
        settle(&mut pool, &[allocation("203.0.113.9", "web")], LATER);
        let (used, free, shown) = said(&pool);
        assert_eq!((used, free.as_str(), shown[1].as_str()), (0, "2", "InUseOutside=True/InUseOutside"));
        let message = &pool.status.unwrap().conditions[1].message;
        assert!(message.contains("203.0.113.9 (demo/web)"), "{message}");
    }

    #[test]
    fn full_and_unreadable_pools_are_not_ready() {
        let mut full = pool(&["192.0.2.1/32"]);
        settle(&mut full, &[allocation("192.0.2.1", "web")], LATER);
        assert_eq!(said(&full).2[0], "Ready=False/Exhausted");
        let mut bad = pool(&["192.0.2.1/24"]);
        settle(&mut bad, &[], LATER);
        assert_eq!(said(&bad).2[0], "Ready=False/InvalidCIDRs");
        let mut huge = pool(&["::/0", "192.0.2.1/24"]);
        settle(&mut huge, &[], LATER);
        assert_eq!(said(&huge).2[0], "Ready=True/SomeCIDRsInvalid");
    }
}
