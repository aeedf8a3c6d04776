//! Active refusal: what a dropped packet's sender is told, and how often.

use bytemuck::{Pod, Zeroable};

use super::{Counter, assert_layout};

/// What the sender of a dropped packet is told.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nobody answers there: no such port, no usable backend, or no such connection. TCP: RST; else ICMP: port
    /// unreachable.
    Port = 1,
    /// ICMP: administratively prohibited.
    Prohibited = 2,
    /// ICMP: no such protocol.
    Protocol = 3,
    /// ICMP: its TTL or hop limit ends at the gateway.
    TimeExceeded = 4,
    /// ICMP: fragmentation needed, or packet too big, with the MTU that it is too big for ([`CpuRefusals::mtu`]).
    TooBig = 5,
}

impl Refusal {
    /// What the sender of a packet that was dropped for this reason is told; `None`: nothing.
    #[must_use]
    #[inline(always)]
    pub const fn after(reason: Counter) -> Option<Self> {
        match reason {
            Counter::DropClosedPort | Counter::DropNotSyn | Counter::DropNoBackend => Some(Self::Port),
            Counter::DropSource => Some(Self::Prohibited),
            Counter::DropProtocol => Some(Self::Protocol),
            Counter::DropTtl => Some(Self::TimeExceeded),
            Counter::DropTooBig => Some(Self::TooBig),
            _ => None,
        }
    }

    /// What a number stands for; `None` for any other one.
    #[must_use]
    #[inline(always)]
    pub const fn of(number: u64) -> Option<Self> {
        match number {
            1 => Some(Self::Port),
            2 => Some(Self::Prohibited),
            3 => Some(Self::Protocol),
            4 => Some(Self::TimeExceeded),
            5 => Some(Self::TooBig),
            _ => None,
        }
    }
}

/// Element of the array `REFUSALS`, one for each CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct CpuRefusals {
    /// The [`Refusal`] of the packet that this CPU works on, from the program that drops it to the one that answers.
    pub refusal: u64,
    /// Of [`Refusal::TooBig`]: the MTU.
    pub mtu: u64,
    /// A tick.
    pub tick: u32,
    /// Answers that this CPU has sent in it.
    pub sent: u32,
    /// Interface by which the SYN leaves that this CPU works on, from the program that rewrites it to the one that clamps
    /// its MSS.
    pub clamp_egress: u32,
    /// Largest segment that it may allow.
    pub clamp_mss: u32,
}

assert_layout! {
    CpuRefusals: 32,
}
