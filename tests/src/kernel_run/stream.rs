//! Many frames through the program in one system call, timed by the kernel.
//!
//! A test run that repeats a program does not give it its frame anew, and a program that rewrites addresses would
//! see its own output from the second run on. So a small program of ours runs first each time: it writes the whole
//! frame, with another client each time, and then tail-calls the packet program. What it takes itself is measured
//! by the same program with nothing behind it.

use std::{
    net::SocketAddr,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_common::host::{Frame, Transport, checksum};

use super::{KernelProgram, XDP_TX, instructions::Assembler, runner};

/// An index that `PROGRAMS` does not have: the call fails, and the program goes on behind it.
const NOTHING: i32 = i32::MAX;
/// Metadata in front of the frame: the number of the client before the first.
const NUMBER: usize = 8;
/// In `struct xdp_md`.
const DATA: i16 = 0;
const DATA_END: i16 = 4;
const DATA_META: i16 = 8;
/// IPv4's identification and header checksum, behind an Ethernet header.
const IDENTIFICATION: usize = 14 + 4;
const CHECKSUM: usize = 14 + 10;
/// Bytes among TCP's options that a frame's checksums don't depend on for us: they are the opposite of the client's
/// number. Linux has the value of its timestamp there.
const OPPOSITE: usize = 8;

/// Frames that differ in their clients only.
#[derive(Debug)]
pub struct Stream {
    frame: Vec<u8>,
    whole: OwnedFd,
    alone: OwnedFd,
    next: u32,
}

impl KernelProgram {
    /// Frames like `frame`, an untagged TCP segment, from clients that share all of its source address but the last 16
    /// bits. `frame` has 0 there, for its port, and for bytes 8 to 11 of its TCP options.
    ///
    /// # Errors
    /// When the frame is another one, or the kernel refuses the program that writes them.
    pub fn stream(&self, frame: &Frame) -> Result<Stream> {
        ensure!(frame.tags.is_empty() && frame.ip_options.is_empty() && frame.extensions.is_empty());
        let Transport::Tcp { options, .. } = &frame.transport else { bail!("the frame is no TCP segment") };
        ensure!(options.get(OPPOSITE..OPPOSITE + 4) == Some([0; 4].as_slice()));
        let bytes = without_identification(frame);
        let load = |callee| {
            writer(&bytes, frame, self.programs(), callee)
                .load_xdp()
                .context("the kernel refuses the program that writes frames")
        };
        let (whole, alone) = (load(self.entry_index())?, load(NOTHING)?);
        Ok(Stream { frame: bytes, whole, alone, next: 0 })
    }
}

impl Stream {
    /// Nanoseconds that each of the next `count` frames takes, each from a client that there was not before,
    /// up to 2³². The program must send every one of them back out of the interface that it came from.
    ///
    /// # Errors
    /// When the kernel does not run it, or the last frame is not sent.
    pub fn time(&mut self, count: u32) -> Result<f64> {
        let first = self.next;
        self.next = self.next.wrapping_add(count);
        self.run(&self.whole, first, count)
    }

    /// Nanoseconds that it takes to write a frame, and nothing else.
    ///
    /// # Errors
    /// When the kernel does not run it.
    pub fn time_writing(&self, count: u32) -> Result<f64> {
        self.run(&self.alone, self.next, count)
    }

    fn run(&self, program: &OwnedFd, first: u32, count: u32) -> Result<f64> {
        let mut input = u64::from(first).to_ne_bytes().to_vec();
        input.extend_from_slice(&self.frame);
        let context = runner::Context::behind_metadata(NUMBER, input.len());
        let result = runner::test_run(program, &input, &mut [], &context, count)
            .context("the kernel does not run the program")?;
        ensure!(result.action == XDP_TX, "the last of {count} frames was not sent ({})", result.action);
        Ok(f64::from(result.nanoseconds))
    }
}

/// The frame, with 0 for what IPv4 calls its identification.
fn without_identification(frame: &Frame) -> Vec<u8> {
    let mut bytes = frame.build();
    if frame.source.is_ipv4() {
        bytes[IDENTIFICATION..IDENTIFICATION + 2].fill(0);
        bytes[CHECKSUM..CHECKSUM + 2].fill(0);
        let sum = checksum(&bytes[14..14 + 20]);
        bytes[CHECKSUM..CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
    }
    bytes
}

/// The program: `r6` the context, `r2` the metadata, `r3` the frame, `r7` the client's number.
fn writer(bytes: &[u8], frame: &Frame, programs: BorrowedFd<'_>, callee: i32) -> Assembler {
    // The address's last 16 bits, and the port.
    let (address, port) = match frame.source {
        SocketAddr::V4(_) => (14 + 14, 14 + 20),
        SocketAddr::V6(_) => (14 + 22, 14 + 40),
    };
    let mut code = Assembler::default();
    code.move_register(6, 1);
    code.load_word(2, 1, DATA_META);
    code.load_word(3, 1, DATA);
    code.load_word(4, 1, DATA_END);
    code.give_up_unless_within(2, NUMBER as i32, 3);
    code.give_up_unless_within(3, bytes.len() as i32, 4);
    code.load_double(7, 2, 0);
    code.add(7, 1);
    code.store_double(2, 0, 7);
    for (offset, part) in (0_i16..).step_by(8).zip(bytes.chunks(8)) {
        match <[u8; 8]>::try_from(part) {
            Ok(eight) => {
                code.set_double(5, u64::from_ne_bytes(eight));
                code.store_double(3, offset, 5);
            }
            // The frame's end: headers are of an even length.
            Err(_) => {
                for (offset, two) in (offset..).step_by(2).zip(part.chunks_exact(2)) {
                    code.store_half_immediate(3, offset, u16::from_ne_bytes([two[0], two[1]]));
                }
            }
        }
    }
    // A number and its opposite add up to −0 (RFC 1071): checksums stay right.
    let opposite = port + 20 + OPPOSITE as i16;
    code.store_half(3, port, 7);
    code.move_register(5, 7);
    code.complement(5);
    code.store_half(3, opposite, 5);
    code.shift_right(7, 16);
    code.shift_right(5, 16);
    code.store_half(3, address, 7);
    code.store_half(3, opposite + 2, 5);
    if frame.source.is_ipv4() {
        code.store_half(3, IDENTIFICATION as i16, 5);
    }
    code.tail_call(6, programs.as_raw_fd(), callee);
    code.exit_with(XDP_TX as i32);
    code
}
