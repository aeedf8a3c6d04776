//! What the directory has said so far: each directory's last good state. No I/O.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::LastGood;
use super::Snapshot;
use super::directory::{Files, Reading};
use super::manifest::{self, Object};
use crate::desired::{ClusterObjects, GatewayObjects, Problem, Reason, Severity};

const KEPT: &str = "the last good state of this directory stays until that is corrected";

/// The last good state of the top and of every cluster's directory.
#[derive(Debug, Default)]
pub(super) struct Tree {
    top: Node<GatewayObjects>,
    clusters: BTreeMap<String, Node<Arc<ClusterObjects>>>,
}

/// One directory.
#[derive(Debug, Default)]
struct Node<T> {
    /// What was read last: the same again needs no parsing.
    files: Option<Files>,
    good: T,
    problems: Vec<Problem>,
}

impl Tree {
    /// Begins with what was good when the agent ran before.
    pub(super) fn new(last_good: LastGood) -> Self {
        let node = |good| Node { good, ..Node::default() };
        Self {
            top: Node { good: last_good.gateway, ..Node::default() },
            clusters: last_good.clusters.into_iter().map(|(name, good)| (name, node(good))).collect(),
        }
    }

    /// Takes in what was found now. A cluster whose directory is gone is gone.
    pub(super) fn update(&mut self, reading: Reading) {
        self.top.update("", reading.top, |objects| {
            let mut good = GatewayObjects::default();
            for object in objects {
                match object {
                    Object::Pool(pool) => good.pools.push(*pool),
                    Object::Member(member) => good.members.push(*member),
                    Object::Policy(policy) => good.policies.push(*policy),
                    Object::Service(_) | Object::Slice(_) | Object::Export(_) => {}
                }
            }
            good
        });
        self.clusters.retain(|name, _| reading.clusters.contains_key(name));
        for (name, files) in reading.clusters {
            let node = self.clusters.entry(name.clone()).or_default();
            match files {
                Err(error) => node.unreadable(&name, &error),
                Ok(files) => node.update(&name, files, |objects| {
                    let mut good = ClusterObjects::default();
                    for object in objects {
                        match object {
                            Object::Service(service) => good.services.push(*service),
                            Object::Slice(slice) => good.slices.push(*slice),
                            Object::Export(export) => good.exports.push(*export),
                            Object::Pool(_) | Object::Member(_) | Object::Policy(_) => {}
                        }
                    }
                    Arc::new(good)
                }),
            }
        }
    }

    /// The state of everything; `unreadable` is why the directory as a whole cannot be read, if so.
    pub(super) fn snapshot(&self, unreadable: Option<Problem>) -> Snapshot {
        let nodes = self.clusters.values();
        let problems = self.top.problems.iter().chain(nodes.flat_map(|node| &node.problems));
        Snapshot {
            gateway: self.top.good.clone(),
            clusters: self.clusters.iter().map(|(name, node)| (name.clone(), node.good.clone())).collect(),
            problems: unreadable.into_iter().chain(problems.cloned()).collect(),
            complete: true,
            ..Snapshot::default()
        }
    }
}

impl<T> Node<T> {
    /// Parses the files, unless they are what they were. The good state changes only if every file is good.
    fn update(&mut self, cluster: &str, files: Files, assemble: impl Fn(Vec<Object>) -> T) {
        if self.files.as_ref() == Some(&files) {
            return;
        }
        let mut all = Vec::new();
        let mut good = true;
        self.problems.clear();
        for (path, text) in &files {
            let object = path.display().to_string();
            let parsed = text
                .as_ref()
                .map_err(|error| format!("cannot be read: {error}"))
                .and_then(|text| manifest::parse(text).map_err(|error| error.to_string()));
            match parsed {
                Err(what) => {
                    good = false;
                    self.problems.push(unreadable(cluster, object, &what));
                }
                Ok(manifest) => {
                    for kind in manifest.ignored {
                        tracing::debug!(file = object, kind, "objects of this kind are not used");
                    }
                    for misplaced in
                        manifest.objects.iter().filter(|object| object.is_of_gateway() != cluster.is_empty())
                    {
                        self.problems.push(misplacement(cluster, &object, misplaced));
                    }
                    all.extend(manifest.objects);
                }
            }
        }
        if good {
            self.good = assemble(all);
        }
        self.files = Some(files);
    }

    fn unreadable(&mut self, cluster: &str, error: &str) {
        self.files = None;
        self.problems =
            vec![unreadable(cluster, format!("directory {cluster}"), &format!("cannot be read: {error}"))];
    }
}

/// The problem of a file or directory that cannot be used.
pub(super) fn unreadable(cluster: &str, object: String, what: &str) -> Problem {
    Problem {
        cluster: cluster.to_owned(),
        object,
        reason: Reason::Unreadable,
        severity: Severity::Error,
        message: format!("{what}; {KEPT}"),
    }
}

fn misplacement(cluster: &str, file: &str, object: &Object) -> Problem {
    let place = if object.is_of_gateway() {
        "it belongs to the gateway: move it to the top directory"
    } else {
        "it belongs to a cluster: move it to the directory of that cluster's name"
    };
    Problem {
        cluster: cluster.to_owned(),
        object: file.to_owned(),
        reason: Reason::InvalidObject,
        severity: Severity::Warning,
        message: format!("{} is not used here; {place}", object.title()),
    }
}
