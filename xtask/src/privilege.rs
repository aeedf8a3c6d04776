//! Root, or the way there: `sudo` for the parts that need it, and only for those.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace::{find_program, search_path};

/// What this user can do about privileged work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Privilege {
    /// We are root.
    Root,
    /// `sudo` is there.
    Sudo,
    /// Neither.
    None,
}

impl Privilege {
    /// Looks at the effective user and at `PATH`.
    pub(crate) fn detect() -> Self {
        if nix::unistd::geteuid().is_root() {
            Self::Root
        } else if find_program("sudo").is_some() {
            Self::Sudo
        } else {
            Self::None
        }
    }

    /// Lets `sudo` ask for the password, where it asks at all, before its prompt would be out of sight.
    ///
    /// # Errors
    /// sudo refuses.
    pub(crate) fn prepare(self, purpose: &str) -> Result<()> {
        if self == Self::Sudo {
            let status = Command::new("sudo").arg("--validate").status().context("start sudo")?;
            if !status.success() {
                bail!(
                    "sudo refuses ({status}), and {purpose} needs root: allow this user sudo, or run it as root"
                );
            }
        }
        Ok(())
    }

    /// A command that runs `program` as root, with the given environment on top.
    ///
    /// `sudo` empties the environment, so what the program needs goes through `env`.
    ///
    /// # Errors
    /// There is neither root nor sudo; the message says what wanted them.
    pub(crate) fn command(
        self,
        program: &Path,
        environment: &[(OsString, OsString)],
        purpose: &str,
    ) -> Result<Command> {
        match self {
            Self::Root => {
                let mut command = Command::new(program);
                command.envs(environment.iter().map(|(name, value)| (name, value)));
                Ok(command)
            }
            Self::Sudo => {
                let mut command = Command::new("sudo");
                command.arg("--").arg("env");
                for (name, value) in environment {
                    let mut assignment = name.clone();
                    assignment.push("=");
                    assignment.push(value);
                    command.arg(assignment);
                }
                command.arg(program);
                Ok(command)
            }
            Self::None => bail!(
                "{purpose} needs root, and there is neither root nor sudo here: run it as root, or install sudo"
            ),
        }
    }
}

/// The part of our environment that a program run through `sudo` should still see.
///
/// Its `PATH` has the directories for system tools as well: a normal user's often lacks them, and root's programs
/// look for `bpftool` and `ip` there.
pub(crate) fn passed_environment() -> Vec<(OsString, OsString)> {
    let own = std::env::vars_os().filter(|(name, _)| is_passed(&name.to_string_lossy()));
    own.chain([("PATH".into(), search_path())]).collect()
}

fn is_passed(name: &str) -> bool {
    name.starts_with("KANMON_")
        || name.starts_with("PROPTEST_")
        || name.starts_with("LOOM_")
        || matches!(name, "RUST_LOG" | "RUST_BACKTRACE" | "CI" | "TERM" | "NO_COLOR" | "COLUMNS")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_runs_the_program_itself() {
        let command = Privilege::Root.command(Path::new("/bin/true"), &[], "a test").unwrap();
        assert_eq!(command.get_program(), "/bin/true");
    }

    #[test]
    fn sudo_gets_the_environment_as_arguments() {
        let environment = [("KANMON_X".into(), "1".into())];
        let command = Privilege::Sudo.command(Path::new("/bin/true"), &environment, "a test").unwrap();
        assert_eq!(command.get_program(), "sudo");
        let args: Vec<_> = command.get_args().collect();
        assert_eq!(args, ["--", "env", "KANMON_X=1", "/bin/true"]);
    }

    #[test]
    fn no_way_to_root_names_what_wanted_it() {
        let error = Privilege::None.command(Path::new("/bin/true"), &[], "the demo").unwrap_err();
        assert!(error.to_string().starts_with("the demo needs root"), "{error}");
    }

    #[test]
    fn programs_run_as_root_find_the_system_tools() {
        let environment = passed_environment();
        let paths: Vec<_> = environment.iter().filter(|(name, _)| name == "PATH").collect();
        assert_eq!(paths.len(), 1, "{paths:?}");
        assert!(std::env::split_paths(&paths[0].1).any(|dir| dir == Path::new("/usr/sbin")), "{paths:?}");
    }

    #[test]
    fn secrets_do_not_travel_through_sudo() {
        assert!(is_passed("KANMON_TEST_LONG"));
        assert!(is_passed("CI"));
        assert!(!is_passed("AWS_SECRET_ACCESS_KEY"));
    }
}
