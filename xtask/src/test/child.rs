//! One test executable as a process: its lines as they come, its time limit, and its end.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, killpg, sigaction};
use nix::unistd::Pid;

use crate::privilege::Privilege;

/// How often we look whether the child ended, was interrupted or takes too long.
const TICK: Duration = Duration::from_millis(200);
/// How long processes that tests left behind may hold the output open after the end.
const LINGER: Duration = Duration::from_secs(3);
/// How long an interrupted suite may clean up.
const CLEAN_UP: Duration = Duration::from_secs(15);

/// Somebody pressed Ctrl-C, or asked us to end.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Where a line came from.
pub(crate) enum Line {
    /// The harness's own output.
    Out(String),
    /// What else was written.
    Err(String),
}

/// How the process ended.
pub(crate) enum End {
    /// By itself, well.
    Well,
    /// By itself, badly: what a person should know.
    Badly(String),
    /// By us, because it took longer than this.
    TooLong(Duration),
    /// By us, because somebody wanted to stop.
    Interrupted,
}

/// From now on Ctrl-C stops the suite that runs, its processes included, before it stops us.
///
/// # Errors
/// The kernel refuses a signal handler.
pub(crate) fn catch_interrupts() -> Result<()> {
    extern "C" fn note(_: nix::libc::c_int) {
        INTERRUPTED.store(true, Ordering::Relaxed);
    }
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler stores to an atomic, which is all that a handler may do freely.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("catch {signal}"))?;
    }
    Ok(())
}

/// Runs `command` in a process group of its own, gives its lines to `take`, and calls it with nothing
/// every now and then.
///
/// # Errors
/// It does not start.
pub(crate) fn run(
    command: &mut Command,
    privilege: Privilege,
    limit: Duration,
    mut take: impl FnMut(Option<Line>),
) -> Result<End> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let started = Instant::now();
    let mut child =
        command.spawn().with_context(|| format!("start {}", command.get_program().to_string_lossy()))?;
    let (lines, received) = channel();
    pump(child.stdout.take(), lines.clone(), Line::Out);
    pump(child.stderr.take(), lines, Line::Err);

    let mut ended_by_us = None;
    loop {
        if !drain(&received, &mut take) {
            break;
        }
        take(None);
        if child.try_wait().is_ok_and(|status| status.is_some()) {
            break;
        }
        if INTERRUPTED.load(Ordering::Relaxed) {
            signal_group(&child, privilege, Signal::SIGINT);
            wait_until(&mut child, Instant::now() + CLEAN_UP);
            ended_by_us = Some(End::Interrupted);
            break;
        }
        if started.elapsed() > limit {
            ended_by_us = Some(End::TooLong(limit));
            break;
        }
    }
    if ended_by_us.is_some() {
        signal_group(&child, privilege, Signal::SIGKILL);
    }
    let status = child.wait().context("wait for the suite")?;
    let patience = Instant::now() + LINGER;
    while drain(&received, &mut take) && Instant::now() < patience {}
    // Whatever the tests started and left behind.
    signal_group(&child, privilege, Signal::SIGKILL);

    Ok(ended_by_us.unwrap_or_else(|| match (status.code(), status.signal()) {
        (Some(0), _) => End::Well,
        (Some(code), _) => End::Badly(format!("exit code {code}")),
        (None, Some(number)) => End::Badly(match Signal::try_from(number) {
            Ok(signal) => format!("killed by {signal}"),
            Err(_) => format!("killed by signal {number}"),
        }),
        (None, None) => End::Badly("no exit code".to_owned()),
    }))
}

/// Gives `take` what arrives within a tick; whether more can come.
fn drain(received: &Receiver<Line>, take: &mut impl FnMut(Option<Line>)) -> bool {
    let until = Instant::now() + TICK;
    loop {
        match received.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => take(Some(line)),
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
}

fn pump<R: Read + Send + 'static>(source: Option<R>, lines: Sender<Line>, wrap: fn(String) -> Line) {
    let Some(source) = source else { return };
    thread::spawn(move || {
        for line in BufReader::new(source).split(b'\n').map_while(Result::ok) {
            if lines.send(wrap(String::from_utf8_lossy(&line).into_owned())).is_err() {
                return;
            }
        }
    });
}

fn wait_until(child: &mut Child, deadline: Instant) {
    while Instant::now() < deadline && child.try_wait().is_ok_and(|status| status.is_none()) {
        thread::sleep(TICK);
    }
}

/// Signals the child's process group; through sudo where its processes are root's. That there is nobody left
/// to signal is the usual case, and no error.
fn signal_group(child: &Child, privilege: Privilege, signal: Signal) {
    if privilege == Privilege::Root {
        if let Ok(group) = i32::try_from(child.id()) {
            let _ = killpg(Pid::from_raw(group), signal);
        }
        return;
    }
    if let Ok(mut shell) = privilege.command(Path::new("/bin/sh"), &[], "ending a suite") {
        let script = format!("kill -s {} -- -{}", signal.as_str().trim_start_matches("SIG"), child.id());
        let shell = shell.arg("-c").arg(script);
        let _ = shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> (End, Vec<String>) {
        let mut seen = Vec::new();
        let mut command = Command::new("sh");
        let end = run(command.args(["-c", script]), Privilege::Root, limit, |line| match line {
            Some(Line::Out(text) | Line::Err(text)) => seen.push(text),
            None => {}
        });
        (end.unwrap(), seen)
    }

    #[test]
    fn a_crash_is_named() {
        let (end, seen) = shell("echo before; kill -SEGV $$", Duration::from_secs(20));
        assert!(matches!(end, End::Badly(text) if text == "killed by SIGSEGV"));
        assert_eq!(seen, ["before"]);
    }

    #[test]
    fn a_hanging_process_and_its_children_are_killed() {
        let (end, seen) = shell("sleep 1000 & echo $!; wait", Duration::from_millis(300));
        assert!(matches!(end, End::TooLong(_)));
        let grandchild = format!("/proc/{}/stat", seen[0]);
        let deadline = Instant::now() + Duration::from_secs(5);
        // Gone, or a zombie that its new parent has not collected yet.
        while std::fs::read_to_string(&grandchild).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(Instant::now() < deadline, "{grandchild} still runs");
            thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn a_process_that_ends_well_leaves_no_line_unread() {
        let (end, seen) = shell("seq 1 5000", Duration::from_secs(20));
        assert!(matches!(end, End::Well));
        assert_eq!(seen.len(), 5000);
    }
}
