//! The manifests that the agent reads: what `examples/` holds, with EndpointSlices that follow the bed's
//! pods.

use std::{
    fmt::Write,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::plan::{POD_PORT, Pod};

/// The files of `examples/` that stay as they are.
const FIXED: [(&str, &str); 4] = [
    ("address-pool.yaml", include_str!("../../../examples/address-pool.yaml")),
    ("clusters.yaml", include_str!("../../../examples/clusters.yaml")),
    ("hangzhou/service.yaml", include_str!("../../../examples/hangzhou/service.yaml")),
    ("shanghai/service.yaml", include_str!("../../../examples/shanghai/service.yaml")),
];

/// What a cluster's EndpointSlices say of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Ready and serving.
    Ready,
    /// Its readiness probe fails.
    NotReady,
    /// It is being deleted and still serves what it has: `terminating`, `serving`, not ready.
    Terminating,
    /// It is not in the slices at all.
    Gone,
}

/// A pod and what its cluster says of it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The pod.
    pub pod: Pod,
    /// Its condition.
    pub condition: Condition,
}

/// A directory of manifests. Files appear whole: each is written beside its place and renamed.
#[derive(Debug)]
pub struct Manifests {
    dir: PathBuf,
}

impl Manifests {
    pub(super) fn create(dir: PathBuf) -> Result<Manifests> {
        let manifests = Manifests { dir };
        for (path, text) in FIXED {
            manifests.write(path, text)?;
        }
        Ok(manifests)
    }

    /// The directory: what `kanmon run --manifests` takes.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes a file, for example `hangzhou/service.yaml`.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.dir.join(path);
        let dir = path.parent().context("a manifest is a file in the manifest directory")?;
        let beside = path.with_extension("new");
        fs::create_dir_all(dir)
            .and_then(|()| fs::write(&beside, text))
            .and_then(|()| fs::rename(&beside, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When there is none.
    pub fn read(&self, path: &str) -> Result<String> {
        let path = self.dir.join(path);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Removes a file.
    ///
    /// # Errors
    /// When there is none.
    pub fn remove(&self, path: &str) -> Result<()> {
        let path = self.dir.join(path);
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    pub(super) fn write_slices(&self, cluster: &str, listed: &[Listed]) -> Result<()> {
        self.write(&format!("{cluster}/endpoints.yaml"), &slices(cluster, listed))
    }
}

/// A cluster's two EndpointSlices of `demo/httpbin`, one a family.
fn slices(cluster: &str, listed: &[Listed]) -> String {
    let v4 = slice(cluster, "IPv4", listed, |pod| pod.address.v4.into());
    let v6 = slice(cluster, "IPv6", listed, |pod| pod.address.v6.into());
    format!("{v4}---\n{v6}")
}

fn slice(cluster: &str, family: &str, listed: &[Listed], address: impl Fn(&Pod) -> IpAddr) -> String {
    let suffix = family.to_lowercase();
    let mut yaml = format!(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  namespace: demo
  name: httpbin-{suffix}
  labels:
    kubernetes.io/service-name: httpbin
addressType: {family}
ports:
  - {{name: http, protocol: TCP, port: {POD_PORT}}}
  - {{name: echo, protocol: UDP, port: {POD_PORT}}}
endpoints:"
    );
    let mut any = false;
    for Listed { pod, condition } in listed {
        let (ready, serving, terminating) = match condition {
            Condition::Ready => (true, true, false),
            Condition::NotReady => (false, false, false),
            Condition::Terminating => (false, true, true),
            Condition::Gone => continue,
        };
        any = true;
        let entry = format!(
            "
  - addresses: [\"{ip}\"]
    conditions: {{ready: {ready}, serving: {serving}, terminating: {terminating}}}
    nodeName: {cluster}
    zone: {zone}
    targetRef: {{kind: Pod, namespace: demo, name: {name}}}",
            ip = address(pod),
            zone = pod.zone,
            name = pod.name,
        );
        yaml.write_str(&entry).expect("a String takes what is written to it");
    }
    yaml + if any { "\n" } else { " []\n" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::plan::CLUSTERS;

    fn ready(number: u8) -> Listed {
        Listed { pod: Pod::planned(CLUSTERS[0], number), condition: Condition::Ready }
    }

    #[test]
    fn the_examples_are_what_the_demo_uses() {
        for plan in CLUSTERS {
            let path = format!("{}/../examples/{}/endpoints.yaml", env!("CARGO_MANIFEST_DIR"), plan.name);
            let listed: Vec<Listed> =
                (1..=3).map(|n| Listed { pod: Pod::planned(plan, n), condition: Condition::Ready }).collect();
            assert_eq!(fs::read_to_string(&path).unwrap(), slices(plan.name, &listed), "{path}");
        }
    }

    #[test]
    fn a_terminating_pod_still_serves_and_a_gone_one_is_not_listed() {
        let draining = Listed { condition: Condition::Terminating, ..ready(1) };
        let gone = Listed { condition: Condition::Gone, ..ready(2) };
        let yaml = slices("hangzhou", &[draining, gone]);
        assert_eq!(yaml.matches("{ready: false, serving: true, terminating: true}").count(), 2, "{yaml}");
        assert!(!yaml.contains("10.0.2.10"), "{yaml}");
        assert!(slices("hangzhou", &[]).contains("endpoints: []\n"));
    }
}
