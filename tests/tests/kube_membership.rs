//! Members come, change and go while clients connect: their state, their Secrets and tokens, which gateway serves
//! them, and where a gateway is.

use std::{collections::BTreeSet, net::IpAddr, time::Instant};

use anyhow::Result;
use tests::{
    agent::Agent,
    client::{Hold, Tally, TcpLoad},
    scene::{MEMBERS, SMALL, SOON, Scene, Traffic, connection, used, wait_for_sync},
    stage::{KubeStage, StageOptions, declared},
};

const SECRET: [&str; 4] = ["-n", "kanmon-system", "secret", "kanmon-remote-secret-hangzhou"];

fn of(scene: &Scene, member: &str) -> BTreeSet<IpAddr> {
    scene.pods_of(member).into_iter().flat_map(|pod| pod.addresses).collect()
}

/// Waits until the app's new flows go to the pods of these members and to no others.
fn wait_for_members(scene: &Scene, agent: &mut Agent, members: &[&str]) {
    let wanted: BTreeSet<IpAddr> = members.iter().flat_map(|member| of(scene, member)).collect();
    agent
        .wait_until(&format!("using exactly {members:?}"), SOON, |agent| {
            Ok(used(agent, "demo/httpbin")? == wanted)
        })
        .unwrap();
}

fn patch(stage: &KubeStage, member: &str, change: &str) {
    let patch = ["patch", "membercluster", member, "--type=merge", "-p", change];
    stage.kube("gateway").unwrap().kubectl(&patch, "").unwrap();
}

fn requests(scene: &Scene) -> Tally {
    let bed = scene.stage().bed();
    bed.client().tcp(TcpLoad::new(bed.vip_http(), 200)).unwrap().tally()
}

fn members(agent: &Agent) -> Result<Vec<String>> {
    Ok(agent.members()?.into_iter().map(|member| member.name).collect())
}

#[test]
fn a_draining_member_keeps_its_flows_and_gets_no_new_ones_and_a_disabled_one_is_out() {
    let scene = Scene::set().unwrap();
    let stage = scene.stage();
    let mut agent = scene.start_agent().unwrap();
    let held = stage.bed().client().hold(Hold::new(stage.bed().vip_http(), 40)).unwrap();
    let on_hangzhou = |held: &tests::client::Held| -> u64 {
        let pods = scene.pods_of("hangzhou");
        let by_pod = held.now().by_pod;
        pods.iter().filter_map(|pod| by_pod.get(&pod.name)).sum()
    };
    let before = on_hangzhou(&held);
    assert!(before > 0, "{:?}", held.now());

    patch(stage, "hangzhou", r#"{"spec":{"state":"Drain"}}"#);
    wait_for_members(&scene, &mut agent, &["shanghai"]);
    let tally = requests(&scene);
    assert_eq!((tally.failed, tally.by_cluster.contains_key("hangzhou")), (0, false), "{tally:?}");
    assert_eq!((held.now().broken, on_hangzhou(&held)), (Vec::<String>::new(), before));
    // A draining member is still read.
    scene.mark("hangzhou", 0).unwrap();
    scene.wait_for_mark(&mut agent, "hangzhou", 0).unwrap();

    patch(stage, "hangzhou", r#"{"spec":{"state":"Active"}}"#);
    scene.wait_for_all_pods(&mut agent).unwrap();
    assert_eq!(held.stop().broken, Vec::<String>::new(), "each was answered by the pod it began with");

    patch(stage, "hangzhou", r#"{"spec":{"state":"Disabled"}}"#);
    wait_for_members(&scene, &mut agent, &["shanghai"]);
    assert_eq!(connection(&agent, "hangzhou").unwrap().reason, "Disabled");
    let tally = requests(&scene);
    assert_eq!((tally.failed, tally.by_cluster.contains_key("hangzhou")), (0, false), "{tally:?}");

    patch(stage, "hangzhou", r#"{"spec":{"state":"Active"}}"#);
    scene.wait_for_all_pods(&mut agent).unwrap();
    assert_eq!(requests(&scene).failed, 0);
}

#[test]
fn a_secret_that_is_deleted_and_made_again_drains_nothing() {
    let scene = Scene::set().unwrap();
    let gateway = scene.kube("gateway").unwrap();
    let mut agent = scene.start_agent().unwrap();
    let traffic = Traffic::begin(&scene).unwrap();
    let get: Vec<&str> = ["get"].into_iter().chain(SECRET).chain(["-o", "yaml"]).collect();
    let secret = gateway.kubectl(&get, "").unwrap();
    let delete: Vec<&str> = ["delete"].into_iter().chain(SECRET).collect();
    gateway.kubectl(&delete, "").unwrap();
    let is_missed = |agent: &Agent| {
        Ok(agent.problems()?.iter().any(|problem| {
            problem.object == "MemberCluster hangzhou" && problem.message.contains("there is no Secret")
        }))
    };
    agent.wait_until("missing the Secret", SOON, is_missed).unwrap();
    scene.wait_for_all_pods(&mut agent).unwrap();
    traffic.goes_on().unwrap();
    scene.mark("hangzhou", 0).unwrap();
    scene.wait_for_mark(&mut agent, "hangzhou", 0).unwrap();

    let anew: String =
        secret.lines().filter(|line| !is_the_servers(line)).map(|line| format!("{line}\n")).collect();
    gateway.apply(&anew).unwrap();
    agent.wait_until("content again", SOON, |agent| Ok(!is_missed(agent)?)).unwrap();
    scene.mark("hangzhou", 1).unwrap();
    scene.wait_for_mark(&mut agent, "hangzhou", 1).unwrap();
    scene.wait_for_all_pods(&mut agent).unwrap();
    traffic.end_unharmed("a_secret_that_is_deleted_and_made_again_drains_nothing").unwrap();
}

/// What an API server adds to an object, and does not take for a new one.
fn is_the_servers(line: &str) -> bool {
    ["  uid:", "  resourceVersion:", "  creationTimestamp:"].iter().any(|field| line.starts_with(field))
}

#[test]
fn a_rotated_token_takes_over_and_the_revoked_one_takes_no_endpoint_with_it() {
    let scene = Scene::set().unwrap();
    let stage = scene.stage();
    let mut agent = scene.start_agent().unwrap();
    let traffic = Traffic::begin(&scene).unwrap();
    // The account goes, and its token with it: from now on the API server answers 401.
    stage.type_in("kanmon remote-secret delete --context hangzhou --name hangzhou").unwrap();
    agent
        .wait_until("refused by hangzhou", SOON, |agent| {
            let found = connection(agent, "hangzhou")?;
            Ok(found.connected == Some(false) && found.reason == "Unauthorized")
        })
        .unwrap();
    traffic.goes_on().unwrap();
    scene.wait_for_all_pods(&mut agent).unwrap();

    stage.register("hangzhou").unwrap();
    let registered = Instant::now();
    scene.mark("hangzhou", 0).unwrap();
    scene.wait_for_mark(&mut agent, "hangzhou", 0).unwrap();
    println!("the new token had taken over after {:?}", registered.elapsed());
    wait_for_sync(&mut agent, "hangzhou").unwrap();
    scene.wait_for_all_pods(&mut agent).unwrap();
    traffic.end_unharmed("a_rotated_token_takes_over_and_the_revoked_one_takes_no_endpoint_with_it").unwrap();
}

#[test]
fn a_member_goes_with_its_secret_and_comes_back_with_it() {
    let scene = Scene::set().unwrap();
    let stage = scene.stage();
    let gateway = scene.kube("gateway").unwrap();
    let short: Vec<&str> = SMALL.into_iter().chain(["--secret-grace-period=1s"]).collect();
    let mut agent = stage.start_agent(&stage.gateway(), &short).unwrap();
    scene.wait_for_all_pods(&mut agent).unwrap();

    // The MemberCluster was made from the Secret: while that is there, it is made again.
    gateway.kubectl(&["delete", "membercluster", "hangzhou"], "").unwrap();
    gateway.kubectl(&["wait", "--for=create", "membercluster/hangzhou", "--timeout=90s"], "").unwrap();
    scene.wait_for_all_pods(&mut agent).unwrap();

    let delete: Vec<&str> = ["delete"].into_iter().chain(SECRET).collect();
    gateway.kubectl(&delete, "").unwrap();
    wait_for_members(&scene, &mut agent, &["shanghai"]);
    agent.wait_until("rid of hangzhou", SOON, |agent| Ok(members(agent)? == ["shanghai"])).unwrap();
    gateway.kubectl(&["wait", "--for=delete", "membercluster/hangzhou", "--timeout=90s"], "").unwrap();
    let tally = requests(&scene);
    assert_eq!((tally.failed, tally.by_cluster.contains_key("hangzhou")), (0, false), "{tally:?}");

    stage.register("hangzhou").unwrap();
    scene.wait_for_all_pods(&mut agent).unwrap();
    assert_eq!(requests(&scene).failed, 0);
}

#[test]
fn a_gateway_serves_the_members_that_its_selector_chooses_and_is_where_its_node_is() {
    let stage = KubeStage::start(StageOptions::default()).unwrap();
    let gateway = stage.kube("gateway").unwrap();
    for member in MEMBERS {
        gateway.apply(&declared(member, "SameName")).unwrap();
    }
    let selector = [&SMALL[..], &["--member-selector", "location in (cn-shanghai, cn-beijing)"]].concat();
    let mut agent = stage.start_agent(&stage.gateway(), &selector).unwrap();
    wait_for_sync(&mut agent, "shanghai").unwrap();
    assert_eq!(members(&agent).unwrap(), ["shanghai"]);

    let label = ["label", "--overwrite", "membercluster"];
    gateway.kubectl(&[&label[..], &["hangzhou", "location=cn-beijing"]].concat(), "").unwrap();
    wait_for_sync(&mut agent, "hangzhou").unwrap();
    gateway.kubectl(&[&label[..], &["shanghai", "location=elsewhere"]].concat(), "").unwrap();
    agent.wait_until("serving hangzhou alone", SOON, |agent| Ok(members(agent)? == ["hangzhou"])).unwrap();

    let place = |agent: &Agent| -> Result<(String, String)> {
        let status = agent.status()?;
        let text = |field: &str| status[field].as_str().unwrap_or_default().to_owned();
        Ok((text("region"), text("zone")))
    };
    assert_eq!(place(&agent).unwrap(), ("cn-hangzhou".to_owned(), "cn-hangzhou-a".to_owned()));
    let zone = "topology.kubernetes.io/zone=cn-hangzhou-c";
    gateway.kubectl(&["label", "--overwrite", "node", "gateway-1", zone], "").unwrap();
    agent
        .wait_until("in the zone of its Node", SOON, |agent| {
            Ok(place(agent)? == ("cn-hangzhou".to_owned(), "cn-hangzhou-c".to_owned()))
        })
        .unwrap();
}
