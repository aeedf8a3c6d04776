//! The frames of a measurement, and what a program takes for them, the writing of frames taken off.

use anyhow::{Result, ensure};
use lb_common::abi::Counter;

use super::{
    contender::{Contender, Loaded},
    counters::{Counters, Counts},
    report::{Cost, Range},
    visits::Order,
};
use crate::kernel_run::{Callee, Player, Tape, XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX};

/// Frames of a sample, at least: no longer than it takes to forget what the turn before left in the caches.
const LEAST_FRAMES: u32 = 300_000;

/// A contender's frames of one case, and what they took.
pub(super) struct Deck {
    program: &'static str,
    tape: Tape,
    whole: Player,
    alone: Player,
    /// What may be done with a frame.
    actions: &'static [u32],
    net: Vec<f64>,
    writing: Vec<f64>,
    counters: Counters,
    /// Of the last round.
    counts: Counts,
}

impl Deck {
    /// Frames in the order of `visits`, to a program and to `sender`, which only sends.
    ///
    /// # Errors
    /// When they differ in too much, or the kernel refuses what writes them.
    pub(super) fn new(
        program: &'static str,
        callee: &Callee,
        sender: &Callee,
        frames: &[Vec<u8>],
        visits: &[u32],
        actions: &'static [u32],
    ) -> Result<Deck> {
        let tape = Tape::new(frames, visits)?;
        let (whole, alone) = (tape.player(callee)?, tape.player(sender)?);
        Ok(Deck {
            program,
            tape,
            whole,
            alone,
            actions,
            net: Vec::new(),
            writing: Vec::new(),
            counters: Counters::open(),
            counts: Counts::default(),
        })
    }

    /// Plays the tape, often enough to be timed.
    pub(super) fn play(&mut self, counts: bool) -> Result<()> {
        let times = LEAST_FRAMES.div_ceil(self.tape.len());
        self.play_frames(times * self.tape.len(), counts)
    }

    /// Plays the tape once.
    pub(super) fn play_once(&mut self, counts: bool) -> Result<()> {
        self.play_frames(self.tape.len(), counts)
    }

    fn play_frames(&mut self, frames: u32, counts: bool) -> Result<()> {
        self.tape.rewind();
        let (alone, alone_counts) = self.counters.during(|| self.alone.play(frames));
        self.tape.rewind();
        let (whole, whole_counts) = self.counters.during(|| self.whole.play(frames));
        let ((writing, _), (whole, action)) = (alone?, whole?);
        self.counts = whole_counts.beyond(alone_counts, frames);
        ensure!(
            self.actions.contains(&action),
            "{} did {} with the last frame, not {}: is it set up for such frames?",
            self.program,
            action_name(action),
            self.actions.iter().map(|action| action_name(*action)).collect::<Vec<_>>().join(" or ")
        );
        if counts {
            self.writing.push(writing);
            self.net.push(whole - writing);
        }
        Ok(())
    }

    /// Plays the tape once to Kanmon's tables, which are emptied first.
    pub(super) fn open(&mut self, kanmon: &mut Contender, counts: bool) -> Result<()> {
        let opened = |kanmon: &Contender| match &kanmon.loaded {
            Loaded::Kanmon(kernel) => kernel.tables.counter(Counter::FlowOpened),
            Loaded::Baseline(_) => 0,
        };
        if let Loaded::Kanmon(kernel) = &kanmon.loaded {
            kernel.tables.forget_packets();
        }
        kanmon.drain();
        self.play_once(counts)?;
        let (opened, frames) = (opened(kanmon), u64::from(self.tape.len()));
        // While a table fills up, a few find both of their buckets full.
        ensure!(opened >= frames - frames / 1000, "{opened} of {frames} frames opened a flow");
        Ok(())
    }

    /// Counts what another deck has measured as its own.
    pub(super) fn take_from(&mut self, other: Deck) {
        self.net.extend(other.net);
        self.writing.extend(other.writing);
    }

    /// What came of it.
    pub(super) fn cost(&self, case: &'static str, flows: u32, order: Order) -> Cost {
        Cost {
            case,
            flows,
            order: order.name(),
            program: self.program,
            ns: Range::of(&self.net),
            writing_ns: Range::of(&self.writing),
            counts: self.counts,
            to_baseline: None,
        }
    }
}

/// As `enum xdp_action` has it.
fn action_name(action: u32) -> &'static str {
    match action {
        XDP_ABORTED => "XDP_ABORTED",
        XDP_DROP => "XDP_DROP",
        XDP_PASS => "XDP_PASS",
        XDP_TX => "XDP_TX",
        XDP_REDIRECT => "XDP_REDIRECT",
        _ => "an action that there is not",
    }
}
