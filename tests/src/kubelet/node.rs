//! The Node objects and their leases.

use std::{collections::BTreeMap, net::IpAddr, str::FromStr, time::Duration};

use anyhow::{Context, Result, ensure};
use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::{Node, NodeAddress, NodeCondition, NodeStatus, NodeSystemInfo},
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{MicroTime, ObjectMeta, Time},
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;

/// How often the lease is renewed: a node whose lease is older than 50 s is called unreachable.
const RENEW: Duration = Duration::from_secs(10);
/// How soon to try again when the API server did not take it.
const RETRY: Duration = Duration::from_secs(1);
/// How long one request may take: a server that accepts and never answers is one that is away.
const PATIENCE: Duration = Duration::from_secs(10);
const MANAGER: &str = "kanmon-kubelet";

/// A node and the place it is in: `NAME=REGION/ZONE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePlace {
    /// The Node's name: a DNS label.
    pub name: String,
    /// The value of `topology.kubernetes.io/region`: "cn-hangzhou".
    pub region: String,
    /// The value of `topology.kubernetes.io/zone`: "cn-hangzhou-a".
    pub zone: String,
}

impl FromStr for NodePlace {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<NodePlace> {
        let parts = || text.split_once('=').and_then(|(name, place)| Some((name, place.split_once('/')?)));
        let (name, (region, zone)) = parts().with_context(|| format!("{text:?} is not NAME=REGION/ZONE"))?;
        ensure!([name, region, zone].iter().all(|part| !part.is_empty()), "{text:?} has an empty part");
        Ok(NodePlace { name: name.to_owned(), region: region.to_owned(), zone: zone.to_owned() })
    }
}

impl std::fmt::Display for NodePlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}/{}", self.name, self.region, self.zone)
    }
}

/// Keeps a Node registered and its lease fresh, for ever. A Node that somebody deleted is made again.
pub(super) async fn keep(client: Client, place: NodePlace, addresses: Vec<IpAddr>) {
    let since = Timestamp::now();
    loop {
        let written = tokio::time::timeout(PATIENCE, write(&client, &place, &addresses, since));
        let pause = match written.await {
            Ok(Ok(())) => RENEW,
            Ok(Err(e)) => {
                eprintln!("kanmon-kubelet: cannot write node {}: {e:#}", place.name);
                RETRY
            }
            Err(_) => {
                eprintln!("kanmon-kubelet: node {} is not taken within {PATIENCE:?}", place.name);
                RETRY
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn write(client: &Client, place: &NodePlace, addresses: &[IpAddr], since: Timestamp) -> Result<()> {
    let params = PatchParams::apply(MANAGER).force();
    let nodes: Api<Node> = Api::all(client.clone());
    nodes.patch(&place.name, &params, &Patch::Apply(node(place))).await?;
    // Not applied: the API server's own rule for lists takes two addresses of a type for duplicates.
    let status = json!({"status": status(place, addresses, since, Timestamp::now())});
    nodes.patch_status(&place.name, &PatchParams::default(), &Patch::Merge(status)).await?;
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    leases.patch(&place.name, &params, &Patch::Apply(lease(place, Timestamp::now()))).await?;
    Ok(())
}

fn node(place: &NodePlace) -> Node {
    let labels = [
        ("kubernetes.io/hostname", place.name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("topology.kubernetes.io/region", &place.region),
        ("topology.kubernetes.io/zone", &place.zone),
    ];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
    Node {
        metadata: ObjectMeta {
            name: Some(place.name.clone()),
            labels: Some(BTreeMap::from(labels)),
            ..ObjectMeta::default()
        },
        ..Node::default()
    }
}

fn status(place: &NodePlace, addresses: &[IpAddr], since: Timestamp, now: Timestamp) -> NodeStatus {
    let address = |type_: &str, address: String| NodeAddress { type_: type_.to_owned(), address };
    let internal = addresses.iter().map(|ip| address("InternalIP", ip.to_string()));
    // Nothing is measured: more than a bed ever asks for.
    let capacity = [("cpu", "256"), ("memory", "1Ti"), ("ephemeral-storage", "1Ti"), ("pods", "1000")];
    let capacity: BTreeMap<String, Quantity> =
        capacity.map(|(key, value)| (key.to_owned(), Quantity(value.to_owned()))).into();
    let condition = |type_: &str, status: &str, reason: &str| NodeCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        last_transition_time: Some(Time(since)),
        last_heartbeat_time: Some(Time(now)),
        ..NodeCondition::default()
    };
    NodeStatus {
        addresses: Some(internal.chain([address("Hostname", place.name.clone())]).collect()),
        allocatable: Some(capacity.clone()),
        capacity: Some(capacity),
        conditions: Some(vec![
            condition("Ready", "True", "KubeletReady"),
            condition("MemoryPressure", "False", "NotMeasured"),
            condition("DiskPressure", "False", "NotMeasured"),
            condition("PIDPressure", "False", "NotMeasured"),
        ]),
        node_info: Some(NodeSystemInfo {
            architecture: architecture().to_owned(),
            operating_system: "linux".to_owned(),
            os_image: "the test bed's machine".to_owned(),
            container_runtime_version: "kanmon-processes://0".to_owned(),
            // An honest name that no client takes for a kubelet of Kubernetes.
            kubelet_version: concat!("v0.0.0-kanmon-kubelet-", env!("CARGO_PKG_VERSION")).to_owned(),
            ..NodeSystemInfo::default()
        }),
        ..NodeStatus::default()
    }
}

fn lease(place: &NodePlace, now: Timestamp) -> Lease {
    Lease {
        metadata: ObjectMeta { name: Some(place.name.clone()), ..ObjectMeta::default() },
        spec: Some(LeaseSpec {
            holder_identity: Some(place.name.clone()),
            lease_duration_seconds: Some(40),
            renew_time: Some(MicroTime(now)),
            ..LeaseSpec::default()
        }),
    }
}

/// The machine's architecture by Kubernetes' name.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_as_it_is_written() {
        let place: NodePlace = "hangzhou-a=cn-hangzhou/cn-hangzhou-a".parse().unwrap();
        assert_eq!((place.name.as_str(), place.zone.as_str()), ("hangzhou-a", "cn-hangzhou-a"));
        assert_eq!(place.to_string().parse::<NodePlace>().unwrap(), place);
        for wrong in ["hangzhou-a", "hangzhou-a=cn-hangzhou", "=cn-hangzhou/cn-hangzhou-a", "a=/b"] {
            assert!(wrong.parse::<NodePlace>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_node_has_its_place_in_its_labels_and_its_addresses_in_its_status() {
        let place: NodePlace = "a=r/z".parse().unwrap();
        let labels = node(&place).metadata.labels.unwrap();
        assert_eq!(labels["topology.kubernetes.io/zone"], "z");
        assert_eq!(labels["topology.kubernetes.io/region"], "r");
        let ips = [[20, 0, 0, 10].into(), "fd00:20::10".parse().unwrap()];
        let status = status(&place, &ips, Timestamp::UNIX_EPOCH, Timestamp::UNIX_EPOCH);
        let addresses = status.addresses.unwrap();
        assert_eq!(addresses[1].address, "fd00:20::10");
        assert!(addresses[..2].iter().all(|address| address.type_ == "InternalIP"));
    }
}
