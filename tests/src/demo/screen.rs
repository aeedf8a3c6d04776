//! What a person sees: a line or two of story, a small table that moves, a verdict.

use std::{
    io::{IsTerminal, stdout},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::report::{Move, Report, StepReport};
use crate::client::{Live, Tally};

/// Width of a full bar, in characters.
const BAR: u64 = 24;

#[derive(Clone, Copy, Debug)]
pub(super) struct Screen {
    quiet: bool,
    terminal: bool,
}

impl Screen {
    pub(super) fn new(quiet: bool) -> Screen {
        Screen { quiet, terminal: stdout().is_terminal() }
    }

    /// Tells a part of the story.
    pub(super) fn say(&self, text: &str) {
        if !self.quiet {
            println!("{text}");
        }
    }

    /// Prints what was asked for, quiet or not.
    pub(super) fn print(&self, text: &str) {
        println!("{text}");
    }

    pub(super) fn begin(&self, name: &str, story: &str) {
        self.say(&format!("\n{name}: {story}"));
    }

    /// Shows the counts as they grow, until the guard is dropped. Only a terminal shows them.
    pub(super) fn watch(&self, live: &Live) -> Watch {
        if self.quiet || !self.terminal {
            return Watch { stop: Arc::default(), thread: None };
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (ended, live) = (stop.clone(), live.clone());
        let thread = thread::spawn(move || {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout())
                .with_style(ProgressStyle::with_template("{msg}").expect("the template is right"));
            while !ended.load(Ordering::Relaxed) {
                bar.set_message(counts(&live.now()));
                bar.tick();
                thread::sleep(Duration::from_millis(100));
            }
            bar.finish_and_clear();
        });
        Watch { stop, thread: Some(thread) }
    }

    pub(super) fn verdict(&self, step: &StepReport) {
        let tally = Tally {
            requests: step.requests,
            failed: step.failed,
            by_cluster: step.by_cluster.clone(),
            by_pod: step.by_pod.clone(),
            failures: step.failures.clone(),
            ..Tally::default()
        };
        if step.requests > 0 {
            self.say(&counts(&tally));
        }
        println!("{}", line(step));
    }

    pub(super) fn end(&self, report: &Report) {
        let ok = report.steps.iter().filter(|step| step.ok).count();
        println!(
            "\n{ok} of {} steps ok in {:.1} s (kernel {}, XDP {})",
            report.steps.len(),
            report.seconds,
            report.kernel,
            report.attach
        );
    }
}

/// Shows counts while it lives.
#[derive(Debug)]
pub(super) struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic while drawing spoils the picture and nothing else.
            let _ = thread.join();
        }
    }
}

/// The verdict on a step, in a line.
fn line(step: &StepReport) -> String {
    let mut parts = Vec::new();
    if step.requests > 0 {
        parts.push(format!("{} requests, {} failed", step.requests, step.failed));
    }
    match (step.ms, step.goal_ms) {
        (Some(ms), Some(goal)) => parts.push(format!("{ms} ms (goal {goal} ms)")),
        (Some(ms), None) => parts.push(format!("{ms} ms")),
        _ => {}
    }
    for (of, ring) in &step.ring_share {
        let traffic = step.traffic_share.get(of).map(|share| format!(", traffic {share:.2}%"));
        parts.push(format!("ring {of} {ring:.2}%{}", traffic.unwrap_or_default()));
    }
    parts.extend(step.syn_retransmissions.map(|count| format!("{count} SYNs sent again")));
    for Move { ms, from, to } in &step.transitions {
        parts.push(format!("{from}% → {to}% at {ms} ms"));
    }
    parts.extend(step.details.iter().map(|(name, value)| format!("{} {value}", name.replace('_', " "))));
    parts.extend(step.why.clone().map(|why| format!("NOT AS EXPECTED: {why}")));
    format!("{} {:<14} {}", if step.ok { "✔" } else { "✘" }, step.name, parts.join(", "))
}

/// A row a pod, with its share of the answers.
fn counts(tally: &Tally) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let answered: u64 = tally.by_pod.values().sum();
    let most = tally.by_pod.values().copied().max().unwrap_or(0).max(1);
    for (pod, &count) in &tally.by_pod {
        let share = format!("{:.1}%", 100.0 * count as f64 / answered.max(1) as f64);
        table.add_row([
            &format!("  {pod}"),
            &count.to_string(),
            &share,
            &"▇".repeat((count * BAR / most) as usize),
        ]);
    }
    for (class, count) in &tally.failures {
        table.add_row([&format!("  ({class})"), &count.to_string(), "", ""]);
    }
    for column in [1, 2] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_tells_time_beside_its_goal_and_what_was_not_as_expected() {
        let mut step = StepReport { ms: Some(900), goal_ms: Some(1500), ..StepReport::of(&Tally::default()) };
        step.requests = 10;
        step.finish("pod-killed", Duration::ZERO);
        assert_eq!(line(&step), "✔ pod-killed     10 requests, 0 failed, 900 ms (goal 1500 ms)");
        step.expect(false, || "one reached it".into());
        assert!(line(&step).starts_with("✘"), "{}", line(&step));
        assert!(line(&step).ends_with("NOT AS EXPECTED: one reached it"), "{}", line(&step));
    }

    #[test]
    fn counts_show_each_pod_with_its_share() {
        let tally = Tally {
            by_pod: [("a-1".to_owned(), 3), ("a-2".to_owned(), 1)].into(),
            failures: [("timeout".to_owned(), 2)].into(),
            ..Tally::default()
        };
        let text = counts(&tally);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0].contains("a-1") && lines[0].contains("75.0%"), "{text}");
        assert!(lines[2].contains("(timeout)") && lines[2].contains('2'), "{text}");
    }
}
