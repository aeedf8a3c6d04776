//! The agent's sweep: evicts what has expired and mends what a killed agent left half done.
//!
//! It runs beside the packet program on the same memory, uses compare-exchange only, and can be killed
//! between any two steps: everything it does is idempotent. Expiry takes two passes: the first *dooms* a
//! flow, the second evicts it unless a packet saved it meanwhile.

use super::{
    Cells, Family, Tables, V4, V6,
    flow_table::{self, Slot},
    member::{self, MemberHead},
    ports,
    reverse_table::{self, Reverse},
};
use crate::{
    abi::{
        CloseReason, Config, FLOW_WAYS, FlowRef, FlowState, FlowWord, LastHopWord, PORT_BITMAP_WORDS,
        REVERSE_WAYS, ReverseWord,
    },
    clock,
};

/// What the sweep tells its caller.
pub trait Observer {
    /// A live flow, before anything is done to it.
    fn flow(&mut self, state: FlowState, member: u32);
    /// A flow was evicted.
    fn evicted(&mut self, ended: &Ended);
    /// A reverse entry whose flow is gone was removed: that flow's client.
    fn orphan(&mut self, _flow: FlowRef, _client: &Client) {}
    /// A live reverse entry names this last hop.
    fn last_hop(&mut self, index: u16);
    /// A reverse entry without a flow, or a port without a reverse entry, was cleared.
    fn mended(&mut self);
    /// Whether the flows of a member are to go now, whatever their age.
    fn is_unwanted(&self, member: u32) -> bool;
}

/// A flow's client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// 4 or 6.
    pub family: u8,
    /// Address, network order, IPv4 in the first four bytes.
    pub address: [u8; 16],
    /// Port, network order.
    pub port: [u8; 2],
}

impl Client {
    fn of<F: Family, C: Cells>(entry: &Reverse<F, C>) -> Self {
        Self {
            family: F::NUMBER,
            address: bytemuck::cast(F::raw(entry.client)),
            port: entry.client_port.to_ne_bytes(),
        }
    }
}

/// A flow that the sweep has evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its slot.
    pub flow: FlowRef,
    /// The tag of its hash.
    pub tag: u64,
    /// The word of its entry.
    pub word: FlowWord,
    /// `None` where its member's index has been given up: the sweep finds its reverse entry later.
    pub client: Option<Client>,
    /// Why; for what was [`FlowState::Closed`] before the packet program has told it.
    pub reason: CloseReason,
    /// Ticks since its last packet.
    pub idle: u16,
}

/// Sweeps one bucket of the flow table. `now` is the current tick.
pub fn flow_bucket<T: Tables>(
    tables: &T,
    config: &Config,
    bucket: u32,
    now: u16,
    observer: &mut impl Observer,
) {
    let Some(cells) = tables.flow_bucket(bucket) else { return };
    for way in 0..FLOW_WAYS {
        let word = FlowWord(cells.load(flow_table::word_cell(way)));
        if !word.state().is_live() {
            continue;
        }
        observer.flow(word.state(), word.member());
        let slot = Slot { cells, bucket, way, word };
        if observer.is_unwanted(word.member()) || is_stale(tables, word) {
            evict(tables, config, &slot, CloseReason::BackendRemoved, now, observer);
            continue;
        }
        let expired = flow_table::is_expired(tables, config, word, flow_table::last_seen(cells, way), now);
        match (expired, word.is_doomed()) {
            (true, true) => evict(tables, config, &slot, CloseReason::Timeout, now, observer),
            (true, false) => {
                cells.replace(flow_table::word_cell(way), word.0, word.doomed().0);
            }
            (false, true) => {
                let saved = word.with_state(word.state());
                cells.replace(flow_table::word_cell(way), word.0, saved.0);
            }
            (false, false) => {}
        }
    }
}

/// Evicts a flow unless it has changed.
fn evict<T: Tables>(
    tables: &T,
    config: &Config,
    slot: &Slot<T::Cells>,
    reason: CloseReason,
    now: u16,
    observer: &mut impl Observer,
) {
    let client_idle = clock::age(now, flow_table::last_seen(slot.cells, slot.way));
    let other_side = other_side(tables, config, slot);
    let backend_idle = other_side.map_or(client_idle, |(_, last_seen)| clock::age(now, last_seen));
    let ended = Ended {
        flow: slot.reference(),
        tag: slot.tag(),
        word: slot.word,
        client: other_side.map(|(client, _)| client),
        reason: CloseReason::of(slot.word.state(), reason),
        idle: client_idle.min(backend_idle).ticks(),
    };
    if flow_table::evict(tables, config, slot) {
        observer.evicted(&ended);
    }
}

/// What the reverse entry of a flow says: the client, and when the backend was seen.
fn other_side<T: Tables>(tables: &T, config: &Config, slot: &Slot<T::Cells>) -> Option<(Client, u16)> {
    let member = tables.member(slot.word.member())?;
    let head = MemberHead::load(member);
    if !head.is_of(slot.word) {
        return None;
    }
    if member::is_v6(member) {
        other_side_of::<V6, T>(tables, config, head.backend(), slot)
    } else {
        other_side_of::<V4, T>(tables, config, head.backend(), slot)
    }
}

fn other_side_of<F: Family, T: Tables>(
    tables: &T,
    config: &Config,
    backend: u32,
    slot: &Slot<T::Cells>,
) -> Option<(Client, u16)> {
    let (cells, first, word) =
        reverse_table::of_flow::<F, T>(tables, config, backend, slot.word, slot.reference())?;
    let entry = reverse_table::read::<F, T::Cells>(cells, first, word)?;
    Some((Client::of(&entry), entry.last_seen()))
}

/// Whether a flow's member is no longer the one it was made for.
fn is_stale<T: Tables>(tables: &T, word: FlowWord) -> bool {
    tables.member(word.member()).is_none_or(|member| !MemberHead::load(member).is_of(word))
}

/// Sweeps one bucket of the reverse table: an entry whose flow is gone is removed. The packet program evicts
/// forward entries first, so it may be just about to do that; whoever wins gives the port back.
pub fn reverse_bucket<F: Family, T: Tables>(
    tables: &T,
    config: &Config,
    bucket: u32,
    observer: &mut impl Observer,
) {
    let Some(cells) = F::reverse_bucket(tables, bucket) else { return };
    for way in 0..REVERSE_WAYS as usize {
        let first = way * F::REVERSE_CELLS;
        let word = ReverseWord(cells.load(first));
        if !word.is_live() {
            continue;
        }
        let Some(entry) = reverse_table::read::<F, T::Cells>(cells, first, word) else { continue };
        if has_flow(tables, entry.flow, word) {
            observer.last_hop(entry.last_hop);
        } else if reverse_table::remove_entry(tables, config, cells, first, word) {
            observer.orphan(entry.flow, &Client::of(&entry));
            observer.mended();
        }
    }
}

/// Whether the flow that a reverse entry names exists, or is just being made.
fn has_flow<T: Tables>(tables: &T, flow: FlowRef, entry: ReverseWord) -> bool {
    let Some(cells) = tables.flow_bucket(flow.slot / FLOW_WAYS) else { return false };
    let cell = flow_table::word_cell(flow.slot % FLOW_WAYS);
    // A load may see the slot as it was before the entry was written. An exchange sees the latest; it costs
    // the packet program its cache line, so only an entry that is about to be removed gets one.
    is_flow_of(FlowWord(cells.load(cell)), flow, entry)
        || is_flow_of(FlowWord(cells.compare_exchange(cell, 0, 0)), flow, entry)
}

/// Whether this is the word of the flow that a reverse entry names, or may become it.
fn is_flow_of(word: FlowWord, flow: FlowRef, entry: ReverseWord) -> bool {
    match word.state() {
        FlowState::Empty => false,
        FlowState::Claimed => word.version() == flow.version,
        _ => entry.is_of(flow, word),
    }
}

/// Ports of one bitmap that were taken without a reverse entry when the sweep last looked.
pub type Suspects = [u64; PORT_BITMAP_WORDS];

/// Sweeps the bitmap of one (backend, SNAT address): a port that is taken but has no reverse entry in two
/// passes is given back. One pass may see a flow between taking its port and publishing its entry, so passes
/// must lie at least a tick apart.
///
/// Two passes may still see two flows that do so, one after the other, and then a port is given back that is in
/// use. Whoever takes it next finds the entry that has it (`reverse_table::insert`).
pub fn ports<F: Family, T: Tables>(
    tables: &T,
    config: &Config,
    backend: u32,
    snat: u8,
    suspects: &mut Suspects,
    observer: &mut impl Observer,
) {
    let Some(bitmap) = tables.ports(ports::bitmap_index(config, backend, snat)) else { return };
    for (index, suspect) in suspects.iter_mut().enumerate().take(config.port_words as usize) {
        let orphans_of = |taken: u64| {
            let mut orphans = 0;
            let mut left = taken;
            while left != 0 {
                let bit = left.trailing_zeros();
                left &= left - 1;
                let port = config.port_base.wrapping_add((index as u32 * 64 + bit) as u16);
                if !reverse_table::exists::<F, T>(tables, config, backend, snat, port) {
                    orphans |= 1 << bit;
                }
            }
            orphans
        };
        let orphans = orphans_of(bitmap.load(index));
        // Looking takes its time: a port whose entry had just gone may have been given out anew meanwhile.
        let proven = orphans_of(bitmap.load(index) & orphans & *suspect);
        if proven != 0 {
            bitmap.fetch_and(index, !proven);
            observer.mended();
        }
        *suspect = orphans & !proven;
    }
}

/// Whether no port of a backend is taken at any SNAT address: only then may its index be given to another.
pub fn has_no_ports<T: Tables>(tables: &T, config: &Config, backend: u32) -> bool {
    (0..config.snat_stride).all(|snat| {
        tables
            .ports(ports::bitmap_index(config, backend, snat as u8))
            .is_none_or(|bitmap| (0..PORT_BITMAP_WORDS).all(|word| bitmap.load(word) == 0))
    })
}

/// Frees a last hop that no flow names, unless one was given it within the last `quiet` ticks. `index` must
/// have been unnamed throughout a whole pass over the reverse tables.
pub fn free_last_hop<T: Tables>(tables: &T, index: u16, now: u16, quiet: u16) -> bool {
    let Some(cells) = tables.last_hop(index as u32) else { return false };
    let word = LastHopWord(cells.load(0));
    word.is_in_use()
        && clock::age(now, word.tick()).exceeds(quiet)
        && cells.replace(0, word.0, LastHopWord::FREE.0)
}

/// A flow as people want to see it; assembled from a reverse entry and its forward word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowView {
    /// 4 or 6.
    pub family: u8,
    /// Client's address, network order, IPv4 in the first four bytes.
    pub client: [u8; 16],
    /// Client's port, network order.
    pub client_port: [u8; 2],
    /// Member.
    pub member: u32,
    /// Backend.
    pub backend: u32,
    /// SNAT address.
    pub snat: u8,
    /// SNAT port, host order.
    pub snat_port: u16,
    /// State.
    pub state: FlowState,
    /// Ticks since either side was seen.
    pub idle: u16,
}

/// Calls `see` for each flow of one reverse bucket.
pub fn flows<F: Family, T: Tables>(tables: &T, bucket: u32, now: u16, mut see: impl FnMut(FlowView)) {
    let Some(cells) = F::reverse_bucket(tables, bucket) else { return };
    for way in 0..REVERSE_WAYS as usize {
        let first = way * F::REVERSE_CELLS;
        let word = ReverseWord(cells.load(first));
        if !word.is_live() {
            continue;
        }
        let Some(entry) = reverse_table::read::<F, T::Cells>(cells, first, word) else { continue };
        let Some(slot) = flow_table::of_entry(tables, entry.flow, word) else { continue };
        if !slot.word.state().is_live() {
            continue;
        }
        let client_idle = clock::age(now, flow_table::last_seen(slot.cells, slot.way));
        see(FlowView {
            family: F::NUMBER,
            client: bytemuck::cast(F::raw(entry.client)),
            client_port: entry.client_port.to_ne_bytes(),
            member: entry.member,
            backend: word.backend(),
            snat: word.snat(),
            snat_port: word.port(),
            state: slot.word.state(),
            idle: client_idle.min(clock::age(now, entry.last_seen())).ticks(),
        });
    }
}

/// Both families' flows in the buckets of one number; a bucket beyond a table's end holds none.
pub fn all_flows<T: Tables>(tables: &T, bucket: u32, now: u16, mut see: impl FnMut(FlowView)) {
    flows::<V4, T>(tables, bucket, now, &mut see);
    flows::<V6, T>(tables, bucket, now, &mut see);
}
