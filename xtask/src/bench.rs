//! Measuring: Kanmon beside what does the same work.

use std::ffi::OsString;

use anyhow::Result;

use crate::build;
use crate::privilege::{Privilege, passed_environment};
use crate::run;
use crate::setup::{Need, kubernetes};
use crate::workspace;

/// The benchmark that runs Kubernetes' own programs.
const WITH_CLUSTERS: &str = "control-plane";

/// Builds everything, gets what Kanmon is compared to, and becomes the benchmark.
///
/// # Errors
/// Something can't be built or had, or there is no way to root. Returns only then.
pub(crate) fn run(args: &[OsString]) -> Result<()> {
    run::everything(Need::Bench)?;
    let bench = workspace::target_dir().join(build::RELEASE).join("kanmon-bench");
    let purpose = "the benchmark (it makes network namespaces)";
    let mut environment = passed_environment();
    if args.first().is_some_and(|name| name == WITH_CLUSTERS) {
        environment.push(kubernetes::environment("the benchmark of the control plane")?);
    }
    let mut command = Privilege::detect().command(&bench, &environment, purpose)?;
    run::become_it(command.args(args))
}
