//! From desired state to ordered map writes.
//!
//! [`Target`] is what the maps should say, [`Model`] what they say now and which index stands for what.
//! [`plan`] compares the two and gives the [`Step`]s from one to the other, in an order in which no packet
//! ever sees a half-made state; [`Model::adopt`] rebuilds the model from the maps themselves, so that a new
//! agent goes on where the last one stopped.
//!
//! All of it is pure. The caller applies the steps one after another, waits at each [`Step::GracePeriod`], and
//! applies the steps of one plan before those of the next; only [`Step::UpdateEcho`] may come later. If a step can't be applied, the model no longer
//! matches the maps: take a snapshot and adopt it anew ([`Model::adopt_anew`]).
//!
//! The order of a plan, and why:
//! 1. New backends, then their keys, then new members: nothing names them yet.
//! 2. Changed next hops, flags and usability of what exists.
//! 3. New source ranges, then the word that says whether there are any; rings into free regions, then the one word
//!    that makes each visible; new descriptors with theirs.
//! 4. Service keys, then VIPs, then bits of the address filter, which opens a VIP to packets with everything
//!    behind it in place.
//! 5. Keys of services that are gone, then the flags of members that are; a grace period, and source
//!    ranges that are gone: until then who is let in before and after a change is let in throughout.
//! 6. Members that no flow refers to any more, keys of backends without members and ports, VIPs (address filter
//!    first) and descriptors of services without members. Each index and each region is given out again only
//!    after another grace period.

mod adopt;
mod checksum_delta;
mod encode;
mod free;
mod model;
mod planner;
mod problem;
mod removal;
mod rings;
mod snapshot;
mod sources;
mod step;
mod target;
#[cfg(test)]
mod tests;

pub use checksum_delta::{l3_delta, l4_delta};
pub use encode::{BackendKey, ServiceKey, SourceKey, VipKey};
pub use model::{Limits, MemberInfo, Model, ServiceInfo};
pub use planner::{Plan, plan};
pub use problem::PlanProblem;
pub use snapshot::MapSnapshot;
pub use step::Step;
pub use target::{FlowUsage, Reaction, Target, TargetMember, TargetService, cluster_number};
