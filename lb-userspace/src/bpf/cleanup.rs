//! Removing everything: links, pins and directories of every ABI version.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use super::lock::AgentLock;
use super::pins::{self, PinError};
use super::sys;

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Interfaces that the program was detached from; the pin's name where the interface is gone.
    pub links: Vec<String>,
    /// Pins of maps and program arrays.
    pub pins: Vec<PathBuf>,
    /// Directories.
    pub directories: Vec<PathBuf>,
}

impl Removed {
    /// Whether there was nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.links.is_empty() && self.pins.is_empty() && self.directories.is_empty()
    }
}

/// Detaches from all interfaces and removes all pins below a pin directory, of this ABI version and of others,
/// and then the directory itself. All flows end. The lock shows that no other agent is using them.
///
/// # Errors
///
/// When something can't be removed; what comes before it is gone.
pub fn cleanup(pin_dir: &Path, _lock: &AgentLock) -> Result<Removed, PinError> {
    remove_all(pin_dir)
}

impl super::load::Kernel {
    /// Detaches, and removes all pins of this agent's pin directory: what Ctrl-C does.
    ///
    /// # Errors
    ///
    /// As [`cleanup`].
    pub fn remove(self) -> Result<Removed, PinError> {
        remove_all(self.pins.root())
    }
}

fn remove_all(pin_dir: &Path) -> Result<Removed, PinError> {
    let mut removed = Removed::default();
    let versions = pins::entries(pin_dir)?;
    for version in versions.iter().filter(|path| pins::version_of(path).is_some()) {
        let links = version.join("links");
        for path in pins::entries(&links)? {
            // By command, because an unlinked pin leaves the program attached while anybody holds the link.
            let link = sys::open_pin(&path).ok();
            let interface = link.as_ref().and_then(|link| interface_of(link.as_fd()));
            if let Some(link) = link {
                let _ = sys::link_detach(link.as_fd());
            }
            remove_file(&path)?;
            let pin = || path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            removed.links.push(interface.unwrap_or_else(pin));
        }
        for directory in [version.join("programs"), version.join("maps")] {
            for path in pins::entries(&directory)? {
                remove_file(&path)?;
                removed.pins.push(path);
            }
        }
        for directory in [links, version.join("programs"), version.join("maps"), version.clone()] {
            remove_directory(directory, &mut removed)?;
        }
    }
    if !versions.is_empty()
        && pins::entries(pin_dir)?.is_empty()
        && pin_dir.parent().is_some_and(is_same_mount(pin_dir))
    {
        remove_directory(pin_dir.to_owned(), &mut removed)?;
    }
    Ok(removed)
}

/// Name of the interface that a link is attached to; `None` when that is gone or in another network namespace.
fn interface_of(link: BorrowedFd<'_>) -> Option<String> {
    let ifindex = sys::link_info(link).ok()?.ifindex;
    let interfaces = nix::net::if_::if_nameindex().ok()?;
    let found = interfaces.iter().find(|interface| interface.index() == ifindex)?;
    Some(found.name().to_string_lossy().into_owned())
}

/// Whether a directory is on the file system of its parent, that is, not a mount point.
fn is_same_mount(directory: &Path) -> impl Fn(&Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = fs::metadata(directory).ok().map(|metadata| metadata.dev());
    move |parent| device.is_some() && fs::metadata(parent).ok().map(|metadata| metadata.dev()) == device
}

fn remove_file(path: &Path) -> Result<(), PinError> {
    fs::remove_file(path).map_err(|source| PinError::File { action: "remove", path: path.to_owned(), source })
}

fn remove_directory(path: PathBuf, removed: &mut Removed) -> Result<(), PinError> {
    match fs::remove_dir(&path) {
        Ok(()) => {
            removed.directories.push(path);
            Ok(())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(PinError::File { action: "remove", path, source }),
    }
}
