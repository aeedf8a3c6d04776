//! Which suites there are: built by cargo, named after their crate or their file.

use std::collections::BTreeMap;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::build::SUITES;
use crate::progress::SignOfLife;
use crate::workspace;

/// The suite of the model checker's tests; those files are named `loom*.rs`.
pub(crate) const LOOM: &str = "loom";
/// How many tests of a suite run at once, where it is not the harness's own choice. Tests with namespaces
/// and load of their own disturb each other's timing long before they fill the machine.
const THREADS_OF_NAMESPACE_SUITES: usize = 2;
/// Suites that measure or race on all processors, and so run one test after the other. Those with clusters do too.
const SERIAL: [&str; 2] = ["races", "restart"];
/// How the names of suites begin that run whole Kubernetes clusters.
const KUBE: &str = "kube";

/// A suite: one or more test executables.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SuiteBinaries {
    /// Its name.
    pub(crate) name: String,
    /// What to run.
    pub(crate) binaries: Vec<Binary>,
}

impl SuiteBinaries {
    /// Whether its tests run clusters, and so wait for leases, probes and API servers most of the time.
    pub(crate) fn mostly_waits(&self) -> bool {
        self.binaries.iter().all(|binary| binary.needs_kubernetes)
    }
}

/// One test executable.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Binary {
    /// The file.
    pub(crate) executable: PathBuf,
    /// Its package's directory, which it runs in.
    pub(crate) package_dir: PathBuf,
    /// Whether it makes namespaces and so needs root.
    pub(crate) needs_root: bool,
    /// Whether it runs Kubernetes' binaries, which it finds through its environment.
    pub(crate) needs_kubernetes: bool,
    /// `--test-threads`, or the harness's choice.
    pub(crate) threads: Option<usize>,
}

/// Builds every test and finds the suites, in the order of their names.
///
/// # Errors
/// The build fails.
pub(crate) fn build() -> Result<Vec<SuiteBinaries>> {
    let mut cargo = workspace::cargo();
    let mut artifacts = artifacts(cargo.args(["test", "--profile", SUITES, "--lib", "--bins", "--tests"]))?;
    let loom = loom_targets()?;
    if !loom.is_empty() {
        let mut cargo = workspace::cargo();
        cargo.args(["test", "--profile", SUITES, "--package", "lb-common"]);
        cargo.args(loom.iter().flat_map(|name| ["--test", name.as_str()]));
        cargo.arg("--target-dir").arg(workspace::target_dir().join("loom"));
        artifacts.extend(self::artifacts(cargo.env("RUSTFLAGS", "--cfg loom"))?);
    }
    Ok(group(&artifacts))
}

/// The integration tests of lb-common that are for the model checker.
fn loom_targets() -> Result<Vec<String>> {
    let directory = workspace::root().join("lb-common/tests");
    let Ok(entries) = directory.read_dir() else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("list {}", directory.display()))?.path();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if stem.starts_with(LOOM) && path.extension().is_some_and(|extension| extension == "rs") {
            names.push(stem);
        }
    }
    names.sort();
    Ok(names)
}

/// What cargo says about something it built.
#[derive(Debug, Deserialize)]
struct Artifact {
    target: Target,
    manifest_path: PathBuf,
    executable: Option<PathBuf>,
    profile: Profile,
}

#[derive(Debug, Deserialize)]
struct Target {
    kind: Vec<String>,
    name: String,
}

#[derive(Debug, Deserialize)]
struct Profile {
    test: bool,
}

/// One line of cargo's messages: the reason, and where it is an artifact, that.
#[derive(Debug, Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
enum Message {
    CompilerArtifact(Artifact),
    #[serde(other)]
    Other,
}

fn artifacts(cargo: &mut Command) -> Result<Vec<Artifact>> {
    cargo.args(["--no-run", "--message-format=json-render-diagnostics"]).stdout(Stdio::piped());
    let _sign = SignOfLife::of("the build of the tests");
    let mut child = cargo.spawn().context("start cargo to build the tests")?;
    let mut messages = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_to_string(&mut messages).context("read cargo's messages")?;
    }
    let status = child.wait().context("wait for cargo")?;
    if !status.success() {
        bail!("the tests do not build ({status})");
    }
    messages.lines().filter(|line| line.starts_with('{')).try_fold(Vec::new(), |mut found, line| {
        match serde_json::from_str(line).with_context(|| format!("read cargo's message {line}"))? {
            Message::CompilerArtifact(artifact) if artifact.profile.test => found.push(artifact),
            _ => {}
        }
        Ok(found)
    })
}

/// Groups test executables into suites: unit tests by package, integration tests by file.
fn group(artifacts: &[Artifact]) -> Vec<SuiteBinaries> {
    let mut suites: BTreeMap<String, Vec<Binary>> = BTreeMap::new();
    for artifact in artifacts {
        let Some(executable) = artifact.executable.clone() else { continue };
        let package_dir = artifact.manifest_path.parent().unwrap_or(Path::new(".")).to_path_buf();
        let package = package_dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let integration = artifact.target.kind.iter().any(|kind| kind == "test");
        let name = match integration {
            false => package.clone(),
            true if package == "lb-common" && artifact.target.name.starts_with(LOOM) => LOOM.to_owned(),
            true => artifact.target.name.clone(),
        };
        // The agent's own integration tests load programs and make namespaces too.
        let needs_root = package == "tests" || (integration && package == "lb-userspace");
        let needs_kubernetes = integration && package == "tests" && name.starts_with(KUBE);
        let threads = match needs_kubernetes || SERIAL.contains(&name.as_str()) {
            true => Some(1),
            false => needs_root.then_some(THREADS_OF_NAMESPACE_SUITES),
        };
        let binary = Binary { executable, package_dir, needs_root, needs_kubernetes, threads };
        suites.entry(name).or_default().push(binary);
    }
    suites.into_iter().map(|(name, binaries)| SuiteBinaries { name, binaries }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifact(package: &str, kind: &str, name: &str) -> Artifact {
        let line = format!(
            r#"{{"reason":"compiler-artifact","package_id":"x","manifest_path":"/w/{package}/Cargo.toml",
                "target":{{"kind":["{kind}"],"crate_types":["bin"],"name":"{name}","src_path":"/x"}},
                "profile":{{"opt_level":"3","test":true}},"features":[],"filenames":[],
                "executable":"/t/{package}-{name}","fresh":true}}"#
        );
        match serde_json::from_str(&line).unwrap() {
            Message::CompilerArtifact(artifact) => artifact,
            Message::Other => panic!("{line} is an artifact"),
        }
    }

    #[test]
    fn unit_tests_go_by_crate_and_integration_tests_by_file() {
        let suites = group(&[
            artifact("lb-userspace", "lib", "lb_userspace"),
            artifact("lb-userspace", "bin", "kanmon"),
            artifact("tests", "test", "traffic"),
            artifact("lb-common", "test", "loom_flows"),
            artifact("lb-common", "test", "loom_ports"),
            artifact("tests", "test", "races"),
        ]);
        let shape: Vec<_> =
            suites.iter().map(|s| (s.name.as_str(), s.binaries.len(), s.binaries[0].threads)).collect();
        assert_eq!(
            shape,
            [("lb-userspace", 2, None), ("loom", 2, None), ("races", 1, Some(1)), ("traffic", 1, Some(2)),]
        );
    }

    #[test]
    fn whatever_makes_namespaces_runs_as_root_and_nothing_else_does() {
        let needs_root =
            |package, kind, name| group(&[artifact(package, kind, name)])[0].binaries[0].needs_root;
        assert!(needs_root("tests", "test", "traffic") && needs_root("tests", "lib", "tests"));
        assert!(needs_root("lb-userspace", "test", "kernel"));
        assert!(
            !needs_root("lb-userspace", "lib", "lb_userspace")
                && !needs_root("lb-common", "test", "datapath")
        );
    }

    #[test]
    fn suites_with_clusters_run_one_test_after_the_other() {
        let suites = group(&[
            artifact("tests", "test", "kube"),
            artifact("tests", "test", "kube-merge"),
            artifact("tests", "lib", "tests"),
            artifact("lb-userspace", "test", "kubeconfig"),
        ]);
        let shape: Vec<_> = suites
            .iter()
            .map(|s| (s.name.as_str(), s.binaries[0].needs_kubernetes, s.binaries[0].threads))
            .collect();
        assert_eq!(
            shape,
            [
                ("kube", true, Some(1)),
                ("kube-merge", true, Some(1)),
                ("kubeconfig", false, Some(2)),
                ("tests", false, Some(2)),
            ]
        );
    }

    #[test]
    fn other_messages_of_cargo_are_no_artifacts() {
        let message: Message = serde_json::from_str(r#"{"reason":"build-finished","success":true}"#).unwrap();
        assert!(matches!(message, Message::Other));
    }
}
