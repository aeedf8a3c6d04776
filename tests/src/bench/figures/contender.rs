//! Who is measured: Kanmon's packet program, `baseline-lru`, and any other program that is pinned.

use std::{
    fs,
    os::fd::{AsFd, AsRawFd},
    path::Path,
    thread,
};

use anyhow::{Context, Result, ensure};
use aya::{maps::Map, programs::ProgramInfo};
use lb_common::{
    abi::RING_SIZES,
    host::{Gateway, GatewayConfig, NextHop, Sizes},
};

use super::{
    baseline::Baseline,
    flows::{Flow, Net, Serving},
    report::Program,
};
use crate::kernel_run::{Callee, Clock, KernelProgram, Runner};

/// The interface that frames from memory come from: the loopback.
const INGRESS: u32 = 1;
/// A program of nothing but hash maps has no array of them per flow.
pub(super) const KANMON: &str = "kanmon";
pub(super) const BASELINE: &str = "baseline-lru";
pub(super) const PEER: &str = "peer";

/// A program that makes flows of packets.
pub(super) struct Contender {
    pub(super) name: &'static str,
    pub(super) callee: Callee,
    pub(super) loaded: Loaded,
    serving: Serving,
    runner: Runner,
    flows: Vec<Flow>,
    next_client: u32,
}

/// What keeps it in the kernel.
pub(super) enum Loaded {
    Kanmon(Box<KernelProgram>),
    Baseline(Baseline),
}

impl Contender {
    /// The packet program, with the tables that an agent makes for so many flows.
    pub(super) fn kanmon(net: Net, flows: u32) -> Result<Self> {
        Self::kanmon_serving(net, Serving::ONE, flows, &NextHop::default())
    }

    /// The same with so many services, all backends behind `hop`.
    pub(super) fn kanmon_serving(net: Net, serving: Serving, flows: u32, hop: &NextHop) -> Result<Self> {
        let config = settings(serving, flows);
        let mut gateway = Gateway::new(&config, 1);
        let class = ring_class(serving.backends);
        for protocol in serving.protocols.iter().copied() {
            for service in 0..serving.services {
                let index = gateway.add_empty_service(net.vip_of(service), protocol);
                let backends = net.backends(serving, service);
                let members: Vec<u32> =
                    backends.iter().map(|backend| gateway.add_member(index, *backend)).collect();
                gateway.set_ring_of(index, class, &members);
            }
        }
        for member in 1..config.sizes.members {
            gateway.set_next_hop(member, &NextHop { vlans: net.vlans(), ..hop.clone() });
        }
        let mut kernel = KernelProgram::load(&config.sizes, Clock::Kernel)?;
        kernel.mirror(&gateway.maps)?;
        Ok(Self {
            name: KANMON,
            callee: Callee::of(kernel.entry())?,
            runner: kernel.runner()?,
            loaded: Loaded::Kanmon(Box::new(kernel)),
            serving,
            flows: Vec::new(),
            next_client: 0,
        })
    }

    /// The same NAT with the kernel's hash maps.
    pub(super) fn baseline(net: Net, flows: u32) -> Result<Self> {
        let baseline = Baseline::load(net, flows)?;
        Ok(Self {
            name: BASELINE,
            callee: Callee::of(baseline.program())?,
            runner: Runner::new(baseline.program().try_clone_to_owned()?),
            loaded: Loaded::Baseline(baseline),
            serving: Serving::ONE,
            flows: Vec::new(),
            next_client: 0,
        })
    }

    /// Sees to it that so many flows are established, and returns them.
    pub(super) fn establish(&mut self, net: Net, flows: u32) -> Result<&[Flow]> {
        while self.flows.len() < flows as usize {
            let client = self.next_client;
            self.next_client += 1;
            ensure!(client < flows + flows / 1000 + 1, "{} has no room for {flows} flows", self.name);
            let vip = self.serving.vip_for(net, client);
            let made = net.establish(vip, &mut self.runner, client, INGRESS);
            self.flows.extend(made.with_context(|| format!("{} and client {client}", self.name))?);
            self.drain();
        }
        Ok(&self.flows[..flows as usize])
    }

    /// Reads what was sent to the agent, as an agent does.
    pub(super) fn drain(&mut self) {
        if let Loaded::Kanmon(kernel) = &mut self.loaded {
            while kernel.next_event().is_some() {}
        }
    }

    /// What it is made of, with tables for so many flows.
    pub(super) fn describe(&self, flows: u32) -> Result<Program> {
        let verified_instructions = match &self.loaded {
            Loaded::Kanmon(kernel) => kernel.verified_instructions(),
            Loaded::Baseline(baseline) => baseline.verified_instructions(),
        };
        let bytes_per_flow = Some((self.map_bytes()? as f64 / f64::from(flows)).round());
        Ok(Program { name: self.name, verified_instructions, bytes_per_flow })
    }

    /// What all of its maps take in the kernel.
    pub(super) fn map_bytes(&self) -> Result<u64> {
        match &self.loaded {
            Loaded::Kanmon(kernel) => kernel.maps().map(|(_, info)| Ok(bytes_of(&info.fd()?))).sum(),
            Loaded::Baseline(baseline) => {
                let bytes = baseline.maps().filter_map(|map| match map {
                    Map::Array(data) | Map::HashMap(data) | Map::LruHashMap(data) => {
                        Some(bytes_of(data.fd()))
                    }
                    _ => None,
                });
                Ok(bytes.sum())
            }
        }
    }
}

/// Another program, by its pin.
pub(super) fn peer(pin: &Path) -> Result<(Callee, Program)> {
    let told = || format!("{} is no pinned program that can be run", pin.display());
    let info = ProgramInfo::from_pin(pin).with_context(told)?;
    let callee = Callee::of(info.fd().with_context(told)?.as_fd()).with_context(told)?;
    let name = info.name_as_str().unwrap_or(PEER).to_owned();
    let verified = info.verified_instruction_count().map(|count| (name, count));
    Ok((
        callee,
        Program { name: PEER, verified_instructions: verified.into_iter().collect(), bytes_per_flow: None },
    ))
}

/// What the kernel says that a map takes.
fn bytes_of(map: &impl AsFd) -> u64 {
    let path = format!("/proc/self/fdinfo/{}", map.as_fd().as_raw_fd());
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    line.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or_default()
}

/// The size class of a ring over so many backends, as the agent has it (docs/adr/0008-rings.md).
fn ring_class(backends: u32) -> u8 {
    match backends {
        0..=1 => 0,
        2..=32 => 6,
        33..=163 => 8,
        164..=655 => 10,
        _ => 12,
    }
}

/// Tables as an agent makes them for so many flows: twice as many slots, of both families alike.
fn settings(serving: Serving, flows: u32) -> GatewayConfig {
    let buckets = (flows / 2).next_power_of_two().max(256);
    let protocols = serving.protocols.len() as u32;
    let members = protocols * serving.all_backends() + 1;
    let ring_pairs = RING_SIZES[usize::from(ring_class(serving.backends))].div_ceil(2);
    let sizes = Sizes {
        flow_buckets: buckets,
        reverse_v4_buckets: buckets,
        reverse_v6_buckets: buckets,
        services: protocols * serving.services,
        // The first is nobody's.
        ring_pairs: protocols * serving.services * ring_pairs + 1,
        backends: members,
        members,
        cpus: thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32),
        ..GatewayConfig::default().sizes
    };
    GatewayConfig { sizes, refusals_per_tick: u32::MAX, ..GatewayConfig::default() }
}
