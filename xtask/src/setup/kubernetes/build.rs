//! The Go module in tests/kube, and building its tools.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::progress::Step;
use crate::workspace;

/// A binary of the test bed.
pub(super) struct Binary {
    /// What it is called in the directory of binaries.
    pub(super) name: &'static str,
    /// The Go package that it is built from.
    package: &'static str,
}

/// All of them. The API server compiles most of what the others share, so it comes early.
pub(super) const BINARIES: [Binary; 6] = [
    Binary { name: "etcd", package: "go.etcd.io/etcd/server/v3" },
    Binary { name: "kube-apiserver", package: "k8s.io/kubernetes/cmd/kube-apiserver" },
    Binary { name: "kubectl", package: "k8s.io/kubernetes/cmd/kubectl" },
    Binary { name: "kube-controller-manager", package: "k8s.io/kubernetes/cmd/kube-controller-manager" },
    Binary { name: "kube-scheduler", package: "k8s.io/kubernetes/cmd/kube-scheduler" },
    Binary { name: "kube-proxy", package: "k8s.io/kubernetes/cmd/kube-proxy" },
];

/// The packages whose variables hold the version: of the binaries, and of the clients in them.
const VERSION_PACKAGES: [&str; 2] = ["k8s.io/client-go/pkg/version", "k8s.io/component-base/version"];

/// The Go module, as far as building it depends on it.
pub(super) struct Module {
    version: String,
    go_line: String,
    directory: PathBuf,
}

impl Module {
    /// Reads go.mod and go.sum.
    ///
    /// # Errors
    /// They can't be read, or don't say which Go and which Kubernetes they want.
    pub(super) fn read() -> Result<Self> {
        let go_mod = read("go.mod")?;
        let go_line = second_word(&go_mod, "go").context("tests/kube/go.mod has no `go` line")?;
        let version = second_word(&go_mod, "k8s.io/kubernetes")
            .context("tests/kube/go.mod does not require k8s.io/kubernetes")?;
        let key = key([go_mod.as_bytes(), read("go.sum")?.as_bytes(), linker_flags(&version).as_bytes()]);
        let arch = std::env::consts::ARCH;
        let directory = workspace::user_cache().join(format!("kubernetes-{version}-{key}-{arch}"));
        Ok(Self { version, go_line, directory })
    }

    /// The version of Kubernetes, such as `v1.36.3`.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// The oldest Go that builds it, such as `1.26.0`.
    pub(super) fn go_line(&self) -> &str {
        &self.go_line
    }

    /// Where the binaries of this very module are kept.
    pub(super) fn directory(&self) -> PathBuf {
        self.directory.clone()
    }

    /// Builds `names`, one after another; what is built stays where a later one fails or is interrupted.
    ///
    /// # Errors
    /// The Go compiler fails, or the cache can't be written.
    pub(super) fn build(&self, go: &Path, names: &[&str]) -> Result<()> {
        fs::create_dir_all(&self.directory).with_context(|| format!("make {}", self.directory.display()))?;
        self.remove_unfinished()?;
        let wanted = BINARIES.iter().filter(|binary| names.contains(&binary.name));
        for (index, binary) in wanted.enumerate() {
            let step = Step::start(
                index + 1,
                names.len(),
                &format!("{} for Kubernetes {}", binary.name, self.version),
            );
            self.build_one(go, binary, &step)?;
            step.finish("built");
        }
        Ok(())
    }

    fn build_one(&self, go: &Path, binary: &Binary, step: &Step) -> Result<()> {
        // Renamed into place: who finds the name finds a whole binary.
        let fresh = self.directory.join(format!(".{}.new", binary.name));
        let mut command = Command::new(go);
        command.args([
            "build",
            "-v",
            "-trimpath",
            "-buildvcs=false",
            "-ldflags",
            &linker_flags(&self.version),
            "-o",
        ]);
        command.arg(&fresh).arg(binary.package).current_dir(module_dir());
        // Reproducible: the pinned versions, the Go that we chose, no C compiler.
        command.env("GOFLAGS", "-mod=readonly").env("GOTOOLCHAIN", "local").env("CGO_ENABLED", "0");
        // Whatever these are set to for other work, the binaries are for this machine and this module.
        for name in ["GOOS", "GOARCH", "GO111MODULE", "GOROOT", "GOEXPERIMENT"] {
            command.env_remove(name);
        }
        step.run(command.env("GOWORK", "off"), &format!("go build {}", binary.package))?;
        let place = self.directory.join(binary.name);
        fs::rename(&fresh, &place).with_context(|| format!("put {} in its place", place.display()))
    }

    /// Removes what an interrupted build left.
    fn remove_unfinished(&self) -> Result<()> {
        let directory = &self.directory;
        for entry in directory.read_dir().with_context(|| format!("list {}", directory.display()))? {
            let path = entry.with_context(|| format!("list {}", directory.display()))?.path();
            if path.extension().is_some_and(|extension| extension == "new") {
                fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
            }
        }
        Ok(())
    }
}

/// A short name for what these parts hold together.
pub(super) fn key<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    parts.into_iter().for_each(|part| hash.update(part));
    hex(&hash.finalize()[..8])
}

/// Lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// No debug information, and the version: without it the binaries call themselves v0.0.0, and clients complain.
fn linker_flags(version: &str) -> String {
    let mut numbers = version.trim_start_matches('v').split('.');
    let major = numbers.next().unwrap_or_default();
    let minor = numbers.next().unwrap_or_default();
    let mut flags = "-s -w".to_owned();
    for package in VERSION_PACKAGES {
        let values =
            [("gitVersion", version), ("gitMajor", major), ("gitMinor", minor), ("gitTreeState", "clean")];
        for (name, value) in values {
            flags.push_str(&format!(" -X {package}.{name}={value}"));
        }
    }
    flags
}

fn module_dir() -> PathBuf {
    workspace::root().join("tests/kube")
}

fn read(name: &str) -> Result<String> {
    let path = module_dir().join(name);
    fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

/// The word behind `first` on the line that starts with it.
fn second_word(text: &str, first: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(first)).then(|| words.next().map(str::to_owned)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_binary_is_a_tool_of_the_module() {
        let go_mod = read("go.mod").unwrap();
        let tools = go_mod.split_once("tool (").unwrap().1.split_once(')').unwrap().0;
        let mut tools: Vec<_> = tools.split_whitespace().collect();
        let mut packages: Vec<_> = BINARIES.iter().map(|binary| binary.package).collect();
        tools.sort_unstable();
        packages.sort_unstable();
        assert_eq!(tools, packages);
    }

    #[test]
    fn the_version_comes_from_go_mod() {
        let module = Module::read().unwrap();
        assert!(module.version().starts_with("v1."), "{}", module.version());
        assert!(module.go_line().starts_with("1."), "{}", module.go_line());
        let flags = linker_flags("v1.36.3");
        assert!(flags.contains("-X k8s.io/component-base/version.gitVersion=v1.36.3 "), "{flags}");
        assert!(flags.contains("-X k8s.io/component-base/version.gitMinor=36 "), "{flags}");
    }

    #[test]
    fn another_flag_is_another_key() {
        let key_of = |flags: &str| key([b"module".as_slice(), flags.as_bytes()]);
        assert_eq!(key_of("-s"), key_of("-s"));
        assert_ne!(key_of("-s"), key_of("-w"));
        assert_eq!(key_of("-s").len(), 16);
    }
}
