//! Addresses from pools, on real clusters: who gets which, who keeps it, and what is said where there is none.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    time::Duration,
};

use serde_json::{Value, json};
use tests::{
    agent::Agent,
    client::TcpLoad,
    kube::{KubeCluster, condition, condition_message},
    scenario::eventually,
    scene::{MEMBERS, SMALL, SOON, wait_for_sync},
    stage::{App, KubeStage, StageOptions, ingress},
    topology::{HTTP_PORT, VIP},
};

/// Where the allocations are.
const ALLOCATIONS: &str = "/apis/kanmon.dev/v1alpha1/addressallocations";
/// Services that are made at once.
const MANY: usize = 500;
/// How long that many may take: generous, for a machine that is busy compiling.
const LATER: Duration = Duration::from_secs(240);

fn path(name: &str) -> String {
    format!("/api/v1/namespaces/demo/services/{name}")
}

/// A load balancer of ours with one IPv4 address, and nobody behind it.
fn service(name: &str, annotations: Value, spec: Value) -> Value {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "demo", "name": name, "annotations": annotations},
        "spec": {
            "type": "LoadBalancer", "loadBalancerClass": "kanmon.dev/xdp", "allocateLoadBalancerNodePorts": false,
            "ports": [{"name": "http", "port": 80}],
        },
    });
    for (field, value) in spec.as_object().into_iter().flatten() {
        service["spec"][field] = value.clone();
    }
    service
}

fn plain(name: &str) -> Value {
    service(name, json!({}), json!({}))
}

fn pool(name: &str, cidrs: &[&str]) -> String {
    json!({"apiVersion": "kanmon.dev/v1alpha1", "kind": "AddressPool", "metadata": {"name": name},
           "spec": {"cidrs": cidrs}})
    .to_string()
}

fn apply(cluster: &KubeCluster, objects: &[Value]) {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
    cluster.kubectl(&["apply", "-f", "-"], &list).unwrap();
}

/// Waits until a Service shows an address, the only one.
fn address(cluster: &KubeCluster, name: &str) -> IpAddr {
    let seen = cluster.see(&format!("{name} has an address"), &path(name), SOON, |service| {
        match ingress(service)[..] {
            [one] => Some(one),
            _ => None,
        }
    });
    seen.unwrap()
}

/// The allocations: who has which address.
fn allocations(cluster: &KubeCluster) -> BTreeMap<IpAddr, Vec<String>> {
    let list = cluster.look(ALLOCATIONS).unwrap();
    let items = list["items"].as_array().unwrap().iter();
    items
        .map(|item| {
            let services = item["spec"]["services"].as_array().unwrap().iter();
            let names = services.map(|service| service["name"].as_str().unwrap().to_owned()).collect();
            (item["spec"]["address"].as_str().unwrap().parse().unwrap(), names)
        })
        .collect()
}

/// The addresses in the status of all Services of `demo`, by their names.
fn shown(cluster: &KubeCluster) -> BTreeMap<String, Vec<IpAddr>> {
    let list = cluster.look("/api/v1/namespaces/demo/services").unwrap();
    let items = list["items"].as_array().unwrap().iter();
    items.map(|item| (item["metadata"]["name"].as_str().unwrap().to_owned(), ingress(item))).collect()
}

/// The VIPs that an agent serves, by Service.
fn served(agent: &Agent) -> BTreeMap<String, BTreeSet<IpAddr>> {
    let mut all: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
    for row in agent.services().unwrap() {
        let name = row["name"].as_str().unwrap().to_owned();
        all.entry(name).or_default().insert(row["vip"].as_str().unwrap().parse().unwrap());
    }
    all
}

/// Waits until there is a Warning about a Service, with a word in its message. The reason is up to the code.
fn wait_for_warning(cluster: &KubeCluster, name: &str, word: &str) {
    let events = format!(
        "/api/v1/namespaces/demo/events?fieldSelector=involvedObject.kind%3DService,involvedObject.name%3D{name},type%3DWarning"
    );
    cluster
        .see(&format!("a Warning about {name} that says {word:?}"), &events, SOON, |list| {
            let mut items = list["items"].as_array().into_iter().flatten();
            items.any(|event| event["message"].as_str().is_some_and(|text| text.contains(word))).then_some(())
        })
        .unwrap();
}

#[test]
fn two_agents_give_500_services_made_at_once_an_address_each_none_twice_and_restarts_change_nothing() {
    let clusters = vec!["gateway", "hangzhou"];
    let stage = KubeStage::start(StageOptions { clusters, ..StageOptions::default() }).unwrap();
    let gateway = stage.kube("gateway").unwrap();
    let hangzhou = stage.kube("hangzhou").unwrap();
    gateway.apply(&pool("many", &["192.168.100.0/22"])).unwrap();
    let places = [stage.gateway(), stage.second_gateway("hangzhou").unwrap()];
    let start = || [0, 1].map(|n| stage.start_agent(&places[n], &SMALL).unwrap());
    let mut agents = start();
    agents.iter_mut().for_each(|agent| wait_for_sync(agent, "hangzhou").unwrap());

    let services: Vec<Value> = (0..MANY).map(|n| plain(&format!("many-{n:03}"))).collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": services}).to_string();
    hangzhou.kubectl(&["create", "-f", "-"], &list).unwrap();
    let all = "/api/v1/namespaces/demo/services";
    hangzhou
        .see("all Services have an address", all, LATER, |list| {
            let items = list["items"].as_array()?;
            (items.len() == MANY && items.iter().all(|item| ingress(item).len() == 1)).then_some(())
        })
        .unwrap();

    let given = shown(hangzhou);
    let distinct: BTreeSet<IpAddr> = given.values().flatten().copied().collect();
    assert_eq!(distinct.len(), MANY, "no address is given twice");
    let written = allocations(gateway);
    assert_eq!(written.len(), MANY, "each has one that is written down, and nothing else is");
    for (name, addresses) in &given {
        assert_eq!(written[&addresses[0]], [name.as_str()], "{name} has what is written down for it");
    }
    let list = hangzhou.look(all).unwrap();
    let modes: BTreeSet<&str> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|item| item["status"]["loadBalancer"]["ingress"][0]["ipMode"].as_str())
        .collect();
    assert_eq!(modes, ["Proxy"].into());
    let wanted: BTreeMap<String, BTreeSet<IpAddr>> =
        given.iter().map(|(name, ips)| (name.clone(), ips.iter().copied().collect())).collect();
    for agent in &mut agents {
        agent.wait_until("serving all Services", LATER, |agent| Ok(served(agent) == wanted)).unwrap();
    }

    // Agents that know nothing of before but what is written down.
    for agent in agents {
        agent.terminate().unwrap();
    }
    places.iter().for_each(|place| fs::remove_dir_all(place.state()).unwrap());
    let mut agents = start();
    for agent in &mut agents {
        agent.wait_until("serving the same again", LATER, |agent| Ok(served(agent) == wanted)).unwrap();
    }
    assert_eq!(shown(hangzhou), given);
    assert_eq!(allocations(gateway), written);
}

#[test]
fn a_member_that_is_away_keeps_its_vip_and_nobody_else_gets_it() {
    let stage = KubeStage::start(StageOptions::default()).unwrap();
    let [hangzhou, shanghai] = MEMBERS.map(|member| stage.kube(member).unwrap());
    let gateway = stage.kube("gateway").unwrap();
    gateway.apply(&pool("single", &["192.168.100.64/32"])).unwrap();
    let place = stage.gateway();
    let agent = stage.start_agent(&place, &SMALL).unwrap();
    apply(hangzhou, &[plain("first")]);
    let only: IpAddr = "192.168.100.64".parse().unwrap();
    assert_eq!(address(hangzhou, "first"), only);
    eventually("the agent serves it", SOON, || served(&agent).contains_key("first"));

    // The member is gone, and so is all that the gateway had learned of it: it begins anew.
    hangzhou.partition().unwrap();
    agent.interrupt().unwrap();
    fs::remove_dir_all(place.state()).unwrap();
    apply(shanghai, &[plain("second")]);
    let mut agent = stage.start_agent(&place, &SMALL).unwrap();
    wait_for_sync(&mut agent, "shanghai").unwrap();
    shanghai
        .see("the second Service hears that there is no address", &path("second"), LATER, |service| {
            (condition(service, "kanmon.dev/AddressAssigned") == "False/NoAddress").then_some(())
        })
        .unwrap();
    wait_for_warning(shanghai, "second", "address");
    assert_eq!(shown(shanghai)["second"], [] as [IpAddr; 0]);
    assert_eq!(allocations(gateway), [(only, vec!["first".to_owned()])].into());

    hangzhou.heal().unwrap();
    agent
        .wait_until("serving the first again", SOON, |agent| Ok(served(agent).contains_key("first")))
        .unwrap();
    assert_eq!(shown(hangzhou)["first"], [only]);
    assert_eq!(shown(shanghai)["second"], [] as [IpAddr; 0]);

    // Whoever is deleted gives its address to who waits for one.
    hangzhou.kubectl(&["-n", "demo", "delete", "service", "first"], "").unwrap();
    assert_eq!(address(shanghai, "second"), only);
    assert_eq!(allocations(gateway), [(only, vec!["second".to_owned()])].into());

    // And so does one that stops being ours, without a trace.
    let class =
        r#"{"spec":{"type":"ClusterIP","loadBalancerClass":null,"allocateLoadBalancerNodePorts":null}}"#;
    shanghai.kubectl(&["-n", "demo", "patch", "service", "second", "--type=merge", "-p", class], "").unwrap();
    let without_a_trace = |service: &Value| {
        let conditions = service["status"]["conditions"].as_array().map_or(0, Vec::len);
        (ingress(service).is_empty() && conditions == 0).then_some(())
    };
    shanghai.see("what we wrote is taken back", &path("second"), SOON, without_a_trace).unwrap();
    eventually("its address is free", SOON, || allocations(gateway).is_empty());
}

#[test]
fn a_pool_says_what_it_has_and_who_holds_what_and_services_say_what_they_were_refused() {
    let clusters = vec!["gateway", "hangzhou"];
    let stage = KubeStage::start(StageOptions { clusters, ..StageOptions::default() }).unwrap();
    let (gateway, hangzhou) = (stage.kube("gateway").unwrap(), stage.kube("hangzhou").unwrap());
    gateway.apply(&pool("small", &["192.168.100.64/31"])).unwrap();
    let agent = stage.start_agent(&stage.gateway(), &SMALL).unwrap();
    apply(hangzhou, &[plain("a"), plain("b")]);
    let held = [address(hangzhou, "a"), address(hangzhou, "b")];
    assert_ne!(held[0], held[1]);
    let pool_path = "/apis/kanmon.dev/v1alpha1/addresspools/small";
    gateway
        .see("the pool counts", pool_path, SOON, |pool| {
            (pool["status"]["used"] == 2 && pool["status"]["free"] == "0").then_some(())
        })
        .unwrap();

    // Exhausted: said where one looks.
    apply(hangzhou, &[plain("late")]);
    let said = hangzhou
        .see("the late one hears of it", &path("late"), SOON, |service| {
            let refused = condition(service, "kanmon.dev/AddressAssigned") == "False/NoAddress";
            refused.then(|| condition_message(service, "kanmon.dev/AddressAssigned"))
        })
        .unwrap();
    assert!(said.contains("AddressPool"), "it says where there is none: {said}");
    wait_for_warning(hangzhou, "late", "AddressPool");

    // Taken: by a Service that says which it wants, by either name of the wish.
    let wish = held[0].to_string();
    apply(
        hangzhou,
        &[
            service("wants", json!({"kanmon.dev/addresses": wish}), json!({})),
            service("wants-too", json!({}), json!({"loadBalancerIP": wish})),
        ],
    );
    for name in ["wants", "wants-too"] {
        hangzhou
            .see(&format!("{name} hears who has it"), &path(name), SOON, |service| {
                let kind = "kanmon.dev/AddressAssigned";
                let who = condition_message(service, kind).contains("demo/a");
                (condition(service, kind).starts_with("False") && who).then_some(())
            })
            .unwrap();
    }

    // Shared: with the same key and another port.
    let key = json!({"kanmon.dev/shared-address": "web", "kanmon.dev/addresses": "192.168.100.80"});
    let other = json!({"ports": [{"name": "https", "port": 443}]});
    apply(hangzhou, &[service("web", key.clone(), json!({})), service("web-tls", key, other)]);
    assert_eq!(address(hangzhou, "web"), address(hangzhou, "web-tls"));
    let shared = allocations(gateway)[&address(hangzhou, "web")].clone();
    assert_eq!(shared.into_iter().collect::<BTreeSet<_>>(), ["web".to_owned(), "web-tls".to_owned()].into());

    // The pool shrinks: nobody loses an address, and the pool says who holds what it has no more.
    gateway.apply(&pool("small", &["192.168.100.70/32"])).unwrap();
    let said = gateway
        .see("the pool says who is outside", pool_path, SOON, |pool| {
            let outside = condition(pool, "InUseOutside").starts_with("True");
            outside.then(|| condition_message(pool, "InUseOutside"))
        })
        .unwrap();
    for (name, address) in ["demo/a", "demo/b"].iter().zip(held) {
        assert!(said.contains(name) && said.contains(&address.to_string()), "{said}");
    }
    assert_eq!(address(hangzhou, "late"), "192.168.100.70".parse::<IpAddr>().unwrap());
    let all = shown(hangzhou);
    assert_eq!([all["a"][0], all["b"][0]], held, "nobody loses an address that the pool no longer has");
    eventually("the agent serves them still", SOON, || {
        let served = served(&agent);
        served.get("a").is_some_and(|vips| vips.contains(&held[0])) && served.contains_key("late")
    });
    let table = gateway.kubectl(&["get", "addresspool,addressallocation"], "").unwrap();
    for word in ["USED", "FREE", "192.168.100.70", "small", "PROGRAMMED"] {
        assert!(table.contains(word), "{word} is in {table}");
    }
}

#[test]
fn each_gateway_says_what_it_serves_and_what_is_asked_for_and_not_done_is_said_too() {
    let clusters = vec!["gateway", "hangzhou"];
    let stage = KubeStage::start(StageOptions { clusters, ..StageOptions::default() }).unwrap();
    let (gateway, hangzhou) = (stage.kube("gateway").unwrap(), stage.kube("hangzhou").unwrap());
    gateway.apply(&pool("both", &["192.168.100.64/26", "fd00:100::40/122"])).unwrap();
    let dual = json!({"ipFamilyPolicy": "RequireDualStack", "externalTrafficPolicy": "Local"});
    apply(hangzhou, &[service("web", json!({}), dual)]);
    let second = stage.second_gateway("hangzhou").unwrap();
    let _whole = stage.start_agent(&stage.gateway(), &SMALL).unwrap();
    let only_v4 = [&SMALL[..], &["--snat-addresses=192.168.11.10"]].concat();
    let half = stage.start_agent(&second, &only_v4).unwrap();
    let said = hangzhou
        .see("the Service says which gateway does not serve it", &path("web"), SOON, |service| {
            let kind = "kanmon.dev/Programmed";
            let broken = condition(service, kind).starts_with("False");
            let said = condition_message(service, kind);
            (broken && said.contains("1 of 2 gateways")).then_some(said)
        })
        .unwrap();
    assert!(said.contains("gateway-2") && !said.contains("gateway-1"), "{said}");
    let service = hangzhou.look(&path("web")).unwrap();
    assert!(condition(&service, "kanmon.dev/Enforced").starts_with("False"), "{service}");
    let said = condition_message(&service, "kanmon.dev/Enforced");
    assert!(said.contains("externalTrafficPolicy"), "{said}");
    assert!(condition(&service, "kanmon.dev/Accepted").starts_with("True"), "{service}");

    // It is put right, and is well.
    half.terminate().unwrap();
    let _half = stage.start_agent(&second, &SMALL).unwrap();
    hangzhou
        .see("both gateways serve it", &path("web"), SOON, |service| {
            condition(service, "kanmon.dev/Programmed").starts_with("True").then_some(())
        })
        .unwrap();
    let list = gateway.look(ALLOCATIONS).unwrap();
    for item in list["items"].as_array().unwrap() {
        let gateways = item["status"]["gateways"].as_array().unwrap().iter();
        let names: BTreeSet<&str> = gateways.map(|state| state["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["gateway-1", "gateway-2"].into(), "each has an entry of its own: {item}");
    }
}

#[test]
fn with_kube_proxy_a_pods_request_to_the_vip_goes_through_the_gateway_all_the_same() {
    let stage = KubeStage::start(StageOptions { kube_proxy: true, ..StageOptions::default() }).unwrap();
    let mut agent = stage.start_agent(&stage.gateway(), &SMALL).unwrap();
    let httpbin = App::new("httpbin", 2).at(VIP);
    for member in MEMBERS {
        stage.deploy(member, &httpbin).unwrap();
    }
    let pods = stage.wait_until_used(&mut agent, &httpbin, &[("hangzhou", 2), ("shanghai", 2)]).unwrap();
    let hangzhou = stage.kube("hangzhou").unwrap();
    hangzhou
        .see("the Service shows its VIPs", &path("httpbin"), SOON, |service| {
            (ingress(service) == VIP.both()).then_some(())
        })
        .unwrap();
    let from = stage.inside(&pods[0]).unwrap();

    // What kube-proxy does with an address of the mode VIP: whoever asks it in the cluster never leaves the cluster.
    let taken: IpAddr = "192.168.100.99".parse().unwrap();
    let spec = json!({"loadBalancerClass": "example.com/other", "selector": {"app": "httpbin"},
                      "ports": [{"name": "http", "port": 80, "targetPort": "http"}]});
    apply(hangzhou, &[service("short-cut", json!({}), spec)]);
    let status =
        json!({"status": {"loadBalancer": {"ingress": [{"ip": taken, "ipMode": "VIP"}]}}}).to_string();
    let patch = [
        "-n",
        "demo",
        "patch",
        "service",
        "short-cut",
        "--subresource=status",
        "--type=merge",
        "-p",
        &status,
    ];
    hangzhou.kubectl(&patch, "").unwrap();
    eventually("kube-proxy takes an address of the mode VIP to the cluster's own pods", SOON, || {
        let tally = from.tcp(TcpLoad::new((taken, HTTP_PORT).into(), 20)).unwrap().tally();
        tally.failed == 0 && tally.by_cluster.keys().eq(["hangzhou"])
    });

    for target in VIP.both() {
        let report = from.tcp(TcpLoad::new((target, HTTP_PORT).into(), 200)).unwrap();
        let tally = report.tally();
        assert_eq!(tally.failed, 0, "{tally:?}");
        assert!(tally.by_cluster.keys().eq(MEMBERS), "pods of both clusters answer: {tally:?}");
        let own = pods[0].addresses.clone();
        let flows = agent.flows().unwrap();
        let through = flows.iter().filter(|flow| {
            let client: std::net::SocketAddr = flow.client.parse().unwrap();
            own.contains(&client.ip()) && flow.vip.starts_with(&socket(target))
        });
        assert!(through.count() >= 200, "every connection is a flow of the gateway: {flows:?}");
    }
}

/// An address as it begins the text of a socket's address.
fn socket(address: IpAddr) -> String {
    std::net::SocketAddr::from((address, HTTP_PORT)).to_string()
}
