//! How many flows a client's network may begin in a second, for services that limit it (`newFlowLimit`).
//!
//! A network is one address over IPv4, a /64 over IPv6, unless the service asks for prefixes of another length. It may begin the flows of a second at once; then they come back
//! one by one. The table is small, and who has used least of his share makes room: a network that floods stays in it,
//! one that is forgotten begins anew with all its flows.

use super::{Cells, Maps, sources};
use crate::abi::{Config, LIMIT_BUCKETS, LIMIT_WAYS, LimitWord};

/// Tries to write an entry while other CPUs write to the same bucket.
const WRITE_TRIES: u64 = 3;
/// Where a way's score stands, above its number.
const SCORE_SHIFT: u32 = 3;

/// Whether a network may begin one more flow of a service now (`now` in nanoseconds), which is noted. The hash is that of
/// network and service. A call: its values would fill the caller's stack frame.
#[inline(never)]
pub(super) fn admits<M: Maps>(maps: &M, config: &Config, service: u32, hash: u64, now: u64) -> bool {
    let interval = sources::asked(maps, service).interval();
    let Some(cells) = maps.new_flows(hash as u32 & (LIMIT_BUCKETS - 1)) else { return true };
    let mut tries = 0;
    while tries < WRITE_TRIES {
        tries += 1;
        let way = place(config, cells, hash, now) as usize & (LIMIT_WAYS as usize - 1);
        let seen = LimitWord(cells.load(way));
        let spent = if seen.is_of(hash) { seen.ahead(now) } else { 0 };
        let spent = spent.wrapping_add(interval);
        if spent > LimitWord::BURST {
            return false;
        }
        if cells.replace(way, seen.0, LimitWord::new(hash, now.wrapping_add(spent)).0) {
            return true;
        }
    }
    // So busy is a bucket only where others are let in too.
    true
}

/// The way of a network, or else of the one that has used least.
#[inline(always)]
fn place<C: Cells>(config: &Config, cells: C, hash: u64, now: u64) -> u32 {
    let mut best = u32::MAX;
    let mut way = 0;
    while way < LIMIT_WAYS as u64 {
        let word = LimitWord(cells.load(way as usize));
        // In units of 16 ns, so that it has room above the way's number.
        let score = if word.is_of(hash) { 0 } else { (word.ahead(now) >> 4) as u32 + 1 };
        let candidate = config.forget(score << SCORE_SHIFT | way as u32);
        // The verifier would follow each way on its own.
        best = config.forget(if candidate < best { candidate } else { best });
        way += 1;
    }
    best
}
