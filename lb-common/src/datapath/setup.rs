//! A packet to a VIP that no flow knows: the service, the member, the port, the entries.

use core::hint::black_box;

use super::{
    Cells, Family, Maps, Outcome, PacketMut, affinity, events,
    flow_table::{self, Displaced, Slot},
    last_hop, limit,
    member::MemberHead,
    parse::{self, Ip, Link, Ports},
    ports, request, rescue,
    reverse_table::NewReverse,
    select::{self, Search},
    sources, syn,
    tcp::{self, ClientStep, Flags},
};
use crate::{
    abi::{
        CloseReason, Config, Counter, EventKind, FLOW_WAYS, FlowState, FlowWord, HandshakeWord, TCP, UDP,
        member_flags,
    },
    clock,
    hash::{FlowHash, HashKey},
};

/// Tries for a flow's lock before the packet is given up.
const LOCK_TRIES: u64 = 64;

/// Makes a flow for its first packet.
#[inline(always)]
pub(super) fn open<F: Family, P: PacketMut, M: Maps>(
    packet: &P,
    maps: &M,
    config: &Config,
    link: &Link,
    ip: &Ip<F>,
) -> Outcome {
    let Some(ports) = parse::ports(packet, ip.transport_offset) else {
        return Outcome::Drop(Counter::DropMalformed);
    };
    let Some(service) = F::service(maps, ip.destination, ports.destination, ip.protocol) else {
        return Outcome::Drop(Counter::DropClosedPort);
    };
    // First of all: who is not let in learns nothing else.
    let Some((hash, ring_hash, network)) = admitted::<F, M>(maps, config, ip, ports, service) else {
        return Outcome::Drop(Counter::DropSource);
    };
    let flags = Flags(if ip.protocol == TCP {
        packet.read::<u8, { request::TCP_FLAGS }>(ip.transport_offset).unwrap_or(0)
    } else {
        0
    });
    if ip.protocol == TCP && !flags.is_open() {
        return Outcome::Drop(Counter::DropNotSyn);
    }
    if ip.ttl <= 1 {
        return Outcome::Drop(Counter::DropTtl);
    }
    let isn = if ip.protocol == TCP { syn::sequence(packet, ip.transport_offset).unwrap_or(0) } else { 0 };
    let isn = config.forget(isn);
    let now = maps.now();
    if network != NO_LIMIT && !limit::admits(maps, config, service, network, now) {
        return Outcome::Drop(Counter::DropNewFlowLimit);
    }
    let last_hop = match last_hop::learn(packet, maps, config, link, clock::tick(now)) {
        Ok(index) => index,
        Err(counter) => return Outcome::Drop(counter),
    };
    let last_hop = config.forget(last_hop as u32) as u16;
    let opening = Opening { service, flags, isn, hash, ring_hash, last_hop, now };

    // A compare-exchange on a slot doesn't make a key unique: two CPUs could insert it into two slots.
    let lock = match lock(maps, hash) {
        Ok(lock) => lock,
        Err(counter) => return Outcome::Drop(counter),
    };
    let made = locked::<F, M>(maps, config, ip, ports, &opening);
    lock.compare_exchange(0, 1, 0);

    let counter = match made {
        Ok(Opened::New) => return Outcome::Opened(F::NETWORK),
        Ok(Opened::Joined) => return Outcome::Again,
        Err(counter) => counter,
    };
    // One place that tells the agent, outside the lock.
    let kind = match counter {
        Counter::DropTableFull => Some(EventKind::TableFull),
        Counter::DropPortsExhausted => Some(EventKind::PortsExhausted),
        _ => None,
    };
    if let Some(kind) = kind {
        let about = events::About::<F> {
            kind,
            client: ip.source,
            client_port: ports.source,
            protocol: ip.protocol,
            flow: NO_FLOW,
            slot: 0,
            service,
            detail: 0,
            reason: 0,
            before_generation: 0,
        };
        events::send(maps, config.events_per_tick, Counter::EventLost, &about);
    }
    Outcome::Drop(counter)
}

/// What stands for a client's network where its flows are not limited.
const NO_LIMIT: u64 = 0;

/// The hash of a flow that the client may begin, its place in rings, and the hash by which flows of the client's network
/// are counted, where they are limited. A scope of its own: the kernel's stack has no
/// room for a flow's identity beside all that comes later.
#[inline(always)]
fn admitted<F: Family, M: Maps>(
    maps: &M,
    config: &Config,
    ip: &Ip<F>,
    ports: Ports,
    service: u32,
) -> Option<(FlowHash, u64, u64)> {
    let mut identity = Identity::<F> {
        source: ip.source,
        destination: ip.destination,
        ports: super::port_word(ports),
        protocol: ip.protocol,
    };
    if !sources::admits(maps, service, &identity) {
        return None;
    }
    let hash = identity.flow_hash(config);
    // Read anew: the verifier would go on with each of the answers that it knows of.
    let port_mask = sources::asked(maps, service).port_mask();
    identity.ports &= super::port_word(Ports { source: port_mask, destination: !0 });
    let ring_hash = hash_half::<F>(&config.ring_key, &identity, false);
    let mut network = NO_LIMIT;
    let asked = sources::asked(maps, service);
    if asked.interval() != 0 {
        identity.source = F::network(identity.source, asked.beyond());
        identity.ports = super::port_word(Ports { source: 0, ..ports });
        network = hash_half::<F>(&config.flow_key, &identity, false);
    }
    Some((hash, ring_hash, network))
}

/// Takes the lock of a key's stripe; whoever has it gives it back by an exchange from 1 to 0.
///
/// # Errors
/// Why the packet is to be dropped.
#[inline(always)]
pub(super) fn lock<M: Maps>(maps: &M, hash: FlowHash) -> Result<M::Cells, Counter> {
    let Some(lock) = maps.lock(hash.stripe()) else { return Err(Counter::DropNotReady) };
    let mut tries = 0;
    while !lock.replace(0, 0, 1) {
        tries += 1;
        if tries == LOCK_TRIES {
            return Err(Counter::DropInsertContended);
        }
    }
    Ok(lock)
}

/// A flow's hash, and its place in rings. Ports are the client's and the service's.
#[inline(always)]
pub(super) fn hashes<F: Family>(
    config: &Config,
    client: F::Address,
    vip: F::Address,
    ports: Ports,
    protocol: u8,
) -> (FlowHash, u64) {
    let identity =
        Identity::<F> { source: client, destination: vip, ports: super::port_word(ports), protocol };
    (identity.flow_hash(config), hash_half::<F>(&config.ring_key, &identity, false))
}

/// The place in rings. Without the client's port it is that of all its flows.
#[inline(always)]
pub(super) fn ring_hash<F: Family>(
    config: &Config,
    client: F::Address,
    vip: F::Address,
    ports: Ports,
    protocol: u8,
) -> u64 {
    let identity =
        Identity::<F> { source: client, destination: vip, ports: super::port_word(ports), protocol };
    hash_half::<F>(&config.ring_key, &identity, false)
}

/// The keyed hash of two addresses, and of what tells apart that which goes from one to the other.
#[inline(always)]
pub(super) fn pair_hash<F: Family>(
    config: &Config,
    source: F::Address,
    destination: F::Address,
    what: u32,
    protocol: u8,
) -> FlowHash {
    Identity::<F> { source, destination, ports: what, protocol }.flow_hash(config)
}

/// What makes a flow that flow.
pub(super) struct Identity<F: Family> {
    /// The client.
    pub source: F::Address,
    destination: F::Address,
    ports: u32,
    protocol: u8,
}

impl<F: Family> Identity<F> {
    #[inline(always)]
    fn flow_hash(&self, config: &Config) -> FlowHash {
        FlowHash {
            low: hash_half::<F>(&config.flow_key, self, false),
            high: hash_half::<F>(&config.flow_key, self, true),
        }
    }
}

/// One half of a keyed hash. A call: inlined three times, its intermediate values would fill the kernel's stack.
#[inline(never)]
fn hash_half<F: Family>(key: &HashKey, identity: &Identity<F>, high: bool) -> u64 {
    F::hash_half(key, identity.source, identity.destination, identity.ports, identity.protocol, high)
}

/// The word of a flow that could not be made.
const NO_FLOW: FlowWord = FlowWord::new(FlowState::Empty, 0);

/// A packet's flow.
enum Opened {
    /// It was made for this packet.
    New,
    /// It was there after all.
    Joined,
}

/// What is known of a new flow before it has the key's lock.
struct Opening {
    service: u32,
    flags: Flags,
    /// The SYN's sequence number, host order.
    isn: u32,
    hash: FlowHash,
    ring_hash: u64,
    last_hop: u16,
    /// In nanoseconds.
    now: u64,
}

/// What happens under the key's lock: find the flow after all, or make it.
#[inline(always)]
fn locked<F: Family, M: Maps>(
    maps: &M,
    config: &Config,
    ip: &Ip<F>,
    ports: Ports,
    opening: &Opening,
) -> Result<Opened, Counter> {
    let &Opening { service, flags, isn, hash, ring_hash, last_hop, now: time } = opening;
    let now = clock::tick(time);
    if let Some(found) = flow_table::find(maps, config, hash) {
        let existing = Slot { way: config.forget(found.way) & (FLOW_WAYS - 1), ..found };
        // Masked anew where it is used: the verifier of Linux 6.1 forgets a bound that was kept on the stack.
        let bounded = |slot: &Slot<M::Cells>| Slot { way: black_box(slot.way) & (FLOW_WAYS - 1), ..*slot };
        if is_joined(maps, ip.protocol, flags, &existing) {
            bounded(&existing).touch(now);
            return Ok(Opened::Joined);
        }
        // Somebody moved the old flow at this very moment: making the new one beside it would give its key two
        // entries. The client will send again.
        if !flow_table::evict(maps, config, &bounded(&existing)) {
            return Err(Counter::DropInsertContended);
        }
        maps.count(Counter::FlowReclaimed);
        // What was closed has been told.
        if maps.tells_displaced() && existing.word.state() as u8 != FlowState::Closed as u8 {
            let end = events::End::<F> {
                client: ip.source,
                client_port: ports.source,
                word: existing.word,
                flow: existing.reference(),
                tag: hash.tag(),
                service,
                reason: CloseReason::of(existing.word.state(), CloseReason::BackendRemoved),
                idle: 0,
            };
            events::ended(maps, config, &end);
        }
    }
    let search = Search {
        service,
        ring_hash,
        now: time,
        tried: [0; 2],
        cluster: 0,
        candidates: select::FALLBACK_CANDIDATES,
    };
    let known = affinity::find(maps, config, &search);
    let selected = select::select_after(maps, config, &search, known).ok_or(Counter::DropNoBackend)?;
    let Some((slot, displaced)) = flow_table::claim(maps, config, hash, now) else {
        return Err(Counter::DropTableFull);
    };
    match displaced {
        Displaced::Nothing => {}
        Displaced::Dead => maps.count(Counter::FlowReclaimed),
        Displaced::HalfOpen => maps.count(Counter::FlowDisplaced),
    }
    let new = NewReverse::<F> {
        backend: selected.head.backend(),
        flow: slot.reference(),
        client: ip.source,
        client_port: ports.source,
        member: selected.index,
        generation: selected.head.generation(),
        last_hop,
    };
    let Some(allocation) = ports::allocate::<F, M>(maps, config, &new, hash.port_start(), now) else {
        flow_table::unclaim(slot);
        return Err(Counter::DropPortsExhausted);
    };
    if allocation.reclaimed {
        maps.count(Counter::PortReclaimed);
    }
    let state = if ip.protocol == UDP { FlowState::UdpNew } else { FlowState::SynSent };
    // `opened` says whether a SYN may go to another backend.
    let word = FlowWord::new(state, slot.word.version()).with_attempt(rescue::NO_RESCUE).with_path(
        selected.index,
        selected.head.generation(),
        allocation.snat,
        allocation.port,
    );
    if ip.protocol == TCP
        && let Some(cells) = maps.handshakes(slot.bucket)
    {
        cells.store(slot.way as usize, HandshakeWord::sent(word.version(), isn, time, 0).0);
    }
    flow_table::publish(slot, hash, word, now);
    maps.count(Counter::FlowOpened);
    if selected.tripped {
        maps.count(Counter::FlowFailedOpen);
    }
    if let Some(stats) = maps.member_stats(selected.index, config.member_count) {
        stats.add(0, 1);
    }
    Ok(Opened::New)
}

/// Whether a packet belongs to a flow, which perhaps another CPU made meanwhile; else it begins a new one in its
/// place.
#[inline(always)]
fn is_joined<M: Maps>(maps: &M, protocol: u8, flags: Flags, existing: &Slot<M::Cells>) -> bool {
    let Some(member) = maps.member(existing.word.member()) else { return false };
    let head = MemberHead::load(member);
    if !head.is_of(existing.word) || (protocol == UDP && head.has(member_flags::REMOVED)) {
        return false;
    }
    protocol != TCP || tcp::from_client(existing.word.state(), flags) != ClientStep::NewFlow
}
