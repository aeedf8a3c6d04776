//! The packet program in the kernel, run on frames from memory (`BPF_PROG_TEST_RUN`), its maps within reach.
//!
//! Nothing is attached or pinned: everything goes with the process. [`KernelProgram`] is the loaded program,
//! [`KernelTables`] its arrays mapped into memory, [`Runner`] runs it on one frame at a time, and every thread
//! has a runner of its own. [`Stream`] sends many frames through it at once, to see how long they take; a `Tape` does so
//! with frames of any kind and order, and in front of any program, and a `Generator` sends them out of an interface.

mod instructions;
mod live;
mod memory;
mod mirror;
mod program;
mod runner;
mod stream;
mod tape;

use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

pub(crate) use instructions::load_xdp;
pub(crate) use live::{LinkEnds, Sink};
pub use memory::{KernelTables, MappedArray, MappedCells};
pub use mirror::mirror_element;
pub(crate) use program::verified_instructions;
pub use program::{Clock, KernelProgram};
pub use runner::{MAX_HEAD_ROOM, Outcome, Runner, XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX};
pub use stream::Stream;
pub(crate) use tape::{Callee, Player, Tape, processor_time};

/// Keeps the calling thread on one CPU: what the program counts per CPU then lands in one place, and two
/// threads on two CPUs really run at once.
///
/// # Errors
/// When there is no such CPU, or this process may not use it.
pub fn pin_to_cpu(cpu: usize) -> nix::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set)
}
