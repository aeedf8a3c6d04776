//! What services ask of clients, where they must be, and with which backend each stays.

use bytemuck::{Pod, Zeroable};

use super::{MAX_MEMBER_INDEX, assert_layout};

/// What a service asks of its clients; one word, so that a reader sees one state of it.
///
/// | bits | field |
/// |---|---|
/// | 0 | only sources in one of the service's ranges may begin flows |
/// | 1 | clients stay with their backends |
/// | 2–31 | nanoseconds for each flow that a client's network begins; 0: it may begin any number |
/// | 32–55 | for how long after its last new flow a client stays, in ticks |
/// | 56–63 | trailing bits of an address that don't tell clients' networks apart, exclusive-or with as many as there are by default ([`Self::BEYOND_V4`], [`Self::BEYOND_V6`]) |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientWord(pub u64);

impl ClientWord {
    const RANGES: u64 = 1;
    const STAYS: u64 = 2;
    const INTERVAL: u64 = 0xffff_fffc;
    /// Trailing bits that don't tell networks apart by default: of IPv4 none, a network is one address.
    pub const BEYOND_V4: u8 = 0;
    /// Of IPv6 half of them: a network is a /64, which one client has to itself.
    pub const BEYOND_V6: u8 = 64;
    /// The longest time, in ticks: about 52 days.
    pub const MAX_STAY: u32 = (1 << 24) - 1;

    /// Packs it. `stay`: 0 where clients don't. A longer stay than [`Self::MAX_STAY`] is that long.
    #[must_use]
    pub const fn new(has_ranges: bool, stay: u32) -> Self {
        let stay = if stay > Self::MAX_STAY { Self::MAX_STAY } else { stay };
        let flags = if has_ranges { Self::RANGES } else { 0 } | if stay > 0 { Self::STAYS } else { 0 };
        Self(flags | (stay as u64) << 32)
    }

    /// The same, and only sources in one of the service's ranges may begin flows.
    #[must_use]
    pub const fn with_ranges(self) -> Self {
        Self(self.0 | Self::RANGES)
    }

    /// The same, and a client's network may begin one flow in so many nanoseconds, up to 2^30 − 1; 0: any number.
    #[must_use]
    pub const fn with_interval(self, nanoseconds: u32) -> Self {
        Self(self.0 & !Self::INTERVAL | (nanoseconds as u64) << 2 & Self::INTERVAL)
    }

    /// The same, and these are bits 56–63: trailing bits of an address, exclusive-or with the family's default.
    #[must_use]
    pub const fn with_beyond(self, bits: u8) -> Self {
        Self(self.0 << 8 >> 8 | (bits as u64) << 56)
    }

    /// Bits 56–63; see [`Self::with_beyond`].
    #[must_use]
    #[inline(always)]
    pub const fn beyond(self) -> u8 {
        (self.0 >> 56) as u8
    }

    /// Nanoseconds for each flow that a client's network begins; 0: it may begin any number.
    #[must_use]
    #[inline(always)]
    pub const fn interval(self) -> u64 {
        (self.0 & Self::INTERVAL) >> 2
    }

    /// Whether only sources in one of the service's ranges may begin flows. Without a range that is nobody.
    #[must_use]
    #[inline(always)]
    pub const fn has_ranges(self) -> bool {
        self.0 & Self::RANGES != 0
    }

    /// What of a client's port counts for its place in the ring: nothing where clients stay, or all. Without a branch,
    /// which the verifier would follow into all that comes after it.
    #[must_use]
    #[inline(always)]
    pub const fn port_mask(self) -> u16 {
        (self.0 as u16 >> 1 & 1).wrapping_sub(1)
    }

    /// For how long after its last new flow a client stays with its backend, in ticks; 0: it doesn't stay.
    #[must_use]
    #[inline(always)]
    pub const fn stay(self) -> u64 {
        self.0 >> 32 & Self::MAX_STAY as u64
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

/// Clients that a bucket of `AFFINITY` remembers.
pub const AFFINITY_WAYS: u32 = 4;
/// Most elements of the array `AFFINITY`, a power of two: 16,384 clients in 256 KiB.
pub const MOST_AFFINITY_BUCKETS: u32 = 1 << 12;

/// Element of the array `AFFINITY`: with which backends some clients are.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct AffinityBucket {
    /// The ways; cells 2w and 2w + 1 are way w.
    pub entries: [AffinityEntry; AFFINITY_WAYS as usize],
}

/// With which backend of a service a client is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct AffinityEntry {
    /// [`AffinityWord`]: who is where; changed by compare-exchange only.
    pub word: u64,
    /// [`StayWord`]: since when; stored plainly after it, because whoever stores says "now".
    pub stay: u64,
}

/// Who is where.
///
/// | bits | field |
/// |---|---|
/// | 0–19 | member; 0: nobody is remembered here |
/// | 20–27 | the member's generation |
/// | 28–63 | 36 bits of the hash of client and service; see [`crate::hash::affinity`] |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AffinityWord(pub u64);

impl AffinityWord {
    /// Nobody.
    pub const EMPTY: Self = Self(0);

    /// Packs it; only the upper 36 bits of the hash are kept.
    #[must_use]
    #[inline(always)]
    pub const fn new(hash: u64, member: u32, generation: u8) -> Self {
        Self((member & MAX_MEMBER_INDEX) as u64 | (generation as u64) << 20 | hash >> 28 << 28)
    }

    /// The member; 0: nobody is remembered here.
    #[must_use]
    #[inline(always)]
    pub const fn member(self) -> u32 {
        self.0 as u32 & MAX_MEMBER_INDEX
    }

    /// The member's generation.
    #[must_use]
    #[inline(always)]
    pub const fn generation(self) -> u8 {
        (self.0 >> 20) as u8
    }

    /// Whether it is about the client and service with this hash.
    #[must_use]
    #[inline(always)]
    pub const fn is_of(self, hash: u64) -> bool {
        self.member() != 0 && (self.0 ^ hash) >> 28 == 0
    }
}

/// Since when a client is where it is.
///
/// | bits | field |
/// |---|---|
/// | 0–23 | for how long it stays, in ticks, as its service said then |
/// | 24–63 | tick of its last new flow; 40 bits never wrap |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StayWord(pub u64);

impl StayWord {
    /// Packs it. `tick` is a time in nanoseconds without its lower [`crate::clock::TICK_SHIFT`] bits.
    #[must_use]
    #[inline(always)]
    pub const fn new(tick: u64, stay: u64) -> Self {
        Self(stay & ClientWord::MAX_STAY as u64 | tick << 24)
    }

    /// How many ticks ago the client began its last flow; 0 where another CPU's clock is ahead.
    #[must_use]
    #[inline(always)]
    pub const fn age(self, now: u64) -> u64 {
        now.saturating_sub(self.0 >> 24)
    }

    /// How many ticks are left of its stay; 0: none.
    #[must_use]
    #[inline(always)]
    pub const fn left(self, now: u64) -> u64 {
        // It stays through the last tick.
        (self.0 & ClientWord::MAX_STAY as u64).saturating_add(1).saturating_sub(self.age(now))
    }
}

assert_layout! {
    SourceV4: 8,
    SourceV6: 20,
    AffinityBucket: 64,
    AffinityEntry: 16,
}
