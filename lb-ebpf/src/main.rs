//! Kanmon's XDP program: entry points only. What happens to a packet is in `lb_common::datapath`, which this
//! crate compiles for the kernel; [`kernel`] and [`packet`] are the glue, [`maps`] are the maps.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
// `core::sync::atomic` has no read-modify-writes on the BPF target (`atomic-cas: false`), LLVM does.
#![allow(internal_features)]

mod kernel;
mod maps;
mod packet;

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use lb_common::datapath::{self, Verdict};

use crate::{kernel::Kernel, maps::EGRESS, packet::Packet};

/// Index in `PROGRAMS` of [`kanmon_new_flow`].
const NEW_FLOW: u32 = 0;

/// Where every frame enters: existing flows, and what is not ours.
#[xdp]
pub fn kanmon(ctx: XdpContext) -> u32 {
    let mut packet = Packet::new(&ctx);
    match datapath::forward(&mut packet, &Kernel) {
        Verdict::NewFlow => {
            // SAFETY: the array holds XDP programs only, and nothing on this stack needs dropping.
            unsafe { maps::PROGRAMS.tail_call(&ctx, NEW_FLOW) };
            // Only reached while the agent has not filled the array yet.
            Kernel::not_ready()
        }
        verdict => action(verdict),
    }
}

/// Where [`kanmon`] sends what may begin a flow.
#[xdp]
pub fn kanmon_new_flow(ctx: XdpContext) -> u32 {
    let mut packet = Packet::new(&ctx);
    action(datapath::new_flow(&mut packet, &Kernel))
}

#[inline(always)]
fn action(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Transmit => xdp_action::XDP_TX,
        Verdict::Redirect(ifindex) => EGRESS.redirect(ifindex, 0).unwrap_or(xdp_action::XDP_ABORTED),
        Verdict::Drop | Verdict::NewFlow => xdp_action::XDP_DROP,
    }
}

/// Never reached: the packet program has no panicking path, or the verifier would refuse it.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The licence as the kernel reads it: several helpers are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
