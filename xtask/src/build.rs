//! Building: the eBPF object, then the host's crates that embed it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::progress::SignOfLife;
use crate::setup::linker;
use crate::setup::route::{DEBIAN_RUSTC, Route};
use crate::workspace;

/// The profile that users' programs are built with, and the name of its directory.
pub(crate) const RELEASE: &str = "release";
/// The profile that the tests, and the programs they start, are built with: see Cargo.toml.
pub(crate) const SUITES: &str = "suites";
/// The target that lb-ebpf is compiled for.
const TARGET: &str = "bpfel-unknown-none";

/// Builds lb-ebpf, and replaces `target/ebpf/kanmon.o` where the object changed.
///
/// # Errors
/// The build fails, or the object can't be copied.
pub(crate) fn ebpf(route: Route) -> Result<()> {
    object(route, "lb-ebpf", "kanmon-ebpf", &workspace::ebpf_object())
}

/// Builds what the benchmarks compare the packet program to: `target/ebpf/baseline-lru.o`.
///
/// # Errors
/// As [`ebpf`].
pub(crate) fn ebpf_baseline(route: Route) -> Result<()> {
    object(route, "baseline-lru", "baseline-lru", &workspace::ebpf_object().with_file_name("baseline-lru.o"))
}

/// Builds a program of a package for the kernel, and replaces `object` where it changed.
fn object(route: Route, package: &str, program: &str, object: &Path) -> Result<()> {
    let target_dir = workspace::root().join("target/ebpf-build");
    let mut cargo = ebpf_cargo(route)?;
    cargo.args(["build", "--release", "--package", package, "--bin", program]);
    cargo.args(["--target", TARGET, "-Z", "build-std=core", "--target-dir"]).arg(&target_dir);
    cargo.env("RUSTFLAGS", rustflags(&linker::path(route).display().to_string()));
    run(&mut cargo, &format!("the build of {package} for the kernel"))?;

    let built = target_dir.join(TARGET).join("release").join(program);
    let bytes = fs::read(&built).with_context(|| format!("read {}", built.display()))?;
    if fs::read(object).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    if let Some(directory) = object.parent() {
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    }
    // Renamed into place: a build of the agent at the same time reads the old object or the new.
    let fresh = object.with_extension("o.new");
    fs::write(&fresh, &bytes).with_context(|| format!("write {}", fresh.display()))?;
    fs::rename(&fresh, object).with_context(|| format!("replace {}", object.display()))
}

/// Builds the agent, the demo and everything else that runs on the host.
///
/// # Errors
/// The build fails.
pub(crate) fn host() -> Result<()> {
    run(workspace::cargo().args(["build", "--release"]), "the build of the host's crates")
}

/// Runs clippy over lb-ebpf and the benchmarks' program, for the target they are written for.
///
/// # Errors
/// Clippy has something to say.
pub(crate) fn ebpf_clippy(route: Route) -> Result<()> {
    let mut cargo = ebpf_cargo(route)?;
    let target_dir = workspace::root().join("target/ebpf-clippy");
    match route {
        Route::Rustup => {
            cargo.arg("clippy");
        }
        // Rustup's cargo would start rustup's clippy, which can't read what this rustc compiled.
        Route::Debian => {
            cargo.arg("check").env("RUSTC_WORKSPACE_WRAPPER", "/usr/bin/clippy-driver");
            cargo.env("CLIPPY_ARGS", "-Dwarnings__CLIPPY_HACKERY__");
        }
    }
    cargo.args(["--release", "--package", "lb-ebpf", "--package", "baseline-lru"]);
    cargo.args(["--target", TARGET, "-Z", "build-std=core"]);
    cargo.arg("--target-dir").arg(&target_dir).env("RUSTFLAGS", "-C target-cpu=v3");
    if route == Route::Rustup {
        cargo.args(["--", "-D", "warnings"]);
    }
    run(&mut cargo, "clippy of what runs in the kernel")
}

/// Runs a command of the build, its output shown as it comes.
///
/// # Errors
/// It does not start or fails.
pub(crate) fn run(command: &mut Command, what: &str) -> Result<()> {
    let _sign = SignOfLife::of(what);
    let status = command
        .status()
        .with_context(|| format!("start `{}` for {what}", command.get_program().to_string_lossy()))?;
    if !status.success() {
        bail!("{what} failed ({status})");
    }
    Ok(())
}

/// A cargo that compiles with the compiler of `route`.
fn ebpf_cargo(route: Route) -> Result<Command> {
    let mut cargo = match route {
        Route::Rustup => {
            let rustup = workspace::find_program("rustup").context("rustup is not here any more")?;
            let mut rustup = Command::new(rustup);
            rustup.args(["run", "nightly", "cargo"]).env_remove("RUSTC").env_remove("RUSTDOC");
            rustup.current_dir(workspace::root());
            rustup
        }
        Route::Debian => {
            let mut cargo = workspace::cargo();
            // The sources of core are an unstable matter; this makes a stable cargo and rustc build them.
            cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
            cargo
        }
    };
    for name in ["CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"]
    {
        cargo.env_remove(name);
    }
    Ok(cargo)
}

/// The flags for a loadable object; `v3` is what kernel 6.1 understands.
///
/// LLVM's `allows-misaligned-mem-access` is left off on purpose: with it, neighbouring stores to the stack are
/// merged into misaligned ones, which the verifier refuses. Packet fields, which are rarely aligned, are read
/// by lb-ebpf's own single loads instead.
///
/// Block placement is off because it lets a loop's last block fall through into its first. Kernel 6.1 takes only
/// jumps for back edges and refuses anything else (`back-edge from insn …`).
fn rustflags(linker: &str) -> String {
    format!(
        "-C debuginfo=2 -C target-cpu=v3 -C linker={linker} -C link-arg=--btf \
         -C link-arg=--llvm-args=-disable-block-placement"
    )
}
