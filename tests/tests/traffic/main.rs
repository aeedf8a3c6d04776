//! Real packets through the real packet program and the real agent, in network namespaces.
//!
//! - [`spread`]: who is served by whom, over one interface and two;
//! - [`headers`]: VLAN tags, IPv4 options, IPv6 extension headers;
//! - [`addresses`]: a VIP that is the node's own address, and traffic that is not ours;
//! - [`icmp`]: path MTU discovery, closed ports, pings;
//! - [`affinity`]: who keeps their pod, by `sessionAffinity: ClientIP`;
//! - [`clients`]: pods, the backend itself, and the gateway's own node as clients;
//! - [`neighbours`]: a next hop that changes;
//! - [`endpoints`]: readiness, probes;
//! - [`drains`]: `kanmon drain` and `kanmon undrain`;
//! - [`flow_log`]: `kanmon flows --follow` and `--flow-log`;
//! - [`fragments`]: datagrams that are larger than a frame;
//! - [`limits`]: how many flows a client's network begins, by `newFlowLimit`;
//! - [`manifests`]: edits, good and bad;
//! - [`mtu`]: links of the gateway's own that take less than others;
//! - [`refusals`]: what a client hears at once of what is not served;
//! - [`sources`]: who is let in, by `loadBalancerSourceRanges`;
//! - [`views`]: what `kanmon flows` and the counters say of all that.

mod addresses;
mod affinity;
mod clients;
mod drains;
mod endpoints;
mod flow_log;
mod fragments;
mod headers;
mod icmp;
mod limits;
mod manifests;
mod mtu;
mod neighbours;
mod refusals;
mod sources;
mod spread;
mod views;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tests::{
    agent::{Agent, AgentOptions},
    client::{Tally, TcpLoad, UdpLoad},
    topology::{Bed, Options},
};

/// How long the agent may take to notice something: generous, for a busy machine.
const SOON: Duration = Duration::from_secs(20);
/// How long a request may take on a busy machine.
const ANSWER: Duration = Duration::from_secs(5);

/// A bed with so many pods in each cluster, and an agent whose tables are small.
fn gateway(pods: u8) -> (Bed, Agent) {
    with_options(Options { pods, ..Options::default() })
}

fn with_options(options: Options) -> (Bed, Agent) {
    let bed = Bed::s1(options).unwrap();
    let agent = bed.start_agent(small_tables()).unwrap();
    (bed, agent)
}

fn small_tables() -> AgentOptions {
    AgentOptions { extra: vec!["--flows=65536".into(), "--flows-v6=16384".into()], ..AgentOptions::default() }
}

/// The outcome of so many connections, none of which may fail. The flows are the same ones each time.
#[track_caller]
fn connect(bed: &Bed, target: SocketAddr, connections: usize, first_port: u16) -> Tally {
    let sources = Some(bed.client().exact_sources(target, connections, first_port));
    let load = TcpLoad { sources, timeout: ANSWER, ..TcpLoad::new(target, connections) };
    let tally = bed.client().tcp(load).unwrap().tally();
    assert_eq!(tally.failed, 0, "{target}: {tally:?}");
    tally
}

/// The same with UDP requests.
#[track_caller]
fn request(bed: &Bed, target: SocketAddr, requests: usize, first_port: u16) -> Tally {
    let sources = Some(bed.client().exact_sources(target, requests, first_port));
    let load = UdpLoad { sources, timeout: ANSWER, ..UdpLoad::new(target, requests) };
    let tally = bed.client().udp(load).unwrap().tally();
    assert_eq!(tally.failed, 0, "{target}: {tally:?}");
    tally
}

/// Both VIPs' TCP services, then both UDP services.
fn fronts(bed: &Bed) -> [SocketAddr; 4] {
    [bed.vip_http(), bed.vip_http6(), bed.vip_udp(), bed.vip_udp6()]
}

/// The counters of drops that have grown since `before`, and by how much.
fn drops_since(agent: &Agent, before: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let now = agent.counters().unwrap();
    let grown = now.into_iter().map(|(name, count)| {
        let grown = count - before.get(&name).copied().unwrap_or(0);
        (name, grown)
    });
    grown.filter(|(name, grown)| name.starts_with("drop_") && *grown > 0).collect()
}

/// By how much a counter has grown since `before`.
fn grown(agent: &Agent, before: &BTreeMap<String, u64>, name: &str) -> u64 {
    agent.counters().unwrap()[name] - before[name]
}

/// The gateway's own addresses.
fn gateway_addresses() -> [IpAddr; 2] {
    ["192.168.0.10".parse().unwrap(), "fd00:c0a8::10".parse().unwrap()]
}
