//! Trips: a backend to which connections fail, one after the other, gets no new flows for a time. It ends by itself.

use super::{Cells, Maps};
use crate::abi::ReactionWord;

/// Cells of a backend.
const TRIPPED_UNTIL: usize = 1;
const ERRORS: usize = 2;

/// Tries to count an error while other CPUs count theirs. Each failure is another error that was counted.
const COUNT_TRIES: u64 = 8;

/// Whether a backend is tripped.
#[inline(always)]
pub(super) fn is_tripped<C: Cells>(backend: C, now: u64) -> bool {
    backend.load(TRIPPED_UNTIL) > now
}

/// A connection to a backend failed. The number of errors at which it has just been tripped, 0 where it has not.
#[inline(always)]
pub(super) fn failed<M: Maps>(maps: &M, reaction: ReactionWord, backend: u32, now: u64) -> u64 {
    let Some(cells) = maps.backend(backend) else { return 0 };
    let until = cells.load(TRIPPED_UNTIL);
    // What fails while it is tripped began before, or had no other backend to go to.
    if reaction.errors() == 0 || until > now {
        return 0;
    }
    let mut tries = 0;
    while tries < COUNT_TRIES {
        tries += 1;
        let before = cells.load(ERRORS);
        let errors = before.wrapping_add(1);
        let trips = errors >= reaction.errors();
        if cells.replace(ERRORS, before, if trips { 0 } else { errors }) {
            // Of several who see the last error only one trips it.
            return if trips
                && cells.replace(TRIPPED_UNTIL, until, now.wrapping_add(reaction.trip_nanoseconds()))
            {
                errors
            } else {
                0
            };
        }
    }
    0
}

/// A backend answered a SYN: what failed before was not in a row with what may fail next.
#[inline(always)]
pub(super) fn answered<M: Maps>(maps: &M, backend: u32) {
    if let Some(cells) = maps.backend(backend)
        && cells.load(ERRORS) != 0
    {
        cells.store(ERRORS, 0);
    }
}
