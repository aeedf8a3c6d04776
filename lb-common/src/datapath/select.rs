//! Which member a new flow gets: the key's place in the service's ring, then the next candidates.

use super::{Cells, Maps, member, member::MemberHead};
use crate::{
    abi::{RingWord, backend_flags},
    hash,
};

/// Candidates that are looked at in the ring. The walk is a function of the key alone, so a backend that
/// flaps moves nobody else's flows.
const RING_CANDIDATES: u64 = 8;
/// Candidates that are looked at in the fallback ring, which names usable backends only.
const FALLBACK_CANDIDATES: u64 = 4;

/// A member that takes new flows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Selected<C> {
    /// Its index.
    pub index: u32,
    /// Its line.
    pub cells: C,
    /// Its cell 2 as it was read.
    pub head: MemberHead,
}

/// Selects a member for a key; `None`: no usable backend.
#[inline(always)]
pub(super) fn select<M: Maps>(maps: &M, service: u32, ring_hash: u64) -> Option<Selected<M::Cells>> {
    let descriptor = maps.descriptor(service)?;
    let mut index = walk(maps, service, RingWord(descriptor.load(0)), ring_hash, RING_CANDIDATES);
    if index == 0 {
        index = walk(maps, service, RingWord(descriptor.load(1)), ring_hash, FALLBACK_CANDIDATES);
    }
    if index == 0 {
        return None;
    }
    let cells = maps.member(index)?;
    Some(Selected { index, cells, head: MemberHead::load(cells) })
}

/// The first usable member among a key's candidates in a ring; 0: none.
#[inline(never)]
fn walk<M: Maps>(maps: &M, service: u32, ring: RingWord, ring_hash: u64, candidates: u64) -> u32 {
    if !ring.is_some() {
        return 0;
    }
    let mut attempt = 0;
    while attempt < candidates {
        let slot = ring.slot(hash::candidate(ring_hash, attempt as u32));
        attempt += 1;
        let Some(pair) = maps.ring_pair(ring.offset().wrapping_add(slot >> 1)) else { return 0 };
        let pair = pair.load(0);
        let index = if slot & 1 == 0 { pair as u32 } else { (pair >> 32) as u32 };
        if is_usable(maps, service, index) {
            return index;
        }
    }
    0
}

#[inline(always)]
fn is_usable<M: Maps>(maps: &M, service: u32, index: u32) -> bool {
    let Some(cells) = maps.member(index) else { return false };
    let head = MemberHead::load(cells);
    if !head.takes_new_flows() || member::service(cells) != service {
        return false;
    }
    let Some(backend) = maps.backend(head.backend()) else { return false };
    backend.load(0) as u32 & backend_flags::USABLE != 0
}
