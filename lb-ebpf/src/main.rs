//! Kanmon's XDP program: entry points only; [`redirects`] counts what is lost after them. What happens to a packet is in `lb_common::datapath`, which this
//! crate compiles for the kernel; [`kernel`] and [`packet`] are the glue, [`maps`] are the maps.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
// `core::sync::atomic` has no read-modify-writes on the BPF target (`atomic-cas: false`), LLVM does.
#![allow(internal_features)]

mod kernel;
mod maps;
mod packet;
mod redirects;

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use lb_common::datapath::{self, V4, V6, Verdict};

use crate::{kernel::Kernel, maps::EGRESS, packet::Packet};

/// Index in `PROGRAMS` of [`kanmon_new_v4`].
const NEW_FLOW_V4: u32 = 0;
/// Index in `PROGRAMS` of [`kanmon_new_v6`].
const NEW_FLOW_V6: u32 = 1;
/// Index in `PROGRAMS` of [`kanmon_retry_v4`].
const RETRY_V4: u32 = 2;
/// Index in `PROGRAMS` of [`kanmon_retry_v6`].
const RETRY_V6: u32 = 3;
/// Index in `PROGRAMS` of [`kanmon_refused_v4`].
const REFUSED_V4: u32 = 4;
/// Index in `PROGRAMS` of [`kanmon_refused_v6`].
const REFUSED_V6: u32 = 5;
/// Index in `PROGRAMS` of [`kanmon_opened_v4`].
const OPENED_V4: u32 = 6;
/// Index in `PROGRAMS` of [`kanmon_opened_v6`].
const OPENED_V6: u32 = 7;
/// Index in `PROGRAMS` of [`kanmon_icmp_v4`].
const ICMP_V4: u32 = 8;
/// Index in `PROGRAMS` of [`kanmon_icmp_v6`].
const ICMP_V6: u32 = 9;
/// Index in `PROGRAMS` of [`kanmon_refuse_v4`].
const REFUSE_V4: u32 = 10;
/// Index in `PROGRAMS` of [`kanmon_refuse_v6`].
const REFUSE_V6: u32 = 11;
/// Index in `PROGRAMS` of [`kanmon_clamp`].
const CLAMP: u32 = 12;
/// Index in `PROGRAMS` of [`kanmon_fragment_v4`].
const FRAGMENT_V4: u32 = 13;
/// Index in `PROGRAMS` of [`kanmon_fragment_v6`].
const FRAGMENT_V6: u32 = 14;
/// Index in `PROGRAMS` of [`kanmon_follow_v4`].
const FOLLOW_V4: u32 = 15;
/// Index in `PROGRAMS` of [`kanmon_follow_v6`].
const FOLLOW_V6: u32 = 16;
/// Index in `PROGRAMS` of [`kanmon_any`].
const ANY: u32 = 17;
/// Index in `PROGRAMS` of [`kanmon`] itself.
const ENTRY: u32 = 18;

/// Where every frame enters: existing flows, and what is not ours.
#[xdp]
#[inline(always)]
pub fn kanmon(ctx: XdpContext) -> u32 {
    match datapath::forward(&mut Packet::new(&ctx), &Kernel) {
        Verdict::Any => tail_call(&ctx, ANY),
        verdict => classified(&ctx, verdict),
    }
}

/// Where [`kanmon`] sends what most frames are not: tagged ones, options, extension headers, other protocols.
#[xdp]
pub fn kanmon_any(ctx: XdpContext) -> u32 {
    match datapath::forward_any(&mut Packet::new(&ctx), &Kernel) {
        Verdict::IcmpV4 => tail_call(&ctx, ICMP_V4),
        Verdict::IcmpV6 => tail_call(&ctx, ICMP_V6),
        Verdict::FragmentV4 => tail_call(&ctx, FRAGMENT_V4),
        Verdict::FragmentV6 => tail_call(&ctx, FRAGMENT_V6),
        verdict => classified(&ctx, verdict),
    }
}

/// What becomes of any packet of a flow, plain or not.
#[inline(always)]
fn classified(ctx: &XdpContext, verdict: Verdict) -> u32 {
    match verdict {
        Verdict::NewFlowV4 => tail_call(ctx, NEW_FLOW_V4),
        Verdict::NewFlowV6 => tail_call(ctx, NEW_FLOW_V6),
        Verdict::RetryV4 => tail_call(ctx, RETRY_V4),
        Verdict::RetryV6 => tail_call(ctx, RETRY_V6),
        Verdict::RefusedV4 => tail_call(ctx, REFUSED_V4),
        Verdict::RefusedV6 => tail_call(ctx, REFUSED_V6),
        Verdict::RefuseV4 => tail_call(ctx, REFUSE_V4),
        Verdict::RefuseV6 => tail_call(ctx, REFUSE_V6),
        Verdict::Clamp => tail_call(ctx, CLAMP),
        verdict => action(verdict),
    }
}

/// Where [`kanmon`] sends what may begin an IPv4 flow.
#[xdp]
pub fn kanmon_new_v4(ctx: XdpContext) -> u32 {
    match datapath::new_flow::<V4, _, _>(&mut Packet::new(&ctx), &Kernel) {
        Verdict::OpenedV4 => tail_call(&ctx, OPENED_V4),
        Verdict::RefuseV4 => tail_call(&ctx, REFUSE_V4),
        verdict => again(&ctx, verdict),
    }
}

/// Where [`kanmon`] sends what may begin an IPv6 flow.
#[xdp]
pub fn kanmon_new_v6(ctx: XdpContext) -> u32 {
    match datapath::new_flow::<V6, _, _>(&mut Packet::new(&ctx), &Kernel) {
        Verdict::OpenedV6 => tail_call(&ctx, OPENED_V6),
        Verdict::RefuseV6 => tail_call(&ctx, REFUSE_V6),
        verdict => again(&ctx, verdict),
    }
}

/// Where [`kanmon_new_v4`] sends a packet for which it has made a flow.
#[xdp]
pub fn kanmon_opened_v4(ctx: XdpContext) -> u32 {
    again(&ctx, datapath::opened::<V4, _, _>(&mut Packet::new(&ctx), &Kernel))
}

/// The same over IPv6.
#[xdp]
pub fn kanmon_opened_v6(ctx: XdpContext) -> u32 {
    again(&ctx, datapath::opened::<V6, _, _>(&mut Packet::new(&ctx), &Kernel))
}

/// Where [`kanmon`] sends an IPv4 client's SYN that its backend may have left unanswered, and [`kanmon_refused_v4`]
/// one that it refused.
#[xdp]
pub fn kanmon_retry_v4(ctx: XdpContext) -> u32 {
    again(&ctx, datapath::retry::<V4, _, _>(&mut Packet::new(&ctx), &Kernel))
}

/// The same over IPv6.
#[xdp]
pub fn kanmon_retry_v6(ctx: XdpContext) -> u32 {
    again(&ctx, datapath::retry::<V6, _, _>(&mut Packet::new(&ctx), &Kernel))
}

/// Where [`kanmon`] sends an IPv4 backend's RST to a SYN.
#[xdp]
pub fn kanmon_refused_v4(ctx: XdpContext) -> u32 {
    match datapath::refused::<V4, _, _>(&mut Packet::new(&ctx), &Kernel) {
        Verdict::RetryV4 => tail_call(&ctx, RETRY_V4),
        Verdict::RefuseV4 => tail_call(&ctx, REFUSE_V4),
        verdict => action(verdict),
    }
}

/// The same over IPv6.
#[xdp]
pub fn kanmon_refused_v6(ctx: XdpContext) -> u32 {
    match datapath::refused::<V6, _, _>(&mut Packet::new(&ctx), &Kernel) {
        Verdict::RetryV6 => tail_call(&ctx, RETRY_V6),
        Verdict::RefuseV6 => tail_call(&ctx, REFUSE_V6),
        verdict => action(verdict),
    }
}

/// Where [`kanmon`] sends ICMP to an address that may be a VIP or a SNAT address.
#[xdp]
pub fn kanmon_icmp_v4(ctx: XdpContext) -> u32 {
    action(datapath::icmp::<V4, _, _>(&mut Packet::new(&ctx), &Kernel))
}

/// The same for ICMPv6.
#[xdp]
pub fn kanmon_icmp_v6(ctx: XdpContext) -> u32 {
    action(datapath::icmp::<V6, _, _>(&mut Packet::new(&ctx), &Kernel))
}

/// Where [`kanmon`], [`kanmon_new_v4`] and [`kanmon_refused_v4`] send an IPv4 packet that they drop and whose sender is to be told.
#[xdp]
pub fn kanmon_refuse_v4(ctx: XdpContext) -> u32 {
    action(datapath::refuse::<V4, _, _>(&mut Packet::new(&ctx), &Kernel))
}

/// The same over IPv6.
#[xdp]
pub fn kanmon_refuse_v6(ctx: XdpContext) -> u32 {
    action(datapath::refuse::<V6, _, _>(&mut Packet::new(&ctx), &Kernel))
}

/// Where [`kanmon`] sends a rewritten segment with SYN that may allow longer segments than the way takes.
#[xdp]
pub fn kanmon_clamp(ctx: XdpContext) -> u32 {
    action(datapath::clamp(&mut Packet::new(&ctx), &Kernel))
}

/// Where [`kanmon`] sends a fragment of IPv4 to an address that may be a VIP or a SNAT address.
#[xdp]
pub fn kanmon_fragment_v4(ctx: XdpContext) -> u32 {
    match datapath::fragment::<V4, _, _>(&mut Packet::new(&ctx), &Kernel) {
        Verdict::NewFlowV4 => tail_call(&ctx, NEW_FLOW_V4),
        Verdict::FollowV4 => tail_call(&ctx, FOLLOW_V4),
        verdict => action(verdict),
    }
}

/// The same of IPv6.
#[xdp]
pub fn kanmon_fragment_v6(ctx: XdpContext) -> u32 {
    match datapath::fragment::<V6, _, _>(&mut Packet::new(&ctx), &Kernel) {
        Verdict::NewFlowV6 => tail_call(&ctx, NEW_FLOW_V6),
        Verdict::FollowV6 => tail_call(&ctx, FOLLOW_V6),
        verdict => action(verdict),
    }
}

/// Where [`kanmon_fragment_v4`] sends a fragment that is not the first one.
#[xdp]
pub fn kanmon_follow_v4(ctx: XdpContext) -> u32 {
    action(datapath::follow::<V4, _, _>(&mut Packet::new(&ctx), &Kernel))
}

/// The same of IPv6.
#[xdp]
pub fn kanmon_follow_v6(ctx: XdpContext) -> u32 {
    action(datapath::follow::<V6, _, _>(&mut Packet::new(&ctx), &Kernel))
}

#[inline(always)]
fn again(ctx: &XdpContext, verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Again => tail_call(ctx, ENTRY),
        verdict => action(verdict),
    }
}

#[inline(always)]
fn tail_call(ctx: &XdpContext, program: u32) -> u32 {
    // SAFETY: the array holds XDP programs only, and nothing on this stack needs dropping.
    unsafe { maps::PROGRAMS.tail_call(ctx, program) };
    // Only reached while the agent has not filled the array yet.
    Kernel::not_ready()
}

#[inline(always)]
fn action(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Transmit => xdp_action::XDP_TX,
        Verdict::Redirect(ifindex) => EGRESS.redirect(ifindex, 0).unwrap_or(xdp_action::XDP_ABORTED),
        // What asks for another program never gets here.
        _ => xdp_action::XDP_DROP,
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
