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

/// Patience with another apt at work.
const PATIENTLY: [&str; 3] = ["-o", "DPkg::Lock::Timeout=120", "--quiet"];
const INSTALL: [&str; 3] = ["install", "--yes", "--no-install-recommends"];

/// Installs the package `$1` by the command behind it, and keeps the service of the same name from starting, now and
/// at boot. Debian asks policy-rc.d before it starts a service; one that is there already has its own opinion.
const WITHOUT_SERVICE: &str = r#"
service=$1
shift
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' > "$policy" && chmod 755 "$policy" || exit
fi
"$@" && update-rc.d "$service" disable
"#;

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
        let services: Vec<&String> = missing
            .iter()
            .filter_map(|item| match &item.fix {
                Fix::Service(package) => Some(package),
                _ => None,
            })
            .collect();
        let nightly = missing.iter().any(|item| item.fix == Fix::Nightly);
        let components: Vec<&String> = missing
            .iter()
            .flat_map(|item| match &item.fix {
                Fix::Components(names) => names.as_slice(),
                _ => &[],
            })
            .collect();
        let linker = route.filter(|_| missing.iter().any(|item| matches!(item.fix, Fix::Linker(_))));

        let steps =
            [!packages.is_empty(), !services.is_empty(), linker.is_some(), nightly, !components.is_empty()];
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
        for package in services {
            let step = next(&format!("package without its service: {package}"));
            self.without_service(package, &step)?;
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
        self.update(&apt, step)?;
        let mut install = self.as_root(&apt)?;
        install.args(PATIENTLY).args(INSTALL).args(packages);
        step.run(&mut install, "apt-get install")
    }

    fn without_service(&mut self, package: &str, step: &Step) -> Result<()> {
        let Some(apt) = find_program("apt-get") else {
            bail!("there is no apt-get: install what provides {package} here");
        };
        self.update(&apt, step)?;
        let mut install = self.as_root(Path::new("/bin/sh"))?;
        install.args(["-c", WITHOUT_SERVICE, "sh", package]);
        install.arg(&apt).args(PATIENTLY).args(INSTALL).arg(package);
        step.run(&mut install, "apt-get install")
    }

    fn update(&mut self, apt: &Path, step: &Step) -> Result<()> {
        self.privilege.prepare("apt-get")?;
        if !self.lists_are_fresh {
            step.run(self.as_root(apt)?.args(PATIENTLY).arg("update"), "apt-get update")?;
            self.lists_are_fresh = true;
        }
        Ok(())
    }

    fn as_root(&self, program: &Path) -> Result<Command> {
        let environment = [("DEBIAN_FRONTEND".into(), "noninteractive".into())];
        self.privilege.command(program, &environment, "apt-get")
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
