//! The frame between `data` and `data_end`.

use aya_ebpf::{EbpfContext as _, helpers::bpf_xdp_adjust_head, programs::XdpContext};
use bytemuck::Pod;
use lb_common::datapath::{MAX_OFFSET, PacketMut};

/// A frame. The two pointers are read from the context once, and again after the head has moved.
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
    fn read<T: Pod, const OFFSET: usize>(&self, base: usize) -> Option<T> {
        let place = self.place::<T, OFFSET>(base)?;
        // SAFETY: `place` checked the end; any bytes are a valid `Pod`.
        Some(unsafe { place.read_unaligned() })
    }

    #[inline(always)]
    fn write<T: Pod, const OFFSET: usize>(&mut self, base: usize, value: T) -> Option<()> {
        let place = self.place::<T, OFFSET>(base)?;
        // SAFETY: `place` checked the end, and the program owns the frame while it runs.
        unsafe { place.write_unaligned(value) };
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
}
