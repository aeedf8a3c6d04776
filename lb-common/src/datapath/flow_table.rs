//! The forward table: from a flow's hash to its word. Layout and protocol: docs/adr/0001-flow-tables.md.

use super::{
    Cells, Family, Maps, Tables, V4, V6, events, member, member::MemberHead, reverse_table,
    reverse_table::Reverse,
};
use crate::{
    abi::{CloseReason, Config, FLOW_WAYS, FlowRef, FlowState, FlowWord, ReverseWord},
    clock::{self, Age},
    hash::FlowHash,
};

/// The low 48 bits of a tag cell; above them is the tick.
const TAG_MASK: u64 = 0xffff_ffff_ffff;

/// A flow's entry, found or claimed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot<C> {
    /// Its bucket.
    pub cells: C,
    /// Bucket's number.
    pub bucket: u32,
    /// Way, 0–3.
    pub way: u32,
    /// The word as it was read or written last.
    pub word: FlowWord,
}

impl<C: Cells> Slot<C> {
    /// Names this incarnation.
    #[inline(always)]
    pub(super) fn reference(&self) -> FlowRef {
        FlowRef { slot: self.bucket * FLOW_WAYS + self.way, version: self.word.version() }
    }

    /// The tag of the flow's hash. What is read of a slot that has changed hands means nothing.
    #[inline(always)]
    pub(super) fn tag(&self) -> u64 {
        // Masking is its own inverse.
        self.word.masked_tag(self.cells.load(tag_cell(self.way)))
    }

    /// Moves the word to another state unless somebody else moved it first.
    #[inline(always)]
    pub(super) fn advance(&self, state: FlowState) -> bool {
        self.cells.replace(word_cell(self.way), self.word.0, self.word.with_state(state).0)
    }

    /// Notes that the client was seen: a plain halfword store, at most once a tick. A doomed flow is saved
    /// first, by compare-exchange, so that the sweep's own exchange fails.
    #[inline(always)]
    pub(super) fn touch(&self, now: u16) {
        if self.word.is_doomed() {
            let saved = self.word.with_state(self.word.state());
            self.cells.replace(word_cell(self.way), self.word.0, saved.0);
        }
        if last_seen(self.cells, self.way) != now {
            self.cells.store_tick(tag_cell(self.way), now);
        }
    }
}

#[inline(always)]
pub(super) const fn word_cell(way: u32) -> usize {
    2 * way as usize
}

#[inline(always)]
const fn tag_cell(way: u32) -> usize {
    2 * way as usize + 1
}

/// Tick of the client's last packet.
#[inline(always)]
pub(super) fn last_seen<C: Cells>(cells: C, way: u32) -> u16 {
    (cells.load(tag_cell(way)) >> 48) as u16
}

/// Finds a live flow.
#[inline(always)]
pub(super) fn find<T: Tables>(tables: &T, config: &Config, hash: FlowHash) -> Option<Slot<T::Cells>> {
    let first = hash.first_bucket(config.flow_bucket_mask);
    if let Some(slot) = find_in(tables, first, hash.tag()) {
        return Some(slot);
    }
    find_in(tables, hash.second_bucket(config.flow_bucket_mask), hash.tag())
}

#[inline(always)]
fn find_in<T: Tables>(tables: &T, bucket: u32, tag: u64) -> Option<Slot<T::Cells>> {
    let cells = tables.flow_bucket(bucket)?;
    let mut way = 0;
    while way < FLOW_WAYS {
        let word = FlowWord(cells.load(word_cell(way)));
        let stored = cells.load(tag_cell(way)) & TAG_MASK;
        if stored == word.masked_tag(tag) && word.state().is_live() {
            return Some(Slot { cells, bucket, way, word });
        }
        way += 1;
    }
    None
}

/// What had to make room for a claimed slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Displaced {
    /// A free slot was taken.
    Nothing,
    /// A closed or expired flow made room.
    Dead,
    /// A half-open flow made room.
    HalfOpen,
}

/// How often the search for a slot starts again because another CPU was faster, or the flow that seemed
/// expired was not.
const CLAIM_ATTEMPTS: u64 = 4;

/// How attractive a slot is to a new flow; smaller is better. Below the class there is room for 16 bits that
/// order the slots of one class, and for two bits that number the way.
const SCORE_EMPTY: u32 = 0;
const SCORE_DEAD: u32 = 1 << 18;
const SCORE_HALF_OPEN: u32 = 2 << 18;
const SCORE_NONE: u32 = 3 << 18;

/// Claims a slot for a new flow and returns it in state [`FlowState::Claimed`], with what was displaced. The
/// caller holds the key's lock and knows that the key is not in the table. `None`: both buckets are full of
/// live flows.
#[inline(always)]
pub(super) fn claim<M: Maps>(
    maps: &M,
    config: &Config,
    hash: FlowHash,
    now: u16,
) -> Option<(Slot<M::Cells>, Displaced)> {
    let first = hash.first_bucket(config.flow_bucket_mask);
    let second = hash.second_bucket(config.flow_bucket_mask);
    let claimed = claim_in(maps, config, first, second, now);
    if claimed == NO_SLOT {
        return None;
    }
    let bucket = (claimed >> 4) as u32;
    let way = (claimed >> 2) as u32 & (FLOW_WAYS - 1);
    let displaced = match claimed & 3 {
        0 => Displaced::Nothing,
        1 => Displaced::Dead,
        _ => Displaced::HalfOpen,
    };
    let cells = maps.flow_bucket(bucket)?;
    let word = FlowWord(cells.load(word_cell(way)));
    Some((Slot { cells, bucket, way, word }, displaced))
}

/// What [`claim_in`] returns that found nothing.
const NO_SLOT: u64 = u64::MAX;

/// Claims a slot in one of two buckets: bucket (from bit 4), way (bits 2–3), what was displaced (bits 0–1). A
/// call that returns one register: inlined, it would not fit into the caller's stack frame.
#[inline(never)]
fn claim_in<M: Maps>(maps: &M, config: &Config, first_bucket: u32, second_bucket: u32, now: u16) -> u64 {
    let mut attempt = 0;
    while attempt < CLAIM_ATTEMPTS {
        attempt += 1;
        let first = best_in(maps, config, first_bucket, now);
        let second = best_in(maps, config, second_bucket, now);
        // The less loaded bucket wins: the score of an empty slot is the number of used ones beside it.
        let (bucket, best) =
            if second >> 2 < first >> 2 { (second_bucket, second) } else { (first_bucket, first) };
        if best >= SCORE_NONE {
            return NO_SLOT;
        }
        let Some(cells) = maps.flow_bucket(bucket) else { return NO_SLOT };
        let way = best & (FLOW_WAYS - 1);
        let victim = FlowWord(cells.load(word_cell(way)));
        let state = victim.state();
        // Another CPU may have taken the slot since the search, or claimed it: it must still be of that class.
        let age = clock::age(now, last_seen(cells, way));
        if score(config, state, age, 0, true) / SCORE_DEAD != best / SCORE_DEAD {
            continue;
        }
        // The search looked at the client's side only.
        if best < SCORE_HALF_OPEN
            && state.is_live()
            && !state.is_half_open()
            && state != FlowState::Closed
            && !is_backend_idle(maps, config, victim, now)
        {
            cells.store_tick(tag_cell(way), now);
            continue;
        }
        let claimed = FlowWord::new(FlowState::Claimed, victim.version().wrapping_add(1));
        if !cells.replace(word_cell(way), victim.0, claimed.0) {
            continue;
        }
        let slot = bucket * FLOW_WAYS + way;
        let mut displaced = 0;
        if state.is_live() {
            displaced = if best < SCORE_HALF_OPEN { 1 } else { 2 };
            let reason = if displaced == 1 { CloseReason::Timeout } else { CloseReason::Evicted };
            displace(maps, config, &Slot { cells, bucket, way, word: victim }, reason, now);
        }
        return (slot as u64) << 2 | displaced;
    }
    NO_SLOT
}

/// The best way of a bucket for a new flow: its score, with the way's number in the low two bits.
///
/// New flows are half-open, and half-open flows hold at most half of a bucket: where they do already, only
/// one of them can make room.
#[inline(always)]
fn best_in<M: Maps>(maps: &M, config: &Config, bucket: u32, now: u16) -> u32 {
    let Some(cells) = maps.flow_bucket(bucket) else { return SCORE_NONE };
    let mut used = 0;
    let mut half_open = 0;
    let mut way = 0;
    while way < FLOW_WAYS {
        let state = FlowWord(cells.load(word_cell(way))).state();
        used += (state as u8 != FlowState::Empty as u8) as u32;
        half_open += (state.gives_way() || state as u8 == FlowState::Claimed as u8) as u32;
        way += 1;
    }
    let used = config.forget(used);
    let quota_left = config.forget(half_open) < FLOW_WAYS / 2;
    let mut best = SCORE_NONE;
    way = 0;
    while way < FLOW_WAYS {
        let state = FlowWord(cells.load(word_cell(way))).state();
        let age = clock::age(now, last_seen(cells, way));
        let score = config.forget(score(config, state, age, used, quota_left)) | way;
        if score < best {
            best = score;
        }
        way += 1;
    }
    config.forget(best)
}

/// How attractive a slot in this state is, its client last seen that long ago.
#[inline(always)]
fn score(config: &Config, state: FlowState, age: Age, used: u32, quota_left: bool) -> u32 {
    // Among equals the oldest goes first.
    let youth = (age.youth() as u32) << 2;
    if state.gives_way() {
        return youth + if age.exceeds(timeout(config, state)) { SCORE_DEAD } else { SCORE_HALF_OPEN };
    }
    if !quota_left {
        return SCORE_NONE;
    }
    match state {
        FlowState::Empty => SCORE_EMPTY + (used << 2),
        FlowState::Claimed => SCORE_NONE,
        FlowState::Closed => SCORE_DEAD + youth,
        _ if age.exceeds(timeout(config, state)) => SCORE_DEAD + youth,
        _ => SCORE_NONE,
    }
}

/// The idle time after which a flow in this state has expired, in ticks.
#[must_use]
#[inline(always)]
pub(super) const fn timeout(config: &Config, state: FlowState) -> u16 {
    let timeouts = &config.timeouts;
    match state {
        FlowState::SynSent | FlowState::SynAcked | FlowState::Refused => timeouts.half_open,
        FlowState::Closed => timeouts.closed,
        FlowState::ClientReset | FlowState::BackendReset => timeouts.reset,
        FlowState::UdpNew => timeouts.udp_new,
        FlowState::UdpReplied | FlowState::UdpAssured => timeouts.udp_replied,
        _ => timeouts.established,
    }
}

/// Whether a flow has expired: idle in both directions, but for half-open ones, which a server's retransmitted
/// answers must not keep alive.
#[inline(always)]
pub(super) fn is_expired<T: Tables>(
    tables: &T,
    config: &Config,
    word: FlowWord,
    last_seen: u16,
    now: u16,
) -> bool {
    let state = word.state();
    clock::age(now, last_seen).exceeds(timeout(config, state))
        && (state.is_half_open() || is_backend_idle(tables, config, word, now))
}

/// Whether a flow's reverse entry is idle too (or gone).
#[inline(always)]
fn is_backend_idle<T: Tables>(tables: &T, config: &Config, word: FlowWord, now: u16) -> bool {
    let Some(member) = tables.member(word.member()) else { return true };
    let head = MemberHead::load(member);
    if !head.is_of(word) {
        return true;
    }
    let seen = if member::is_v6(member) {
        reverse_table::last_seen::<V6, T>(tables, config, head.backend(), word)
    } else {
        reverse_table::last_seen::<V4, T>(tables, config, head.backend(), word)
    };
    seen.is_none_or(|tick| clock::age(now, tick).exceeds(timeout(config, word.state())))
}

/// Makes a claimed slot a flow. Only the claimer calls this, so the exchange cannot fail.
#[inline(always)]
pub(super) fn publish<C: Cells>(slot: Slot<C>, hash: FlowHash, word: FlowWord, now: u16) -> Slot<C> {
    slot.cells.store(tag_cell(slot.way), word.masked_tag(hash.tag()) | (now as u64) << 48);
    slot.cells.compare_exchange(word_cell(slot.way), slot.word.0, word.0);
    Slot { word, ..slot }
}

/// Gives a claimed slot back.
#[inline(always)]
pub(super) fn unclaim<C: Cells>(slot: Slot<C>) {
    let empty = FlowWord::new(FlowState::Empty, slot.word.version());
    slot.cells.compare_exchange(word_cell(slot.way), slot.word.0, empty.0);
}

/// Evicts exactly this incarnation in exactly this state, then its reverse entry and port. False when
/// somebody changed the word first.
#[inline(always)]
pub(super) fn evict<T: Tables>(tables: &T, config: &Config, slot: &Slot<T::Cells>) -> bool {
    let empty = FlowWord::new(FlowState::Empty, slot.word.version());
    if !slot.cells.replace(word_cell(slot.way), slot.word.0, empty.0) {
        return false;
    }
    release(tables, config, slot.word, slot.reference());
    true
}

/// Removes the reverse entry of a forward entry that is gone, and gives its port back. A member that is no
/// longer the flow's leaves that to the sweep.
#[inline(always)]
pub(super) fn release<T: Tables>(tables: &T, config: &Config, word: FlowWord, flow: FlowRef) {
    let Some(member) = tables.member(word.member()) else { return };
    let head = MemberHead::load(member);
    if !head.is_of(word) {
        return;
    }
    if member::is_v6(member) {
        reverse_table::remove::<V6, T>(tables, config, head.backend(), word, flow);
    } else {
        reverse_table::remove::<V4, T>(tables, config, head.backend(), word, flow);
    }
}

/// Does so for a flow that had to make room, and tells the flow log.
#[inline(always)]
fn displace<M: Maps>(maps: &M, config: &Config, slot: &Slot<M::Cells>, reason: CloseReason, now: u16) {
    if !maps.tells_displaced() {
        return release(maps, config, slot.word, slot.reference());
    }
    let Some(member) = maps.member(slot.word.member()) else { return };
    if !MemberHead::load(member).is_of(slot.word) {
        return;
    }
    if member::is_v6(member) {
        displace_of::<V6, M>(maps, config, slot, member, reason, now);
    } else {
        displace_of::<V4, M>(maps, config, slot, member, reason, now);
    }
}

#[inline(always)]
fn displace_of<F: Family, M: Maps>(
    maps: &M,
    config: &Config,
    slot: &Slot<M::Cells>,
    member: M::Cells,
    reason: CloseReason,
    now: u16,
) {
    let backend = MemberHead::load(member).backend();
    let Some((cells, first, word)) =
        reverse_table::of_flow::<F, M>(maps, config, backend, slot.word, slot.reference())
    else {
        return;
    };
    let entry = reverse_table::read::<F, M::Cells>(cells, first, word);
    reverse_table::remove_entry(maps, config, cells, first, word);
    let Some(entry) = entry else { return };
    end(maps, config, slot, &entry, member::service(member), reason, now);
}

/// Tells the flow log of a flow that was removed, unless it closed before: then it has been told.
#[inline(always)]
pub(super) fn end<F: Family, M: Maps>(
    maps: &M,
    config: &Config,
    slot: &Slot<M::Cells>,
    entry: &Reverse<F, M::Cells>,
    service: u32,
    reason: CloseReason,
    now: u16,
) {
    let state = slot.word.state();
    if state as u8 == FlowState::Closed as u8 {
        return;
    }
    let idle = clock::age(now, last_seen(slot.cells, slot.way)).min(clock::age(now, entry.last_seen()));
    let end = events::End::<F> {
        client: entry.client,
        client_port: entry.client_port,
        word: slot.word,
        flow: slot.reference(),
        tag: slot.tag(),
        service,
        reason: CloseReason::of(state, reason),
        idle: idle.ticks(),
    };
    events::ended(maps, config, &end);
}

/// The entry that a reverse entry names, if it is still that incarnation.
#[inline(always)]
pub(super) fn by_reference<T: Tables>(tables: &T, flow: FlowRef) -> Option<Slot<T::Cells>> {
    let bucket = flow.slot / FLOW_WAYS;
    let way = flow.slot % FLOW_WAYS;
    let cells = tables.flow_bucket(bucket)?;
    let word = FlowWord(cells.load(word_cell(way)));
    if word.version() != flow.version { None } else { Some(Slot { cells, bucket, way, word }) }
}

/// The entry that a reverse entry names, if it is still that of the same flow.
#[inline(always)]
pub(super) fn of_entry<T: Tables>(tables: &T, flow: FlowRef, entry: ReverseWord) -> Option<Slot<T::Cells>> {
    let bucket = flow.slot / FLOW_WAYS;
    let way = flow.slot % FLOW_WAYS;
    let cells = tables.flow_bucket(bucket)?;
    let word = FlowWord(cells.load(word_cell(way)));
    if entry.is_of(flow, word) { Some(Slot { cells, bucket, way, word }) } else { None }
}
