//! A member's API server fails in every way it can. Its endpoints stay and are probed, clients notice nothing, the
//! other member's changes arrive, and what changed meanwhile arrives once it is back.

use std::time::Instant;

use anyhow::{Result, ensure};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use tests::{
    agent::Agent,
    client::TcpLoad,
    kube::KubeCluster,
    scene::{SOON, Scene, Traffic, connection, used, wait_for_sync},
};

/// What befalls the API server of hangzhou.
struct Fault {
    strike: fn(&KubeCluster) -> Result<()>,
    /// What `kanmon status` may call it.
    reasons: &'static [&'static str],
    mend: fn(&KubeCluster) -> Result<()>,
    /// Whether objects can be written while it lasts, inside the cluster.
    writable: bool,
}

impl Fault {
    /// Goes through it once. `number` is that of the marks.
    fn endure(&self, scene: &Scene, agent: &mut Agent, traffic: &Traffic, number: u16) -> Result<()> {
        let hangzhou = scene.kube("hangzhou")?;
        let before = Timestamp::now();
        (self.strike)(hangzhou)?;
        self.wait_until_shown(scene, agent, before)?;
        traffic.goes_on()?;
        scene.wait_for_all_pods(agent)?;

        scene.mark("shanghai", number)?;
        let marked = Instant::now();
        scene.wait_for_mark(agent, "shanghai", number)?;
        println!("the other member's change arrived after {:?}", marked.elapsed());
        ensure!(connection(agent, "hangzhou")?.connected == Some(false), "it is still away");

        if self.writable {
            scene.mark("hangzhou", number)?;
        }
        (self.mend)(hangzhou)?;
        let mended = Instant::now();
        if !self.writable {
            scene.mark("hangzhou", number)?;
        }
        scene.wait_for_mark(agent, "hangzhou", number)?;
        println!("{}: caught up {:?} after recovery", self.reasons[0], mended.elapsed());
        wait_for_sync(agent, "hangzhou")?;
        wait_for_condition(scene, "true")?;
        scene.wait_for_all_pods(agent)
    }

    /// The agent says that hangzhou does not answer, why, and since when: to whoever asks it, and in the
    /// gateway's cluster.
    fn wait_until_shown(&self, scene: &Scene, agent: &mut Agent, before: Timestamp) -> Result<()> {
        agent.wait_until(&format!("showing hangzhou as away ({:?})", self.reasons), SOON, |agent| {
            let found = connection(agent, "hangzhou")?;
            let is_it = self.reasons.contains(&found.reason.as_str());
            ensure!(found.connected != Some(false) || is_it, "it says {found:?}");
            Ok(found.connected == Some(false) && is_it && found.message.is_some())
        })?;
        let since: Timestamp = connection(agent, "hangzhou")?.since.parse()?;
        // It is told in whole seconds.
        let earliest = before - SignedDuration::from_secs(1);
        ensure!(since >= earliest && since <= Timestamp::now(), "away since {since}, broken at {before}");
        ensure!(connection(agent, "shanghai")?.connected == Some(true), "only hangzhou is away");
        wait_for_condition(scene, "false")
    }
}

/// Waits until the MemberCluster of hangzhou says whether it is connected.
fn wait_for_condition(scene: &Scene, connected: &str) -> Result<()> {
    let condition = format!("--for=condition=Connected={connected}");
    let wait = ["wait", "membercluster/hangzhou", &condition, "--timeout=90s"];
    scene.kube("gateway")?.kubectl(&wait, "").map(drop)
}

/// Goes through faults, one after the other, while clients connect.
fn endure(name: &str, faults: &[Fault]) {
    let scene = Scene::set().unwrap();
    let mut agent = scene.start_agent().unwrap();
    let traffic = Traffic::begin(&scene).unwrap();
    for (fault, number) in faults.iter().zip(0..) {
        let endured = fault.endure(&scene, &mut agent, &traffic, number);
        endured.unwrap_or_else(|error| panic!("{:?}: {error:?}", fault.reasons));
    }
    traffic.end_unharmed(name).unwrap();
}

#[test]
fn a_killed_api_server_takes_no_endpoint_away_and_is_caught_up_with_when_it_is_restarted() {
    let killed = Fault {
        strike: KubeCluster::kill_api,
        reasons: &["Unreachable"],
        mend: KubeCluster::start_api,
        writable: false,
    };
    endure(
        "a_killed_api_server_takes_no_endpoint_away_and_is_caught_up_with_when_it_is_restarted",
        &[killed],
    );
}

#[test]
fn a_control_plane_that_is_cut_off_takes_no_endpoint_away_and_is_caught_up_with_when_it_is_back() {
    let cut_off = Fault {
        strike: KubeCluster::partition,
        reasons: &["Timeout", "Unreachable"],
        mend: KubeCluster::heal,
        writable: true,
    };
    let name = "a_control_plane_that_is_cut_off_takes_no_endpoint_away_and_is_caught_up_with_when_it_is_back";
    endure(name, &[cut_off]);
}

#[test]
fn an_api_server_that_accepts_and_never_answers_takes_no_endpoint_away() {
    let slow = Fault {
        strike: KubeCluster::pause_api,
        reasons: &["Timeout"],
        mend: KubeCluster::resume_api,
        writable: false,
    };
    endure("an_api_server_that_accepts_and_never_answers_takes_no_endpoint_away", &[slow]);
}

fn answer_properly(cluster: &KubeCluster) -> Result<()> {
    cluster.answer_properly();
    Ok(())
}

#[test]
fn an_api_server_that_answers_401_or_403_takes_no_endpoint_away() {
    let refused = |strike, reasons| Fault { strike, reasons, mend: answer_properly, writable: true };
    endure(
        "an_api_server_that_answers_401_or_403_takes_no_endpoint_away",
        &[
            refused(|cluster| cluster.answer_with(401), &["Unauthorized"]),
            refused(|cluster| cluster.answer_with(403), &["Forbidden"]),
        ],
    );
}

#[test]
fn an_api_server_that_answers_429_or_500_or_410_takes_no_endpoint_away() {
    let answered = |strike, reasons| Fault { strike, reasons, mend: answer_properly, writable: true };
    endure(
        "an_api_server_that_answers_429_or_500_or_410_takes_no_endpoint_away",
        &[
            answered(|cluster| cluster.answer_with(429), &["TooManyRequests"]),
            answered(|cluster| cluster.answer_with(500), &["ServerError"]),
            answered(|cluster| cluster.answer_with(410), &["RequestFailed"]),
        ],
    );
}

#[test]
fn a_compacted_history_takes_no_endpoint_away_and_later_changes_arrive() {
    let scene = Scene::set().unwrap();
    let mut agent = scene.start_agent().unwrap();
    scene.mark("hangzhou", 0).unwrap();
    scene.wait_for_mark(&mut agent, "hangzhou", 0).unwrap();
    let traffic = Traffic::begin(&scene).unwrap();
    for number in 1..=2 {
        // What was watched up to here is answered 410 from now on.
        scene.kube("hangzhou").unwrap().compact().unwrap();
        scene.mark("hangzhou", number).unwrap();
        scene.wait_for_mark(&mut agent, "hangzhou", number).unwrap();
        scene.wait_for_all_pods(&mut agent).unwrap();
    }
    wait_for_sync(&mut agent, "hangzhou").unwrap();
    traffic.end_unharmed("a_compacted_history_takes_no_endpoint_away_and_later_changes_arrive").unwrap();
}

#[test]
fn probes_decide_about_the_endpoints_of_a_member_whose_api_server_is_dead() {
    let scene = Scene::set().unwrap();
    let mut agent = scene.start_agent().unwrap();
    scene.kube("hangzhou").unwrap().kill_api().unwrap();
    agent
        .wait_until("showing hangzhou as away", SOON, |agent| {
            Ok(connection(agent, "hangzhou")?.connected == Some(false))
        })
        .unwrap();

    let bed = scene.stage().bed();
    bed.silence_cluster("hangzhou").unwrap();
    let left: std::collections::BTreeSet<_> =
        scene.pods_of("shanghai").iter().flat_map(|pod| pod.addresses.clone()).collect();
    agent
        .wait_until("done with hangzhou's pods, which answer no probe", SOON, |agent| {
            Ok(used(agent, "demo/httpbin")? == left)
        })
        .unwrap();
    let tally = bed.client().tcp(TcpLoad::new(bed.vip_http(), 200)).unwrap().tally();
    assert_eq!((tally.failed, tally.by_cluster.contains_key("hangzhou")), (0, false), "{tally:?}");

    bed.heal_cluster("hangzhou").unwrap();
    scene.wait_for_all_pods(&mut agent).unwrap();
    let tally = bed.client().tcp(TcpLoad::new(bed.vip_http6(), 200)).unwrap().tally();
    assert_eq!((tally.failed, tally.by_cluster.contains_key("hangzhou")), (0, true), "{tally:?}");
}
