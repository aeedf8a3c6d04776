//! Where the binaries are: the user's directory, ours, or one of links that holds the union.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::build::{self, BINARIES, Module};
use crate::workspace;

/// Names a directory that holds Kubernetes' binaries: read from the user, and set for what we start. It is the variable
/// that Kubernetes' own test tools use.
pub(crate) const ASSETS_VARIABLE: &str = "KUBEBUILDER_ASSETS";

/// The directories that binaries come from.
pub(super) struct Assets {
    /// What the user's variable names.
    given: Option<PathBuf>,
    /// What we build into.
    built: PathBuf,
}

impl Assets {
    /// What is meant on this machine, for this module.
    pub(super) fn look(module: &Module) -> Self {
        let given = std::env::var_os(ASSETS_VARIABLE).filter(|value| !value.is_empty());
        Self::between(given.map(|value| workspace::root().join(value)), module.directory())
    }

    fn between(given: Option<PathBuf>, built: PathBuf) -> Self {
        Self { given, built }
    }

    /// The binaries that are in neither directory, in the order to build them.
    pub(super) fn lacking(&self) -> Vec<&'static str> {
        BINARIES.iter().map(|binary| binary.name).filter(|name| self.find(name).is_none()).collect()
    }

    /// Where they are, for a person; ours are of `version`, the user's of whatever version the user wanted.
    pub(super) fn describe(&self, version: &str) -> String {
        let built = format!("{version}, {}", self.built.display());
        match &self.given {
            None => built,
            Some(given) if self.is_complete(given) => format!("{} ({ASSETS_VARIABLE})", given.display()),
            Some(given) => format!("{} ({ASSETS_VARIABLE}), the rest: {built}", given.display()),
        }
    }

    /// The one directory that holds all binaries; made of links where they are in two.
    ///
    /// # Errors
    /// The links can't be written, or a binary is nowhere.
    pub(super) fn directory(&self) -> Result<PathBuf> {
        match &self.given {
            None => Ok(self.built.clone()),
            Some(given) if self.is_complete(given) => Ok(given.clone()),
            Some(given) => {
                let key = build::key([
                    given.as_os_str().as_encoded_bytes(),
                    self.built.as_os_str().as_encoded_bytes(),
                ]);
                let union = self.built.with_file_name(format!("kubernetes-assets-{key}"));
                self.link_into(&union)?;
                Ok(union)
            }
        }
    }

    fn link_into(&self, union: &Path) -> Result<()> {
        fs::create_dir_all(union).with_context(|| format!("make {}", union.display()))?;
        for binary in &BINARIES {
            let target = self.find(binary.name).with_context(|| format!("{} is nowhere", binary.name))?;
            let link = union.join(binary.name);
            if fs::read_link(&link).is_ok_and(|old| old == target) {
                continue;
            }
            // Renamed into place: a run at the same time finds the old link or the new.
            let fresh = union.join(format!(".{}.{}.new", binary.name, std::process::id()));
            symlink(&target, &fresh).with_context(|| format!("link {}", fresh.display()))?;
            fs::rename(&fresh, &link).with_context(|| format!("replace {}", link.display()))?;
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Option<PathBuf> {
        let directories = self.given.iter().chain([&self.built]);
        directories.map(|directory| directory.join(name)).find(|path| workspace::is_executable(path))
    }

    fn is_complete(&self, directory: &Path) -> bool {
        BINARIES.iter().all(|binary| workspace::is_executable(&directory.join(binary.name)))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A directory of this test's own, removed at its end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(test: &str) -> Self {
            let path = std::env::temp_dir().join(format!("kanmon-xtask-{test}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn with(&self, directory: &str, names: &[&str]) -> PathBuf {
            let directory = self.0.join(directory);
            fs::create_dir_all(&directory).unwrap();
            for name in names {
                let path = directory.join(name);
                fs::write(&path, "").unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            }
            directory
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const ALL: [&str; 6] =
        ["etcd", "kube-apiserver", "kubectl", "kube-controller-manager", "kube-scheduler", "kube-proxy"];

    #[test]
    fn without_the_variable_everything_is_built() {
        let scratch = Scratch::new("all");
        let assets = Assets::between(None, scratch.with("built", &[]));
        assert_eq!(assets.lacking(), ALL);
    }

    #[test]
    fn only_what_the_users_directory_lacks_is_built_and_links_hold_the_union() {
        let scratch = Scratch::new("union");
        let given = scratch.with("given", &["etcd", "kube-apiserver", "kubectl"]);
        let built = scratch.with("built", &["kube-scheduler"]);
        let assets = Assets::between(Some(given.clone()), built.clone());
        assert_eq!(assets.lacking(), ["kube-controller-manager", "kube-proxy"]);
        assert!(assets.directory().is_err());

        scratch.with("built", &["etcd", "kube-controller-manager", "kube-proxy"]);
        assert!(assets.lacking().is_empty());
        // Twice: the second run finds the links of the first.
        for _ in 0..2 {
            let union = assets.directory().unwrap();
            assert_eq!(fs::read_dir(&union).unwrap().count(), ALL.len());
            assert_eq!(fs::read_link(union.join("etcd")).unwrap(), given.join("etcd"));
            assert_eq!(fs::read_link(union.join("kube-proxy")).unwrap(), built.join("kube-proxy"));
        }
    }

    #[test]
    fn a_binary_that_moved_gets_a_new_link() {
        let scratch = Scratch::new("moved");
        let given = scratch.with("given", &["etcd"]);
        let built = scratch.with("built", &ALL);
        let assets = Assets::between(Some(given.clone()), built.clone());
        let union = assets.directory().unwrap();
        fs::remove_file(given.join("etcd")).unwrap();
        assert_eq!(fs::read_link(assets.directory().unwrap().join("etcd")).unwrap(), built.join("etcd"));
        assert_eq!(fs::read_dir(union).unwrap().count(), ALL.len());
    }

    #[test]
    fn a_complete_directory_of_the_user_is_used_as_it_is() {
        let scratch = Scratch::new("complete");
        let given = scratch.with("given", &ALL);
        let assets = Assets::between(Some(given.clone()), scratch.0.join("built"));
        assert!(assets.lacking().is_empty());
        assert_eq!(assets.directory().unwrap(), given);
    }
}
