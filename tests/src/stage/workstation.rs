//! Where a person sits: a shell with every cluster in one kubeconfig, in the client's namespace.

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    kube::{KubeBed, KubeCluster, assets},
    netns::{Netns, RunDir},
    topology::program,
};

/// A directory and an environment for commands.
#[derive(Debug)]
pub struct Workstation {
    ns: Netns,
    /// The working directory, with the manifests.
    dir: PathBuf,
    kubeconfig: PathBuf,
    /// Where Kubernetes' programs are, and ours.
    programs: OsString,
    run: Arc<RunDir>,
}

impl Workstation {
    pub(super) fn create(bed: &KubeBed) -> Result<Workstation> {
        let run = bed.bed().run().clone();
        let dir = run.path().join("workstation");
        fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        // A person would be logged in at the gateway: a short path is what is left of that.
        symlink(bed.bed().socket(), dir.join("gateway.sock"))?;
        let kubeconfig = dir.join("kubeconfig");
        fs::write(&kubeconfig, merged(bed.clusters())?)?;
        let own = program("kanmon")?.parent().map(Path::to_owned);
        let programs = env::join_paths([assets()?].into_iter().chain(own))
            .context("a directory of programs has a colon in its name")?;
        Ok(Workstation { ns: bed.bed().client_ns().clone(), dir, kubeconfig, programs, run })
    }

    /// Runs a line of shell and returns what it printed.
    ///
    /// # Errors
    /// When one of its commands fails, with what they said.
    pub fn run(&self, line: &str) -> Result<String> {
        let mut shell = self.ns.command("bash");
        shell.args(["-euo", "pipefail", "-c", line]).current_dir(&self.dir).env_clear();
        let mut path = self.programs.clone();
        if let Some(machine) = env::var_os("PATH") {
            path.push(":");
            path.push(machine);
        }
        shell.env("PATH", path).env("HOME", &self.dir).env("KUBECONFIG", &self.kubeconfig);
        let output = self.run.output(shell, "").context("cannot run bash")?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success(),
            "`{line}` failed ({}): {}{said}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(said.into_owned())
    }

    /// Writes a file there.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.dir.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Its environment as a line of shell, for a person who wants to go on by hand.
    pub fn enter(&self) -> String {
        format!(
            "cd {} && export KUBECONFIG={} PATH={}:$PATH",
            self.dir.display(),
            self.kubeconfig.display(),
            self.programs.display()
        )
    }
}

/// One kubeconfig of all administrators', whose contexts and users have the names of the clusters.
fn merged(clusters: &[KubeCluster]) -> Result<String> {
    let mut all = json!({"apiVersion": "v1", "kind": "Config", "clusters": [], "users": [], "contexts": []});
    for cluster in clusters {
        let path = cluster.kubeconfig();
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut one: Value = serde_json::from_str(&text)?;
        one["users"][0]["name"] = json!(cluster.name());
        one["contexts"][0]["context"]["user"] = json!(cluster.name());
        for list in ["clusters", "users", "contexts"] {
            let entries = all[list].as_array_mut().context("the lists are lists")?;
            entries.push(one[list][0].take());
        }
    }
    Ok(format!("{all:#}\n"))
}
