//! How many flows each client's network may begin, where a service limits that.

use bytemuck::{Pod, Zeroable};

use super::assert_layout;

/// Networks that a bucket of `NEW_FLOWS` knows.
pub const LIMIT_WAYS: u32 = 8;
/// Elements of the array `NEW_FLOWS`, a power of two: 4,096 networks in 32 KiB.
pub const LIMIT_BUCKETS: u32 = 512;

/// Element of the array `NEW_FLOWS`: one cache line.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct LimitBucket {
    /// [`LimitWord`]s, changed by compare-exchange only.
    pub ways: [u64; LIMIT_WAYS as usize],
}

/// What a network has left of its flows.
///
/// | bits | field |
/// |---|---|
/// | 0–47 | when it has all the flows of a second again, in nanoseconds modulo 2^48 |
/// | 48–63 | 16 bits of the hash of network and service |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitWord(pub u64);

impl LimitWord {
    /// What a network may have begun at once, in nanoseconds of its rate: the flows of a second.
    pub const BURST: u64 = 1_000_000_000;
    const TIME: u64 = 0xffff_ffff_ffff;

    /// Packs it; `full` is a time in nanoseconds, of the hash the upper 16 bits are kept.
    #[must_use]
    #[inline(always)]
    pub const fn new(hash: u64, full: u64) -> Self {
        Self(full & Self::TIME | hash >> 48 << 48)
    }

    /// Whether it is about the network and service with this hash.
    #[must_use]
    #[inline(always)]
    pub const fn is_of(self, hash: u64) -> bool {
        (self.0 ^ hash) >> 48 == 0
    }

    /// Nanoseconds until it has all its flows again; 0: it has. What lies further ahead than anything can, but for the
    /// clocks of other CPUs, is a time long ago.
    #[must_use]
    #[inline(always)]
    pub const fn ahead(self, now: u64) -> u64 {
        let ahead = self.0.wrapping_sub(now) & Self::TIME;
        if ahead > 2 * Self::BURST { 0 } else { ahead }
    }
}

assert_layout! {
    LimitBucket: 64,
}
