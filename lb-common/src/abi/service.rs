//! Services: which (VIP, port, protocol) is whose, and where its ring is.

use bytemuck::{Pod, Zeroable};

use super::assert_layout;

/// Key of the map `SERVICES_V4`. The value is the service's index (`u32`) in `DESCRIPTORS`; it never
/// changes while the key exists, because an update would recycle the element under its readers.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct ServiceKeyV4 {
    /// Virtual address, network order.
    pub vip: [u8; 4],
    /// Port, network order.
    pub port: [u8; 2],
    /// IP protocol: [`super::TCP`] or [`super::UDP`].
    pub protocol: u8,
    /// Always 0.
    pub pad: u8,
}

/// Key of the map `SERVICES_V6`; see [`ServiceKeyV4`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct ServiceKeyV6 {
    /// Virtual address, network order.
    pub vip: [u8; 16],
    /// Port, network order.
    pub port: [u8; 2],
    /// IP protocol: [`super::TCP`] or [`super::UDP`].
    pub protocol: u8,
    /// Always 0.
    pub pad: u8,
}

/// Key of the map `VIPS_V4`; the value is a `u32` of [`vip_flags`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct VipKeyV4 {
    /// Virtual address, network order.
    pub vip: [u8; 4],
}

/// Key of the map `VIPS_V6`; the value is a `u32` of [`vip_flags`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct VipKeyV6 {
    /// Virtual address, network order.
    pub vip: [u8; 16],
}

/// Flags of a VIP, the values of `VIPS_V4` and `VIPS_V6`.
pub mod vip_flags {
    /// The VIP is also an address of the gateway node: what has no service passes to the node's own stack,
    /// or SSH to the node would die.
    pub const NODE_ADDRESS: u32 = 1;
    /// Echo requests are answered.
    pub const ECHO: u32 = 2;
}

/// A service as the packet path sees it: one cache line of the array `DESCRIPTORS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct ServiceDescriptor {
    /// [`super::RingWord`] of the ring; 0 while there is none. Stored last, as one word.
    pub ring: u64,
    /// [`super::RingWord`] of the fallback ring, over every usable backend that policy allows; 0: none.
    pub fallback: u64,
    /// Virtual address, network order; IPv4 in the first four bytes.
    pub vip: [u8; 16],
    /// Port, network order.
    pub port: [u8; 2],
    /// IP protocol.
    pub protocol: u8,
    /// 4 or 6.
    pub family: u8,
    /// Always 0.
    pub pad: [u8; 4],
    /// Cell 5: [`ReactionWord`].
    pub reaction: u64,
    /// Cell 6: [`super::FlowLogWord`].
    pub flow_log: u64,
    /// Cell 7: [`super::ClientWord`].
    pub clients: u64,
}

/// What connections of a service that fail at a backend lead to; one word, so that a reader sees one policy.
///
/// | bits | field |
/// |---|---|
/// | 0–15 | connect errors in a row at which a backend is tripped; 0: never |
/// | 16 | a refused SYN goes to another backend at once |
/// | 17–31 | 0 |
/// | 32–63 | for how long a backend is tripped, in milliseconds |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReactionWord(pub u64);

impl ReactionWord {
    const RETRY_ON_RESET: u64 = 1 << 16;

    /// Packs a reaction.
    #[must_use]
    pub const fn new(errors: u16, trip_milliseconds: u32, retry_on_reset: bool) -> Self {
        let retry = if retry_on_reset { Self::RETRY_ON_RESET } else { 0 };
        Self(errors as u64 | retry | (trip_milliseconds as u64) << 32)
    }

    /// Connect errors in a row at which a backend is tripped; 0: never.
    #[must_use]
    #[inline(always)]
    pub const fn errors(self) -> u64 {
        self.0 & 0xffff
    }

    /// Whether a refused SYN goes to another backend at once.
    #[must_use]
    #[inline(always)]
    pub const fn retries_on_reset(self) -> bool {
        self.0 & Self::RETRY_ON_RESET != 0
    }

    /// For how long a backend is tripped, in nanoseconds.
    #[must_use]
    #[inline(always)]
    pub const fn trip_nanoseconds(self) -> u64 {
        (self.0 >> 32) * 1_000_000
    }
}

/// Number of elements of the array `ADDRESS_FILTER`.
pub const ADDRESS_FILTER_SIZE: u32 = 1024;

/// Element of `ADDRESS_FILTER`: what a destination address that hashes here may be. A clear filter proves
/// that an address is none of ours; a set one proves nothing. It lets foreign traffic pass after one read.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct AddressFilter {
    /// Bits of [`address_filter`].
    pub flags: u64,
}

/// Bits of [`AddressFilter::flags`].
pub mod address_filter {
    /// Some VIP hashes here.
    pub const VIP: u64 = 1;
    /// Some SNAT address hashes here.
    pub const SNAT: u64 = 2;
}

assert_layout! {
    ServiceKeyV4: 8,
    ServiceKeyV6: 20,
    VipKeyV4: 4,
    VipKeyV6: 16,
    ServiceDescriptor: 64,
    AddressFilter: 8,
}
