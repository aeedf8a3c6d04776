//! Facts of story S1's gateway, and what one thing wrong with them makes of the report.

use super::facts::*;
use super::{Facts, Status, judge};
use crate::config::XdpMode;
use crate::desired::{Network, NetworkKind, Site};
use crate::health::Answer;
use crate::network::snat::{DEFAULT_NODE_PORTS, PortRequest, PortsInUse};

fn network(site: Site, kind: NetworkKind, cidr: &str) -> Network {
    Network { site, kind, cidr: cidr.parse().unwrap() }
}

fn member(kind: NetworkKind, cidr: &str) -> Network {
    network(Site::Member("hangzhou".to_owned()), kind, cidr)
}

fn probe() -> Probe {
    Probe {
        member: "hangzhou".to_owned(),
        endpoint: "10.0.1.10:8080".parse().unwrap(),
        answer: Answer::Answered,
        from_snat: vec![("192.168.0.10".parse().unwrap(), Answer::Answered)],
        path_mtu: Some(1500),
        first_mtu: Some(1500),
    }
}

/// A gateway where all is well.
fn good() -> Facts {
    let pods = member(NetworkKind::Pod, "10.0.0.0/16");
    let link = LinkFacts {
        up: true,
        ethernet: true,
        driver: "veth".to_owned(),
        mtu: 1500,
        tx_queues: 1,
        offloads: Vec::new(),
        rp_filter: Some(0),
    };
    let answer = ServerAnswer {
        version: "v1.36.3".to_owned(),
        numbers: Some((1, 36)),
        ahead_seconds: Some(0),
        ..ServerAnswer::default()
    };
    let eth0 = Interface { name: "eth0".to_owned(), link: Some(link), ..Interface::default() };
    Facts {
        host: Host {
            release: "6.18.0".to_owned(),
            jit: Some(true),
            pins: ("/sys/fs/bpf/kanmon".to_owned(), Some("bpf".to_owned())),
            cpus: 2,
            ..Host::default()
        },
        xdp_mode: XdpMode::Native,
        interfaces: vec![eth0],
        ports: Ports {
            request: PortRequest::Auto,
            in_use: Ok(PortsInUse {
                ephemeral: 32_768..=60_999,
                reserved: Vec::new(),
                node_ports: DEFAULT_NODE_PORTS,
            }),
            stray_node_ports: Vec::new(),
        },
        networks: Networks { known: vec![pods.clone()], ..Networks::default() },
        servers: vec![Server { name: "member hangzhou".to_owned(), answer: Ok(answer) }],
        paths: Paths {
            routes: vec![Route { network: pods, leads: Ok(("eth0".to_owned(), 1500)) }],
            probes: vec![probe()],
            without_endpoints: Vec::new(),
            vips: vec![VipRoute { vip: "192.168.100.10".parse().unwrap(), arrival: Arrival::Here }],
            snat_addresses: vec!["192.168.0.10".parse().unwrap()],
        },
    }
}

/// The checks that fail, each with what to do.
fn failed(facts: &Facts) -> Vec<String> {
    let report = judge(facts);
    let failed = report.findings.into_iter().filter(|finding| finding.status == Status::Failed);
    failed
        .map(|finding| {
            assert!(finding.fix.is_some_and(|fix| !fix.is_empty()), "{} says what to do", finding.check);
            finding.check
        })
        .collect()
}

#[test]
fn a_gateway_where_all_is_well_passes_without_a_warning() {
    let report = judge(&good());
    let bad: Vec<_> = report.findings.iter().filter(|finding| finding.status != Status::Ok).collect();
    assert!(bad.is_empty(), "{bad:?}");
}

#[test]
fn each_fault_fails_in_its_own_line_alone() {
    type Fault = (&'static str, fn(&mut Facts));
    let faults: [Fault; 23] = [
        ("kernel", |facts| facts.host.lacks.push(("kernel", "Linux 5.4 is too old: use 6.1".to_owned()))),
        ("capabilities", |facts| {
            facts.host.lacks.push(("capabilities", "this process lacks CAP_BPF: run it as root".to_owned()));
        }),
        ("jit", |facts| facts.host.jit = Some(false)),
        ("pins", |facts| facts.host.pins.1 = Some("other".to_owned())),
        ("interface", |facts| facts.interfaces[0].link = None),
        ("interface", |facts| facts.interfaces[0].link.as_mut().unwrap().up = false),
        ("xdp", |facts| facts.interfaces[0].foreign_program = Some("somebody's program is there".to_owned())),
        ("xdp", |facts| facts.interfaces[0].link.as_mut().unwrap().driver = "dummy".to_owned()),
        ("snat-ports", |facts| facts.ports.request = PortRequest::Range(32_768..=49_151)),
        ("node-ports", |facts| facts.ports.request = PortRequest::Range(16_384..=32_767)),
        ("node-ports", |facts| facts.ports.stray_node_ports.push(20_000)),
        ("cidr", |facts| {
            let other = Site::Member("shanghai".to_owned());
            facts.networks.known.push(network(other, NetworkKind::Pod, "10.0.128.0/17"));
        }),
        ("cidr", |facts| {
            facts.networks.outside.push(("hangzhou".to_owned(), "20.0.0.1 is in none".to_owned()));
        }),
        ("api-server", |facts| facts.servers[0].answer = Err("connection refused".to_owned())),
        ("api-version", |facts| facts.servers[0].answer.as_mut().unwrap().numbers = Some((1, 24))),
        ("api-rights", |facts| {
            facts.servers[0].answer.as_mut().unwrap().missing_rights.push("patch services/status".to_owned());
        }),
        ("clock", |facts| facts.servers[0].answer.as_mut().unwrap().ahead_seconds = Some(-90)),
        ("snat-address", |facts| facts.paths.snat_addresses.clear()),
        ("route", |facts| facts.paths.routes[0].leads = Err("no route".to_owned())),
        ("probe", |facts| facts.paths.probes[0].answer = Answer::Failed("no answer".to_owned())),
        ("way-back", |facts| facts.paths.probes[0].from_snat[0].1 = Answer::Failed("no answer".to_owned())),
        ("mtu", |facts| facts.paths.probes[0].path_mtu = Some(1200)),
        ("vip-route", |facts| facts.paths.vips[0].arrival = Arrival::Refused("no route to host".to_owned())),
    ];
    for (number, (check, plant)) in faults.into_iter().enumerate() {
        let mut facts = good();
        plant(&mut facts);
        assert_eq!(failed(&facts), [check], "fault {number}");
    }
}

#[test]
fn strict_reverse_path_filtering_hurts_a_gateway_with_two_arms_only() {
    let mut facts = good();
    facts.interfaces[0].link.as_mut().unwrap().rp_filter = Some(1);
    assert_eq!(failed(&facts), [""; 0]);
    let mut second = facts.interfaces[0].clone();
    second.name = "eth1".to_owned();
    second.link.as_mut().unwrap().rp_filter = Some(0);
    facts.interfaces.push(second);
    assert_eq!(failed(&facts), ["rp-filter"]);
}

#[test]
fn a_network_that_brings_nothing_back_and_a_smaller_mtu_are_warnings() {
    let mut facts = good();
    facts.paths.vips[0].arrival = Arrival::Silence;
    facts.paths.probes[0].path_mtu = Some(1400);
    let report = judge(&facts);
    assert_eq!((report.worst(), report.count(Status::Warning)), (Status::Warning, 2));
}
