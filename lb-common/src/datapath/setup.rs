//! A packet to a VIP that no flow knows: the service, the member, the port, the entries, and off it goes.

use super::{
    Cells, Family, Maps, Outcome, PacketMut, events,
    flow_table::{self, Displaced, Slot},
    last_hop,
    member::MemberHead,
    parse::{self, Ip, Link, Ports},
    ports, request,
    reverse_table::NewReverse,
    select,
    tcp::{self, ClientStep, Flags},
};
use crate::{
    abi::{Config, Counter, EventKind, FLOW_WAYS, FlowState, FlowWord, TCP, UDP, member_flags},
    clock,
    hash::{FlowHash, HashKey},
};

/// Tries for a flow's lock before the packet is given up.
const LOCK_TRIES: u64 = 64;

/// Makes a flow and forwards its first packet.
#[inline(always)]
pub(super) fn open<F: Family, P: PacketMut, M: Maps>(
    packet: &mut P,
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
    let now = clock::tick(maps.now());
    let identity = Identity {
        source: ip.source,
        destination: ip.destination,
        ports: super::port_word(ports),
        protocol: ip.protocol,
    };
    let hash = FlowHash {
        low: hash_half::<F>(&config.flow_key, &identity, false),
        high: hash_half::<F>(&config.flow_key, &identity, true),
    };
    let ring_hash = hash_half::<F>(&config.ring_key, &identity, false);
    let Some(last_hop) = last_hop::learn(packet, maps, config, link, now) else {
        return Outcome::Drop(Counter::DropLastHopsFull);
    };
    let last_hop = config.forget(last_hop as u32) as u16;

    // A compare-exchange on a slot doesn't make a key unique: two CPUs could insert it into two slots.
    let Some(lock) = maps.lock(hash.stripe()) else { return Outcome::Drop(Counter::DropNotReady) };
    let mut tries = 0;
    while !lock.replace(0, 0, 1) {
        tries += 1;
        if tries == LOCK_TRIES {
            return Outcome::Drop(Counter::DropInsertContended);
        }
    }
    let made = locked::<F, M>(maps, config, ip, ports, service, flags, hash, ring_hash, last_hop, now);
    lock.compare_exchange(0, 1, 0);

    // One place that tells the agent, outside the lock.
    let (kind, word) = match &made {
        Ok(path) if path.is_new => (Some(EventKind::Opened), path.word),
        Err(Counter::DropTableFull) => (Some(EventKind::TableFull), NO_FLOW),
        Err(Counter::DropPortsExhausted) => (Some(EventKind::PortsExhausted), NO_FLOW),
        _ => (None, NO_FLOW),
    };
    if let Some(kind) = kind {
        events::send(maps, config, kind, ip.source, ports.source, ip, word, service);
    }
    match made {
        Ok(path) => {
            // The compiler keeps every address in the packet that it has computed; there is no room for that.
            let ip = &Ip {
                network_offset: config.forget(ip.network_offset as u32) as usize,
                transport_offset: config.forget(ip.transport_offset as u32) as usize,
                ..*ip
            };
            request::send(packet, maps, config, link, ip, ports, path.word, path.member, path.head)
        }
        Err(counter) => Outcome::Drop(counter),
    }
}

/// What makes a flow that flow.
struct Identity<F: Family> {
    source: F::Address,
    destination: F::Address,
    ports: u32,
    protocol: u8,
}

/// One half of a keyed hash. A call: inlined three times, its intermediate values would fill the kernel's stack.
#[inline(never)]
fn hash_half<F: Family>(key: &HashKey, identity: &Identity<F>, high: bool) -> u64 {
    let hash = F::hash(key, identity.source, identity.destination, identity.ports, identity.protocol);
    if high { hash.high } else { hash.low }
}

/// The word of a flow that could not be made.
const NO_FLOW: FlowWord = FlowWord::new(FlowState::Empty, 0);

/// Where a packet goes.
struct Path<C> {
    /// Its flow's word.
    word: FlowWord,
    /// Its member's line.
    member: C,
    /// The line's cell 2.
    head: MemberHead,
    /// The flow was made for this packet.
    is_new: bool,
}

/// What happens under the key's lock: find the flow after all, or make it.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn locked<F: Family, M: Maps>(
    maps: &M,
    config: &Config,
    ip: &Ip<F>,
    ports: Ports,
    service: u32,
    flags: Flags,
    hash: FlowHash,
    ring_hash: u64,
    last_hop: u16,
    now: u16,
) -> Result<Path<M::Cells>, Counter> {
    if let Some(found) = flow_table::find(maps, config, hash) {
        let existing = Slot { way: config.forget(found.way) & (FLOW_WAYS - 1), ..found };
        if let Some(path) = join(maps, ip.protocol, flags, &existing) {
            existing.touch(now);
            return Ok(path);
        }
        // Somebody moved the old flow at this very moment: making the new one beside it would give its key two
        // entries. The client will send again.
        if !flow_table::evict(maps, config, &existing) {
            return Err(Counter::DropInsertContended);
        }
        maps.count(Counter::FlowReclaimed);
    }
    let selected = select::select(maps, service, ring_hash).ok_or(Counter::DropNoBackend)?;
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
    let word = FlowWord::new(state, slot.word.version()).with_path(
        selected.index,
        selected.head.generation(),
        allocation.snat,
        allocation.port,
    );
    flow_table::publish(slot, hash, word, now);
    maps.count(Counter::FlowOpened);
    if let Some(stats) = maps.member_stats(selected.index, config.member_count) {
        stats.add(0, 1);
    }
    Ok(Path { word, member: selected.cells, head: selected.head, is_new: true })
}

/// The path of a flow that another CPU made meanwhile, or that this packet belongs to after all; `None` where
/// the packet begins a new flow in its place.
#[inline(always)]
fn join<M: Maps>(maps: &M, protocol: u8, flags: Flags, existing: &Slot<M::Cells>) -> Option<Path<M::Cells>> {
    let member = maps.member(existing.word.member())?;
    let head = MemberHead::load(member);
    if !head.is_of(existing.word) || (protocol == UDP && head.has(member_flags::REMOVED)) {
        return None;
    }
    if protocol == TCP && tcp::from_client(existing.word.state(), flags) == ClientStep::NewFlow {
        return None;
    }
    Some(Path { word: existing.word, member, head, is_new: false })
}
