//! What is told as Events: problems, as far as they are about objects of an API server. Pure.

use kube::core::ObjectMeta;

use super::gateway;
use super::notices::Notice;
use super::publish::Present;
use super::registry::Refusal;
use crate::desired::mcs::GROUP;
use crate::desired::{ClusterObjects, Problem};

/// Where objects of a cluster are looked up.
#[derive(Clone, Copy, Default)]
pub(super) struct Lookup<'a> {
    /// What was read.
    pub(super) objects: Option<&'a ClusterObjects>,
    /// What is written.
    pub(super) present: Option<&'a Present>,
    /// Where the cluster is the gateway cluster.
    pub(super) gateway: Option<&'a gateway::View>,
}

impl Lookup<'_> {
    /// A problem, for an Event on the object that it is about; `None` where there is no such object.
    pub(super) fn notice(&self, problem: &Problem) -> Option<Notice> {
        let (kind, name) = problem.object.split_once(' ')?;
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        let (api_version, metadata) = self.find(kind, namespace, name)?;
        Some(Notice {
            api_version,
            kind: kind.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: metadata.uid.clone().unwrap_or_default(),
            reason: problem.reason.to_string(),
            message: problem.message.clone(),
        })
    }

    /// A notice with the UID of its object, without which `kubectl describe` does not show it.
    pub(super) fn identified(&self, notice: &Notice) -> Notice {
        let found = self.find(&notice.kind, &notice.namespace, &notice.name);
        let uid = found.and_then(|(_, metadata)| metadata.uid.clone()).unwrap_or_default();
        Notice { uid, ..notice.clone() }
    }

    /// API version and metadata.
    fn find(&self, kind: &str, namespace: &str, name: &str) -> Option<(String, &ObjectMeta)> {
        let is_it = |metadata: &&ObjectMeta| {
            metadata.namespace.as_deref().unwrap_or_default() == namespace
                && metadata.name.as_deref() == Some(name)
        };
        let mcs = |present: &Present| present.mcs_version.map(|version| format!("{GROUP}/{version}"));
        match kind {
            "Service" => {
                let read = self.objects.iter().flat_map(|objects| &objects.services);
                let own = self.gateway.iter().flat_map(|gateway| gateway.services.iter().flatten());
                let mut all = read.chain(own).map(|service| &service.metadata);
                Some(("v1".to_owned(), all.find(is_it)?))
            }
            "EndpointSlice" => {
                let mut read =
                    self.objects.iter().flat_map(|objects| &objects.slices).map(|slice| &slice.metadata);
                Some(("discovery.k8s.io/v1".to_owned(), read.find(is_it)?))
            }
            "ServiceExport" => {
                let mut exports = self.present?.exports.values().map(|export| &export.metadata);
                Some((mcs(self.present?)?, exports.find(is_it)?))
            }
            "ServiceImport" => {
                let mut imports = self.present?.imports.values().map(|import| &import.metadata);
                Some((mcs(self.present?)?, imports.find(is_it)?))
            }
            "AddressPool" => {
                let mut pools = self.gateway?.pools.iter().flatten().map(|pool| &pool.metadata);
                Some(("kanmon.dev/v1alpha1".to_owned(), pools.find(is_it)?))
            }
            "LoadBalancingPolicy" => {
                let policies = self.gateway?.policies.iter().flatten();
                Some(("kanmon.dev/v1alpha1".to_owned(), policies.map(|policy| &policy.metadata).find(is_it)?))
            }
            "MemberCluster" => {
                let mut members = self.gateway?.members.iter().flatten().map(|member| &member.metadata);
                Some(("kanmon.dev/v1alpha1".to_owned(), members.find(is_it)?))
            }
            _ => None,
        }
    }
}

/// A Secret, or one of its keys, that is not used.
pub(super) fn of_secret(refusal: &Refusal) -> Notice {
    Notice {
        api_version: "v1".to_owned(),
        kind: "Secret".to_owned(),
        namespace: refusal.namespace.clone(),
        name: refusal.name.clone(),
        uid: refusal.uid.clone(),
        reason: refusal.reason.to_owned(),
        message: refusal.message.clone(),
    }
}
