//! The port bitmaps: a new flow's SNAT address and port.
//!
//! A port is unique because its bit is: whoever sets it owns the key (backend, SNAT address, port) until the
//! entry in the reverse table is removed, and only whoever removed the entry clears it. The one exception is the
//! sweep, which infers that nobody owns a bit and may err: the reverse table itself has no key twice.

use core::hint::black_box;

use super::{
    Cells, Family, Maps, Tables,
    flow_table::{self, Slot},
    member,
    reverse_table::{self, NewReverse},
};
use crate::{
    abi::{CloseReason, Config, FlowState, FlowWord, PORT_BITMAP_WORDS, REVERSE_WAYS, ReverseWord},
    clock,
};

// Loop counters are 64 bits wide all through the packet program: the verifier loses track of a 32-bit one that
// the compiler has to keep on the stack, and takes the loop for an infinite one.

/// Full words of a bitmap, and free ports without room in the reverse table, that a new flow looks at before
/// it displaces another flow.
const FREE_STEPS: u64 = 32;
/// Ports that it then looks at for a flow that can be displaced.
const RECLAIM_STEPS: u64 = 16;
/// Ports that it looks at where all flows so far are established, or too young to tell which of them is forged.
const MOST_RECLAIM_STEPS: u64 = 32;
/// How often it does so.
const TAKE_OVER_ATTEMPTS: u64 = 2;
/// A flow that saw a RST is taken for dead after more than this many quiet ticks (about a second) when ports run
/// short.
const RESET_QUIET_TICKS: u16 = 3;

/// Clears a port's bit.
#[inline(always)]
pub(super) fn give_back<T: Tables>(tables: &T, config: &Config, backend: u32, snat: u8, port: u16) {
    let Some(bitmap) = tables.ports(bitmap_index(config, backend, snat)) else { return };
    let offset = port.wrapping_sub(config.port_base);
    let word = offset >> 6;
    // No bit is that of a port beyond the range, which only a damaged entry has. Without a branch, which the verifier
    // would follow into all that comes after it.
    let is_within = (word as u64).wrapping_sub(config.port_words as u64) >> 63;
    bitmap.fetch_and(word as usize & (PORT_BITMAP_WORDS - 1), !(is_within << (offset & 63)));
}

/// Index in `PORTS`.
#[inline(always)]
pub(super) const fn bitmap_index(config: &Config, backend: u32, snat: u8) -> u32 {
    backend.wrapping_mul(config.snat_stride).wrapping_add(snat as u32)
}

/// A port that a new flow was given, its reverse entry published.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allocation {
    /// SNAT address.
    pub snat: u8,
    /// SNAT port, host order.
    pub port: u16,
    /// Another flow had to give it up, or its place in the reverse table.
    pub reclaimed: bool,
}

/// Takes a port and publishes the reverse entry: a free one near where the hash points, at the SNAT address
/// that it names or the next one; else one for which another flow can be displaced. `None`: no port within
/// reach.
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
    let mut attempt = 0;
    while attempt < TAKE_OVER_ATTEMPTS {
        let best = best_holder::<F, M>(maps, config, new.backend, &search, attempt);
        if best >= HOLDER_LIVE as u64 {
            break;
        }
        attempt += 1;
        let port = take_over::<F, M>(maps, config, new, &search, best);
        if port != NO_PORT {
            return Some(Allocation { snat: search.snat, port: port as u16, reclaimed: true });
        }
    }
    None
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
    while step < FREE_STEPS {
        step += 1;
        // Read what these point to anew each time: hoisted out of the loop it would be kept on the stack, and
        // the kernel has no room for that.
        let (new, search) = (black_box(new), black_box(search));
        let Some(bitmap) = maps.ports(bitmap_index(config, new.backend, snat)) else { return NO_PORT };
        let free = !(bitmap.load(word as usize) | tried);
        if free == 0 {
            word = config.forget(if word + 1 >= words { 0 } else { word + 1 });
            tried = 0;
            if step >= FREE_STEPS / 2 {
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
        match reverse_table::insert::<F, M>(maps, config, new, snat, port, search.now) {
            Ok(()) => return (snat as u64) << 16 | port as u64,
            Err(failure) => _ = bitmap.fetch_and(word as usize, failure.bits_to_keep(mask)),
        }
    }
    NO_PORT
}

/// The lowest set bit at or above `from`, else the lowest of all. `bits` must not be 0.
#[inline(always)]
const fn lowest_from(bits: u64, from: u32) -> u32 {
    let above = bits & (u64::MAX << from);
    (if above != 0 { above } else { bits }).trailing_zeros()
}

/// Where a holder's way in its bucket stands, above the port's offset and below its class.
const HOLDER_WAY_SHIFT: u32 = 14;
const HOLDER_OFFSET_MASK: u64 = (1 << HOLDER_WAY_SHIFT) - 1;
const _: () = assert!(HOLDER_OFFSET_MASK as usize == PORT_BITMAP_WORDS * 64 - 1);
/// Classes of flows that may have to go; smaller goes first. Below the class of those that give way there are 14 bits
/// for how young they are.
const HOLDER_DEAD: u32 = 0;
const HOLDER_GIVES_WAY: u32 = 1 << 30;
const HOLDER_LIVE: u32 = 2 << 30;
const HOLDER_YOUTH_SHIFT: u32 = 16;
/// Youth of what is too old for its age to matter: all youths that matter are above it, by less than 2^14.
const HOLDER_OLD: u16 = u16::MAX - 0x3fff;
/// What gives way and was heard of in this tick, and all that is worse.
const HOLDER_YOUNG: u32 =
    HOLDER_GIVES_WAY | ((clock::age(0, 0).youth() - HOLDER_OLD) as u32) << HOLDER_YOUTH_SHIFT;

/// The flow within reach that can be spared best: one that holds a port, or where a port is free and only its
/// bucket of the reverse table is full, one of that bucket (each port tries another way). Returns its class, its way, and the offset of the port
/// that its going makes possible. Expired and closed flows come before those that give way, and of these the oldest
/// comes first: it is the least likely to be answered, or proven, still.
#[inline(never)]
fn best_holder<F: Family, M: Maps>(
    maps: &M,
    config: &Config,
    backend: u32,
    search: &Search,
    attempt: u64,
) -> u64 {
    let mut best = HOLDER_LIVE;
    let mut step = 0;
    while best >= if step < RECLAIM_STEPS { HOLDER_GIVES_WAY } else { HOLDER_YOUNG }
        && step < MOST_RECLAIM_STEPS
    {
        // As in `take_free`: nothing that these point to is to be kept on the stack.
        let (config, search) = (black_box(config), black_box(search));
        // The stride is odd and longer than a word: neighbouring ports were often given out together.
        let nth = (step + attempt * MOST_RECLAIM_STEPS) as u32;
        let offset = search.first_word * 64 + search.bit + nth * 67;
        let offset = config.forget(offset.checked_rem(config.port_words as u32 * 64).unwrap_or(0));
        step += 1;
        let key = ReverseWord::key(backend, search.snat, config.port_base.wrapping_add(offset as u16));
        let Some(cells) = reverse_table::bucket_of::<F, M>(maps, config, key) else { break };
        let way = config.forget(reverse_table::way_of::<F, M::Cells>(cells, key, nth));
        let class = match holder::<F, M>(maps, config, cells, key, way) {
            Some(holder) => holder.class(config, search.now),
            None => HOLDER_LIVE,
        };
        let candidate = config.forget(class) | (way & (REVERSE_WAYS - 1)) << HOLDER_WAY_SHIFT | offset;
        best = config.forget(if candidate < best { candidate } else { best });
    }
    best as u64
}

/// A flow in the way of a new one: its reverse entry and its forward entry.
struct Holder<C> {
    cells: C,
    first: usize,
    entry: ReverseWord,
    slot: Slot<C>,
}

/// The flow in one way of a key's bucket, if its going would make the key's port possible: where the port is
/// taken, only its own holder's would.
#[inline(always)]
fn holder<F: Family, M: Maps>(
    maps: &M,
    config: &Config,
    cells: M::Cells,
    key: u64,
    way: u32,
) -> Option<Holder<M::Cells>> {
    let first = way as usize * F::REVERSE_CELLS;
    let entry = ReverseWord(cells.load(first));
    if !entry.is_live() || (!entry.matches(key) && is_taken(maps, config, ReverseWord(key))) {
        return None;
    }
    let flow = reverse_table::flow_at(cells, first, entry)?;
    Some(Holder { cells, first, entry, slot: flow_table::of_entry(maps, flow, entry)? })
}

#[inline(always)]
fn is_taken<T: Tables>(tables: &T, config: &Config, key: ReverseWord) -> bool {
    let Some(bitmap) = tables.ports(bitmap_index(config, key.backend(), key.snat())) else { return true };
    let offset = key.port().wrapping_sub(config.port_base);
    bitmap.load((offset >> 6) as usize) & 1 << (offset & 63) != 0
}

impl<C: Cells> Holder<C> {
    #[inline(always)]
    fn class(&self, config: &Config, now: u16) -> u32 {
        let backend_quiet = clock::age(now, reverse_table::last_seen_at(self.cells, self.first));
        let client_quiet = clock::age(now, flow_table::last_seen(self.slot.cells, self.slot.way));
        let quiet = backend_quiet.min(client_quiet);
        let state = self.slot.word.state();
        match state {
            FlowState::Empty | FlowState::Claimed => HOLDER_LIVE,
            FlowState::Closed => HOLDER_DEAD,
            FlowState::ClientReset | FlowState::BackendReset if quiet.exceeds(RESET_QUIET_TICKS) => {
                HOLDER_DEAD
            }
            _ if state.is_half_open() && client_quiet.exceeds(flow_table::timeout(config, state))
                || quiet.exceeds(flow_table::timeout(config, state)) =>
            {
                HOLDER_DEAD
            }
            _ if state.gives_way() => {
                let youth = client_quiet.youth().saturating_sub(HOLDER_OLD);
                HOLDER_GIVES_WAY | (youth as u32) << HOLDER_YOUTH_SHIFT
            }
            _ => HOLDER_LIVE,
        }
    }
}

/// Displaces the flow that [`best_holder`] chose, and takes the port.
#[inline(never)]
fn take_over<F: Family, M: Maps>(
    maps: &M,
    config: &Config,
    new: &NewReverse<F>,
    search: &Search,
    best: u64,
) -> u64 {
    let offset = (best & HOLDER_OFFSET_MASK) as u16;
    if !evict_holder::<F, M>(maps, config, new.backend, search, best) {
        return NO_PORT;
    }
    let Some(bitmap) = maps.ports(bitmap_index(config, new.backend, search.snat)) else { return NO_PORT };
    let (word, mask) = ((offset >> 6) as usize, 1 << (offset & 63));
    if bitmap.fetch_or(word, mask) & mask != 0 {
        return NO_PORT;
    }
    let port = config.port_base.wrapping_add(offset);
    match reverse_table::insert::<F, M>(maps, config, new, search.snat, port, search.now) {
        Ok(()) => port as u64,
        Err(failure) => {
            bitmap.fetch_and(word, failure.bits_to_keep(mask));
            NO_PORT
        }
    }
}

/// Evicts a flow, unless it has come to life since the search chose it.
#[inline(always)]
fn evict_holder<F: Family, M: Maps>(
    maps: &M,
    config: &Config,
    backend: u32,
    search: &Search,
    best: u64,
) -> bool {
    let key = ReverseWord::key(
        backend,
        search.snat,
        config.port_base.wrapping_add((best & HOLDER_OFFSET_MASK) as u16),
    );
    let way = best as u32 >> HOLDER_WAY_SHIFT & (REVERSE_WAYS - 1);
    let Some(cells) = reverse_table::bucket_of::<F, M>(maps, config, key) else { return false };
    let Some(holder) = holder::<F, M>(maps, config, cells, key, way) else { return false };
    let class = holder.class(config, search.now);
    if class >= HOLDER_LIVE {
        return false;
    }
    let Holder { cells, first, entry, slot } = holder;
    let told = maps.tells_displaced();
    let reverse = if told { reverse_table::read::<F, M::Cells>(cells, first, entry) } else { None };
    let empty = FlowWord::new(FlowState::Empty, slot.word.version());
    if !slot.cells.replace(flow_table::word_cell(slot.way), slot.word.0, empty.0) {
        return false;
    }
    let removed = reverse_table::remove_entry(maps, config, cells, first, entry);
    if let Some(reverse) = reverse
        && let Some(member) = maps.member(reverse.member)
    {
        let reason = if class >= HOLDER_GIVES_WAY { CloseReason::Evicted } else { CloseReason::Timeout };
        flow_table::end(maps, config, &slot, &reverse, member::service(member), reason, search.now);
    }
    removed
}
