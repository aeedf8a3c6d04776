//! As much as the tables promise, and more than they hold. One test at a time: they take the machine for
//! themselves.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tests::{
    agent::{Agent, AgentOptions},
    client::{Close, Hold, Tally, TcpLoad, UdpLoad},
    scenario::{Scenario, eventually},
    topology::{Bed, Condition, Options},
};

/// How long the agent may take to notice something: generous, for a busy machine.
const SOON: Duration = Duration::from_secs(20);

static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A gateway with one backend for each service, and one SNAT address in each family.
fn one_backend(extra: &[&str]) -> (Bed, Agent) {
    let bed = Bed::s1(Options { pods: 1, ..Options::default() }).unwrap();
    bed.set_condition("shanghai-1", Condition::Gone).unwrap();
    let extra = extra.iter().map(|&argument| argument.to_owned()).collect();
    let agent = bed.start_agent(AgentOptions { extra, ..AgentOptions::default() }).unwrap();
    (bed, agent)
}

fn counters_since(agent: &Agent, before: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let now = agent.counters().unwrap();
    now.into_iter().map(|(name, count)| (name.clone(), count - before[&name])).collect()
}

#[test]
fn fourteen_thousand_connections_at_once_on_one_backend_and_one_snat_address() {
    const CONNECTIONS: usize = 14_000;
    let _alone = alone();
    let (bed, agent) = one_backend(&["--flows=65536"]);
    let before = agent.counters().unwrap();
    let hold = Hold {
        every: Duration::from_secs(20),
        timeout: Duration::from_secs(10),
        ..Hold::new(bed.vip_http(), CONNECTIONS)
    };
    let live = hold.live.clone();
    let held = bed.client().hold(hold).unwrap();
    assert_eq!(held.now().broken, Vec::<String>::new());
    let flows = agent.flows().unwrap();
    let established: Vec<_> = flows.iter().filter(|flow| flow.state == "established").collect();
    assert_eq!(established.len(), CONNECTIONS);
    // Each has a port of its own, at one address.
    let ports: BTreeMap<u16, &str> = established
        .iter()
        .map(|flow| (flow.snat.parse::<SocketAddr>().unwrap(), flow.client.as_str()))
        .map(|(snat, client)| (snat.port(), client))
        .collect();
    assert_eq!(ports.len(), CONNECTIONS);
    let report = held.stop();
    assert_eq!(report.broken, Vec::<String>::new(), "every one is answered once more");
    let tally = live.now();
    assert!(tally.requests >= 2 * CONNECTIONS as u64, "{tally:?}");
    Scenario {
        requests: CONNECTIONS as u64,
        ..Scenario::of("fourteen_thousand_connections_at_once_on_one_backend_and_one_snat_address", &tally)
    }
    .report();
    let counters = counters_since(&agent, &before);
    assert_eq!((counters["flow_established"], counters["flow_displaced"]), (CONNECTIONS as u64, 0));
    assert_eq!(drops(&counters), []);
}

/// Drops, except of what follows a RST or comes after both FINs.
fn drops(counters: &BTreeMap<String, u64>) -> Vec<(&str, u64)> {
    let all = counters.iter().map(|(name, count)| (name.as_str(), *count));
    all.filter(|(name, count)| name.starts_with("drop_") && *count > 0 && *name != "drop_not_syn").collect()
}

#[test]
fn two_hundred_thousand_connections_one_after_another_on_one_backend_and_one_snat_address() {
    let _alone = alone();
    let (bed, agent) = one_backend(&["--flows=65536"]);
    let before = agent.counters().unwrap();
    let mut all = Tally::default();
    for (close, connections) in [
        (Close::Client, 60_000),
        (Close::Reset, 40_000),
        (Close::Client, 50_000),
        (Close::Server, 10_000),
        (Close::Client, 40_000),
    ] {
        let load = TcpLoad {
            close,
            concurrency: 64,
            timeout: Duration::from_secs(10),
            ..TcpLoad::new(bed.vip_http(), connections)
        };
        let tally = bed.client().tcp(load).unwrap().tally();
        assert_eq!(tally.failed, 0, "{close:?}: {tally:?}");
        all.requests += tally.requests;
        all.failed += tally.failed;
    }
    assert_eq!(all.requests, 200_000);
    Scenario::of(
        "two_hundred_thousand_connections_one_after_another_on_one_backend_and_one_snat_address",
        &all,
    )
    .report();
    let counters = counters_since(&agent, &before);
    // A backend has 16,384 ports: they were used again and again, before their 60 s were over. A client that
    // comes back with the port of a flow that is still there continues it.
    assert!(counters["flow_opened"] > 195_000, "{counters:?}");
    assert!(counters["port_reclaimed"] > 150_000, "{counters:?}");
    // A SYN may find no port that can be spared within its few tries; its retransmission does.
    let unlucky = counters["drop_ports_exhausted"];
    assert!(unlucky < 100, "{unlucky} of 200,000 found no port at once");
    assert_eq!(
        drops(&BTreeMap::from_iter(counters.into_iter().filter(|(name, _)| name != "drop_ports_exhausted"))),
        []
    );
}

/// Opens more connections than there is room for; returns those that live, with how many there were to be.
fn overfill(bed: &Bed, target: SocketAddr, connections: usize) -> tests::client::Held {
    let every = Duration::from_millis(200);
    let timeout = Duration::from_secs(3);
    bed.client().hold(Hold { every, timeout, ..Hold::new(target, connections) }).unwrap()
}

/// Those that live go on, through several requests each; the others never began.
fn assert_only_newcomers_refused(bed: &Bed, held: &tests::client::Held, at_least: u64) {
    let lives: u64 = held.now().by_pod.values().sum();
    assert!(lives >= at_least, "{lives} live: {:?}", held.now());
    let refused = held.now().broken.len();
    assert!(refused > 0, "there was room for all");
    // More newcomers, all the time: they take nothing from those that live.
    let load = TcpLoad { timeout: Duration::from_millis(800), ..TcpLoad::new(bed.vip_http(), 100) };
    bed.client().tcp(load).unwrap();
    let now = held.now();
    assert!(now.broken.iter().all(|why| why.contains("before its first answer")), "{:?}", now.broken);
    assert_eq!(now.broken.len(), refused);
}

/// Newcomers are turned away until the agent says what is short, and for which service; for no other one.
fn await_degraded(bed: &Bed, agent: &Agent, expected: &[&str]) {
    eventually("the agent says what is short", SOON, || {
        let load = TcpLoad { timeout: Duration::from_millis(800), ..TcpLoad::new(bed.vip_http(), 100) };
        bed.client().tcp(load).unwrap();
        let problems = agent.problems().unwrap();
        let degraded = problems.iter().filter(|problem| problem.reason == "Degraded");
        degraded.map(|problem| problem.object.as_str()).collect::<BTreeSet<_>>()
            == expected.iter().copied().collect()
    });
}

#[test]
fn exhausted_ports_refuse_new_flows_and_harm_none_that_live() {
    let _alone = alone();
    let (bed, agent) = one_backend(&["--flows=65536", "--snat-ports=20032-20095"]);
    assert_eq!(agent.status().unwrap()["snat"]["ports"], "20032-20095");
    let before = agent.counters().unwrap();
    let held = overfill(&bed, bed.vip_http(), 100);
    assert_only_newcomers_refused(&bed, &held, 60);
    let counters = counters_since(&agent, &before);
    assert!(counters["drop_ports_exhausted"] > 0, "{counters:?}");
    assert_eq!(counters["drop_table_full"], 0);
    let service = format!("service {}/TCP", bed.vip_http());
    await_degraded(&bed, &agent, &["SNAT ports", &service]);
    // Another protocol, and another family, have ports of their own.
    let load = UdpLoad { concurrency: 8, ..UdpLoad::new(bed.vip_udp(), 50) };
    assert_eq!(bed.client().udp(load).unwrap().tally().failed, 0);
    let load = TcpLoad { concurrency: 8, ..TcpLoad::new(bed.vip_http6(), 50) };
    assert_eq!(bed.client().tcp(load).unwrap().tally().failed, 0);

    held.stop();
    recovers(&bed, bed.vip_http(), 200);
}

#[test]
fn a_full_flow_table_refuses_new_flows_and_harms_none_that_live() {
    let _alone = alone();
    let (bed, agent) = one_backend(&["--flows=64", "--flows-v6=64"]);
    let before = agent.counters().unwrap();
    let held = overfill(&bed, bed.vip_http(), 400);
    assert_only_newcomers_refused(&bed, &held, 64);
    let counters = counters_since(&agent, &before);
    assert!(counters["drop_table_full"] > 0, "{counters:?}");
    let service = format!("service {}/TCP", bed.vip_http());
    await_degraded(&bed, &agent, &["flow table", &service]);
    held.stop();
    let is_over = |state: &str| state == "closed" || state.ends_with("reset");
    eventually("the flows are closed", SOON, || {
        agent.flows().unwrap().iter().all(|flow| is_over(&flow.state))
    });
    // Closed flows stay for a minute, but not in anyone's way: not one SYN has to be sent twice.
    let before = agent.counters().unwrap();
    recovers(&bed, bed.vip_http(), 500);
    recovers(&bed, bed.vip_http6(), 500);
    let counters = counters_since(&agent, &before);
    assert_eq!(counters["flow_opened"], 1000, "{counters:?}");
    assert_eq!(drops(&counters), []);
}

/// Expects so many connections, one after another, to succeed.
#[track_caller]
fn recovers(bed: &Bed, target: SocketAddr, connections: usize) {
    let load = TcpLoad { concurrency: 1, timeout: SOON, ..TcpLoad::new(target, connections) };
    let tally = bed.client().tcp(load).unwrap().tally();
    assert_eq!(tally.failed, 0, "{target}: {tally:?}");
}
