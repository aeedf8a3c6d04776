//! Frames in an order that is laid down beforehand, played to any XDP program in one system call.
//!
//! A program that rewrites addresses would see its own output from the second run on, so a small program of ours runs
//! first each time: it undoes what was done to the frame's length, writes the whole frame, and tail-calls the program.
//! Frames of one tape have the same length and differ in a few places. What is in these lies in a mapped array in the
//! order of play: the writer reads on and on through memory, which processors foresee, so that what it costs depends
//! little on how many frames there are. It is measured by the same writer in front of a program that only sends.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context as _, Result, ensure};
use memmap2::{MmapOptions, MmapRaw};

use super::{
    XDP_TX,
    instructions::{Assembler, array_of, mappable_array},
    runner,
};

/// In `struct xdp_md`.
const DATA: i16 = 0;
const DATA_END: i16 = 4;
/// Cells before the first frame's: the number of the next, how many there are, and how many were written.
const HEAD: usize = 3;
const CELL: usize = 8;
/// Places in which the frames of a tape may differ.
const MOST_PLACES: usize = 12;

/// A program to play to, in an array from which it is called: for as long as this lives.
#[derive(Debug)]
pub(crate) struct Callee {
    programs: OwnedFd,
}

impl Callee {
    /// Any XDP program.
    ///
    /// # Errors
    /// When the kernel does not take it into an array.
    pub(crate) fn of(program: BorrowedFd<'_>) -> Result<Self> {
        Ok(Self { programs: array_of(program)? })
    }

    /// One that sends everything back at once.
    ///
    /// # Errors
    /// Without root.
    pub(crate) fn that_sends() -> Result<Self> {
        let mut code = Assembler::default();
        code.exit_with(XDP_TX as i32);
        Self::of(code.load_xdp()?.as_fd())
    }
}

/// A piece of the frame that is written at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    offset: usize,
    width: usize,
    /// Its place among those that differ.
    varies: Option<usize>,
}

/// Frames in an order.
#[derive(Debug)]
pub(crate) struct Tape {
    array: OwnedFd,
    memory: MmapRaw,
    template: Vec<u8>,
    pieces: Vec<Piece>,
    /// Cells of a frame.
    stride: usize,
    length: u32,
}

impl Tape {
    /// Of `frames`, in the order of `visits`, which has indices of them.
    ///
    /// # Errors
    /// When there are none, they are of different lengths, or they differ in too many places.
    pub(crate) fn new(frames: &[Vec<u8>], visits: &[u32]) -> Result<Self> {
        let template = frames.first().context("a tape needs a frame")?.clone();
        ensure!(frames.iter().all(|frame| frame.len() == template.len()), "frames of different lengths");
        let pieces = pieces(frames);
        let varied: Vec<Piece> = pieces.iter().copied().filter(|piece| piece.varies.is_some()).collect();
        ensure!(varied.len() <= MOST_PLACES, "the frames differ in {} places", varied.len());
        let stride = varied.len().max(1);
        // A power of two of frames, so that a mask keeps the writer within.
        let bytes = (HEAD + visits.len().next_power_of_two() * stride) * CELL;
        let array = mappable_array(bytes.try_into().context("the tape is too long")?)?;
        let memory = MmapOptions::new().len(bytes.next_multiple_of(4096)).map_raw(array.as_raw_fd())?;
        let tape = Self { array, memory, template, pieces, stride, length: visits.len() as u32 };
        tape.cell(1).store(visits.len() as u64, Ordering::Relaxed);
        for (n, visit) in visits.iter().enumerate() {
            let frame = &frames[*visit as usize];
            for (place, piece) in varied.iter().enumerate() {
                let mut bytes = [0; CELL];
                bytes[..piece.width].copy_from_slice(&frame[piece.offset..piece.offset + piece.width]);
                tape.cell(HEAD + n * stride + place).store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
            }
        }
        Ok(tape)
    }

    /// Frames from its begin to its end.
    pub(crate) fn len(&self) -> u32 {
        self.length
    }

    /// Plays from the first frame again.
    pub(crate) fn rewind(&self) {
        self.cell(0).store(0, Ordering::Relaxed);
    }

    fn cell(&self, index: usize) -> &AtomicU64 {
        assert!((index + 1) * CELL <= self.memory.len(), "cell {index} of a tape");
        // SAFETY: the mapping holds the cell, is writable, aligned, and lives as long as `self`; the kernel's CPUs use
        // it by whole cells too.
        unsafe { AtomicU64::from_ptr(self.memory.as_mut_ptr().cast::<u64>().add(index)) }
    }

    /// A player to a program.
    ///
    /// # Errors
    /// When the kernel refuses the writer.
    pub(crate) fn player(&self, callee: &Callee) -> Result<Player> {
        let program = self.writer(callee).load_xdp_like_callee();
        Ok(Player {
            program: program.context("the kernel refuses the program that writes frames")?,
            frame: self.template.clone(),
        })
    }

    fn writer(&self, callee: &Callee) -> Assembler {
        let mut code = self.writing();
        // A barrier: the frame is in the cache before the program reads it, as it is behind a network card. Otherwise
        // loads of other widths than our stores' would wait, and which program has these would decide.
        code.set(5, 1);
        code.add_atomically(7, (2 * CELL) as i16, 5);
        code.tail_call(6, callee.programs.as_raw_fd(), 0);
        code.exit_with(0);
        code
    }

    /// What writes the next frame. `r6` is the context, `r7` the tape, `r8` what differs in this frame, `r2` the frame.
    pub(super) fn writing(&self) -> Assembler {
        let length = self.template.len() as i32;
        let frames = (self.length as usize).next_power_of_two();
        let mut code = Assembler::default();
        code.move_register(6, 1);
        let load_frame = |code: &mut Assembler| {
            code.load_word(2, 6, DATA);
            code.load_word(3, 6, DATA_END);
        };
        load_frame(&mut code);
        code.move_register(5, 2);
        code.add(5, length);
        code.unless_equal(5, 3, |code| {
            code.make_length(6, length);
            load_frame(code);
        });
        code.give_up_unless_within(2, length, 3);
        code.set_address(7, self.array.as_raw_fd());
        code.load_double(8, 7, 0);
        code.and(8, frames as i32 - 1);
        code.move_register(9, 8);
        code.add(9, 1);
        code.load_double(1, 7, CELL as i16);
        code.unless_less(9, 1, |code| code.set(9, 0));
        code.store_double(7, 0, 9);
        code.multiply(8, (self.stride * CELL) as i32);
        code.add_register(8, 7);
        for piece in &self.pieces {
            match piece.varies {
                Some(place) => code.load_double(5, 8, ((HEAD + place) * CELL) as i16),
                None => {
                    let mut bytes = [0; CELL];
                    let own = &self.template[piece.offset..piece.offset + piece.width];
                    bytes[..piece.width].copy_from_slice(own);
                    code.set_double(5, u64::from_ne_bytes(bytes));
                }
            }
            code.store(piece.width, 2, piece.offset as i16, 5);
        }
        code
    }

    /// A frame as long as all of them are.
    pub(super) fn template(&self) -> &[u8] {
        &self.template
    }
}

/// Plays a tape to a program.
#[derive(Debug)]
pub(crate) struct Player {
    program: OwnedFd,
    frame: Vec<u8>,
}

impl Player {
    /// Plays the next `count` frames, from the tape's begin after its end, and returns how many ns each took, and what
    /// was done with the last.
    ///
    /// # Errors
    /// When the kernel does not run it.
    pub(crate) fn play(&self, count: u32) -> Result<(f64, u32)> {
        let context = runner::Context::behind_metadata(0, self.frame.len());
        // The kernel's own figure is in whole ns, and counts what else ran on this CPU meanwhile.
        let begun = processor_time();
        let result = runner::test_run(&self.program, &self.frame, &mut [], &context, count)
            .context("the kernel does not run the program")?;
        Ok(((processor_time() - begun) as f64 / f64::from(count), result.action))
    }
}

/// ns for which this thread has run.
pub(crate) fn processor_time() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes to `time` only, and every Linux has this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// How the frames are written: by fields, each at once.
fn pieces(frames: &[Vec<u8>]) -> Vec<Piece> {
    let template = &frames[0];
    let mut places = 0;
    let mut pieces = Vec::new();
    let mut offset = 0;
    for width in widths(template) {
        let range = offset..offset + width;
        let varies = frames.iter().any(|frame| frame[range.clone()] != template[range.clone()]);
        pieces.push(Piece { offset, width, varies: varies.then_some(places) });
        places += usize::from(varies);
        offset += width;
    }
    pieces
}

fn widths(frame: &[u8]) -> Vec<usize> {
    let kind = |at: usize| frame.get(at..at + 2).map(|two| u16::from_be_bytes([two[0], two[1]]));
    let mut widths = vec![8, 4, 2];
    let mut at = 12;
    while matches!(kind(at), Some(0x8100 | 0x88a8)) {
        widths.push(4);
        at += 4;
    }
    match kind(at) {
        // Version to offset; TTL to checksum; both addresses; ports and sequence number; up to the window; the rest.
        Some(0x0800) => widths.extend([8, 4, 8, 8, 8, 4]),
        Some(0x86dd) => widths.extend([8; 7]),
        _ => {}
    }
    let mut left = frame.len();
    let mut fitting = Vec::new();
    for width in widths {
        if width > left {
            break;
        }
        fitting.push(width);
        left -= width;
    }
    while left > 0 {
        let width = [8, 4, 2, 1].into_iter().find(|width| *width <= left).unwrap_or(1);
        fitting.push(width);
        left -= width;
    }
    fitting
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_written_by_fields_and_only_what_differs_is_on_the_tape() {
        let mut one = vec![0; 54];
        one[12..14].copy_from_slice(&[8, 0]);
        let mut other = one.clone();
        other[29] = 7;
        other[51] = 9;
        let pieces = pieces(&[one, other]);
        assert_eq!(pieces.iter().map(|piece| piece.width).sum::<usize>(), 54);
        let varied: Vec<_> = pieces.iter().filter(|piece| piece.varies.is_some()).collect();
        assert_eq!(
            varied.iter().map(|piece| (piece.offset, piece.width)).collect::<Vec<_>>(),
            [(26, 8), (50, 4)]
        );
    }

    #[test]
    fn tags_move_the_fields_and_no_length_is_left_out() {
        let mut frame = vec![0; 79];
        frame[12..14].copy_from_slice(&[0x81, 0]);
        frame[16..18].copy_from_slice(&[0x86, 0xdd]);
        assert_eq!(widths(&frame), [8, 4, 2, 4, 8, 8, 8, 8, 8, 8, 8, 4, 1]);
        assert_eq!(widths(&[0; 11]), [8, 2, 1]);
    }
}
