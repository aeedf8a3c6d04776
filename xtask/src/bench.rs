//! Measuring: Kanmon beside what does the same work.

use std::ffi::OsString;

use anyhow::Result;

use crate::build;
use crate::privilege::{Privilege, passed_environment};
use crate::run;
use crate::setup::Need;
use crate::workspace;

/// Builds everything, gets what Kanmon is compared to, and becomes the benchmark.
///
/// # Errors
/// Something can't be built or had, or there is no way to root. Returns only then.
pub(crate) fn run(args: &[OsString]) -> Result<()> {
    run::everything(Need::Bench)?;
    let bench = workspace::target_dir().join(build::RELEASE).join("kanmon-bench");
    let purpose = "the benchmark (it makes network namespaces)";
    let mut command = Privilege::detect().command(&bench, &passed_environment(), purpose)?;
    run::become_it(command.args(args))
}
