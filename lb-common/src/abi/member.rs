//! Members: a backend as part of one service, with all that rewriting a packet needs in one cache line.

use bytemuck::{Pod, Zeroable};

use super::assert_layout;

/// Largest member index: 20 bits in a flow's word. Index 0 is never a member.
pub const MAX_MEMBER_INDEX: u32 = (1 << 20) - 1;

/// Element of the array `MEMBERS`.
///
/// Address, port, backend and deltas never change while a generation lives; the next hop may, and each of its
/// words is stored whole.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Member {
    /// Cells 0 and 1: the backend's address, network order; IPv4 in the first four bytes.
    pub address: [u8; 16],
    /// Cell 2: index in `BACKENDS`.
    pub backend: u32,
    /// Incremented (1–255, then 1 again) each time the index is given to another member; flows carry it.
    pub generation: u8,
    /// Bits of [`member_flags`].
    pub flags: u8,
    /// The backend's port, network order.
    pub port: [u8; 2],
    /// Cell 3: MAC address of the next hop towards the backend.
    pub destination_mac: [u8; 6],
    /// Tag control information of the outer VLAN tag (IEEE 802.1Q), network order.
    pub vlan_outer: [u8; 2],
    /// Cell 4: MAC address of the egress interface.
    pub source_mac: [u8; 6],
    /// Tag control information of the inner VLAN tag, network order.
    pub vlan_inner: [u8; 2],
    /// Cell 5: egress interface.
    pub ifindex: u32,
    /// Path MTU towards the next hop in bytes of the IP packet; 0: unknown.
    pub mtu: u16,
    /// One's complement sum (RFC 1624) that turns VIP and service port into the backend's address and port:
    /// what a request's TCP or UDP checksum needs; a reply needs its complement. Host order of the raw
    /// 16-bit words, as [`crate::datapath::checksum`] computes it.
    pub l4_delta: u16,
    /// Cell 6: as `l4_delta`, for the IPv4 header: the addresses alone.
    pub l3_delta: u16,
    /// Number of VLAN tags on egress, 0–2.
    pub vlan_count: u8,
    /// Non-zero: the outer of two tags is 802.1ad (0x88a8), not 802.1Q.
    pub vlan_service_tag: u8,
    /// Index of the service in `DESCRIPTORS`.
    pub service: u32,
    /// Cell 7: the IPv4 VIP; the IPv6 VIP is in the service's descriptor.
    pub vip_v4: [u8; 4],
    /// The service's port, network order.
    pub vip_port: [u8; 2],
    /// 4 or 6.
    pub family: u8,
    /// Always 0.
    pub reserved: u8,
}

/// Bits of [`Member::flags`].
pub mod member_flags {
    /// The entry describes a member. Clear: the index is free.
    pub const VALID: u8 = 1;
    /// The next hop is known. Clear: no new flow, and packets of old ones are dropped with a counter.
    pub const NEXT_HOP: u8 = 2;
    /// No new flow goes here (terminating or removed endpoint); old ones go on.
    pub const DRAINING: u8 = 4;
    /// The endpoint is gone: UDP flows are selected anew at once (kubernetes #59033), TCP flows may finish.
    pub const REMOVED: u8 = 8;
    /// Bytes and packets of its flows are counted one by one, those of the flow log.
    pub const COUNTED: u8 = 16;
}

assert_layout!(Member: 64);
