//! Copies of SYNs: what it takes to send a refused one to another backend at once.

use bytemuck::{Pod, Zeroable};

use super::assert_layout;

/// Most elements of the array `SYNS`, a power of two: where there are fewer flow buckets it has as many as these.
/// A copy is needed for a round trip. A flow has two elements for its copy, neighbours, and takes the one with the older
/// copy: one is lost where two other flows of the same pair come within that time.
pub const MOST_SYN_COPIES: u32 = 16_384;

/// Element of the array `SYNS`: a SYN without data, without IPv4 options or IPv6 extension headers. Its addresses
/// and ports are the flow's.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct SynCopy {
    /// Cell 0: [`SynWord`].
    pub word: u64,
    /// Cell 1: sequence number, network order.
    pub seq: [u8; 4],
    /// Data offset and flags.
    pub flags: [u8; 2],
    /// Window, network order.
    pub window: [u8; 2],
    /// Cell 2: checksum, network order.
    pub check: [u8; 2],
    /// IPv4: type of service, TTL, identification, flags and fragment offset. IPv6: version, traffic class and
    /// flow label (four bytes), hop limit, 0.
    pub network: [u8; 6],
    /// Cells 3 to 7: TCP options, and then anything.
    pub options: [u8; 40],
}

assert_layout!(SynCopy: 64);

/// The authoritative word of a copy.
///
/// | bits | field |
/// |---|---|
/// | 0–47 | tag of the flow's hash |
/// | 48–51 | length of the TCP header in words of four bytes, 5–15 |
/// | 52–53 | 0 empty, 1 being written, 2 complete |
/// | 54–63 | when it was written, in units of 2^20 ns (1.05 ms); wraps after 1.07 s |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SynWord(pub u64);

impl SynWord {
    const HEADER: u64 = 0xf << 48;
    const CLAIMED: u64 = 1 << 52;
    const COMPLETE: u64 = 2 << 52;
    const TIME: u32 = 54;

    /// The copy of the SYN of the flow with this tag is being written. `now` is in nanoseconds.
    #[must_use]
    #[inline(always)]
    pub const fn claimed(tag: u64, now: u64) -> Self {
        Self(tag | Self::CLAIMED | (now >> 20) << Self::TIME)
    }

    /// What was claimed is complete; its TCP header has so many words.
    #[must_use]
    #[inline(always)]
    pub const fn complete(self, header_words: u8) -> Self {
        Self(self.0 ^ Self::CLAIMED ^ Self::COMPLETE | (((header_words & 0xf) as u64) << 48))
    }

    /// How old it is, in units of 2^20 ns, 0–1023; 1024, older than any, where there is none.
    #[must_use]
    #[inline(always)]
    pub const fn age(self, now: u64) -> u64 {
        if self.0 == 0 { 1024 } else { (now >> 20).wrapping_sub(self.0 >> Self::TIME) & 1023 }
    }

    /// Whether somebody is writing it.
    #[must_use]
    #[inline(always)]
    pub const fn is_claimed(self) -> bool {
        self.0 & Self::CLAIMED != 0
    }

    /// Whether it is the complete copy of the SYN of the flow with this tag.
    #[must_use]
    #[inline(always)]
    pub const fn is_of(self, tag: u64) -> bool {
        self.0 & ((1 << Self::TIME) - 1) & !Self::HEADER == tag | Self::COMPLETE
    }

    /// Length of the TCP header in words of four bytes.
    #[must_use]
    #[inline(always)]
    pub const fn header_words(self) -> u32 {
        (self.0 >> 48) as u32 & 0xf
    }
}
