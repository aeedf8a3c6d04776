//! Getting what is missing: packages in one go, then rustup's parts, then bpf-linker.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::item::{Fix, Item};
use super::linker;
use super::route::Route;
use crate::privilege::Privilege;
use crate::progress::Step;
use crate::workspace::{self, find_program};

/// Installs, and remembers what it did already.
pub(crate) struct Installer {
    privilege: Privilege,
    lists_are_fresh: bool,
    worked: bool,
}

impl Installer {
    /// An installer that has done nothing yet.
    pub(crate) fn new(privilege: Privilege) -> Self {
        Self { privilege, lists_are_fresh: false, worked: false }
    }

    /// Whether anything was installed.
    pub(crate) fn worked(&self) -> bool {
        self.worked
    }

    /// Gets these missing items (of `route`, or common to all routes); what nobody can get by program is left for the caller's
    /// report.
    ///
    /// # Errors
    /// An installer fails, or needs root and there is no way to it.
    pub(crate) fn get(&mut self, route: Option<Route>, missing: &[Item]) -> Result<()> {
        let mut packages: Vec<String> = missing.iter().flat_map(packages_of).collect();
        packages.sort();
        packages.dedup();
        let nightly = missing.iter().any(|item| item.fix == Fix::Nightly);
        let components: Vec<&String> = missing
            .iter()
            .flat_map(|item| match &item.fix {
                Fix::Components(names) => names.as_slice(),
                _ => &[],
            })
            .collect();
        let linker = route.filter(|_| missing.iter().any(|item| matches!(item.fix, Fix::Linker(_))));

        let steps = [!packages.is_empty(), linker.is_some(), nightly, !components.is_empty()];
        let total = steps.iter().filter(|&&wanted| wanted).count();
        self.worked |= total > 0;
        let mut index = 0;
        let mut next = |title: &str| {
            index += 1;
            Step::start(index, total, title)
        };
        if !packages.is_empty() {
            let step = next(&format!("packages: {}", packages.join(" ")));
            self.packages(&packages, &step)?;
            step.finish("installed");
        }
        // Before nightly: where the release can't be reached, nothing large was fetched in vain.
        if let Some(route) = linker {
            let step = next(&format!("bpf-linker {}", linker::VERSION));
            self.linker(route, &step)?;
            step.finish("ready");
        }
        if nightly {
            let step = next("rustup's nightly with rust-src");
            let mut rustup = Command::new(rustup()?);
            rustup.args(["toolchain", "install", "nightly", "--no-self-update", "--profile", "minimal"]);
            step.run(rustup.args(["--component", "rust-src", "--component", "clippy"]), "rustup")?;
            step.finish("installed");
        }
        if !components.is_empty() {
            let step = next("rustup components");
            step.run(Command::new(rustup()?).args(["component", "add"]).args(components), "rustup")?;
            step.finish("installed");
        }
        Ok(())
    }

    fn linker(&mut self, route: Route, step: &Step) -> Result<()> {
        if route == Route::Rustup && find_program("zstd").is_none() && find_program("apt-get").is_some() {
            linker::reachable(step)?;
            self.packages(&["zstd".to_owned()], step)?;
        }
        linker::install(route, step)
    }

    fn packages(&mut self, packages: &[String], step: &Step) -> Result<()> {
        let Some(apt) = find_program("apt-get") else {
            bail!("there is no apt-get: install what provides {} here", packages.join(", "));
        };
        self.privilege.prepare("apt-get")?;
        if !self.lists_are_fresh {
            step.run(self.apt(&apt)?.arg("update"), "apt-get update")?;
            self.lists_are_fresh = true;
        }
        let mut install = self.apt(&apt)?;
        install.args(["install", "--yes", "--no-install-recommends"]).args(packages);
        step.run(&mut install, "apt-get install")
    }

    fn apt(&self, apt: &Path) -> Result<Command> {
        let environment = [("DEBIAN_FRONTEND".into(), "noninteractive".into())];
        let mut command = self.privilege.command(apt, &environment, "apt-get")?;
        // Patience with another apt at work.
        command.args(["-o", "DPkg::Lock::Timeout=120", "--quiet"]);
        Ok(command)
    }
}

fn packages_of(item: &Item) -> Vec<String> {
    match &item.fix {
        Fix::Packages(packages) | Fix::Linker(packages) => packages.clone(),
        _ => Vec::new(),
    }
}

fn rustup() -> Result<std::path::PathBuf> {
    workspace::find_program("rustup").context("rustup is not here: install it from https://rustup.rs")
}
