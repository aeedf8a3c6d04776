//! One agent for each pin directory.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Where lock files are kept by default. A BPF file system can't hold them.
pub const LOCK_DIR: &str = "/run/kanmon";

/// The right to use a pin directory, held until it is dropped or the process ends.
#[derive(Debug)]
pub struct AgentLock {
    /// Locked until it is closed.
    _file: Flock<File>,
    path: PathBuf,
}

/// Why a pin directory can't be used by this process.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent has it.
    #[error(
        "another agent{} is using the pin directory {}: stop it first, or give this one a pinDir of its own",
        .pid.map(|pid| format!(" (process {pid})")).unwrap_or_default(), .pin_dir.display()
    )]
    Held {
        /// The pin directory.
        pin_dir: PathBuf,
        /// The process that has it, where its lock file says so.
        pid: Option<u32>,
    },
    /// The lock file can't be used.
    #[error("can't use the lock file {}: {source}", .path.display())]
    File {
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl AgentLock {
    /// Takes the lock of a pin directory; its file lies in `lock_dir` ([`LOCK_DIR`] unless told otherwise),
    /// which is made when missing.
    ///
    /// # Errors
    ///
    /// [`LockError::Held`] names the process that has it.
    pub fn acquire(lock_dir: &Path, pin_dir: &Path) -> Result<Self, LockError> {
        let path = lock_dir.join(lock_name(pin_dir));
        let failed = |source| LockError::File { path: path.clone(), source };
        std::fs::create_dir_all(lock_dir).map_err(failed)?;
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(failed)?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                // The agent before us may have removed the file between our opening and our locking it.
                Ok(file) if !is_at(&file, &path).map_err(failed)? => {}
                Ok(mut file) => {
                    write_pid(&mut file).map_err(failed)?;
                    return Ok(Self { _file: file, path });
                }
                Err((file, Errno::EWOULDBLOCK)) => {
                    return Err(LockError::Held { pin_dir: pin_dir.to_owned(), pid: read_pid(file) });
                }
                Err((_, errno)) => return Err(failed(errno.into())),
            }
        }
    }

    /// The lock file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for AgentLock {
    /// Removes the file while it is still locked, so that none is left behind.
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "can't remove the lock file");
        }
    }
}

/// Whether the file is the one that its path names.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    writeln!(file, "{}", std::process::id())
}

fn read_pid(mut file: File) -> Option<u32> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// The lock file's name: the pin directory's path, made absolute, with `-` for `/` and `--` for `-`.
fn lock_name(pin_dir: &Path) -> String {
    let absolute = pin_dir
        .canonicalize()
        .or_else(|_| std::path::absolute(pin_dir))
        .unwrap_or_else(|_| pin_dir.to_owned());
    let text = absolute.to_string_lossy();
    format!("{}.lock", text.trim_start_matches('/').replace('-', "--").replace('/', "-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_agent_on_the_same_pin_directory_is_refused_with_the_first_ones_pid() {
        let locks = tempfile::tempdir().expect("a directory");
        let pins = Path::new("/sys/fs/bpf/kanmon-lock-test");
        let first = AgentLock::acquire(locks.path(), pins).expect("the first gets it");
        let second = AgentLock::acquire(locks.path(), pins).expect_err("the second does not");
        let message = second.to_string();
        assert!(message.contains(&format!("process {}", std::process::id())), "{message}");
        assert!(message.contains("/sys/fs/bpf/kanmon-lock-test"), "{message}");
        drop(first);
        drop(AgentLock::acquire(locks.path(), pins).expect("free again"));
        assert_eq!(std::fs::read_dir(locks.path()).expect("a directory").count(), 0, "no file is left");
    }

    #[test]
    fn agents_on_different_pin_directories_do_not_meet() {
        let locks = tempfile::tempdir().expect("a directory");
        let first = AgentLock::acquire(locks.path(), Path::new("/pins/a-b")).expect("one");
        let second = AgentLock::acquire(locks.path(), Path::new("/pins/a/b")).expect("the other");
        assert_ne!(first.path(), second.path());
    }
}
