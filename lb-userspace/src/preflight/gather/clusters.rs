//! The clusters, from wherever the settings say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::super::facts::Server;
use super::Request;
use crate::cluster::kubernetes::survey;
use crate::cluster::{Snapshot, manifests};
use crate::config::Source;

/// What all clusters say.
pub(super) struct Survey {
    /// As the agent would see it.
    pub(super) snapshot: Snapshot,
    pub(super) servers: Vec<Server>,
    /// Addresses of nodes, by member and node.
    pub(super) nodes: BTreeMap<String, BTreeMap<String, BTreeSet<IpAddr>>>,
}

pub(super) async fn survey(request: &Request) -> Result<Survey> {
    let more: Vec<(String, PathBuf)> =
        request.members.iter().map(|member| (member.name.clone(), member.kubeconfig.clone())).collect();
    let source = request.has_source.then_some(&request.settings.source);
    let gateway = match source {
        Some(Source::Kubernetes(kubernetes)) => Some(kubernetes),
        Some(Source::Manifests(_)) | None => None,
    };
    let seen = survey::survey(gateway, &more).await;
    let mut survey = Survey {
        snapshot: seen.snapshot,
        servers: seen.servers.into_iter().map(server).collect(),
        nodes: seen.nodes,
    };
    if let Some(Source::Manifests(directory)) = source {
        let read = manifests::watch(directory.clone(), None)
            .await
            .context("cannot read the manifests (--manifests names their directory)")?;
        let from_files = Snapshot::clone(&read.borrow());
        survey.snapshot.gateway = from_files.gateway;
        survey.snapshot.clusters.extend(from_files.clusters);
        survey.snapshot.problems.extend(from_files.problems);
    }
    Ok(survey)
}

impl Survey {
    /// NodePorts of Services that are outside of the range where they are expected.
    pub(super) fn node_ports(&self, expected: &RangeInclusive<u16>) -> Vec<u16> {
        let of_members = self.snapshot.clusters.values().flat_map(|objects| &objects.services);
        let services = of_members.chain(&self.snapshot.gateway.services);
        let ports = services.filter_map(|service| service.spec.as_ref()?.ports.as_ref()).flatten();
        let stray: BTreeSet<u16> = ports
            .filter_map(|port| u16::try_from(port.node_port?).ok())
            .filter(|port| *port > 0 && !expected.contains(port))
            .collect();
        stray.into_iter().collect()
    }
}

fn server(seen: survey::Server) -> Server {
    let name = seen.member.map_or_else(|| "gateway cluster".to_owned(), |name| format!("member {name}"));
    Server { name, answer: seen.answer }
}
