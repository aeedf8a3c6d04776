//! What services ask of clients: where they must be.

use bytemuck::{Pod, Zeroable};

use super::assert_layout;

/// What a service asks of its clients; one word, so that a reader sees one state of it.
///
/// | bits | field |
/// |---|---|
/// | 0 | only sources in one of the service's ranges may begin flows |
/// | 1–63 | 0 |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientWord(pub u64);

impl ClientWord {
    const RANGES: u64 = 1;

    /// Packs it.
    #[must_use]
    pub const fn new(has_ranges: bool) -> Self {
        Self(if has_ranges { Self::RANGES } else { 0 })
    }

    /// Whether only sources in one of the service's ranges may begin flows. Without a range that is nobody.
    #[must_use]
    #[inline(always)]
    pub const fn has_ranges(self) -> bool {
        self.0 & Self::RANGES != 0
    }
}

/// Key of the trie `SOURCES_V4`, beside the number of bits that count: 32 for the service, then those of the network.
/// Who is in a trie's entry may begin flows of the service; the value means nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct SourceV4 {
    /// Index in `DESCRIPTORS`, network order: a trie compares from the first byte on.
    pub service: [u8; 4],
    /// Address of a client, or of a network, network order.
    pub address: [u8; 4],
}

/// Key of the trie `SOURCES_V6`; see [`SourceV4`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct SourceV6 {
    /// Index in `DESCRIPTORS`, network order.
    pub service: [u8; 4],
    /// Address of a client, or of a network, network order.
    pub address: [u8; 16],
}

/// Bits of the service in the key of a trie, before those of the address.
pub const SOURCE_SERVICE_BITS: u32 = 32;

assert_layout! {
    SourceV4: 8,
    SourceV6: 20,
}
