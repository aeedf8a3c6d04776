//! The forward flow table: set-associative buckets of four 16-byte entries, one cache line each.
//!
//! An entry is one *authoritative word*, changed by compare-exchange only, and one *tag word*. The tag is
//! stored masked by a function of the entry's version, so a tag and a word of two incarnations of the slot
//! never match each other. docs/adr/0001-flow-tables.md has the reasoning.

use bytemuck::{Pod, Zeroable};

use super::assert_layout;

/// Entries in a bucket.
pub const FLOW_WAYS: u32 = 4;
/// Largest slot number (bucket × 4 + way): 28 bits in a reverse entry.
pub const MAX_FLOW_SLOT: u32 = (1 << 28) - 1;
/// Versions of slots count modulo 1,024.
pub const VERSION_MASK: u16 = 0x3ff;
/// Words of the array `LOCKS`; a power of two.
pub const LOCK_STRIPES: u32 = 4096;

/// One entry of the flow table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowEntry {
    /// [`FlowWord`].
    pub word: u64,
    /// 48 keyed bits of the flow's hash, masked by the version (low 16 bits first).
    pub tag: [u16; 3],
    /// Tick of the client's last packet; stored plainly, as a halfword.
    pub last_seen: u16,
}

/// Element of the array `FLOWS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowBucket {
    /// The four ways.
    pub entries: [FlowEntry; FLOW_WAYS as usize],
}

/// What is known of a half-open TCP flow's handshake.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Handshake {
    /// [`HandshakeWord`].
    pub word: u64,
}

/// Element of the array `HANDSHAKES`, beside the bucket of the same index.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct HandshakeBucket {
    /// One for each way.
    pub ways: [Handshake; FLOW_WAYS as usize],
}

/// Element of the array `LOCKS`: a try-lock on a stripe of keys, 0 when free.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Lock {
    /// 1 while held.
    pub held: u64,
}

assert_layout! {
    FlowEntry: 16,
    FlowBucket: 64,
    Handshake: 8,
    HandshakeBucket: 32,
    Lock: 8,
}

/// State of a flow (bits 0–3 of its word).
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FlowState {
    /// The slot is free.
    Empty = 0,
    /// A CPU is writing the entry.
    Claimed = 1,
    /// TCP, half-open: the SYN went to the backend.
    SynSent = 2,
    /// TCP, half-open: the backend's SYN-ACK was seen and its sequence number kept.
    SynAcked = 3,
    /// TCP: the client proved that it saw the SYN-ACK.
    Established = 4,
    /// TCP: the client sent a FIN, the backend has not.
    ClientFin = 5,
    /// TCP: the backend sent a FIN, the client has not.
    BackendFin = 6,
    /// TCP: both sent a FIN, or the backend refused.
    Closed = 7,
    /// TCP: a RST came from the client's side. It may be blind, so it only shortens the timeout, and anything
    /// else from that side revives the flow (what comes from the other side may just have been in flight).
    ClientReset = 8,
    /// UDP, half-open: no reply yet.
    UdpNew = 9,
    /// UDP: answered. Nothing shows yet that the client is real, so new flows may take its place.
    UdpReplied = 10,
    /// TCP: a RST came from the backend's side; see [`FlowState::ClientReset`].
    BackendReset = 11,
    /// TCP, half-open: the backend refused, and the next SYN goes to another one.
    Refused = 12,
    /// UDP: answered, and then the client was heard again.
    UdpAssured = 13,
}

impl FlowState {
    /// All states, in the order of their numbers.
    pub const ALL: [Self; 14] = [
        Self::Empty,
        Self::Claimed,
        Self::SynSent,
        Self::SynAcked,
        Self::Established,
        Self::ClientFin,
        Self::BackendFin,
        Self::Closed,
        Self::ClientReset,
        Self::UdpNew,
        Self::UdpReplied,
        Self::BackendReset,
        Self::Refused,
        Self::UdpAssured,
    ];

    /// The state of a number; numbers that mean nothing read as [`FlowState::Empty`].
    #[must_use]
    #[inline(always)]
    pub const fn from_bits(bits: u8) -> Self {
        match bits {
            1 => Self::Claimed,
            2 => Self::SynSent,
            3 => Self::SynAcked,
            4 => Self::Established,
            5 => Self::ClientFin,
            6 => Self::BackendFin,
            7 => Self::Closed,
            8 => Self::ClientReset,
            9 => Self::UdpNew,
            10 => Self::UdpReplied,
            11 => Self::BackendReset,
            12 => Self::Refused,
            13 => Self::UdpAssured,
            _ => Self::Empty,
        }
    }

    /// Whether a packet can belong to an entry in this state.
    #[must_use]
    #[inline(always)]
    pub const fn is_live(self) -> bool {
        self as u8 >= Self::SynSent as u8
    }

    /// Whether the connection has not been answered, or its handshake not been proven. Such flows expire by their
    /// client's silence alone.
    #[must_use]
    #[inline(always)]
    pub const fn is_half_open(self) -> bool {
        matches!(self, Self::SynSent | Self::SynAcked | Self::UdpNew | Self::Refused)
    }

    /// Whether nothing has shown yet that the client is real, for whose address a forged one may have been answered:
    /// such entries hold at most half of a bucket and displace only each other.
    #[must_use]
    #[inline(always)]
    pub const fn gives_way(self) -> bool {
        self.is_half_open() || matches!(self, Self::UdpReplied)
    }
}

/// The authoritative word of a flow's entry.
///
/// | bits | field |
/// |---|---|
/// | 0–3 | state |
/// | 4 | doomed: the sweep found it idle and will evict it unless a packet clears this bit |
/// | 5–6 | attempt: how many backends refused or were silent before this one; 3: no other one is tried |
/// | 7–16 | version of the slot |
/// | 17–24 | generation of the member |
/// | 25–44 | member |
/// | 45–47 | SNAT address |
/// | 48–63 | SNAT port |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowWord(pub u64);

impl FlowWord {
    const DOOMED: u64 = 1 << 4;

    /// A word of the given state and version, everything else 0.
    #[must_use]
    #[inline(always)]
    pub const fn new(state: FlowState, version: u16) -> Self {
        Self(state as u64 | (((version & VERSION_MASK) as u64) << 7))
    }

    /// The same word with a flow's path: member, its generation, SNAT address (0–7) and port.
    #[must_use]
    #[inline(always)]
    pub const fn with_path(self, member: u32, generation: u8, snat: u8, port: u16) -> Self {
        Self(
            (self.0 & 0x1_ffff)
                | ((generation as u64) << 17)
                | (((member & 0xf_ffff) as u64) << 25)
                | (((snat & 7) as u64) << 45)
                | ((port as u64) << 48),
        )
    }

    /// The same word in another state, and no longer doomed.
    #[must_use]
    #[inline(always)]
    pub const fn with_state(self, state: FlowState) -> Self {
        Self((self.0 & !0x1f) | state as u64)
    }

    /// The same word with another attempt, 0–3.
    #[must_use]
    #[inline(always)]
    pub const fn with_attempt(self, attempt: u8) -> Self {
        Self((self.0 & !0x60) | (((attempt & 3) as u64) << 5))
    }

    /// The same word, doomed.
    #[must_use]
    #[inline(always)]
    pub const fn doomed(self) -> Self {
        Self(self.0 | Self::DOOMED)
    }

    /// Whether the sweep marked it.
    #[must_use]
    #[inline(always)]
    pub const fn is_doomed(self) -> bool {
        self.0 & Self::DOOMED != 0
    }

    /// State.
    #[must_use]
    #[inline(always)]
    pub const fn state(self) -> FlowState {
        FlowState::from_bits((self.0 & 0xf) as u8)
    }

    /// Attempt, 0–3.
    #[must_use]
    #[inline(always)]
    pub const fn attempt(self) -> u8 {
        ((self.0 >> 5) & 3) as u8
    }

    /// Version, 0–1023.
    #[must_use]
    #[inline(always)]
    pub const fn version(self) -> u16 {
        ((self.0 >> 7) & VERSION_MASK as u64) as u16
    }

    /// Generation of the member.
    #[must_use]
    #[inline(always)]
    pub const fn generation(self) -> u8 {
        (self.0 >> 17) as u8
    }

    /// Member index.
    #[must_use]
    #[inline(always)]
    pub const fn member(self) -> u32 {
        ((self.0 >> 25) & 0xf_ffff) as u32
    }

    /// SNAT address, 0–7.
    #[must_use]
    #[inline(always)]
    pub const fn snat(self) -> u8 {
        ((self.0 >> 45) & 7) as u8
    }

    /// SNAT port, host order.
    #[must_use]
    #[inline(always)]
    pub const fn port(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// The low 48 bits of the tag word that an entry of this version with this hash tag has. Multiplying by
    /// an odd constant is a bijection, so two versions never give one mask.
    #[must_use]
    #[inline(always)]
    pub const fn masked_tag(self, tag: u64) -> u64 {
        (tag ^ (self.version() as u64).wrapping_mul(0x9e37_79b9_7f4b)) & 0xffff_ffff_ffff
    }
}

/// What is known of a half-open TCP flow's handshake, beside its slot.
///
/// | bits | before the backend's answer | after it |
/// |---|---|---|
/// | 0–11 | when the SYN went to the backend, in units of 2^24 ns, modulo 2^12 | the server's initial |
/// | 12–31 | member that it went to before; 0: none | sequence number |
/// | 32–41 | version of the slot | the same |
/// | 42–62 | low 21 bits of the client's initial sequence number | 0 |
/// | 63 | 0 | 1 |
///
/// The client's ACK proves the handshake when it equals the server's number + 1. A backend's RST is the answer to
/// the SYN when it acknowledges the client's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandshakeWord(pub u64);

impl HandshakeWord {
    const ANSWERED: u64 = 1 << 63;
    const CLIENT_MASK: u32 = 0x1f_ffff;
    const TIME_SHIFT: u32 = 24;
    const TIME_MASK: u64 = 0xfff;

    /// A SYN with this sequence number (host order) goes to a backend at this time (nanoseconds), after it had
    /// gone to the member `before`.
    #[must_use]
    #[inline(always)]
    pub const fn sent(version: u16, isn: u32, time: u64, before: u32) -> Self {
        Self(
            ((time >> Self::TIME_SHIFT) & Self::TIME_MASK)
                | (((before & 0xf_ffff) as u64) << 12)
                | (((version & VERSION_MASK) as u64) << 32)
                | (((isn & Self::CLIENT_MASK) as u64) << 42),
        )
    }

    /// The backend answered with this sequence number, host order.
    #[must_use]
    #[inline(always)]
    pub const fn answered(version: u16, isn: u32) -> Self {
        Self(Self::ANSWERED | isn as u64 | (((version & VERSION_MASK) as u64) << 32))
    }

    /// The same, gone to another backend at this time, after it had gone to the member `before`.
    #[must_use]
    #[inline(always)]
    pub const fn sent_again(self, time: u64, before: u32) -> Self {
        Self(
            (self.0 & !0xffff_ffff)
                | ((time >> Self::TIME_SHIFT) & Self::TIME_MASK)
                | (((before & 0xf_ffff) as u64) << 12),
        )
    }

    /// Whether it belongs to this version of the slot, and the backend has not answered.
    #[must_use]
    #[inline(always)]
    pub const fn is_unanswered(self, version: u16) -> bool {
        self.0 & Self::ANSWERED == 0 && (self.0 >> 32) as u16 & VERSION_MASK == version
    }

    /// Whether an acknowledgement (host order) proves that its sender has seen the backend's answer to the flow
    /// of this version of the slot.
    #[must_use]
    #[inline(always)]
    pub const fn is_proven_by(self, version: u16, ack: u32) -> bool {
        self.0 == Self::answered(version, ack.wrapping_sub(1)).0
    }

    /// Whether an acknowledgement (host order) is one of the unanswered SYN of the flow of this version of the
    /// slot.
    #[must_use]
    #[inline(always)]
    pub const fn is_acknowledged_by(self, version: u16, ack: u32) -> bool {
        self.is_unanswered(version)
            && (self.0 >> 42) as u32 & Self::CLIENT_MASK == ack.wrapping_sub(1) & Self::CLIENT_MASK
    }

    /// Whether so many units have passed since the SYN went to the backend. Time counts modulo 69 s: a
    /// SYN that comes long after the last one may have to come once more.
    #[must_use]
    #[inline(always)]
    pub const fn is_older_than(self, units: u64, now: u64) -> bool {
        (now >> Self::TIME_SHIFT).wrapping_sub(self.0) & Self::TIME_MASK > units
    }

    /// The member that the SYN went to before; 0: none.
    #[must_use]
    #[inline(always)]
    pub const fn before(self) -> u32 {
        (self.0 >> 12) as u32 & 0xf_ffff
    }
}

/// Names an incarnation of a flow's slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowRef {
    /// Bucket × 4 + way.
    pub slot: u32,
    /// Version of the slot.
    pub version: u16,
}
