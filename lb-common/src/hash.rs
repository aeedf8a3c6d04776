//! One keyed hash, used on both sides: NH (Black et al., UMAC, CRYPTO 1999, §4) over 32-bit words, twice with
//! shifted keys, each finished by a mixer. Two inputs collide in both halves with probability 2^-64 for a
//! random key. It needs 64-bit multiplication only, which BPF has.

use bytemuck::{Pod, Zeroable};

use crate::abi::{ADDRESS_FILTER_SIZE, LOCK_STRIPES, MOST_AFFINITY_BUCKETS, MOST_SYN_COPIES};

/// Key of a [`FlowHash`]: sixteen random words.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct HashKey {
    /// The words.
    pub words: [u32; 16],
}

const _: () = assert!(size_of::<HashKey>() == 64);

/// 128 bits of a flow's hash. Each use takes bits of its own: bits that serve two purposes correlate.
///
/// | bits | use |
/// |---|---|
/// | `low` 0–25 | first bucket |
/// | `low` 26–51 | second bucket |
/// | `low` 52–63 | lock stripe |
/// | `high` 0–47 | tag |
/// | `high` 48–63 | where the search for a port starts |
///
/// The element of a SYN's copy shares bits with the first bucket: a copy proves whose it is by its tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowHash {
    /// First half.
    pub low: u64,
    /// Second half.
    pub high: u64,
}

impl FlowHash {
    /// First bucket.
    #[must_use]
    #[inline(always)]
    pub const fn first_bucket(self, mask: u32) -> u32 {
        self.low as u32 & 0x3ff_ffff & mask
    }

    /// Second bucket; may be the same as the first.
    #[must_use]
    #[inline(always)]
    pub const fn second_bucket(self, mask: u32) -> u32 {
        (self.low >> 26) as u32 & 0x3ff_ffff & mask
    }

    /// First of the two elements of which one has the copy of the flow's SYN; the other one is its neighbour, `^ 1`.
    #[must_use]
    #[inline(always)]
    pub const fn syn_copy(self, flow_bucket_mask: u32) -> u32 {
        self.first_bucket(flow_bucket_mask) & (MOST_SYN_COPIES - 1)
    }

    /// Lock stripe.
    #[must_use]
    #[inline(always)]
    pub const fn stripe(self) -> u32 {
        (self.low >> 52) as u32 & (LOCK_STRIPES - 1)
    }

    /// Tag, 48 bits.
    #[must_use]
    #[inline(always)]
    pub const fn tag(self) -> u64 {
        self.high & 0xffff_ffff_ffff
    }

    /// Where the search for a port starts.
    #[must_use]
    #[inline(always)]
    pub const fn port_start(self) -> u16 {
        (self.high >> 48) as u16
    }
}

/// Hashes an IPv4 flow. Addresses are raw (network order in memory); `ports` is the client's port in the low
/// half and the service's in the high half, both raw.
#[must_use]
#[inline(always)]
pub fn hash_v4(key: &HashKey, source: u32, destination: u32, ports: u32, protocol: u8) -> FlowHash {
    FlowHash {
        low: half_v4(key, source, destination, ports, protocol, false),
        high: half_v4(key, source, destination, ports, protocol, true),
    }
}

/// One half of it, `high` or `low`.
#[must_use]
#[inline(always)]
pub fn half_v4(key: &HashKey, source: u32, destination: u32, ports: u32, protocol: u8, high: bool) -> u64 {
    let k: &[u32; 4] = if high { part::<4, 4>(key) } else { part::<0, 4>(key) };
    let last = protocol as u32 | 4 << 8;
    finish(nh(source, k[0], destination, k[1]).wrapping_add(nh(ports, k[2], last, k[3])))
}

/// Hashes an IPv6 flow; see [`hash_v4`].
#[must_use]
#[inline(always)]
pub fn hash_v6(key: &HashKey, source: [u32; 4], destination: [u32; 4], ports: u32, protocol: u8) -> FlowHash {
    FlowHash {
        low: half_v6(key, source, destination, ports, protocol, false),
        high: half_v6(key, source, destination, ports, protocol, true),
    }
}

/// One half of it, `high` or `low`.
#[must_use]
#[inline(always)]
pub fn half_v6(
    key: &HashKey,
    source: [u32; 4],
    destination: [u32; 4],
    ports: u32,
    protocol: u8,
    high: bool,
) -> u64 {
    let k: &[u32; 10] = if high { part::<6, 10>(key) } else { part::<0, 10>(key) };
    let last = protocol as u32 | 6 << 8;
    let sum = nh(source[0], k[0], source[1], k[1])
        .wrapping_add(nh(source[2], k[2], source[3], k[3]))
        .wrapping_add(nh(destination[0], k[4], destination[1], k[5]))
        .wrapping_add(nh(destination[2], k[6], destination[3], k[7]))
        .wrapping_add(nh(ports, k[8], last, k[9]));
    finish(sum)
}

/// Words of a key, from one on.
#[inline(always)]
fn part<const FIRST: usize, const COUNT: usize>(key: &HashKey) -> &[u32; COUNT] {
    const { assert!(FIRST + COUNT <= 16) };
    match key.words[FIRST..].first_chunk() {
        Some(words) => words,
        // The assertion says that there are so many.
        None => &[0; COUNT],
    }
}

/// The reverse table's bucket for the key bits of a [`crate::abi::ReverseWord`].
#[must_use]
#[inline(always)]
pub fn reverse_bucket(key: &HashKey, word_key: u64, mask: u32) -> u32 {
    let salt = key.words[0] as u64 | (key.words[1] as u64) << 32;
    (finish(word_key ^ salt) >> 32) as u32 & mask
}

/// The hash by which a client is remembered, of its place in the ring without its port. The ring's key hides nothing,
/// the flow table's does. The upper 36 bits are the tag.
#[must_use]
#[inline(always)]
pub const fn affinity(key: &HashKey, ring_hash: u64) -> u64 {
    finish(ring_hash ^ (key.words[0] as u64 | (key.words[1] as u64) << 32))
}

/// The bucket of `AFFINITY` for such a hash.
#[must_use]
#[inline(always)]
pub const fn affinity_bucket(affinity: u64, flow_bucket_mask: u32) -> u32 {
    affinity as u32 & (MOST_AFFINITY_BUCKETS - 1) & flow_bucket_mask
}

/// The 32-bit hash of the `attempt`-th candidate of a key in a ring; attempt 0 is the key's own place.
#[must_use]
#[inline(always)]
pub const fn candidate(ring_hash: u64, attempt: u32) -> u32 {
    if attempt == 0 {
        return ring_hash as u32;
    }
    (finish(ring_hash.wrapping_add((attempt as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))) >> 32) as u32
}

/// Index in `ADDRESS_FILTER` of an IPv4 address (raw).
#[must_use]
#[inline(always)]
pub const fn filter_index_v4(address: u32) -> u32 {
    address.wrapping_mul(0x9e37_79b1) >> 22 & (ADDRESS_FILTER_SIZE - 1)
}

/// Index in `ADDRESS_FILTER` of an IPv6 address (raw words).
#[must_use]
#[inline(always)]
pub const fn filter_index_v6(address: [u32; 4]) -> u32 {
    let folded = address[0]
        .wrapping_mul(3)
        .wrapping_add(address[1].wrapping_mul(5))
        .wrapping_add(address[2].wrapping_mul(7))
        .wrapping_add(address[3]);
    filter_index_v4(folded)
}

/// One product of NH.
#[inline(always)]
const fn nh(a: u32, ka: u32, b: u32, kb: u32) -> u64 {
    (a.wrapping_add(ka) as u64).wrapping_mul(b.wrapping_add(kb) as u64)
}

/// The finaliser of MurmurHash3 (Appleby): a bijection that spreads every bit over all others.
#[must_use]
#[inline(always)]
pub const fn finish(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ x >> 33
}
