//! Kubernetes' own binaries for the test bed: built from the Go module in tests/kube, kept in the user's cache.
//!
//! Programs that we start find all of them in the one directory that [`ASSETS_VARIABLE`] names. Where the user has set it,
//! what it holds is taken from there, and only the rest is built.

mod assets;
mod build;
mod go;
mod wheel;

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

pub(crate) use self::assets::ASSETS_VARIABLE;
use self::assets::Assets;
use self::build::Module;
use self::go::Toolchain;
use super::item::{Fix, Item, Need};
use crate::workspace;

/// Whether the binaries can be had.
pub(crate) enum Provided {
    /// All of them are in this directory.
    Ready(PathBuf),
    /// There is no Go to build them with, and none can be had: what was tried, and how a person gets one.
    NoGo(String),
}

/// The line of the report.
///
/// # Errors
/// The Go module can't be read.
pub(crate) fn item() -> Result<Item> {
    let name = "Kubernetes binaries";
    let module = Module::read()?;
    let assets = Assets::look(&module);
    let lacking = assets.lacking();
    let item = if lacking.is_empty() {
        Item::have(name, &assets.describe(module.version()))
    } else {
        let builder = match go::installed(module.go_line()) {
            Ok(go) => format!("with {go}"),
            Err(lack) => format!("with a Go of its own: {lack}"),
        };
        let how = format!("cargo xtask setup builds them, {builder}");
        Item::missing(name, &format!("no {}", lacking.join(", ")), &how)
    };
    Ok(item.needed_to(Need::Kubernetes).fixed_by(Fix::Kubernetes))
}

/// What a program has in its environment that runs Kubernetes' own, for `whom` they are; builds what is missing.
///
/// # Errors
/// There is no Go, a build fails, or the cache can't be written.
pub(crate) fn environment(whom: &str) -> Result<(OsString, OsString)> {
    match provide()? {
        Provided::Ready(directory) => Ok((ASSETS_VARIABLE.into(), directory.into())),
        Provided::NoGo(why) => bail!("{whom} needs Kubernetes' binaries: {why}"),
    }
}

/// Builds what is missing.
///
/// # Errors
/// A build fails, or the cache can't be written.
pub(crate) fn provide() -> Result<Provided> {
    let module = Module::read()?;
    let assets = Assets::look(&module);
    if !assets.lacking().is_empty() {
        let _lock = lock()?;
        // Whoever held the lock before us may have built them.
        let lacking = assets.lacking();
        if !lacking.is_empty() {
            let go = match Toolchain::get(module.go_line()) {
                Toolchain::Found(go) => go,
                Toolchain::Nowhere(why) => return Ok(Provided::NoGo(why)),
            };
            module.build(&go, &lacking)?;
        }
    }
    assets.directory().map(Provided::Ready)
}

/// Keeps other runs of setup from building the same at the same time, until it is dropped.
fn lock() -> Result<File> {
    /// How often a waiting run looks, and how often it says that it waits.
    const LOOK: Duration = Duration::from_millis(500);
    const SIGN_OF_LIFE: Duration = Duration::from_secs(8);

    let directory = workspace::user_cache();
    fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    // The directory itself: a lock file would be one more thing to leave behind.
    let lock = File::open(&directory).with_context(|| format!("open {}", directory.display()))?;
    let started = Instant::now();
    let mut spoken = None;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("lock {}", directory.display()));
            }
        }
        if spoken.is_none_or(|at: Instant| at.elapsed() >= SIGN_OF_LIFE) {
            eprintln!("Another run builds Kubernetes: waiting for it ({} s)", started.elapsed().as_secs());
            spoken = Some(Instant::now());
        }
        thread::sleep(LOOK);
    }
}
