//! `loadBalancerSourceRanges`: clients with allowed and with forbidden addresses.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;
use tests::{
    agent::Agent,
    client::{Hold, Sources, Tally, TcpLoad, UdpLoad},
    scenario::eventually,
    topology::{Bed, ECHO_PORT},
};

use super::{ANSWER, SOON, drops_since, fronts, gateway};

/// How long a client that is not answered waits: less than the second SYN takes.
pub(super) const NO_ANSWER: Duration = Duration::from_millis(700);

/// The upper ten of the client's sixteen addresses in each family.
const UPPER: [&str; 2] = ["198.51.100.16/28", "2001:db8:c::16/123"];

/// Gives the service these ranges in all clusters; `None`: it has no such field.
fn restrict(bed: &Bed, good: &str, ranges: Option<&[&str]>) {
    let text = match ranges {
        Some(ranges) => {
            good.replace("  ports:", &format!("  loadBalancerSourceRanges: {ranges:?}\n  ports:"))
        }
        None => good.to_owned(),
    };
    for cluster in bed.cluster_names() {
        bed.manifests().write(&format!("{cluster}/service.yaml"), &text).unwrap();
    }
}

/// The client's addresses of the target's family that are in one of the ranges, or are not.
pub(super) fn addresses(bed: &Bed, target: SocketAddr, ranges: &[&str], inside: bool) -> Vec<IpAddr> {
    let Sources::Addresses(all) = bed.client().sources(target) else { panic!("addresses") };
    let is_in = |ip: &IpAddr| ranges.iter().any(|range| range.parse::<IpNet>().unwrap().contains(ip));
    let chosen: Vec<_> = all.iter().copied().filter(|ip| is_in(ip) == inside).collect();
    assert!(!chosen.is_empty(), "{all:?}");
    chosen
}

/// One request from each of these addresses.
pub(super) fn ask(bed: &Bed, target: SocketAddr, addresses: &[IpAddr], timeout: Duration) -> Tally {
    let sources = Some(Sources::Addresses(addresses.into()));
    let count = addresses.len();
    let report = if target.port() == ECHO_PORT {
        bed.client().udp(UdpLoad { sources, timeout, ..UdpLoad::new(target, count) })
    } else {
        bed.client().tcp(TcpLoad { sources, timeout, ..TcpLoad::new(target, count) })
    };
    report.unwrap().tally()
}

fn drop_source(agent: &Agent) -> u64 {
    agent.counters().unwrap()["drop_source"]
}

/// Waits until the packet program says no to the forbidden ones of each front.
fn await_refusals(bed: &Bed, ranges: &[&str]) {
    for target in fronts(bed) {
        let forbidden = addresses(bed, target, ranges, false);
        eventually("refusing forbidden sources", SOON, || {
            ask(bed, target, &forbidden[..1], NO_ANSWER).failed == 1
        });
    }
}

#[test]
fn clients_outside_the_ranges_get_nowhere_and_those_within_are_served_over_both_families_and_protocols() {
    let (bed, agent) = gateway(1);
    let good = bed.manifests().read("hangzhou/service.yaml").unwrap();
    restrict(&bed, &good, Some(&UPPER));
    await_refusals(&bed, &UPPER);
    let rows = agent.services().unwrap();
    assert!(
        rows.iter().all(|row| row["source_ranges"].as_array().is_some_and(|all| all.len() == 1)),
        "{rows:?}"
    );
    for target in fronts(&bed) {
        let before = agent.counters().unwrap();
        let forbidden = addresses(&bed, target, &UPPER, false);
        let tally = ask(&bed, target, &forbidden, NO_ANSWER);
        assert_eq!(tally.failed, forbidden.len() as u64, "{target}: {tally:?}");
        let drops = drops_since(&agent, &before);
        assert!(drops["drop_source"] >= forbidden.len() as u64, "{target}: {drops:?}");
        assert_eq!(drops.len(), 1, "{target}: {drops:?}");
        let counted = drop_source(&agent);
        let tally = ask(&bed, target, &addresses(&bed, target, &UPPER, true), ANSWER);
        assert_eq!(tally.failed, 0, "{target}: {tally:?}");
        assert_eq!(drop_source(&agent), counted);
    }

    restrict(&bed, &good, None);
    for target in fronts(&bed) {
        let forbidden = addresses(&bed, target, &UPPER, false);
        eventually("letting everybody in again", SOON, || ask(&bed, target, &forbidden, ANSWER).failed == 0);
    }
}

#[test]
fn a_connection_outlives_the_range_that_let_it_in_and_a_list_that_cannot_be_read_lets_nobody_in() {
    let (bed, agent) = gateway(1);
    let good = bed.manifests().read("hangzhou/service.yaml").unwrap();
    let target = bed.vip_http();
    let held = bed.client().hold(Hold::new(target, 16)).unwrap();
    restrict(&bed, &good, Some(&["nobody/33"]));
    eventually("refusing everybody", SOON, || {
        let all = addresses(&bed, target, &["0.0.0.0/0"], true);
        ask(&bed, target, &all, NO_ANSWER).failed == all.len() as u64
    });
    let problems = agent.problems().unwrap();
    let named = problems.iter().find(|problem| problem.reason == "InvalidSourceRange").unwrap();
    assert!(named.message.contains("nobody/33") && named.message.contains("nobody can connect"), "{named:?}");
    let report = held.stop();
    assert!(report.broken.is_empty(), "{report:?}");
    assert_eq!(report.connections, 16);
}
