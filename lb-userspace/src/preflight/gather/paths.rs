//! Routes to the members, connections to their endpoints, and VIPs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::join_all;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::super::facts::{Paths, Probe, Route};
use super::clusters::Survey;
use super::{mtu, vips};
use crate::desired::{Desired, Endpoint, MemberState, Network, NetworkKind, Protocol, Site};
use crate::health::{Answer, probe::tcp};
use crate::io_error::plain;
use crate::network::routes;

/// How long an endpoint may take to answer: what a SYN and one repetition take.
const PATIENCE: Duration = Duration::from_millis(2500);
/// Endpoints of each member and family that are tried.
const TRIED: usize = 3;

pub(super) async fn paths(
    networks: &[Network],
    survey: &Survey,
    desired: &Desired,
    attached: &[u32],
    own: &BTreeSet<IpAddr>,
    snat_addresses: Vec<IpAddr>,
) -> Result<Paths> {
    let to_members = networks.iter().filter(|network| {
        matches!(network.kind, NetworkKind::Pod | NetworkKind::Node)
            && matches!(network.site, Site::Member(_))
    });
    let wanted: Vec<(Network, IpAddr)> =
        to_members.map(|network| (network.clone(), first_host(network))).collect();
    let endpoints = endpoints(desired);
    let to_endpoints = endpoints.values().flatten().map(SocketAddr::ip);
    let found = routes(wanted.iter().map(|(_, address)| *address).chain(to_endpoints), attached)
        .await
        .context("cannot ask the kernel for routes")?;
    let leads = |address: &IpAddr| match &found[address] {
        Ok(route) => Ok((route.interface.clone(), route.mtu)),
        Err(error) => Err(error.to_string()),
    };
    let routes =
        wanted.into_iter().map(|(network, address)| Route { leads: leads(&address), network }).collect();

    let members =
        survey.snapshot.gateway.members.iter().filter(|member| member.spec.state == MemberState::Active);
    let without_endpoints = members
        .filter_map(|member| member.metadata.name.clone())
        .filter(|name| !endpoints.contains_key(name))
        .collect();
    let tries = endpoints.iter().flat_map(|(member, endpoints)| {
        endpoints.iter().map(|endpoint| {
            // What the route itself says: the kernel may have learned before now that less fits.
            let first_mtu = leads(&endpoint.ip()).ok().map(|(_, mtu)| mtu);
            probe(member.clone(), *endpoint, first_mtu, &snat_addresses, own)
        })
    });
    let probes = join_all(tries).await;
    let vips = vips::routes(desired, own).await;
    Ok(Paths { routes, probes, without_endpoints, vips, snat_addresses })
}

/// An address of a network that a host could have.
fn first_host(network: &Network) -> IpAddr {
    network.cidr.hosts().next().unwrap_or_else(|| network.cidr.network())
}

/// By member: endpoints that should answer, a few of each family.
fn endpoints(desired: &Desired) -> BTreeMap<String, Vec<SocketAddr>> {
    let mut found: BTreeMap<String, BTreeSet<SocketAddr>> = BTreeMap::new();
    let services = desired.services.values().filter(|service| service.id.protocol == Protocol::Tcp);
    let ready = |endpoint: &&Endpoint| endpoint.takes_new_flows();
    for endpoint in services.flat_map(|service| &service.endpoints).filter(ready) {
        let address = SocketAddr::new(endpoint.backend.address, endpoint.backend.port);
        found.entry(endpoint.cluster.clone()).or_default().insert(address);
    }
    let few = |addresses: BTreeSet<SocketAddr>| {
        let (v4, v6): (Vec<_>, Vec<_>) = addresses.into_iter().partition(SocketAddr::is_ipv4);
        v4.into_iter().take(TRIED).chain(v6.into_iter().take(TRIED)).collect()
    };
    found.into_iter().map(|(member, addresses)| (member, few(addresses))).collect()
}

async fn probe(
    member: String,
    endpoint: SocketAddr,
    first_mtu: Option<u32>,
    snat: &[IpAddr],
    own: &BTreeSet<IpAddr>,
) -> Probe {
    let of_family = snat.iter().copied().filter(|address| address.is_ipv4() == endpoint.is_ipv4());
    let from_snat = of_family.map(|address| async move {
        let answer =
            if own.contains(&address) { connect(endpoint, Some(address)).await } else { Answer::Unknown };
        (address, answer)
    });
    let path = spawn_blocking(move || mtu::measure(endpoint.ip()));
    let (answer, from_snat, path) = tokio::join!(connect(endpoint, None), join_all(from_snat), path);
    Probe { member, endpoint, answer, from_snat, path_mtu: path.ok().flatten(), first_mtu }
}

/// Whether a connection can be opened; it ends at once.
async fn connect(endpoint: SocketAddr, from: Option<IpAddr>) -> Answer {
    match timeout(PATIENCE, tcp::open(endpoint, from)).await {
        Ok(Ok(_)) => Answer::Answered,
        Ok(Err(error)) => Answer::Failed(plain(&error)),
        Err(_) => Answer::Failed(format!("no answer within {} ms", PATIENCE.as_millis())),
    }
}
