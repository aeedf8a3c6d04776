//! Connections to pods that refuse or say nothing, with real sockets: the packet program takes them elsewhere, with no
//! help of probes.

use std::{fs, net::SocketAddr, time::Duration};

use tests::{
    agent::{Agent, AgentOptions},
    client::{Tally, TcpLoad},
    topology::{Bed, Options},
};

/// How long the agent may take to notice something: generous, for a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// Six pods in two clusters that nobody probes.
fn unprobed() -> (Bed, Agent) {
    let bed = Bed::s1(Options::default()).unwrap();
    let extra = vec!["--flows=65536".into(), "--flows-v6=16384".into()];
    let mut agent = bed.start_agent(AgentOptions { extra, ..AgentOptions::default() }).unwrap();
    for cluster in bed.cluster_names() {
        let path = format!("{cluster}/service.yaml");
        let text = bed.manifests().read(&path).unwrap();
        let changed: Vec<String> = text
            .lines()
            .map(|line| match line.split_once("kanmon.dev/health-check:") {
                Some((indent, _)) => format!("{indent}kanmon.dev/health-check: none"),
                None => line.to_owned(),
            })
            .collect();
        bed.manifests().write(&path, &(changed.join("\n") + "\n")).unwrap();
    }
    let unprobed = |agent: &Agent| Ok(agent.backends()?.iter().all(|row| row.healthy.is_none()));
    agent.wait_until("leaving the pods alone", SOON, unprobed).unwrap();
    (bed, agent)
}

fn connect(bed: &Bed, target: SocketAddr, connections: usize, timeout: Duration) -> Tally {
    let load = TcpLoad { timeout, ..TcpLoad::new(target, connections) };
    bed.client().tcp(load).unwrap().tally()
}

/// SYNs that the client's kernel has sent again.
fn repeated_syns(bed: &Bed) -> u64 {
    let text = bed.client_ns().run(|| fs::read_to_string("/proc/thread-self/net/netstat").unwrap());
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:")).map(str::split_whitespace);
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let found = names.zip(values).find(|(name, _)| *name == "TCPSynRetrans");
    found.expect("the kernel counts them").1.parse().unwrap()
}

#[test]
fn a_pod_that_refuses_costs_nobody_a_connection_nor_a_second() {
    let (bed, agent) = unprobed();
    let dead = bed.pods()[0].clone();
    bed.kill_pod_server(&dead.name).unwrap();
    let (before, syns) = (agent.counters().unwrap(), repeated_syns(&bed));
    for target in [bed.vip_http(), bed.vip_http6()] {
        let tally = connect(&bed, target, 600, Duration::from_secs(5));
        assert_eq!((tally.failed, tally.by_pod.len()), (0, 5), "{target}: {tally:?}");
        assert!(!tally.by_pod.contains_key(&dead.name));
    }
    let after = agent.counters().unwrap();
    let grown = |name: &str| after[name] - before[name];
    assert!(grown("connect_refused") > 100, "{after:?}");
    assert_eq!(grown("flow_rescued"), grown("connect_refused"), "{after:?}");
    assert_eq!((repeated_syns(&bed) - syns, grown("connect_unanswered")), (0, 0), "{after:?}");
}

#[test]
fn a_pod_that_says_nothing_costs_its_clients_one_more_syn() {
    let (bed, agent) = unprobed();
    let silent = bed.pods()[3].clone();
    bed.silence_pod(&silent.name).unwrap();
    let (before, syns) = (agent.counters().unwrap(), repeated_syns(&bed));
    for target in [bed.vip_http(), bed.vip_http6()] {
        let tally = connect(&bed, target, 120, Duration::from_secs(10));
        assert_eq!(tally.failed, 0, "{target}: {tally:?}");
        assert!(!tally.by_pod.contains_key(&silent.name));
    }
    let after = agent.counters().unwrap();
    let rescued = after["flow_rescued"] - before["flow_rescued"];
    assert!(rescued > 20, "{after:?}");
    assert_eq!(repeated_syns(&bed) - syns, rescued, "{after:?}");
}

#[test]
fn where_every_pod_refuses_the_client_is_told() {
    let (bed, agent) = unprobed();
    for pod in bed.pods() {
        bed.kill_pod_server(&pod.name).unwrap();
    }
    for target in [bed.vip_http(), bed.vip_http6()] {
        let tally = connect(&bed, target, 60, Duration::from_secs(10));
        assert_eq!(tally.failures.get("refused"), Some(&60), "{target}: {tally:?}");
    }
    let counters = agent.counters().unwrap();
    // Twice to another pod, and the third refusal is the client's.
    assert_eq!((counters["flow_rescued"], counters["connect_refused"]), (240, 360), "{counters:?}");
}
