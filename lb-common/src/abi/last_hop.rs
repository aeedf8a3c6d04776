//! Last hops: from which neighbour, interface and VLAN a flow's requests came, so that its replies go back
//! the same way whatever the routing table says.

use bytemuck::{Pod, Zeroable};

use super::assert_layout;

/// Number of elements of the array `LAST_HOPS`.
pub const LAST_HOPS: u32 = 1024;
/// How many elements from its home a last hop may lie.
pub const LAST_HOP_WAYS: u32 = 8;

/// Element of the array `LAST_HOPS`. Its content never changes while it is in use; the agent frees it when no
/// flow names it any more.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct LastHop {
    /// Cell 0: [`LastHopWord`].
    pub word: u64,
    /// Cell 1: destination MAC of a reply: the neighbour.
    pub destination_mac: [u8; 6],
    /// Tag control information of the outer VLAN tag, network order.
    pub vlan_outer: [u8; 2],
    /// Cell 2: source MAC of a reply: ours.
    pub source_mac: [u8; 6],
    /// Tag control information of the inner VLAN tag, network order.
    pub vlan_inner: [u8; 2],
    /// Cell 3: interface.
    pub ifindex: u32,
    /// Number of VLAN tags, 0–2.
    pub vlan_count: u8,
    /// Non-zero: the outer of two tags is 802.1ad.
    pub vlan_service_tag: u8,
    /// MTU of the interface in bytes of the IP packet, when it was learned; 0: unknown.
    pub mtu: u16,
}

assert_layout!(LastHop: 32);

/// The authoritative word of a last hop.
///
/// | bits | field |
/// |---|---|
/// | 0–1 | 0 free, 1 being written, 2 in use |
/// | 2–47 | 46 bits of a hash of the content |
/// | 48–63 | tick of the last flow that was given it |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastHopWord(pub u64);

impl LastHopWord {
    /// Free.
    pub const FREE: Self = Self(0);

    /// A word being written.
    #[must_use]
    #[inline(always)]
    pub const fn claimed(hash: u64, tick: u16) -> Self {
        Self(1 | (hash & 0xffff_ffff_fffc) | ((tick as u64) << 48))
    }

    /// A word in use.
    #[must_use]
    #[inline(always)]
    pub const fn in_use(hash: u64, tick: u16) -> Self {
        Self(2 | (hash & 0xffff_ffff_fffc) | ((tick as u64) << 48))
    }

    /// Whether it is free.
    #[must_use]
    #[inline(always)]
    pub const fn is_free(self) -> bool {
        self.0 & 3 == 0
    }

    /// Whether it is in use and of that content.
    #[must_use]
    #[inline(always)]
    pub const fn is(self, hash: u64) -> bool {
        self.0 & 0xffff_ffff_ffff == Self::in_use(hash, 0).0
    }

    /// Whether it is in use and of that content, or being written with it.
    #[must_use]
    #[inline(always)]
    pub const fn will_be(self, hash: u64) -> bool {
        !self.is_free() && (self.0 ^ hash) & 0xffff_ffff_fffc == 0
    }

    /// Whether it is in use.
    #[must_use]
    #[inline(always)]
    pub const fn is_in_use(self) -> bool {
        self.0 & 3 == 2
    }

    /// Tick of the last flow that was given it.
    #[must_use]
    #[inline(always)]
    pub const fn tick(self) -> u16 {
        (self.0 >> 48) as u16
    }
}
