//! Story S1's network in namespaces.
//!
//! ```text
//!  client ──────────── cen ─────── hangzhou ─── hangzhou-1, -2, -3
//!  198.51.100.10–25    │ │         20.0.0.10     10.0.1.10, 10.0.2.10, 10.0.3.10
//!  2001:db8:c::10–25   │ │         fd00:20::10   fd00:10:0:1::10, …
//!                      │ └──────── shanghai ─── shanghai-1, -2, -3
//!                  gateway         21.0.0.10     10.1.1.10, 10.1.2.10, 10.1.3.10
//!                  192.168.0.10    fd00:21::10   fd00:10:1:1::10, …
//!                  fd00:c0a8::10
//! ```
//!
//! A bed for Kubernetes starts without pods (their addresses are 10.0.0.0/16 and fd00:10::/48, 10.1.0.0/16
//! and fd00:10:1::/48) and attaches control planes to `cen`, each in a namespace of its own:
//! 20.0.1.10 and fd00:20:0:1::10 for `hangzhou`, 21.0.1.10 for `shanghai`, 192.168.2.10 for `gateway`.
//!
//! A third cluster, `beijing`, may join (22.0.0.10, pods 10.2.0.0/16), and each member cluster may have a
//! gateway of its own: 192.168.11.10 with the VIPs 192.168.101.0/24 and fd00:101::/64 for `hangzhou`, 12 and
//! 102 for `shanghai`.
//!
//! `cen` joins the networks and routes the VIPs, 192.168.100.0/24 and fd00:100::/64, to the gateway. The
//! gateway's link is `eth0`; with [`Options::two_armed`] the clusters are behind a second one, `eth1`
//! (192.168.1.10, fd00:c0a8:1::10).

mod cluster;
mod control_plane;
mod gateway;
mod manifests;
mod plan;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result};
use ipnet::IpNet;

use self::{
    cluster::Cluster,
    plan::{CLIENT_ADDRESSES, CLUSTERS, CONTROL_PLANES, HOST, ROUTER, THIRD, vips},
};
use crate::{
    client::{Client, EXACT_PORTS},
    netns::{Link, Mac, Netns, RunDir, veth},
};

pub use control_plane::ControlPlane;
pub use gateway::Gateway;
pub use manifests::{Condition, Listed, Manifests};
pub use plan::{Dual, ECHO_PORT, HTTP_PORT, POD_PORT, Pod, VIP};
pub(crate) use plan::{Segment, everywhere, mac};

/// What a bed should look like.
#[derive(Clone, Debug)]
pub struct Options {
    /// The gateway reaches the clusters through `eth1` instead of `eth0`.
    pub two_armed: bool,
    /// Pods in each cluster at the start, 0 to 99.
    pub pods: u8,
}

impl Default for Options {
    fn default() -> Self {
        Options { two_armed: false, pods: 3 }
    }
}

/// A running network of story S1. Dropping it removes it.
///
/// Methods take `&self`: a bed can be shared between threads that send traffic and one that breaks things.
#[derive(Debug)]
pub struct Bed {
    clusters: Mutex<Vec<Cluster>>,
    client: Client,
    client_ns: Netns,
    gateway: Netns,
    cen: Netns,
    /// `cen`'s end of each of the gateway's links, `eth0` first.
    gateway_links: Vec<Link>,
    manifests: Manifests,
    /// Last: what is above stops before its directory goes.
    run: Arc<RunDir>,
}

impl Bed {
    /// Builds the network, starts the pods' servers, waits until they listen, and writes the manifests.
    ///
    /// # Errors
    /// Without root, or when the kernel lacks veth, IPv6 or XDP.
    pub fn s1(options: Options) -> Result<Bed> {
        let run = Arc::new(RunDir::create()?);
        let cen = Netns::create(&run, "cen")?;
        let client_ns = Netns::create(&run, "client")?;
        let gateway = Netns::create(&run, "gateway")?;
        make_router(&cen)?;
        join_client(&cen, &client_ns)?;
        let gateway_links = join_gateway(&cen, &gateway, options.two_armed)?;
        let mut clusters = Vec::new();
        for plan in CLUSTERS {
            let mut cluster = Cluster::join(&run, &cen, plan)?;
            for _ in 0..options.pods {
                cluster.add_pod(&run)?;
            }
            clusters.push(cluster);
        }
        for cluster in &clusters {
            cluster.wait_for_servers()?;
        }
        let manifests = Manifests::create(run.path().join("manifests"))?;
        let client = Client::new(client_ns.clone(), Segment::CLIENT, HOST..HOST + CLIENT_ADDRESSES);
        let bed = Bed {
            clusters: Mutex::new(clusters),
            client,
            client_ns,
            gateway,
            cen,
            gateway_links,
            manifests,
            run,
        };
        for name in bed.cluster_names() {
            bed.publish(&name)?;
        }
        Ok(bed)
    }

    /// The run's directory.
    pub fn run(&self) -> &Arc<RunDir> {
        &self.run
    }

    /// The load generator in the client's namespace.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The client's namespace.
    pub fn client_ns(&self) -> &Netns {
        &self.client_ns
    }

    /// The gateway's namespace: where the agent runs.
    pub fn gateway(&self) -> &Netns {
        &self.gateway
    }

    /// The router that joins the networks.
    pub fn cen(&self) -> &Netns {
        &self.cen
    }

    /// The namespace of a member cluster's node.
    ///
    /// # Errors
    /// When there is no such cluster.
    pub fn node(&self, cluster: &str) -> Result<Netns> {
        self.with_cluster(cluster, |cluster| Ok(cluster.node().clone()))
    }

    /// The prefixes a member cluster's pods get their addresses from, IPv4 first.
    ///
    /// # Errors
    /// When there is no such cluster.
    pub fn pod_prefixes(&self, cluster: &str) -> Result<[IpNet; 2]> {
        self.with_cluster(cluster, |cluster| Ok(cluster.pod_prefixes()))
    }

    /// The addresses of a member cluster's node.
    ///
    /// # Errors
    /// When there is no such cluster.
    pub fn node_address(&self, cluster: &str) -> Result<Dual> {
        self.with_cluster(cluster, |cluster| Ok(cluster.address()))
    }

    /// Makes the namespace of a cluster's control plane and joins it to `cen`. The clusters are `hangzhou`,
    /// `shanghai` and `gateway`, the one that the gateway's node belongs to.
    ///
    /// # Errors
    /// When there is no such cluster or it has a control plane already.
    pub fn attach_control_plane(&self, cluster: &str) -> Result<ControlPlane> {
        let plan = CONTROL_PLANES.into_iter().find(|plan| plan.cluster == cluster);
        let plan = plan.with_context(|| format!("the bed has no cluster {cluster}"))?;
        ControlPlane::attach(&self.run, &self.cen, plan)
    }

    /// Joins the third cluster, `beijing`, to the network, without pods.
    ///
    /// # Errors
    /// When it has joined before.
    pub fn join_third_cluster(&self) -> Result<()> {
        let cluster = Cluster::join(&self.run, &self.cen, THIRD)?;
        self.clusters().push(cluster);
        Ok(())
    }

    /// Makes a member cluster's own gateway, beside the bed's.
    ///
    /// # Errors
    /// When there is no such cluster or it has one already.
    pub fn attach_gateway(&self, cluster: &str) -> Result<Gateway> {
        let plan = self.with_cluster(cluster, |cluster| Ok(cluster.plan()))?;
        Gateway::attach(&self.run, &self.cen, plan)
    }

    /// The namespace of a pod.
    ///
    /// # Errors
    /// When there is no such pod.
    pub fn pod_ns(&self, pod: &str) -> Result<Netns> {
        self.with_cluster_of(pod, |cluster| Ok(cluster.pod_ns(pod)?.clone()))
    }

    /// The manifests the agent reads.
    pub fn manifests(&self) -> &Manifests {
        &self.manifests
    }

    /// The run's own bpffs.
    pub fn bpffs(&self) -> PathBuf {
        self.run.bpffs()
    }

    /// Where the agent's local socket is.
    pub fn socket(&self) -> PathBuf {
        self.run.path().join("kanmon.sock")
    }

    /// Where the TCP service is, over IPv4.
    pub fn vip_http(&self) -> SocketAddr {
        (VIP.v4, HTTP_PORT).into()
    }

    /// Where the TCP service is, over IPv6.
    pub fn vip_http6(&self) -> SocketAddr {
        (VIP.v6, HTTP_PORT).into()
    }

    /// Where the UDP service is, over IPv4.
    pub fn vip_udp(&self) -> SocketAddr {
        (VIP.v4, ECHO_PORT).into()
    }

    /// Where the UDP service is, over IPv6.
    pub fn vip_udp6(&self) -> SocketAddr {
        (VIP.v6, ECHO_PORT).into()
    }

    /// All clusters.
    pub fn cluster_names(&self) -> Vec<String> {
        self.clusters().iter().map(|cluster| cluster.name().to_owned()).collect()
    }

    /// All pods, in the order of their clusters and numbers.
    pub fn pods(&self) -> Vec<Pod> {
        self.clusters().iter().flat_map(Cluster::pods).collect()
    }

    /// The pods whose clusters call them ready.
    pub fn ready_pods(&self) -> Vec<Pod> {
        let clusters = self.clusters();
        let listed = clusters.iter().flat_map(Cluster::listed);
        listed.filter(|listed| listed.condition == Condition::Ready).map(|listed| listed.pod).collect()
    }

    /// Adds a pod to a cluster, waits until its server listens, and publishes it as ready.
    ///
    /// # Errors
    /// When there is no such cluster.
    pub fn add_pod(&self, cluster: &str) -> Result<Pod> {
        let pod = self.with_cluster(cluster, |cluster| {
            let pod = cluster.add_pod(&self.run)?;
            cluster.wait_for_servers()?;
            Ok(pod)
        })?;
        self.publish(cluster)?;
        Ok(pod)
    }

    /// Publishes a pod under another condition: an edit of its cluster's EndpointSlices.
    ///
    /// # Errors
    /// When there is no such pod.
    pub fn set_condition(&self, pod: &str, condition: Condition) -> Result<()> {
        let cluster = self.with_cluster_of(pod, |cluster| {
            cluster.set_condition(pod, condition)?;
            Ok(cluster.name().to_owned())
        })?;
        self.publish(&cluster)
    }

    /// Makes a cluster one of `count` ready pods, whatever was done to its pods before: the first ones get their link
    /// and their server back and are published as ready, those that are missing are added, and the others are gone
    /// from its EndpointSlices. One that was gone comes back as another pod of the same name and address.
    ///
    /// # Errors
    /// When there is no such cluster.
    pub fn scale(&self, cluster: &str, count: u8) -> Result<()> {
        self.with_cluster(cluster, |cluster| cluster.scale(&self.run, count))?;
        self.publish(cluster)
    }

    /// Asks a pod's server to end, as a kubelet does when its pod is deleted (SIGTERM): it takes new connections for
    /// two seconds more, then it ends with the connections that it has.
    ///
    /// # Errors
    /// When there is no such pod or its server is dead already.
    pub fn end_pod_server(&self, pod: &str) -> Result<()> {
        self.with_cluster_of(pod, |cluster| cluster.end_server(pod))
    }

    /// Whether a pod's server runs, be it on its way to its end.
    ///
    /// # Errors
    /// When there is no such pod.
    pub fn has_server(&self, pod: &str) -> Result<bool> {
        self.with_cluster_of(pod, |cluster| cluster.has_server(pod))
    }

    /// Ends a pod's server at once, be it on its way to its end: connections to it are refused. Its manifests stay
    /// as they are.
    ///
    /// # Errors
    /// When there is no such pod or its server is dead already.
    pub fn kill_pod_server(&self, pod: &str) -> Result<()> {
        self.with_cluster_of(pod, |cluster| cluster.kill_server(pod))
    }

    /// Starts a pod's server again and waits until it listens.
    ///
    /// # Errors
    /// When there is no such pod.
    pub fn start_pod_server(&self, pod: &str) -> Result<()> {
        self.with_cluster_of(pod, |cluster| {
            cluster.start_server(&self.run, pod)?;
            cluster.wait_for_servers()
        })
    }

    /// Takes a pod's link down: nothing answers any more, not even with an error.
    ///
    /// # Errors
    /// When there is no such pod.
    pub fn silence_pod(&self, pod: &str) -> Result<()> {
        self.with_cluster_of(pod, |cluster| cluster.silence_pod(pod))
    }

    /// Undoes [`Bed::silence_pod`].
    ///
    /// # Errors
    /// When there is no such pod.
    pub fn heal_pod(&self, pod: &str) -> Result<()> {
        self.with_cluster_of(pod, |cluster| cluster.heal_pod(pod))
    }

    /// Takes a cluster's uplink down: nothing in it answers any more, not even with an error.
    ///
    /// # Errors
    /// When there is no such cluster.
    pub fn silence_cluster(&self, cluster: &str) -> Result<()> {
        self.with_cluster(cluster, |cluster| cluster.silence())
    }

    /// Undoes [`Bed::silence_cluster`].
    ///
    /// # Errors
    /// When there is no such cluster.
    pub fn heal_cluster(&self, cluster: &str) -> Result<()> {
        self.with_cluster(cluster, |cluster| cluster.heal())
    }

    /// Gives `cen` another hardware address on the gateway's `eth0`, as when a standby router takes over;
    /// the kernel announces it. Returns the address before.
    ///
    /// # Errors
    /// When the kernel refuses the address.
    pub fn change_router_mac(&self, mac: Mac) -> Result<Mac> {
        let link = &self.gateway_links[0];
        let before = link.mac()?;
        link.set_mac(mac)?;
        Ok(before)
    }

    /// Sets the MTU of both ends of the gateway's `eth0` (or `eth1`, with `arm` 1).
    ///
    /// # Errors
    /// When there is no such arm, or with XDP attached and an MTU too large for it.
    pub fn set_gateway_mtu(&self, arm: usize, mtu: u32) -> Result<()> {
        let router = self.gateway_links.get(arm).with_context(|| format!("the gateway has no eth{arm}"))?;
        router.set_mtu(mtu)?;
        Link::find(&self.gateway, &format!("eth{arm}"))?.set_mtu(mtu)
    }

    /// Sets the MTU of both ends of a cluster's uplink.
    ///
    /// # Errors
    /// When there is no such cluster.
    pub fn set_cluster_mtu(&self, cluster: &str, mtu: u32) -> Result<()> {
        self.with_cluster(cluster, |cluster| cluster.set_mtu(mtu))
    }

    /// The log of one of the run's processes, by its name.
    pub fn log(&self, name: &str) -> PathBuf {
        self.run.path().join("logs").join(format!("{name}.log"))
    }

    /// Writes a cluster's EndpointSlices as the bed knows its pods.
    fn publish(&self, cluster: &str) -> Result<()> {
        let listed = self.with_cluster(cluster, |cluster| Ok(cluster.listed()))?;
        self.manifests.write_slices(cluster, &listed)
    }

    fn clusters(&self) -> MutexGuard<'_, Vec<Cluster>> {
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_cluster<T>(&self, name: &str, f: impl FnOnce(&mut Cluster) -> Result<T>) -> Result<T> {
        let mut clusters = self.clusters();
        let cluster = clusters.iter_mut().find(|cluster| cluster.name() == name);
        f(cluster.with_context(|| format!("the bed has no cluster {name}"))?)
    }

    fn with_cluster_of<T>(&self, pod: &str, f: impl FnOnce(&mut Cluster) -> Result<T>) -> Result<T> {
        let mut clusters = self.clusters();
        let cluster = clusters.iter_mut().find(|cluster| cluster.pods().iter().any(|p| p.name == pod));
        f(cluster.with_context(|| format!("the bed has no pod {pod}"))?)
    }
}

/// The program `name` of this workspace, as built beside the running one.
///
/// # Errors
/// When it is not built.
pub fn program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find the running program's path")?;
    // Tests run from target/<profile>/deps, programs from target/<profile>.
    own.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.is_file()).with_context(|| {
        let dir = own.parent().unwrap_or(Path::new("."));
        format!("{name} is not built: expected near {}; run `cargo xtask build`", dir.display())
    })
}

/// Makes a namespace forward packets.
pub(crate) fn make_router(ns: &Netns) -> Result<()> {
    ns.sysctl("net.ipv4.ip_forward", "1")?;
    ns.sysctl("net.ipv6.conf.all.forwarding", "1")
}

/// Gives the link its addresses and brings it up.
pub(crate) fn configure(link: &Link, addresses: impl IntoIterator<Item = IpNet>) -> Result<()> {
    addresses.into_iter().try_for_each(|address| link.add_address(address))?;
    link.up()
}

/// Routes a prefix of each family, IPv4 first, via one host.
pub(crate) fn set_routes(ns: &Netns, to: [IpNet; 2], via: Dual) -> Result<()> {
    to.into_iter().zip(via.both()).try_for_each(|(to, via)| ns.set_route(to, via))
}

fn join_client(cen: &Netns, client: &Netns) -> Result<()> {
    let (host, router) = veth((client, "eth0", mac(1, 0, 0, 1)), (cen, "client", mac(1, 0, 0, 0)))?;
    let addresses = (HOST..HOST + CLIENT_ADDRESSES).flat_map(|n| Segment::CLIENT.interface(n));
    configure(&host, addresses)?;
    configure(&router, Segment::CLIENT.interface(ROUTER))?;
    set_routes(client, everywhere(), Segment::CLIENT.host(ROUTER))?;
    // Many short connections from few addresses: use every port, and again after a second.
    client.sysctl("net.ipv4.ip_local_port_range", "1024 65535")?;
    let exact = format!("{}-{}", EXACT_PORTS.start(), EXACT_PORTS.end());
    client.sysctl("net.ipv4.ip_local_reserved_ports", &exact)?;
    client.sysctl("net.ipv4.tcp_tw_reuse", "1")
}

fn join_gateway(cen: &Netns, gateway: &Netns, two_armed: bool) -> Result<Vec<Link>> {
    let arms: &[(&str, &str, Segment)] =
        &[("eth0", "gateway0", Segment::GATEWAY), ("eth1", "gateway1", Segment::GATEWAY_INSIDE)];
    let mut links = Vec::new();
    for (n, &(eth, name, segment)) in (0u8..).zip(&arms[..if two_armed { 2 } else { 1 }]) {
        let (host, router) = veth((gateway, eth, mac(2, n, 0, 1)), (cen, name, mac(2, n, 0, 0)))?;
        configure(&host, segment.interface(HOST))?;
        configure(&router, segment.interface(ROUTER))?;
        router.attach_xdp_pass()?;
        links.push(router);
    }
    set_routes(gateway, everywhere(), Segment::GATEWAY.host(ROUTER))?;
    set_routes(cen, vips(), Segment::GATEWAY.host(HOST))?;
    if two_armed {
        for cluster in CLUSTERS {
            for to in [cluster.pods(), cluster.nodes()] {
                set_routes(gateway, to, Segment::GATEWAY_INSIDE.host(ROUTER))?;
            }
        }
    }
    Ok(links)
}
