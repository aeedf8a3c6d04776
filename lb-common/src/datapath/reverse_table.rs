//! The reverse table and the port bitmaps: from a reply's (backend, SNAT address, SNAT port) to its flow.
//!
//! A port is unique because its bit is: whoever sets it owns the key until the entry is removed, and only
//! whoever removed the entry clears it.

use core::hint::black_box;

use super::{
    Cells, Family, Maps, Tables,
    flow_table::{self, Slot},
};
use crate::{
    abi::{
        Config, FlowRef, FlowState, FlowWord, REVERSE_WAYS, ReverseState, ReverseWord, VERSION_MASK,
        pack_client, pack_forward, pack_path, unpack_client, unpack_forward, unpack_path,
    },
    clock, hash,
};

// Loop counters are 64 bits wide all through the packet program: the verifier loses track of a 32-bit one that
// the compiler has to keep on the stack, and takes the loop for an infinite one.

/// Words of a bitmap, and busy ports, that a new flow looks at before it takes a port from another flow.
const PORT_STEPS: u64 = 20;
/// Flows that it then looks at.
const RECLAIM_STEPS: u64 = 16;
/// How often it does so.
const TAKE_OVER_ATTEMPTS: u64 = 2;
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
    // The backend may answer or reset right now, which moves the state from one to the other and nothing else.
    let replied = entry.with_state(ReverseState::Replied);
    let new = entry.with_state(ReverseState::New);
    let removed = cells.replace(first + WORD, new.0, empty.0)
        || cells.replace(first + WORD, replied.0, empty.0)
        || cells.replace(first + WORD, new.0, empty.0);
    if !removed {
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
    /// SNAT address.
    pub snat: u8,
    /// SNAT port, host order.
    pub port: u16,
    /// Another flow had to give it up.
    pub reclaimed: bool,
}

/// Takes a port and publishes the reverse entry: a free one near where the hash points, at the SNAT address
/// that it names or the next one; else one of a flow that can spare it. `None`: no port within reach.
#[inline(always)]
pub(super) fn allocate<F: Family, M: Maps>(
    maps: &M,
    config: &Config,
    new: &NewReverse<F>,
    start: u16,
    now: u16,
) -> Option<Allocation> {
    let count = F::snat_count(config);
    // Multiply and shift rather than divide.
    let snat = (start as u32 & 0xff).wrapping_mul(count) >> 8;
    let search = Search {
        snat: config.forget(snat) as u8,
        next_snat: config.forget(if snat + 1 < count { snat + 1 } else { 0 }) as u8,
        first_word: config.forget((start as u32 * config.port_words as u32) >> 16),
        bit: start as u32 & 63,
        now,
    };
    let free = take_free::<F, M>(maps, config, new, &search);
    if free != NO_PORT {
        return Some(Allocation { snat: (free >> 16) as u8, port: free as u16, reclaimed: false });
    }
    let taken = take_over::<F, M>(maps, config, new, &search);
    if taken == NO_PORT {
        return None;
    }
    Some(Allocation { snat: (taken >> 16) as u8, port: taken as u16, reclaimed: true })
}

/// What a search returns that found nothing; else the port, and above it the SNAT address. The searches are
/// calls that return one register: inlined, their loops would not fit into one stack frame of the kernel's.
const NO_PORT: u64 = u64::MAX;

/// Where a search for a port goes.
#[derive(Clone, Copy)]
struct Search {
    snat: u8,
    next_snat: u8,
    first_word: u32,
    bit: u32,
    now: u16,
}

#[inline(never)]
fn take_free<F: Family, M: Maps>(maps: &M, config: &Config, new: &NewReverse<F>, search: &Search) -> u64 {
    let words = config.port_words as u32;
    let mut snat = search.snat;
    let mut word = search.first_word;
    // Bits of this word that were tried already: their bucket is full, or another CPU took them.
    let mut tried = 0;
    let mut step = 0;
    while step < PORT_STEPS {
        step += 1;
        // Read what these point to anew each time: hoisted out of the loop it would be kept on the stack, and
        // the kernel has no room for that.
        let (new, search) = (black_box(new), black_box(search));
        let Some(bitmap) = maps.ports(bitmap_index(config, new.backend, snat)) else { return NO_PORT };
        let free = !(bitmap.load(word as usize) | tried);
        if free == 0 {
            word = config.forget(if word + 1 >= words { 0 } else { word + 1 });
            tried = 0;
            if step >= PORT_STEPS / 2 {
                snat = search.next_snat;
            }
            continue;
        }
        let bit = lowest_from(free, search.bit);
        let mask = 1 << bit;
        tried |= mask;
        if bitmap.fetch_or(word as usize, mask) & mask != 0 {
            continue;
        }
        let port = config.port_base.wrapping_add((word * 64 + bit) as u16);
        if insert::<F, M>(maps, config, new, snat, port, search.now) {
            return (snat as u64) << 16 | port as u64;
        }
        bitmap.fetch_and(word as usize, !mask);
    }
    NO_PORT
}

/// The lowest set bit at or above `from`, else the lowest of all. `bits` must not be 0.
#[inline(always)]
const fn lowest_from(bits: u64, from: u32) -> u32 {
    let above = bits & (u64::MAX << from);
    (if above != 0 { above } else { bits }).trailing_zeros()
}

/// Takes a port from a flow that can spare it.
#[inline(never)]
fn take_over<F: Family, M: Maps>(maps: &M, config: &Config, new: &NewReverse<F>, search: &Search) -> u64 {
    let mut attempt = 0;
    while attempt < TAKE_OVER_ATTEMPTS {
        let best = best_holder::<F, M>(maps, config, new.backend, search, attempt);
        if best >= HOLDER_LIVE {
            return NO_PORT;
        }
        attempt += 1;
        let port = config.port_base.wrapping_add(best as u16);
        if !evict_holder::<F, M>(maps, config, new.backend, search.snat, port, search.now) {
            continue;
        }
        let Some(bitmap) = maps.ports(bitmap_index(config, new.backend, search.snat)) else {
            return NO_PORT;
        };
        let (word, mask) = (((best & 0xffff) >> 6) as usize, 1 << (best & 63));
        if bitmap.fetch_or(word, mask) & mask != 0 {
            continue;
        }
        if insert::<F, M>(maps, config, new, search.snat, port, search.now) {
            return (search.snat as u64) << 16 | port as u64;
        }
        bitmap.fetch_and(word, !mask);
    }
    NO_PORT
}

/// Classes of flows that may have to give up their port, above the port's offset; smaller goes first.
const HOLDER_DEAD: u32 = 0;
const HOLDER_HALF_OPEN: u32 = 1 << 16;
const HOLDER_LIVE: u32 = 2 << 16;

/// The offset of the port, of those within reach, whose flow can spare it best, with its class above it:
/// expired and closed flows come before half-open ones.
#[inline(always)]
fn best_holder<F: Family, M: Maps>(
    maps: &M,
    config: &Config,
    backend: u32,
    search: &Search,
    attempt: u64,
) -> u32 {
    let ports = config.port_words as u32 * 64;
    let mut best = HOLDER_LIVE;
    let mut step = 0;
    while step < RECLAIM_STEPS {
        // The stride is odd and longer than a word: neighbouring ports were often given out together.
        let offset = search.first_word * 64 + search.bit + (step + attempt * RECLAIM_STEPS) as u32 * 67;
        let offset = if offset >= ports { offset - ports } else { offset };
        let offset = config.forget(if offset >= ports { 0 } else { offset });
        step += 1;
        let port = config.port_base.wrapping_add(offset as u16);
        let class = holder_class::<F, M>(maps, config, backend, search.snat, port, search.now);
        let candidate = config.forget(class) | offset;
        best = config.forget(if candidate < best { candidate } else { best });
    }
    best
}

#[inline(always)]
fn holder_class<F: Family, M: Maps>(
    maps: &M,
    config: &Config,
    backend: u32,
    snat: u8,
    port: u16,
    now: u16,
) -> u32 {
    match holder::<F, M>(maps, config, backend, snat, port) {
        Some(holder) => holder.class(config, now),
        None => HOLDER_LIVE,
    }
}

/// The flow that holds a port: its reverse entry and its forward entry.
struct Holder<C> {
    cells: C,
    first: usize,
    entry: ReverseWord,
    slot: Slot<C>,
}

#[inline(always)]
fn holder<F: Family, M: Maps>(
    maps: &M,
    config: &Config,
    backend: u32,
    snat: u8,
    port: u16,
) -> Option<Holder<M::Cells>> {
    let key = ReverseWord::key(backend, snat, port);
    let (cells, first, entry) = locate::<F, M>(maps, config, key)?;
    let (flow, version) = unpack_forward(cells.load(first + FORWARD));
    if version != entry.version() {
        return None;
    }
    Some(Holder { cells, first, entry, slot: flow_table::by_reference(maps, flow)? })
}

impl<C: Cells> Holder<C> {
    #[inline(always)]
    fn class(&self, config: &Config, now: u16) -> u32 {
        let backend_quiet = clock::age(now, (self.cells.load(self.first + FORWARD) >> 48) as u16);
        let client_quiet = clock::age(now, flow_table::last_seen(self.slot.cells, self.slot.way));
        let quiet = backend_quiet.min(client_quiet);
        let state = self.slot.word.state();
        match state {
            FlowState::Empty | FlowState::Claimed => HOLDER_LIVE,
            FlowState::Closed => HOLDER_DEAD,
            FlowState::ClientReset | FlowState::BackendReset if quiet >= RESET_QUIET_TICKS => HOLDER_DEAD,
            _ if state.is_half_open() && client_quiet <= flow_table::timeout(config, state) => {
                HOLDER_HALF_OPEN
            }
            _ if state.is_half_open() || quiet > flow_table::timeout(config, state) => HOLDER_DEAD,
            _ => HOLDER_LIVE,
        }
    }
}

/// Evicts the flow that holds a port, unless it has come to life since the search chose it.
#[inline(always)]
fn evict_holder<F: Family, M: Maps>(
    maps: &M,
    config: &Config,
    backend: u32,
    snat: u8,
    port: u16,
    now: u16,
) -> bool {
    let Some(holder) = holder::<F, M>(maps, config, backend, snat, port) else { return false };
    if holder.class(config, now) >= HOLDER_LIVE {
        return false;
    }
    let Holder { cells, first, entry, slot } = holder;
    let empty = FlowWord::new(FlowState::Empty, slot.word.version());
    slot.cells.replace(flow_table::word_cell(slot.way), slot.word.0, empty.0)
        && remove_entry(maps, config, cells, first, entry)
}

/// Publishes an entry whose port's bit the caller owns. False: its bucket is full, or contended.
#[inline(always)]
fn insert<F: Family, M: Maps>(
    maps: &M,
    config: &Config,
    new: &NewReverse<F>,
    snat: u8,
    port: u16,
    now: u16,
) -> bool {
    let key = ReverseWord::key(new.backend, snat, port);
    let bucket = hash::reverse_bucket(&config.flow_key, key, F::reverse_mask(config));
    let Some(cells) = F::reverse_bucket(maps, bucket) else { return false };
    let mut free_way = REVERSE_WAYS;
    let mut way = 0;
    while way < REVERSE_WAYS {
        if ReverseWord(cells.load(way as usize * F::REVERSE_CELLS + WORD)).is_empty() {
            free_way = way;
        }
        way += 1;
    }
    let free_way = config.forget(free_way);
    if free_way >= REVERSE_WAYS {
        return false;
    }
    let first = free_way as usize * F::REVERSE_CELLS;
    let free = ReverseWord(cells.load(first + WORD));
    let version = free.version().wrapping_add(1) & VERSION_MASK;
    let claimed = ReverseWord::new(ReverseState::Claimed, version, key);
    if !free.is_empty() || !cells.replace(first + WORD, free.0, claimed.0) {
        return false;
    }
    cells.store(first + FORWARD, pack_forward(new.flow, version, now));
    cells.store(first + CLIENT, pack_client(F::client_word(new.client), new.client_port, version));
    cells.store(first + PATH, pack_path(new.member, new.generation, new.last_hop, version));
    F::store_client(cells, first, new.client, version);
    cells.compare_exchange(first + WORD, claimed.0, claimed.with_state(ReverseState::New).0);
    true
}
