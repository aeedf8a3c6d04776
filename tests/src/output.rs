//! What programs of the bed write for the person who started them.

use std::{env, fs, io, os::unix::fs::chown, path::Path};

use anyhow::{Context, Result};

/// The running kernel's release.
///
/// # Errors
/// Without /proc.
pub(crate) fn kernel_release() -> Result<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("/proc is not mounted")?;
    Ok(release.trim().to_owned())
}

/// Writes a file and makes it the user's who started us by sudo, so that the same user can overwrite it later.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn write_for_caller(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)
        .and_then(|()| give_to_caller(path))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn give_to_caller(path: &Path) -> io::Result<()> {
    let id = |name| env::var(name).ok().and_then(|text| text.parse().ok());
    match (id("SUDO_UID"), id("SUDO_GID")) {
        (Some(user), Some(group)) => chown(path, Some(user), Some(group)),
        _ => Ok(()),
    }
}
