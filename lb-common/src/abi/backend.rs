//! Backends: one pod's protocol, address and port, whatever number of services it is in.

use bytemuck::{Pod, Zeroable};

use super::assert_layout;

/// Key of the map `BACKENDS_V4`, by which a reply finds its backend; the value is the backend's index
/// (`u32`), immutable while the key exists.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct BackendKeyV4 {
    /// Address, network order.
    pub address: [u8; 4],
    /// Port, network order.
    pub port: [u8; 2],
    /// IP protocol.
    pub protocol: u8,
    /// Always 0.
    pub pad: u8,
}

/// Key of the map `BACKENDS_V6`; see [`BackendKeyV4`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct BackendKeyV6 {
    /// Address, network order.
    pub address: [u8; 16],
    /// Port, network order.
    pub port: [u8; 2],
    /// IP protocol.
    pub protocol: u8,
    /// Always 0.
    pub pad: u8,
}

/// Element of the array `BACKENDS`: what only flow set-up touches. Index 0 is never a backend.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Backend {
    /// Cell 0: bits of [`backend_flags`].
    pub flags: u32,
    /// Always 0.
    pub pad: u32,
    /// Cell 1: until when the packet program itself keeps new flows away, in nanoseconds of the monotonic clock.
    pub tripped_until: u64,
    /// Cell 2: connect errors in a row that the packet program has seen; from 0 again after a trip.
    pub errors: u64,
    /// Cells 3 and 4: address, network order; IPv4 in the first four bytes.
    pub address: [u8; 16],
    /// Cell 5: port, network order.
    pub port: [u8; 2],
    /// IP protocol.
    pub protocol: u8,
    /// 4 or 6.
    pub family: u8,
    /// A number of the cluster that it is in, the same for all of that cluster's; 0: unknown. A SYN that failed
    /// twice goes to another cluster where there is one.
    pub cluster: u32,
    /// Always 0.
    pub reserved: [u8; 16],
}

/// Bits of [`Backend::flags`].
pub mod backend_flags {
    /// New flows may go here. Cleared by a failed probe or an ejection; the ring stays as it is and the
    /// lookup walks on.
    pub const USABLE: u32 = 1;
}

/// 64-bit words in a [`PortBitmap`]: 16,384 ports.
pub const PORT_BITMAP_WORDS: usize = 256;

/// Element of the array `PORTS`: which SNAT ports of one (backend, SNAT address) are taken, bit *i* of word
/// *w* standing for port `port_base + 64 w + i`. Its index is `backend × snat_count + snat`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct PortBitmap {
    /// The bits.
    pub words: [u64; PORT_BITMAP_WORDS],
}

assert_layout! {
    BackendKeyV4: 8,
    BackendKeyV6: 20,
    Backend: 64,
    PortBitmap: 2048,
}
