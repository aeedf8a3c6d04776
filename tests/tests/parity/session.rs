//! Both homes of the program side by side: every step goes to both, and what comes out is compared.

use std::{fmt, net::IpAddr};

use lb_common::{
    abi::{Counter, LAST_HOPS, LastHopWord, Member},
    datapath::{Cells, Verdict},
    host::{Array, Gateway, HostPacket, NextHop, Sizes},
};
use tests::kernel_run::{
    Clock, KernelProgram, MappedArray, Runner, XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX,
    mirror_element,
};

use crate::{
    history::World,
    model::{Model, Said},
};

/// Shortest frame that the kernel runs a program on; shorter ones go to the host's build only.
const SHORTEST: usize = 14;

/// Sizes of every table; settings use less of them where a history wants small tables.
pub(crate) const SIZES: Sizes = Sizes {
    flow_buckets: 256,
    reverse_v4_buckets: 256,
    reverse_v6_buckets: 256,
    services: 16,
    ring_pairs: 4096,
    members: 32,
    backends: 32,
    snat_stride: 2,
    flow_stats: 64,
    cpus: 1,
};

/// Loads the program with [`SIZES`] and an injected clock.
pub(crate) fn load() -> KernelProgram {
    KernelProgram::load(&SIZES, Clock::Injected).expect("the kernel takes the packet program")
}

/// The interfaces of the test's namespace: loopback and both ends of a veth pair.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Interfaces {
    /// Their indices.
    pub(crate) known: [u32; 3],
    /// Their MTUs.
    pub(crate) mtus: [u16; 3],
}

impl Interfaces {
    fn mtu(&self, ifindex: u32) -> u16 {
        self.known.iter().position(|known| *known == ifindex).map_or(0, |index| self.mtus[index])
    }
}

/// A step of a history.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// A frame comes in.
    Frame { ingress: u32, head_room: usize, bytes: Vec<u8> },
    /// Time passes, in nanoseconds.
    Pass(u64),
    /// A backend becomes usable or not.
    Usable(u32, bool),
    /// A member gets other flags.
    Flags(u32, u8),
    /// A member's index is given to its own backend anew, with another generation.
    Recycle(u32),
    /// A member gets another next hop.
    NextHop(u32, NextHop),
    /// A member names a service that does not exist (`true`), or its own again: what a half-written entry
    /// would look like.
    LoseService(u32, bool),
    /// A service gets other source ranges.
    Sources(u32, Option<Vec<(IpAddr, u8)>>),
    /// Somebody holds every lock, or lets go of them.
    Locks(bool),
    /// All last hops are in use by others.
    FillLastHops,
}

/// What both homes did to a frame.
pub(crate) struct Applied {
    /// The verdict.
    pub(crate) verdict: Verdict,
    /// The frame afterwards.
    pub(crate) frame: Vec<u8>,
}

/// The two homes, in the same state.
pub(crate) struct Session<'a> {
    /// The kernel's.
    pub(crate) kernel: &'a mut KernelProgram,
    /// The host's.
    pub(crate) gateway: Gateway,
    /// What both are held to.
    model: Model,
    runner: Runner,
    interfaces: Interfaces,
    services: Vec<u32>,
    egress: Option<u32>,
    counts: [u64; Counter::ALL.len()],
}

impl<'a> Session<'a> {
    /// Both homes as `world` says, without flows.
    pub(crate) fn start(world: &World, kernel: &'a mut KernelProgram, interfaces: &Interfaces) -> Self {
        let gateway = world.gateway();
        while kernel.next_event().is_some() {}
        kernel.tables.forget_packets();
        kernel.mirror(&gateway.maps).expect("the maps take it");
        kernel.tables.set_clock(gateway.maps.clock());
        for ifindex in interfaces.known {
            // Most of them are not in.
            let _ = kernel.remove_egress(ifindex);
        }
        let members = 0..gateway.maps.members.len();
        let services = members.map(|index| gateway.member(index).service).collect();
        let runner = kernel.runner().expect("a runner");
        let (egress, counts) = (None, [0; Counter::ALL.len()]);
        let (interfaces, model) = (*interfaces, Model::default());
        Self { kernel, gateway, model, runner, interfaces, services, egress, counts }
    }

    /// Applies a step to both. A frame gives what became of it.
    ///
    /// # Errors
    /// What differs.
    pub(crate) fn apply(&mut self, op: &Op) -> Result<Option<Applied>, String> {
        match op {
            Op::Frame { ingress, head_room, bytes } => {
                return self.frame(*ingress, *head_room, bytes).map(Some);
            }
            Op::Pass(nanoseconds) => {
                self.gateway.maps.advance_clock(*nanoseconds);
                self.kernel.tables.set_clock(self.gateway.maps.clock());
            }
            Op::Usable(backend, usable) => {
                self.gateway.set_usable(*backend, *usable);
                mirror_element(&self.kernel.tables.backends, &self.gateway.maps.backends, *backend);
            }
            Op::Flags(member, flags) => {
                self.gateway.set_member_flags(*member, *flags);
                self.mirror_member(*member);
            }
            Op::Recycle(member) => {
                let line = self.gateway.member(*member);
                let generation = line.generation.checked_add(1).unwrap_or(1);
                self.gateway.maps.members.write(*member, &Member { generation, ..line });
                self.mirror_member(*member);
            }
            Op::NextHop(member, hop) => {
                self.gateway.set_next_hop(*member, hop);
                self.mirror_member(*member);
            }
            Op::LoseService(member, lost) => {
                let line = self.gateway.member(*member);
                let service = if *lost { u32::MAX } else { self.services[*member as usize] };
                self.gateway.maps.members.write(*member, &Member { service, ..line });
                self.mirror_member(*member);
            }
            Op::Sources(service, ranges) => {
                self.gateway.set_source_ranges(*service, ranges.as_deref());
                self.kernel.mirror_sources(&self.gateway.maps).expect("the tries take it");
                mirror_element(&self.kernel.tables.descriptors, &self.gateway.maps.descriptors, *service);
            }
            Op::Locks(held) => {
                self.model.locked = *held;
                for lock in 0..self.gateway.maps.locks.len() {
                    self.gateway.maps.locks.write(lock, &u64::from(*held));
                    self.kernel.tables.locks.write(lock, &u64::from(*held));
                }
            }
            Op::FillLastHops => {
                self.model.last_hops_full = true;
                for index in 0..LAST_HOPS {
                    let word = LastHopWord::in_use(u64::from(index) << 32 | 0xdead_0000, 0);
                    for cells in [self.gateway.maps.last_hops.get(index)].into_iter().flatten() {
                        if LastHopWord(cells.load(0)).is_free() {
                            cells.store(0, word.0);
                        }
                    }
                    mirror_element(&self.kernel.tables.last_hops, &self.gateway.maps.last_hops, index);
                }
            }
        }
        Ok(None)
    }

    fn mirror_member(&self, member: u32) {
        mirror_element(&self.kernel.tables.members, &self.gateway.maps.members, member);
    }

    /// Sends a frame through all three and compares everything that can be seen at once.
    ///
    /// # Errors
    /// What differs.
    pub(crate) fn frame(&mut self, ingress: u32, head_room: usize, bytes: &[u8]) -> Result<Applied, String> {
        let before = self.host_counts();
        let mtu = self.interfaces.mtu(ingress);
        let mut packet = HostPacket::with_head_room(bytes, head_room).on(ingress).mtu(mtu);
        let verdict = self.gateway.maps.cpu(0).process(&mut packet);
        let frame = packet.bytes().to_vec();
        let after = self.host_counts();
        let counts = std::array::from_fn(|counter| after[counter] - before[counter]);
        let said = Said { verdict, frame: &frame, counts };
        self.model.frame(&self.gateway.maps, bytes, (ingress, mtu, head_room), &said)?;
        if bytes.len() < SHORTEST {
            // The kernel's counters stay behind by what the host has counted.
            self.skip_counts();
            return Ok(Applied { verdict, frame });
        }
        let wanted = self.prepare_egress(verdict);
        let outcome = self
            .runner
            .run(bytes, ingress, head_room)
            .map_err(|error| format!("the kernel does not run {} bytes: {error}", bytes.len()))?;
        if outcome.action != wanted {
            return Err(format!(
                "verdict: host {verdict:?} (action {wanted}), kernel action {}",
                outcome.action
            ));
        }
        if outcome.frame != frame {
            return Err(format!(
                "{verdict:?}, but other bytes:\n  host   {}\n  kernel {}",
                hex(&frame),
                hex(outcome.frame)
            ));
        }
        self.compare_counters()?;
        self.compare_events()?;
        Ok(Applied { verdict, frame })
    }

    /// The action that stands for a verdict. The kernel does not tell where it redirects to; so the map of
    /// egress interfaces holds just the one that the host chose, and a redirect to any other one aborts.
    fn prepare_egress(&mut self, verdict: Verdict) -> u32 {
        match verdict {
            Verdict::Pass => XDP_PASS,
            Verdict::Redirect(ifindex) if !self.interfaces.known.contains(&ifindex) => XDP_ABORTED,
            Verdict::Transmit => XDP_TX,
            Verdict::Redirect(ifindex) => {
                if self.egress != Some(ifindex) {
                    if let Some(old) = self.egress.replace(ifindex) {
                        self.kernel.remove_egress(old).expect("it is in");
                    }
                    self.kernel.add_egress(ifindex).expect("the interface exists");
                }
                XDP_REDIRECT
            }
            _ => XDP_DROP,
        }
    }

    /// How often each counter has been counted, host and kernel agreeing.
    pub(crate) const fn counts(&self) -> &[u64; Counter::ALL.len()] {
        &self.counts
    }

    fn host_counts(&self) -> [u64; Counter::ALL.len()] {
        let cells = self.gateway.maps.counters.get(0);
        std::array::from_fn(|counter| cells.map_or(0, |cells| cells.load(counter)))
    }

    fn skip_counts(&self) {
        let (Some(host), Some(kernel)) =
            (self.gateway.maps.counters.get(0), self.kernel.tables.counters.get(0))
        else {
            return;
        };
        (0..Counter::ALL.len()).for_each(|counter| kernel.store(counter, host.load(counter)));
    }

    fn compare_counters(&mut self) -> Result<(), String> {
        let host = self.gateway.maps.counters.get(0).ok_or("the host has no counters")?;
        let kernel = self.kernel.tables.counters.get(0).ok_or("the kernel has no counters")?;
        for counter in Counter::ALL {
            let (ours, theirs) = (host.load(*counter as usize), kernel.load(*counter as usize));
            if ours != theirs {
                return Err(format!("{}: host {ours}, kernel {theirs}", counter.name()));
            }
            self.counts[*counter as usize] = ours;
        }
        Ok(())
    }

    fn compare_events(&mut self) -> Result<(), String> {
        let host = self.gateway.maps.take_events();
        let kernel: Vec<_> = std::iter::from_fn(|| self.kernel.next_event()).collect();
        if host == kernel { Ok(()) } else { Err(format!("events:\n  host   {host:?}\n  kernel {kernel:?}")) }
    }

    /// Compares all tables that packets write, word by word.
    ///
    /// # Errors
    /// The first word that differs.
    pub(crate) fn compare_tables(&self) -> Result<(), String> {
        let (host, kernel) = (&self.gateway.maps, &self.kernel.tables);
        for (name, host, kernel) in [
            ("FLOWS", &host.flows, &kernel.flows),
            ("HANDSHAKES", &host.handshakes, &kernel.handshakes),
            ("AFFINITY", &host.affinity, &kernel.affinity),
            ("NEW_FLOWS", &host.new_flows, &kernel.new_flows),
            ("SYNS", &host.syns, &kernel.syns),
            ("FRAGMENTS", &host.fragments, &kernel.fragments),
            ("FLOW_STATS", &host.flow_stats, &kernel.flow_stats),
            ("BACKENDS", &host.backends, &kernel.backends),
            ("LOCKS", &host.locks, &kernel.locks),
            ("REVERSE_V4", &host.reverse_v4, &kernel.reverse_v4),
            ("REVERSE_V6", &host.reverse_v6, &kernel.reverse_v6),
            ("PORTS", &host.ports, &kernel.ports),
            ("LAST_HOPS", &host.last_hops, &kernel.last_hops),
            ("MEMBER_STATS", &host.member_stats, &kernel.member_stats),
            ("EVENT_BUDGET", &host.event_budget, &kernel.event_budget),
            ("REFUSALS", &host.refusals, &kernel.refusals),
        ] {
            compare(name, host, kernel)?;
        }
        Ok(())
    }
}

fn compare(name: &str, host: &Array, kernel: &MappedArray) -> Result<(), String> {
    for index in 0..host.len() {
        let (Some(ours), Some(theirs)) = (host.get(index), kernel.get(index)) else {
            return Err(format!("{name} has {} elements, not {}", kernel.len(), host.len()));
        };
        for cell in 0..host.element_size() / 8 {
            if ours.load(cell) != theirs.load(cell) {
                return Err(format!(
                    "{name}[{index}], cell {cell}: host {:#018x}, kernel {:#018x}",
                    ours.load(cell),
                    theirs.load(cell)
                ));
            }
        }
    }
    Ok(())
}

/// What a run has covered.
#[derive(Debug)]
pub(crate) struct Tally {
    /// Frames, the short ones included.
    pub(crate) packets: u64,
    verdicts: [u64; 4],
    counters: [u64; Counter::ALL.len()],
}

impl Default for Tally {
    fn default() -> Self {
        Self { packets: 0, verdicts: [0; 4], counters: [0; Counter::ALL.len()] }
    }
}

impl Tally {
    const VERDICTS: [&'static str; 4] = ["pass", "drop", "transmit", "redirect"];

    /// Notes a frame.
    pub(crate) fn frame(&mut self, verdict: Verdict) {
        self.packets += 1;
        let index = match verdict {
            Verdict::Pass => 0,
            Verdict::Transmit => 2,
            Verdict::Redirect(_) => 3,
            _ => 1,
        };
        self.verdicts[index] += 1;
    }

    /// Notes what a history has counted.
    pub(crate) fn history(&mut self, counts: &[u64; Counter::ALL.len()]) {
        for (sum, count) in self.counters.iter_mut().zip(counts) {
            *sum += count;
        }
    }

    fn rows(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let counters = Counter::ALL.iter().map(|counter| (counter.name(), self.counters[*counter as usize]));
        Self::VERDICTS.into_iter().zip(self.verdicts).chain(counters)
    }

    /// Wants every verdict and every counter so often.
    pub(crate) fn assert_each_at_least(&self, least: u64) {
        // The one takes two processors at once, the other is counted after the verdict.
        let unreachable = [Counter::DropMoved.name(), Counter::RedirectFailed.name()];
        let rare: Vec<_> =
            self.rows().filter(|(name, count)| !unreachable.contains(name) && *count < least).collect();
        assert!(rare.is_empty(), "occurred less than {least} times: {rare:?}");
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rows().try_for_each(|(name, count)| writeln!(f, "{name:24} {count}"))
    }
}

/// Bytes as people write them.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
