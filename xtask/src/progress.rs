//! Long steps, shown as they go: a spinner on a terminal, plain lines elsewhere.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, IsTerminal};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// Where no terminal shows a spinner, a line at least this often says that we are alive.
const PLAIN_INTERVAL: Duration = Duration::from_secs(8);
/// How much of a failed command's output is shown.
const KEPT_LINES: usize = 60;

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
        let mut kept = VecDeque::new();
        let mut latest = String::new();
        let mut spoken = Instant::now();
        loop {
            match received.recv_timeout(Duration::from_millis(500)) {
                Ok(line) => {
                    latest = apt_progress(&line).unwrap_or_else(|| line.trim().to_owned());
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

/// apt's machine-readable progress (`pmstatus:PACKAGE:PERCENT:TEXT`), made readable.
fn apt_progress(line: &str) -> Option<String> {
    let rest = line.strip_prefix("pmstatus:").or_else(|| line.strip_prefix("dlstatus:"))?;
    let mut fields = rest.splitn(3, ':');
    let percent: f32 = fields.nth(1)?.parse().ok()?;
    Some(format!("{percent:.0}% {}", fields.next().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apt_tells_how_far_it_is() {
        assert_eq!(
            apt_progress("pmstatus:rustc-web:41.6667:Unpacking rustc-web (amd64)").as_deref(),
            Some("42% Unpacking rustc-web (amd64)")
        );
        assert_eq!(
            apt_progress("dlstatus:1:9.5:Retrieving file 1 of 4").as_deref(),
            Some("10% Retrieving file 1 of 4")
        );
        assert_eq!(apt_progress("Reading package lists..."), None);
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
