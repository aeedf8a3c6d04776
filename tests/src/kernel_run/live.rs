//! Live frames: a tape that is sent out of an interface, and the program at the far end that counts what arrives.
//!
//! The kernel takes frames through a program in batches and does with each what the program says
//! (`BPF_F_TEST_XDP_LIVE_FRAMES`). Over a veth pair all that follows, up to the far end, runs on the CPU that sends: what
//! arrives in a time is what one CPU can do.

use std::{
    net::Ipv4Addr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context as _, Result};
use lb_common::host::{ACK, SYN};
use memmap2::{MmapOptions, MmapRaw};

use super::{
    XDP_DROP, XDP_TX,
    instructions::{Assembler, mappable_array},
    runner,
    tape::Tape,
};

/// In `struct xdp_md`.
const DATA: i16 = 0;
const DATA_END: i16 = 4;
/// An untagged TCP segment over IPv4 without options, and what is where in it.
const LENGTH: i32 = 54;
const SOURCE: i16 = 26;
const DESTINATION: i16 = 30;
const SOURCE_PORT: i16 = 34;
const DESTINATION_PORT: i16 = 36;
const NUMBERS: i16 = 38;
const FLAGS: i16 = 47;
const CHECKSUM: i16 = 50;

/// Sends a tape's frames.
#[derive(Debug)]
pub(crate) struct Generator {
    program: OwnedFd,
    frame: Vec<u8>,
}

impl Tape {
    /// What sends its frames out of an interface of the namespace that it is used in.
    ///
    /// # Errors
    /// When the kernel refuses the program that writes them.
    pub(crate) fn generator(&self, interface: u32) -> Result<Generator> {
        let mut code = self.writing();
        code.exit_to(interface);
        let program = code.load_xdp().context("the kernel refuses the program that sends frames")?;
        Ok(Generator { program, frame: self.template().to_vec() })
    }
}

impl Generator {
    /// Sends the next `count` frames, from the tape's begin after its end. Must run in the interface's namespace.
    ///
    /// # Errors
    /// When the kernel does not: before 5.18 it can't.
    pub(crate) fn send(&self, count: u32) -> Result<()> {
        let context = runner::Context::behind_metadata(0, self.frame.len());
        runner::live_run(&self.program, &self.frame, &context, count)
            .context("the kernel sends no live frames (Linux 5.18 is needed)")?;
        Ok(())
    }
}

/// The hardware addresses of a link: ours, and that of who is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkEnds {
    pub(crate) near: [u8; 6],
    pub(crate) far: [u8; 6],
}

/// An XDP program that ends whatever arrives and counts it. Connections' first segments it answers as the other end
/// would: a SYN by a SYN-ACK, and that one by an ACK, so that a SYN makes a whole handshake through who is measured.
#[derive(Debug)]
pub(crate) struct Sink {
    program: OwnedFd,
    /// Kept for as long as it is mapped: how many arrived, and the addresses of the last.
    _array: OwnedFd,
    memory: MmapRaw,
}

/// What distinguishes the segments of a handshake.
#[derive(Clone, Copy)]
struct Segment {
    flags: u8,
    sequence: u32,
    acknowledged: u32,
}

const FIRST: Segment = Segment { flags: SYN, sequence: 1000, acknowledged: 0 };
const SECOND: Segment = Segment { flags: SYN | ACK, sequence: 5000, acknowledged: 1001 };
const THIRD: Segment = Segment { flags: ACK, sequence: 1001, acknowledged: 5001 };

impl Sink {
    /// For a link between these.
    ///
    /// # Errors
    /// Without root.
    pub(crate) fn new(ends: LinkEnds) -> Result<Sink> {
        let array = mappable_array(16)?;
        let memory = MmapOptions::new().len(4096).map_raw(array.as_raw_fd())?;
        let mut code = Assembler::default();
        code.load_word(2, 1, DATA);
        code.load_word(3, 1, DATA_END);
        code.give_up_unless_within(2, LENGTH, 3);
        code.load(1, 4, 2, FLAGS);
        for (seen, answer) in [(FIRST, SECOND), (SECOND, THIRD)] {
            code.when(4, seen.flags.into(), |code| turn_around(code, seen, answer, ends));
        }
        code.set_address(7, array.as_raw_fd());
        code.load_double(5, 7, 0);
        code.add(5, 1);
        code.store_double(7, 0, 5);
        code.load_double(4, 2, SOURCE);
        code.store_double(7, 8, 4);
        code.exit_with(XDP_DROP as i32);
        let program = code.load_xdp().context("the kernel refuses the program that counts frames")?;
        Ok(Sink { program, _array: array, memory })
    }

    /// The program.
    pub(crate) fn program(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }

    /// Frames that have arrived, those not counted that were answered.
    pub(crate) fn count(&self) -> u64 {
        self.cell(0).load(Ordering::Relaxed)
    }

    /// Source and destination of the last.
    pub(crate) fn last(&self) -> (Ipv4Addr, Ipv4Addr) {
        let [a, b, c, d, e, f, g, h] = self.cell(1).load(Ordering::Relaxed).to_ne_bytes();
        ([a, b, c, d].into(), [e, f, g, h].into())
    }

    fn cell(&self, index: usize) -> &AtomicU64 {
        assert!(index < 2, "cell {index} of a sink");
        // SAFETY: the mapping holds two aligned, writable cells and lives as long as `self`; the kernel's CPUs use them
        // by whole cells too.
        unsafe { AtomicU64::from_ptr(self.memory.as_mut_ptr().cast::<u64>().add(index)) }
    }
}

/// Sends the segment at `r2` back as the next one of its handshake.
fn turn_around(code: &mut Assembler, seen: Segment, answer: Segment, ends: LinkEnds) {
    let mut header = [0; 16];
    header[..6].copy_from_slice(&ends.far);
    header[6..12].copy_from_slice(&ends.near);
    for (width, offset) in [(8, 0), (4, 8)] {
        let mut bytes = [0; 8];
        bytes[..width].copy_from_slice(&header[offset..offset + width]);
        code.set_double(5, u64::from_ne_bytes(bytes));
        code.store(width, 2, offset as i16, 5);
    }
    for (width, one, other) in [(4, SOURCE, DESTINATION), (2, SOURCE_PORT, DESTINATION_PORT)] {
        code.load(width, 4, 2, one);
        code.load(width, 5, 2, other);
        code.store(width, 2, other, 4);
        code.store(width, 2, one, 5);
    }
    code.set_double(5, u64::from_ne_bytes(numbers(answer)));
    code.store(8, 2, NUMBERS, 5);
    code.set(5, answer.flags.into());
    code.store(1, 2, FLAGS, 5);
    // RFC 1624: the opposite of the sum has what was taken out, and what was put in instead.
    code.load(2, 4, 2, CHECKSUM);
    code.complement(4);
    code.and(4, 0xffff);
    code.add(4, difference(seen, answer));
    for _ in 0..2 {
        code.move_register(5, 4);
        code.shift_right(5, 16);
        code.and(4, 0xffff);
        code.add_register(4, 5);
    }
    code.complement(4);
    code.store(2, 2, CHECKSUM, 4);
    code.exit_with(XDP_TX as i32);
}

/// Sequence and acknowledgment number, as they are in the frame.
fn numbers(segment: Segment) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&segment.sequence.to_be_bytes());
    bytes[4..].copy_from_slice(&segment.acknowledged.to_be_bytes());
    bytes
}

/// What a segment's checksum changes by, in 16-bit words of this machine's byte order, not folded.
fn difference(from: Segment, to: Segment) -> i32 {
    let words = |segment: Segment| {
        let [a, b, c, d, e, f, g, h] = numbers(segment);
        [[a, b], [c, d], [e, f], [g, h], [0x50, segment.flags]].map(u16::from_ne_bytes)
    };
    let (old, new) = (words(from), words(to));
    old.iter().map(|word| i32::from(!word)).sum::<i32>()
        + new.iter().map(|word| i32::from(*word)).sum::<i32>()
}

#[cfg(test)]
mod tests {
    use lb_common::host::Frame;

    use super::*;

    #[test]
    fn a_checksum_changes_by_what_the_segment_does() {
        let frame = |segment: Segment| {
            let frame = Frame::tcp(([1, 2, 3, 4], 5).into(), ([6, 7, 8, 9], 10).into(), segment.flags);
            frame.numbers(segment.sequence, segment.acknowledged).build()
        };
        let checksum =
            |frame: &[u8]| u16::from_ne_bytes([frame[CHECKSUM as usize], frame[CHECKSUM as usize + 1]]);
        for (seen, answer) in [(FIRST, SECOND), (SECOND, THIRD)] {
            let (before, after) = (frame(seen), frame(answer));
            assert_eq!(before.len(), LENGTH as usize);
            assert_eq!(after[FLAGS as usize], answer.flags);
            assert_eq!(after[NUMBERS as usize..][..8], numbers(answer));
            let mut sum = i32::from(!checksum(&before)) + difference(seen, answer);
            for _ in 0..2 {
                sum = (sum >> 16) + (sum & 0xffff);
            }
            assert_eq!(!(sum as u16), checksum(&after));
        }
    }
}
