//! One endpoint of many goes and comes back: from a new target to the maps in the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lb_common::abi::RING_SIZES;
use lb_userspace::bpf::{AgentLock, Applied, Kernel, TableSizes};
use lb_userspace::desired::{Protocol, ServiceId};
use lb_userspace::maglev::ring_class;
use lb_userspace::network::NextHop;
use lb_userspace::plan::{FlowUsage, Limits, Model, Target, TargetMember, TargetService, plan};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::build::backend;
use crate::{Timing, millis};

/// The loopback: frames go nowhere here.
const INTERFACE: u32 = 1;

/// Services with as many endpoints each, which no other has.
#[derive(Clone, Copy)]
struct Load {
    services: u32,
    endpoints: u32,
}

/// Loads services of so many endpoints each, and changes one endpoint a round.
pub(crate) fn measure(services: u32, endpoints: u32, rounds: u32) -> Result<Vec<Timing>> {
    let directory = tempfile::tempdir().context("cannot make a directory for pins")?;
    // Pins are in a file system of our own that vanishes with this process.
    unshare(CloneFlags::CLONE_NEWNS).context("cannot have mounts of our own (root is needed)")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let pins = directory.path().join("bpf");
    fs::create_dir(&pins)?;
    mount(Some("bpf"), &pins, Some("bpf"), MsFlags::empty(), none)
        .context("cannot mount a BPF file system")?;
    let measured = change(&pins, directory.path(), Load { services, endpoints }, rounds);
    umount2(&pins, MntFlags::MNT_DETACH)?;
    measured
}

fn change(pins: &Path, directory: &Path, load: Load, rounds: u32) -> Result<Vec<Timing>> {
    let Load { services, endpoints } = load;
    let slots = RING_SIZES[usize::from(ring_class(endpoints as usize).context("a ring has a size")?)];
    let sizes = sizes(load, slots);
    let bytes = sizes.memory().total();
    let pins = pins.join("kanmon");
    let lock = AgentLock::acquire(&directory.join("locks"), &pins)?;
    let mut kernel = Kernel::load(&pins, sizes, lock)?;
    let mut model = Model::new(limits(&sizes));
    let mut target = target(load);
    let begun = Instant::now();
    bring(&mut kernel, &mut model, &target)?;
    let first = millis(begun.elapsed());
    let mut times = Vec::new();
    for round in 0..rounds {
        // Away from each other, so that no round finds what the one before has read.
        let number = round * 37 % services;
        let (id, endpoint) = (service(number), backend(number * endpoints + round % endpoints));
        let members = |target: &mut Target| target.services.get_mut(&id).map(|it| it.members.clone());
        let before = members(&mut target).context("the service exists")?;
        for present in [false, true] {
            let mut now = before.clone();
            if !present {
                ensure!(now.remove(&endpoint).is_some(), "the endpoint exists");
            }
            if let Some(service) = target.services.get_mut(&id) {
                service.members = now;
            }
            let seen = bring(&mut kernel, &mut model, &target)?;
            times.push(millis(seen));
        }
    }
    let timing = |what, ms, bytes| Timing {
        what,
        slots,
        services,
        backends: services * endpoints,
        ms,
        disruption: None,
        bytes,
    };
    Ok(vec![timing("change", times, None), timing("load all", vec![first], Some(bytes))])
}

/// Plans and writes. How long it takes until packets see all that changes for them: what follows the first grace
/// period only frees what is no longer used.
fn bring(kernel: &mut Kernel, model: &mut Model, target: &Target) -> Result<Duration> {
    let begun = Instant::now();
    let plan = plan(model, target, &FlowUsage::default(), begun);
    let mut seen = None;
    for step in &plan.steps {
        if matches!(kernel.apply(step)?, Applied::GracePeriod) {
            seen.get_or_insert_with(|| begun.elapsed());
        }
    }
    ensure!(plan.problems.is_empty(), "the plan has problems: {:?}", plan.problems);
    Ok(seen.unwrap_or_else(|| begun.elapsed()))
}

fn service(n: u32) -> ServiceId {
    ServiceId { vip: IpAddr::from((0xc0a8_6401 + n).to_be_bytes()), port: 80, protocol: Protocol::Tcp }
}

fn target(Load { services, endpoints }: Load) -> Target {
    let member = TargetMember { weight: 1, draining: false, leaving: false };
    let all = || (0..services * endpoints).map(backend);
    let hop = NextHop {
        destination_mac: [2, 0, 0, 0, 0, 1],
        source_mac: [2, 0, 0, 0, 0, 2],
        ifindex: INTERFACE,
        mtu: 1500,
        vlan: Vec::new(),
        service_tag: false,
    };
    let members = |n: u32| (n * endpoints..(n + 1) * endpoints).map(|n| (backend(n), member)).collect();
    let of = |n| (service(n), TargetService { members: members(n), ..TargetService::default() });
    Target {
        services: (0..services).map(of).collect(),
        usable: all().collect(),
        next_hops: all().map(|backend| (backend.address, Ok(hop.clone()))).collect::<BTreeMap<_, _>>(),
        snat_addresses: BTreeSet::from([IpAddr::from([192, 168, 0, 2])]),
        interfaces: BTreeSet::from([INTERFACE]),
        ..Target::default()
    }
}

fn sizes(Load { services, endpoints }: Load, slots: u32) -> TableSizes {
    let backends = services * endpoints;
    TableSizes {
        // Flows are not what is measured.
        flows: 1024,
        flows_v6: 1024,
        services,
        // A member that went keeps its index while it may have flows.
        backends: backends + 1000,
        members: backends + 1000,
        ring_slots: (services + 100) * (slots + 1024),
        ..TableSizes::default_for(std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32))
    }
}

fn limits(sizes: &TableSizes) -> Limits {
    Limits {
        services: sizes.descriptor_count(),
        backends: sizes.backend_count(),
        members: sizes.member_count(),
        ring_pairs: sizes.ring_pairs(),
        source_ranges: sizes.source_ranges,
        drain_timeout: Duration::from_secs(60),
    }
}
