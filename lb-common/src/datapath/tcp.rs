//! TCP as a gateway sees it: how a segment moves a flow's state. Pure.
//!
//! The rules answer attacks and races (design: docs/adr/0003-tcp-states.md): only proof promotes, a RST may
//! be blind and only shortens the timeout, one FIN is not closing, a SYN on a closed flow is a new flow.

use crate::abi::FlowState;

/// Flags of a segment (byte 13 of the header).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(pub u8);

impl Flags {
    const FIN: u8 = 0x01;
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    const ACK: u8 = 0x10;

    /// A connection's first segment: SYN without ACK, RST or FIN.
    #[must_use]
    #[inline(always)]
    pub const fn is_open(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST | Self::FIN) == Self::SYN
    }

    /// The answer to it: SYN and ACK, neither RST nor FIN.
    #[must_use]
    #[inline(always)]
    pub const fn is_open_answer(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST | Self::FIN) == Self::SYN | Self::ACK
    }

    /// SYN, whatever else.
    #[must_use]
    #[inline(always)]
    pub const fn has_syn(self) -> bool {
        self.0 & Self::SYN != 0
    }

    /// FIN, whatever else.
    #[must_use]
    #[inline(always)]
    pub const fn has_fin(self) -> bool {
        self.0 & Self::FIN != 0
    }

    /// RST.
    #[must_use]
    #[inline(always)]
    pub const fn is_reset(self) -> bool {
        self.0 & Self::RST != 0
    }

    /// FIN, not RST.
    #[must_use]
    #[inline(always)]
    pub const fn is_fin(self) -> bool {
        self.0 & (Self::FIN | Self::RST) == Self::FIN
    }

    /// ACK, whatever else: the acknowledgement number means something.
    #[must_use]
    #[inline(always)]
    pub const fn is_acknowledging(self) -> bool {
        self.0 & Self::ACK != 0
    }

    /// ACK without SYN or RST: what can prove a handshake.
    #[must_use]
    #[inline(always)]
    pub const fn is_ack(self) -> bool {
        self.0 & (Self::ACK | Self::SYN | Self::RST) == Self::ACK
    }
}

/// What a client's segment does to a live flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientStep {
    /// Nothing.
    Stay,
    /// The flow goes to this state.
    To(FlowState),
    /// The flow goes to this state if the segment acknowledges the server's initial sequence number.
    Prove(FlowState),
    /// The old flow is over: this is a new one.
    NewFlow,
}

/// A segment from the client.
#[must_use]
#[inline(always)]
pub const fn from_client(state: FlowState, flags: Flags) -> ClientStep {
    use FlowState::{BackendFin, BackendReset, ClientFin, ClientReset, Closed, Established, SynAcked};
    if flags.is_open() {
        return match state {
            Closed | BackendReset => ClientStep::NewFlow,
            _ => ClientStep::Stay,
        };
    }
    if flags.is_reset() {
        return match state {
            Established | ClientFin | BackendFin => ClientStep::To(ClientReset),
            _ => ClientStep::Stay,
        };
    }
    match state {
        SynAcked if flags.is_ack() => ClientStep::Prove(if flags.is_fin() { ClientFin } else { Established }),
        Established if flags.is_fin() => ClientStep::To(ClientFin),
        BackendFin if flags.is_fin() => ClientStep::To(Closed),
        ClientReset => ClientStep::To(if flags.is_fin() { ClientFin } else { Established }),
        _ => ClientStep::Stay,
    }
}

/// What a backend's segment does to a live flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendStep {
    /// Nothing.
    Stay,
    /// The flow goes to this state.
    To(FlowState),
    /// The flow goes to [`FlowState::SynAcked`], and the segment's sequence number is kept.
    Answer,
    /// A refusal, if it acknowledges the SYN; another backend may get the SYN then.
    Refuse,
    /// Nothing, and the segment is dropped: the client's next SYN goes to another backend.
    Swallow,
}

/// A segment from the backend.
#[must_use]
#[inline(always)]
pub const fn from_backend(state: FlowState, flags: Flags) -> BackendStep {
    use FlowState::{BackendFin, BackendReset, ClientFin, Closed, Established, Refused, SynAcked, SynSent};
    if flags.is_reset() {
        return match state {
            SynSent => BackendStep::Refuse,
            Refused => BackendStep::Swallow,
            // Nothing was established that a blind RST could cut: the backend refused.
            SynAcked => BackendStep::To(Closed),
            Established | ClientFin | BackendFin => BackendStep::To(BackendReset),
            _ => BackendStep::Stay,
        };
    }
    if flags.is_open_answer() && matches!(state, SynSent | SynAcked | Refused) {
        return BackendStep::Answer;
    }
    match state {
        Established if flags.is_fin() => BackendStep::To(BackendFin),
        ClientFin if flags.is_fin() => BackendStep::To(Closed),
        BackendReset => BackendStep::To(if flags.is_fin() { BackendFin } else { Established }),
        _ => BackendStep::Stay,
    }
}

/// Whether a backend's segment can change a state at all, so that the forward entry need not be read for any
/// other.
#[must_use]
#[inline(always)]
pub const fn backend_flags_matter(flags: Flags) -> bool {
    flags.0 & (Flags::FIN | Flags::SYN | Flags::RST) != 0
}
