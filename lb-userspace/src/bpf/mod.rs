//! The kernel side: loading, pinning, attaching, and the maps.
//!
//! ```text
//! AgentLock::acquire → Kernel::load → configure → (snapshot → Model::adopt) → apply … → attach
//! ```
//!
//! [`layout`] sizes the maps, [`load`] makes or adopts them under a [`pins::PinDir`], [`memory`] maps the arrays
//! into the agent, [`apply`] writes a plan's steps, [`snapshot`] reads everything back, [`attach`] puts the
//! program on interfaces, [`events`] reads what it tells, [`cleanup()`] removes everything.
//!
//! Network namespaces: [`Kernel::attach`] works in that of the calling thread.

pub mod apply;
pub mod attach;
mod cleanup;
mod ethtool;
pub mod events;
pub mod host;
pub mod layout;
pub mod load;
pub mod lock;
pub mod memory;
mod netlink;
pub mod pins;
pub mod settings;
pub mod snapshot;
mod sys;

pub use apply::{Applied, ApplyError};
pub use attach::{AttachError, AttachedMode, Attachment, XdpMode, refuse_foreign_programs};
pub use cleanup::{Removed, cleanup};
pub use ethtool::offloads_in_the_way;
pub use events::Events;
pub use layout::{MemoryPlan, TableSizes};
pub use load::{EBPF_OBJECT, Kernel, LoadError};
pub use lock::{AgentLock, LOCK_DIR, LockError};
pub use memory::{Counters, Memory, Trip};
pub use pins::{PIN_DIR, PinDir, PinError};
pub use settings::{Settings, SettingsError, ring_key};
