//! What a plan could not do.

use crate::desired::{BackendId, ServiceId};

/// Something in the target that the maps can't hold or that doesn't fit together. Everything else is
/// programmed all the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanProblem {
    /// No index is left for the service.
    #[error(
        "service {service} is not programmed: the table of services is full ({limit}); raise the number of \
         services and restart after `kanmon cleanup`, or remove services"
    )]
    ServicesFull {
        /// The service.
        service: ServiceId,
        /// Services that the table holds.
        limit: u32,
    },
    /// No index is left for some of the service's members.
    #[error(
        "service {service} runs without {left_out} of its {wanted} backends: the table of {table} is full \
         ({limit}); raise the number of {table} and restart after `kanmon cleanup`, or remove endpoints"
    )]
    MembersLeftOut {
        /// The service.
        service: ServiceId,
        /// Members that were left out.
        left_out: u32,
        /// Members that the service should have.
        wanted: u32,
        /// The table that is full: "backends" or "members".
        table: &'static str,
        /// Entries that the table holds.
        limit: u32,
    },
    /// There is no room for the service's ring.
    #[error(
        "service {service} keeps its previous ring: a ring of {slots} slots for {members} members finds no \
         room in the ring table ({limit} slots); raise the number of ring slots and restart after \
         `kanmon cleanup`, or remove services"
    )]
    RingSpace {
        /// The service.
        service: ServiceId,
        /// Slots that the ring needs.
        slots: u32,
        /// Members that the ring should name.
        members: u32,
        /// Slots that the table holds.
        limit: u64,
    },
    /// The service has more members than a ring can name.
    #[error(
        "service {service} keeps its previous ring: {members} members are more than the {limit} that the \
         largest ring can hold; split the service"
    )]
    RingTooLarge {
        /// The service.
        service: ServiceId,
        /// Members that the ring should name.
        members: u32,
        /// Members that a ring can name.
        limit: u32,
    },
    /// There is no room for the service's source ranges.
    #[error(
        "service {service} does not get its {wanted} source ranges: with them the table of source ranges \
         would be too full ({limit} of {family}); {instead}; raise the number of source ranges and restart after \
         `kanmon cleanup`, or merge ranges"
    )]
    SourceRangesFull {
        /// The service.
        service: ServiceId,
        /// Ranges that it should have.
        wanted: usize,
        /// Ranges that the table holds.
        limit: u32,
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// What holds in their stead.
        instead: &'static str,
    },
    /// VIP and backend are not of one address family or protocol.
    #[error(
        "service {service} does not use backend {backend}: address family and protocol of a VIP and its \
         backends must be the same; give the service a VIP of that family"
    )]
    Mismatch {
        /// The service.
        service: ServiceId,
        /// The backend.
        backend: BackendId,
    },
    /// The backend can't be reached.
    #[error("backend {backend} gets no new flows: {reason}")]
    NoNextHop {
        /// The backend.
        backend: BackendId,
        /// Why, and what to do.
        reason: String,
    },
}
