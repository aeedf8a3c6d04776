//! Which member a flow gets: the key's place in the service's ring, then the next candidates.

use super::{Cells, Maps, member, member::MemberHead, trip};
use crate::{
    abi::{Config, RingWord, backend_flags},
    hash,
};

/// Candidates that are looked at in the ring. The walk is a function of the key alone, so a backend that
/// flaps moves nobody else's flows.
const RING_CANDIDATES: u64 = 8;
/// Candidates that are looked at in the fallback ring for a new flow. A candidate may be the one before it again, so
/// these are many: where one of two backends is tripped, all of them are that one for one key in 65,536.
pub(super) const FALLBACK_CANDIDATES: u64 = 16;
/// The same for a rescue, which may look for one cluster among several.
pub(super) const RESCUE_CANDIDATES: u64 = 48;

/// Whom a key is looked up for.
#[derive(Clone, Copy)]
pub(super) struct Search {
    /// The service.
    pub service: u32,
    /// The key's hash.
    pub ring_hash: u64,
    /// The time, in nanoseconds.
    pub now: u64,
    /// Members that it must not be; 0: none.
    pub tried: [u32; 2],
    /// The cluster that it is better not of; 0: whichever.
    pub cluster: u32,
    /// Candidates in the fallback ring.
    pub candidates: u64,
}

/// A member that takes new flows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Selected {
    /// Its index.
    pub index: u32,
    /// Its cell 2 as it was read.
    pub head: MemberHead,
    /// It is tripped; there was no other one.
    pub tripped: bool,
}

/// How welcome a candidate is; smaller is better.
const GOOD: u32 = 0;
/// Of the cluster that it is better not of.
const SAME_CLUSTER: u32 = 1;
const TRIPPED: u32 = 2;
const UNUSABLE: u32 = 3;

/// Nobody that takes a flow, as [`walk`] returns it.
pub(super) const NOBODY: u64 = (UNUSABLE as u64) << 32;

/// Selects a member for a key; `None`: no usable backend. A tripped one is better than none.
#[inline(always)]
pub(super) fn select<M: Maps>(maps: &M, config: &Config, search: &Search) -> Option<Selected> {
    let descriptor = maps.descriptor(search.service)?;
    let mut best = walk(maps, config, search, RingWord(descriptor.load(0)), RING_CANDIDATES);
    if class(best) != GOOD {
        let fallback = walk(maps, config, search, RingWord(descriptor.load(1)), search.candidates);
        if class(fallback) < class(best) {
            best = fallback;
        }
    }
    selected(maps, best)
}

/// The same, but first of all who is known already: a good member, or [`NOBODY`].
#[inline(always)]
pub(super) fn select_after<M: Maps>(
    maps: &M,
    config: &Config,
    search: &Search,
    known: u64,
) -> Option<Selected> {
    // Looked up where it is needed: kept, it would need room on the kernel's stack.
    let ring = |cell| RingWord(maps.descriptor(search.service).map_or(0, |cells| cells.load(cell)));
    let mut best = known;
    if class(best) != GOOD {
        best = walk(maps, config, search, ring(0), RING_CANDIDATES);
    }
    if class(best) != GOOD {
        let fallback = walk(maps, config, search, ring(1), search.candidates);
        if class(fallback) < class(best) {
            best = fallback;
        }
    }
    selected(maps, best)
}

/// The member that a search found.
#[inline(always)]
fn selected<M: Maps>(maps: &M, best: u64) -> Option<Selected> {
    if class(best) >= UNUSABLE {
        return None;
    }
    let index = best as u32;
    let head = MemberHead::load(maps.member(index)?);
    Some(Selected { index, head, tripped: class(best) == TRIPPED })
}

/// The class of what [`walk`] returns.
#[inline(always)]
const fn class(found: u64) -> u32 {
    (found >> 32) as u32
}

/// The first of the best members among a key's candidates in a ring, its class above its index. A call that
/// returns one register: inlined, it would not fit into the caller's stack frame.
#[inline(never)]
fn walk<M: Maps>(maps: &M, config: &Config, search: &Search, ring: RingWord, candidates: u64) -> u64 {
    let mut best_class = UNUSABLE;
    let mut best = 0;
    if ring.is_some() {
        // The verifier would follow each size on its own, through each candidate anew.
        let slots = config.forget(ring.slots());
        let mut attempt = 0;
        while attempt < candidates && best_class != GOOD {
            let slot = RingWord::slot_of(hash::candidate(search.ring_hash, attempt as u32), slots);
            attempt += 1;
            let Some(pair) = maps.ring_pair(ring.offset().wrapping_add(slot >> 1)) else { break };
            let index = (pair.load(0) >> ((slot & 1) * 32)) as u32;
            let class = config.forget(class_of(maps, search, index));
            if class < best_class {
                best_class = class;
                best = index;
            }
            // The verifier would follow each class and each index on its own.
            best_class = config.forget(best_class);
            best = config.forget(best);
        }
    }
    (best_class as u64) << 32 | best as u64
}

/// Whether a member is as good as any, and the index still has this generation.
#[inline(always)]
pub(super) fn is_good<M: Maps>(maps: &M, search: &Search, index: u32, generation: u8) -> bool {
    let Some(cells) = maps.member(index) else { return false };
    MemberHead::load(cells).generation() == generation && class_of(maps, search, index) == GOOD
}

#[inline(always)]
fn class_of<M: Maps>(maps: &M, search: &Search, index: u32) -> u32 {
    let Some(cells) = maps.member(index) else { return UNUSABLE };
    let head = MemberHead::load(cells);
    let [first, second] = search.tried;
    if !head.takes_new_flows()
        || member::service(cells) != search.service
        || index == first
        || index == second
    {
        return UNUSABLE;
    }
    let Some(backend) = maps.backend(head.backend()) else { return UNUSABLE };
    if backend.load(0) as u32 & backend_flags::USABLE == 0 {
        return UNUSABLE;
    }
    if trip::is_tripped(backend, search.now) {
        return TRIPPED;
    }
    if search.cluster != 0 && cluster(backend) == search.cluster { SAME_CLUSTER } else { GOOD }
}

/// The cluster of a backend; 0: unknown.
#[inline(always)]
pub(super) fn cluster<C: Cells>(backend: C) -> u32 {
    (backend.load(5) >> 32) as u32
}
