//! What a person sees while a benchmark runs: a bar on a terminal, and a line for each measurement anywhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Shows progress on standard error while it lives.
#[derive(Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Of so many measurements.
    pub(super) fn new(measurements: u64) -> Progress {
        let style = ProgressStyle::with_template("{spinner} {pos}/{len} [{elapsed}, {eta} left] {msg}");
        let bar = ProgressBar::new(measurements).with_style(style.expect("the template is right"));
        bar.enable_steady_tick(Duration::from_millis(200));
        Progress { bar }
    }

    /// Tells something.
    pub(super) fn say(&self, text: &str) {
        self.bar.suspend(|| eprintln!("{text}"));
    }

    /// Says what is measured now.
    pub(super) fn begin(&self, what: &str) {
        self.bar.set_message(what.to_owned());
    }

    /// Says what came of it.
    pub(super) fn done(&self, line: &str) {
        self.say(line);
        self.bar.inc(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
