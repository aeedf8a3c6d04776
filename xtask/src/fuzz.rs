//! Fuzzing: the packet program's host build on bytes that a fuzzer makes up.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::build::run;
use crate::workspace;

/// The one version of cargo-fuzz that we use.
const VERSION: &str = "0.13.2";
/// The targets, in the order in which they run.
const TARGETS: [&str; 3] = ["frames", "messages", "tables"];
/// Longest input in bytes: enough for a dozen of frames and their changes.
const LONGEST_INPUT: u32 = 2048;

/// What to fuzz, and for how long.
#[derive(Args)]
pub(crate) struct Options {
    /// One target, or all: frames (like those of live flows), messages (ICMP errors that quote their packets), tables
    /// (that hold anything)
    #[arg(value_parser = TARGETS)]
    target: Option<String>,
    /// How long each target runs
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    minutes: u32,
}

/// Runs the targets, one after the other. What they learn stays in fuzz/corpus, what fails in fuzz/artifacts.
///
/// # Errors
/// The fuzzer can't be had, or something fails: the message says where the input is that does it.
pub(crate) fn fuzz(options: &Options) -> Result<()> {
    nightly()?;
    let tools = cargo_fuzz()?;
    let targets = options.target.as_deref().map_or(TARGETS.to_vec(), |target| vec![target]);
    for target in targets {
        eprintln!("Fuzzing {target} for {} min …", options.minutes);
        let mut command = on_nightly(&["cargo", "fuzz", "run", "--fuzz-dir", "fuzz", "--target-dir"]);
        command.arg(workspace::target_dir().join("fuzz"));
        // There is no unsafe code: an address sanitizer would find nothing, and take half of the time.
        command.args(["--sanitizer", "none", target, "--", "-print_final_stats=1"]);
        command.arg(format!("-max_len={LONGEST_INPUT}"));
        command.arg(format!("-max_total_time={}", options.minutes * 60));
        command.env("PATH", with_tools(&tools)?);
        let status = command.status().context("start cargo-fuzz")?;
        if !status.success() {
            bail!(
                "the fuzz target {target} failed ({status}): its input is in fuzz/artifacts/{target}. Mend what it \
                 shows, and make it a case in lb-common/tests/datapath/fuzz_cases.rs"
            );
        }
    }
    Ok(())
}

/// A command of the nightly toolchain, which coverage needs.
fn on_nightly(arguments: &[&str]) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly"]).args(arguments).current_dir(workspace::root());
    for name in ["RUSTC", "RUSTDOC", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET"] {
        command.env_remove(name);
    }
    command
}

/// Makes sure that there is a nightly toolchain.
fn nightly() -> Result<()> {
    if workspace::find_program("rustup").is_none() {
        bail!(
            "fuzzing needs a nightly compiler, and rustup to get it with: install rustup from https://rustup.rs"
        );
    }
    if on_nightly(&["cargo", "--version"]).output().is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    let mut install = Command::new("rustup");
    install.args(["toolchain", "install", "nightly", "--profile", "minimal"]);
    run(&mut install, "the installation of the nightly toolchain").context(
        "fuzzing needs a nightly compiler, and rustup can't get one here: `rustup toolchain install nightly` says why",
    )
}

/// The directory of cargo-fuzz, which is put into the user's cache where it is missing.
fn cargo_fuzz() -> Result<PathBuf> {
    let root = workspace::user_cache().join(format!("cargo-fuzz-{VERSION}"));
    let directory = root.join("bin");
    if !workspace::is_executable(&directory.join("cargo-fuzz")) {
        let mut install = workspace::cargo();
        install.args(["install", "cargo-fuzz", "--locked", "--version", VERSION, "--root"]).arg(&root);
        run(&mut install, "the build of cargo-fuzz").with_context(|| {
            format!("cargo-fuzz {VERSION} can't be had: cargo must reach its registry, once for this machine")
        })?;
    }
    Ok(directory)
}

fn with_tools(tools: &Path) -> Result<std::ffi::OsString> {
    let path = workspace::search_path();
    let directories = std::iter::once(tools.to_path_buf()).chain(std::env::split_paths(&path));
    std::env::join_paths(directories)
        .context("a directory's name with a colon can't be searched for programs")
}
