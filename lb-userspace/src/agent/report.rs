//! Answers for `kanmon status` and its like: what the loop last published, joined with what the maps say now.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use lb_common::abi::{
    ABI_VERSION, Backend, Config, FlowState, Member, ServiceDescriptor, backend_flags, member_flags,
};
use lb_common::clock::TICK_NS;
use lb_common::datapath::sweep::{self, FlowView};
use tokio::sync::broadcast::Receiver;
use tokio::sync::watch;

use super::clock;
use super::drains::{self, Keeper};
use super::flow_log::Records;
use super::published::{Facts, Gone, Published};
use super::sweep::Pass;
use crate::bpf::Memory;
use crate::cluster::Connection;
use crate::desired::{BackendId, Endpoint, Protocol, Service, ServiceId};
use crate::health::Verdict;
use crate::network::{NextHop, NodeClients};
use crate::plan::{MemberInfo, ServiceInfo};
use crate::status::protocol::{Change, FlowFilter};
use crate::status::server::Source;
use crate::status::view::{self, DrainCause};

/// Where the answers come from.
pub(super) struct Report {
    pub(super) facts: Facts,
    pub(super) published: watch::Receiver<Arc<Published>>,
    pub(super) passes: watch::Receiver<Arc<Pass>>,
    pub(super) node_clients: watch::Receiver<Arc<NodeClients>>,
    pub(super) memory: Arc<Memory>,
    pub(super) config: Config,
    pub(super) keeper: Keeper,
    pub(super) records: Records,
}

impl Source for Report {
    fn status(&self) -> view::Status {
        let published = self.published.borrow().clone();
        let facts = self.facts.clone();
        view::Status {
            ready: published.ready,
            since: facts.since,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            abi: ABI_VERSION,
            kernel: kernel_release(),
            pid: std::process::id(),
            region: first(&[&published.place.region, &facts.region]),
            zone: first(&[&published.place.zone, &facts.zone]),
            pin_dir: facts.pin_dir,
            adopted: facts.adopted,
            attach: published.attach.clone(),
            clusters: clusters(&published),
            services: published.services.iter().filter(|info| published.serves(&info.id)).count(),
            backends: totals(&published),
            flows: flow_totals(&self.passes.borrow(), facts.capacity),
            memory: facts.memory,
            counters: self.memory.counters().iter().map(|(c, sum)| (c.name().to_owned(), sum)).collect(),
            redirects_uncounted: facts.redirects_uncounted,
            snat: facts.snat,
            drained: drains::rows(&published, &self.passes.borrow()),
            node_is_no_client: node_is_no_client(&self.node_clients.borrow()),
            problems: published.problems.clone(),
        }
    }

    fn services(&self) -> Vec<view::Service> {
        let published = self.published.borrow().clone();
        let infos: HashMap<ServiceId, &ServiceInfo> =
            published.services.iter().map(|info| (info.id, info)).collect();
        let mut traffic: HashMap<ServiceId, view::Traffic> = HashMap::new();
        for member in published.members.values() {
            *traffic.entry(member.service).or_default() += self.traffic(member.index);
        }
        published
            .desired
            .services
            .values()
            .map(|service| {
                let health = published.usability.services.get(&service.id);
                let ring = infos.get(&service.id).map(|info| info.ring).filter(|ring| ring.is_some());
                view::Service {
                    namespace: service.namespace.clone(),
                    name: service.name.clone(),
                    vip: service.id.vip,
                    port: service.id.port,
                    protocol: service.id.protocol.to_string(),
                    front: first(&[&service.front]),
                    not_fronts: service.not_fronts.clone(),
                    endpoints: service.endpoints.len(),
                    usable: service
                        .endpoints
                        .iter()
                        .filter(|endpoint| published.is_usable(service, endpoint))
                        .count(),
                    clusters: clusters_of(service).into_iter().map(str::to_owned).collect(),
                    ring: ring.map(|ring| view::Ring { slots: ring.slots(), version: ring.version() }),
                    source_ranges: service.sources.as_ref().map(|ranges| ranges.iter().copied().collect()),
                    affinity_seconds: service.affinity.map(|time| time.as_secs()),
                    traffic: traffic.get(&service.id).copied().unwrap_or_default(),
                    degraded: health.is_some_and(|health| health.degraded.is_some())
                        || published.refusal(service).is_some(),
                    problem: published.service_problem(service),
                }
            })
            .collect()
    }

    fn backends(&self) -> Vec<view::Backend> {
        let published = self.published.borrow().clone();
        let pass = self.passes.borrow().clone();
        let mut rows = Vec::new();
        for service in published.desired.services.values() {
            for endpoint in &service.endpoints {
                rows.push(self.backend(&published, &pass, service, endpoint));
            }
        }
        for ((service, backend), gone) in &published.gone {
            let member = published.members.get(&(*service, *backend));
            let mut row = blank(&gone.endpoint, &gone.service, service.vip);
            row.draining = true;
            row.drain_cause = Some(DrainCause::Removed);
            row.reason = Some("its cluster no longer lists it; its flows may finish".to_owned());
            self.fill(&mut row, &pass, &published, member, backend);
            rows.push(row);
        }
        rows
    }

    fn flows(&self, filter: &FlowFilter) -> Vec<view::Flow> {
        let published = self.published.borrow().clone();
        let members: HashMap<u32, &MemberInfo> =
            published.members.values().map(|member| (member.index, member)).collect();
        let names = Names::of(&published);
        let tables = self.memory.tables(&self.config);
        let (now, limit) = (clock::tick(), filter.limit.unwrap_or(usize::MAX));
        let last = self.config.reverse_v4_mask.max(self.config.reverse_v6_mask);
        let mut flows = Vec::new();
        for bucket in 0..=last {
            sweep::all_flows(&tables, bucket, now, |seen| {
                if flows.len() < limit
                    && let Some(mut flow) = self.flow(&seen)
                {
                    if let Some(member) = members.get(&seen.member) {
                        names.fill(&mut flow, member);
                    }
                    if matches(&flow, filter) {
                        flows.push(flow);
                    }
                }
            });
            if flows.len() >= limit {
                break;
            }
        }
        flows
    }

    fn follow(&self) -> Receiver<Arc<view::FlowRecord>> {
        self.records.subscribe()
    }

    fn change(&self, change: &Change) -> Result<view::Drained, String> {
        self.keeper.carry_out(change, &self.published, &self.passes)
    }
}

impl Report {
    fn traffic(&self, member: u32) -> view::Traffic {
        let stats = self.memory.member_stats(member);
        view::Traffic {
            connections: stats.connections,
            packets_in: stats.packets_in,
            bytes_in: stats.bytes_in,
            packets_out: stats.packets_out,
            bytes_out: stats.bytes_out,
        }
    }

    fn backend(
        &self,
        published: &Published,
        pass: &Pass,
        service: &Service,
        endpoint: &Endpoint,
    ) -> view::Backend {
        let member = published.members.get(&(service.id, endpoint.backend));
        let mut row = blank(endpoint, &format!("{}/{}", service.namespace, service.name), service.id.vip);
        row.healthy = match published.verdicts.of_endpoint(endpoint, &service.health_check) {
            Verdict::Unknown => None,
            Verdict::Healthy => Some(true),
            Verdict::Unhealthy { .. } => Some(false),
        };
        row.usable = published.is_usable(service, endpoint);
        row.drain_cause = published.drain_cause(endpoint);
        // A member that never had a flow is not in the maps; a person still wants to see that it is drained.
        let by_people = matches!(row.drain_cause, Some(DrainCause::ByHand | DrainCause::MemberCluster));
        row.draining = by_people || (row.drain_cause.is_some() && member.is_some());
        row.reason = published.reason(service, endpoint);
        self.fill(&mut row, pass, published, member, &endpoint.backend);
        row
    }

    /// What the maps say of a member.
    fn fill(
        &self,
        row: &mut view::Backend,
        pass: &Pass,
        published: &Published,
        member: Option<&MemberInfo>,
        backend: &BackendId,
    ) {
        if let Some(member) = member {
            // The order to leave may still wait for a grace period of another; until then packets go there.
            row.usable |= row.drain_cause.is_some() && self.takes_new_flows(member);
            row.flows = pass.usage.flows.get(&member.index).copied().unwrap_or_default();
            row.traffic = self.traffic(member.index);
            let left = member.drained_by.map(|end| end.saturating_duration_since(Instant::now()));
            row.drain_seconds = left.map(|left| left.as_secs());
        }
        if let Some(Ok(hop)) = published.next_hops.get(&backend.address) {
            row.next_hop = Some(next_hop(hop));
        }
    }

    /// Whether new flows may go to a member, as the maps have it now.
    fn takes_new_flows(&self, info: &MemberInfo) -> bool {
        let member: Option<Member> = self.memory.members.read(info.index);
        let backend: Option<Backend> = self.memory.backends.read(info.backend_index);
        let open = member.is_some_and(|member| {
            member.generation == info.generation
                && member.flags & member_flags::VALID != 0
                && member.flags & (member_flags::DRAINING | member_flags::REMOVED) == 0
        });
        open && backend.is_some_and(|backend| backend.flags & backend_flags::USABLE != 0)
    }

    /// A flow without names; `None` when what it points to has gone meanwhile.
    fn flow(&self, seen: &FlowView) -> Option<view::Flow> {
        let member: Member = self.memory.members.read(seen.member)?;
        if member.flags & member_flags::VALID == 0 {
            return None;
        }
        let service: ServiceDescriptor = self.memory.descriptors.read(member.service)?;
        let v4 = seen.family == 4;
        let snat = usize::from(seen.snat);
        let snat_address: IpAddr = if v4 {
            (*self.config.snat_v4.get(snat)?).into()
        } else {
            (*self.config.snat_v6.get(snat)?).into()
        };
        Some(view::Flow {
            client: SocketAddr::new(address(seen.client, v4), u16::from_be_bytes(seen.client_port)),
            vip: SocketAddr::new(address(service.vip, v4), u16::from_be_bytes(member.vip_port)),
            protocol: Protocol::from_ip_number(service.protocol)?.to_string(),
            upstream_host: SocketAddr::new(address(member.address, v4), u16::from_be_bytes(member.port)),
            service: None,
            cluster: None,
            pod: None,
            state: state_name(seen.state).to_owned(),
            snat: SocketAddr::new(snat_address, seen.snat_port),
            idle_seconds: f64::from(seen.idle) * TICK_NS as f64 / 1e9,
        })
    }
}

/// Names of pods and services, by member.
struct Names<'a> {
    endpoints: HashMap<(ServiceId, BackendId), &'a Endpoint>,
    services: HashMap<ServiceId, String>,
    gone: &'a HashMap<(ServiceId, BackendId), Gone>,
}

impl<'a> Names<'a> {
    fn of(published: &'a Published) -> Self {
        let services = published.desired.services.values();
        Self {
            endpoints: services
                .clone()
                .flat_map(|service| {
                    service.endpoints.iter().map(|endpoint| ((service.id, endpoint.backend), endpoint))
                })
                .collect(),
            services: services
                .map(|service| (service.id, format!("{}/{}", service.namespace, service.name)))
                .collect(),
            gone: &published.gone,
        }
    }

    fn fill(&self, flow: &mut view::Flow, member: &MemberInfo) {
        let key = (member.service, member.backend);
        let gone = self.gone.get(&key);
        flow.service =
            self.services.get(&member.service).cloned().or_else(|| gone.map(|gone| gone.service.clone()));
        if let Some(endpoint) = self.endpoints.get(&key).copied().or(gone.map(|gone| &gone.endpoint)) {
            flow.cluster = Some(endpoint.cluster.clone());
            flow.pod = Some(endpoint.pod.clone()).filter(|pod| !pod.is_empty());
        }
    }
}

fn matches(flow: &view::Flow, filter: &FlowFilter) -> bool {
    filter.wants_service(flow.service.as_deref(), Some(flow.vip))
        && filter.client.is_none_or(|client| flow.client.ip() == client)
}

fn blank(endpoint: &Endpoint, service: &str, vip: IpAddr) -> view::Backend {
    view::Backend {
        cluster: endpoint.cluster.clone(),
        region: endpoint.region.clone(),
        zone: endpoint.zone.clone(),
        service: service.to_owned(),
        vip,
        pod: endpoint.pod.clone(),
        address: endpoint.backend.address,
        port: endpoint.backend.port,
        protocol: endpoint.backend.protocol.to_string(),
        ready: endpoint.ready,
        healthy: None,
        usable: false,
        draining: false,
        drain_cause: None,
        drain_seconds: None,
        flows: 0,
        traffic: view::Traffic::default(),
        next_hop: None,
        reason: None,
    }
}

fn node_is_no_client(clients: &NodeClients) -> Vec<view::NodeIsNoClient> {
    let refused = clients.iter().filter_map(|(vip, why)| Some((vip, why.as_ref()?)));
    refused.map(|(vip, why)| view::NodeIsNoClient { vip: *vip, reason: why.to_string() }).collect()
}

fn clusters(published: &Published) -> Vec<view::Cluster> {
    let services = || published.desired.services.values();
    published
        .clusters
        .iter()
        .map(|(name, member)| {
            let endpoints = || {
                services().flat_map(|service| &service.endpoints).filter(|endpoint| endpoint.cluster == *name)
            };
            let backends: BTreeSet<BackendId> = endpoints().map(|endpoint| endpoint.backend).collect();
            let of_nodes: BTreeSet<&str> = endpoints().map(|endpoint| endpoint.region.as_str()).collect();
            let of_nodes = of_nodes.into_iter().collect::<Vec<_>>().join(",");
            view::Cluster {
                name: name.clone(),
                region: first(&[&member.region, &of_nodes]),
                state: format!("{:?}", member.state),
                connection: member.connection.as_ref().map(connection),
                services: services()
                    .filter(|service| service.endpoints.iter().any(|endpoint| endpoint.cluster == *name))
                    .count(),
                endpoints: backends.len(),
                problem: published
                    .problems
                    .iter()
                    .find(|problem| problem.cluster.as_ref() == Some(name))
                    .map(|problem| format!("{}: {}", problem.object, problem.message)),
            }
        })
        .collect()
}

fn connection(connection: &Connection) -> view::Connection {
    view::Connection {
        connected: connection.connected,
        synced: connection.synced,
        reason: connection.reason.to_owned(),
        message: first(&[&connection.message]),
        since: connection.since.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        version: first(&[&connection.version]),
        writable: connection.writable,
    }
}

/// The first of these that says something.
fn first(texts: &[&String]) -> Option<String> {
    texts.iter().find(|text| !text.is_empty()).map(|text| (*text).clone())
}

fn clusters_of(service: &Service) -> BTreeSet<&str> {
    service.endpoints.iter().map(|endpoint| endpoint.cluster.as_str()).collect()
}

fn totals(published: &Published) -> view::BackendTotals {
    let (mut all, mut failing, mut usable) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for service in published.desired.services.values() {
        for endpoint in &service.endpoints {
            all.insert(endpoint.backend);
            let verdict = published.verdicts.of_endpoint(endpoint, &service.health_check);
            if !endpoint.ready || matches!(verdict, Verdict::Unhealthy { .. }) {
                failing.insert(endpoint.backend);
            }
            if published.is_usable(service, endpoint) {
                usable.insert(endpoint.backend);
            }
        }
    }
    view::BackendTotals { total: all.len(), healthy: all.len() - failing.len(), usable: usable.len() }
}

fn flow_totals(pass: &Pass, capacity: u64) -> view::FlowTotals {
    let mut totals = view::FlowTotals { capacity, ..view::FlowTotals::default() };
    for (state, count) in FlowState::ALL.into_iter().zip(pass.states) {
        if state.is_live() {
            *totals.states.entry(group(state).to_owned()).or_default() += count;
            totals.total += count;
        }
    }
    totals.fill = totals.total as f64 / capacity.max(1) as f64;
    totals
}

/// States as `kanmon status` sums them up.
const fn group(state: FlowState) -> &'static str {
    match state {
        FlowState::Empty | FlowState::Claimed => "none",
        FlowState::SynSent | FlowState::SynAcked | FlowState::Refused => "half_open",
        FlowState::Established => "established",
        FlowState::ClientFin | FlowState::BackendFin => "closing",
        FlowState::Closed => "closed",
        FlowState::ClientReset | FlowState::BackendReset => "reset",
        FlowState::UdpNew => "udp_new",
        FlowState::UdpReplied | FlowState::UdpAssured => "udp_replied",
    }
}

const fn state_name(state: FlowState) -> &'static str {
    match state {
        FlowState::Empty => "empty",
        FlowState::Claimed => "claimed",
        FlowState::SynSent => "syn-sent",
        FlowState::SynAcked => "syn-acked",
        FlowState::Established => "established",
        FlowState::ClientFin => "client-fin",
        FlowState::BackendFin => "backend-fin",
        FlowState::Closed => "closed",
        FlowState::ClientReset => "client-reset",
        FlowState::BackendReset => "backend-reset",
        FlowState::Refused => "refused",
        FlowState::UdpNew => "udp-new",
        FlowState::UdpReplied => "udp-replied",
        FlowState::UdpAssured => "udp-assured",
    }
}

fn address(bytes: [u8; 16], v4: bool) -> IpAddr {
    let [a, b, c, d, ..] = bytes;
    if v4 { Ipv4Addr::new(a, b, c, d).into() } else { Ipv6Addr::from(bytes).into() }
}

fn next_hop(hop: &NextHop) -> String {
    let mac: Vec<String> = hop.destination_mac.iter().map(|byte| format!("{byte:02x}")).collect();
    let interface = nix::net::if_::if_indextoname(hop.ifindex)
        .map_or_else(|_| hop.ifindex.to_string(), |name| name.to_string_lossy().into_owned());
    let tags: String =
        hop.vlan.iter().map(|tag| format!(" vlan {}", u16::from_be_bytes(*tag) & 0x0fff)).collect();
    format!("{} dev {interface}{tags}", mac.join(":"))
}

fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> view::Flow {
        view::Flow {
            client: "198.51.100.2:40000".parse().unwrap(),
            vip: "192.168.100.10:80".parse().unwrap(),
            protocol: "TCP".into(),
            upstream_host: "10.0.1.10:8080".parse().unwrap(),
            service: Some("demo/httpbin".into()),
            cluster: None,
            pod: None,
            state: "established".into(),
            snat: "192.168.0.2:12288".parse().unwrap(),
            idle_seconds: 0.0,
        }
    }

    #[test]
    fn a_service_is_named_by_name_namespace_vip_or_port() {
        for (name, found) in [
            ("httpbin", true),
            ("demo/httpbin", true),
            ("192.168.100.10", true),
            ("192.168.100.10:80", true),
            ("other/httpbin", false),
            ("192.168.100.1", false),
        ] {
            let filter = FlowFilter { service: Some(name.into()), ..FlowFilter::default() };
            assert_eq!(matches(&flow(), &filter), found, "{name}");
        }
    }

    #[test]
    fn flows_are_filtered_by_client() {
        let of = |client: [u8; 4]| FlowFilter { client: Some(client.into()), ..FlowFilter::default() };
        assert!(matches(&flow(), &of([198, 51, 100, 2])));
        assert!(!matches(&flow(), &of([198, 51, 100, 3])));
    }

    #[test]
    fn the_states_of_a_pass_are_summed_up_for_people() {
        let mut pass = Pass::default();
        pass.states[FlowState::SynSent as usize] = 2;
        pass.states[FlowState::SynAcked as usize] = 3;
        pass.states[FlowState::Established as usize] = 5;
        let totals = flow_totals(&pass, 100);
        assert_eq!((totals.total, totals.states["half_open"], totals.states["established"]), (10, 5, 5));
        assert!((totals.fill - 0.1).abs() < 1e-9);
    }
}
