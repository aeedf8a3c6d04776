//! The bed itself: namespaces, traffic to every pod, faults, and what a killed run leaves.

use std::{
    fs,
    net::UdpSocket,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use tests::{
    client::{Failure, Hold, SteadyLoad, TcpLoad, UdpLoad, row},
    netns::{Link, Mac, Netns, RunDir, sweep},
    topology::{Bed, Condition, Options},
};

fn mounted_under(dir: &Path) -> usize {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().filter(|line| line.contains(dir.to_str().unwrap())).count()
}

/// Waits until `done` holds, at most 10 s.
fn eventually(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_namespace_is_entered_by_its_thread_alone_and_removed_with_its_run() {
    let run = RunDir::create().unwrap();
    let ns = Netns::create(&run, "lonely").unwrap();
    let here = || fs::read_link("/proc/thread-self/ns/net").unwrap();
    assert_ne!(ns.run(here), here());
    ns.run(|| {
        let interfaces = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        assert_eq!(interfaces.lines().skip(2).count(), 1, "nothing but loopback: {interfaces}");
        let a = UdpSocket::bind("[::1]:0").unwrap();
        a.send_to(b"x", a.local_addr().unwrap()).unwrap();
        assert_eq!(a.recv(&mut [0; 8]).unwrap(), 1);
    });
    let mut sleep = ns.command("sleep");
    sleep.arg("60");
    let process = run.spawn("sleep", sleep).unwrap();
    let its = fs::read_link(format!("/proc/{}/ns/net", process.pid())).unwrap();
    assert_eq!(its, ns.run(here));

    let dir = run.path().to_owned();
    assert_eq!(mounted_under(&dir), 2, "a namespace and a bpffs");
    drop(run);
    assert!(!dir.exists());
    assert_eq!(mounted_under(&dir), 0);
    eventually("the run's process is killed", || {
        fs::read_to_string(format!("/proc/{}/stat", process.pid())).map_or(true, |stat| stat.contains(") Z "))
    });
}

#[test]
fn every_pod_answers_http_and_udp_in_both_families() {
    let bed = Bed::s1(Options::default()).unwrap();
    let pods = bed.pods();
    assert_eq!(pods.len(), 6);
    for pod in &pods {
        for target in pod.sockets() {
            let http = bed.client().tcp(TcpLoad::new(target, 20)).unwrap().tally();
            assert_eq!((http.failed, http.by_pod.get(&pod.name)), (0, Some(&20)), "{target}: {http:?}");
            let udp = bed.client().udp(UdpLoad::new(target, 20)).unwrap().tally();
            assert_eq!((udp.failed, udp.by_cluster.get(&pod.cluster)), (0, Some(&20)), "{target}: {udp:?}");
        }
    }
    let from = bed.client().exact_sources(pods[0].sockets()[0], 1, 15_000);
    let load = TcpLoad { sources: Some(from.clone()), ..TcpLoad::new(pods[0].sockets()[0], 1) };
    let seen = bed.client().tcp(load).unwrap().outcomes[0].result.clone().unwrap().client;
    assert_eq!(seen, from.nth(0).to_string(), "the pod sees the source that was asked for");
}

#[test]
fn two_beds_stand_beside_each_other_and_one_has_two_arms() {
    let one = Bed::s1(Options { pods: 1, ..Options::default() }).unwrap();
    let two = Bed::s1(Options { pods: 1, two_armed: true }).unwrap();
    for bed in [&one, &two] {
        for target in bed.pods().iter().flat_map(|pod| pod.sockets()) {
            assert_eq!(bed.client().tcp(TcpLoad::new(target, 5)).unwrap().tally().failed, 0);
            // The agent probes from the gateway, through whichever arm leads to the clusters.
            bed.gateway().wait_for_tcp(target, Duration::from_secs(2)).unwrap();
        }
    }
    assert!(Link::find(one.gateway(), "eth1").is_err());
    let inside = Link::find(two.gateway(), "eth1").unwrap();
    let received = two.gateway().run(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap());
    let line = received.lines().find(|line| line.trim_start().starts_with(inside.name())).unwrap();
    let packets: u64 = line.split_whitespace().nth(2).unwrap().parse().unwrap();
    assert!(packets > 0, "probes of a two-armed gateway go through eth1: {received}");
}

#[test]
fn a_dead_server_refuses_and_a_silent_pod_does_not_answer_until_healed() {
    let bed = Bed::s1(Options { pods: 1, ..Options::default() }).unwrap();
    let pod = bed.pods()[0].clone();
    let ask = |limit: u64| {
        pod.sockets().map(|target| {
            let load = TcpLoad { timeout: Duration::from_millis(limit), ..TcpLoad::new(target, 1) };
            bed.client().tcp(load).unwrap().outcomes[0].result.clone().map(|answer| answer.pod)
        })
    };
    let answered = || [Ok(pod.name.clone()), Ok(pod.name.clone())];
    bed.kill_pod_server(&pod.name).unwrap();
    assert_eq!(ask(2000), [Err(Failure::Refused), Err(Failure::Refused)]);
    assert!(bed.kill_pod_server(&pod.name).is_err());
    bed.start_pod_server(&pod.name).unwrap();
    assert_eq!(ask(2000), answered());

    bed.silence_pod(&pod.name).unwrap();
    assert_eq!(ask(300), [Err(Failure::Timeout), Err(Failure::Timeout)]);
    bed.heal_pod(&pod.name).unwrap();
    assert_eq!(ask(2000), answered());

    bed.silence_cluster(&pod.cluster).unwrap();
    assert_eq!(ask(300), [Err(Failure::Timeout), Err(Failure::Timeout)]);
    bed.heal_cluster(&pod.cluster).unwrap();
    assert_eq!(ask(2000), answered());
}

#[test]
fn held_connections_notice_the_pod_that_dies_and_a_steady_load_measures_it() {
    let bed = Bed::s1(Options { pods: 1, ..Options::default() }).unwrap();
    let pods = bed.pods();
    let held = bed
        .client()
        .hold(Hold { every: Duration::from_millis(50), ..Hold::new(pods[0].sockets()[0], 20) })
        .unwrap();
    let spared = bed.client().hold(Hold::new(pods[1].sockets()[1], 20)).unwrap();
    assert_eq!(held.now().by_pod[&pods[0].name], 20);
    let steady = bed.client().load(SteadyLoad::new(pods[0].sockets()[0], 200)).unwrap();
    let soon = || Instant::now() + Duration::from_secs(10);
    let begun = Instant::now();
    assert!(steady.wait_for(soon(), |all| row(all, begun, 20, |_| true)).is_some());

    bed.kill_pod_server(&pods[0].name).unwrap();
    eventually("all connections to the dead pod are broken", || held.now().broken.len() == 20);
    let refused = |all: &[tests::client::Outcome]| {
        all.iter().any(|outcome| outcome.result == Err(Failure::Refused)).then_some(())
    };
    assert!(steady.wait_for(soon(), refused).is_some());
    bed.start_pod_server(&pods[0].name).unwrap();
    let back = Instant::now();
    assert!(steady.wait_for(soon(), |all| row(all, back, 20, |a| a.pod == pods[0].name)).is_some());
    let report = steady.stop();
    assert!(report.tally().failed > 0);
    assert_eq!(held.stop().broken.len(), 20);
    assert_eq!(spared.stop().broken, Vec::<String>::new());
}

#[test]
fn the_manifests_follow_the_pods() {
    let bed = Bed::s1(Options { pods: 1, ..Options::default() }).unwrap();
    let added = bed.add_pod("shanghai").unwrap();
    assert_eq!((added.name.as_str(), added.address.v4.to_string().as_str()), ("shanghai-2", "10.1.2.10"));
    assert_eq!(bed.client().tcp(TcpLoad::new(added.sockets()[1], 5)).unwrap().tally().failed, 0);
    let slices = || bed.manifests().read("shanghai/endpoints.yaml").unwrap();
    assert_eq!(slices().matches("name: shanghai-2}").count(), 2, "one a family: {}", slices());
    bed.set_condition("shanghai-2", Condition::Terminating).unwrap();
    assert_eq!(slices().matches("terminating: true").count(), 2, "{}", slices());
    bed.set_condition("shanghai-2", Condition::Gone).unwrap();
    assert!(!slices().contains("shanghai-2"), "{}", slices());
    assert!(bed.set_condition("beijing-1", Condition::Gone).is_err());
}

#[test]
fn a_cluster_is_scaled_to_pods_that_are_well_whatever_they_were() {
    let bed = Bed::s1(Options { pods: 2, ..Options::default() }).unwrap();
    bed.kill_pod_server("shanghai-1").unwrap();
    bed.silence_pod("shanghai-2").unwrap();
    bed.scale("shanghai", 3).unwrap();
    let ready =
        || -> Vec<_> { bed.ready_pods().into_iter().filter(|pod| pod.cluster == "shanghai").collect() };
    let names = || ready().into_iter().map(|pod| pod.name).collect::<Vec<_>>();
    assert_eq!(names(), ["shanghai-1", "shanghai-2", "shanghai-3"]);
    for target in ready().iter().flat_map(|pod| pod.sockets()) {
        assert_eq!(bed.client().tcp(TcpLoad::new(target, 5)).unwrap().tally().failed, 0, "{target}");
    }
    bed.scale("shanghai", 1).unwrap();
    assert_eq!(names(), ["shanghai-1"]);
    let slices = bed.manifests().read("shanghai/endpoints.yaml").unwrap();
    assert!(slices.contains("shanghai-1") && !slices.contains("shanghai-2"), "{slices}");

    // What was gone is a new pod: nothing of the old one's connections is left.
    let ns = bed.pod_ns("shanghai-2").unwrap().path().metadata().unwrap().ino();
    bed.scale("shanghai", 2).unwrap();
    assert_ne!(bed.pod_ns("shanghai-2").unwrap().path().metadata().unwrap().ino(), ns);
    for target in bed.pods().iter().filter(|pod| pod.name == "shanghai-2").flat_map(|pod| pod.sockets()) {
        assert_eq!(bed.client().tcp(TcpLoad::new(target, 5)).unwrap().tally().failed, 0, "{target}");
    }
}

#[test]
fn a_server_that_is_asked_to_end_keeps_its_clients_and_takes_none_in_the_end() {
    let bed = Bed::s1(Options { pods: 1, ..Options::default() }).unwrap();
    let pod = bed.pods()[0].clone();
    let target = pod.sockets()[0];
    let held = bed.client().hold(Hold::new(target, 5)).unwrap();
    bed.end_pod_server(&pod.name).unwrap();
    assert!(bed.end_pod_server(&pod.name).is_err());
    eventually("it takes no connection", || {
        bed.client().tcp(TcpLoad::new(target, 1)).unwrap().tally().failures.contains_key("refused")
    });
    assert!(bed.has_server(&pod.name).unwrap());
    assert_eq!(held.stop().broken, Vec::<String>::new());
    eventually("it has ended", || !bed.has_server(&pod.name).unwrap());
    bed.start_pod_server(&pod.name).unwrap();
    assert_eq!(bed.client().tcp(TcpLoad::new(target, 5)).unwrap().tally().failed, 0);
}

#[test]
fn the_routers_new_hardware_address_is_announced_and_traffic_goes_on() {
    let bed = Bed::s1(Options { pods: 1, ..Options::default() }).unwrap();
    let target = bed.pods()[0].sockets()[0];
    bed.gateway().wait_for_tcp(target, Duration::from_secs(2)).unwrap();
    let before = bed.change_router_mac(Mac([2, 0, 0, 0, 0, 9])).unwrap();
    assert_eq!(Link::find(bed.cen(), "gateway0").unwrap().mac().unwrap().to_string(), "02:00:00:00:00:09");
    assert_ne!(before.to_string(), "02:00:00:00:00:09");
    bed.gateway().wait_for_tcp(target, Duration::from_secs(2)).unwrap();
    bed.set_gateway_mtu(0, 1400).unwrap();
    assert!(bed.set_gateway_mtu(1, 1400).is_err(), "there is no eth1");
}

/// What the next test runs in a process of its own: a bed that stands until it is killed.
fn stand_until_killed() {
    let bed = Bed::s1(Options { pods: 1, ..Options::default() }).unwrap();
    println!("\nbed {}", bed.run().path().display());
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn what_a_killed_run_left_is_removed_by_the_next() {
    if std::env::var_os("BED_TO_BE_KILLED").is_some() {
        return stand_until_killed();
    }
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "what_a_killed_run_left_is_removed_by_the_next", "--nocapture"])
        .env("BED_TO_BE_KILLED", "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = std::io::BufReader::new(victim.stdout.take().unwrap());
    let dir: PathBuf = std::io::BufRead::lines(output)
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("bed ").map(PathBuf::from))
        .expect("the other run says where it is");
    let servers = fs::read_to_string(dir.join("processes")).unwrap();
    let pids: Vec<&str> = servers.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(pids.len(), 2, "{servers}");

    sweep().unwrap();
    assert!(dir.exists(), "a run that lives is left alone");
    victim.kill().unwrap();
    victim.wait().unwrap();
    assert!(mounted_under(&dir) > 5);
    sweep().unwrap();
    assert!(!dir.exists());
    assert_eq!(mounted_under(&dir), 0);
    for pid in pids {
        eventually("the servers of the killed run are dead", || {
            fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
        });
    }
}
