//! The agent starts while an API server is away, that of a member or that of its own cluster: it is not blocked, and
//! what was known serves.

use std::{collections::BTreeSet, net::IpAddr};

use tests::{
    agent::Agent,
    client::{Tally, TcpLoad},
    scene::{SMALL, SOON, Scene, Traffic, connection, used, wait_for_sync},
};

/// A reboot: nothing of the agent is left but what it keeps on disk.
fn reboot(scene: &Scene, agent: Agent) {
    agent.terminate().unwrap();
    let cleanup = scene.stage().bed().cleanup().unwrap();
    assert!(cleanup.status.success(), "{cleanup:?}");
}

fn wait_until_away(agent: &mut Agent, member: &str) {
    let is_away = |agent: &Agent| Ok(connection(agent, member)?.connected == Some(false));
    agent.wait_until(&format!("showing {member} as away"), SOON, is_away).unwrap();
}

fn requests(scene: &Scene) -> Tally {
    let bed = scene.stage().bed();
    let mut outcomes = bed.client().tcp(TcpLoad::new(bed.vip_http(), 100)).unwrap().outcomes;
    outcomes.extend(bed.client().tcp(TcpLoad::new(bed.vip_http6(), 100)).unwrap().outcomes);
    outcomes.iter().collect()
}

fn clusters(tally: &Tally) -> Vec<&str> {
    tally.by_cluster.keys().map(String::as_str).collect()
}

#[test]
fn the_agent_restarts_while_a_member_is_away_and_what_was_known_of_it_keeps_serving() {
    let scene = Scene::set().unwrap();
    let mut agent = scene.start_agent().unwrap();
    let traffic = Traffic::begin(&scene).unwrap();
    scene.kube("hangzhou").unwrap().partition().unwrap();
    wait_until_away(&mut agent, "hangzhou");

    agent.kill().unwrap();
    let mut agent = scene.start_agent().unwrap();
    wait_until_away(&mut agent, "hangzhou");
    scene.wait_for_all_pods(&mut agent).unwrap();
    scene.mark("shanghai", 0).unwrap();
    scene.wait_for_mark(&mut agent, "shanghai", 0).unwrap();
    agent.terminate().unwrap();
    let agent = scene.start_agent().unwrap();
    traffic.goes_on().unwrap();
    let name = "the_agent_restarts_while_a_member_is_away_and_what_was_known_of_it_keeps_serving";
    traffic.end_unharmed(name).unwrap();

    reboot(&scene, agent);
    let mut agent = scene.start_agent().unwrap();
    assert_eq!(agent.status().unwrap()["adopted"], false);
    let tally = requests(&scene);
    assert_eq!((tally.failed, clusters(&tally)), (0, vec!["hangzhou", "shanghai"]), "{tally:?}");

    scene.mark("hangzhou", 1).unwrap();
    scene.kube("hangzhou").unwrap().heal().unwrap();
    scene.wait_for_mark(&mut agent, "hangzhou", 1).unwrap();
    wait_for_sync(&mut agent, "hangzhou").unwrap();
}

#[test]
fn a_member_that_was_never_there_does_not_keep_the_others_from_serving() {
    let scene = Scene::set().unwrap();
    scene.kube("hangzhou").unwrap().partition().unwrap();
    let stage = scene.stage();
    let mut agent = stage.start_agent(&stage.gateway(), &SMALL).unwrap();
    let of_shanghai: BTreeSet<IpAddr> =
        scene.pods_of("shanghai").into_iter().flat_map(|pod| pod.addresses).collect();
    agent
        .wait_until("using shanghai's pods", SOON, |agent| Ok(used(agent, "demo/httpbin")? == of_shanghai))
        .unwrap();
    wait_until_away(&mut agent, "hangzhou");
    let tally = requests(&scene);
    assert_eq!((tally.failed, clusters(&tally)), (0, vec!["shanghai"]), "{tally:?}");

    scene.kube("hangzhou").unwrap().heal().unwrap();
    scene.wait_for_all_pods(&mut agent).unwrap();
}

#[test]
fn the_gateway_clusters_own_api_server_is_away_and_everything_goes_on() {
    let scene = Scene::set().unwrap();
    let gateway = scene.kube("gateway").unwrap();
    let mut agent = scene.start_agent().unwrap();
    let traffic = Traffic::begin(&scene).unwrap();
    gateway.kill_api().unwrap();
    let says_so = |agent: &Agent| {
        Ok(agent.problems()?.iter().any(|problem| problem.object.contains("gateway cluster")))
    };
    agent.wait_until("saying that its own cluster is away", SOON, says_so).unwrap();
    scene.mark("hangzhou", 0).unwrap();
    scene.wait_for_mark(&mut agent, "hangzhou", 0).unwrap();
    scene.wait_for_all_pods(&mut agent).unwrap();

    agent.kill().unwrap();
    let mut agent = scene.start_agent().unwrap();
    agent.wait_until("saying so again", SOON, says_so).unwrap();
    scene.wait_for_all_pods(&mut agent).unwrap();
    traffic.goes_on().unwrap();
    let name = "the_gateway_clusters_own_api_server_is_away_and_everything_goes_on";
    traffic.end_unharmed(name).unwrap();

    reboot(&scene, agent);
    let mut agent = scene.start_agent().unwrap();
    let tally = requests(&scene);
    assert_eq!((tally.failed, clusters(&tally)), (0, vec!["hangzhou", "shanghai"]), "{tally:?}");

    gateway.start_api().unwrap();
    for member in ["hangzhou", "shanghai"] {
        wait_for_sync(&mut agent, member).unwrap();
        scene.mark(member, 1).unwrap();
        scene.wait_for_mark(&mut agent, member, 1).unwrap();
    }
    // And what is asked for in the gateway's cluster is done.
    gateway
        .kubectl(&["patch", "mc", "hangzhou", "--type=merge", "-p", r#"{"spec":{"state":"Drain"}}"#], "")
        .unwrap();
    let drained = |agent: &Agent| {
        let rows = agent.backends()?;
        Ok(rows.iter().all(|row| row.cluster != "hangzhou" || !row.usable))
    };
    agent.wait_until("draining hangzhou", SOON, drained).unwrap();
}
