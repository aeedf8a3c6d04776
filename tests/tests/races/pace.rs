//! Two threads, each on a CPU of its own, that do the same thing at the same moment.

use std::{
    hint::spin_loop,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use tests::kernel_run::{MAX_HEAD_ROOM, Runner, XDP_TX};

use super::gateway::LOOPBACK;

/// Where the two threads are, so that they ask for the same flow at the same moment.
pub(crate) struct Pace {
    pub(crate) threads: [AtomicU32; 2],
    /// Steps below this may be taken.
    pub(crate) limit: AtomicU32,
}

impl Pace {
    /// Of two threads that have done nothing yet.
    pub(crate) const fn new(limit: u32) -> Self {
        Self { threads: [AtomicU32::new(0), AtomicU32::new(0)], limit: AtomicU32::new(limit) }
    }

    /// Says that a thread has done all steps below `step`, and waits until the other one has too and `step`
    /// may be taken.
    pub(crate) fn meet(&self, thread: usize, step: u32) {
        self.threads[thread].store(step, Ordering::Release);
        wait(|| self.threads[1 - thread].load(Ordering::Acquire) >= step);
        wait(|| self.limit.load(Ordering::Acquire) > step);
    }

    /// Lets both threads go up to `limit` and waits until they are there.
    pub(crate) fn run_to(&self, limit: u32) {
        self.run_to_beside(limit, || {});
    }

    /// The same, and does something again and again meanwhile.
    pub(crate) fn run_to_beside(&self, limit: u32, mut meanwhile: impl FnMut()) {
        self.limit.store(limit, Ordering::Release);
        for thread in &self.threads {
            while thread.load(Ordering::Acquire) < limit {
                meanwhile();
                thread::yield_now();
            }
        }
    }
}

/// Whoever leaves, be it by a panic, is not waited for.
pub(crate) struct Leaves<'a>(pub(crate) &'a AtomicU32);

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.0.store(u32::MAX, Ordering::Release);
    }
}

fn wait(done: impl Fn() -> bool) {
    let mut spins = 0;
    while !done() {
        spins += 1;
        // The other CPU may be somebody else's at the moment.
        if spins > 10_000 { thread::yield_now() } else { spin_loop() }
    }
}

/// The frame that the program sends, if it does.
pub(crate) fn run<'r>(runner: &'r mut Runner, frame: &[u8]) -> Option<&'r [u8]> {
    let outcome = runner.run(frame, LOOPBACK, MAX_HEAD_ROOM).expect("the kernel runs the program");
    (outcome.action == XDP_TX).then_some(outcome.frame)
}
