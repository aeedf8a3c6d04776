//! The two ways to a compiler for eBPF, and the choice between them.
//!
//! *rustup*: nightly with rust-src, and the released bpf-linker.
//! *debian*: the distribution's rustc with its library sources and LLVM, and a bpf-linker built on that LLVM.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use super::linker;
use crate::workspace;

/// Overrides the choice: `rustup` or `debian`.
pub(crate) const ROUTE_VARIABLE: &str = "KANMON_EBPF_ROUTE";
/// The LLVM that the distribution's rustc and our bpf-linker share on the debian route.
pub(crate) const DEBIAN_LLVM: u32 = 22;
/// The distribution's compiler. Rustup's proxies come first in `PATH`, so it is named in full.
pub(crate) const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_SOURCES: &str = "/usr/lib/rustlib/src/rust/library/core/src/lib.rs";
const LIBRARY_SOURCES: &str = "lib/rustlib/src/rust/library/core/src/lib.rs";

/// A way to compile for eBPF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Rustup's nightly with rust-src.
    Rustup,
    /// The distribution's rustc with its sources.
    Debian,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rustup => "rustup (nightly with rust-src, released bpf-linker)",
            Self::Debian => "debian (the distribution's rustc and LLVM, bpf-linker built on them)",
        })
    }
}

/// What is on this machine, and what it could get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Nightly with rust-src is installed.
    pub(crate) rustup_compiler: bool,
    /// The released bpf-linker is in the cache.
    pub(crate) rustup_linker: bool,
    /// rustup itself is installed, so more can be asked of it.
    pub(crate) rustup: bool,
    /// The distribution's rustc, its sources and its LLVM are installed.
    pub(crate) debian_compiler: bool,
    /// apt is installed, so more can be asked of it.
    pub(crate) apt: bool,
}

/// What the choice came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Use this one.
    Take(Route),
    /// Nothing is here yet: try rustup, and where that fails, debian.
    TryBoth,
    /// Nothing is here and there is nothing to get it with.
    Nothing,
}

/// Chooses a route: the one asked for, else a complete one (rustup before debian), else the one that
/// lacks only its linker, else whatever can be fetched.
pub(crate) fn choose(facts: Facts, asked: Option<Route>) -> Choice {
    if let Some(route) = asked {
        return Choice::Take(route);
    }
    if facts.rustup_compiler && facts.rustup_linker {
        return Choice::Take(Route::Rustup);
    }
    if facts.debian_compiler {
        return Choice::Take(Route::Debian);
    }
    match (facts.rustup, facts.apt) {
        (true, true) => Choice::TryBoth,
        (true, false) => Choice::Take(Route::Rustup),
        (false, true) => Choice::Take(Route::Debian),
        (false, false) => Choice::Nothing,
    }
}

/// Looks at the machine.
pub(crate) fn look() -> Facts {
    Facts {
        rustup_compiler: nightly_has_sources(),
        rustup_linker: linker::present(Route::Rustup),
        rustup: workspace::find_program("rustup").is_some(),
        debian_compiler: debian_compiler().is_ok(),
        apt: workspace::find_program("apt-get").is_some(),
    }
}

/// The route the user asked for, if any.
///
/// # Errors
/// The variable names no route.
pub(crate) fn asked() -> Result<Option<Route>> {
    match std::env::var(ROUTE_VARIABLE).as_deref() {
        Err(_) | Ok("") => Ok(None),
        Ok("rustup") => Ok(Some(Route::Rustup)),
        Ok("debian") => Ok(Some(Route::Debian)),
        Ok(other) => bail!("{ROUTE_VARIABLE} is {other:?}: it takes `rustup` or `debian`"),
    }
}

/// Where rustup keeps its nightly.
pub(crate) fn nightly_sysroot() -> PathBuf {
    let home = std::env::var_os("RUSTUP_HOME").map(PathBuf::from);
    let home = home.unwrap_or_else(|| workspace::home().join(".rustup"));
    home.join("toolchains").join(format!("nightly-{}-unknown-linux-gnu", std::env::consts::ARCH))
}

/// Whether rustup's nightly is there with the sources of core.
pub(crate) fn nightly_has_sources() -> bool {
    let sysroot = nightly_sysroot();
    sysroot.join("bin/rustc").exists() && sysroot.join(LIBRARY_SOURCES).exists()
}

/// The distribution's compiler, where it can build for eBPF; otherwise what it lacks.
pub(crate) fn debian_compiler() -> std::result::Result<String, String> {
    if !Path::new(DEBIAN_RUSTC).exists() {
        return Err(format!("{DEBIAN_RUSTC} is not there"));
    }
    if !Path::new(DEBIAN_SOURCES).exists() {
        return Err(format!("{DEBIAN_SOURCES} is not there"));
    }
    let config = linker::llvm_config();
    if !config.exists() {
        return Err(format!("{} is not there", config.display()));
    }
    let output = Command::new(DEBIAN_RUSTC).arg("-vV").output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    match rustc_llvm(&text) {
        Some(DEBIAN_LLVM) => Ok(text.lines().next().unwrap_or("rustc").to_owned()),
        Some(other) => {
            Err(format!("{DEBIAN_RUSTC} is built on LLVM {other}, and bpf-linker on LLVM {DEBIAN_LLVM}"))
        }
        None => Err(format!("`{DEBIAN_RUSTC} -vV` names no LLVM")),
    }
}

/// The major version of LLVM in the output of `rustc -vV`.
fn rustc_llvm(verbose: &str) -> Option<u32> {
    let version = verbose.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPLETE: Facts =
        Facts { rustup_compiler: true, rustup_linker: true, rustup: true, debian_compiler: true, apt: true };

    #[test]
    fn a_complete_rustup_comes_first() {
        assert_eq!(choose(COMPLETE, None), Choice::Take(Route::Rustup));
    }

    #[test]
    fn what_the_user_asks_for_wins() {
        assert_eq!(choose(COMPLETE, Some(Route::Debian)), Choice::Take(Route::Debian));
        assert_eq!(choose(Facts::default(), Some(Route::Rustup)), Choice::Take(Route::Rustup));
    }

    #[test]
    fn rustup_without_its_linker_yields_to_an_installed_debian_compiler() {
        let facts = Facts { rustup_linker: false, ..COMPLETE };
        assert_eq!(choose(facts, None), Choice::Take(Route::Debian));
    }

    #[test]
    fn a_fresh_machine_tries_what_it_has_installers_for() {
        let fresh = Facts { rustup: true, apt: true, ..Facts::default() };
        assert_eq!(choose(fresh, None), Choice::TryBoth);
        assert_eq!(choose(Facts { apt: false, ..fresh }, None), Choice::Take(Route::Rustup));
        assert_eq!(choose(Facts { rustup: false, ..fresh }, None), Choice::Take(Route::Debian));
        assert_eq!(choose(Facts::default(), None), Choice::Nothing);
    }

    #[test]
    fn llvm_version_is_read_from_rustc() {
        assert_eq!(rustc_llvm("rustc 1.96.0\nhost: x86_64\nLLVM version: 22.1.8\n"), Some(22));
        assert_eq!(rustc_llvm("rustc 1.96.0\n"), None);
    }
}
