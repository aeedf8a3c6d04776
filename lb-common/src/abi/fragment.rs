//! Fragments: what the later ones of a packet need of its first one.

use bytemuck::{Pod, Zeroable};

use super::{FlowRef, MAX_MEMBER_INDEX, assert_layout};

/// Number of elements of the array `FRAGMENTS`, a power of two: packets whose fragments can follow at once.
pub const FRAGMENT_RECORDS: u32 = 1024;
/// Elements among which a packet's record is, and displaces the oldest.
pub const FRAGMENT_WAYS: u32 = 4;
/// For how long fragments follow their first one, in ticks: 30 s, after which a receiver has given them up (Linux; RFC
/// 791, §3.2 says 15 s, RFC 8200, §4.5 says 60 s).
pub const FRAGMENT_TICKS: u64 = 112;

/// Element of the array `FRAGMENTS`: where a packet's first fragment went.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FragmentRecord {
    /// Cell 0: [`FragmentWord`]: which packet.
    pub word: u64,
    /// Cell 1: the identification that the packet left with, raw; IPv4's in the first two bytes.
    pub id: [u8; 4],
    /// When its first fragment came: nanoseconds without their lower [`crate::clock::TICK_SHIFT`] bits. Never wraps.
    pub tick: u32,
    /// Cell 2: [`FragmentPath`].
    pub path: u64,
    /// Cell 3: slot of the flow, see [`FlowRef`].
    pub slot: u32,
    /// The flow's version.
    pub version: u16,
    /// Always 0.
    pub pad: u16,
    /// Cells 4 and 5: of a packet to a client: the client's address, network order; IPv4 in the first four bytes.
    pub client: [u8; 16],
    /// Cell 6: always 0.
    pub reserved: u64,
    /// Cell 7: how many identifications this element has given; it has nothing to do with the rest of it.
    pub given: u64,
}

assert_layout!(FragmentRecord: 64);

/// The authoritative word of a record.
///
/// | bits | field |
/// |---|---|
/// | 0–47 | tag of the hash of what makes the packet that packet |
/// | 48–61 | version, incremented each time the element is written |
/// | 62–63 | 0 empty, 1 being written, 2 complete |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentWord(pub u64);

impl FragmentWord {
    const TAG: u64 = (1 << 48) - 1;
    const VERSION: u64 = 0x3fff << 48;
    const CLAIMED: u64 = 1 << 62;
    const COMPLETE: u64 = 2 << 62;

    /// The record of the packet with this tag is being written in the place of this one.
    #[must_use]
    #[inline(always)]
    pub const fn claimed(self, tag: u64) -> Self {
        Self(tag & Self::TAG | (self.0 & Self::VERSION).wrapping_add(1 << 48) & Self::VERSION | Self::CLAIMED)
    }

    /// What was claimed is complete.
    #[must_use]
    #[inline(always)]
    pub const fn complete(self) -> Self {
        Self(self.0 ^ Self::CLAIMED ^ Self::COMPLETE)
    }

    /// Whether there is nothing.
    #[must_use]
    #[inline(always)]
    pub const fn is_empty(self) -> bool {
        self.0 & (Self::CLAIMED | Self::COMPLETE) == 0
    }

    /// Whether somebody is writing it.
    #[must_use]
    #[inline(always)]
    pub const fn is_claimed(self) -> bool {
        self.0 & Self::CLAIMED != 0
    }

    /// Whether it is the complete record of the packet with this tag.
    #[must_use]
    #[inline(always)]
    pub const fn is_of(self, tag: u64) -> bool {
        self.0 & !Self::VERSION == tag & Self::TAG | Self::COMPLETE
    }
}

/// Which way the fragments of a packet go.
///
/// | bits | field |
/// |---|---|
/// | 0–19 | member |
/// | 20–27 | the member's generation |
/// | 28–30 | index of the SNAT address |
/// | 31 | to the client, not to the backend |
/// | 32–47 | last hop of the flow, for what goes to the client |
/// | 48–63 | 0 |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentPath(pub u64);

impl FragmentPath {
    const TO_CLIENT: u64 = 1 << 31;

    /// To the member, from a SNAT address.
    #[must_use]
    #[inline(always)]
    pub const fn to_backend(member: u32, generation: u8, snat: u8) -> Self {
        Self((member & MAX_MEMBER_INDEX) as u64 | (generation as u64) << 20 | (snat as u64 & 7) << 28)
    }

    /// From the member, by a last hop.
    #[must_use]
    #[inline(always)]
    pub const fn to_client(member: u32, generation: u8, last_hop: u16) -> Self {
        Self(Self::to_backend(member, generation, 0).0 | Self::TO_CLIENT | (last_hop as u64) << 32)
    }

    /// The member.
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

    /// Index of the SNAT address.
    #[must_use]
    #[inline(always)]
    pub const fn snat(self) -> u8 {
        (self.0 >> 28) as u8 & 7
    }

    /// Whether it leads to the client.
    #[must_use]
    #[inline(always)]
    pub const fn is_to_client(self) -> bool {
        self.0 & Self::TO_CLIENT != 0
    }

    /// Index of the last hop.
    #[must_use]
    #[inline(always)]
    pub const fn last_hop(self) -> u16 {
        (self.0 >> 32) as u16
    }
}

/// Cell 3 of a record.
#[must_use]
#[inline(always)]
pub const fn pack_fragment_flow(flow: FlowRef) -> u64 {
    flow.slot as u64 | (flow.version as u64) << 32
}

/// The flow that cell 3 of a record names.
#[must_use]
#[inline(always)]
pub const fn unpack_fragment_flow(word: u64) -> FlowRef {
    FlowRef { slot: word as u32, version: (word >> 32) as u16 }
}
