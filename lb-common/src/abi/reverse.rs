//! The reverse table: by the exact (backend, SNAT address, SNAT port) of a reply, whose flow it is.
//!
//! Each word of an entry carries the entry's version, so that no mixture of two incarnations is ever taken
//! for one.

use bytemuck::{Pod, Zeroable};

use super::{FlowRef, FlowState, FlowWord, VERSION_MASK, assert_layout};

/// Entries in a bucket.
pub const REVERSE_WAYS: u32 = 4;

/// One entry for IPv4.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ReverseEntryV4 {
    /// [`ReverseWord`]: state, version and the exact key.
    pub word: u64,
    /// Forward slot (28 bits), its version (10), this version (10); top halfword: tick of the backend's
    /// last packet, stored plainly.
    pub forward: u64,
    /// Client's address (low 32 bits, raw network order), port (16, raw), this version (10).
    pub client: u64,
    /// Member (20 bits), its generation (8), last hop (16), this version (10).
    pub path: u64,
}

/// One entry for IPv6.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ReverseEntryV6 {
    /// As for IPv4.
    pub word: u64,
    /// As for IPv4.
    pub forward: u64,
    /// Port as for IPv4; the address bits are 0.
    pub client: u64,
    /// As for IPv4.
    pub path: u64,
    /// The client's address, network order.
    pub client_address: [u64; 2],
    /// Both halves of the address and the version, mixed: proves that they belong together.
    pub check: u64,
    /// Always 0.
    pub reserved: u64,
}

/// Element of the array `REVERSE_V4`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ReverseBucketV4 {
    /// The four ways.
    pub entries: [ReverseEntryV4; REVERSE_WAYS as usize],
}

/// Element of the array `REVERSE_V6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ReverseBucketV6 {
    /// The four ways.
    pub entries: [ReverseEntryV6; REVERSE_WAYS as usize],
}

assert_layout! {
    ReverseEntryV4: 32,
    ReverseEntryV6: 64,
    ReverseBucketV4: 128,
    ReverseBucketV6: 256,
}

/// State of a reverse entry (bits 0–2 of its word).
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReverseState {
    /// Free.
    Empty = 0,
    /// A CPU is writing it.
    Claimed = 1,
    /// The backend has not answered.
    New = 2,
    /// The backend has answered.
    Replied = 3,
}

/// The authoritative word of a reverse entry.
///
/// | bits | field |
/// |---|---|
/// | 0–2 | state |
/// | 3–12 | version |
/// | 13–15 | SNAT address |
/// | 16–31 | SNAT port, host order |
/// | 32–51 | backend |
/// | 52–63 | 0 |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReverseWord(pub u64);

impl ReverseWord {
    /// The bits that are the key.
    pub const KEY_MASK: u64 = 0x000f_ffff_ffff_e000;

    /// The bits of the SNAT address and port.
    const PORT_MASK: u64 = 0xffff_e000;

    /// The key bits of (backend, SNAT address, SNAT port).
    #[must_use]
    #[inline(always)]
    pub const fn key(backend: u32, snat: u8, port: u16) -> u64 {
        (((backend & 0xf_ffff) as u64) << 32) | ((port as u64) << 16) | (((snat & 7) as u64) << 13)
    }

    /// A word.
    #[must_use]
    #[inline(always)]
    pub const fn new(state: ReverseState, version: u16, key: u64) -> Self {
        Self(state as u64 | (((version & VERSION_MASK) as u64) << 3) | key)
    }

    /// The same word in another state.
    #[must_use]
    #[inline(always)]
    pub const fn with_state(self, state: ReverseState) -> Self {
        Self((self.0 & !7) | state as u64)
    }

    /// Whether it is a live entry of this key.
    #[must_use]
    #[inline(always)]
    pub const fn matches(self, key: u64) -> bool {
        self.0 & Self::KEY_MASK == key && self.is_live()
    }

    /// 1 if it is an entry of this key, live or still being written, else 0. A free slot has the key 0, and no
    /// entry has: backends count from 1.
    #[must_use]
    #[inline(always)]
    pub const fn occupies(self, key: u64) -> u64 {
        // No branch: the verifier would follow each way of it, for each word of each bucket.
        ((self.0 ^ key) & Self::KEY_MASK).wrapping_sub(1) >> 63
    }

    /// Whether a word in the slot that this entry names is that of its flow: of that version, with its SNAT address
    /// and port. The version alone doesn't say so: versions repeat, and an entry can outlive its flow.
    #[must_use]
    #[inline(always)]
    pub const fn is_of(self, flow: FlowRef, word: FlowWord) -> bool {
        // One comparison. SNAT address and port stand 32 bits higher in a flow's word than here.
        let expected = FlowWord::new(FlowState::Empty, flow.version).0 | (self.0 & Self::PORT_MASK) << 32;
        let compared = FlowWord::new(FlowState::Empty, VERSION_MASK).0 | Self::PORT_MASK << 32;
        word.0 & compared == expected
    }

    /// Whether a reply can belong to it.
    #[must_use]
    #[inline(always)]
    pub const fn is_live(self) -> bool {
        self.0 & 7 >= ReverseState::New as u64
    }

    /// Whether the slot is free.
    #[must_use]
    #[inline(always)]
    pub const fn is_empty(self) -> bool {
        self.0 & 7 == ReverseState::Empty as u64
    }

    /// Whether the backend has answered.
    #[must_use]
    #[inline(always)]
    pub const fn is_replied(self) -> bool {
        self.0 & 7 == ReverseState::Replied as u64
    }

    /// Version, 0–1023.
    #[must_use]
    #[inline(always)]
    pub const fn version(self) -> u16 {
        ((self.0 >> 3) & VERSION_MASK as u64) as u16
    }

    /// Backend index.
    #[must_use]
    #[inline(always)]
    pub const fn backend(self) -> u32 {
        ((self.0 >> 32) & 0xf_ffff) as u32
    }

    /// SNAT address, 0–7.
    #[must_use]
    #[inline(always)]
    pub const fn snat(self) -> u8 {
        ((self.0 >> 13) & 7) as u8
    }

    /// SNAT port, host order.
    #[must_use]
    #[inline(always)]
    pub const fn port(self) -> u16 {
        (self.0 >> 16) as u16
    }
}

/// Packs the `forward` word, tick included.
#[must_use]
#[inline(always)]
pub const fn pack_forward(forward: FlowRef, version: u16, tick: u16) -> u64 {
    (forward.slot as u64 & 0xfff_ffff)
        | (((forward.version & VERSION_MASK) as u64) << 28)
        | (((version & VERSION_MASK) as u64) << 38)
        | ((tick as u64) << 48)
}

/// Unpacks the `forward` word: the flow and the version of this entry.
#[must_use]
#[inline(always)]
pub const fn unpack_forward(word: u64) -> (FlowRef, u16) {
    (
        FlowRef { slot: (word & 0xfff_ffff) as u32, version: ((word >> 28) & VERSION_MASK as u64) as u16 },
        ((word >> 38) & VERSION_MASK as u64) as u16,
    )
}

/// Packs the `client` word: raw IPv4 address (0 for IPv6), raw port.
#[must_use]
#[inline(always)]
pub const fn pack_client(address: u32, port: u16, version: u16) -> u64 {
    address as u64 | ((port as u64) << 32) | (((version & VERSION_MASK) as u64) << 48)
}

/// Unpacks the `client` word: address, port, version.
#[must_use]
#[inline(always)]
pub const fn unpack_client(word: u64) -> (u32, u16, u16) {
    (word as u32, (word >> 32) as u16, ((word >> 48) as u16) & VERSION_MASK)
}

/// Packs the `path` word.
#[must_use]
#[inline(always)]
pub const fn pack_path(member: u32, generation: u8, last_hop: u16, version: u16) -> u64 {
    (member & 0xf_ffff) as u64
        | ((generation as u64) << 20)
        | ((last_hop as u64) << 28)
        | (((version & VERSION_MASK) as u64) << 44)
}

/// Unpacks the `path` word: member, generation, last hop, version.
#[must_use]
#[inline(always)]
pub const fn unpack_path(word: u64) -> (u32, u8, u16, u16) {
    ((word & 0xf_ffff) as u32, (word >> 20) as u8, (word >> 28) as u16, ((word >> 44) as u16) & VERSION_MASK)
}

/// The `check` word of an IPv6 entry.
#[must_use]
#[inline(always)]
pub const fn address_check(address: [u64; 2], version: u16) -> u64 {
    address[0] ^ address[1].rotate_left(32) ^ (version as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
