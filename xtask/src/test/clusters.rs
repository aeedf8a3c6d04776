//! What suites with clusters get to run: Kubernetes' binaries, or the reason why they can't run.

use std::ffi::OsString;
use std::path::PathBuf;

use super::report::Scenario;
use crate::setup::kubernetes::{self, ASSETS_VARIABLE, Provided};

/// Kubernetes' binaries, as far as the chosen tests want them.
#[derive(Debug)]
pub(super) enum Clusters {
    /// No chosen test wants them.
    Unwanted,
    /// They are in this directory.
    Ready(PathBuf),
    /// There is no Go to build them with: these tests are skipped, for this reason.
    Unavailable(String),
    /// They don't build: these tests fail, for this reason.
    Broken(String),
}

impl Clusters {
    /// Builds what is missing.
    pub(super) fn provide() -> Self {
        match kubernetes::provide() {
            Ok(Provided::Ready(directory)) => Self::Ready(directory),
            Ok(Provided::NoGo(why)) => Self::Unavailable(why),
            Err(error) => Self::Broken(format!("{error:#}")),
        }
    }

    /// What test `name` comes to without being run, where it can't be.
    pub(super) fn instead_of(&self, name: &str, skips_allowed: bool) -> Option<Scenario> {
        match self {
            Self::Unwanted | Self::Ready(_) => None,
            Self::Unavailable(why) => Some(Scenario::skipped(name, why, skips_allowed)),
            Self::Broken(why) => {
                Some(Scenario::failed(name, &format!("Kubernetes' binaries are not here: {why}")))
            }
        }
    }

    /// What the tests see in their environment.
    pub(super) fn environment(&self) -> Option<(OsString, OsString)> {
        match self {
            Self::Ready(directory) => Some((ASSETS_VARIABLE.into(), directory.into())),
            Self::Unwanted | Self::Unavailable(_) | Self::Broken(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_go_tests_are_skipped_by_name_and_in_ci_they_fail() {
        let clusters = Clusters::Unavailable("there is no Go in PATH".into());
        let local = clusters.instead_of("merge", true).unwrap();
        assert!(local.ok && local.name == "merge");
        assert_eq!(local.skipped.as_deref(), Some("there is no Go in PATH"));
        let in_ci = clusters.instead_of("merge", false).unwrap();
        assert!(!in_ci.ok && in_ci.output.unwrap().contains("there is no Go in PATH"));
    }

    #[test]
    fn a_build_that_fails_fails_the_tests_everywhere() {
        let clusters = Clusters::Broken("go build failed".into());
        assert!([true, false].iter().all(|&allowed| !clusters.instead_of("merge", allowed).unwrap().ok));
    }

    #[test]
    fn tests_find_the_binaries_through_their_environment() {
        let clusters = Clusters::Ready("/cache/kubernetes".into());
        assert!(clusters.instead_of("merge", true).is_none());
        assert_eq!(clusters.environment(), Some(("KUBEBUILDER_ASSETS".into(), "/cache/kubernetes".into())));
    }
}
