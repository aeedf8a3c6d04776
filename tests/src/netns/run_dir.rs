//! The directory of one run of the bed, and the promise that nothing of a run outlives it.
//!
//! `/run/kanmon-bed/<run-id>/` holds the namespaces (`ns/`), a bpffs of the run's own (`bpf/`), logs,
//! manifests and two records: `owner` (the process that made it) and `processes` (what it started), each as
//! "pid start-time", which names a process even after its pid is used again. Whoever starts next finds runs
//! whose owner is gone, for example by `kill -9`, and removes what they left.
//!
//! A process of the run may make namespaces and processes for the run too ([`RunDir::join`]). It can be
//! killed between starting something and recording it, so cleaning also kills whatever runs in one of the
//! run's namespaces.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicI32, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    fcntl::{Flock, FlockArg},
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use super::{Netns, process::Process};

/// Where every run keeps its directory.
pub const BED_ROOT: &str = "/run/kanmon-bed";

/// The runs of this process that are not cleaned yet. Whoever holds the lock may make or remove things;
/// the signal thread never gives it back, so nothing is made after it has cleaned up.
static LIVE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Runs started by this process so far: the second half of a run id.
static STARTED: AtomicU32 = AtomicU32::new(0);

/// What the process exits with after a signal; negative: 128 + the signal.
static EXIT_CODE: AtomicI32 = AtomicI32::new(-1);

/// The directory of one run. Dropping the one that made it kills the run's processes and removes its
/// namespaces, its pins and its files.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// Whether this process made the run and so cleans it.
    owned: bool,
}

impl RunDir {
    /// Removes what dead runs left behind ([`sweep`]), then makes a directory for a new one, with an empty
    /// bpffs mounted in it.
    ///
    /// # Errors
    /// Without root.
    pub fn create() -> Result<RunDir> {
        let _only_one = lock_root()?;
        sweep_locked()?;
        let mut live = live();
        let id = format!("{}-{}", std::process::id(), STARTED.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(BED_ROOT).join(id);
        for sub in ["ns", "bpf", "logs", "manifests"] {
            fs::create_dir_all(path.join(sub))
                .with_context(|| format!("cannot create {}", path.join(sub).display()))?;
        }
        live.push(path.clone());
        drop(live);
        let run = RunDir { path, owned: true };
        fs::write(run.path.join("owner"), record(std::process::id())?)?;
        fs::write(run.path.join("processes"), "")?;
        mount(Some("bpf"), &run.bpffs(), Some("bpf"), MsFlags::empty(), Some("mode=0700"))
            .with_context(|| format!("cannot mount a bpffs at {}", run.bpffs().display()))?;
        Ok(run)
    }

    /// Takes part in a run that another process made: what this process makes in it is cleaned with the run.
    ///
    /// # Errors
    /// When there is no such run or its owner is gone.
    pub fn join(path: &Path) -> Result<RunDir> {
        let owner = fs::read_to_string(path.join("owner"))
            .with_context(|| format!("{} is not the directory of a run", path.display()))?;
        ensure!(is_running(&owner), "the run in {} is over: its owner is gone", path.display());
        Ok(RunDir { path: path.to_owned(), owned: false })
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The run's own bpffs: pins go here and nowhere else.
    pub fn bpffs(&self) -> PathBuf {
        self.path.join("bpf")
    }

    /// Starts `command`, with its output appended to `logs/<name>.log`, and records it, so that it does not
    /// outlive the run.
    ///
    /// # Errors
    /// When the program is missing or cannot be started.
    pub fn spawn(&self, name: &str, mut command: Command) -> Result<Process> {
        let log = self.path.join("logs").join(format!("{name}.log"));
        let out = OpenOptions::new().create(true).append(true).open(&log)?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        self.while_open(|| {
            let child = start(&mut command)?;
            let process = Process::new(name, child, log.clone());
            self.note(process.pid())?;
            Ok(process)
        })
    }

    /// Runs `command` to its end with `input` as its standard input, and returns what it printed. It does not
    /// outlive the run either.
    ///
    /// # Errors
    /// When the program is missing or cannot be started.
    pub fn output(&self, mut command: Command, input: &str) -> Result<Output> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.while_open(|| -> Result<Child> {
            let child = start(&mut command)?;
            self.note(child.id())?;
            Ok(child)
        })?;
        thread::scope(|scope| {
            let pipe = child.stdin.take();
            // A program that ends without reading all of its input says why in its output.
            scope.spawn(move || pipe.map(|mut pipe| pipe.write_all(input.as_bytes())));
            child.wait_with_output()
        })
        .with_context(|| format!("cannot read what {} prints", command.get_program().to_string_lossy()))
    }

    /// Adds a process to the record; one that has ended already needs none.
    fn note(&self, pid: u32) -> Result<()> {
        let Ok(record) = record(pid) else { return Ok(()) };
        let mut processes = OpenOptions::new().append(true).open(self.path.join("processes"))?;
        Ok(processes.write_all(record.as_bytes())?)
    }

    /// Kills the processes of the run in `ns`, whoever started them, by now perhaps without a parent.
    ///
    /// # Errors
    /// When the run is gone.
    pub fn kill_in(&self, ns: &Netns) -> Result<()> {
        self.signal_in(ns, Signal::SIGKILL).map(drop)
    }

    /// Sends a signal to the processes of the run in `ns`, whoever started them; says to how many.
    ///
    /// # Errors
    /// When the run is gone.
    pub fn signal_in(&self, ns: &Netns, signal: Signal) -> Result<usize> {
        let mut count = 0;
        let records = fs::read_to_string(self.path.join("processes"))?;
        for line in records.lines().filter(|line| is_running(line)) {
            if let Some(pid) = recorded_pid(line).filter(|pid| ns.holds(*pid)) {
                // One that has ended in the meantime needs none.
                count += usize::from(kill(Pid::from_raw(pid), signal).is_ok());
            }
        }
        Ok(count)
    }

    /// How long the processes of the run that still run have run, in steps of a hundredth of a second.
    ///
    /// # Errors
    /// When the run is gone.
    pub fn processor_time(&self) -> Result<Duration> {
        let records = fs::read_to_string(self.path.join("processes"))?;
        let pids = records.lines().filter(|line| is_running(line)).filter_map(recorded_pid);
        Ok(pids.filter_map(|pid| processor_time(&format!("/proc/{pid}/stat"))).sum())
    }

    /// Makes something that cleaning has to know of: `f` does not run while or after a signal cleans up.
    pub(super) fn while_open<T>(&self, f: impl FnOnce() -> T) -> T {
        let _live = live();
        f()
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        let mut live = live();
        clean(&self.path);
        live.retain(|path| path != &self.path);
    }
}

/// Removes every run under [`BED_ROOT`] whose owner is gone; says how many there were.
///
/// # Errors
/// When [`BED_ROOT`] cannot be read or locked.
pub fn sweep() -> Result<usize> {
    let _only_one = lock_root()?;
    sweep_locked()
}

/// From now on SIGINT, SIGTERM and SIGHUP clean every run of this process and then end it, with
/// 128 + the signal or what [`exit_code_after_signal`] set.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn clean_on_signals() -> Result<()> {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    if INSTALLED.set(()).is_err() {
        return Ok(());
    }
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot handle signals")?;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            let live = live();
            for path in live.iter() {
                clean(path);
            }
            let code = EXIT_CODE.load(Ordering::Relaxed);
            std::process::exit(if code < 0 { 128 + signal } else { code });
        }
    });
    Ok(())
}

/// Sets what the process exits with when a signal ends it: for a program that waits for Ctrl-C as its
/// regular end.
pub fn exit_code_after_signal(code: u8) {
    EXIT_CODE.store(code.into(), Ordering::Relaxed);
}

/// User's and system's time in a process's `stat`: the 14th and the 15th field, in hundredths of a second. The second
/// is a name in parentheses, which may have spaces.
fn processor_time(path: &str) -> Option<Duration> {
    let text = fs::read_to_string(path).ok()?;
    let fields = text.rsplit_once(')')?.1.split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).map_while(|field| field.parse::<u64>().ok()).sum();
    Some(Duration::from_millis(ticks * 10))
}

fn live() -> MutexGuard<'static, Vec<PathBuf>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lock_root() -> Result<Flock<File>> {
    let root = Path::new(BED_ROOT);
    fs::create_dir_all(root).with_context(|| format!("cannot create {BED_ROOT} (the bed needs root)"))?;
    let file = File::create(root.join(".lock"))
        .with_context(|| format!("cannot create {BED_ROOT}/.lock (the bed needs root)"))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, e)| e)
        .with_context(|| format!("cannot lock {BED_ROOT}/.lock"))
}

fn sweep_locked() -> Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(BED_ROOT)? {
        let path = entry?.path();
        // A run without a readable owner was killed while it was made: runs are made under the lock.
        let owned = fs::read_to_string(path.join("owner")).is_ok_and(|owner| is_running(&owner));
        if path.is_dir() && !owned && !live().contains(&path) {
            clean(&path);
            removed += 1;
        }
    }
    Ok(removed)
}

/// Kills, unmounts and removes what one run left. Goes on past every failure: each thing removed counts.
fn clean(run: &Path) {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        // Again and again: one that is not dead yet may start another.
        let left = processes_of(run);
        if left.is_empty() || Instant::now() >= deadline {
            break;
        }
        for pid in left {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        thread::sleep(Duration::from_millis(2));
    }
    for mounted in entries(&run.join("ns")).chain([run.join("bpf")]) {
        let _ = umount2(&mounted, MntFlags::MNT_DETACH);
    }
    if let Err(e) = fs::remove_dir_all(run)
        && e.kind() != ErrorKind::NotFound
    {
        eprintln!("kanmon-bed: cannot remove {}: {e}; remove it by hand", run.display());
    }
}

/// The processes of a run that are alive: those on record, and those in one of its namespaces.
fn processes_of(run: &Path) -> Vec<i32> {
    let records = fs::read_to_string(run.join("processes")).unwrap_or_default();
    let recorded = records.lines().filter(|line| is_running(line)).filter_map(recorded_pid);
    let identity = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
    let namespaces: Vec<_> = entries(&run.join("ns")).filter_map(|path| identity(&path)).collect();
    let inside = entries(Path::new("/proc")).filter_map(|process| {
        let pid = process.file_name()?.to_str()?.parse::<i32>().ok()?;
        let namespace = identity(&process.join("ns/net"))?;
        (namespaces.contains(&namespace) && u32::try_from(pid) != Ok(std::process::id())).then_some(pid)
    });
    recorded.chain(inside).collect()
}

/// What is in a directory; nothing where it cannot be read.
fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn start(command: &mut Command) -> Result<Child> {
    command.spawn().with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))
}

/// "pid start-time\n" of a process that runs now.
fn record(pid: u32) -> Result<String> {
    let start = start_time(pid).with_context(|| format!("process {pid} ended at once"))?;
    Ok(format!("{pid} {start}\n"))
}

fn recorded_pid(line: &str) -> Option<i32> {
    line.split_whitespace().next()?.parse().ok()
}

/// Whether the very process of a record runs; a zombie does not.
fn is_running(line: &str) -> bool {
    let mut fields = line.split_whitespace().map(str::parse::<u64>);
    match (fields.next(), fields.next()) {
        (Some(Ok(pid)), Some(Ok(start))) => {
            u32::try_from(pid).is_ok_and(|pid| start_time(pid) == Some(start))
        }
        _ => false,
    }
}

/// When a process started, in clock ticks since boot; none for a zombie or when there is no such process.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, field 2, is in parentheses and may hold anything: count from behind it.
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_names_this_process_and_no_other_of_the_same_pid() {
        let own = record(std::process::id()).unwrap();
        assert!(is_running(&own));
        let pid = recorded_pid(&own).unwrap();
        assert_eq!(u32::try_from(pid).unwrap(), std::process::id());
        assert!(!is_running(&format!("{pid} 1")), "same pid, other start time");
        assert!(!is_running(""));
        assert!(!is_running("12 x"));
    }
}
