//! Clients that are not outside: pods of member clusters, the backend itself, the gateway's own node.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpStream},
    sync::Arc,
};

use serde_json::Value;
use tests::{
    agent::Agent,
    client::{Client, Report, TcpLoad, UdpLoad},
    netns::Link,
    topology::{Bed, Condition, ECHO_PORT, VIP},
};

use super::{ANSWER, SOON, connect, drops_since, fronts, gateway, gateway_addresses};

/// Connections of each client to each front: enough that the ring sends some to every pod.
const REQUESTS: usize = 60;

/// Requests from a namespace to a front, none of which may fail.
#[track_caller]
fn ask(client: &Client, target: SocketAddr) -> Report {
    let report = if target.port() == ECHO_PORT {
        client.udp(UdpLoad { timeout: ANSWER, ..UdpLoad::new(target, REQUESTS) })
    } else {
        client.tcp(TcpLoad { timeout: ANSWER, ..TcpLoad::new(target, REQUESTS) })
    };
    let report = report.unwrap();
    assert_eq!(report.tally().failed, 0, "{target}: {:?}", report.tally());
    report
}

/// A pod as a client.
fn client_in(bed: &Bed, pod: &str) -> Client {
    let address = bed.pods().into_iter().find(|known| known.name == pod).unwrap().address;
    Client::at(bed.pod_ns(pod).unwrap(), &address.both())
}

/// The gateway's node as a client.
fn node(bed: &Bed) -> Client {
    Client::at(bed.gateway().clone(), &gateway_addresses())
}

#[test]
fn a_pod_of_a_member_cluster_is_served_by_every_pod_itself_among_them() {
    let (bed, agent) = gateway(2);
    let before = agent.counters().unwrap();
    for pod in ["hangzhou-1", "shanghai-2"] {
        let client = client_in(&bed, pod);
        for front in fronts(&bed) {
            let tally = ask(&client, front).tally();
            assert_eq!(tally.by_pod.len(), 4, "{pod} to {front}: {tally:?}");
        }
    }
    assert_eq!(drops_since(&agent, &before), [].into());
}

#[test]
fn the_only_backend_of_a_service_is_a_client_of_it_too() {
    let (bed, mut agent) = gateway(1);
    let other = bed.pods().into_iter().find(|pod| pod.cluster == "shanghai").unwrap();
    bed.set_condition(&other.name, Condition::Gone).unwrap();
    agent.wait_until_unused(&other, SOON).unwrap();
    let before = agent.counters().unwrap();
    let client = client_in(&bed, "hangzhou-1");
    for front in fronts(&bed) {
        let report = ask(&client, front);
        assert!(report.pods().iter().all(|pod| *pod == Some("hangzhou-1")), "{front}");
        // Its own packets come back to it from the gateway's address: to itself it would answer around the gateway.
        for outcome in &report.outcomes {
            let from: SocketAddr = outcome.result.as_ref().unwrap().client.parse().unwrap();
            assert!(gateway_addresses().contains(&from.ip()), "{front}: from {from}");
        }
    }
    assert_eq!(drops_since(&agent, &before), [].into());
}

/// What `kanmon status` says of the node as a client of a VIP.
fn no_client(agent: &Agent, vip: IpAddr) -> Option<String> {
    let status = agent.status().unwrap();
    let rows = status["node_is_no_client"].as_array().unwrap();
    let row = rows.iter().find(|row| row["vip"] == vip.to_string())?;
    row["reason"].as_str().map(str::to_owned)
}

#[test]
fn the_gateways_own_node_is_served_through_its_router() {
    let (bed, agent) = gateway(2);
    let before = agent.counters().unwrap();
    let client = node(&bed);
    for front in fronts(&bed) {
        let tally = ask(&client, front).tally();
        assert_eq!(tally.by_pod.len(), 4, "{front}: {tally:?}");
    }
    assert_eq!(drops_since(&agent, &before), [].into());
    let status = agent.status().unwrap();
    assert_eq!(status["node_is_no_client"], Value::from(Vec::<Value>::new()));
    // Its flows are as any other client's.
    let flows = agent.flows().unwrap();
    let own = gateway_addresses().map(|ip| SocketAddr::new(ip, 0).to_string());
    for own in own {
        let own = own.trim_end_matches('0');
        assert!(flows.iter().any(|flow| flow.client.starts_with(own)), "{own} in {flows:?}");
    }
}

#[test]
fn where_the_gateways_own_node_cannot_be_a_client_status_says_so_and_others_are_served() {
    let (bed, mut agent) = gateway(1);
    let eth0 = Link::find(bed.gateway(), "eth0").unwrap();
    // Straight out of the interface: nobody there has the address.
    for (vip, length) in VIP.both().into_iter().zip([32, 128]) {
        eth0.set_route(ipnet::IpNet::new(vip, length).unwrap(), None).unwrap();
    }
    let says = |agent: &mut Agent, words: &str| {
        let words = Arc::<str>::from(words);
        agent
            .wait_until("telling of its node", SOON, move |agent| {
                Ok(VIP
                    .both()
                    .iter()
                    .all(|vip| no_client(agent, *vip).is_some_and(|why| why.contains(&*words))))
            })
            .unwrap();
    };
    says(&mut agent, "straight out of eth0");
    connect(&bed, bed.vip_http(), 20, 10_000);
    // The node's own addresses: what it sends there never leaves it, and nobody listens.
    for (vip, length) in VIP.both().into_iter().zip([32, 128]) {
        eth0.add_address(ipnet::IpNet::new(vip, length).unwrap()).unwrap();
    }
    says(&mut agent, "this node's own");
    for front in [bed.vip_http(), bed.vip_http6()] {
        let refused = bed.gateway().run(|| TcpStream::connect_timeout(&front, ANSWER));
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{front}");
        connect(&bed, front, 20, 10_100);
    }
    // With the router back on the way it is a client again.
    for (vip, length) in VIP.both().into_iter().zip([32, 128]) {
        eth0.remove_address(ipnet::IpNet::new(vip, length).unwrap()).unwrap();
    }
    for (vip, router) in VIP.both().into_iter().zip(["192.168.0.1", "fd00:c0a8::1"]) {
        let length = if vip.is_ipv4() { 32 } else { 128 };
        let router = router.parse().unwrap();
        eth0.set_route(ipnet::IpNet::new(vip, length).unwrap(), Some(router)).unwrap();
    }
    agent
        .wait_until("taking its node for a client", SOON, |agent| {
            Ok(VIP.both().iter().all(|vip| no_client(agent, *vip).is_none()))
        })
        .unwrap();
    let client = node(&bed);
    for front in fronts(&bed) {
        ask(&client, front);
    }
}
