//! Two agents and one API server: whatever the order in which they look, decide and write.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::allocations::writes;
use super::{Action, Write};
use crate::desired::{
    AddressAllocation, AddressPool, AddressPoolSpec, Allocations, ClusterObjects, GatewayObjects, Knowledge,
    ObjectName, Owner, Place, PoolScope, merge,
};

/// As an API server keeps allocations.
#[derive(Default)]
struct Store {
    objects: BTreeMap<String, AddressAllocation>,
    /// Counts writes; it is the clock, too.
    version: i64,
}

impl Store {
    /// What becomes of a write; one that comes too late is refused, and nobody minds.
    fn take(&mut self, write: &Write) {
        let present = self.objects.get(&write.name);
        match &write.action {
            Action::Create(value) if present.is_none() => self.put(&write.name, value, None),
            Action::Replace(value)
                if present.is_some_and(|object| {
                    value["metadata"]["resourceVersion"] == json!(object.metadata.resource_version)
                }) =>
            {
                let created = present.and_then(|object| object.metadata.creation_timestamp.clone());
                self.put(&write.name, value, created.map(|time| json!(time)));
            }
            Action::Delete { uid, resource_version }
                if present.is_some_and(|object| {
                    object.metadata.uid.as_ref() == Some(uid)
                        && object.metadata.resource_version == *resource_version
                }) =>
            {
                self.objects.remove(&write.name);
                self.version += 1;
            }
            _ => {}
        }
    }

    fn put(&mut self, name: &str, value: &Value, created: Option<Value>) {
        self.version += 1;
        let mut value = value.clone();
        value["apiVersion"] = json!("kanmon.dev/v1alpha1");
        value["kind"] = json!("AddressAllocation");
        let metadata = &mut value["metadata"];
        metadata["resourceVersion"] = json!(self.version.to_string());
        metadata["uid"] = json!(format!("{name}-{}", self.version));
        let now = format!(
            "2026-01-01T{:02}:{:02}:{:02}Z",
            self.version / 3600,
            self.version / 60 % 60,
            self.version % 60
        );
        metadata["creationTimestamp"] = created.unwrap_or_else(|| json!(now));
        self.objects.insert(name.to_owned(), serde_json::from_value(value).unwrap());
    }
}

/// A Service that two may share an address with, or not.
#[derive(Clone, Debug)]
struct Wanted {
    port: u16,
    key: Option<u8>,
}

/// An agent, with what it has seen so far.
#[derive(Default)]
struct Agent {
    services: BTreeSet<usize>,
    seen: Vec<AddressAllocation>,
    queue: Vec<Write>,
    previous: Allocations,
    served: BTreeMap<ObjectName, Vec<IpAddr>>,
}

impl Agent {
    fn decide(&mut self, all: &[Wanted], pool: &AddressPool) {
        let service = |index: &usize| {
            let wanted = &all[*index];
            let mut annotations = serde_json::Map::new();
            if let Some(key) = wanted.key {
                annotations.insert("kanmon.dev/shared-address".to_owned(), json!(format!("k{key}")));
            }
            serde_json::from_value(json!({
                "metadata": {"namespace": "demo", "name": format!("s{index}"), "annotations": annotations},
                "spec": {"type": "LoadBalancer", "loadBalancerClass": "kanmon.dev/xdp",
                    "ports": [{"port": wanted.port}]},
            }))
            .unwrap()
        };
        let services = self.services.iter().map(service).collect();
        let clusters =
            BTreeMap::from([("a".to_owned(), Arc::new(ClusterObjects { services, ..Default::default() }))]);
        let gateway = GatewayObjects {
            pools: vec![pool.clone()],
            allocations: Some(self.seen.clone()),
            owner: owner(),
            knowledge: match self.services.len() == all.len() {
                true => Knowledge::Current,
                false => Knowledge::Known,
            },
            ..GatewayObjects::default()
        };
        let desired = merge(&clusters, &gateway, &BTreeSet::new(), &Place::default(), &self.previous);
        self.queue = writes(&desired.claims, &self.seen, &owner());
        self.served = desired.fronts.into_iter().map(|(name, front)| (name, front.vips)).collect();
        self.previous = desired.allocations;
    }
}

fn owner() -> Owner {
    Owner { cluster_set_id: "prod".to_owned(), group: String::new() }
}

/// What happens, with the agent that it happens to.
#[derive(Clone, Debug)]
enum Happening {
    /// It hears of one more Service.
    Hears(usize),
    /// Its watch catches up.
    Looks,
    /// It merges, and knows what to write.
    Decides,
    /// The next of its writes, or an old one, arrives.
    Writes,
}

fn happening() -> impl Strategy<Value = (usize, Happening)> {
    let what = prop_oneof![
        (0_usize..6).prop_map(Happening::Hears),
        Just(Happening::Looks),
        Just(Happening::Decides),
        Just(Happening::Writes),
        Just(Happening::Writes),
    ];
    (0_usize..2, what)
}

fn wanted() -> impl Strategy<Value = Wanted> {
    (80_u16..83, proptest::option::of(0_u8..2)).prop_map(|(port, key)| Wanted { port, key })
}

/// No two Services have one address, unless they say one key and have other ports.
fn assert_exclusive(agents: &[Agent], all: &[Wanted]) {
    let mut holders: BTreeMap<IpAddr, BTreeSet<&ObjectName>> = BTreeMap::new();
    for (name, vips) in agents.iter().flat_map(|agent| &agent.served) {
        for vip in vips {
            holders.entry(*vip).or_default().insert(name);
        }
    }
    for (vip, names) in holders {
        let wanted = names.iter().map(|name| &all[name.name[1..].parse::<usize>().unwrap()]);
        let ports: BTreeSet<u16> = wanted.clone().map(|wanted| wanted.port).collect();
        let keys: BTreeSet<Option<u8>> = wanted.map(|wanted| wanted.key).collect();
        let shared = keys.len() == 1 && !keys.contains(&None) && ports.len() == names.len();
        assert!(names.len() == 1 || shared, "{vip} is served for {names:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn two_agents_never_give_one_address_twice_and_end_with_the_same_for_everybody(
        all in proptest::collection::vec(wanted(), 6),
        happenings in proptest::collection::vec(happening(), 0..60),
    ) {
        // As many addresses as there may be Services that share with nobody.
        let cidrs = vec!["203.0.113.0/30".to_owned(), "203.0.113.8/30".to_owned(), "203.0.113.16/31".to_owned()];
        let spec =
            AddressPoolSpec { cidrs, scope: PoolScope::Internal, auto_assign: true, service_selector: None };
        let pool = AddressPool::new("p", spec);
        let mut store = Store::default();
        let mut agents = [Agent::default(), Agent::default()];
        for (agent, happening) in happenings {
            let agent = &mut agents[agent];
            match happening {
                Happening::Hears(service) => { agent.services.insert(service); }
                Happening::Looks => agent.seen = store.objects.values().cloned().collect(),
                Happening::Decides => agent.decide(&all, &pool),
                Happening::Writes => if let Some(write) = agent.queue.pop() { store.take(&write) },
            }
            assert_exclusive(&agents, &all);
        }
        let mut rounds = 0;
        loop {
            let mut still = true;
            for agent in &mut agents {
                agent.services = (0..all.len()).collect();
                agent.seen = store.objects.values().cloned().collect();
                agent.decide(&all, &pool);
                still &= agent.queue.is_empty();
                for write in std::mem::take(&mut agent.queue) {
                    store.take(&write);
                }
            }
            assert_exclusive(&agents, &all);
            rounds += 1;
            if still {
                break;
            }
            prop_assert!(rounds < 20, "they never settle");
        }
        prop_assert_eq!(&agents[0].served, &agents[1].served);
        prop_assert!(agents[0].served.values().all(|vips| vips.len() == 1), "{:?}", agents[0].served);
    }
}
