//! The agent ends and starts again, in every way it can, while traffic goes on. One test at a time: they measure.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Output,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tests::{
    agent::{Agent, AgentOptions, Flow},
    client::{Held, Hold, Running, SteadyLoad, Tally, TcpLoad, row},
    scenario::Scenario,
    topology::{Bed, Options},
};

/// How long the agent may take to notice something: generous, for a busy machine.
const SOON: Duration = Duration::from_secs(20);
/// A connection that takes longer has lost a packet: the first SYN is sent again after a second.
const LOST: Duration = Duration::from_millis(990);

static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn options() -> AgentOptions {
    AgentOptions {
        extra: vec!["--flows=131072".into(), "--flows-v6=65536".into()],
        ..AgentOptions::default()
    }
}

/// New connections at a steady rate, and 100 held ones, over both families.
struct Traffic {
    load: Running,
    load6: Running,
    held: [Held; 2],
}

impl Traffic {
    /// Begins, and returns once it has gone well for a moment.
    fn begin(bed: &Bed) -> Traffic {
        let load = |target, rate| {
            let load = SteadyLoad { timeout: LOST, ..SteadyLoad::new(target, rate) };
            bed.client().load(load).unwrap()
        };
        let hold = |target| {
            let every = Duration::from_millis(100);
            bed.client().hold(Hold { every, ..Hold::new(target, 50) }).unwrap()
        };
        let traffic = Traffic {
            held: [hold(bed.vip_http()), hold(bed.vip_http6())],
            load: load(bed.vip_http(), 300),
            load6: load(bed.vip_http6(), 200),
        };
        traffic.goes_on_for(200);
        traffic
    }

    /// Waits until so many connections that begin from now on have succeeded in a row, in both families.
    #[track_caller]
    fn goes_on_for(&self, connections: usize) {
        let now = Instant::now();
        for load in [&self.load, &self.load6] {
            let held = load.wait_for(now + SOON, |all| row(all, now, connections, |_| true));
            assert!(held.is_some(), "{:?}", load.settled().iter().collect::<Tally>());
        }
    }

    /// Ends, and expects that nothing failed.
    #[track_caller]
    fn end_unharmed(self, name: &str) {
        let mut outcomes = self.load.stop().outcomes;
        outcomes.extend(self.load6.stop().outcomes);
        let tally: Tally = outcomes.iter().collect();
        let mut line = Scenario::of(name, &tally);
        let broken: Vec<String> = self.held.into_iter().flat_map(|held| held.stop().broken).collect();
        line.requests += 100;
        line.failed += broken.len() as u64;
        line.reset += broken.iter().filter(|why| why.ends_with("reset")).count() as u64;
        line.report();
        assert_eq!((tally.failed, broken), (0, Vec::new()), "{tally:?}");
    }
}

/// The flows of connections that are held, without what may change: their states.
fn held_flows(agent: &Agent) -> BTreeSet<(String, String, String, String)> {
    let key = |flow: Flow| (flow.client, flow.vip, flow.upstream_host, flow.snat);
    let established = agent.flows().unwrap().into_iter().filter(|flow| flow.state == "established");
    established.map(key).collect()
}

/// Where a map is pinned.
fn pin(dir: &Path, name: &str) -> Option<PathBuf> {
    std::fs::read_dir(dir)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .find_map(|path| if path.is_dir() { pin(&path, name) } else { path.ends_with(name).then_some(path) })
}

/// Entries of a pinned map.
fn entries(map: &Path) -> usize {
    let dump = std::process::Command::new("bpftool").args(["-j", "map", "dump", "pinned"]).arg(map).output();
    let dump: Value = serde_json::from_slice(&dump.expect("bpftool is installed").stdout).unwrap();
    dump.as_array().unwrap().len()
}

#[test]
fn sigterm_and_start_under_load_break_nothing() {
    let _alone = alone();
    let bed = Bed::s1(Options::default()).unwrap();
    let mut agent = bed.start_agent(options()).unwrap();
    let traffic = Traffic::begin(&bed);
    for _ in 0..2 {
        agent.terminate().unwrap();
        traffic.goes_on_for(100);
        agent = bed.start_agent(options()).unwrap();
        assert_eq!(agent.status().unwrap()["adopted"], true);
        traffic.goes_on_for(100);
    }
    traffic.end_unharmed("sigterm_and_start_under_load_break_nothing");
}

#[test]
fn kill_9_and_start_under_load_break_nothing() {
    let _alone = alone();
    let bed = Bed::s1(Options::default()).unwrap();
    let mut agent = bed.start_agent(options()).unwrap();
    let traffic = Traffic::begin(&bed);
    for _ in 0..2 {
        agent.kill().unwrap();
        agent = bed.start_agent(options()).unwrap();
        assert_eq!(agent.status().unwrap()["adopted"], true);
        traffic.goes_on_for(100);
    }
    // Killed in the middle of its start, and of its work on a change.
    for _ in 0..3 {
        agent.kill().unwrap();
        let starting = bed.start_agent(AgentOptions { wait: false, ..options() }).unwrap();
        traffic.goes_on_for(5);
        starting.kill().unwrap();
        agent = bed.start_agent(options()).unwrap();
    }
    traffic.goes_on_for(200);
    traffic.end_unharmed("kill_9_and_start_under_load_break_nothing");
}

#[test]
fn a_dead_agent_leaves_the_gateway_forwarding() {
    let _alone = alone();
    let bed = Bed::s1(Options::default()).unwrap();
    let agent = bed.start_agent(options()).unwrap();
    agent.kill().unwrap();
    let traffic = Traffic::begin(&bed);
    traffic.goes_on_for(1000);
    let _agent = bed.start_agent(options()).unwrap();
    traffic.goes_on_for(100);
    traffic.end_unharmed("a_dead_agent_leaves_the_gateway_forwarding");
}

#[test]
fn flows_live_on_through_a_restart_and_the_services_are_never_gone() {
    let _alone = alone();
    let bed = Bed::s1(Options::default()).unwrap();
    let agent = bed.start_agent(options()).unwrap();
    let hold = |target| bed.client().hold(Hold::new(target, 200)).unwrap();
    let held = [hold(bed.vip_http()), hold(bed.vip_http6())];
    let before = held_flows(&agent);
    assert_eq!(before.len(), 400);
    let maps = ["SERVICES_V4", "SERVICES_V6", "VIPS_V4"].map(|name| pin(&bed.bpffs(), name).unwrap());
    let full = maps.each_ref().map(|map| entries(map));
    assert_eq!(full, [2, 2, 1]);

    let done = AtomicBool::new(false);
    let (agent, looks) = thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut looks = 0;
            while !done.load(Ordering::Relaxed) {
                assert_eq!(maps.each_ref().map(|map| entries(map)), full, "look {looks}");
                looks += 1;
            }
            looks
        });
        agent.terminate().unwrap();
        let agent = bed.start_agent(options()).unwrap();
        assert_eq!(held_flows(&agent), before);
        agent.kill().unwrap();
        let agent = bed.start_agent(options()).unwrap();
        done.store(true, Ordering::Relaxed);
        (agent, watch.join().unwrap())
    });
    assert!(looks > 3, "{looks}");
    assert_eq!(held_flows(&agent), before);
    for held in held {
        assert_eq!(held.stop().broken, Vec::<String>::new());
    }
}

#[test]
fn what_changed_while_the_agent_was_dead_is_made_good_at_its_start() {
    let _alone = alone();
    let bed = Bed::s1(Options { pods: 2, ..Options::default() }).unwrap();
    bed.start_agent(options()).unwrap().kill().unwrap();
    let gone = bed.pods()[0].clone();
    bed.set_condition(&gone.name, tests::topology::Condition::Gone).unwrap();
    let added = bed.add_pod("shanghai").unwrap();
    let _agent = bed.start_agent(options()).unwrap();
    let tally = bed.client().tcp(TcpLoad::new(bed.vip_http(), 500)).unwrap().tally();
    assert_eq!((tally.failed, tally.by_pod.contains_key(&gone.name)), (0, false), "{tally:?}");
    assert!(tally.by_pod.contains_key(&added.name), "{tally:?}");
}

fn said(output: &Output) -> String {
    [output.stdout.as_slice(), output.stderr.as_slice()].map(String::from_utf8_lossy).concat()
}

#[test]
fn a_second_agent_on_the_same_pins_is_refused_and_the_first_goes_on() {
    let _alone = alone();
    let bed = Bed::s1(Options { pods: 1, ..Options::default() }).unwrap();
    let mut agent = bed.start_agent(options()).unwrap();
    let pid = agent.process().pid();
    let second = bed.refused_agent(options()).unwrap();
    assert_eq!(second.status.code(), Some(1), "{}", said(&second));
    assert!(said(&second).contains(&format!("another agent (process {pid})")), "{}", said(&second));
    let cleanup = bed.cleanup().unwrap();
    assert!(!cleanup.status.success() && said(&cleanup).contains("another agent"), "{}", said(&cleanup));
    assert_eq!(agent.status().unwrap()["ready"], true);
    assert_eq!(bed.client().tcp(TcpLoad::new(bed.vip_http(), 50)).unwrap().tally().failed, 0);
}

/// What an agent leaves in the bed: XDP on the gateway's link, pins (a bpffs has two files of the kernel's own
/// beside them), the socket.
fn left(bed: &Bed) -> (bool, usize, bool) {
    fn files(dir: &Path) -> usize {
        let entries = std::fs::read_dir(dir).unwrap().flatten();
        entries.map(|entry| if entry.path().is_dir() { files(&entry.path()) } else { 1 }).sum()
    }
    let link = bed.gateway().command("ip").args(["link", "show", "dev", "eth0"]).output().unwrap();
    (said(&link).contains("xdp"), files(&bed.bpffs()), bed.socket().exists())
}

#[test]
fn sigint_takes_everything_away() {
    let _alone = alone();
    let bed = Bed::s1(Options { pods: 1, two_armed: true }).unwrap();
    let nothing = left(&bed);
    let agent = bed.start_agent(options()).unwrap();
    let (attached, pins, socket) = left(&bed);
    assert!(attached && pins > 20 && socket, "{pins} pins");
    agent.interrupt().unwrap();
    assert_eq!(left(&bed), nothing);
    // And it can begin anew.
    let agent = bed.start_agent(options()).unwrap();
    assert_eq!(agent.status().unwrap()["adopted"], false);
    assert_eq!(bed.client().tcp(TcpLoad::new(bed.vip_http6(), 50)).unwrap().tally().failed, 0);
}

#[test]
fn cleanup_removes_what_a_killed_agent_left() {
    let _alone = alone();
    let bed = Bed::s1(Options { pods: 1, ..Options::default() }).unwrap();
    let nothing = left(&bed);
    bed.start_agent(options()).unwrap().kill().unwrap();
    assert!(left(&bed).0 && left(&bed).1 > 20);
    let cleanup = bed.cleanup().unwrap();
    assert!(cleanup.status.success(), "{}", said(&cleanup));
    assert!(said(&cleanup).contains("detached from eth0"), "{}", said(&cleanup));
    assert_eq!(left(&bed), nothing);
    let again = bed.cleanup().unwrap();
    assert!(again.status.success() && said(&again).contains("nothing to clean up"), "{}", said(&again));
}

#[test]
fn pins_of_another_size_or_another_layout_are_refused_with_the_command_that_clears_them() {
    let _alone = alone();
    let bed = Bed::s1(Options { pods: 1, ..Options::default() }).unwrap();
    bed.start_agent(options()).unwrap().terminate().unwrap();
    let clears = format!("kanmon cleanup --pin-dir {}", bed.bpffs().display());
    let larger = AgentOptions { extra: vec!["--flows=262144".into()], ..options() };
    let refused = bed.refused_agent(larger).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(said(&refused).contains(&clears), "{}", said(&refused));
    // What is there was left alone and forwards.
    assert_eq!(bed.client().tcp(TcpLoad::new(bed.vip_http(), 50)).unwrap().tally().failed, 0);

    assert!(bed.cleanup().unwrap().status.success());
    std::fs::create_dir(bed.bpffs().join("v9999")).unwrap();
    let refused = bed.refused_agent(options()).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(said(&refused).contains("9999") && said(&refused).contains(&clears), "{}", said(&refused));
    assert!(bed.cleanup().unwrap().status.success());
    let agent = bed.start_agent(options()).unwrap();
    assert_eq!(agent.status().unwrap()["adopted"], false);
}
