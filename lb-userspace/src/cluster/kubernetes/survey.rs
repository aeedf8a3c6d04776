//! One look at the gateway cluster and its members, for `kanmon preflight`: lists and questions, no watch, no write.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use http_body_util::BodyExt;
use hyper::Request;
use k8s_openapi::api::core::v1::{Node, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::client::Body;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::access::Access;
use super::fault::Fault;
use super::kubeconfig::Policy;
use super::link::Version;
use super::publish::SLICE_MANAGER;
use super::registry::{Facts, Registry, Rules, Standing};
use super::{rights, strip};
use crate::cluster::Snapshot;
use crate::config::{GatewayAccess, KubernetesSettings};
use crate::desired::{
    AddressPool, ClusterObjects, GatewayObjects, LoadBalancingPolicy, MemberCluster, Problem, Reason,
    Severity,
};

/// An API server that says nothing for so long does not answer.
const SILENCE: Duration = Duration::from_secs(8);
/// Our definitions, by their names in URLs.
const DEFINITIONS: [&str; 4] =
    ["addressallocations", "addresspools", "loadbalancingpolicies", "memberclusters"];

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// As the agent would see it.
    pub snapshot: Snapshot,
    /// The gateway cluster first.
    pub servers: Vec<Server>,
    /// Addresses of the members' nodes, by member and node.
    pub nodes: BTreeMap<String, BTreeMap<String, BTreeSet<IpAddr>>>,
}

/// An API server.
#[derive(Clone, Debug)]
pub struct Server {
    /// The member; `None`: the gateway cluster.
    pub member: Option<String>,
    /// What it says; or why it can't be asked.
    pub answer: Result<Answer, String>,
}

/// What an API server says of itself and of us.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// `v1.36.3`.
    pub version: String,
    /// Major and minor number, where they are numbers.
    pub numbers: Option<(u32, u32)>,
    /// Its clock before ours, in seconds; negative: behind. `None`: it doesn't tell.
    pub ahead_seconds: Option<i64>,
    /// What the agent does there and this account may not: `patch services/status`.
    pub missing_rights: Vec<String>,
    /// Those of our definitions that it lacks; of the gateway cluster.
    pub missing_definitions: Vec<String>,
}

/// Looks at the gateway cluster, at the members that it registers, and at those of `more`, by name and kubeconfig.
pub async fn survey(gateway: Option<&KubernetesSettings>, more: &[(String, PathBuf)]) -> Survey {
    let mut survey = Survey::default();
    let mut members: BTreeMap<String, Result<Access, String>> = BTreeMap::new();
    if let Some(settings) = gateway {
        let access = Access::Gateway(settings.access.clone());
        let (server, objects) = ask_gateway(&access, settings).await;
        survey.servers.push(server);
        if let Some((objects, secrets)) = objects {
            members = register(settings, access, &objects.members, &secrets);
            survey.snapshot.gateway = objects;
        }
    }
    for (name, path) in more {
        let kubeconfig = GatewayAccess::Kubeconfig { path: path.clone(), context: None };
        members.insert(name.clone(), Ok(Access::Gateway(kubeconfig)));
    }
    let looks = members.into_iter().map(|(name, access)| async move {
        let seen = match &access {
            Ok(access) => match ask_member(access).await {
                Ok(seen) => Ok(seen),
                Err(fault) => Err(with_server(access, fault).await),
            },
            Err(obstacle) => Err(obstacle.clone()),
        };
        (name, seen)
    });
    for (name, seen) in join_all(looks).await {
        survey.take(name, seen);
    }
    survey
}

/// What a member has, and what its server says.
struct Seen {
    answer: Answer,
    objects: ClusterObjects,
    nodes: BTreeMap<String, BTreeSet<IpAddr>>,
    unread: Vec<String>,
}

impl Survey {
    fn take(&mut self, name: String, seen: Result<Seen, String>) {
        let answer = seen.map(|seen| {
            for message in seen.unread {
                self.snapshot.problems.push(problem(&name, &format!("MemberCluster {name}"), message));
            }
            self.nodes.insert(name.clone(), seen.nodes);
            self.snapshot.clusters.insert(name.clone(), Arc::new(seen.objects));
            seen.answer
        });
        self.servers.push(Server { member: Some(name), answer });
    }
}

fn problem(cluster: &str, object: &str, message: String) -> Problem {
    Problem {
        cluster: cluster.to_owned(),
        object: object.to_owned(),
        reason: Reason::Unreadable,
        severity: Severity::Error,
        message,
    }
}

/// What is wrong, and at which address.
async fn with_server(access: &Access, fault: Fault) -> String {
    match access.server().await {
        Some(server) => format!("{server}: {}", fault.message),
        None => fault.message,
    }
}

/// The members of the gateway cluster, as the agent would find them, and how each is reached.
fn register(
    settings: &KubernetesSettings,
    gateway: Access,
    members: &[MemberCluster],
    secrets: &[Secret],
) -> BTreeMap<String, Result<Access, String>> {
    let mut registry = Registry::new(Rules {
        cluster_set_id: String::new(),
        gateway,
        selector: settings.member_selector.clone(),
        namespaces: settings.secret_namespaces.clone(),
        grace: settings.secret_grace_period,
        policy: Policy { allow_insecure: settings.allow_insecure_members },
    });
    let outcome = registry.decide(&Facts {
        members,
        secrets,
        complete: &settings.secret_namespaces.iter().cloned().collect(),
        identities: &BTreeMap::new(),
        now: Instant::now(),
    });
    let access = |standing: Standing| match (standing.access, standing.obstacle) {
        (Some(access), _) => Ok(access),
        (None, Some((_, message))) => Err(message),
        (None, None) => Err("nothing says how to reach it".to_owned()),
    };
    let served = outcome.members.into_iter().filter(|(_, standing)| standing.is_served());
    served.map(|(name, standing)| (name, access(standing))).collect()
}

async fn ask_gateway(
    access: &Access,
    settings: &KubernetesSettings,
) -> (Server, Option<(GatewayObjects, Vec<Secret>)>) {
    let asked = async {
        let client = access.client(SILENCE).await?;
        let mut answer = introduce(&client).await?;
        answer.missing_rights = rights::missing(&client, &rights::of_gateway(&settings.secret_namespaces))
            .await
            .map_err(|error| Fault::of(&error))?;
        answer.missing_definitions = missing_definitions(&client).await;
        let mut secrets = Vec::new();
        for namespace in &settings.secret_namespaces {
            // One that may not be read is told as a missing right.
            secrets
                .extend(list(Api::<Secret>::namespaced(client.clone(), namespace)).await.unwrap_or_default());
        }
        let services: Vec<Service> = list(Api::all(client.clone())).await.unwrap_or_default();
        let objects = GatewayObjects {
            members: list(Api::<MemberCluster>::all(client.clone())).await.unwrap_or_default(),
            pools: list(Api::<AddressPool>::all(client.clone())).await.unwrap_or_default(),
            policies: list(Api::<LoadBalancingPolicy>::all(client.clone())).await.unwrap_or_default(),
            services: services.into_iter().filter_map(strip::front).collect(),
            ..GatewayObjects::default()
        };
        Ok::<_, Fault>((answer, objects, secrets))
    };
    match asked.await {
        Ok((answer, objects, secrets)) => {
            (Server { member: None, answer: Ok(answer) }, Some((objects, secrets)))
        }
        Err(fault) => (Server { member: None, answer: Err(with_server(access, fault).await) }, None),
    }
}

async fn ask_member(access: &Access) -> Result<Seen, Fault> {
    let client = access.client(SILENCE).await?;
    let mut answer = introduce(&client).await?;
    answer.missing_rights =
        rights::missing(&client, &rights::of_member()).await.map_err(|error| Fault::of(&error))?;
    let mut unread = Vec::new();
    let mut note =
        |what: &str, fault: Fault| unread.push(format!("its {what} cannot be read: {}", fault.message));
    let services = list(Api::<Service>::all(client.clone())).await.unwrap_or_else(|fault| {
        note("Services", fault);
        Vec::new()
    });
    let slices = list(Api::<EndpointSlice>::all(client.clone())).await.unwrap_or_else(|fault| {
        note("EndpointSlices", fault);
        Vec::new()
    });
    let nodes = list(Api::<Node>::all(client)).await.unwrap_or_else(|fault| {
        note("Nodes", fault);
        Vec::new()
    });
    let own = |slice: &EndpointSlice| {
        let labels = slice.metadata.labels.as_ref();
        labels.and_then(|labels| labels.get("endpointslice.kubernetes.io/managed-by")).map(String::as_str)
            == Some(SLICE_MANAGER)
    };
    let places = nodes
        .iter()
        .filter_map(|node| Some((node.metadata.name.clone()?, strip::place(&node.metadata))))
        .collect();
    let objects = ClusterObjects {
        services,
        slices: slices.into_iter().filter(|slice| !own(slice)).collect(),
        nodes: places,
        ..ClusterObjects::default()
    };
    Ok(Seen { answer, objects, nodes: nodes.iter().filter_map(addresses).collect(), unread })
}

/// A node's name and its addresses.
fn addresses(node: &Node) -> Option<(String, BTreeSet<IpAddr>)> {
    let listed = node.status.as_ref()?.addresses.as_ref()?;
    let internal = listed.iter().filter(|address| address.type_ == "InternalIP");
    let parsed = internal.filter_map(|address| address.address.parse().ok()).collect();
    Some((node.metadata.name.clone()?, parsed))
}

async fn list<K>(api: Api<K>) -> Result<Vec<K>, Fault>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    api.list(&ListParams::default()).await.map(|list| list.items).map_err(|error| Fault::of(&error))
}

/// Who the server is, and what time it has.
async fn introduce(client: &Client) -> Result<Answer, Fault> {
    let request = Request::get("/version").body(Body::empty()).map_err(|error| Fault::credentials(&error))?;
    let response = client.send(request).await.map_err(|error| Fault::of(&error))?;
    let date = response.headers().get("date").and_then(|date| date.to_str().ok()).map(str::to_owned);
    let body = response.into_body().collect().await.map_err(|error| Fault::credentials(&error))?;
    let version: Version = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
    let server = date.and_then(|date| jiff::fmt::rfc2822::parse(&date).ok());
    let ahead = server.map(|server| server.timestamp().as_second() - jiff::Timestamp::now().as_second());
    Ok(Answer {
        numbers: version.numbers(),
        version: version.text,
        ahead_seconds: ahead,
        ..Answer::default()
    })
}

/// What of ours the server does not serve: what everybody may ask who may log in.
async fn missing_definitions(client: &Client) -> Vec<String> {
    let asked = async {
        let request = Request::get("/apis/kanmon.dev/v1alpha1").body(Vec::new()).ok()?;
        client.request::<Value>(request).await.ok()
    };
    let served: Vec<String> = asked
        .await
        .and_then(|list| {
            let names = list["resources"].as_array()?.iter().filter_map(|one| one["name"].as_str());
            Some(names.map(str::to_owned).collect())
        })
        .unwrap_or_default();
    let lacks = |name: &&str| !served.iter().any(|served| served == name);
    DEFINITIONS.into_iter().filter(lacks).map(|name| format!("{name}.kanmon.dev")).collect()
}
