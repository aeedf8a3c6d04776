//! Events: what the packet program tells the agent, as plain structs through the ring buffer `EVENTS`.

use bytemuck::{Pod, Zeroable};

use super::assert_layout;

/// What an event is about ([`Event::kind`]).
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// Flow log: a flow was made.
    Opened = 1,
    /// Flow log: a flow has ended. One that saw a RST ends when it has stayed quiet, for the RST may be blind.
    Closed = 2,
    /// A new flow found the flow table full.
    TableFull = 3,
    /// A new flow found no SNAT port.
    PortsExhausted = 4,
    /// Connections to the member's backend failed so often in a row (`detail`) that it gets no new flow for a time;
    /// this flow's was the last of them.
    Tripped = 5,
    /// Flow log: a flow's SYN failed at one member (`detail`) and went to another, which is `member`.
    Rescued = 6,
}

/// One event.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Event {
    /// Nanoseconds of the monotonic clock, coarse.
    pub time: u64,
    /// Client's address, network order; IPv4 in the first four bytes.
    pub client: [u8; 16],
    /// Member of the flow; 0 when none was chosen.
    pub member: u32,
    /// Client's port, network order.
    pub client_port: [u8; 2],
    /// SNAT port, network order; 0: none.
    pub snat_port: [u8; 2],
    /// [`EventKind`].
    pub kind: u8,
    /// 4 or 6.
    pub family: u8,
    /// IP protocol.
    pub protocol: u8,
    /// SNAT address.
    pub snat: u8,
    /// The service's index.
    pub service: u32,
    /// What [`EventKind`] says about it. Of a flow that ended by being removed: ticks since its last packet. Else 0.
    pub detail: u32,
    /// The flow's slot.
    pub slot: u32,
    /// Version of the slot.
    pub version: u16,
    /// Generation of `member`.
    pub generation: u8,
    /// [`super::CloseReason`] of what ended; else 0.
    pub reason: u8,
    /// Generation of the member that a rescued flow had before; else 0.
    pub before_generation: u8,
    /// Always 0.
    pub reserved: [u8; 3],
}

/// Element of the array `EVENT_BUDGET`, one for each CPU: how many events it has sent in the current tick.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct EventBudget {
    /// The tick.
    pub tick: u32,
    /// Events sent in it, for the flow log and others.
    pub sent: u32,
}

assert_layout! {
    Event: 56,
    EventBudget: 8,
}
