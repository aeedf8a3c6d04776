//! Makes a history that ends in a mismatch short enough to read.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use tests::kernel_run::KernelProgram;

use crate::{
    history::{Mismatch, World},
    session::{Interfaces, Op, Session, hex},
};

/// How long to try.
const PATIENCE: Duration = Duration::from_secs(20);

/// Leaves out what can be left out, and tells the rest.
pub(crate) fn shrink(
    world: &World,
    kernel: &mut KernelProgram,
    interfaces: &Interfaces,
    mismatch: Mismatch,
) -> String {
    let deadline = Instant::now() + PATIENCE;
    let (mut ops, mut what) = (mismatch.ops, mismatch.what);
    let full = ops.len();
    let mut chunk = ops.len().div_ceil(2);
    while chunk > 0 && Instant::now() < deadline {
        let mut start = 0;
        let mut removed = false;
        while start < ops.len() && Instant::now() < deadline {
            let end = (start + chunk).min(ops.len());
            let fewer: Vec<Op> = ops[..start].iter().chain(&ops[end..]).cloned().collect();
            match replay(world, kernel, interfaces, &fewer) {
                Some((failed_at, still)) => {
                    ops = fewer;
                    ops.truncate(failed_at + 1);
                    what = still;
                    removed = true;
                }
                None => start = end,
            }
        }
        chunk = if removed && chunk == 1 { 1 } else { chunk / 2 };
    }
    let mut text = format!("{what}\n{world:?}\n{} of {full} steps:\n", ops.len());
    for op in &ops {
        let _ = match op {
            Op::Frame { ingress, head_room, bytes } => {
                writeln!(text, "  frame on {ingress}, head room {head_room}: {}", hex(bytes))
            }
            other => writeln!(text, "  {other:?}"),
        };
    }
    text
}

/// Where and how a history fails; `None`: it does not.
fn replay(
    world: &World,
    kernel: &mut KernelProgram,
    interfaces: &Interfaces,
    ops: &[Op],
) -> Option<(usize, String)> {
    let mut session = Session::start(world, kernel, interfaces);
    for (index, op) in ops.iter().enumerate() {
        if let Err(what) = session.apply(op) {
            return Some((index, what));
        }
        if let Err(what) = session.compare_tables() {
            return Some((index, what));
        }
    }
    None
}
