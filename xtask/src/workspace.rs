//! Where things are: the workspace, its target directories, and the programs we start.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Directories that hold system tools but are not always in a normal user's `PATH`.
const SYSTEM_DIRS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// The workspace's root directory: the one above this crate.
pub(crate) fn root() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let manifest = manifest.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    manifest.parent().map(Path::to_path_buf).unwrap_or(manifest)
}

/// Cargo's target directory for the host's crates.
pub(crate) fn target_dir() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// The eBPF object that `lb-userspace` embeds.
pub(crate) fn ebpf_object() -> PathBuf {
    root().join("target/ebpf/kanmon.o")
}

/// What we build once for a user and share between clones: `$XDG_CACHE_HOME/kanmon`.
pub(crate) fn user_cache() -> PathBuf {
    let base = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute());
    base.unwrap_or_else(|| home().join(".cache")).join("kanmon")
}

/// The user's home directory.
pub(crate) fn home() -> PathBuf {
    env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from)
}

/// The cargo that runs us, working in the workspace's root.
///
/// What `cargo run` put into our environment for the xtask crate must not reach the crates we build.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(cargo_path());
    command.current_dir(root());
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// The cargo that runs us, or the one in `PATH`.
pub(crate) fn cargo_path() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

/// Looks a program up in `PATH` and in the directories for system tools.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    program_dirs().map(|dir| dir.join(name)).find(|candidate| is_executable(candidate))
}

/// The value of `PATH` with which a program that we start finds all that [`find_program`] does.
pub(crate) fn search_path() -> OsString {
    // What can't be joined has a colon in a name, and so was never part of a `PATH`.
    env::join_paths(program_dirs()).unwrap_or_else(|_| env::var_os("PATH").unwrap_or_default())
}

fn program_dirs() -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let own: Vec<_> = env::split_paths(&path).filter(|dir| !dir.as_os_str().is_empty()).collect();
    own.into_iter().chain(SYSTEM_DIRS.iter().map(PathBuf::from))
}

/// Whether `path` is a file that somebody may execute.
pub(crate) fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
