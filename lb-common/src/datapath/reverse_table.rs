//! The reverse table: from a reply's (backend, SNAT address, SNAT port) to its flow. Who may have a port is
//! decided in `ports`.

use super::{Cells, Family, Maps, Tables, ports};
use crate::{
    abi::{
        Config, FlowRef, FlowWord, REVERSE_WAYS, ReverseState, ReverseWord, VERSION_MASK, pack_client,
        pack_forward, pack_path, unpack_client, unpack_forward, unpack_path,
    },
    hash,
};

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
        last_seen_at(self.cells, self.first)
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

/// The way that holds the live entry of a key, else the `other`-th, counted round and round.
#[inline(always)]
pub(super) fn way_of<F: Family, C: Cells>(cells: C, key: u64, other: u32) -> u32 {
    let mut found = other & (REVERSE_WAYS - 1);
    let mut way = 0;
    while way < REVERSE_WAYS {
        if ReverseWord(cells.load(way as usize * F::REVERSE_CELLS + WORD)).matches(key) {
            found = way;
        }
        way += 1;
    }
    found
}

/// Bucket, first cell and word of the live entry of a key.
#[inline(always)]
fn locate<F: Family, T: Tables>(
    tables: &T,
    config: &Config,
    key: u64,
) -> Option<(T::Cells, usize, ReverseWord)> {
    let cells = bucket_of::<F, T>(tables, config, key)?;
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
    Some(last_seen_at(cells, first))
}

/// Tick of the backend's last packet, of the entry that starts at cell `first`.
#[inline(always)]
pub(super) fn last_seen_at<C: Cells>(cells: C, first: usize) -> u16 {
    (cells.load(first + FORWARD) >> 48) as u16
}

/// The flow that the entry at cell `first` names; `None` where the entry is being replaced.
#[inline(always)]
pub(super) fn flow_at<C: Cells>(cells: C, first: usize, entry: ReverseWord) -> Option<FlowRef> {
    let (flow, version) = unpack_forward(cells.load(first + FORWARD));
    (version == entry.version()).then_some(flow)
}

/// The one bucket that may hold a key.
#[inline(always)]
pub(super) fn bucket_of<F: Family, T: Tables>(tables: &T, config: &Config, key: u64) -> Option<T::Cells> {
    F::reverse_bucket(tables, hash::reverse_bucket(&config.flow_key, key, F::reverse_mask(config)))
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
    if let Some((cells, first, entry)) = of_flow::<F, T>(tables, config, backend, word, flow) {
        remove_entry(tables, config, cells, first, entry);
    }
}

/// Bucket, first cell and word of the entry that belongs to this incarnation of a flow.
#[inline(always)]
pub(super) fn of_flow<F: Family, T: Tables>(
    tables: &T,
    config: &Config,
    backend: u32,
    word: FlowWord,
    flow: FlowRef,
) -> Option<(T::Cells, usize, ReverseWord)> {
    let (cells, first, entry) =
        locate::<F, T>(tables, config, ReverseWord::key(backend, word.snat(), word.port()))?;
    (flow_at(cells, first, entry) == Some(flow)).then_some((cells, first, entry))
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
    ports::give_back(tables, config, entry.backend(), entry.snat(), entry.port());
    true
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

/// No entry was made. What is to become of the port's bit is data, not two ways to go on: the verifier would
/// follow both from each port that a search tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotInserted {
    /// All ones where another flow has the port (the sweep had taken its bit for nobody's): the bit stays set.
    /// Else 0: the bucket is full, or contended.
    kept: u64,
}

impl NotInserted {
    const NO_ROOM: Self = Self { kept: 0 };
    const TAKEN: Self = Self { kept: u64::MAX };

    /// What a bitmap's word keeps, of which the caller has set the bit `mask`.
    #[inline(always)]
    pub(super) const fn bits_to_keep(self, mask: u64) -> u64 {
        !mask | self.kept
    }
}

/// Publishes an entry whose port's bit the caller has set.
#[inline(always)]
pub(super) fn insert<F: Family, M: Maps>(
    maps: &M,
    config: &Config,
    new: &NewReverse<F>,
    snat: u8,
    port: u16,
    now: u16,
) -> Result<(), NotInserted> {
    let key = ReverseWord::key(new.backend, snat, port);
    let Some(cells) = bucket_of::<F, M>(maps, config, key) else {
        return Err(NotInserted::NO_ROOM);
    };
    let mut free_way = REVERSE_WAYS;
    let mut taken = 0;
    let mut way = 0;
    while way < REVERSE_WAYS {
        let word = ReverseWord(cells.load(way as usize * F::REVERSE_CELLS + WORD));
        taken |= word.occupies(key);
        if word.is_empty() {
            free_way = way;
        }
        way += 1;
    }
    let free_way = config.forget(free_way);
    if free_way >= REVERSE_WAYS {
        return Err(NotInserted { kept: taken.wrapping_neg() });
    }
    let first = free_way as usize * F::REVERSE_CELLS;
    let free = ReverseWord(cells.load(first + WORD));
    let version = free.version().wrapping_add(1) & VERSION_MASK;
    let claimed = ReverseWord::new(ReverseState::Claimed, version, key);
    if !free.is_empty() || !cells.replace(first + WORD, free.0, claimed.0) {
        return Err(NotInserted::NO_ROOM);
    }
    // Of two who have taken one port, each has claimed a way now, and one at least sees the other's.
    if occupants::<F, M::Cells>(cells, key) > 1 {
        let empty = ReverseWord::new(ReverseState::Empty, version, 0);
        cells.compare_exchange(first + WORD, claimed.0, empty.0);
        return Err(NotInserted::TAKEN);
    }
    cells.store(first + FORWARD, pack_forward(new.flow, version, now));
    cells.store(first + CLIENT, pack_client(F::client_word(new.client), new.client_port, version));
    cells.store(first + PATH, pack_path(new.member, new.generation, new.last_hop, version));
    F::store_client(cells, first, new.client, version);
    cells.compare_exchange(first + WORD, claimed.0, claimed.with_state(ReverseState::New).0);
    Ok(())
}

/// Ways that hold a key, or are about to.
#[inline(always)]
fn occupants<F: Family, C: Cells>(cells: C, key: u64) -> u64 {
    let mut count = 0;
    let mut way = 0;
    while way < REVERSE_WAYS as usize {
        count += ReverseWord(cells.load(way * F::REVERSE_CELLS + WORD)).occupies(key);
        way += 1;
    }
    count
}
