//! Where the first fragments of packets went, for those that come after them, and identifications for what is sent on.

use super::{Cells, Family, Maps, parse::Fragment, parse::Ip, setup};
use crate::{
    abi::{
        Config, Counter, FRAGMENT_RECORDS, FRAGMENT_TICKS, FRAGMENT_WAYS, FlowRef, FragmentPath,
        FragmentWord, pack_fragment_flow, unpack_fragment_flow,
    },
    clock::TICK_SHIFT,
    hash::{self, FlowHash},
};

// Cells of an element.
const WORD: usize = 0;
/// Identification, and in the upper half the tick.
const STAMP: usize = 1;
const PATH: usize = 2;
const FLOW: usize = 3;
const CLIENT: usize = 4;
const GIVEN: usize = 7;

/// No element.
const NONE: u32 = FRAGMENT_RECORDS;
/// A packet whose first fragment is younger may have others on the way: about a second.
const RECENT: u32 = 4;

/// Where a packet's fragments go.
#[derive(Clone, Copy)]
pub(super) struct Record {
    pub path: FragmentPath,
    pub flow: FlowRef,
    /// The client, as [`Family::raw`] gives it, where the path is to him.
    pub client: [u64; 2],
}

/// The keyed hash of what makes fragments those of one packet (RFC 791, §2.3; RFC 8200, §4.5).
#[inline(always)]
pub(super) fn key<F: Family>(config: &Config, ip: &Ip<F>, fragment: &Fragment) -> FlowHash {
    setup::pair_hash::<F>(config, ip.source, ip.destination, fragment.id, protocol_of_ids(ip))
}

/// The keyed hash of those who share a range of identifications.
#[inline(always)]
pub(super) fn pair<F: Family>(
    config: &Config,
    ip: &Ip<F>,
    source: F::Address,
    destination: F::Address,
) -> FlowHash {
    setup::pair_hash::<F>(config, source, destination, 0, protocol_of_ids(ip))
}

/// The protocol, where it tells identifications apart. In IPv6 it doesn't, and of later fragments it is not known.
#[inline(always)]
fn protocol_of_ids<F: Family>(ip: &Ip<F>) -> u8 {
    if F::IDS_BY_PROTOCOL { ip.protocol } else { 0 }
}

/// Keeps where the fragments of a packet go, and returns the identification that they leave with, one of `pair`'s own.
#[inline(always)]
pub(super) fn keep<M: Maps>(
    maps: &M,
    config: &Config,
    key: FlowHash,
    pair: FlowHash,
    record: &Record,
) -> u32 {
    let now = tick(maps);
    let Some(cells) = maps.fragment(place(maps, config, key, now) as u32) else { return fresh(maps, pair) };
    let word = FragmentWord(cells.load(WORD));
    let stamp = cells.load(STAMP);
    let flow = pack_fragment_flow(record.flow);
    let age = age(now, stamp);
    // A first fragment that the network has doubled must not part the later ones from it.
    let is_double = word.is_of(key.tag()) && cells.load(FLOW) == flow && age <= 1;
    let id = config.forget(if is_double { stamp as u32 } else { fresh(maps, pair) });
    let claimed = word.claimed(key.tag());
    // Somebody else writes there: these fragments will be lost, and counted.
    if word.is_claimed() || !cells.replace(WORD, word.0, claimed.0) {
        return id;
    }
    if !word.is_empty() && !word.is_of(key.tag()) && age < RECENT {
        maps.count(Counter::FragmentDisplaced);
    }
    cells.store(STAMP, id as u64 | (now as u64) << 32);
    cells.store(PATH, record.path.0);
    cells.store(FLOW, flow);
    cells.store(CLIENT, record.client[0]);
    cells.store(CLIENT + 1, record.client[1]);
    cells.compare_exchange(WORD, claimed.0, claimed.complete().0);
    maps.count(Counter::FragmentTracked);
    id
}

/// Where the first fragment of a packet went, and the identification that it left with.
#[inline(always)]
pub(super) fn find<M: Maps>(maps: &M, config: &Config, key: FlowHash) -> Option<(Record, u32)> {
    let now = tick(maps);
    let cells = maps.fragment(place(maps, config, key, now) as u32)?;
    let word = FragmentWord(cells.load(WORD));
    let stamp = cells.load(STAMP);
    if !word.is_of(key.tag()) || age(now, stamp) as u64 > FRAGMENT_TICKS {
        return None;
    }
    let record = Record {
        path: FragmentPath(cells.load(PATH)),
        flow: unpack_fragment_flow(cells.load(FLOW)),
        client: [cells.load(CLIENT), cells.load(CLIENT + 1)],
    };
    // An exchange sees the latest word: where it is the same, nobody has begun to write meanwhile.
    cells.replace(WORD, word.0, word.0).then_some((record, stamp as u32))
}

/// The element that has a packet's record, or else the one to put it into: an empty one, or the oldest.
#[inline(never)]
fn place<M: Maps>(maps: &M, config: &Config, key: FlowHash, now: u32) -> u64 {
    let set = key.first_bucket(config.flow_bucket_mask) & (FRAGMENT_RECORDS / FRAGMENT_WAYS - 1);
    let first = config.forget(set * FRAGMENT_WAYS);
    let (mut best, mut most) = (NONE, 0);
    let mut way = 0_u64;
    while way < FRAGMENT_WAYS as u64 {
        let index = first + way as u32;
        way += 1;
        let Some(cells) = maps.fragment(index) else { return NONE as u64 };
        let word = FragmentWord(cells.load(WORD));
        if word.is_of(key.tag()) {
            return config.forget(index) as u64;
        }
        let worth = if word.is_empty() {
            u32::MAX
        } else if word.is_claimed() {
            0
        } else {
            age(now, cells.load(STAMP)) + 1
        };
        if worth > most {
            (best, most) = (index, worth);
        }
        // The verifier would follow each way on its own.
        (best, most) = (config.forget(best), config.forget(most));
    }
    best as u64
}

/// The next identification of a pair. It begins somewhere else for each pair, and several pairs count together, so that
/// nobody can tell the next one (RFC 7739, §5.3).
#[inline(always)]
fn fresh<M: Maps>(maps: &M, pair: FlowHash) -> u32 {
    let element = maps.fragment(pair.port_start() as u32 & (FRAGMENT_RECORDS - 1));
    let given = element.map_or(0, |cells| cells.fetch_add(GIVEN, 1));
    ((hash::finish(pair.low ^ pair.high) >> 32) as u32).wrapping_add(given as u32)
}

#[inline(always)]
fn tick<M: Maps>(maps: &M) -> u32 {
    (maps.now() >> TICK_SHIFT) as u32
}

/// Ticks since a record was made; 0 where another CPU's clock is ahead.
#[inline(always)]
const fn age(now: u32, stamp: u64) -> u32 {
    let age = now.wrapping_sub((stamp >> 32) as u32);
    if age > i32::MAX as u32 { 0 } else { age }
}
