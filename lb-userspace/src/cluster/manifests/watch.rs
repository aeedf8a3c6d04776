//! Follows the directory. Its events say only *that* something changed; then all of it is read again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{Instant, sleep_until, timeout};

use super::Snapshot;
use super::directory;
use super::tree::{self, Tree};
use super::{LastGood, log_changes};

/// This long without an event means that whoever writes has finished.
const QUIET: Duration = Duration::from_millis(100);
/// But no change waits longer than this.
const PATIENCE: Duration = Duration::from_secs(1);
/// Reads without an event: for file systems that have none, links that lead out of the directory, and a
/// directory that was replaced as a whole.
const POLL: Duration = Duration::from_secs(10);

/// Why a directory cannot be followed.
#[derive(Debug, Error)]
pub enum SourceError {
    /// It cannot be read, and nothing is known from before.
    #[error("cannot read the manifest directory {path}: {source}", path = path.display())]
    Unreadable {
        /// The directory.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The system gives no events.
    #[error("cannot watch for changes of files: {0}")]
    Watch(#[from] notify::Error),
    /// A thread of the agent died.
    #[error("the reader of the manifest directory died: {0}")]
    Died(#[from] JoinError),
}

/// Follows a directory of manifests. The receiver holds what it says now, and each later state; it ends when
/// the receiver is dropped. `last_good` is what [`crate::cluster::load_last_good`] found: a directory that cannot be
/// read begins with that.
///
/// # Errors
///
/// The directory cannot be read and there is no last good state, or the system refuses to watch.
pub async fn watch(
    root: PathBuf,
    last_good: Option<LastGood>,
) -> Result<watch::Receiver<Arc<Snapshot>>, SourceError> {
    let (events, changed) = mpsc::channel(1);
    let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        if event.is_ok_and(|event| !is_change(&event)) {
            return;
        }
        // A full channel already says that something changed.
        let _ = events.try_send(());
    })?;
    let known = last_good.is_some();
    let mut follower = Follower { root, watcher, tree: Tree::new(last_good.unwrap_or_default()) };
    let first;
    (follower, first) = follower.read().await?;
    if let (Err(source), false) = (&first.outcome, known) {
        let source = std::io::Error::new(source.kind(), source.to_string());
        return Err(SourceError::Unreadable { path: follower.root, source });
    }
    log_changes(&[], &first.snapshot.problems);
    let (sender, receiver) = watch::channel(Arc::new(first.snapshot));
    tokio::spawn(follow(follower, changed, sender));
    Ok(receiver)
}

/// Opening and reading are events too, our own among them.
fn is_change(event: &Event) -> bool {
    match event.kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

async fn follow(
    mut follower: Follower,
    mut changed: mpsc::Receiver<()>,
    sender: watch::Sender<Arc<Snapshot>>,
) {
    loop {
        tokio::select! {
            () = sender.closed() => return,
            event = timeout(POLL, changed.recv()) => if event.is_ok() { settle(&mut changed).await },
        }
        let reading;
        (follower, reading) = match follower.read().await {
            Ok(result) => result,
            Err(error) => {
                tracing::error!(%error, "manifests are no longer followed");
                return;
            }
        };
        sender.send_if_modified(|current| {
            let is_new = **current != reading.snapshot;
            if is_new {
                log_changes(&current.problems, &reading.snapshot.problems);
                *current = Arc::new(reading.snapshot);
            }
            is_new
        });
    }
}

/// Waits until events stop for a moment.
async fn settle(changed: &mut mpsc::Receiver<()>) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        tokio::select! {
            () = sleep_until(deadline) => return,
            event = timeout(QUIET, changed.recv()) => if event.is_err() { return },
        }
    }
}

/// The blocking part: file system, watches and parsing.
struct Follower {
    root: PathBuf,
    watcher: RecommendedWatcher,
    tree: Tree,
}

struct Read {
    snapshot: Snapshot,
    outcome: std::io::Result<()>,
}

impl Follower {
    async fn read(self) -> Result<(Self, Read), JoinError> {
        spawn_blocking(move || {
            let mut follower = self;
            let read = follower.read_blocking();
            (follower, read)
        })
        .await
    }

    fn read_blocking(&mut self) -> Read {
        // First watch, then read: what changes in between is an event. Watching again is harmless, and
        // finds directories that were replaced.
        for path in directory::directories(&self.root) {
            self.watch(&path);
        }
        match directory::read(&self.root) {
            Ok(reading) => {
                self.tree.update(reading);
                Read { snapshot: self.tree.snapshot(None), outcome: Ok(()) }
            }
            Err(error) => {
                let object = format!("directory {}", self.root.display());
                let problem = tree::unreadable("", object, &format!("cannot be read: {error}"));
                Read { snapshot: self.tree.snapshot(Some(problem)), outcome: Err(error) }
            }
        }
    }

    fn watch(&mut self, path: &Path) {
        if let Err(error) = self.watcher.watch(path, RecursiveMode::NonRecursive) {
            tracing::debug!(path = %path.display(), %error, "cannot watch; it is read every 10 s");
        }
    }
}
