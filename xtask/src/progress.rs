//! Long steps, shown as they go: a spinner on a terminal, plain lines elsewhere.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, IsTerminal};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// Where no terminal shows a spinner, a line at least this often says that we are alive.
const PLAIN_INTERVAL: Duration = Duration::from_secs(8);
/// The same for a command that prints its own lines, though not steadily: cargo, at a large crate.
const SIGN_INTERVAL: Duration = Duration::from_secs(15);
/// How much of a failed command's output is shown.
const KEPT_LINES: usize = 60;

/// Says every now and then that something still goes on, until it is dropped; on a terminal, where cargo shows a
/// bar of its own, it says nothing.
pub(crate) struct SignOfLife {
    /// Never sent to: its end is what the thread waits for.
    _end: Option<Sender<()>>,
}

impl SignOfLife {
    /// Begins for what is called this.
    pub(crate) fn of(what: &str) -> Self {
        if std::io::stderr().is_terminal() {
            return Self { _end: None };
        }
        let (end, ended) = channel::<()>();
        let (what, started) = (what.to_owned(), Instant::now());
        thread::spawn(move || {
            while ended.recv_timeout(SIGN_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                eprintln!("      {what} ({} s) …", started.elapsed().as_secs());
            }
        });
        Self { _end: Some(end) }
    }
}

/// One long step out of several.
pub(crate) struct Step {
    title: String,
    started: Instant,
    spinner: Option<ProgressBar>,
}

impl Step {
    /// Begins step `index` of `total`.
    pub(crate) fn start(index: usize, total: usize, title: &str) -> Self {
        let title = format!("[{index}/{total}] {title}");
        let spinner = std::io::stderr().is_terminal().then(|| {
            let spinner = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template("{spinner} {prefix} ({elapsed}) {wide_msg}");
            spinner.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            spinner.set_prefix(title.clone());
            spinner.enable_steady_tick(Duration::from_millis(120));
            spinner
        });
        if spinner.is_none() {
            eprintln!("{title}");
        }
        Self { title, started: Instant::now(), spinner }
    }

    /// Runs `command` without input, showing the last line it printed.
    ///
    /// # Errors
    /// It does not start or fails; the end of its output is in the message.
    pub(crate) fn run(&self, command: &mut Command, what: &str) -> Result<()> {
        self.say(what);
        let (reader, writer) = std::io::pipe().context("make a pipe")?;
        command.stdin(Stdio::null()).stdout(writer.try_clone().context("copy a pipe")?).stderr(writer);
        let mut child = command
            .spawn()
            .with_context(|| format!("start `{}` to {what}", command.get_program().to_string_lossy()))?;
        // Our copies of the pipe's writing end would keep it open after the child's end.
        command.stdout(Stdio::null()).stderr(Stdio::null());

        let (lines, received) = channel();
        let pump = thread::spawn(move || {
            for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
                if lines.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    break;
                }
            }
        });
        let mut apt = AptProgress::default();
        let mut kept = VecDeque::new();
        let mut latest = String::new();
        let mut spoken = Instant::now();
        loop {
            match received.recv_timeout(Duration::from_millis(500)) {
                Ok(line) => {
                    latest = apt.line(&line).unwrap_or_else(|| line.trim().to_owned());
                    if let Some(spinner) = &self.spinner {
                        spinner.set_message(latest.clone());
                    }
                    if kept.len() == KEPT_LINES {
                        kept.pop_front();
                    }
                    kept.push_back(line);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.spinner.is_none() && spoken.elapsed() >= PLAIN_INTERVAL {
                eprintln!("      {what} ({} s): {latest}", self.started.elapsed().as_secs());
                spoken = Instant::now();
            }
        }
        let status = child.wait().with_context(|| format!("wait for {what}"))?;
        let _ = pump.join();
        if !status.success() {
            bail!("{what} failed ({status}):\n{}", Vec::from(kept).join("\n"));
        }
        Ok(())
    }

    /// Names what is being done now.
    pub(crate) fn say(&self, what: &str) {
        match &self.spinner {
            Some(spinner) => spinner.set_message(what.to_owned()),
            None => eprintln!("      {what}"),
        }
    }

    /// Ends the step: its line stays.
    pub(crate) fn finish(self, outcome: &str) {
        let line = format!("{}: {outcome} ({} s)", self.title, self.started.elapsed().as_secs());
        match self.spinner {
            Some(spinner) => {
                spinner.finish_and_clear();
                eprintln!("{line}");
            }
            None => eprintln!("{line}"),
        }
    }
}

/// How far apt is, from what it prints: it has no count of its own where there is no terminal.
///
/// Its machine-readable progress (`APT::Status-Fd`) would want a file descriptor of its own, which sudo
/// closes; sharing standard output makes maintainer scripts fail.
#[derive(Default)]
struct AptProgress {
    packages: usize,
    unpacked: usize,
    set_up: usize,
}

impl AptProgress {
    /// The line with the share of the work that is done, where the line is apt's; otherwise nothing.
    fn line(&mut self, line: &str) -> Option<String> {
        if let Some((counts, _)) = line.split_once(" newly installed") {
            let numbers = counts.split_whitespace().filter_map(|word| word.parse::<usize>().ok());
            self.packages = numbers.sum();
            return None;
        }
        if self.packages == 0 {
            return None;
        }
        if line.starts_with("Unpacking ") {
            self.unpacked += 1;
        } else if line.starts_with("Setting up ") {
            self.set_up += 1;
        } else if !line.starts_with("Get:") {
            return None;
        }
        let percent = 100 * (self.unpacked + self.set_up) / (2 * self.packages);
        Some(format!("{}% {}", percent.min(100), line.trim()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apt_tells_how_far_it_is() {
        let mut apt = AptProgress::default();
        assert_eq!(apt.line("Unpacking before the count"), None);
        assert_eq!(apt.line("1 upgraded, 1 newly installed, 0 to remove and 5 not upgraded."), None);
        assert_eq!(apt.line("Get:1 http://x y [3 kB]").as_deref(), Some("0% Get:1 http://x y [3 kB]"));
        assert_eq!(apt.line("Unpacking a (1) ...").as_deref(), Some("25% Unpacking a (1) ..."));
        assert_eq!(apt.line("Unpacking b (1) ...").as_deref(), Some("50% Unpacking b (1) ..."));
        assert_eq!(apt.line("Setting up a (1) ...").as_deref(), Some("75% Setting up a (1) ..."));
        assert_eq!(apt.line("Reading package lists..."), None);
    }

    #[test]
    fn a_failed_command_shows_what_it_printed() {
        let step = Step::start(1, 1, "test");
        let error = step
            .run(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]), "do it")
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("do it failed (exit status: 3)"), "{error}");
        assert!(error.contains("out") && error.contains("err"), "{error}");
    }
}
