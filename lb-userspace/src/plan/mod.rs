//! From desired state to ordered map writes.

mod checksum_delta;
mod encode;
mod problem;
mod snapshot;
mod step;
mod target;

pub use checksum_delta::{l3_delta, l4_delta};
pub use encode::{BackendKey, ServiceKey, VipKey};
pub use problem::PlanProblem;
pub use snapshot::MapSnapshot;
pub use step::Step;
pub use target::{FlowUsage, Target, TargetMember, TargetService};
