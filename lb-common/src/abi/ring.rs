//! Maglev rings: where a service's ring lies and how it is indexed.

use bytemuck::{Pod, Zeroable};

use super::assert_layout;

/// The ladder of ring sizes M, all prime (Maglev needs that; Eisenbud et al., NSDI 2016, §3.4). A ring's
/// *size class* is an index into it.
pub const RING_SIZES: [u32; 13] =
    [251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65537, 131_071, 262_139, 524_287, 1_048_573];

/// Element of the array `RINGS`: two ring slots, each naming a member (0: empty).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct RingPair {
    /// Member indices.
    pub slots: [u32; 2],
}

assert_layout!(RingPair: 8);

/// Where a ring lies: everything a packet needs, in one 64-bit word, so that a reader sees the old ring or
/// the new one and never a mixture.
///
/// | bits | field |
/// |---|---|
/// | 0–31 | offset of the ring's first element in `RINGS`, in elements of two slots |
/// | 32–35 | size class |
/// | 36–39 | 0 |
/// | 40–63 | version, counts the service's rings from 1 |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingWord(pub u64);

impl RingWord {
    /// No ring.
    pub const NONE: Self = Self(0);

    /// Packs a ring's place. `class` must be below 13; `version` is taken modulo 2^24 and must not be 0 there.
    #[must_use]
    pub const fn new(offset: u32, class: u8, version: u32) -> Self {
        Self(offset as u64 | ((class as u64 & 0xf) << 32) | ((version as u64 & 0xff_ffff) << 40))
    }

    /// Offset of the first element in `RINGS`.
    #[must_use]
    #[inline(always)]
    pub const fn offset(self) -> u32 {
        self.0 as u32
    }

    /// Size class, 0–15 (13–15 never occur in a word that the agent wrote).
    #[must_use]
    #[inline(always)]
    pub const fn class(self) -> u8 {
        ((self.0 >> 32) & 0xf) as u8
    }

    /// Version, 1 to 2^24 − 1.
    #[must_use]
    #[inline(always)]
    pub const fn version(self) -> u32 {
        (self.0 >> 40) as u32
    }

    /// Whether there is a ring.
    #[must_use]
    #[inline(always)]
    pub const fn is_some(self) -> bool {
        self.0 != 0
    }

    /// Number of slots. A match rather than an index into [`RING_SIZES`]: a constant table would become a
    /// read-only data section of the packet program, one more map to look into.
    #[must_use]
    #[inline(always)]
    pub const fn slots(self) -> u32 {
        match self.class() {
            0 => RING_SIZES[0],
            1 => RING_SIZES[1],
            2 => RING_SIZES[2],
            3 => RING_SIZES[3],
            4 => RING_SIZES[4],
            5 => RING_SIZES[5],
            6 => RING_SIZES[6],
            7 => RING_SIZES[7],
            8 => RING_SIZES[8],
            9 => RING_SIZES[9],
            10 => RING_SIZES[10],
            11 => RING_SIZES[11],
            _ => RING_SIZES[12],
        }
    }

    /// The slot that a 32-bit hash falls into: `(hash × M) >> 32`, which needs no division.
    #[must_use]
    #[inline(always)]
    pub const fn slot(self, hash: u32) -> u32 {
        Self::slot_of(hash, self.slots())
    }

    /// The same, of a ring with so many slots.
    #[must_use]
    #[inline(always)]
    pub const fn slot_of(hash: u32, slots: u32) -> u32 {
        ((hash as u64 * slots as u64) >> 32) as u32
    }
}
