//! Fields of the frame, each read and written in one instruction, as C compilers do it; and checksums.

use core::arch::asm;

use aya_ebpf::programs::XdpContext;

/// The frame between `data` and `data_end`.
pub(crate) struct Frame {
    data: usize,
    end: usize,
}

macro_rules! fields {
    ($read:ident, $read_at:ident, $write:ident, $write_at:ident, $type:ty, $width:literal) => {
        #[inline(always)]
        #[allow(dead_code, reason = "not every width is used every way")]
        pub(crate) fn $read<const OFFSET: usize>(&self) -> Option<$type> {
            self.$read_at::<OFFSET, 0>()
        }

        #[inline(always)]
        pub(crate) fn $read_at<const BASE: usize, const OFFSET: usize>(&self) -> Option<$type> {
            let place = self.place::<$type>(BASE + OFFSET)?;
            let value: u64;
            // SAFETY: `place` checked the end.
            unsafe {
                asm!(
                    concat!("{value} = *(", $width, " *)({place} + 0)"),
                    value = out(reg) value,
                    place = in(reg) place,
                    options(pure, readonly, nostack),
                );
            }
            Some(value as $type)
        }

        #[inline(always)]
        #[allow(dead_code, reason = "not every width is used every way")]
        pub(crate) fn $write<const OFFSET: usize>(&self, value: $type) -> Option<()> {
            self.$write_at::<OFFSET, 0>(value)
        }

        #[inline(always)]
        pub(crate) fn $write_at<const BASE: usize, const OFFSET: usize>(&self, value: $type) -> Option<()> {
            let place = self.place::<$type>(BASE + OFFSET)?;
            // SAFETY: `place` checked the end.
            unsafe {
                asm!(
                    concat!("*(", $width, " *)({place} + 0) = {value}"),
                    value = in(reg) u64::from(value),
                    place = in(reg) place,
                    options(nostack),
                );
            }
            Some(())
        }
    };
}

impl Frame {
    #[inline(always)]
    pub(crate) fn new(ctx: &XdpContext) -> Self {
        Self { data: ctx.data(), end: ctx.data_end() }
    }

    #[inline(always)]
    fn place<T>(&self, offset: usize) -> Option<usize> {
        let start = self.data + offset;
        if start + size_of::<T>() > self.end { None } else { Some(start) }
    }

    /// Destination and source.
    #[inline(always)]
    pub(crate) fn write_macs(&self, macs: [u32; 3]) -> Option<()> {
        self.write_u32::<0>(macs[0])?;
        self.write_u32::<4>(macs[1])?;
        self.write_u32::<8>(macs[2])
    }

    fields!(read_u16, read_u16_behind, write_u16, write_u16_behind, u16, "u16");
    fields!(read_u32, read_u32_at, write_u32, write_u32_at, u32, "u32");
    fields!(read_u64, read_u64_at, write_u64, write_u64_at, u64, "u64");
}

/// Adds a new word to a checksum's difference (RFC 1624).
#[inline(always)]
pub(crate) fn add_word(difference: u64, word: u32) -> u64 {
    difference + u64::from(word)
}

/// Takes an old word from a checksum's difference.
#[inline(always)]
pub(crate) fn take_word(difference: u64, word: u32) -> u64 {
    difference + u64::from(!word)
}

/// A checksum after a difference.
#[inline(always)]
pub(crate) fn fold(check: u16, difference: u64) -> u16 {
    let mut sum = u64::from(!check) + difference;
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}
