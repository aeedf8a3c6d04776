//! Starting what was built: the agent and the demo.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::build;
use crate::privilege::{Privilege, passed_environment};
use crate::setup::{self, Need, kubernetes};
use crate::workspace;

/// Builds everything and becomes `kanmon run ARGS`.
///
/// # Errors
/// Something can't be built, or there is no way to root. Returns only then.
pub(crate) fn agent(args: &[OsString]) -> Result<()> {
    everything(Need::Run)?;
    let agent = workspace::target_dir().join(build::RELEASE).join("kanmon");
    let mut command = Privilege::detect().command(&agent, &passed_environment(), "the agent")?;
    become_it(command.arg("run").args(args))
}

/// Builds everything and becomes the demo; gets Kubernetes' binaries first where the demo is to show Kubernetes.
///
/// # Errors
/// Something can't be built, or there is no way to root. Returns only then.
pub(crate) fn demo(args: &[OsString]) -> Result<()> {
    everything(Need::Run)?;
    become_it(&mut demo_command(build::RELEASE, args)?)
}

/// The demo that was built with `profile`, its arguments, and Kubernetes' binaries where they ask for it.
///
/// # Errors
/// The binaries can't be built, or there is no way to root.
pub(crate) fn demo_command(profile: &str, args: &[OsString]) -> Result<Command> {
    let mut environment = passed_environment();
    if args.iter().any(|arg| arg == "--kubernetes") {
        environment.push(kubernetes::environment("the demo with Kubernetes")?);
    }
    let demo = workspace::target_dir().join(profile).join("kanmon-demo");
    let mut command =
        Privilege::detect().command(&demo, &environment, "the demo (it makes network namespaces)")?;
    command.args(args);
    Ok(command)
}

/// Gets what `need` takes and is missing, and builds all there is to build, in order to run it.
///
/// # Errors
/// There is no way to root, a tool can't be had, or the build fails.
pub(crate) fn everything(need: Need) -> Result<()> {
    packet_program(need)?;
    build::host()
}

/// Gets what `need` takes and is missing, and builds the eBPF object, which everything else embeds; for
/// benchmarks also what it is compared to.
///
/// # Errors
/// There is no way to root, a tool can't be had, or the build fails.
pub(crate) fn packet_program(need: Need) -> Result<()> {
    // Minutes of building come first: sudo's refusal should not wait for their end.
    Privilege::detect().prepare("what is to run after the build")?;
    let route = setup::ensure(need)?;
    build::ebpf(route)?;
    if need == Need::Bench {
        build::ebpf_baseline(route)?;
    }
    Ok(())
}

/// Replaces this process, so that signals and the exit code go straight through.
///
/// # Errors
/// It does not start. Returns only then.
pub(crate) fn become_it(command: &mut Command) -> Result<()> {
    let error = command.exec();
    Err(error).with_context(|| format!("start {}", command.get_program().to_string_lossy()))
}
