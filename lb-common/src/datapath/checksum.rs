//! Internet checksums, incrementally (RFC 1624, equation 3: `HC' = ~(~HC + ~m + m')`).
//!
//! Sums are over 16-bit words in the order in which they lie in memory, which gives the same result on any
//! byte order (RFC 1071, §2). A [`Sum`] is a lazily folded one's complement number.

use super::PacketMut;
use crate::abi::Config;

/// Most bytes of which [`sum`] gives the sum: a frame in one page of 4 KB has fewer.
pub(super) const MOST_BYTES: u32 = 4096;
/// Bytes that one step of the loop adds.
const STEP: u32 = 16;

/// The sum of `length` bytes of the frame from `from` on, of an odd one as if a 0 followed; `None` beyond the frame's
/// end, and where they are more than [`MOST_BYTES`].
#[inline(always)]
pub(super) fn sum<P: PacketMut>(packet: &P, config: &Config, from: u32, length: u32) -> Option<u16> {
    let sum = sum_or_none(packet, config, config.forget(from), config.forget(length));
    if sum == NO_SUM { None } else { Some(sum as u16) }
}

/// More than a folded sum can be.
const NO_SUM: u64 = 1 << 16;

/// A call: inlined wherever a sum is taken, the verifier would follow each of the loop's ends all the way down.
#[inline(never)]
fn sum_or_none<P: PacketMut>(packet: &P, config: &Config, from: u32, length: u32) -> u64 {
    if length > MOST_BYTES {
        return NO_SUM;
    }
    let mut sum = Sum::ZERO;
    let mut place = from as usize + (length & !(STEP - 1)) as usize;
    if length & 8 != 0 {
        let Some(word) = packet.read_far::<u64>(place) else { return NO_SUM };
        sum = sum.add64(word);
        place += 8;
    }
    if length & 4 != 0 {
        let Some(word) = packet.read_far::<u32>(place) else { return NO_SUM };
        sum = sum.add32(word);
        place += 4;
    }
    if length & 2 != 0 {
        let Some(word) = packet.read_far::<u16>(place) else { return NO_SUM };
        sum = sum.add16(word);
        place += 2;
    }
    if length & 1 != 0 {
        let Some(byte) = packet.read_far::<u8>(place) else { return NO_SUM };
        sum = sum.add16(u16::from_ne_bytes([byte, 0]));
    }
    // Whatever was added: one state to begin the loop with.
    let mut sum = Sum::ZERO.add32(config.forget(sum.fold() as u32));
    let (from, length) = (config.forget(from), config.forget(length));
    let mut done = 0_u64;
    while done < (MOST_BYTES / STEP) as u64 {
        let place = done as u32 * STEP;
        if place + STEP > length {
            break;
        }
        done += 1;
        let Some([first, second]) = packet.read_far::<[u64; 2]>(from as usize + place as usize) else {
            return NO_SUM;
        };
        sum = sum.add64(first).add64(second);
    }
    sum.fold() as u64
}

/// A one's complement sum of 16-bit words, not yet folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum(pub u64);

impl Sum {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// Adds one raw 16-bit word, or an already folded sum.
    #[must_use]
    #[inline(always)]
    pub const fn add16(self, word: u16) -> Self {
        Self(self.0 + word as u64)
    }

    /// Subtracts one raw 16-bit word, or an already folded sum.
    #[must_use]
    #[inline(always)]
    pub const fn sub16(self, word: u16) -> Self {
        Self(self.0 + !word as u64)
    }

    /// Adds two raw words at once.
    #[must_use]
    #[inline(always)]
    pub const fn add32(self, words: u32) -> Self {
        Self(self.0 + words as u64)
    }

    /// Subtracts two raw words at once.
    #[must_use]
    #[inline(always)]
    pub const fn sub32(self, words: u32) -> Self {
        Self(self.0 + !words as u64)
    }

    /// Adds four raw words at once.
    #[must_use]
    #[inline(always)]
    pub const fn add64(self, words: u64) -> Self {
        self.add32(words as u32).add32((words >> 32) as u32)
    }

    /// Subtracts four raw words at once.
    #[must_use]
    #[inline(always)]
    pub const fn sub64(self, words: u64) -> Self {
        self.add64(!words)
    }

    /// The sum as a 16-bit one's complement number.
    #[must_use]
    #[inline(always)]
    pub const fn fold(self) -> u16 {
        let mut sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        sum as u16
    }

    /// A checksum field after this difference has been applied to what it covers.
    #[must_use]
    #[inline(always)]
    pub const fn apply(self, checksum: u16) -> u16 {
        !Self(self.0 + !checksum as u64).fold()
    }
}
