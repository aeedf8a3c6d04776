//! A packet to a VIP that no flow knows: the service, the member, the port, the entries, and off it goes.

use super::{
    Cells, Family, Maps, Outcome, PacketMut, events,
    flow_table::{self, Displaced, Slot},
    last_hop,
    member::MemberHead,
    parse::{self, Ip, Link, Ports},
    request,
    reverse_table::{self, Allocation, NewReverse},
    select::{self, Selected},
    tcp::{self, ClientStep, Flags},
};
use crate::{
    abi::{Config, Counter, EventKind, FlowState, FlowWord, TCP, UDP, member_flags},
    clock,
    hash::FlowHash,
};

/// Tries for a flow's lock before the packet is given up.
const LOCK_TRIES: u32 = 64;

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
    let hash = super::flow_hash::<F>(config, ip, ports);
    let Some(last_hop) = last_hop::learn(packet, maps, config, link, now) else {
        return Outcome::Drop(Counter::DropLastHopsFull);
    };

    // A compare-exchange on a slot doesn't make a key unique: two CPUs could insert it into two slots.
    let Some(lock) = maps.lock(hash.stripe()) else { return Outcome::Drop(Counter::DropNotReady) };
    let mut tries = 0;
    while !lock.replace(0, 0, 1) {
        tries += 1;
        if tries == LOCK_TRIES {
            return Outcome::Drop(Counter::DropInsertContended);
        }
    }
    let made = locked::<F, M>(maps, config, ip, ports, service, flags, hash, last_hop, now);
    lock.compare_exchange(0, 1, 0);

    match made {
        Ok((flow, member, head)) => request::send(packet, maps, config, link, ip, ports, flow, member, head),
        Err(counter) => Outcome::Drop(counter),
    }
}

/// A flow's word, its member's line and cell 2.
type Path<C> = (FlowWord, C, MemberHead);

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
    last_hop: u16,
    now: u16,
) -> Result<Path<M::Cells>, Counter> {
    if let Some(existing) = flow_table::find(maps, config, hash) {
        if let Some(path) = join(maps, ip.protocol, flags, &existing) {
            existing.touch(now);
            return Ok(path);
        }
        if flow_table::evict(maps, config, &existing) {
            maps.count(Counter::FlowReclaimed);
        }
    }
    let ring_hash = super::ring_hash::<F>(config, ip, ports);
    let selected = select::select(maps, service, ring_hash).ok_or(Counter::DropNoBackend)?;
    let Some((slot, displaced)) = flow_table::claim(maps, config, hash, now) else {
        let none = FlowWord::new(FlowState::Empty, 0);
        events::send(maps, config, EventKind::TableFull, ip.source, ports.source, ip, none, service);
        return Err(Counter::DropTableFull);
    };
    match displaced {
        Displaced::Nothing => {}
        Displaced::Dead => maps.count(Counter::FlowReclaimed),
        Displaced::HalfOpen => maps.count(Counter::FlowDisplaced),
    }
    let Some((snat, allocation)) =
        allocate::<F, M>(maps, config, ip, ports, &selected, &slot, hash, last_hop, now)
    else {
        flow_table::unclaim(slot);
        let none = FlowWord::new(FlowState::Empty, 0);
        events::send(maps, config, EventKind::PortsExhausted, ip.source, ports.source, ip, none, service);
        return Err(Counter::DropPortsExhausted);
    };
    if allocation.reclaimed {
        maps.count(Counter::PortReclaimed);
    }
    let state = if ip.protocol == UDP { FlowState::UdpNew } else { FlowState::SynSent };
    let word = FlowWord::new(state, slot.word.version()).with_path(
        selected.index,
        selected.head.generation(),
        snat,
        allocation.port,
    );
    flow_table::publish(slot, hash, word, now);
    maps.count(Counter::FlowOpened);
    if let Some(stats) = maps.member_stats(selected.index, config.member_count) {
        stats.add(0, 1);
    }
    events::send(maps, config, EventKind::Opened, ip.source, ports.source, ip, word, service);
    Ok((word, selected.cells, selected.head))
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
    Some((existing.word, member, head))
}

/// Takes a port at the first SNAT address that has one, beginning with the one that the hash names.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn allocate<F: Family, M: Maps>(
    maps: &M,
    config: &Config,
    ip: &Ip<F>,
    ports: Ports,
    selected: &Selected<M::Cells>,
    slot: &Slot<M::Cells>,
    hash: FlowHash,
    last_hop: u16,
    now: u16,
) -> Option<(u8, Allocation)> {
    let count = F::snat_count(config);
    let new = NewReverse::<F> {
        backend: selected.head.backend(),
        flow: slot.reference(),
        client: ip.source,
        client_port: ports.source,
        member: selected.index,
        generation: selected.head.generation(),
        last_hop,
    };
    let mut snat = (hash.port_start() as u32 & 0xff).wrapping_mul(count) >> 8;
    let mut tried = 0;
    while tried < count && tried < SNAT_TRIES {
        tried += 1;
        let found = reverse_table::allocate::<F, M>(maps, config, &new, snat as u8, hash.port_start(), now);
        if let Some(allocation) = found {
            return Some((snat as u8, allocation));
        }
        snat += 1;
        if snat >= count {
            snat = 0;
        }
    }
    None
}

/// SNAT addresses that a new flow tries.
const SNAT_TRIES: u32 = 2;
