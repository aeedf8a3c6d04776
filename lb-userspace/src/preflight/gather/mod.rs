//! Finding out: everything that does I/O. Nothing is changed, here or anywhere.

mod clusters;
mod host;
mod interfaces;
mod mtu;
mod networks;
mod paths;
mod tap;
mod vips;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::facts::{Facts, Ports};
use crate::config::Settings;
use crate::desired::{self, Allocations, Desired, Network, Place};
use crate::network::snat::{PortRequest, PortsInUse};
use crate::network::{addresses, default_snat_addresses, list_links};

/// A member cluster that is named by its kubeconfig, before it is registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its kubeconfig, whose current context counts.
    pub kubeconfig: PathBuf,
}

/// What to look at.
#[derive(Clone, Debug)]
pub struct Request {
    /// The settings that the agent would run with.
    pub settings: Settings,
    /// Whether those say where the clusters are.
    pub has_source: bool,
    /// More members.
    pub members: Vec<Member>,
    /// More networks.
    pub networks: Vec<Network>,
    /// Kubernetes' NodePorts.
    pub node_ports: RangeInclusive<u16>,
}

/// Finds out everything, in the network namespace of the calling thread.
///
/// # Errors
/// The kernel can't be asked about the network, or the clusters' manifests can't be read at all. What merely is wrong
/// is in the facts.
pub async fn gather(request: &Request) -> Result<Facts> {
    let settings = &request.settings;
    let links = list_links().await.context("cannot list the interfaces")?;
    let attached: Vec<u32> = settings
        .interfaces
        .iter()
        .filter_map(|name| links.iter().find(|link| link.name == *name))
        .map(|link| link.ifindex)
        .collect();
    let local = addresses().await.context("cannot list the addresses of this machine")?;
    let survey = clusters::survey(request).await?;
    let own: BTreeSet<IpAddr> = local.iter().map(|address| address.address).collect();
    let desired = merge(&survey.snapshot, &own, settings);
    let snat = if settings.snat_addresses.is_empty() {
        default_snat_addresses(&local, &attached)
    } else {
        settings.snat_addresses.clone()
    };
    let networks = networks::networks(&survey, request, &local, &attached, &desired);
    let paths = paths::paths(&networks.known, &survey, &desired, &attached, &own, snat).await?;
    let in_use = PortsInUse::read(request.node_ports.clone());
    Ok(Facts {
        host: host::host(&settings.pin_dir),
        xdp_mode: settings.xdp_mode,
        interfaces: interfaces::interfaces(settings, &links),
        ports: Ports {
            request: PortRequest::from(settings.snat_ports),
            in_use: in_use.map_err(|error| format!("cannot tell which ports the node uses: {error}")),
            stray_node_ports: survey.node_ports(&request.node_ports),
        },
        networks,
        servers: survey.servers,
        paths,
    })
}

/// A socket for datagrams of the node's own to an address.
fn datagrams_to(address: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr =
        if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    UdpSocket::bind(SocketAddr::new(any, 0))
}

/// What the agent would make of it.
fn merge(snapshot: &crate::cluster::Snapshot, own: &BTreeSet<IpAddr>, settings: &Settings) -> Desired {
    let place = Place { region: settings.region.clone(), zone: settings.zone.clone() };
    desired::merge(
        &snapshot.clusters,
        &snapshot.gateway,
        own,
        &snapshot.place.or(&place),
        &Allocations::default(),
    )
}
