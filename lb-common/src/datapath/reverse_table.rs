//! The reverse table and the port bitmaps: from a reply's (backend, SNAT address, SNAT port) to its flow.
//!
//! A port is unique because its bit is: whoever sets it owns the key until the entry is removed, and only
//! whoever removed the entry clears it.

use super::{Cells, Family, Tables, flow_table, flow_table::Slot};
use crate::{
    abi::{
        Config, FlowRef, FlowState, FlowWord, REVERSE_WAYS, ReverseState, ReverseWord, VERSION_MASK,
        pack_client, pack_forward, pack_path, unpack_client, unpack_forward, unpack_path,
    },
    clock, hash,
};

/// Words of a bitmap, and busy ports, that a new flow looks at before it takes a port from another flow.
const PORT_STEPS: u32 = 24;
/// Flows that it then looks at.
const RECLAIM_STEPS: u32 = 16;
/// A flow that saw a RST is taken for dead after this many quiet ticks (about a second) when ports run short.
const RESET_QUIET_TICKS: u16 = 4;

/// Offsets in an entry.
const WORD: usize = 0;
const FORWARD: usize = 1;
const CLIENT: usize = 2;
const PATH: usize = 3;

/// A live reverse entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reverse<F: Family, C> {
    /// Its bucket.
    pub cells: C,
    /// Its first cell in the bucket.
    pub first: usize,
    /// Its word as it was read.
    pub word: ReverseWord,
    /// The forward entry.
    pub flow: FlowRef,
    /// Client's address, raw.
    pub client: F::Address,
    /// Client's port, raw.
    pub client_port: u16,
    /// Member.
    pub member: u32,
    /// Its generation.
    pub generation: u8,
    /// Last hop.
    pub last_hop: u16,
}

impl<F: Family, C: Cells> Reverse<F, C> {
    /// Notes that the backend was seen.
    #[inline(always)]
    pub(super) fn touch(&self, now: u16) {
        if self.last_seen() != now {
            self.cells.store_tick(self.first + FORWARD, now);
        }
    }

    /// Tick of the backend's last packet.
    #[inline(always)]
    pub(super) fn last_seen(&self) -> u16 {
        (self.cells.load(self.first + FORWARD) >> 48) as u16
    }

    /// Notes whether the backend has answered, unless the entry changed meanwhile.
    #[inline(always)]
    pub(super) fn set_state(&self, state: ReverseState) {
        self.cells.replace(self.first + WORD, self.word.0, self.word.with_state(state).0);
    }
}

/// Finds the live entry of a key. All words must be of one version; a mixture is no entry.
#[inline(always)]
pub(super) fn find<F: Family, T: Tables>(
    tables: &T,
    config: &Config,
    backend: u32,
    snat: u8,
    port: u16,
) -> Option<Reverse<F, T::Cells>> {
    let (cells, first, word) = locate::<F, T>(tables, config, ReverseWord::key(backend, snat, port))?;
    read(cells, first, word)
}

/// Reads the entry that starts at cell `first`.
#[inline(always)]
pub(super) fn read<F: Family, C: Cells>(cells: C, first: usize, word: ReverseWord) -> Option<Reverse<F, C>> {
    let version = word.version();
    let (flow, forward_version) = unpack_forward(cells.load(first + FORWARD));
    let (address, client_port, client_version) = unpack_client(cells.load(first + CLIENT));
    let (member, generation, last_hop, path_version) = unpack_path(cells.load(first + PATH));
    if forward_version != version || client_version != version || path_version != version {
        return None;
    }
    let client = F::load_client(cells, first, address, version)?;
    Some(Reverse { cells, first, word, flow, client, client_port, member, generation, last_hop })
}

/// Bucket, first cell and word of the live entry of a key.
#[inline(always)]
fn locate<F: Family, T: Tables>(
    tables: &T,
    config: &Config,
    key: u64,
) -> Option<(T::Cells, usize, ReverseWord)> {
    let bucket = hash::reverse_bucket(&config.flow_key, key, F::reverse_mask(config));
    let cells = F::reverse_bucket(tables, bucket)?;
    let mut way = 0;
    while way < REVERSE_WAYS as usize {
        let first = way * F::REVERSE_CELLS;
        let word = ReverseWord(cells.load(first + WORD));
        if word.matches(key) {
            return Some((cells, first, word));
        }
        way += 1;
    }
    None
}

/// Tick of the backend's last packet in a flow; `None` where the flow has no reverse entry.
#[inline(always)]
pub(super) fn last_seen<F: Family, T: Tables>(
    tables: &T,
    config: &Config,
    backend: u32,
    flow: FlowWord,
) -> Option<u16> {
    let key = ReverseWord::key(backend, flow.snat(), flow.port());
    let (cells, first, _) = locate::<F, T>(tables, config, key)?;
    Some((cells.load(first + FORWARD) >> 48) as u16)
}

/// Whether a key has a live entry.
pub(super) fn exists<F: Family, T: Tables>(
    tables: &T,
    config: &Config,
    backend: u32,
    snat: u8,
    port: u16,
) -> bool {
    locate::<F, T>(tables, config, ReverseWord::key(backend, snat, port)).is_some()
}

/// Removes the entry that belongs to this incarnation of a flow, and gives its port back.
#[inline(always)]
pub(super) fn remove<F: Family, T: Tables>(
    tables: &T,
    config: &Config,
    backend: u32,
    word: FlowWord,
    flow: FlowRef,
) {
    let key = ReverseWord::key(backend, word.snat(), word.port());
    let Some((cells, first, entry)) = locate::<F, T>(tables, config, key) else { return };
    let (named, version) = unpack_forward(cells.load(first + FORWARD));
    if version == entry.version() && named == flow {
        remove_entry(tables, config, cells, first, entry);
    }
}

/// Removes exactly this incarnation of an entry and gives its port back. False when somebody was faster.
#[inline(always)]
pub(super) fn remove_entry<T: Tables>(
    tables: &T,
    config: &Config,
    cells: T::Cells,
    first: usize,
    entry: ReverseWord,
) -> bool {
    let empty = ReverseWord::new(ReverseState::Empty, entry.version(), 0);
    // The backend may answer for the first time right now, which changes the state and nothing else.
    let replied = entry.with_state(ReverseState::Replied);
    let new = entry.with_state(ReverseState::New);
    if !cells.replace(first + WORD, replied.0, empty.0) && !cells.replace(first + WORD, new.0, empty.0) {
        return false;
    }
    give_back(tables, config, entry.backend(), entry.snat(), entry.port());
    true
}

/// Clears a port's bit.
#[inline(always)]
fn give_back<T: Tables>(tables: &T, config: &Config, backend: u32, snat: u8, port: u16) {
    let Some(bitmap) = tables.ports(bitmap_index(config, backend, snat)) else { return };
    let offset = port.wrapping_sub(config.port_base);
    bitmap.fetch_and((offset >> 6) as usize, !(1 << (offset & 63)));
}

/// Index in `PORTS`.
#[inline(always)]
pub(super) const fn bitmap_index(config: &Config, backend: u32, snat: u8) -> u32 {
    backend.wrapping_mul(config.snat_stride).wrapping_add(snat as u32)
}

/// What a reverse entry is made of.
#[derive(Clone, Copy)]
pub(super) struct NewReverse<F: Family> {
    /// Backend.
    pub backend: u32,
    /// The claimed forward entry.
    pub flow: FlowRef,
    /// Client's address, raw.
    pub client: F::Address,
    /// Client's port, raw.
    pub client_port: u16,
    /// Member.
    pub member: u32,
    /// Its generation.
    pub generation: u8,
    /// Last hop.
    pub last_hop: u16,
}

/// A port that a new flow was given, its reverse entry published.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allocation {
    /// SNAT port, host order.
    pub port: u16,
    /// Another flow had to give it up.
    pub reclaimed: bool,
}

/// Takes a port at one SNAT address and publishes the reverse entry. `None`: no port within reach.
#[inline(always)]
pub(super) fn allocate<F: Family, T: Tables>(
    tables: &T,
    config: &Config,
    new: &NewReverse<F>,
    snat: u8,
    start: u16,
    now: u16,
) -> Option<Allocation> {
    let bitmap = tables.ports(bitmap_index(config, new.backend, snat))?;
    let words = config.port_words as u32;
    // Multiply and shift rather than divide; the low bits rotate the choice within a word.
    let first = (start as u32 * words) >> 16;
    if let Some(port) = take_free::<F, T>(tables, config, new, snat, bitmap, first, start, now) {
        return Some(Allocation { port, reclaimed: false });
    }
    let port = take_over::<F, T>(tables, config, new, snat, first, start, now)?;
    Some(Allocation { port, reclaimed: true })
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn take_free<F: Family, T: Tables>(
    tables: &T,
    config: &Config,
    new: &NewReverse<F>,
    snat: u8,
    bitmap: T::Cells,
    first: u32,
    start: u16,
    now: u16,
) -> Option<u16> {
    let words = config.port_words as u32;
    let mut word = first;
    // Bits of this word that were tried already: their bucket is full, or another CPU took them.
    let mut tried = 0;
    let mut step = 0;
    while step < PORT_STEPS {
        step += 1;
        let free = !(bitmap.load(word as usize) | tried);
        if free == 0 {
            word += 1;
            if word >= words {
                word = 0;
            }
            tried = 0;
            continue;
        }
        let bit = lowest_from(free, start as u32 & 63);
        let mask = 1 << bit;
        tried |= mask;
        if bitmap.fetch_or(word as usize, mask) & mask != 0 {
            continue;
        }
        let port = config.port_base.wrapping_add((word * 64 + bit) as u16);
        if insert::<F, T>(tables, config, new, snat, port, now) {
            return Some(port);
        }
        bitmap.fetch_and(word as usize, !mask);
    }
    None
}

/// The lowest set bit at or above `from`, else the lowest of all. `bits` must not be 0.
#[inline(always)]
const fn lowest_from(bits: u64, from: u32) -> u32 {
    let above = bits & (u64::MAX << from);
    (if above != 0 { above } else { bits }).trailing_zeros()
}

/// Takes a port from a flow that can spare it: expired or closed ones first, then half-open ones.
#[inline(always)]
fn take_over<F: Family, T: Tables>(
    tables: &T,
    config: &Config,
    new: &NewReverse<F>,
    snat: u8,
    first: u32,
    start: u16,
    now: u16,
) -> Option<u16> {
    let ports = config.port_words as u32 * 64;
    let mut accept_half_open = false;
    let mut round = 0;
    while round < 2 {
        let mut step = 0;
        while step < RECLAIM_STEPS {
            // A stride that is odd and larger than a word: neighbours were often made together.
            let mut offset = first * 64 + (start as u32 & 63) + step * 67;
            if offset >= ports {
                offset -= ports;
            }
            if offset >= ports {
                offset = 0;
            }
            step += 1;
            let port = config.port_base.wrapping_add(offset as u16);
            if !evict_holder::<F, T>(tables, config, new.backend, snat, port, accept_half_open, now) {
                continue;
            }
            let bitmap = tables.ports(bitmap_index(config, new.backend, snat))?;
            let mask = 1 << (offset & 63);
            if bitmap.fetch_or((offset >> 6) as usize, mask) & mask != 0 {
                continue;
            }
            if insert::<F, T>(tables, config, new, snat, port, now) {
                return Some(port);
            }
            bitmap.fetch_and((offset >> 6) as usize, !mask);
        }
        accept_half_open = true;
        round += 1;
    }
    None
}

/// Evicts the flow that holds a port if it can spare it.
#[inline(always)]
fn evict_holder<F: Family, T: Tables>(
    tables: &T,
    config: &Config,
    backend: u32,
    snat: u8,
    port: u16,
    accept_half_open: bool,
    now: u16,
) -> bool {
    let key = ReverseWord::key(backend, snat, port);
    let Some((cells, first, entry)) = locate::<F, T>(tables, config, key) else { return false };
    let (flow, version) = unpack_forward(cells.load(first + FORWARD));
    if version != entry.version() {
        return false;
    }
    let Some(slot) = flow_table::by_reference(tables, flow) else { return false };
    if !slot.word.state().is_live() || !can_spare(tables, config, &slot, accept_half_open, now) {
        return false;
    }
    let empty = FlowWord::new(FlowState::Empty, slot.word.version());
    slot.cells.replace(flow_table::word_cell(slot.way), slot.word.0, empty.0)
        && remove_entry(tables, config, cells, first, entry)
}

#[inline(always)]
fn can_spare<T: Tables>(
    tables: &T,
    config: &Config,
    slot: &Slot<T::Cells>,
    accept_half_open: bool,
    now: u16,
) -> bool {
    let seen = flow_table::last_seen(slot.cells, slot.way);
    match slot.word.state() {
        FlowState::Closed => true,
        FlowState::ClientReset | FlowState::BackendReset => clock::age(now, seen) >= RESET_QUIET_TICKS,
        state if accept_half_open && state.is_half_open() => true,
        _ => flow_table::is_expired(tables, config, slot.word, seen, now),
    }
}

/// Publishes an entry whose port's bit the caller owns. False: its bucket is full.
#[inline(always)]
fn insert<F: Family, T: Tables>(
    tables: &T,
    config: &Config,
    new: &NewReverse<F>,
    snat: u8,
    port: u16,
    now: u16,
) -> bool {
    let key = ReverseWord::key(new.backend, snat, port);
    let bucket = hash::reverse_bucket(&config.flow_key, key, F::reverse_mask(config));
    let Some(cells) = F::reverse_bucket(tables, bucket) else { return false };
    let mut way = 0;
    while way < REVERSE_WAYS as usize {
        let first = way * F::REVERSE_CELLS;
        way += 1;
        let free = ReverseWord(cells.load(first + WORD));
        if !free.is_empty() {
            continue;
        }
        let version = free.version().wrapping_add(1) & VERSION_MASK;
        let claimed = ReverseWord::new(ReverseState::Claimed, version, key);
        if !cells.replace(first + WORD, free.0, claimed.0) {
            continue;
        }
        cells.store(first + FORWARD, pack_forward(new.flow, version, now));
        cells.store(first + CLIENT, pack_client(F::client_word(new.client), new.client_port, version));
        cells.store(first + PATH, pack_path(new.member, new.generation, new.last_hop, version));
        F::store_client(cells, first, new.client, version);
        cells.compare_exchange(first + WORD, claimed.0, claimed.with_state(ReverseState::New).0);
        return true;
    }
    false
}
