//! What was found out, before anybody judges it: plain data.

use std::net::{IpAddr, SocketAddr};

pub use crate::cluster::kubernetes::survey::Answer as ServerAnswer;
use crate::config::XdpMode;
use crate::desired::Network;
use crate::health::Answer;
use crate::network::snat::{PortRequest, PortsInUse};

/// Everything.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The machine.
    pub host: Host,
    /// How the program would be attached.
    pub xdp_mode: XdpMode,
    /// The interfaces that it would be attached to.
    pub interfaces: Vec<Interface>,
    /// Ports for SNAT.
    pub ports: Ports,
    /// All networks that are known, and what could not be read of them.
    pub networks: Networks,
    /// The API servers; none with manifests.
    pub servers: Vec<Server>,
    /// The ways to the members and back.
    pub paths: Paths,
}

/// The machine and this process.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// The kernel's release.
    pub release: String,
    /// What kernel and process lack: which check, and a sentence with what to do.
    pub lacks: Vec<(&'static str, String)>,
    /// `net.core.bpf_jit_enable`; `None`: it can't be read.
    pub jit: Option<bool>,
    /// Where pins would be, and the type of the file system there.
    pub pins: (String, Option<String>),
    /// Who made the machine, as its firmware says.
    pub vendor: Option<String>,
    /// Processors.
    pub cpus: usize,
}

/// An interface.
#[derive(Clone, Debug, Default)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// What it is; `None`: there is none of that name.
    pub link: Option<LinkFacts>,
    /// Somebody else's XDP program, or why that can't be told.
    pub foreign_program: Option<String>,
    /// The interfaces that there are, for a message.
    pub existing: Vec<String>,
}

/// What an interface is.
#[derive(Clone, Debug, Default)]
pub struct LinkFacts {
    /// Set up.
    pub up: bool,
    /// With Ethernet headers, and no VLAN device.
    pub ethernet: bool,
    /// Driver, or kind of virtual device; empty if unknown.
    pub driver: String,
    /// Bytes of an IP packet.
    pub mtu: u32,
    /// Transmit queues.
    pub tx_queues: usize,
    /// Offloads that are on: ethtool's names, of those that matter to XDP.
    pub offloads: Vec<String>,
    /// The stricter of `net.ipv4.conf.{all,NAME}.rp_filter`: 0, 1 (strict) or 2 (loose).
    pub rp_filter: Option<u8>,
}

/// Ports for SNAT.
#[derive(Clone, Debug)]
pub struct Ports {
    /// What was asked for.
    pub request: PortRequest,
    /// What the node uses; or why that is not known.
    pub in_use: Result<PortsInUse, String>,
    /// NodePorts of Services that are outside of the range that counts as NodePorts.
    pub stray_node_ports: Vec<u16>,
}

/// The networks of all sites.
#[derive(Clone, Debug, Default)]
pub struct Networks {
    /// Those that are declared or seen.
    pub known: Vec<Network>,
    /// What could not be read: the object and a sentence.
    pub unreadable: Vec<(String, String)>,
    /// Addresses of nodes and pods outside of what their member declares: the member, and which.
    pub outside: Vec<(String, String)>,
    /// Members that declare none of a kind: the member, and the field.
    pub undeclared: Vec<(String, &'static str)>,
}

/// An API server.
#[derive(Clone, Debug)]
pub struct Server {
    /// `gateway cluster`, or `member NAME`.
    pub name: String,
    /// What it says of itself; or why it can't be asked.
    pub answer: Result<ServerAnswer, String>,
}

/// Ways to the members and back.
#[derive(Clone, Debug, Default)]
pub struct Paths {
    /// Routes to the members' networks.
    pub routes: Vec<Route>,
    /// Tries to reach endpoints.
    pub probes: Vec<Probe>,
    /// Members without an endpoint to try.
    pub without_endpoints: Vec<String>,
    /// The network's routes for VIPs.
    pub vips: Vec<VipRoute>,
    /// SNAT addresses; empty: there is none that backends could answer to.
    pub snat_addresses: Vec<IpAddr>,
}

/// The gateway's route to a network.
#[derive(Clone, Debug)]
pub struct Route {
    /// Which network, and whose.
    pub network: Network,
    /// The interface that it leaves by and its MTU; or why packets can't go there.
    pub leads: Result<(String, u32), String>,
}

/// An attempt to reach an endpoint.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The member.
    pub member: String,
    /// Where to.
    pub endpoint: SocketAddr,
    /// A connection from wherever the kernel sends from.
    pub answer: Answer,
    /// Connections from each SNAT address of its family.
    pub from_snat: Vec<(IpAddr, Answer)>,
    /// What a packet that may not be fragmented found: bytes of an IP packet. `None`: unknown.
    pub path_mtu: Option<u32>,
    /// The MTU that the route begins with.
    pub first_mtu: Option<u32>,
}

/// What became of a datagram to a VIP.
#[derive(Clone, Debug)]
pub struct VipRoute {
    /// The VIP.
    pub vip: IpAddr,
    /// What became of it.
    pub arrival: Arrival,
}

/// Whether a datagram to a VIP comes to this gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It did.
    Here,
    /// The VIP is an address of this gateway: the network knows it as that.
    Own,
    /// A router refused it.
    Refused(String),
    /// Nothing came back, which some fabrics do for whoever sends to itself.
    Silence,
    /// It can't be looked at.
    Unseen(String),
}
