//! A member's line, read cell by cell.

use super::Cells;
use crate::abi::{FlowWord, member_flags};

/// What cell 2 of a member says.
#[derive(Clone, Copy, Debug)]
pub(super) struct MemberHead(u64);

impl MemberHead {
    #[inline(always)]
    pub(super) fn load<C: Cells>(member: C) -> Self {
        Self(member.load(2))
    }

    /// Index in `BACKENDS`.
    #[inline(always)]
    pub(super) const fn backend(self) -> u32 {
        self.0 as u32
    }

    /// Generation of the index.
    #[inline(always)]
    pub(super) const fn generation(self) -> u8 {
        (self.0 >> 32) as u8
    }

    /// The backend's port, raw.
    #[inline(always)]
    pub(super) const fn port(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// Whether all of these bits of [`member_flags`] are set.
    #[inline(always)]
    pub(super) const fn has(self, flags: u8) -> bool {
        (self.0 >> 40) as u8 & flags == flags
    }

    /// Whether new flows may go here, as far as the member is concerned.
    #[inline(always)]
    pub(super) const fn takes_new_flows(self) -> bool {
        let relevant =
            member_flags::VALID | member_flags::NEXT_HOP | member_flags::DRAINING | member_flags::REMOVED;
        (self.0 >> 40) as u8 & relevant == member_flags::VALID | member_flags::NEXT_HOP
    }

    /// Whether this is still the member that a flow was given.
    #[inline(always)]
    pub(super) const fn is_of(self, flow: FlowWord) -> bool {
        self.has(member_flags::VALID) && self.generation() == flow.generation()
    }
}

/// The service that a member belongs to.
#[inline(always)]
pub(super) fn service<C: Cells>(member: C) -> u32 {
    (member.load(6) >> 32) as u32
}

/// Whether a member's addresses are IPv6.
#[inline(always)]
pub(super) fn is_v6<C: Cells>(member: C) -> bool {
    (member.load(7) >> 48) as u8 == 6
}

/// The service's port, raw.
#[inline(always)]
pub(super) fn vip_port<C: Cells>(member: C) -> u16 {
    (member.load(7) >> 32) as u16
}

/// Folded checksum differences from VIP to backend: of the transport header, and of the addresses alone.
#[inline(always)]
pub(super) fn deltas<C: Cells>(member: C) -> (u16, u16) {
    ((member.load(5) >> 48) as u16, member.load(6) as u16)
}
