//! The frame between `data` and `data_end`.

use core::arch::asm;

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_check_mtu, bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    programs::XdpContext,
};
use bytemuck::{Pod, cast};
use lb_common::datapath::{MAX_FAR_OFFSET, MAX_OFFSET, PacketMut};

/// A frame. The two pointers are read from the context once, and again after the head or the tail has
/// moved.
pub(crate) struct Packet<'a> {
    ctx: &'a XdpContext,
    data: usize,
    end: usize,
}

impl<'a> Packet<'a> {
    #[inline(always)]
    pub(crate) fn new(ctx: &'a XdpContext) -> Self {
        Self { ctx, data: ctx.data(), end: ctx.data_end() }
    }

    /// Address of a `T` at `base + OFFSET`. The base is masked: the verifier wants a bound on it.
    #[inline(always)]
    fn place<T, const OFFSET: usize>(&self, base: usize) -> Option<*mut T> {
        let start = self.data + (base & (MAX_OFFSET - 1)) + OFFSET;
        if start + size_of::<T>() > self.end { None } else { Some(start as *mut T) }
    }
}

impl PacketMut for Packet<'_> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.end - self.data
    }

    #[inline(always)]
    fn ingress(&self) -> u32 {
        // SAFETY: the context is the kernel's `xdp_md` for this run.
        unsafe { (*self.ctx.ctx).ingress_ifindex }
    }

    #[inline(always)]
    fn ingress_mtu(&self) -> u16 {
        let mut mtu = 0_u32;
        // SAFETY: the context is valid, and `mtu` outlives the call. Interface 0 stands for the one that the frame came in
        // by; whether the frame is longer than its MTU, which the result would say, is not what is asked.
        unsafe { bpf_check_mtu(self.ctx.as_ptr().cast(), 0, &raw mut mtu, 0, 0) };
        if mtu > u16::MAX as u32 { u16::MAX } else { mtu as u16 }
    }

    #[inline(always)]
    fn read<T: Pod, const OFFSET: usize>(&self, base: usize) -> Option<T> {
        let place = self.place::<T, OFFSET>(base)?;
        // SAFETY: `place` checked the end.
        unsafe {
            Some(match size_of::<T>() {
                1 => cast(*place.cast::<u8>()),
                2 => cast(load16(place.cast(), 0)),
                4 => cast(load32(place.cast(), 0)),
                8 => cast(load64(place.cast(), 0)),
                12 => cast([load32(place.cast(), 0), load32(place.cast(), 4), load32(place.cast(), 8)]),
                16 => cast([load64(place.cast(), 0), load64(place.cast(), 8)]),
                _ => place.read_unaligned(),
            })
        }
    }

    #[inline(always)]
    fn read_far<T: Pod>(&self, offset: usize) -> Option<T> {
        let start = self.data + (offset & (MAX_FAR_OFFSET - 1));
        let mut after = start + size_of::<T>();
        // SAFETY: changes nothing. In a loop LLVM would subtract the size from `end` instead, once for all rounds,
        // which the verifier does not allow.
        unsafe { asm!("{0} = {0}", inout(reg) after, options(pure, nomem, nostack)) };
        if after > self.end {
            return None;
        }
        let place = start as *const u8;
        // SAFETY: the end was checked.
        unsafe {
            Some(match size_of::<T>() {
                1 => cast(*place),
                2 => cast(load16(place, 0)),
                4 => cast(load32(place, 0)),
                8 => cast(load64(place, 0)),
                16 => cast([load64(place, 0), load64(place, 8)]),
                _ => place.cast::<T>().read_unaligned(),
            })
        }
    }

    #[inline(always)]
    fn write<T: Pod, const OFFSET: usize>(&mut self, base: usize, value: T) -> Option<()> {
        let place = self.place::<T, OFFSET>(base)?;
        // SAFETY: `place` checked the end, and the program owns the frame while it runs.
        unsafe {
            match size_of::<T>() {
                1 => *place.cast::<u8>() = cast(value),
                2 => store16(place.cast(), 0, cast(value)),
                4 => store32(place.cast(), 0, cast(value)),
                8 => store64(place.cast(), 0, cast(value)),
                12 => {
                    let [a, b, c]: [u32; 3] = cast(value);
                    store32(place.cast(), 0, a);
                    store32(place.cast(), 4, b);
                    store32(place.cast(), 8, c);
                }
                16 => {
                    let [a, b]: [u64; 2] = cast(value);
                    store64(place.cast(), 0, a);
                    store64(place.cast(), 8, b);
                }
                _ => place.write_unaligned(value),
            }
        }
        Some(())
    }

    #[inline(always)]
    fn adjust_head(&mut self, delta: i32) -> bool {
        // SAFETY: the context is valid; every pointer into the frame is read anew below.
        let moved = unsafe { bpf_xdp_adjust_head(self.ctx.as_ptr().cast(), delta) } == 0;
        self.data = self.ctx.data();
        self.end = self.ctx.data_end();
        moved
    }

    #[inline(always)]
    fn cut_tail(&mut self, bytes: usize) -> bool {
        // SAFETY: as in `adjust_head`.
        let cut = unsafe { bpf_xdp_adjust_tail(self.ctx.as_ptr().cast(), -(bytes as i32)) } == 0;
        self.data = self.ctx.data();
        self.end = self.ctx.data_end();
        cut
    }
}

/// Declares a single load and a single store of one width at a possibly misaligned address. Rust and LLVM would
/// put them together from bytes; the kernel allows them in packets wherever the CPU does.
macro_rules! unaligned_access {
    ($load:ident, $store:ident, $type:ty, $width:literal) => {
        #[inline(always)]
        unsafe fn $load(place: *const u8, offset: usize) -> $type {
            let value: u64;
            // SAFETY: the caller has checked that the bytes lie within the frame.
            unsafe {
                let place = place.add(offset);
                asm!(
                    concat!("{value} = *(", $width, " *)({place} + 0)"),
                    value = out(reg) value,
                    place = in(reg) place,
                    options(pure, readonly, nostack),
                );
            }
            value as $type
        }

        #[inline(always)]
        unsafe fn $store(place: *mut u8, offset: usize, value: $type) {
            // SAFETY: the caller has checked that the bytes lie within the frame.
            unsafe {
                let place = place.add(offset);
                asm!(
                    concat!("*(", $width, " *)({place} + 0) = {value}"),
                    value = in(reg) value as u64,
                    place = in(reg) place,
                    options(nostack),
                );
            }
        }
    };
}

unaligned_access!(load16, store16, u16, "u16");
unaligned_access!(load32, store32, u32, "u32");
unaligned_access!(load64, store64, u64, "u64");
