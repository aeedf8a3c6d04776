//! What is drained by hand: nothing breaks, nothing new comes, and it is over when somebody says so.

use std::{collections::BTreeSet, net::SocketAddr};

use tests::{
    agent::{Agent, AgentOptions, Backend, Drained},
    client::{Held, Hold, Tally, TcpLoad},
    scenario::{Scenario, eventually},
    topology::{Bed, Pod},
};

use super::{ANSWER, SOON, connect, endpoints::who_answers, fronts, gateway, request, small_tables};

const CONNECTIONS: usize = 100;

/// Connections to the VIPs of both families that stay open.
fn hold(bed: &Bed) -> [Held; 2] {
    [bed.vip_http(), bed.vip_http6()].map(|target| {
        let hold = Hold { timeout: ANSWER, ..Hold::new(target, CONNECTIONS) };
        bed.client().hold(hold).unwrap()
    })
}

/// How many of them such pods have.
fn held_by(held: &[Held], pods: &[&Pod]) -> u64 {
    let names: BTreeSet<&str> = pods.iter().map(|pod| pod.name.as_str()).collect();
    let by_pod = held.iter().flat_map(|held| held.now().by_pod);
    by_pod.filter(|(pod, _)| names.contains(pod.as_str())).map(|(_, count)| count).sum()
}

/// 125 new connections or requests to each service, 500 in all: who answered.
#[track_caller]
fn new_ones(bed: &Bed, first_port: u16) -> BTreeSet<String> {
    let [http, http6, udp, udp6] = fronts(bed);
    let tallies = [
        connect(bed, http, 125, first_port),
        connect(bed, http6, 125, first_port),
        request(bed, udp, 125, first_port),
        request(bed, udp6, 125, first_port),
    ];
    tallies.into_iter().flat_map(|tally| tally.by_pod.into_keys()).collect()
}

#[track_caller]
fn unbroken(held: [Held; 2], scenario: &str) {
    let mut tally = Tally::default();
    for held in held {
        let report = held.stop();
        assert_eq!(report.broken, Vec::<String>::new());
        assert_eq!(report.by_pod.values().sum::<u64>(), CONNECTIONS as u64);
        tally.requests += CONNECTIONS as u64;
    }
    Scenario::of(scenario, &tally).report();
}

fn names<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> BTreeSet<String> {
    pods.into_iter().map(|pod| pod.name.clone()).collect()
}

fn tcp_rows(agent: &Agent, pods: &[&Pod]) -> Vec<Backend> {
    let rows = agent.backends().unwrap().into_iter();
    rows.filter(|row| row.protocol == "TCP" && pods.iter().any(|pod| row.is(pod))).collect()
}

#[test]
fn a_cluster_drained_with_held_connections_breaks_none_and_new_ones_go_elsewhere() {
    let (bed, agent) = gateway(2);
    let pods = bed.pods();
    let (hangzhou, shanghai): (Vec<&Pod>, Vec<&Pod>) = pods.iter().partition(|pod| pod.cluster == "hangzhou");
    let held = hold(&bed);
    let left = held_by(&held, &hangzhou);
    assert!(left > 50, "{left}");

    // It is so when the command ends: nothing is waited for.
    let drained = agent.drain("hangzhou").unwrap();
    assert_eq!(drained.names, ["cluster hangzhou"]);
    assert!(drained.changed && drained.in_force && drained.notes.is_empty(), "{drained:?}");
    // 2 pods, each with two families and two protocols.
    assert_eq!(drained.backends, 8);
    assert_eq!(new_ones(&bed, 12_000), names(shanghai.iter().copied()));
    assert!(!agent.drain("hangzhou").unwrap().changed);

    eventually("the flows that are left are shown", SOON, || {
        tcp_rows(&agent, &hangzhou).iter().map(|row| row.flows).sum::<u64>() == left
    });
    for row in tcp_rows(&agent, &hangzhou) {
        assert!(row.draining && !row.usable, "{row:?}");
        assert_eq!(row.drain_cause.as_deref(), Some("ByHand"));
        let reason = row.reason.unwrap_or_default();
        assert!(reason.starts_with("cluster hangzhou is drained by hand since"), "{reason}");
    }
    let shown = agent.status().unwrap()["drained"].take();
    assert_eq!((&shown[0]["kind"], &shown[0]["name"]), (&"cluster".into(), &"hangzhou".into()));
    assert_eq!(shown.as_array().map(Vec::len), Some(1));

    // Another agent goes by it too.
    agent.terminate().unwrap();
    let mut agent = bed.start_agent(AgentOptions { wait: false, ..small_tables() }).unwrap();
    agent.wait_ready(SOON).unwrap();
    assert_eq!(new_ones(&bed, 14_000), names(shanghai.iter().copied()));
    assert!(tcp_rows(&agent, &hangzhou).iter().all(|row| row.draining));

    assert!(agent.undrain("hangzhou").unwrap().changed);
    assert!(!agent.undrain("hangzhou").unwrap().changed);
    agent.wait_for_pods(&pods, SOON).unwrap();
    assert_eq!(new_ones(&bed, 16_000), names(&pods));
    unbroken(held, "a_cluster_drained_with_held_connections_breaks_none_and_new_ones_go_elsewhere");
}

#[test]
fn a_backend_drained_with_held_connections_breaks_none_and_new_ones_go_elsewhere() {
    let (bed, mut agent) = gateway(2);
    let pods = bed.pods();
    let (pod, others) = pods.split_first().unwrap();
    let held = hold(&bed);
    let datagrams = who_answers(&bed);
    assert!(datagrams.iter().filter(|name| **name == pod.name).count() > 20);
    let [v4, v6] = pod.sockets();
    for (what, expected) in [
        (format!("{v4}/tcp"), vec![format!("backend {v4}/TCP")]),
        (v4.to_string(), vec![format!("backend {v4}/TCP"), format!("backend {v4}/UDP")]),
        (v6.to_string(), vec![format!("backend {v6}/TCP"), format!("backend {v6}/UDP")]),
    ] {
        let drained = agent.drain(&what).unwrap();
        assert_eq!(drained.names, expected, "{what}");
        assert!(drained.changed && drained.in_force, "{drained:?}");
    }
    assert_eq!(new_ones(&bed, 15_000), names(others));
    assert_eq!(who_answers(&bed), datagrams, "UDP flows stay too");

    for what in [v4, v6] {
        agent.undrain(&what.to_string()).unwrap();
    }
    agent.wait_for_pods(&pods, SOON).unwrap();
    assert_eq!(new_ones(&bed, 17_000), names(&pods));
    unbroken(held, "a_backend_drained_with_held_connections_breaks_none_and_new_ones_go_elsewhere");
}

#[test]
fn a_service_of_which_everything_is_drained_is_not_served_and_says_so() {
    let (bed, mut agent) = gateway(1);
    let told = |agent: &Agent| {
        let problems = agent.problems().unwrap();
        problems.into_iter().find(|problem| problem.reason == "Degraded").map(|problem| problem.message)
    };
    let attempt = |target: SocketAddr| {
        let load = TcpLoad { timeout: ANSWER / 10, ..TcpLoad::new(target, 10) };
        bed.client().tcp(load).unwrap().tally()
    };
    assert_eq!(agent.drain("hangzhou").unwrap().notes, Vec::<String>::new());
    assert_eq!(told(&agent), None);
    let Drained { notes, .. } = agent.drain("shanghai").unwrap();
    assert_eq!(notes.len(), 4, "one for each service: {notes:?}");
    let message = told(&agent).unwrap();
    assert!(message.contains("kanmon undrain"), "{message}");
    assert!(agent.services().unwrap().iter().all(|row| row["degraded"] == true && row["usable"] == 0));
    assert_eq!(attempt(bed.vip_http()).failed, 10);

    agent.undrain("shanghai").unwrap();
    let usable = |agent: &Agent| Ok(agent.services()?.iter().all(|row| row["usable"] == 1));
    agent.wait_until("using shanghai", SOON, usable).unwrap();
    assert_eq!(told(&agent), None);
    let tally = connect(&bed, bed.vip_http(), 50, 10_000);
    assert_eq!(tally.by_cluster.into_keys().collect::<Vec<_>>(), ["shanghai"]);
}

#[test]
fn a_name_that_does_not_exist_is_refused_with_those_that_do() {
    let (bed, agent) = gateway(1);
    let error = format!("{:#}", agent.drain("beijing").unwrap_err());
    let pod = bed.pods()[0].sockets()[0];
    for part in ["\"beijing\"", "hangzhou, shanghai", &pod.to_string()] {
        assert!(error.contains(part), "{part} is missing: {error}");
    }
    assert_eq!(agent.status().unwrap()["drained"], serde_json::json!([]));
}
