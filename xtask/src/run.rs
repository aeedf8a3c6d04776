//! Starting what was built: the agent and the demo.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::build;
use crate::privilege::{Privilege, passed_environment};
use crate::setup::{self, Need};
use crate::workspace;

/// Builds everything and becomes `kanmon run ARGS`.
///
/// # Errors
/// Something can't be built, or there is no way to root. Returns only then.
pub(crate) fn agent(args: &[OsString]) -> Result<()> {
    everything()?;
    let mut command = as_root(&workspace::target_dir().join("release/kanmon"), "the agent")?;
    become_it(command.arg("run").args(args))
}

/// Builds everything and becomes the demo.
///
/// # Errors
/// Something can't be built, or there is no way to root. Returns only then.
pub(crate) fn demo(args: &[OsString]) -> Result<()> {
    everything()?;
    become_it(demo_command()?.args(args))
}

/// The demo, to be given its arguments.
///
/// # Errors
/// There is no way to root.
pub(crate) fn demo_command() -> Result<Command> {
    as_root(&workspace::target_dir().join("release/kanmon-demo"), "the demo (it makes network namespaces)")
}

/// Gets the tools that are missing, and builds all there is to build.
///
/// # Errors
/// A tool can't be had, or the build fails.
pub(crate) fn everything() -> Result<()> {
    build::ebpf(setup::ensure(Need::Run)?)?;
    build::host()
}

fn as_root(program: &Path, purpose: &str) -> Result<Command> {
    Privilege::detect().command(program, &passed_environment(), purpose)
}

/// Replaces this process, so that signals and the exit code go straight through.
fn become_it(command: &mut Command) -> Result<()> {
    let error = command.exec();
    Err(error).with_context(|| format!("start {}", command.get_program().to_string_lossy()))
}
