//! `kanmon cleanup`: removing what an agent left.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};

use crate::bpf::{self, AgentLock, LOCK_DIR, Removed};

/// Detaches the program, removes all pins and the socket, and says what was removed.
///
/// # Errors
/// When an agent is running on these pins, or when something can't be removed.
pub fn cleanup(pin_dir: &Path, socket: &Path) -> Result<String> {
    let lock = AgentLock::acquire(Path::new(LOCK_DIR), pin_dir)?;
    let removed = bpf::cleanup(pin_dir, &lock)
        .with_context(|| format!("cannot remove everything below {}", pin_dir.display()))?;
    let mut text = describe(&removed);
    match fs::remove_file(socket) {
        Ok(()) => text.push_str(&format!("removed the socket {}\n", socket.display())),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot remove {}", socket.display())),
    }
    if text.is_empty() {
        text = format!("nothing to clean up below {}\n", pin_dir.display());
    }
    Ok(text)
}

/// What was removed, in words; empty when nothing was.
pub(super) fn describe(removed: &Removed) -> String {
    let mut text = String::new();
    if !removed.links.is_empty() {
        text.push_str(&format!("detached from {}\n", removed.links.join(", ")));
    }
    if !removed.pins.is_empty() {
        text.push_str(&format!("removed {} pins\n", removed.pins.len()));
    }
    text
}
