//! bpf-linker at a pinned version, kept in the user's cache so that a clean clone finds it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::route::{DEBIAN_LLVM, Route};
use crate::progress::Step;
use crate::workspace;

/// The one version we build with: another may write other BTF.
pub(crate) const VERSION: &str = "0.13.0";
/// Names a bpf-linker to use as it is, whatever its version.
pub(crate) const PATH_VARIABLE: &str = "KANMON_BPF_LINKER";

/// The bpf-linker of `route`.
pub(crate) fn path(route: Route) -> PathBuf {
    if let Some(own) = std::env::var_os(PATH_VARIABLE) {
        return PathBuf::from(own);
    }
    directory(route).join("bin/bpf-linker")
}

/// Whether the linker of `route` is there and starts.
///
/// It may be there and not start: a new LLVM in the distribution takes the library away that it was
/// linked against.
pub(crate) fn present(route: Route) -> bool {
    let path = path(route);
    workspace::is_executable(&path) && reported_version(&path).is_ok()
}

/// What `bpf-linker --version` prints.
///
/// # Errors
/// It doesn't start, or fails.
pub(crate) fn reported_version(path: &Path) -> Result<String> {
    let output =
        Command::new(path).arg("--version").output().with_context(|| format!("start {}", path.display()))?;
    if !output.status.success() {
        bail!("{} fails: {}", path.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Puts the linker of `route` into the cache.
///
/// # Errors
/// The download or the build fails.
pub(crate) fn install(route: Route, step: &Step) -> Result<()> {
    if let Some(own) = std::env::var_os(PATH_VARIABLE) {
        bail!("{PATH_VARIABLE} names {}, which does not start", own.display());
    }
    match route {
        Route::Rustup => download(&directory(route), step),
        Route::Debian => build(&directory(route), step),
    }
}

/// The prefix of LLVM on the debian route.
pub(crate) fn llvm_prefix() -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{DEBIAN_LLVM}"))
}

/// Its `llvm-config`.
pub(crate) fn llvm_config() -> PathBuf {
    llvm_prefix().join("bin/llvm-config")
}

/// Whether what the debian route builds the linker on is installed.
pub(crate) fn can_build() -> bool {
    let prefix = llvm_prefix();
    ["include/llvm-c/Core.h", "lib/libPolly.a", "bin/clang"].iter().all(|file| prefix.join(file).exists())
}

/// Asks for the release without fetching it.
///
/// # Errors
/// It can't be reached from here.
pub(crate) fn reachable(step: &Step) -> Result<()> {
    let mut curl = Command::new("curl");
    curl.args(["--proto", "=https", "--fail", "--location", "--silent", "--show-error", "--head"]);
    curl.args(["--connect-timeout", "10", "--max-time", "30", "--output", "/dev/null"]);
    step.run(curl.arg(release_address()), "look for the released bpf-linker")
}

fn directory(route: Route) -> PathBuf {
    let key = match route {
        Route::Rustup => "release".to_owned(),
        Route::Debian => format!("llvm-{}", llvm_series()),
    };
    workspace::user_cache().join(format!("bpf-linker-{VERSION}-{key}-{}", std::env::consts::ARCH))
}

/// Major and minor version of the distribution's LLVM: what the name of its shared library holds.
fn llvm_series() -> String {
    let output = Command::new(llvm_config()).arg("--version").output();
    let text = output.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default();
    series(&text).unwrap_or_else(|| DEBIAN_LLVM.to_string())
}

fn series(version: &str) -> Option<String> {
    let mut parts = version.trim().split('.');
    let major: u32 = parts.next()?.parse().ok()?;
    let minor: u32 = parts.next()?.parse().ok()?;
    Some(format!("{major}.{minor}"))
}

/// The address of the release for this processor. The musl build runs on every Linux.
fn release_address() -> String {
    let arch = std::env::consts::ARCH;
    format!(
        "https://github.com/aya-rs/bpf-linker/releases/download/v{VERSION}/bpf-linker-{arch}-unknown-linux-musl.tar.zst"
    )
}

fn download(directory: &Path, step: &Step) -> Result<()> {
    let bin = directory.join("bin");
    std::fs::create_dir_all(&bin).with_context(|| format!("make {}", bin.display()))?;
    let archive = directory.join("bpf-linker.tar.zst");
    let mut curl = Command::new("curl");
    curl.args(["--proto", "=https", "--fail", "--location", "--silent", "--show-error"]);
    curl.args(["--connect-timeout", "10", "--max-time", "300", "--output"]).arg(&archive);
    step.run(curl.arg(release_address()), "download the released bpf-linker")?;
    let mut tar = Command::new("tar");
    step.run(tar.arg("-xf").arg(&archive).arg("-C").arg(&bin), "unpack bpf-linker")?;
    std::fs::remove_file(&archive).with_context(|| format!("remove {}", archive.display()))?;
    let version = reported_version(&bin.join("bpf-linker"))?;
    if !version.contains(VERSION) {
        bail!("the released bpf-linker says {version:?} where {VERSION} was asked for");
    }
    Ok(())
}

fn build(directory: &Path, step: &Step) -> Result<()> {
    let mut cargo = workspace::cargo();
    cargo
        .args(["install", "bpf-linker", "--version", VERSION, "--locked", "--force"])
        .args(["--no-default-features", "--features", &format!("llvm-{DEBIAN_LLVM}"), "--root"])
        .arg(directory)
        // Outside the workspace: its lock file, flags and target directory have no say here.
        .current_dir("/")
        .env("CARGO_TARGET_DIR", directory.join("build"))
        .env("LLVM_PREFIX", llvm_prefix())
        .env("CXXSTDLIB", "stdc++")
        .env_remove("RUSTC")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    let result = step.run(&mut cargo, &format!("cargo install bpf-linker {VERSION}"));
    // Hundreds of megabytes that nobody needs again, whether it worked or not.
    let _ = std::fs::remove_dir_all(directory.join("build"));
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_key_survives_a_patch_release_of_llvm() {
        assert_eq!(series("22.1.8\n").as_deref(), Some("22.1"));
        assert_eq!(series("22.1.9").as_deref(), Some("22.1"));
        assert_eq!(series("garbage"), None);
    }

    #[test]
    fn routes_do_not_share_a_linker() {
        assert_ne!(directory(Route::Rustup), directory(Route::Debian));
    }
}
