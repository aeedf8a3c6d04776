//! Internet checksums, incrementally (RFC 1624, equation 3: `HC' = ~(~HC + ~m + m')`).
//!
//! Sums are over 16-bit words in the order in which they lie in memory, which gives the same result on any
//! byte order (RFC 1071, §2). A [`Sum`] is a lazily folded one's complement number.

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
