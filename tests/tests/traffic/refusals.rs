//! What a client hears, at once, of what is not served.

use std::{
    io::ErrorKind,
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tests::topology::{Bed, Condition, ECHO_PORT, VIP};

use super::{ANSWER, SOON, connect, drops_since, fronts, gateway, gateway_addresses, grown, request};

/// How a TCP connection fails.
#[track_caller]
fn tcp_error(bed: &Bed, target: SocketAddr) -> ErrorKind {
    let result = bed.client_ns().run(|| TcpStream::connect_timeout(&target, ANSWER));
    result.expect_err("nobody serves there").kind()
}

/// How a UDP request fails. The socket is connected: nobody else's error is told.
#[track_caller]
fn udp_error(bed: &Bed, target: SocketAddr) -> ErrorKind {
    let result = bed.client_ns().run(|| {
        let any: SocketAddr = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(ANSWER))?;
        socket.connect(target)?;
        socket.send(b"is anybody there?")?;
        socket.recv(&mut [0; 64])
    });
    result.expect_err("nobody serves there").kind()
}

/// That clients hear of it when they ask there.
#[track_caller]
fn refused(bed: &Bed, tcp: SocketAddr, udp: SocketAddr) {
    assert_eq!(tcp_error(bed, tcp), ErrorKind::ConnectionRefused, "{tcp}");
    assert_eq!(udp_error(bed, udp), ErrorKind::ConnectionRefused, "{udp}");
}

#[test]
fn a_port_that_is_not_open_and_a_service_without_backends_are_refused_at_once() {
    let (bed, mut agent) = gateway(1);
    let before = agent.counters().unwrap();
    for vip in VIP.both() {
        for _ in 0..5 {
            refused(&bed, (vip, 81).into(), (vip, 54).into());
        }
    }
    assert_eq!(drops_since(&agent, &before), [("drop_closed_port".to_owned(), 20)].into());
    let [http, http6, udp, udp6] = fronts(&bed);
    connect(&bed, http, 20, 10_000);
    for pod in bed.pods() {
        bed.set_condition(&pod.name, Condition::Gone).unwrap();
        agent.wait_until_unused(&pod, SOON).unwrap();
    }
    for (http, udp) in [(http, udp), (http6, udp6)] {
        for _ in 0..5 {
            refused(&bed, http, udp);
        }
    }
    let drops = drops_since(&agent, &before);
    assert_eq!(drops.get("drop_no_backend"), Some(&20), "{drops:?}");
    let after = agent.counters().unwrap();
    assert_eq!(after["refusal_sent"] - before["refusal_sent"], 40);
    // Served again, nobody is refused.
    for pod in bed.pods() {
        bed.set_condition(&pod.name, Condition::Ready).unwrap();
    }
    agent.wait_for_pods(&bed.pods(), SOON).unwrap();
    for (http, udp) in [(http, udp), (http6, udp6)] {
        connect(&bed, http, 20, 10_100);
        request(&bed, udp, 20, 10_100);
    }
}

/// Who says that a datagram to `target` with so many hops has ended its way there.
fn hop(bed: &Bed, target: SocketAddr, hops: u32) -> IpAddr {
    bed.client_ns().run(|| {
        let v4 = target.is_ipv4();
        let (domain, protocol, exceeded) = match v4 {
            true => (Domain::IPV4, Protocol::ICMPV4, 11),
            false => (Domain::IPV6, Protocol::ICMPV6, 3),
        };
        let listener = Socket::new(domain, Type::RAW, Some(protocol)).unwrap();
        listener.set_read_timeout(Some(ANSWER)).unwrap();
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP)).unwrap();
        match v4 {
            true => socket.set_ttl_v4(hops).unwrap(),
            false => socket.set_unicast_hops_v6(hops).unwrap(),
        }
        socket.send_to(b"how far?", &SockAddr::from(target)).unwrap();
        // An IPv4 raw socket hands over the IP header as well; neighbour discovery arrives at an IPv6 one too.
        let skip = if v4 { 20 } else { 0 };
        let mut bytes = [MaybeUninit::<u8>::uninit(); 2048];
        loop {
            let (length, from) = listener.recv_from(&mut bytes).unwrap();
            // SAFETY: the kernel has written so many bytes.
            let kind = (length > skip).then(|| unsafe { bytes[skip].assume_init() });
            if kind == Some(exceeded) {
                return from.as_socket().unwrap().ip();
            }
        }
    })
}

#[test]
fn a_trace_of_the_route_to_a_vip_shows_the_gateway() {
    let (bed, agent) = gateway(1);
    let before = agent.counters().unwrap();
    for (vip, gateway) in VIP.both().into_iter().zip(gateway_addresses()) {
        assert_ne!(hop(&bed, (vip, ECHO_PORT).into(), 1), gateway, "the router in front of it");
        assert_eq!(hop(&bed, (vip, ECHO_PORT).into(), 2), gateway);
    }
    assert_eq!(drops_since(&agent, &before), [("drop_ttl".to_owned(), 2)].into());
}

#[test]
fn a_trace_of_the_route_to_a_vip_shows_what_is_behind_the_gateway() {
    let (bed, agent) = gateway(1);
    let nodes: Vec<IpAddr> =
        bed.cluster_names().iter().flat_map(|name| bed.node_address(name).unwrap().both()).collect();
    let before = agent.counters().unwrap();
    for vip in VIP.both() {
        let target = (vip, ECHO_PORT).into();
        let behind = hop(&bed, target, 3);
        assert!(
            !nodes.contains(&behind) && !gateway_addresses().contains(&behind) && behind != vip,
            "{behind}"
        );
        let node = hop(&bed, target, 4);
        assert!(nodes.contains(&node), "{node} is the node of neither cluster: {nodes:?}");
    }
    // Each came from a router, about a packet from the gateway.
    assert_eq!(grown(&agent, &before, "icmp_forwarded"), 4);
    assert_eq!(drops_since(&agent, &before), [].into());
}
