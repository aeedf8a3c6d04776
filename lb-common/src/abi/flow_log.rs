//! The flow log: which flows are noted, why they end, and what is counted of them.

use bytemuck::{Pod, Zeroable};

use super::{FlowRef, FlowState, VERSION_MASK, assert_layout};

/// Element of the array `FLOW_STATS`: when one flow began, and its traffic, where its service asks for that. A flow's
/// element is its slot modulo the number of elements, a power of two. Who comes first has it until his flow is gone.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowStats {
    /// Cell 0: [`FlowOwner`].
    pub owner: u64,
    /// When it was made, in nanoseconds of the monotonic clock, coarse.
    pub opened: u64,
    /// Packets towards the backend.
    pub packets_in: u64,
    /// Bytes towards the backend, as received: the whole frame.
    pub bytes_in: u64,
    /// Packets towards the client.
    pub packets_out: u64,
    /// Bytes towards the client, as received: the whole frame.
    pub bytes_out: u64,
    /// Always 0.
    pub reserved: [u64; 2],
}

assert_layout!(FlowStats: 64);

/// Whose an element of `FLOW_STATS` is.
///
/// | bits | field |
/// |---|---|
/// | 0–9 | version of the slot |
/// | 10–37 | slot |
/// | 38 | 1; 0: nobody's |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowOwner(pub u64);

impl FlowOwner {
    const TAKEN: u64 = 1 << 38;

    /// This flow's.
    #[must_use]
    #[inline(always)]
    pub const fn of(flow: FlowRef) -> Self {
        Self(
            Self::TAKEN
                | ((flow.slot & super::MAX_FLOW_SLOT) as u64) << 10
                | (flow.version & VERSION_MASK) as u64,
        )
    }

    /// The flow; `None`: nobody's.
    #[must_use]
    #[inline(always)]
    pub const fn flow(self) -> Option<FlowRef> {
        if self.0 & Self::TAKEN == 0 {
            return None;
        }
        let slot = (self.0 >> 10) as u32 & super::MAX_FLOW_SLOT;
        Some(FlowRef { slot, version: self.0 as u16 & VERSION_MASK })
    }
}

/// Which flows of a service are noted (cell 6 of its descriptor): bits 0–31 are N of "one in N"; 0 is as 1, each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowLogWord(pub u64);

impl FlowLogWord {
    /// One in so many.
    #[must_use]
    pub const fn one_in(count: u32) -> Self {
        Self(count as u64)
    }

    /// Whether the flow with this tag is noted. The tag decides, so that what a flow ends with is noted if its
    /// beginning was.
    #[must_use]
    #[inline(always)]
    pub const fn notes(self, tag: u64) -> bool {
        // The share of tags below 2^32 / N, without a division.
        (tag & 0xffff_ffff) * (self.0 & 0xffff_ffff) <= 0xffff_ffff
    }
}

/// Why a flow has ended ([`super::Event::reason`]).
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// Both sides sent a FIN.
    Fin = 1,
    /// One side reset it, or the backend refused it.
    Reset = 2,
    /// It was idle for too long.
    Timeout = 3,
    /// Half-open, it had to make room for a new flow.
    Evicted = 4,
    /// Its backend is gone, or was drained for long enough.
    BackendRemoved = 5,
}

impl CloseReason {
    /// The reason of a number.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            1 => Some(Self::Fin),
            2 => Some(Self::Reset),
            3 => Some(Self::Timeout),
            4 => Some(Self::Evicted),
            5 => Some(Self::BackendRemoved),
            _ => None,
        }
    }

    /// Why a flow in this state ends that is removed: for a RST that it saw, or for `otherwise`.
    #[must_use]
    #[inline(always)]
    pub const fn of(state: FlowState, otherwise: Self) -> Self {
        match state {
            FlowState::ClientReset | FlowState::BackendReset | FlowState::Refused => Self::Reset,
            _ => otherwise,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::finish;

    #[test]
    fn an_owner_names_exactly_one_incarnation_of_a_slot() {
        for flow in [
            FlowRef { slot: 0, version: 0 },
            FlowRef { slot: super::super::MAX_FLOW_SLOT, version: VERSION_MASK },
        ] {
            assert_eq!(FlowOwner::of(flow).flow(), Some(flow));
        }
        assert_eq!(FlowOwner(0).flow(), None);
    }

    #[test]
    fn one_flow_in_n_is_noted_by_its_tag() {
        for count in [0, 1, 2, 3, 10, 1000] {
            let word = FlowLogWord::one_in(count);
            let noted = (0..1_000_000_u64).filter(|n| word.notes(finish(*n))).count() as f64;
            let expected = 1_000_000.0 / f64::from(count.max(1));
            assert!((noted - expected).abs() <= 5.0 * expected.sqrt(), "one in {count}: {noted}");
        }
        let rarest = FlowLogWord::one_in(u32::MAX);
        assert!(rarest.notes(0) && rarest.notes(1 << 40) && !rarest.notes(2));
    }
}
