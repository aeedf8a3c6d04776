//! Which member a new flow gets: the key's place in the service's ring, then the next candidates.

use super::{Cells, Maps, member, member::MemberHead};
use crate::{
    abi::{RingWord, backend_flags},
    hash,
};

/// Candidates that are looked at in the ring. The walk is a function of the key alone, so a backend that
/// flaps moves nobody else's flows.
const RING_CANDIDATES: u32 = 8;
/// Candidates that are looked at in the fallback ring, which names usable backends only.
const FALLBACK_CANDIDATES: u32 = 4;

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
    let ring = RingWord(descriptor.load(0));
    if let Some(selected) = walk(maps, service, ring, ring_hash, RING_CANDIDATES) {
        return Some(selected);
    }
    let fallback = RingWord(descriptor.load(1));
    walk(maps, service, fallback, ring_hash, FALLBACK_CANDIDATES)
}

#[inline(always)]
fn walk<M: Maps>(
    maps: &M,
    service: u32,
    ring: RingWord,
    ring_hash: u64,
    candidates: u32,
) -> Option<Selected<M::Cells>> {
    if !ring.is_some() {
        return None;
    }
    let mut attempt = 0;
    while attempt < candidates {
        let slot = ring.slot(hash::candidate(ring_hash, attempt));
        attempt += 1;
        let pair = maps.ring_pair(ring.offset().wrapping_add(slot >> 1))?.load(0);
        let index = if slot & 1 == 0 { pair as u32 } else { (pair >> 32) as u32 };
        if let Some(selected) = usable(maps, service, index) {
            return Some(selected);
        }
    }
    None
}

#[inline(always)]
fn usable<M: Maps>(maps: &M, service: u32, index: u32) -> Option<Selected<M::Cells>> {
    let cells = maps.member(index)?;
    let head = MemberHead::load(cells);
    if !head.takes_new_flows() || member::service(cells) != service {
        return None;
    }
    let flags = maps.backend(head.backend())?.load(0) as u32;
    if flags & backend_flags::USABLE == 0 { None } else { Some(Selected { index, cells, head }) }
}
