//! Redirects that the kernel refuses after the packet program's verdict: the interface is down, its MTU is smaller than the
//! frame, its driver takes no frames from XDP. Only the kernel's tracepoint tells of them, and only for packets that are
//! lost: the others pay nothing.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use lb_common::{abi::Counter, datapath::Maps};

use crate::{kernel::Kernel, maps::EGRESS_ID};

/// Which argument of `xdp_redirect_err` is the id of the device map that the frame was redirected through; its prototype is
/// `(dev, xdp, tgt, err, map_type, map_id, index)` (include/trace/events/xdp.h).
const MAP_ID: usize = 5;

/// Counts those that went through our own map: other programs' redirects are none of ours.
#[raw_tracepoint(tracepoint = "xdp_redirect_err")]
pub fn kanmon_redirects(ctx: RawTracePointContext) -> i32 {
    let map: u32 = ctx.arg(MAP_ID);
    // SAFETY: four aligned bytes, which the agent writes once, before this program is attached.
    if map != 0 && EGRESS_ID.get_ptr(0).is_some_and(|id| unsafe { *id } == map) {
        Kernel.count(Counter::RedirectFailed);
    }
    0
}
