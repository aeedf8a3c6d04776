//! With which backend a client stays, for services that ask for that (`sessionAffinity: ClientIP`).
//!
//! A client is its address: each port of a service remembers it by itself, as kube-proxy does. Until it is remembered,
//! its place in the ring is that of its address alone, so that connections that it opens at once agree. What is
//! remembered goes before the ring, and so outlives it; a backend that takes no new flows, or is tripped, goes before
//! that, and whoever is selected in its stead is remembered from then on.

use super::{
    Cells, Maps,
    member::MemberHead,
    select::{self, Search},
    sources, trip,
};
use crate::{
    abi::{AFFINITY_WAYS, AffinityWord, ClientWord, Config, Counter, FlowWord, StayWord},
    clock::TICK_SHIFT,
    hash,
};

/// Tries to write an entry while other CPUs write to the same bucket.
const WRITE_TRIES: u64 = 3;

/// The member that the client is with, while it takes new flows, as `select::walk` returns it. Two calls, one after the
/// other: for one there is too little room behind the caller's stack frame.
#[inline(always)]
pub(super) fn find<M: Maps>(maps: &M, config: &Config, search: &Search) -> u64 {
    vetted(maps, config, search, remembered(maps, config, search))
}

/// Member and generation, as in [`AffinityWord`]; 0: none.
#[inline(never)]
fn remembered<M: Maps>(maps: &M, config: &Config, search: &Search) -> u64 {
    let stay = sources::asked(maps, search.service).stay();
    if stay == 0 {
        return 0;
    }
    let key = hash::affinity(&config.flow_key, search.ring_hash);
    let Some(cells) = maps.affinity(hash::affinity_bucket(key, config.flow_bucket_mask)) else { return 0 };
    let now = search.now >> TICK_SHIFT;
    let mut way = 0;
    while way < AFFINITY_WAYS as u64 {
        let word = AffinityWord(cells.load(word_cell(way)));
        if word.is_of(key) && StayWord(cells.load(stay_cell(way))).age(now) <= stay {
            return config.forget(word.0 as u32) as u64;
        }
        way += 1;
    }
    0
}

/// A member that was remembered, if it is as good as any now.
#[inline(never)]
fn vetted<M: Maps>(maps: &M, config: &Config, search: &Search, remembered: u64) -> u64 {
    let word = AffinityWord(remembered);
    let index = word.member();
    if index == 0 || !select::is_good(maps, search, index, word.generation()) {
        return select::NOBODY;
    }
    maps.count(Counter::FlowAffine);
    config.forget(index) as u64
}

/// Remembers that the client's newest flow went to a member; a tripped one is not worth it. The hash is that of its
/// place in the ring.
#[inline(always)]
pub(super) fn remember<M: Maps>(
    maps: &M,
    config: &Config,
    asked: ClientWord,
    ring_hash: u64,
    flow: FlowWord,
    now: u64,
) {
    let Some(member) = maps.member(flow.member()) else { return };
    let Some(backend) = maps.backend(MemberHead::load(member).backend()) else { return };
    let key = hash::affinity(&config.flow_key, ring_hash);
    let Some(cells) = maps.affinity(hash::affinity_bucket(key, config.flow_bucket_mask)) else { return };
    if trip::is_tripped(backend, now) {
        return;
    }
    let now = now >> TICK_SHIFT;
    let wanted = AffinityWord::new(key, flow.member(), flow.generation());
    let stay = StayWord::new(now, asked.stay());
    let mut tries = 0;
    while tries < WRITE_TRIES {
        tries += 1;
        let (way, is_own) = place(config, cells, key, now);
        let before = cells.load(word_cell(way));
        // Somebody may have written to it since.
        if is_own != AffinityWord(before).is_of(key) {
            continue;
        }
        let left = StayWord(cells.load(stay_cell(way))).left(now);
        if before != wanted.0 && !cells.replace(word_cell(way), before, wanted.0) {
            continue;
        }
        if cells.load(stay_cell(way)) != stay.0 {
            cells.store(stay_cell(way), stay.0);
        }
        if !is_own {
            if AffinityWord(before).member() != 0 && left > 0 {
                maps.count(Counter::AffinityDisplaced);
            }
            keep_one(cells, key);
        }
        return;
    }
}

/// The way of a client, or else that of the one whose stay ends first; whether it is the client's own.
#[inline(always)]
fn place<C: Cells>(config: &Config, cells: C, key: u64, now: u64) -> (u64, bool) {
    let mut best: u32 = 0;
    let mut least = u64::MAX;
    let mut is_own = false;
    let mut way = 0;
    while way < AFFINITY_WAYS as u64 {
        let word = AffinityWord(cells.load(word_cell(way)));
        let left = if word.member() == 0 { 0 } else { StayWord(cells.load(stay_cell(way))).left(now) };
        if !is_own && word.is_of(key) {
            (best, is_own) = (way as u32, true);
        } else if !is_own && left < least {
            (best, least) = (way as u32, left);
        }
        // The verifier would follow each way on its own.
        best = config.forget(best);
        way += 1;
    }
    (best as u64, is_own)
}

/// After a client was put into a way: where another CPU put it into another one at the same time, the lower one stays.
/// Each looks after its own exchange, so at least one of the two sees both.
#[inline(always)]
fn keep_one<C: Cells>(cells: C, key: u64) {
    let mut seen_lower = false;
    let mut way = 0;
    while way < AFFINITY_WAYS as u64 {
        let word = cells.load(word_cell(way));
        if AffinityWord(word).is_of(key) {
            if seen_lower {
                cells.compare_exchange(word_cell(way), word, AffinityWord::EMPTY.0);
            }
            seen_lower = true;
        }
        way += 1;
    }
}

#[inline(always)]
const fn word_cell(way: u64) -> usize {
    way as usize * 2
}

#[inline(always)]
const fn stay_cell(way: u64) -> usize {
    way as usize * 2 + 1
}
