//! A client's SYN for a flow whose backend refused it, or left it unanswered for a time: it goes to another one.

use super::{
    Cells, Family, Maps, Outcome, PacketMut, events,
    flow_table::{self, Slot},
    member::{self, MemberHead},
    parse::{self, Ip, Ports},
    ports,
    reverse_table::{self, NewReverse},
    select::{self, Search, Selected},
    setup, syn, trip,
};
use crate::{
    abi::{Config, Counter, EventKind, FLOW_WAYS, FlowState, FlowWord, HandshakeWord, ReactionWord, TCP},
    clock,
    hash::FlowHash,
};

/// Backends that a SYN is taken to after the first one.
pub(super) const MOST_RESCUES: u8 = 2;
/// The attempt of a flow whose SYN goes to no other backend: not any more, or not before `syn::admit`.
pub(super) const NO_RESCUE: u8 = 3;
/// A SYN that comes again sooner proves nothing: 54 units of 2^24 ns are 0.906 s, and a client that knows nothing
/// of the way sends it again after 1 s (RFC 6298, §2.1).
const UNANSWERED_UNITS: u64 = 54;

/// Whether the flow's next SYN may go to another backend.
#[inline(always)]
pub(super) fn is_due<M: Maps>(maps: &M, slot: &Slot<M::Cells>, now: u64) -> bool {
    match slot.word.state() {
        FlowState::Refused => true,
        FlowState::SynSent if slot.word.attempt() != NO_RESCUE => {
            let kept = handshake(maps, slot);
            kept.is_unanswered(slot.word.version()) && kept.is_older_than(UNANSWERED_UNITS, now)
        }
        _ => false,
    }
}

/// What is known of a flow's handshake.
#[inline(always)]
pub(super) fn handshake<M: Maps>(maps: &M, slot: &Slot<M::Cells>) -> HandshakeWord {
    HandshakeWord(maps.handshakes(slot.bucket).map_or(0, |cells| cells.load(slot.way as usize)))
}

/// The search for the backend after the one that a flow has.
#[inline(always)]
pub(super) fn next<M: Maps>(
    maps: &M,
    slot: &Slot<M::Cells>,
    member: M::Cells,
    ring_hash: u64,
    now: u64,
) -> Search {
    // The second time another cluster is better: where one backend after the other fails, all of them may.
    let cluster = if slot.word.attempt() == 0 {
        0
    } else {
        maps.backend(MemberHead::load(member).backend()).map_or(0, select::cluster)
    };
    let before = if slot.word.attempt() == 0 { 0 } else { handshake(maps, slot).before() };
    Search {
        service: member::service(member),
        ring_hash,
        now,
        tried: [slot.word.member(), before],
        cluster,
        candidates: select::RESCUE_CANDIDATES,
    }
}

/// Gives the SYN's flow another backend where that is due.
#[inline(always)]
pub(super) fn retry<F: Family, P: PacketMut, M: Maps>(
    packet: &P,
    maps: &M,
    config: &Config,
    ip: &Ip<F>,
) -> Outcome {
    let Some(ports) = parse::ports(packet, ip.transport_offset) else {
        return Outcome::Drop(Counter::DropMalformed);
    };
    let has_data = syn::has_data(packet, ip);
    let (hash, ring_hash) = setup::hashes::<F>(config, ip.source, ip.destination, ports, ip.protocol);
    let now = maps.now();
    let lock = match setup::lock(maps, hash) {
        Ok(lock) => lock,
        Err(counter) => return Outcome::Drop(counter),
    };
    let tried = locked::<F, M>(maps, config, ip, ports, hash, ring_hash, has_data, now);
    lock.compare_exchange(0, 1, 0);
    match tried {
        Ok(tried) => {
            report(maps, config, ip, ports, hash, &tried, now);
            Outcome::Again
        }
        Err(counter) => Outcome::Drop(counter),
    }
}

/// What became of a flow.
struct Tried {
    /// Its word as it was.
    before: FlowWord,
    /// Its word.
    word: FlowWord,
    /// Its slot.
    slot: u32,
    /// Its service.
    service: u32,
    /// The backend that left the SYN unanswered; 0: none.
    silent: u32,
}

/// Counts, and tells the agent.
#[inline(always)]
fn report<F: Family, M: Maps>(
    maps: &M,
    config: &Config,
    ip: &Ip<F>,
    ports: Ports,
    hash: FlowHash,
    tried: &Tried,
    now: u64,
) {
    let &Tried { before, word, slot, service, silent } = tried;
    if silent != 0 {
        maps.count(Counter::ConnectUnanswered);
        let errors = trip::failed(maps, reaction(maps, service), silent, now);
        if errors != 0 {
            maps.count(Counter::BackendTripped);
            events::tripped::<F, M>(maps, config, before, service, errors);
        }
    }
    if word.member() != before.member() {
        maps.count(Counter::FlowRescued);
        if let Some(stats) = maps.member_stats(word.member(), config.member_count) {
            stats.add(0, 1);
        }
        if events::noted(maps, service).notes(hash.tag()) {
            let about = events::About::<F> {
                kind: EventKind::Rescued,
                client: ip.source,
                client_port: ports.source,
                protocol: TCP,
                flow: word,
                slot,
                service,
                detail: before.member(),
                reason: 0,
                before_generation: before.generation(),
            };
            events::log(maps, config, &about);
        }
    }
}

/// What failed connections of a service lead to.
#[inline(always)]
pub(super) fn reaction<M: Maps>(maps: &M, service: u32) -> ReactionWord {
    ReactionWord(maps.descriptor(service).map_or(0, |cells| cells.load(5)))
}

/// What happens under the key's lock: give the flow another path, if it still has no answer.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn locked<F: Family, M: Maps>(
    maps: &M,
    config: &Config,
    ip: &Ip<F>,
    ports: Ports,
    hash: FlowHash,
    ring_hash: u64,
    has_data: bool,
    now: u64,
) -> Result<Tried, Counter> {
    let found = flow_table::find(maps, config, hash).ok_or(Counter::DropMoved)?;
    let slot = Slot { way: config.forget(found.way) & (FLOW_WAYS - 1), ..found };
    let before = slot.word;
    let member = maps.member(before.member()).ok_or(Counter::DropStaleMember)?;
    let head = MemberHead::load(member);
    if !head.is_of(before) {
        return Err(Counter::DropStaleMember);
    }
    let service = member::service(member);
    let number = slot.reference().slot;
    let same = Tried { before, word: before, slot: number, service, silent: 0 };
    slot.touch(clock::tick(now));
    if !is_due(maps, &slot, now) {
        return Ok(same);
    }
    // From here on the flow is nobody's but ours: the old backend's answer finds no flow, and a SYN waits for the
    // lock. If that answer was faster, the flow is established with the old backend.
    let claimed = FlowWord::new(FlowState::Claimed, before.version());
    let slot = Slot { word: before.with_state(before.state()), ..slot };
    if !slot.cells.replace(flow_table::word_cell(slot.way), slot.word.0, claimed.0) {
        return Err(Counter::DropMoved);
    }
    let silent = if before.state() as u8 == FlowState::SynSent as u8 { head.backend() } else { 0 };
    // The first backend may have read the data.
    let word = if has_data {
        None
    } else {
        another_path::<F, M>(maps, config, ip, ports, hash, ring_hash, &slot, member, now)
    };
    let Some(word) = word else {
        // Once more to the same one, and no count for what comes after it.
        let word = before.with_state(FlowState::SynSent).with_attempt(NO_RESCUE);
        slot.cells.compare_exchange(flow_table::word_cell(slot.way), claimed.0, word.0);
        return Ok(Tried { before, word, slot: number, service, silent });
    };
    if let Some(cells) = maps.handshakes(slot.bucket) {
        let kept = HandshakeWord(cells.load(slot.way as usize)).sent_again(now, before.member());
        cells.store(slot.way as usize, kept.0);
    }
    flow_table::release(maps, config, before, slot.reference());
    slot.cells.compare_exchange(flow_table::word_cell(slot.way), claimed.0, word.0);
    Ok(Tried { before, word, slot: number, service, silent })
}

/// Another backend, a port there, and the reverse entry; `None` where the SYN has nowhere else to go.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn another_path<F: Family, M: Maps>(
    maps: &M,
    config: &Config,
    ip: &Ip<F>,
    client_ports: Ports,
    hash: FlowHash,
    ring_hash: u64,
    slot: &Slot<M::Cells>,
    member: M::Cells,
    now: u64,
) -> Option<FlowWord> {
    let word = slot.word;
    if word.attempt() >= MOST_RESCUES {
        return None;
    }
    // A rebuilt SYN has come from the backend: only the entry knows where the client is.
    let backend = MemberHead::load(member).backend();
    let last_hop = reverse_table::find::<F, M>(maps, config, backend, word.snat(), word.port())?.last_hop;
    let last_hop = config.forget(last_hop as u32) as u16;
    let search = next(maps, slot, member, ring_hash, now);
    let Selected { index, head, .. } = select::select(maps, config, &search)?;
    let new = NewReverse::<F> {
        backend: head.backend(),
        flow: slot.reference(),
        client: ip.source,
        client_port: client_ports.source,
        member: index,
        generation: head.generation(),
        last_hop,
    };
    let allocation = ports::allocate::<F, M>(maps, config, &new, hash.port_start(), clock::tick(now))?;
    if allocation.reclaimed {
        maps.count(Counter::PortReclaimed);
    }
    Some(FlowWord::new(FlowState::SynSent, word.version()).with_attempt(word.attempt() + 1).with_path(
        index,
        head.generation(),
        allocation.snat,
        allocation.port,
    ))
}
