//! Plans, applied step by step to a simulated machine whose readers watch after every step.

mod adoption;
mod affinity;
mod drains;
mod flow_log;
mod machine;
mod random;
mod reactions;
mod scenarios;
mod sources;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use super::{FlowUsage, Limits, Model, Plan, Step, Target, TargetMember, plan};
use crate::desired::{BackendId, Protocol, ServiceId};
use crate::network::NextHop;
use machine::Machine;

const LIMITS: Limits = Limits {
    services: 16,
    backends: 64,
    members: 64,
    ring_pairs: 200_000,
    source_ranges: 1024,
    drain_timeout: DRAIN,
};
const DRAIN: Duration = Duration::from_secs(60);

/// The `number`-th service; every fourth is IPv6, and two ports share a VIP.
fn service(number: u8) -> ServiceId {
    let vip = if number % 4 == 3 {
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, u16::from(number / 2)))
    } else {
        IpAddr::V4(Ipv4Addr::new(192, 168, 100, number / 2))
    };
    ServiceId { vip, port: 80 + u16::from(number % 2), protocol: Protocol::Tcp }
}

/// The `number`-th backend of a service's family.
fn backend(service: &ServiceId, number: u8) -> BackendId {
    let address = match service.vip {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::new(10, 0, 0, number)),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 2, u16::from(number))),
    };
    BackendId { protocol: service.protocol, address, port: 8080 }
}

fn next_hop(ifindex: u32, mac: u8) -> NextHop {
    NextHop {
        destination_mac: [2, 0, 0, 0, 0, mac],
        source_mac: [2, 0, 0, 0, 1, ifindex as u8],
        ifindex,
        mtu: 1500,
        vlan: Vec::new(),
        service_tag: false,
    }
}

/// A target of services, each with the numbers of its backends: all usable, reached by interface 2.
fn target(services: &[(u8, &[u8])]) -> Target {
    let mut target = Target { interfaces: [2].into(), ..Target::default() };
    target.snat_addresses.insert(Ipv4Addr::new(192, 168, 0, 1).into());
    for (number, backends) in services {
        let id = service(*number);
        target.vips.insert(id.vip, false);
        let members = &mut target.services.entry(id).or_default().members;
        for number in *backends {
            let backend = backend(&id, *number);
            members.insert(backend, TargetMember { weight: 1, draining: false, leaving: false });
            target.usable.insert(backend);
            target.next_hops.insert(backend.address, Ok(next_hop(2, 1)));
        }
    }
    target
}

/// An agent with its machine.
struct Agent {
    machine: Machine,
    model: Model,
    now: Instant,
    applied: u64,
}

impl Agent {
    fn new(limits: Limits) -> Self {
        Self { machine: Machine::new(limits), model: Model::new(limits), now: Instant::now(), applied: 0 }
    }

    /// Plans without applying.
    fn plan(&mut self, target: &Target) -> Plan {
        let usage = self.machine.usage(self.applied);
        plan(&mut self.model, target, &usage, self.now)
    }

    /// Plans and applies, and says that the sweep has seen it.
    fn run(&mut self, target: &Target) -> Plan {
        let plan = self.plan(target);
        for step in &plan.steps {
            self.machine.apply(step);
        }
        self.applied = plan.number;
        plan
    }

    /// Runs until there is nothing left to do.
    fn settle(&mut self, target: &Target) -> Plan {
        for _ in 0..10 {
            let plan = self.run(target);
            if plan.steps.is_empty() {
                return plan;
            }
        }
        panic!("planning one target again and again never ends");
    }

    /// Another agent takes over. Packets in flight are long gone when it has started.
    fn restart(&mut self) {
        self.machine.apply(&Step::GracePeriod);
        let (model, repairs) = Model::adopt(&self.machine.snapshot(), self.machine.limits());
        for step in &repairs {
            self.machine.apply(step);
        }
        self.model = model;
        self.applied = 0;
    }

    fn usage(&self) -> FlowUsage {
        self.machine.usage(self.applied)
    }
}
