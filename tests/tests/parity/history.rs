//! Worlds, and the histories that happen in them: what comes next depends on what came out before.

use std::net::IpAddr;

use lb_common::{
    abi::{FlowLogWord, ReactionWord, member_flags, vip_flags},
    clock::TICK_NS,
    datapath::Verdict,
    hash::finish,
    host::{ACK, FIN, Gateway, GatewayConfig, NextHop, RST, SYN, Seen, reassemble},
};
use tests::kernel_run::{KernelProgram, MAX_HEAD_ROOM};

use crate::{
    frames::{self, Flow, SERVICES, Side},
    session::{Interfaces, Op, SIZES, Session, Tally},
};

/// Steps of a history.
const STEPS: usize = 400;
/// Flows that a history remembers.
const FLOWS: usize = 160;

/// Random numbers (SplitMix64), so that a seed is a history.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// Another sequence for each seed.
    pub(crate) const fn new(seed: u64) -> Self {
        Self(finish(seed))
    }

    /// The next 64 bits.
    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        finish(self.0)
    }

    /// A number below `bound`.
    pub(crate) const fn below(&mut self, bound: usize) -> usize {
        (((self.next() >> 32) * bound as u64) >> 32) as usize
    }

    /// True `percent` times in a hundred.
    pub(crate) const fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of several values.
    pub(crate) const fn one_of<T: Copy, const N: usize>(&mut self, values: [T; N]) -> T {
        values[self.below(N)]
    }
}

/// What a world is short of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Nothing: two SNAT addresses, tables with room.
    Broad,
    /// Four or eight flow slots.
    FewSlots,
    /// One backend a service, 64 ports, and flows that live.
    FewPorts,
    /// The same, and flows that do not get far or close.
    ChurningPorts,
    /// Two events a tick, one of them for the flow log.
    FewEvents,
    /// One bucket of the reverse tables.
    FewReverse,
    /// Last hops.
    NoLastHops,
}

impl Profile {
    /// Whether all flows share the 64 ports of few backends.
    pub(crate) const fn is_short_of_ports(self) -> bool {
        matches!(self, Self::FewPorts | Self::ChurningPorts)
    }
}

/// Where a history happens; everything follows from the seed.
#[derive(Clone, Debug)]
pub(crate) struct World {
    seed: u64,
    /// What is short.
    pub(crate) profile: Profile,
    interfaces: [u32; 3],
}

/// A history that ended in a difference.
pub(crate) struct Mismatch {
    /// What differs.
    pub(crate) what: String,
    /// Every step up to there.
    pub(crate) ops: Vec<Op>,
}

impl World {
    /// The world of the `number`-th history of a run.
    pub(crate) fn new(seed: u64, number: u64, interfaces: &Interfaces) -> Self {
        use Profile::{Broad, ChurningPorts, FewEvents, FewPorts, FewReverse, FewSlots, NoLastHops};
        let profiles = [Broad, FewSlots, Broad, FewPorts, FewEvents, ChurningPorts, FewReverse, NoLastHops];
        let profile = profiles[(number % profiles.len() as u64) as usize];
        Self { seed: finish(seed) ^ number, profile, interfaces: interfaces.known }
    }

    /// A world that is short of something.
    pub(crate) const fn of_profile(profile: Profile, seed: u64, interfaces: &Interfaces) -> Self {
        Self { seed, profile, interfaces: interfaces.known }
    }

    /// The maps, filled.
    pub(crate) fn gateway(&self) -> Gateway {
        let mut random = Random::new(self.seed ^ 0x6174_6577_6179);
        let broad = self.profile == Profile::Broad;
        let few_events = matches!(self.profile, Profile::FewEvents | Profile::FewSlots);
        let snat = ["192.168.0.2", "fd00::2", "192.168.0.3", "fd00::3"].map(frames::ip);
        let settings = GatewayConfig {
            sizes: SIZES,
            snat: snat[..if broad { 4 } else { 2 }].to_vec(),
            port_base: 12_288,
            port_words: if self.profile.is_short_of_ports() { 1 } else { 4 },
            timeouts_ms: [2_000, 60_000, 5_000, 2_000, 2_000, 5_000],
            events_per_tick: if few_events { 2 } else { 1100 },
            flow_events_per_tick: if few_events { 1 } else { 1000 },
            refusals_per_tick: if few_events { 2 } else { 1000 },
        };
        let mut gateway = Gateway::new(&settings, self.seed);
        let config = gateway.config_mut();
        if self.profile == Profile::FewSlots {
            config.flow_bucket_mask = random.below(2) as u32;
        }
        if self.profile == Profile::FewReverse {
            (config.reverse_v4_mask, config.reverse_v6_mask) = (0, 0);
        }
        for service in &SERVICES {
            let backends = if self.profile.is_short_of_ports() { 1 } else { service.backends };
            let backends: Vec<_> = (0..backends).map(|number| service.backend(number)).collect();
            let vip = service.vip();
            let index = match service.rings {
                frames::Rings::Main => gateway.add_service(vip, service.protocol, &backends),
                frames::Rings::None => gateway.add_empty_service(vip, service.protocol),
                frames::Rings::Fallback => {
                    let index = gateway.add_empty_service(vip, service.protocol);
                    let members: Vec<_> =
                        backends.iter().map(|backend| gateway.add_member(index, *backend)).collect();
                    gateway.set_fallback(index, &members);
                    index
                }
            };
            if service.node_address {
                gateway.add_vip(gateway_vip(index), vip_flags::NODE_ADDRESS);
            }
        }
        for vip in ["203.0.113.10", "2001:db8::10"] {
            gateway.add_vip(frames::ip(vip), vip_flags::ECHO);
        }
        for service in 0..SERVICES.len() as u32 {
            let errors = random.one_of([0, 1, 2, 4]);
            gateway.set_flow_log(service, FlowLogWord::one_in(random.one_of([0, 1, 1, 2, 3])));
            gateway.set_reaction(
                service,
                ReactionWord::new(errors, 1 + random.next() as u32 % 8_000, random.chance(80)),
            );
        }
        let mut other = Random::new(self.seed ^ 0x0073_6f75_7263_6573);
        for service in 0..SERVICES.len() as u32 {
            gateway.set_source_ranges(service, source_ranges(&mut other).as_deref());
            gateway.set_stay(service, other.one_of([0, 0, 20, 4_000]));
            gateway.set_interval(service, other.one_of([0, 0, 0, 400_000_000]));
            gateway.set_beyond(service, other.one_of([0, 0, 8, 16]));
        }
        for member in 1..=frames::members(self.profile) {
            let flags = gateway.member(member).flags;
            gateway.set_member_flags(member, flags | random.one_of([0, member_flags::COUNTED]));
        }
        for backend in 1..=frames::backends(self.profile) as u32 {
            gateway.set_cluster(backend, random.one_of([0, 7, 8]));
        }
        for member in 1..=frames::members(self.profile) {
            gateway.set_next_hop(member, &self.next_hop(&mut random));
        }
        gateway
    }

    fn next_hop(&self, random: &mut Random) -> NextHop {
        let vlans = (0..random.one_of([0, 0, 1, 2])).map(|_| random.next() as u16).collect();
        NextHop {
            destination_mac: frames::mac(random.below(4) as u8),
            source_mac: frames::mac(0x80 | random.below(4) as u8),
            // The last one does not exist.
            ifindex: if random.chance(3) { 9_999 } else { random.one_of(self.interfaces) },
            vlans,
            service_tag: random.chance(30),
            mtu: random.one_of([0, 0, 400, 900, 1300, 1500]),
        }
    }
}

/// Keeps sixteen.
fn forget_one(random: &mut Random, frames: &mut Vec<Vec<u8>>) {
    if frames.len() > 16 {
        let index = random.below(frames.len());
        frames.swap_remove(index);
    }
}

/// Nobody asks, half of the clients are in one, or all are.
fn source_ranges(random: &mut Random) -> Option<Vec<(IpAddr, u8)>> {
    let some = [("198.51.100.0", 30), ("2001:db8:c::", 126), ("10.0.0.0", 8)];
    let all = [("0.0.0.0", 0), ("2001:db8::", 32), ("198.51.100.5", 32)];
    let choice: &[(&str, u8)] = match random.below(5) {
        0 => &some,
        1 => &all,
        _ => return None,
    };
    Some(choice.iter().map(|(network, length)| (frames::ip(network), *length)).collect())
}

fn gateway_vip(service: u32) -> std::net::IpAddr {
    SERVICES[service as usize].vip().ip()
}

/// Runs one history.
///
/// # Errors
/// At the first difference.
pub(crate) fn run(
    world: &World,
    kernel: &mut KernelProgram,
    interfaces: &Interfaces,
    tally: &mut Tally,
) -> Result<(), Mismatch> {
    let mut session = Session::start(world, kernel, interfaces);
    let mut history = History {
        world,
        random: Random::new(world.seed),
        flows: Vec::new(),
        recent: Vec::new(),
        forwarded: Vec::new(),
        ops: Vec::new(),
    };
    let result = history.play(&mut session, tally).and_then(|()| session.compare_tables());
    tally.history(session.counts());
    result.map_err(|what| Mismatch { what, ops: history.ops })
}

struct History<'w> {
    world: &'w World,
    random: Random,
    flows: Vec<Flow>,
    /// Frames to mutate.
    recent: Vec<Vec<u8>>,
    /// Frames that came out, for messages about them.
    forwarded: Vec<Vec<u8>>,
    ops: Vec<Op>,
}

impl History<'_> {
    fn play(&mut self, session: &mut Session<'_>, tally: &mut Tally) -> Result<(), String> {
        for step in 0..STEPS {
            if step == 60 && self.world.profile == Profile::NoLastHops {
                self.apply(session, Op::FillLastHops)?;
            }
            match self.random.below(100) {
                0..18 => self.open(session, tally)?,
                18..72 => self.go_on(session, tally)?,
                72..82 => self.stray(session, tally)?,
                82..89 => self.mutated(session, tally)?,
                89..92 => self.message(session, tally)?,
                92..95 => {
                    let ticks = self.random.one_of([1, 1, 3, 9, 25, 300]);
                    self.apply(session, Op::Pass(ticks * TICK_NS))?;
                }
                95..99 => self.change(session)?,
                _ => self.disturb(session, tally)?,
            }
        }
        Ok(())
    }

    fn apply(&mut self, session: &mut Session<'_>, op: Op) -> Result<(), String> {
        self.ops.push(op.clone());
        session.apply(&op).map(drop)
    }

    /// Sends a frame, and gives what came out where it was forwarded.
    fn send(
        &mut self,
        session: &mut Session<'_>,
        tally: &mut Tally,
        ingress: u32,
        bytes: Vec<u8>,
    ) -> Result<Option<Vec<u8>>, String> {
        let head_room = if self.random.chance(6) { self.random.one_of([0, 4]) } else { MAX_HEAD_ROOM };
        self.recent.push(bytes.clone());
        forget_one(&mut self.random, &mut self.recent);
        let op = Op::Frame { ingress, head_room, bytes };
        self.ops.push(op.clone());
        let Some(applied) = session.apply(&op)? else { return Ok(None) };
        tally.frame(applied.verdict);
        if !matches!(applied.verdict, Verdict::Transmit | Verdict::Redirect(_)) {
            return Ok(None);
        }
        self.forwarded.push(applied.frame.clone());
        forget_one(&mut self.random, &mut self.forwarded);
        Ok(Some(applied.frame))
    }

    /// Sends a packet or its fragments, and gives the packet that came out.
    fn send_all(
        &mut self,
        session: &mut Session<'_>,
        tally: &mut Tally,
        ingress: u32,
        frames: Vec<Vec<u8>>,
    ) -> Result<Option<Seen>, String> {
        let in_fragments = frames.len() > 1;
        let mut out = Vec::new();
        for frame in frames {
            out.extend(self.send(session, tally, ingress, frame)?);
        }
        let whole = if in_fragments { reassemble(&out).ok() } else { out.pop() };
        Ok(whole.and_then(|frame| Seen::parse(&frame).ok()))
    }

    /// A client's first packet.
    fn open(&mut self, session: &mut Session<'_>, tally: &mut Tally) -> Result<(), String> {
        let ingress = self.random.one_of(self.world.interfaces);
        let flow = Flow::random(&mut self.random, self.world.profile, ingress);
        self.flows.push(flow);
        if self.flows.len() > FLOWS {
            self.flows.remove(0);
        }
        self.client(session, tally, self.flows.len() - 1, SYN)
    }

    fn client(
        &mut self,
        session: &mut Session<'_>,
        tally: &mut Tally,
        index: usize,
        flags: u8,
    ) -> Result<(), String> {
        let (frames, ingress) = {
            let flow = &self.flows[index];
            (flow.frames(&mut self.random, Side::Client, flags), flow.ingress)
        };
        if let Some(seen) = self.send_all(session, tally, ingress, frames)? {
            self.flows[index].path = Some((seen.destination, seen.source));
        }
        Ok(())
    }

    fn backend(
        &mut self,
        session: &mut Session<'_>,
        tally: &mut Tally,
        index: usize,
        flags: u8,
    ) -> Result<(), String> {
        let ingress = self.random.one_of(self.world.interfaces);
        let frames = self.flows[index].frames(&mut self.random, Side::Backend, flags);
        if let Some(seen) = self.send_all(session, tally, ingress, frames)?
            && seen.destination != self.flows[index].client
            && seen.flags == SYN
        {
            // A refusal that has become the SYN again, to another backend.
            self.flows[index].path = Some((seen.destination, seen.source));
        }
        Ok(())
    }

    /// The next packet of a flow; now and then not the one that would be next.
    fn go_on(&mut self, session: &mut Session<'_>, tally: &mut Tally) -> Result<(), String> {
        if self.flows.is_empty() {
            return self.open(session, tally);
        }
        // Young flows mostly, so that they get somewhere.
        let index = if self.random.chance(60) {
            self.flows.len() - 1 - self.random.below(self.flows.len().min(6))
        } else {
            self.random.below(self.flows.len())
        };
        let flow = &mut self.flows[index];
        if flow.path.is_none() {
            return self.client(session, tally, index, SYN);
        }
        if self.world.profile == Profile::FewSlots && self.random.chance(3) {
            // More packets than there is room for in the table of fragments.
            let (frames, ingress) = (flow.crowd(12), flow.ingress);
            return frames
                .into_iter()
                .try_for_each(|frame| self.send(session, tally, ingress, frame).map(drop));
        }
        if flow.phase == 0 && self.world.profile == Profile::ChurningPorts && self.random.chance(70) {
            return self.open(session, tally);
        }
        if self.random.chance(7) {
            let flags = self.random.next() as u8 & 0x3f;
            return if self.random.chance(50) {
                self.client(session, tally, index, flags)
            } else {
                self.backend(session, tally, index, flags)
            };
        }
        let phase = flow.phase;
        if phase == 0 && self.random.chance(20) {
            // No answer, or a refusal.
            if self.random.chance(40) {
                return self.backend(session, tally, index, RST | ACK);
            }
            let ticks = self.random.one_of([1, 3, 4, 4, 5]);
            self.apply(session, Op::Pass(ticks * TICK_NS))?;
            return self.client(session, tally, index, SYN);
        }
        let flow = &mut self.flows[index];
        flow.phase = (phase + 1).min(2);
        match phase {
            0 if self.random.chance(8) => self.backend(session, tally, index, RST | ACK),
            0 => self.backend(session, tally, index, SYN | ACK),
            1 => self.client(session, tally, index, ACK),
            _ => {
                let closing = if self.world.profile == Profile::FewPorts { 4 } else { 30 };
                let flags = if self.random.chance(closing) {
                    self.random.one_of([FIN | ACK, FIN | ACK, RST, SYN])
                } else {
                    ACK
                };
                if self.random.chance(50) {
                    self.client(session, tally, index, flags)
                } else {
                    self.backend(session, tally, index, flags)
                }
            }
        }
    }

    /// A packet that belongs to no flow.
    fn stray(&mut self, session: &mut Session<'_>, tally: &mut Tally) -> Result<(), String> {
        let ingress = self.random.one_of(self.world.interfaces);
        let bytes = frames::stray(&mut self.random);
        self.send(session, tally, ingress, bytes).map(drop)
    }

    /// A frame from before, broken.
    fn mutated(&mut self, session: &mut Session<'_>, tally: &mut Tally) -> Result<(), String> {
        if self.recent.is_empty() {
            return self.stray(session, tally);
        }
        let index = self.random.below(self.recent.len());
        let bytes = frames::mutate(&mut self.random, &self.recent[index]);
        let ingress = self.random.one_of(self.world.interfaces);
        self.send(session, tally, ingress, bytes).map(drop)
    }

    /// A router, or the receiver, complains of a packet.
    fn message(&mut self, session: &mut Session<'_>, tally: &mut Tally) -> Result<(), String> {
        if self.forwarded.is_empty() {
            return self.stray(session, tally);
        }
        let index = self.random.below(self.forwarded.len());
        let Some(bytes) = frames::message_about(&mut self.random, &self.forwarded[index]) else {
            return self.stray(session, tally);
        };
        let ingress = self.random.one_of(self.world.interfaces);
        self.send(session, tally, ingress, bytes).map(drop)
    }

    /// The agent changes something.
    fn change(&mut self, session: &mut Session<'_>) -> Result<(), String> {
        let member = 1 + self.random.below(frames::members(self.world.profile) as usize) as u32;
        let backend = 1 + self.random.below(frames::backends(self.world.profile)) as u32;
        let counted = self.random.one_of([0, member_flags::COUNTED]);
        let sound = member_flags::VALID | member_flags::NEXT_HOP | counted;
        let op = match self.random.below(14) {
            12 | 13 => {
                let service = self.random.below(SERVICES.len()) as u32;
                Op::Sources(service, source_ranges(&mut self.random))
            }
            0..3 => Op::Usable(backend, self.random.chance(70)),
            3..5 => Op::Flags(member, sound),
            5 => Op::Flags(member, member_flags::VALID),
            6 => Op::Flags(member, sound | member_flags::DRAINING),
            7 => Op::Flags(member, sound | member_flags::REMOVED),
            8 => Op::Flags(member, 0),
            9 | 10 => Op::Recycle(member),
            _ => Op::NextHop(member, self.world.next_hop(&mut self.random)),
        };
        self.apply(session, op)
    }

    /// Something that should not be, for a few packets.
    fn disturb(&mut self, session: &mut Session<'_>, tally: &mut Tally) -> Result<(), String> {
        match self.random.below(3) {
            0 => {
                self.apply(session, Op::Locks(true))?;
                for _ in 0..4 {
                    self.open(session, tally)?;
                }
                self.apply(session, Op::Locks(false))
            }
            1 => {
                let lost: Vec<_> = frames::members_v6(self.world.profile).collect();
                for member in &lost {
                    self.apply(session, Op::LoseService(*member, true))?;
                }
                let v6 = |flow: &Flow| flow.client.is_ipv6() && flow.path.is_some();
                let found: Vec<_> = (0..self.flows.len()).filter(|index| v6(&self.flows[*index])).collect();
                for index in found.into_iter().rev().take(8) {
                    self.backend(session, tally, index, ACK)?;
                }
                for member in lost {
                    self.apply(session, Op::LoseService(member, false))?;
                }
                Ok(())
            }
            _ => {
                let backends = 1..=frames::backends(self.world.profile) as u32;
                for backend in backends.clone() {
                    self.apply(session, Op::Usable(backend, false))?;
                }
                for _ in 0..3 {
                    self.open(session, tally)?;
                }
                for backend in backends {
                    self.apply(session, Op::Usable(backend, true))?;
                }
                Ok(())
            }
        }
    }
}
