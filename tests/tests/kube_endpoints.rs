//! EndpointSlices and Services of real clusters: what of them is served, to whom, and what is refused.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use anyhow::{Context, Result, ensure};
use tests::{
    agent::Agent,
    client::{Tally, TcpLoad},
    scene::{Endpoint, SOON, Scene, Traffic, service, slice, used},
    topology::{Dual, HTTP_PORT, POD_PORT},
};

fn vip(number: u8) -> Dual {
    Dual {
        v4: Ipv4Addr::new(192, 168, 100, number),
        v6: Ipv6Addr::new(0xfd00, 0x100, 0, 0, 0, 0, 0, u16::from(number)),
    }
}

fn requests(scene: &Scene, to: Dual) -> Tally {
    let target: SocketAddr = (to.v4, HTTP_PORT).into();
    scene.stage().bed().client().tcp(TcpLoad::new(target, 200)).unwrap().tally()
}

/// The IPv4 addresses of a member's pods.
fn pods(scene: &Scene, member: &str) -> Vec<IpAddr> {
    scene.pods_of(member).iter().map(|pod| pod.addresses[0]).collect()
}

fn wait_until_used(agent: &mut Agent, service: &str, wanted: &[IpAddr]) -> Result<()> {
    let wanted: BTreeSet<IpAddr> = wanted.iter().copied().collect();
    agent.wait_until(&format!("sending {service} to exactly {wanted:?}"), SOON, |agent| {
        Ok(used(agent, service)? == wanted)
    })
}

#[test]
fn several_slices_are_one_set_and_readiness_decides_who_gets_new_flows() {
    let scene = Scene::set().unwrap();
    let mut agent = scene.start_agent().unwrap();
    let [hangzhou, shanghai] = ["hangzhou", "shanghai"].map(|member| scene.kube(member).unwrap());
    let (ours, theirs) = (pods(&scene, "hangzhou"), pods(&scene, "shanghai"));
    // No selector: these slices are all there is.
    hangzhou.apply(&service("picked", vip(30))).unwrap();
    shanghai.apply(&service("picked", vip(30))).unwrap();
    let (a, b) = (Endpoint::ready(ours[0]), Endpoint::ready(ours[1]));
    hangzhou.apply(&slice("picked-1", "picked", POD_PORT, &[a])).unwrap();
    // The first pod again: a pod is in two slices while it moves from one to the other.
    hangzhou.apply(&slice("picked-2", "picked", POD_PORT, &[a, b])).unwrap();
    shanghai.apply(&slice("picked-1", "picked", POD_PORT, &[Endpoint::ready(theirs[0])])).unwrap();
    wait_until_used(&mut agent, "demo/picked", &[ours[0], ours[1], theirs[0]]).unwrap();
    let rows = agent.backends().unwrap();
    let rows: Vec<_> = rows.iter().filter(|row| row.service == "demo/picked").collect();
    assert_eq!(rows.len(), 3, "each once: {rows:?}");
    let tally = requests(&scene, vip(30));
    assert_eq!((tally.failed, tally.by_pod.len()), (0, 3), "{tally:?}");

    for ready in [false, true] {
        let b = if ready { b } else { Endpoint::not_ready(ours[1]) };
        hangzhou.apply(&slice("picked-2", "picked", POD_PORT, &[a, b])).unwrap();
        let all = [ours[0], theirs[0], ours[1]];
        wait_until_used(&mut agent, "demo/picked", if ready { &all } else { &all[..2] }).unwrap();
        let tally = requests(&scene, vip(30));
        assert_eq!((tally.failed, tally.by_pod.len()), (0, if ready { 3 } else { 2 }), "{tally:?}");
    }
    // Out of one slice, and still in the other; then out of both.
    hangzhou.apply(&slice("picked-2", "picked", POD_PORT, &[b])).unwrap();
    hangzhou.apply(&slice("picked-1", "picked", POD_PORT, &[])).unwrap();
    wait_until_used(&mut agent, "demo/picked", &[theirs[0], ours[1]]).unwrap();
}

#[test]
fn a_slice_of_names_is_refused_with_an_event_on_it_and_the_rest_is_served() {
    let scene = Scene::set().unwrap();
    let mut agent = scene.start_agent().unwrap();
    let hangzhou = scene.kube("hangzhou").unwrap();
    let ours = pods(&scene, "hangzhou");
    let names = slice("named", "picked", POD_PORT, &[])
        .replace("addressType: IPv4", "addressType: FQDN")
        .replace("endpoints: []", "endpoints: [{addresses: [pods.example.com]}]");
    hangzhou.apply(&service("picked", vip(30))).unwrap();
    hangzhou.apply(&names).unwrap();
    hangzhou.apply(&slice("picked-1", "picked", POD_PORT, &[Endpoint::ready(ours[0])])).unwrap();
    wait_until_used(&mut agent, "demo/picked", &ours[..1]).unwrap();
    let told = agent.problems().unwrap();
    let told = told.iter().find(|problem| problem.object == "EndpointSlice demo/named").unwrap();
    assert_eq!((told.cluster.as_deref(), told.reason.as_str()), (Some("hangzhou"), "FQDNEndpoints"));

    let object = "involvedObject.kind=EndpointSlice,involvedObject.name=named,type=Warning";
    let get =
        ["-n", "demo", "get", "events", "--field-selector", object, "-o", "jsonpath={.items[*].reason}"];
    hangzhou
        .wait_for("an Event on the slice", SOON, async |_| {
            let reasons = hangzhou.kubectl(&get, "")?;
            ensure!(!reasons.is_empty(), "there is none");
            ensure!(reasons == "FQDNEndpoints", "{reasons}");
            Ok(Some(()))
        })
        .unwrap();

    hangzhou.kubectl(&["-n", "demo", "delete", "endpointslice", "named"], "").unwrap();
    let is_told = |agent: &Agent| -> Result<bool> {
        Ok(agent.problems()?.iter().any(|problem| problem.object.contains("demo/named")))
    };
    agent.wait_until("content", SOON, |agent| Ok(!is_told(agent)?)).unwrap();
}

#[test]
fn a_service_that_is_deleted_in_one_cluster_and_made_again_leaves_and_joins_the_others_pods() {
    let scene = Scene::set().unwrap();
    let stage = scene.stage();
    let mut agent = scene.start_agent().unwrap();
    let traffic = Traffic::begin(&scene).unwrap();
    stage.type_in("kubectl --context shanghai -n demo delete service httpbin").unwrap();
    let left: BTreeSet<IpAddr> =
        scene.pods_of("hangzhou").into_iter().flat_map(|pod| pod.addresses).collect();
    agent
        .wait_until("using hangzhou's pods alone", SOON, |agent| Ok(used(agent, "demo/httpbin")? == left))
        .unwrap();
    traffic.goes_on().unwrap();
    stage.deploy("shanghai", &scene.httpbin).unwrap();
    scene.wait_for_all_pods(&mut agent).unwrap();
    traffic
        .end_unharmed(
            "a_service_that_is_deleted_in_one_cluster_and_made_again_leaves_and_joins_the_others_pods",
        )
        .unwrap();
}

/// The VIPs that a service has now.
fn vips(agent: &Agent, name: &str) -> Result<BTreeSet<IpAddr>> {
    let rows = agent.services()?;
    let rows = rows.iter().filter(|row| row["name"] == name);
    rows.map(|row| Ok(row["vip"].as_str().context("a service has a VIP")?.parse()?)).collect()
}

/// The clusters whose Service of that name is not the front.
fn not_fronts(agent: &Agent, name: &str) -> Result<Vec<String>> {
    let object = format!("Service demo/{name}");
    let problems = agent.problems()?.into_iter();
    let of_it = problems.filter(|problem| problem.object == object && problem.reason == "NotFront");
    Ok(of_it.filter_map(|problem| problem.cluster).collect())
}

#[test]
fn of_two_services_of_one_name_one_is_the_front_and_the_gateway_clusters_goes_before_both() {
    let scene = Scene::set().unwrap();
    let mut agent = scene.start_agent().unwrap();
    let both = ["hangzhou", "shanghai"];
    for (member, number) in both.into_iter().zip([31, 32]) {
        let cluster = scene.kube(member).unwrap();
        cluster.apply(&service("fronts", vip(number))).unwrap();
        let endpoint = Endpoint::ready(pods(&scene, member)[0]);
        cluster.apply(&slice("fronts-1", "fronts", POD_PORT, &[endpoint])).unwrap();
    }
    let all = both.map(|member| pods(&scene, member)[0]);
    wait_until_used(&mut agent, "demo/fronts", &all).unwrap();
    // The older member's; both were registered at once, so either may be that.
    agent
        .wait_until("of one mind about the front", SOON, |agent| {
            let others = not_fronts(agent, "fronts")?;
            let [other] = &others[..] else { anyhow::bail!("not fronts: {others:?}") };
            let number = if other == "shanghai" { 31 } else { 32 };
            Ok(vips(agent, "fronts")? == BTreeSet::from(vip(number).both()))
        })
        .unwrap();

    let gateway = scene.kube("gateway").unwrap();
    gateway.apply(&service("fronts", vip(33))).unwrap();
    agent
        .wait_until("serving the gateway cluster's front", SOON, |agent| {
            let others: BTreeSet<String> = not_fronts(agent, "fronts")?.into_iter().collect();
            ensure!(others == both.map(str::to_owned).into(), "not fronts: {others:?}");
            Ok(vips(agent, "fronts")? == BTreeSet::from(vip(33).both()))
        })
        .unwrap();
    wait_until_used(&mut agent, "demo/fronts", &all).unwrap();
    let tally = requests(&scene, vip(33));
    assert_eq!((tally.failed, tally.by_cluster.len()), (0, 2), "{tally:?}");

    gateway.kubectl(&["-n", "demo", "delete", "service", "fronts"], "").unwrap();
    agent
        .wait_until("back at the older member's front", SOON, |agent| {
            Ok(not_fronts(agent, "fronts")?.len() == 1)
        })
        .unwrap();
}
