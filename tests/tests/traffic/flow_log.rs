//! The flow log: what is told of real connections, to who follows and in the file.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::UdpSocket,
};

use nix::sys::signal::Signal;
use serde_json::json;
use tests::{
    agent::{Agent, AgentOptions, FlowRecord, Follower, read_records},
    client::Hold,
    scenario::eventually,
    topology::{Bed, Condition, Options, Pod},
};

use super::{ANSWER, SOON, connect, small_tables};

/// The policy that a test writes.
fn policy(bed: &Bed, spec: &str) {
    let text = format!(
        "apiVersion: kanmon.dev/v1alpha1\nkind: LoadBalancingPolicy\nmetadata: {{namespace: demo, name: logged}}\n\
         spec:\n  targetRefs: [{{group: \"\", kind: Service, name: httpbin}}]\n{spec}"
    );
    bed.manifests().write("policy.yaml", &text).unwrap();
}

/// A bed of two pods a cluster, with an agent that begins with the policy.
fn start(options: AgentOptions, spec: &str) -> (Bed, Agent) {
    let bed = Bed::s1(Options { pods: 2, ..Options::default() }).unwrap();
    if !spec.is_empty() {
        policy(&bed, spec);
    }
    let agent = bed.start_agent(options).unwrap();
    (bed, agent)
}

fn extra(more: &[&str]) -> AgentOptions {
    let mut options = small_tables();
    options.extra.extend(more.iter().map(|argument| (*argument).to_owned()));
    options
}

/// Waits until so many records satisfy, and gives all.
#[track_caller]
fn records(follower: &Follower, count: usize, wanted: impl Fn(&FlowRecord) -> bool) -> Vec<FlowRecord> {
    let all = || follower.records();
    eventually("the records are there", SOON, || {
        all().iter().filter(|record| wanted(record)).count() >= count
    });
    all()
}

fn of_state(records: &[FlowRecord], state: &str) -> BTreeMap<String, FlowRecord> {
    let found = records.iter().filter(|record| record.state == state);
    found.map(|record| (record.client.clone(), record.clone())).collect()
}

fn pod_at<'a>(pods: &'a [Pod], upstream: &str) -> &'a Pod {
    let at = upstream.parse().unwrap();
    pods.iter().find(|pod| pod.sockets().contains(&at)).unwrap_or_else(|| panic!("no pod at {upstream}"))
}

#[test]
fn each_connection_is_told_as_it_opens_and_as_it_closes_with_its_pod() {
    let (bed, agent) = start(small_tables(), "");
    let pods = bed.pods();
    let follower = agent.follow(json!({"service": "httpbin"})).unwrap();
    for (target, first_port) in [(bed.vip_http(), 12_000), (bed.vip_http6(), 13_000)] {
        connect(&bed, target, 40, first_port);
    }
    let all = records(&follower, 80, |record| record.state == "closed");
    let (opened, closed) = (of_state(&all, "opened"), of_state(&all, "closed"));
    assert_eq!((all.len(), opened.len(), closed.len()), (160, 80, 80));
    for (client, record) in &closed {
        let begin = &opened[client];
        let pod = pod_at(&pods, &record.upstream_host);
        assert_eq!(
            (record.cluster.as_str(), record.service.as_str()),
            (pod.cluster.as_str(), "demo/httpbin")
        );
        assert_eq!(record.region, format!("cn-{}", pod.cluster));
        assert_eq!(
            (&begin.upstream_host, &begin.vip, &begin.cluster),
            (&record.upstream_host, &record.vip, &record.cluster)
        );
        assert_eq!((record.close_reason.as_str(), record.protocol.as_str()), ("fin", "TCP"));
        assert!(record.duration_seconds.is_some_and(|seconds| seconds < 60.0), "{record:?}");
        assert_eq!(record.bytes_in, None, "nobody asked for it");
    }
    let clusters: BTreeSet<&str> = closed.values().map(|record| record.cluster.as_str()).collect();
    assert_eq!(clusters.len(), 2);
}

#[test]
fn one_client_is_followed_and_no_other() {
    let (bed, agent) = start(small_tables(), "");
    let nobody = agent.follow(json!({"client": "192.0.2.1"})).unwrap();
    let everybody = agent.follow(json!({})).unwrap();
    connect(&bed, bed.vip_http(), 5, 12_000);
    records(&everybody, 5, |record| record.state == "closed");
    assert_eq!(nobody.records(), []);
}

#[test]
fn the_command_prints_a_row_or_a_line_of_json_for_each() {
    let (bed, agent) = start(small_tables(), "");
    let mut port = 12_000;
    let mut busy = || {
        connect(&bed, bed.vip_http(), 5, port);
        port += 5;
    };
    let json = agent.follow_by_command(&["-o", "json"], 4, &mut busy).unwrap();
    let lines: Vec<FlowRecord> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    let rows = agent.follow_by_command(&["--service", "demo/httpbin"], 4, &mut busy).unwrap();
    let rows = rows.strip_prefix(&json).unwrap();
    assert!(rows.starts_with("TIME "), "{rows}");
    let of_ours = |row: &&str| row.contains("demo/httpbin") && row.contains(&bed.vip_http().to_string());
    assert_eq!(rows.lines().skip(1).filter(of_ours).count(), 4, "{rows}");
}

#[test]
fn a_connection_that_a_dead_pod_refuses_is_told_as_rescued() {
    let (bed, mut agent) = start(small_tables(), "");
    // Probes would take it out before anybody meets it.
    policy(&bed, "  healthCheck: {type: None}\n");
    let unprobed = |agent: &Agent| Ok(agent.backends()?.iter().all(|row| row.healthy.is_none()));
    agent.wait_until("leaving the pods alone", SOON, unprobed).unwrap();
    let dead = bed.pods()[0].clone();
    bed.kill_pod_server(&dead.name).unwrap();
    let follower = agent.follow(json!({"service": "httpbin"})).unwrap();
    connect(&bed, bed.vip_http(), 60, 12_000);
    let all = records(&follower, 60, |record| record.state == "closed");
    let (opened, rescued) = (of_state(&all, "opened"), of_state(&all, "rescued"));
    let closed = of_state(&all, "closed");
    assert!(!rescued.is_empty(), "{all:?}");
    for (client, record) in &rescued {
        assert_eq!(pod_at(&bed.pods(), &record.previous_upstream_host).name, dead.name);
        assert_eq!(opened[client].upstream_host, record.previous_upstream_host);
        assert_eq!(closed[client].upstream_host, record.upstream_host);
        assert_eq!(record.close_reason, "rescued");
    }
    let to_the_dead =
        opened.values().filter(|record| dead.sockets().contains(&record.upstream_host.parse().unwrap()));
    assert_eq!(to_the_dead.count(), rescued.len());
}

#[test]
fn an_idle_udp_flow_times_out_and_its_duration_ends_with_its_last_packet() {
    let (bed, agent) = start(extra(&["--udp-replied=3s"]), "");
    let follower = agent.follow(json!({})).unwrap();
    let target = bed.vip_udp();
    let client = bed.client_ns().run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(ANSWER)).unwrap();
        socket.connect(target).unwrap();
        let mut answer = [0; 512];
        socket.send(b"one").unwrap();
        socket.recv(&mut answer).unwrap();
        socket.local_addr().unwrap().to_string()
    });
    let all = records(&follower, 1, |record| record.state == "closed");
    let closed = &of_state(&all, "closed")[&client];
    assert_eq!((closed.close_reason.as_str(), closed.protocol.as_str()), ("timeout", "UDP"));
    // The three seconds of silence are not part of it.
    assert!(closed.duration_seconds.is_some_and(|seconds| seconds < 3.0), "{closed:?}");
}

#[test]
fn connections_that_outlive_a_drained_or_removed_backend_end_with_it() {
    let (bed, agent) = start(small_tables(), "  drainTimeout: 1s\n");
    let pods = bed.pods();
    let target = bed.vip_http();
    let follower = agent.follow(json!({"service": "httpbin"})).unwrap();
    let held = bed.client().hold(Hold { timeout: ANSWER, ..Hold::new(target, 60) }).unwrap();
    let on = |pod: &Pod| held.now().by_pod.get(&pod.name).copied().unwrap_or(0) as usize;
    let (drained, removed) = (on(&pods[0]), on(&pods[3]));
    assert!(drained > 0 && removed > 0);
    agent.drain(&pods[0].sockets()[0].to_string()).unwrap();
    bed.set_condition(&pods[3].name, Condition::Gone).unwrap();
    let all = records(&follower, drained + removed, |record| record.close_reason == "backend-removed");
    let closed = of_state(&all, "closed");
    assert_eq!(closed.len(), drained + removed, "{closed:?}");
    for record in closed.values() {
        let pod = pod_at(&pods, &record.upstream_host);
        assert!([&pods[0].name, &pods[3].name].contains(&&pod.name), "{record:?}");
        assert_eq!(record.cluster, pod.cluster);
    }
}

#[test]
fn one_connection_in_ten_is_told_and_the_file_says_the_same() {
    let bed = Bed::s1(Options { pods: 2, ..Options::default() }).unwrap();
    policy(&bed, "  flowLog: {sampleOneIn: 10}\n");
    let path = bed.run().path().join("flows.jsonl");
    let mut agent = bed.start_agent(extra(&[&format!("--flow-log={}", path.display())])).unwrap();
    let follower = agent.follow(json!({})).unwrap();
    for round in 0..4 {
        connect(&bed, bed.vip_http(), 500, 10_000 + 500 * round);
    }
    let pairs = |all: &[FlowRecord]| (of_state(all, "opened").len(), of_state(all, "closed").len());
    eventually("each has its end", SOON, || {
        let (opened, closed) = pairs(&follower.records());
        opened == closed && opened > 0 && agent.flows().unwrap().iter().all(|flow| flow.state == "closed")
    });
    let all = follower.records();
    let (opened, closed) = (of_state(&all, "opened"), of_state(&all, "closed"));
    assert!((130..=270).contains(&opened.len()), "about 200 of 2,000: {}", opened.len());
    assert_eq!(opened.keys().collect::<Vec<_>>(), closed.keys().collect::<Vec<_>>());
    assert!(all.iter().all(|record| record.lost.is_none()), "nothing was lost");
    eventually("the file is complete", SOON, || read_records(&path).unwrap() == all);

    // Rotation: the old file keeps what it has.
    let old = path.with_extension("jsonl.1");
    fs::rename(&path, &old).unwrap();
    agent.process().signal(Signal::SIGHUP).unwrap();
    eventually("records go to the new file", SOON, || {
        connect(&bed, bed.vip_http(), 500, 10_000);
        path.exists() && !read_records(&path).unwrap().is_empty()
    });
    assert!(read_records(&old).unwrap().starts_with(&all));
}

#[test]
fn bytes_and_packets_are_told_where_the_policy_asks_for_them() {
    let (bed, agent) = start(small_tables(), "  flowLog: {counters: true}\n");
    let follower = agent.follow(json!({"service": "httpbin"})).unwrap();
    let before = agent.services().unwrap();
    connect(&bed, bed.vip_http(), 30, 12_000);
    let all = records(&follower, 30, |record| record.state == "closed");
    let closed = of_state(&all, "closed");
    let told = |value: fn(&FlowRecord) -> Option<u64>| {
        closed.values().map(|record| value(record).unwrap()).sum::<u64>()
    };
    let after = agent.services().unwrap();
    let served = |field: &str| {
        let sum = |rows: &[serde_json::Value]| rows.iter().filter_map(|row| row[field].as_u64()).sum::<u64>();
        sum(&after) - sum(&before)
    };
    // A last acknowledgement may come after the record.
    for (told, served) in [
        (told(|record| record.packets_in), served("packets_in")),
        (told(|record| record.packets_out), served("packets_out")),
    ] {
        assert!(told <= served && told + 60 >= served, "{told} of {served}");
    }
    for record in closed.values() {
        assert!(record.packets_in.is_some_and(|packets| (4..20).contains(&packets)), "{record:?}");
        assert!(record.bytes_out > record.packets_out, "{record:?}");
    }
}
