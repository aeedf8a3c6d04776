//! What the clusters hold: Services that all of them have, and EndpointSlices written directly.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{Api, Client, api::PostParams};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{stage::KubeStage, topology::POD_PORT};

/// The members; the gateway's cluster is another one.
pub(super) const MEMBERS: [&str; 3] = ["hangzhou", "shanghai", "beijing"];
/// The namespace of all of it.
pub(super) const NAMESPACE: &str = "demo";
/// The one Service with many endpoints, and who has them.
pub(super) const BIG: u32 = 5000;
const BIG_MEMBER: usize = 0;
/// Kubernetes' own controller leaves slices of others alone.
const MANAGER: &str = "kanmon-bench";
/// Most endpoints that Kubernetes allows in one slice.
const SLICE: u32 = 1000;
/// Requests to an API server at once.
const AT_ONCE: usize = 16;
/// The first VIP: 192.168.104.0.
const FIRST_VIP: u32 = 0xc0a8_6800;
/// Addresses of pods begin here within their prefix: the bed's own pods are before.
const FIRST_POD: u32 = 1 << 12;

/// How much there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Size {
    pub(super) services: u32,
    /// Of each service, all members together.
    pub(super) endpoints: u32,
}

impl Size {
    /// Endpoints of all services.
    pub(super) fn all(self) -> u32 {
        self.services * self.endpoints
    }

    /// A service's endpoints in a member.
    fn share(self, member: usize) -> u32 {
        let members = MEMBERS.len() as u32;
        self.endpoints / members + u32::from((member as u32) < self.endpoints % members)
    }
}

/// Where endpoints of a member come from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pods {
    first: u32,
    size: Size,
    member: usize,
}

/// One slice of a Service.
#[derive(Clone, Debug)]
pub(super) struct Slice {
    pub(super) name: String,
    pub(super) service: u32,
    addresses: Vec<Ipv4Addr>,
}

impl Pods {
    /// Those of a member.
    pub(super) fn of(stage: &KubeStage, member: usize, size: Size) -> Result<Pods> {
        let [prefix, _] = stage.bed().pod_prefixes(MEMBERS[member])?;
        let ipnet::IpNet::V4(prefix) = prefix else { anyhow::bail!("the first prefix is IPv4's") };
        Ok(Pods { first: u32::from(prefix.network()) + FIRST_POD, size, member })
    }

    /// The slice of a Service.
    pub(super) fn slice(self, service: u32) -> Slice {
        let share = self.size.share(self.member);
        // By the largest share, so that no two Services share an address whatever the size.
        let from = self.first + service * self.size.share(0);
        Slice { name: name(service), service, addresses: (from..from + share).map(Ipv4Addr::from).collect() }
    }

    /// The slices of the Service with many endpoints, which come after all others.
    fn many(self, endpoints: u32) -> Vec<Slice> {
        let from = self.first + self.size.services * self.size.share(0);
        let slice = |n: u32| Slice {
            name: format!("{}-{n}", name(BIG)),
            service: BIG,
            addresses: (n * SLICE..endpoints.min((n + 1) * SLICE)).map(|n| (from + n).into()).collect(),
        };
        (0..endpoints.div_ceil(SLICE)).map(slice).collect()
    }
}

impl Slice {
    /// Its endpoints, the first of them ready or not.
    pub(super) fn endpoints(&self, first_is_ready: bool) -> Value {
        let endpoint = |(n, address): (usize, &Ipv4Addr)| {
            let ready = n > 0 || first_is_ready;
            json!({
                "addresses": [address],
                "conditions": {"ready": ready, "serving": ready, "terminating": false},
            })
        };
        self.addresses.iter().enumerate().map(endpoint).collect()
    }

    fn object(&self) -> Result<EndpointSlice> {
        let slice = json!({
            "metadata": {
                "name": self.name,
                "labels": {
                    "kubernetes.io/service-name": name(self.service),
                    "endpointslice.kubernetes.io/managed-by": MANAGER,
                },
            },
            "addressType": "IPv4",
            "ports": [{"name": "http", "protocol": "TCP", "port": POD_PORT}],
            "endpoints": self.endpoints(true),
        });
        serde_json::from_value(slice).context("no EndpointSlice")
    }
}

/// A Service's name.
pub(super) fn name(service: u32) -> String {
    format!("s{service:05}")
}

/// A Service's VIP.
pub(super) fn vip(service: u32) -> Ipv4Addr {
    (FIRST_VIP + service).into()
}

/// Without a selector, so that nobody else writes its endpoints; without probes, since nobody is there.
fn service(n: u32) -> Result<Service> {
    let service = json!({
        "metadata": {
            "name": name(n),
            "annotations": {
                "kanmon.dev/addresses": vip(n),
                "kanmon.dev/health-check": "none",
            },
        },
        "spec": {
            "type": "LoadBalancer",
            "loadBalancerClass": "kanmon.dev/xdp",
            "allocateLoadBalancerNodePorts": false,
            "ipFamilyPolicy": "SingleStack",
            "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": "http"}],
        },
    });
    serde_json::from_value(service).context("no Service")
}

/// Makes these Services and their slices in all members at once.
pub(super) fn create(stage: &KubeStage, size: Size, services: std::ops::Range<u32>) -> Result<()> {
    std::thread::scope(|scope| {
        let one = |member: usize| {
            let (pods, services) = (Pods::of(stage, member, size)?, services.clone());
            let slices = services.clone().map(|n| pods.slice(n)).collect();
            stage.kube(MEMBERS[member])?.in_namespace(async |client| {
                create_all(client, services.map(service).collect::<Result<_>>()?, slices).await
            })
        };
        let started: Vec<_> = (0..MEMBERS.len()).map(|member| scope.spawn(move || one(member))).collect();
        started
            .into_iter()
            .try_for_each(|one| one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// Makes the Service with many endpoints, in one member, without its slices.
pub(super) fn create_big(stage: &KubeStage) -> Result<()> {
    let service = service(BIG)?;
    stage
        .kube(MEMBERS[BIG_MEMBER])?
        .in_namespace(async |client| create_all(client, vec![service], Vec::new()).await)
}

/// Gives it its endpoints.
pub(super) fn fill_big(stage: &KubeStage, size: Size, endpoints: u32) -> Result<Vec<Slice>> {
    let slices = Pods::of(stage, BIG_MEMBER, size)?.many(endpoints);
    let made = slices.clone();
    stage
        .kube(MEMBERS[BIG_MEMBER])?
        .in_namespace(async |client| create_all(client, Vec::new(), made).await)?;
    Ok(slices)
}

/// Removes it and its slices.
pub(super) fn remove_big(stage: &KubeStage) -> Result<()> {
    let kube = stage.kube(MEMBERS[BIG_MEMBER])?;
    let of_big = format!("kubernetes.io/service-name={}", name(BIG));
    kube.kubectl(&["-n", NAMESPACE, "delete", "endpointslices", "-l", &of_big], "")?;
    kube.kubectl(&["-n", NAMESPACE, "delete", "service", &name(BIG)], "").map(drop)
}

/// The member that has the Service with many endpoints.
pub(super) fn big_member() -> &'static str {
    MEMBERS[BIG_MEMBER]
}

async fn create_all(client: Client, services: Vec<Service>, slices: Vec<Slice>) -> Result<()> {
    let (params, api) = (PostParams::default(), Api::<Service>::namespaced(client.clone(), NAMESPACE));
    let creations = services.iter().map(|service| api.create(&params, service));
    stream::iter(creations).buffer_unordered(AT_ONCE).try_for_each(|_| async { Ok(()) }).await?;
    let objects = slices.iter().map(Slice::object).collect::<Result<Vec<_>>>()?;
    let api = Api::<EndpointSlice>::namespaced(client, NAMESPACE);
    let creations = objects.iter().map(|slice| api.create(&params, slice));
    stream::iter(creations).buffer_unordered(AT_ONCE).try_for_each(|_| async { Ok(()) }).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn all_members_together_have_what_was_asked_for_and_no_address_twice() {
        let size = Size { services: 7, endpoints: 100 };
        assert_eq!((0..3).map(|member| size.share(member)).collect::<Vec<_>>(), [34, 33, 33]);
        let pods = |member| Pods { first: (member as u32 + 10) << 24, size, member };
        let slices = (0..3).flat_map(|member| (0..7).map(move |n| pods(member).slice(n)));
        let mut addresses: Vec<Ipv4Addr> = slices.flat_map(|slice| slice.addresses).collect();
        addresses.extend(pods(0).many(2500).into_iter().flat_map(|slice| slice.addresses));
        assert_eq!(addresses.len(), 700 + 2500);
        assert_eq!(addresses.iter().collect::<BTreeSet<_>>().len(), addresses.len());
    }

    #[test]
    fn objects_are_of_kubernetes_own_types_and_one_endpoint_changes() {
        let slice = Pods { first: 10 << 24, size: Size { services: 1, endpoints: 3 }, member: 0 }.slice(0);
        assert_eq!(slice.object().unwrap().endpoints.unwrap().len(), 1);
        assert_eq!(slice.endpoints(false)[0]["conditions"]["ready"], false);
        assert_eq!(service(3).unwrap().metadata.name.unwrap(), "s00003");
    }
}
