//! A gateway node is also a node: its own addresses, and traffic that is not ours.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    thread,
};

use ipnet::IpNet;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tests::{
    agent::Agent,
    netns::{Link, Mac, Netns, veth},
    topology::Bed,
    wire::icmp_echo,
};

use super::{ANSWER, SOON, connect, drops_since, gateway, gateway_addresses, request};

/// A server in a namespace that greets whoever connects. It ends with the test.
fn greeter(ns: &Netns, address: &str, greeting: &'static str) {
    let listener = ns.run(|| TcpListener::bind(address).unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            // A client that is gone again is of no interest.
            let _ = stream.and_then(|mut stream| stream.write_all(greeting.as_bytes()));
        }
    });
}

/// What a server at `target` says to the client.
fn greeting(bed: &Bed, target: SocketAddr) -> String {
    bed.client_ns().run(|| {
        let mut stream = TcpStream::connect_timeout(&target, ANSWER).unwrap();
        stream.set_read_timeout(Some(ANSWER)).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    })
}

/// Sends an ICMP echo request from the client, and says whether the answer came.
fn ping(bed: &Bed, target: IpAddr) -> bool {
    bed.client_ns().run(|| {
        let (domain, protocol, reply) = match target {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 0),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 129),
        };
        let socket = Socket::new(domain, Type::RAW, Some(protocol)).unwrap();
        socket.set_read_timeout(Some(ANSWER)).unwrap();
        socket.connect(&SockAddr::from(SocketAddr::new(target, 0))).unwrap();
        let source = socket.local_addr().unwrap().as_socket().unwrap().ip();
        let packet = icmp_echo(source, target);
        let header = if target.is_ipv4() { 20 } else { 40 };
        socket.send(&packet[header..]).unwrap();
        let mut bytes = [0; 512];
        // An IPv4 raw socket hands over the IP header as well; neighbour discovery arrives at an IPv6 one too.
        let skip = if target.is_ipv4() { 20 } else { 0 };
        loop {
            match (&socket).read(&mut bytes) {
                Ok(length) if length > skip && bytes[skip] == reply => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    })
}

/// Makes these the VIPs of `demo/httpbin`, and waits until they are served.
fn serve_at(bed: &Bed, agent: &mut Agent, vips: [IpAddr; 2]) {
    for cluster in bed.cluster_names() {
        let path = format!("{cluster}/service.yaml");
        let text = bed.manifests().read(&path).unwrap();
        let own = text.lines().map(|line| match line.split_once("kanmon.dev/addresses:") {
            Some((indent, _)) => format!("{indent}kanmon.dev/addresses: \"{},{}\"\n", vips[0], vips[1]),
            None => format!("{line}\n"),
        });
        bed.manifests().write(&path, &own.collect::<String>()).unwrap();
    }
    let served = |agent: &Agent| {
        let services = agent.services()?;
        let own = |row: &serde_json::Value| vips.iter().any(|ip| row["vip"] == ip.to_string());
        Ok(services.len() == 4 && services.iter().all(|row| own(row) && row["usable"] == 4))
    };
    agent.wait_until("serving its own addresses", SOON, served).unwrap();
}

#[test]
fn a_vip_that_is_the_nodes_own_address_is_balanced_and_the_nodes_other_ports_stay_reachable() {
    let (bed, mut agent) = gateway(2);
    greeter(bed.gateway(), "[::]:2222", "the node itself");
    // The first pair is also what backends see, so that it gets their replies; the second is not.
    let second: [IpAddr; 2] = ["192.168.0.11".parse().unwrap(), "fd00:c0a8::11".parse().unwrap()];
    let eth0 = Link::find(bed.gateway(), "eth0").unwrap();
    for (address, length) in second.into_iter().zip([24, 64]) {
        eth0.add_address(IpNet::new(address, length).unwrap()).unwrap();
    }
    for (vips, counter) in [(gateway_addresses(), "pass_no_flow"), (second, "pass_node_address")] {
        serve_at(&bed, &mut agent, vips);
        let before = agent.counters().unwrap();
        for own in vips {
            assert_eq!(connect(&bed, (own, 80).into(), 200, 10_000).by_pod.len(), 4);
            assert_eq!(request(&bed, (own, 53).into(), 200, 10_000).by_pod.len(), 4);
            for _ in 0..5 {
                assert_eq!(greeting(&bed, (own, 2222).into()), "the node itself");
            }
            assert!(ping(&bed, own), "the node answers to echo at {own}");
        }
        let after = agent.counters().unwrap();
        assert!(after[counter] - before[counter] >= 22, "{after:?}");
        assert_eq!(drops_since(&agent, &before), [].into());
    }
    // The VIPs from before are ordinary addresses of the node again.
    for own in gateway_addresses() {
        assert_eq!(greeting(&bed, (own, 2222).into()), "the node itself");
        let refused = bed.client_ns().run(|| TcpStream::connect_timeout(&(own, 80).into(), ANSWER));
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}

#[test]
fn traffic_to_the_node_and_through_it_passes_untouched() {
    let (bed, agent) = gateway(1);
    greeter(bed.gateway(), "[::]:2222", "the node itself");
    // An office behind the gateway, for which the gateway is an ordinary router.
    let office = Netns::create(bed.run(), "office").unwrap();
    let macs = [Mac([2, 0x4b, 9, 0, 0, 0]), Mac([2, 0x4b, 9, 0, 0, 1])];
    let (near, far) = veth((bed.gateway(), "office", macs[0]), (&office, "eth0", macs[1])).unwrap();
    for (link, host) in [(&near, 1), (&far, 2)] {
        link.add_address(format!("203.0.113.{host}/24").parse().unwrap()).unwrap();
        link.add_address(format!("2001:db8:ff::{host}/64").parse().unwrap()).unwrap();
        link.up().unwrap();
    }
    bed.gateway().sysctl("net.ipv4.ip_forward", "1").unwrap();
    bed.gateway().sysctl("net.ipv6.conf.all.forwarding", "1").unwrap();
    let [v4, v6] = gateway_addresses();
    for (ns, to, via) in [
        (&office, "0.0.0.0/0", "203.0.113.1"),
        (&office, "::/0", "2001:db8:ff::1"),
        (bed.cen(), "203.0.113.0/24", &v4.to_string()),
        (bed.cen(), "2001:db8:ff::/64", &v6.to_string()),
    ] {
        ns.set_route(to.parse().unwrap(), via.parse().unwrap()).unwrap();
    }
    greeter(&office, "[::]:7777", "the office");
    let before = agent.counters().unwrap();
    let behind: [IpAddr; 2] = ["203.0.113.2".parse().unwrap(), "2001:db8:ff::2".parse().unwrap()];
    for (own, behind) in [v4, v6].into_iter().zip(behind) {
        assert!(ping(&bed, own), "echo to {own}");
        assert!(ping(&bed, behind), "echo to {behind} through the gateway");
        for _ in 0..5 {
            assert_eq!(greeting(&bed, (own, 2222).into()), "the node itself");
            assert_eq!(greeting(&bed, (behind, 7777).into()), "the office");
        }
    }
    assert_eq!(drops_since(&agent, &before), [].into());
    let passed = |name: &str| agent.counters().unwrap()[name] - before[name];
    assert!(passed("pass_foreign") >= 4, "what is routed through is foreign");
    connect(&bed, bed.vip_http(), 20, 10_000);
}
