//! A gateway whose flow table, reverse table, ports and locks are loom's.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, LazyLock, OnceLock},
};

use lb_common::{
    abi::{
        AffinityWord, BackendKeyV4, BackendKeyV6, Config, Counter, FlowState, FlowWord, LastHopWord,
        PORT_BITMAP_WORDS, ReactionWord, ReverseWord, RingWord, ServiceKeyV4, ServiceKeyV6, SourceV4,
        SourceV6, TCP, VipKeyV4, VipKeyV6, unpack_forward,
    },
    clock,
    datapath::{
        self, Cells, Maps, Tables, V4, Verdict,
        sweep::{self, Ended, Observer},
    },
    host::{Frame, Gateway, GatewayConfig, HostCells, HostPacket, SYN, Seen},
};
use loom::sync::atomic::{AtomicU64, Ordering};

pub(crate) fn vip() -> SocketAddr {
    ([203, 0, 113, 10], 80).into()
}

/// The service whose clients stay with their backends, and whose backends are tripped by two errors in a row.
pub(crate) fn staying_vip() -> SocketAddr {
    ([203, 0, 113, 10], 81).into()
}

/// Its index, and for how many ticks a client stays.
const STAYING: u32 = 1;
const STAY: u32 = 100;

/// Clients differ in address and port, so that a mixture of two shows.
pub(crate) fn client(n: u16) -> SocketAddr {
    ([198, 51, 100, n as u8], 40_000 + n).into()
}

/// A cell; its top halfword, the tick, is stored on its own.
pub(crate) struct Cell {
    body: AtomicU64,
    tick: Option<AtomicU64>,
    /// Loom remembers the last access to a location, not the last of each thread: a thread that loads and then
    /// exchanges hides from it that another one has loaded before. So each access is announced here first, by
    /// something that any other announcement depends on and that orders no memory.
    visits: AtomicU64,
}

impl Cell {
    fn visit(&self) -> &Self {
        self.visits.fetch_add(0, Ordering::Relaxed);
        self
    }
}

/// Cells of a modelled map.
type Row = Vec<Cell>;

/// `with_tick` says which cells have ticks in their top halfwords.
fn row(cells: usize, with_tick: impl Fn(usize) -> bool) -> Row {
    let cell = |index| Cell {
        body: AtomicU64::new(0),
        tick: with_tick(index).then(|| AtomicU64::new(0)),
        visits: AtomicU64::new(0),
    };
    (0..cells).map(cell).collect()
}

/// An element: of the model or of the host.
#[derive(Clone, Copy)]
pub(crate) enum ModelCells<'a> {
    Modelled(&'a [Cell]),
    Plain(HostCells<'a>),
}

const TICK: u32 = 48;
const BODY: u64 = (1 << TICK) - 1;

impl Cells for ModelCells<'_> {
    fn load(self, index: usize) -> u64 {
        match self {
            Self::Plain(cells) => cells.load(index),
            Self::Modelled(cells) => {
                let Cell { body, tick, .. } = cells[index].visit();
                let body = body.load(Ordering::Relaxed);
                tick.as_ref().map_or(body, |tick| body | tick.load(Ordering::Relaxed) << TICK)
            }
        }
    }

    fn store(self, index: usize, value: u64) {
        match self {
            Self::Plain(cells) => cells.store(index, value),
            Self::Modelled(cells) => match cells[index].visit() {
                Cell { body, tick: None, .. } => body.store(value, Ordering::Relaxed),
                Cell { body, tick: Some(tick), .. } => {
                    tick.store(value >> TICK, Ordering::Relaxed);
                    body.store(value & BODY, Ordering::Relaxed);
                }
            },
        }
    }

    fn store_tick(self, index: usize, new: u16) {
        match self {
            Self::Plain(cells) => cells.store_tick(index, new),
            Self::Modelled(cells) => match &cells[index].visit().tick {
                Some(tick) => tick.store(new.into(), Ordering::Relaxed),
                None => panic!("cell {index} has no tick"),
            },
        }
    }

    fn compare_exchange(self, index: usize, current: u64, new: u64) -> u64 {
        match self {
            Self::Plain(cells) => cells.compare_exchange(index, current, new),
            Self::Modelled(cells) => {
                if cells.len() == REVERSE_CELLS
                    && let Some(interruption) = INTERRUPTION.take()
                {
                    interruption();
                }
                let Cell { body, tick: None, .. } = cells[index].visit() else {
                    panic!("cell {index} has a tick")
                };
                match body.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst) {
                    Ok(found) => found,
                    Err(found) => {
                        // A lock that is held: the model must let its holder run.
                        if cells.len() == 1 {
                            loom::thread::yield_now();
                        }
                        found
                    }
                }
            }
        }
    }

    fn fetch_or(self, index: usize, bits: u64) -> u64 {
        match self {
            Self::Plain(cells) => cells.fetch_or(index, bits),
            Self::Modelled(cells) => cells[index].visit().body.fetch_or(bits, Ordering::SeqCst),
        }
    }

    fn fetch_and(self, index: usize, bits: u64) -> u64 {
        match self {
            Self::Plain(cells) => cells.fetch_and(index, bits),
            Self::Modelled(cells) => cells[index].visit().body.fetch_and(bits, Ordering::SeqCst),
        }
    }

    fn fetch_add(self, index: usize, value: u64) -> u64 {
        match self {
            Self::Plain(cells) => cells.fetch_add(index, value),
            Self::Modelled(cells) => cells[index].visit().body.fetch_add(value, Ordering::SeqCst),
        }
    }
}

/// A ring of the staying service with its second member alone.
static OTHER_RING: OnceLock<RingWord> = OnceLock::new();

/// What is the same in every run of a model: one service with one backend, and another one for rescues; the same two
/// backends in the service whose clients stay.
static GATEWAY: LazyLock<Gateway> = LazyLock::new(|| {
    let mut settings = GatewayConfig { port_words: 1, ..GatewayConfig::default() };
    settings.sizes.flow_buckets = 1;
    settings.sizes.reverse_v4_buckets = 1;
    settings.sizes.reverse_v6_buckets = 1;
    let mut gateway = Gateway::new(&settings, 3);
    let service = gateway.add_service(vip(), TCP, &[([10, 0, 0, 1], 8080).into()]);
    let spare = gateway.add_member(service, ([10, 0, 0, 2], 8080).into());
    gateway.set_fallback(service, &[spare]);
    let backends = [([10, 0, 0, 1], 8080).into(), ([10, 0, 0, 2], 8080).into()];
    assert_eq!(gateway.add_service(staying_vip(), TCP, &backends), STAYING);
    gateway.set_stay(STAYING, STAY);
    gateway.set_reaction(STAYING, ReactionWord::new(2, 60_000, false));
    let ring = gateway.write_ring(&[spare + 2]);
    OTHER_RING.set(ring).expect("one gateway");
    // Its last hop is known: tests run at once, and share this.
    datapath::process(&mut HostPacket::new(&Frame::tcp(client(1), vip(), SYN).build()), &gateway.maps.cpu(0));
    gateway
});

/// Cells of the reverse table's one bucket; no other row has as many.
const REVERSE_CELLS: usize = 16;

thread_local! {
    /// What happens just before the next exchange in the reverse table.
    static INTERRUPTION: std::cell::Cell<Option<Box<dyn FnOnce()>>> = const { std::cell::Cell::new(None) };
}

/// Cells of a last hop: with the padding that makes it a line, so that its row's length is no other's.
const LAST_HOP_CELLS: usize = 4;

const LOCKS: u32 = 2;
/// Room for more than the port bitmap's one word, so that only a lock is a row of one cell.
const PORT_CELLS: usize = 2;

/// One bucket of each table.
pub(crate) struct Model {
    flows: Row,
    handshakes: Row,
    locks: Vec<Row>,
    /// The only one, as all frames come by one router; read only by a model that has yet to learn it.
    last_hop: Row,
    learns_last_hop: std::sync::atomic::AtomicBool,
    reverse: Row,
    /// Of each backend.
    ports: [Row; 2],
    /// The backends' errors and trips.
    backends: [Row; 2],
    /// The staying service, and whom its clients are with.
    descriptor: Row,
    affinity: Row,
    /// Ports of the first backend that are taken from the start, by nobody.
    blocked: std::sync::atomic::AtomicU64,
    now: std::sync::atomic::AtomicU64,
    established: std::sync::atomic::AtomicU64,
    tripped: std::sync::atomic::AtomicU64,
}

/// Where a frame went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Delivered {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
}

/// Runs a scenario in every interleaving with at most that many preemptions.
pub(crate) fn explore(preemptions: usize, scenario: impl Fn(&Arc<Model>) + Sync + Send + 'static) {
    explore_first(usize::MAX, preemptions, scenario);
}

/// Runs a scenario in so many of these interleavings.
pub(crate) fn explore_first(
    permutations: usize,
    preemptions: usize,
    scenario: impl Fn(&Arc<Model>) + Sync + Send + 'static,
) {
    // Built outside of the model: its construction is no part of any interleaving.
    LazyLock::force(&GATEWAY);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_permutations = Some(permutations);
    builder.max_branches = 100_000;
    builder.check(move || scenario(&Arc::new(Model::new())));
}

/// Cells that are at first what the host's are.
fn copy_of(cells: Option<HostCells<'_>>) -> Row {
    let copy = row(8, |_| false);
    let cells = cells.expect("an element");
    (0..8).for_each(|cell| ModelCells::Modelled(&copy).store(cell, cells.load(cell)));
    copy
}

impl Model {
    fn new() -> Self {
        let backend = |index| copy_of(GATEWAY.maps.backends.get(index));
        Self {
            flows: row(8, |cell| cell % 2 == 1),
            handshakes: row(4, |_| false),
            locks: (0..LOCKS).map(|_| row(1, |_| false)).collect(),
            last_hop: row(LAST_HOP_CELLS, |_| false),
            learns_last_hop: false.into(),
            reverse: row(REVERSE_CELLS, |cell| cell % 4 == 1),
            ports: [row(PORT_CELLS, |_| false), row(PORT_CELLS, |_| false)],
            backends: [backend(1), backend(2)],
            descriptor: copy_of(GATEWAY.maps.descriptors.get(STAYING)),
            affinity: row(8, |_| false),
            blocked: 0.into(),
            now: GATEWAY.maps.clock().into(),
            established: 0.into(),
            tripped: 0.into(),
        }
    }

    /// Runs two processors at once.
    pub(crate) fn race<A: 'static, B>(
        self: &Arc<Self>,
        one: impl FnOnce(&Self) -> A + 'static,
        two: impl FnOnce(&Self) -> B,
    ) -> (A, B) {
        let other = Arc::clone(self);
        let one = loom::thread::spawn(move || one(&other));
        let two = two(self);
        (one.join().expect("the other processor"), two)
    }

    /// Lets something happen just before the next exchange in the reverse table: one interleaving, for which too
    /// much must come together to be found among all.
    pub(crate) fn interrupt(self: &Arc<Self>, interruption: impl FnOnce(&Self) + 'static) {
        let model = Arc::clone(self);
        INTERRUPTION.set(Some(Box::new(move || interruption(&model))));
    }

    /// Runs a frame through the program.
    pub(crate) fn verdict(&self, frame: &Frame) -> Verdict {
        datapath::process(&mut HostPacket::new(&frame.build()), &self)
    }

    /// Where the program sends a frame; `None` where it doesn't.
    pub(crate) fn send(&self, frame: &Frame) -> Option<Delivered> {
        let mut packet = HostPacket::new(&frame.build());
        if datapath::process(&mut packet, &self) != Verdict::Transmit {
            return None;
        }
        let seen = Seen::parse(packet.bytes()).expect("a frame whose checksums verify");
        Some(Delivered { source: seen.source, destination: seen.destination })
    }

    /// Lets no frame have come before.
    pub(crate) fn forget_last_hop(&self) {
        self.learns_last_hop.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// Takes all ports but the first few.
    pub(crate) fn leave_ports(&self, count: u32) {
        let blocked = u64::MAX << count;
        self.ports[0][0].body.store(blocked, Ordering::Relaxed);
        self.blocked.store(blocked, std::sync::atomic::Ordering::Relaxed);
    }

    /// Takes the first port, for nobody.
    pub(crate) fn block_first_port(&self) {
        self.ports[0][0].body.fetch_or(1, Ordering::Relaxed);
        self.blocked.fetch_or(1, std::sync::atomic::Ordering::Relaxed);
    }

    /// Gives it back.
    pub(crate) fn unblock_first_port(&self) {
        self.ports[0][0].body.fetch_and(!1, Ordering::Relaxed);
        self.blocked.fetch_and(!1, std::sync::atomic::Ordering::Relaxed);
    }

    /// Lets so many nanoseconds pass.
    pub(crate) fn wait(&self, nanoseconds: u64) {
        self.now.fetch_add(nanoseconds, std::sync::atomic::Ordering::Relaxed);
    }

    /// Lets every flow's time run out.
    pub(crate) fn expire(&self) {
        self.now.fetch_add(2 * 3_600_000_000_000, std::sync::atomic::Ordering::Relaxed);
    }

    /// How often this has been counted.
    ///
    /// # Panics
    /// Where it is none of those that are.
    pub(crate) fn counted(&self, counter: Counter) -> u64 {
        let count = match counter {
            Counter::FlowEstablished => &self.established,
            Counter::BackendTripped => &self.tripped,
            other => panic!("{other:?} is not counted"),
        };
        count.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Where the program sends a router's message that the packet of a flow did not arrive, whose first packet was
    /// delivered like this; and who is named as that packet's sender.
    pub(crate) fn complain(&self, of: &Delivered) -> Option<(SocketAddr, SocketAddr)> {
        let lost = Frame::tcp(of.source, of.destination, 0x10).build();
        let router = ([172, 16, 0, 1], 0).into();
        let message = Frame::icmp(SocketAddr::ip(&router), of.source.ip(), 3, 1, [0; 4]).payload(&lost[14..]);
        let mut packet = HostPacket::new(&message.build());
        if datapath::process(&mut packet, &self) != Verdict::Transmit {
            return None;
        }
        let seen = Seen::parse(packet.bytes()).expect("a frame whose checksums verify");
        let inner = &seen.payload;
        let address: [u8; 4] = inner[12..16].try_into().expect("an address");
        Some((seen.destination, (address, u16::from_be_bytes([inner[20], inner[21]])).into()))
    }

    /// Gives the staying service another ring, with its second member alone.
    pub(crate) fn change_ring(&self) {
        let ring = OTHER_RING.get().expect("a gateway");
        ModelCells::Modelled(&self.descriptor).store(0, ring.0);
    }

    /// Lets every client's stay end.
    pub(crate) fn end_stays(&self) {
        self.wait(u64::from(STAY + 1) * clock::TICK_NS);
    }

    /// The members that clients are with.
    pub(crate) fn remembered(&self) -> Vec<u32> {
        let cells = ModelCells::Modelled(&self.affinity);
        let members = (0..4).map(|way| AffinityWord(cells.load(2 * way)).member());
        members.filter(|member| *member != 0).collect()
    }

    /// Errors in a row of a backend, and whether it is tripped.
    pub(crate) fn errors(&self, backend: usize) -> (u64, bool) {
        let cells = ModelCells::Modelled(&self.backends[backend - 1]);
        (cells.load(2), cells.load(1) > self.now())
    }

    /// One pass of the agent's sweep.
    pub(crate) fn sweep(&self) {
        let config = GATEWAY.maps.config.as_ref().expect("settings");
        sweep::flow_bucket(&self, config, 0, clock::tick(self.now()), &mut Quiet);
        sweep::reverse_bucket::<V4, _>(&self, config, 0, &mut Quiet);
    }

    /// The sweep's second look at the ports, where the first happened to see each of them without an entry.
    pub(crate) fn sweep_suspected_ports(&self) {
        let config = GATEWAY.maps.config.as_ref().expect("settings");
        let mut suspects = [0; PORT_BITMAP_WORDS];
        suspects[0] = !self.blocked.load(std::sync::atomic::Ordering::Relaxed);
        sweep::ports::<V4, _>(&self, config, 1, 0, &mut suspects, &mut Quiet);
    }

    fn now(&self) -> u64 {
        self.now.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Checks that the last hop is known.
    pub(crate) fn check_last_hop(&self) {
        assert!(LastHopWord(ModelCells::Modelled(&self.last_hop).load(0)).is_in_use());
    }

    /// Checks that no port is in two reverse entries.
    pub(crate) fn check_ports(&self) {
        let reverse = ModelCells::Modelled(&self.reverse);
        let words = (0..16).step_by(4).map(|first| ReverseWord(reverse.load(first)));
        let mut ports = BTreeSet::new();
        for word in words.filter(|word| word.is_live()) {
            assert!(ports.insert((word.backend(), word.port())), "one port in two entries");
        }
    }

    /// Checks, with no packet on its way, that flows and reverse entries are in pairs, that each port belongs to
    /// one entry, that no flow is there twice and no lock held. Returns the states of the live flows.
    pub(crate) fn check(&self) -> Vec<FlowState> {
        let flows = ModelCells::Modelled(&self.flows);
        let reverse = ModelCells::Modelled(&self.reverse);
        let words: Vec<_> = (0..4).map(|way| FlowWord(flows.load(2 * way))).collect();
        let config = GATEWAY.maps.config.as_ref().expect("settings");
        let mut live = Vec::new();
        let mut tags = BTreeSet::new();
        for (way, word) in words.iter().enumerate() {
            assert_ne!(word.state(), FlowState::Claimed, "nobody is at work");
            if word.state().is_live() {
                live.push((way as u32, word.version(), word.port()));
                let tag = word.masked_tag(flows.load(2 * way + 1) & BODY);
                assert!(tags.insert(tag), "one flow in two slots: {words:?}");
            }
        }
        let mut named = Vec::new();
        let mut taken = [self.blocked.load(std::sync::atomic::Ordering::Relaxed), 0];
        for first in (0..16).step_by(4) {
            let word = ReverseWord(reverse.load(first));
            if word.is_live() {
                let (flow, _) = unpack_forward(reverse.load(first + 1));
                named.push((flow.slot, flow.version, word.port()));
                let bit = 1 << (word.port() - config.port_base);
                let taken = &mut taken[word.backend() as usize - 1];
                assert_eq!(*taken & bit, 0, "one port in two entries");
                *taken |= bit;
            } else {
                assert!(word.is_empty(), "nobody is at work");
            }
        }
        live.sort_unstable();
        named.sort_unstable();
        assert_eq!(live, named, "forward entries, and what reverse entries name");
        let ports = [0, 1].map(|backend| ModelCells::Modelled(&self.ports[backend]).load(0));
        assert_eq!(ports, taken, "ports taken, and those of entries");
        assert!(self.locks.iter().all(|lock| ModelCells::Modelled(lock).load(0) == 0), "a lock is held");
        words.iter().map(|word| word.state()).filter(|state| state.is_live()).collect()
    }
}

/// Nothing is unwanted, and nobody asks.
struct Quiet;

impl Observer for Quiet {
    fn flow(&mut self, _state: FlowState, _member: u32) {}
    fn evicted(&mut self, _ended: &Ended) {}
    fn last_hop(&mut self, _index: u16) {}
    fn mended(&mut self) {}
    fn is_unwanted(&self, _member: u32) -> bool {
        false
    }
}

impl<'a> Tables for &'a Model {
    type Cells = ModelCells<'a>;

    fn config(&self) -> Option<&Config> {
        GATEWAY.maps.config.as_ref()
    }

    fn flow_bucket(&self, index: u32) -> Option<Self::Cells> {
        (index == 0).then_some(ModelCells::Modelled(&self.flows))
    }

    fn handshakes(&self, index: u32) -> Option<Self::Cells> {
        (index == 0).then_some(ModelCells::Modelled(&self.handshakes))
    }

    fn lock(&self, index: u32) -> Option<Self::Cells> {
        // Two stripes are enough for two processors.
        Some(ModelCells::Modelled(&self.locks[(index % LOCKS) as usize]))
    }

    fn reverse_v4_bucket(&self, index: u32) -> Option<Self::Cells> {
        (index == 0).then_some(ModelCells::Modelled(&self.reverse))
    }

    fn reverse_v6_bucket(&self, _index: u32) -> Option<Self::Cells> {
        None
    }

    fn ports(&self, index: u32) -> Option<Self::Cells> {
        let row = self.ports.get((index as usize).wrapping_sub(1))?;
        Some(ModelCells::Modelled(row))
    }

    fn last_hop(&self, index: u32) -> Option<Self::Cells> {
        if self.learns_last_hop.load(std::sync::atomic::Ordering::Relaxed) {
            return Some(ModelCells::Modelled(&self.last_hop));
        }
        GATEWAY.maps.last_hops.get(index).map(ModelCells::Plain)
    }

    fn member(&self, index: u32) -> Option<Self::Cells> {
        GATEWAY.maps.members.get(index).map(ModelCells::Plain)
    }

    fn backend(&self, index: u32) -> Option<Self::Cells> {
        let row = self.backends.get((index as usize).wrapping_sub(1))?;
        Some(ModelCells::Modelled(row))
    }
}

impl Maps for &Model {
    fn service_v4(&self, key: &ServiceKeyV4) -> Option<u32> {
        GATEWAY.maps.services_v4.get(key).copied()
    }

    fn service_v6(&self, _key: &ServiceKeyV6) -> Option<u32> {
        None
    }

    fn source_v4(&self, key: &SourceV4) -> bool {
        GATEWAY.maps.cpu(0).source_v4(key)
    }

    fn source_v6(&self, _key: &SourceV6) -> bool {
        false
    }

    fn vip_v4(&self, key: &VipKeyV4) -> Option<u32> {
        GATEWAY.maps.vips_v4.get(key).copied()
    }

    fn vip_v6(&self, _key: &VipKeyV6) -> Option<u32> {
        None
    }

    fn backend_v4(&self, key: &BackendKeyV4) -> Option<u32> {
        GATEWAY.maps.backends_v4.get(key).copied()
    }

    fn backend_v6(&self, _key: &BackendKeyV6) -> Option<u32> {
        None
    }

    fn address_filter(&self, index: u32) -> u64 {
        GATEWAY.maps.cpu(0).address_filter(index)
    }

    fn descriptor(&self, index: u32) -> Option<Self::Cells> {
        if index == STAYING {
            return Some(ModelCells::Modelled(&self.descriptor));
        }
        GATEWAY.maps.descriptors.get(index).map(ModelCells::Plain)
    }

    fn affinity(&self, index: u32) -> Option<Self::Cells> {
        (index == 0).then_some(ModelCells::Modelled(&self.affinity))
    }

    fn new_flows(&self, _index: u32) -> Option<Self::Cells> {
        None
    }

    fn syn(&self, index: u32) -> Option<Self::Cells> {
        GATEWAY.maps.syns.get(index).map(ModelCells::Plain)
    }

    fn fragment(&self, _index: u32) -> Option<Self::Cells> {
        None
    }

    fn flow_stats(&self, _index: u32) -> Option<Self::Cells> {
        None
    }

    fn ring_pair(&self, index: u32) -> Option<Self::Cells> {
        GATEWAY.maps.rings.get(index).map(ModelCells::Plain)
    }

    fn member_stats(&self, _member: u32, _member_count: u32) -> Option<Self::Cells> {
        None
    }

    fn count(&self, counter: Counter) {
        let count = match counter {
            Counter::FlowEstablished => &self.established,
            Counter::BackendTripped => &self.tripped,
            _ => return,
        };
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    fn event(&self, _time: u64, _limit: u32, _lost: Counter, _words: impl FnOnce() -> [u64; 7]) {}

    fn refusals(&self) -> Option<Self::Cells> {
        None
    }

    fn now(&self) -> u64 {
        Model::now(self)
    }
}
