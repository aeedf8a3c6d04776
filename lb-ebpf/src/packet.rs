//! The frame between `data` and `data_end`.

use core::{arch::asm, hint::assert_unchecked, intrinsics::is_val_statically_known};

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
    /// Bytes that are there for certain.
    ensured: usize,
}

impl<'a> Packet<'a> {
    #[inline(always)]
    pub(crate) fn new(ctx: &'a XdpContext) -> Self {
        Self { ctx, data: ctx.data(), end: ctx.data_end(), ensured: 0 }
    }

    /// Address of the byte at `base`, behind which a `T` lies at `OFFSET`. The base is masked: the verifier wants a bound
    /// on it. Where all of this is known to the compiler, so is whether the end has to be looked at.
    #[inline(always)]
    fn place<T, const OFFSET: usize>(&self, base: usize) -> Option<*mut u8> {
        let base = base & (MAX_OFFSET - 1);
        let start = self.data + base;
        let is_ensured = is_val_statically_known(base)
            && is_val_statically_known(self.ensured)
            && base + OFFSET + size_of::<T>() <= self.ensured;
        if is_ensured || start + OFFSET + size_of::<T>() <= self.end { Some(start as *mut u8) } else { None }
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
    fn ensure(&mut self, bytes: usize) -> bool {
        if self.data + bytes > self.end {
            return false;
        }
        self.ensured = bytes;
        true
    }

    #[inline(always)]
    fn read<T: Pod, const OFFSET: usize>(&self, base: usize) -> Option<T> {
        let place = self.place::<T, OFFSET>(base)?;
        // SAFETY: `place` checked the end.
        unsafe {
            Some(match size_of::<T>() {
                1 => cast(*place.add(OFFSET)),
                2 => cast(load16::<OFFSET, 0>(place)),
                4 => cast(load32::<OFFSET, 0>(place)),
                8 => cast(load64::<OFFSET, 0>(place)),
                12 => {
                    cast([load32::<OFFSET, 0>(place), load32::<OFFSET, 4>(place), load32::<OFFSET, 8>(place)])
                }
                16 => cast([load64::<OFFSET, 0>(place), load64::<OFFSET, 8>(place)]),
                _ => place.add(OFFSET).cast::<T>().read_unaligned(),
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
                2 => cast(load16::<0, 0>(place)),
                4 => cast(load32::<0, 0>(place)),
                8 => cast(load64::<0, 0>(place)),
                16 => cast([load64::<0, 0>(place), load64::<0, 8>(place)]),
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
                1 => *place.add(OFFSET) = cast(value),
                2 => store16::<OFFSET, 0>(place, cast(value)),
                4 => store32::<OFFSET, 0>(place, cast(value)),
                8 => store64::<OFFSET, 0>(place, cast(value)),
                12 => {
                    let [a, b, c]: [u32; 3] = cast(value);
                    store32::<OFFSET, 0>(place, a);
                    store32::<OFFSET, 4>(place, b);
                    store32::<OFFSET, 8>(place, c);
                }
                16 => {
                    let [a, b]: [u64; 2] = cast(value);
                    store64::<OFFSET, 0>(place, a);
                    store64::<OFFSET, 8>(place, b);
                }
                _ => place.add(OFFSET).cast::<T>().write_unaligned(value),
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
        self.ensured = 0;
        moved
    }

    #[inline(always)]
    fn cut_tail(&mut self, bytes: usize) -> bool {
        // SAFETY: as in `adjust_head`.
        let cut = unsafe { bpf_xdp_adjust_tail(self.ctx.as_ptr().cast(), -(bytes as i32)) } == 0;
        self.data = self.ctx.data();
        self.end = self.ctx.data_end();
        self.ensured = 0;
        cut
    }
}

/// Declares a single load and a single store of one width at a possibly misaligned address, so many bytes (the two
/// offsets, in the instruction itself) behind `place`. Rust and LLVM would put them together from bytes; the kernel allows
/// them in packets wherever the CPU does.
macro_rules! unaligned_access {
    ($load:ident, $store:ident, $type:ty, $width:literal) => {
        #[inline(always)]
        unsafe fn $load<const OFFSET: usize, const BEHIND: usize>(place: *const u8) -> $type {
            let value: u64;
            // SAFETY: the caller has checked that the bytes lie within the frame.
            unsafe {
                asm!(
                    concat!("{value} = *(", $width, " *)({place} + {offset})"),
                    value = out(reg) value,
                    place = in(reg) place,
                    offset = const OFFSET + BEHIND,
                    options(pure, readonly, nostack),
                );
                // What is wider in the register is 0.
                assert_unchecked(value <= <$type>::MAX as u64);
            }
            value as $type
        }

        #[inline(always)]
        unsafe fn $store<const OFFSET: usize, const BEHIND: usize>(place: *mut u8, value: $type) {
            // SAFETY: the caller has checked that the bytes lie within the frame.
            unsafe {
                asm!(
                    concat!("*(", $width, " *)({place} + {offset}) = {value}"),
                    value = in(reg) value as u64,
                    place = in(reg) place,
                    offset = const OFFSET + BEHIND,
                    options(nostack),
                );
            }
        }
    };
}

unaligned_access!(load16, store16, u16, "u16");
unaligned_access!(load32, store32, u32, "u32");
unaligned_access!(load64, store64, u64, "u64");
