//! The pin directory: where maps, program arrays and links outlive the agent.
//!
//! ```text
//! PIN_DIR/v<ABI_VERSION>/maps/<MAP>          adopted by the next agent of the same ABI
//!                       /programs/<map id>   the program array of one program version
//!                       /links/<interface>   the attachment
//! ```

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use lb_common::abi::ABI_VERSION;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

/// Where pins are kept by default.
pub const PIN_DIR: &str = "/sys/fs/bpf/kanmon";

/// Where a BPF file system belongs.
const BPF_FS: &str = "/sys/fs/bpf";

/// Why the pin directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// It is not on a BPF file system.
    #[error(
        "the pin directory {} is not on a BPF file system: choose one below {BPF_FS}, or mount one first \
         (`mount -t bpf bpf {}`)",
        .pin_dir.display(), .mount_point.display()
    )]
    NotBpf {
        /// The pin directory.
        pin_dir: PathBuf,
        /// Where one could be mounted.
        mount_point: PathBuf,
    },
    /// Pins of another layout are there.
    #[error(
        "{} holds pins of another version of Kanmon (map ABI {found}; this one has {ABI_VERSION}), which may \
         still be forwarding: remove them with `kanmon cleanup --pin-dir {}`",
        .pin_dir.display(), .pin_dir.display()
    )]
    OtherVersion {
        /// The pin directory.
        pin_dir: PathBuf,
        /// The other version.
        found: String,
    },
    /// A file operation failed.
    #[error("can't {action} {}: {source}", .path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// A pin directory that is there and of this ABI.
#[derive(Clone, Debug)]
pub struct PinDir {
    root: PathBuf,
}

impl PinDir {
    /// Makes the directories, mounting a BPF file system at `/sys/fs/bpf` where none is there.
    ///
    /// # Errors
    ///
    /// When the directory is on another file system, or holds pins of another ABI.
    pub fn prepare(root: &Path) -> Result<Self, PinError> {
        ensure_bpf_file_system(root)?;
        let pins = Self::at(root);
        if let Some(found) = other_version(root, ABI_VERSION)? {
            return Err(PinError::OtherVersion { pin_dir: root.to_owned(), found });
        }
        for directory in [pins.maps(), pins.programs(), pins.links()] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&directory)
                .map_err(|source| PinError::File { action: "make", path: directory, source })?;
        }
        Ok(pins)
    }

    /// The directory as it is, whether or not anything is there.
    pub(super) fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The directory that was named.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The pin of a map.
    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// Where maps are pinned.
    #[must_use]
    pub fn maps(&self) -> PathBuf {
        self.version().join("maps")
    }

    /// Where the program arrays are pinned.
    #[must_use]
    pub fn programs(&self) -> PathBuf {
        self.version().join("programs")
    }

    /// Where links are pinned.
    #[must_use]
    pub fn links(&self) -> PathBuf {
        self.version().join("links")
    }

    /// The pin of a link: the interface's index, which is unique, and its name for people (with `_` for `.`,
    /// which a BPF file system refuses).
    #[must_use]
    pub fn link(&self, interface: &str, ifindex: u32) -> PathBuf {
        self.links().join(format!("{ifindex}-{}", interface.replace('.', "_")))
    }

    fn version(&self) -> PathBuf {
        self.root.join(format!("v{ABI_VERSION}"))
    }
}

/// The entries of a directory, sorted; none where it does not exist.
pub(super) fn entries(directory: &Path) -> Result<Vec<PathBuf>, PinError> {
    let failed = |source| PinError::File { action: "read", path: directory.to_owned(), source };
    let listing = match fs::read_dir(directory) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut paths = listing
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()
        .map_err(failed)?;
    paths.sort();
    Ok(paths)
}

/// The ABI version that a directory's name stands for.
pub(super) fn version_of(directory: &Path) -> Option<&str> {
    let digits = directory.file_name()?.to_str()?.strip_prefix('v')?;
    (!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())).then_some(digits)
}

fn other_version(root: &Path, ours: u32) -> Result<Option<String>, PinError> {
    let ours = ours.to_string();
    Ok(entries(root)?
        .iter()
        .filter_map(|path| version_of(path))
        .find(|version| *version != ours)
        .map(str::to_owned))
}

fn ensure_bpf_file_system(root: &Path) -> Result<(), PinError> {
    let existing = root.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    if is_bpf(existing) {
        return Ok(());
    }
    let bpf_fs = Path::new(BPF_FS);
    if existing != bpf_fs {
        let mount_point = if root.starts_with(bpf_fs) { bpf_fs } else { root };
        return Err(PinError::NotBpf { pin_dir: root.to_owned(), mount_point: mount_point.to_owned() });
    }
    mount(Some("bpf"), bpf_fs, Some("bpf"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=0700"))
        .map_err(|errno| PinError::File {
            action: "mount a BPF file system at",
            path: bpf_fs.to_owned(),
            source: errno.into(),
        })?;
    tracing::info!("mounted a BPF file system at {BPF_FS}: there was none");
    Ok(())
}

fn is_bpf(path: &Path) -> bool {
    statfs(path).is_ok_and(|status| status.filesystem_type() == BPF_FS_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_on_another_file_system_is_refused_with_the_command_that_helps() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path().join("pins");
        let message = PinDir::prepare(&root).expect_err("no BPF file system").to_string();
        assert!(message.contains(&format!("mount -t bpf bpf {}", root.display())), "{message}");
        assert!(!root.exists(), "nothing is made there");
    }

    #[test]
    fn directories_of_other_versions_are_found_and_others_ignored() {
        let directory = tempfile::tempdir().expect("a directory");
        for name in ["v7", "vx", "v", "other"] {
            fs::create_dir(directory.path().join(name)).expect("a directory");
        }
        assert_eq!(other_version(directory.path(), 7).expect("readable"), None);
        assert_eq!(other_version(directory.path(), 8).expect("readable").as_deref(), Some("7"));
    }
}
