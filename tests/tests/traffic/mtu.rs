//! Links of the gateway's own that take less than others: who hears of it, and who need not.

use std::{
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd,
};

use nix::sys::signal::Signal;
use tests::{
    agent::Agent,
    netns::Link,
    scenario::eventually,
    topology::{Bed, Options},
};

use super::{
    ANSWER, SOON, drops_since, grown,
    icmp::{BULK, NARROW, give_own_server, transfer},
    request, small_tables, with_options,
};

/// A gateway with two arms: clients are where 1,500 bytes fit, backends where [`NARROW`] do.
fn narrow_inside() -> (Bed, Agent) {
    let bed = Bed::s1(Options { pods: 1, two_armed: true }).unwrap();
    bed.set_gateway_mtu(1, NARROW).unwrap();
    let agent = bed.start_agent(small_tables()).unwrap();
    (bed, agent)
}

#[test]
fn connections_over_a_narrow_link_of_the_gateways_take_no_packet_that_does_not_fit() {
    let (bed, agent) = narrow_inside();
    give_own_server(&bed, &agent);
    let before = agent.counters().unwrap();
    for vip in [bed.vip_http(), bed.vip_http6()] {
        assert_eq!(transfer(&bed, vip, BULK, 0), (BULK, 0), "{vip}");
        assert_eq!(transfer(&bed, vip, 0, BULK), (0, BULK), "{vip}");
    }
    // SYN and answer of four connections; nobody had to be told.
    assert!(grown(&agent, &before, "mss_clamped") >= 8);
    assert_eq!(grown(&agent, &before, "icmp_forwarded"), 0);
    assert_eq!(drops_since(&agent, &before).get("drop_too_big"), None);
}

/// An integer option of a socket.
fn option(socket: &UdpSocket, level: i32, name: i32) -> i32 {
    let (mut value, mut length) = (0_i32, size_of::<i32>() as libc::socklen_t);
    // SAFETY: both places live as long as the call, and the length is that of the value.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut length)
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    value
}

/// Sets one.
fn set_option(socket: &UdpSocket, level: i32, name: i32, value: i32) {
    let length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the value lives as long as the call, and the length is its own.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn who_sends_a_datagram_too_long_for_a_link_of_the_gateways_hears_its_mtu() {
    let (bed, mut agent) = narrow_inside();
    agent.wait_for_pods(&bed.pods(), SOON).unwrap();
    let before = agent.counters().unwrap();
    for vip in [bed.vip_udp(), bed.vip_udp6()] {
        let (any, level, discover, mtu, headers) = match vip.is_ipv4() {
            true => ("0.0.0.0:0", libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_MTU, 28),
            false => ("[::]:0", libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_MTU, 48),
        };
        let socket = bed.client_ns().run(|| UdpSocket::bind(any)).unwrap();
        socket.connect(vip).unwrap();
        socket.set_read_timeout(Some(ANSWER)).unwrap();
        set_option(&socket, level, discover, libc::IP_PMTUDISC_DO);
        socket.send(&[7; 1450]).unwrap();
        eventually("the client knows the MTU", SOON, || option(&socket, level, mtu) == NARROW as i32);
        socket.take_error().unwrap();
        let refused = socket.send(&[7; 1450]).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EMSGSIZE), "{vip}: {refused}");
        // As long as it may be: it arrives, and is answered.
        let longest = NARROW as usize - headers;
        socket.send(&vec![7; longest]).unwrap();
        let mut answer = [0; 2048];
        assert!(socket.recv(&mut answer).unwrap() > 0, "{vip}");
    }
    assert_eq!(drops_since(&agent, &before), [("drop_too_big".to_owned(), 2)].into());
    assert_eq!(grown(&agent, &before, "refusal_sent"), 2);
}

/// A datagram of so many bytes from the client, to which there is no answer.
fn throw(bed: &Bed, target: SocketAddr, bytes: usize) {
    let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = bed.client_ns().run(|| UdpSocket::bind(any)).unwrap();
    socket.connect(target).unwrap();
    socket.send(&vec![7; bytes]).unwrap();
}

#[test]
fn a_packet_that_the_next_interface_does_not_take_after_all_is_counted() {
    let (bed, mut agent) = with_options(Options { pods: 1, two_armed: true });
    assert!(agent.status().unwrap()["redirects_uncounted"].is_null(), "{:?}", agent.status());
    let before = agent.counters().unwrap();
    request(&bed, bed.vip_udp(), 20, 10_000);
    assert_eq!(grown(&agent, &before, "redirect_failed"), 0);
    // Nobody tells the packet program meanwhile.
    agent.process().signal(Signal::SIGSTOP).unwrap();
    bed.set_gateway_mtu(1, NARROW).unwrap();
    for vip in [bed.vip_udp(), bed.vip_udp6()] {
        (0..5).for_each(|_| throw(&bed, vip, 1440));
    }
    Link::find(bed.gateway(), "eth1").unwrap().down().unwrap();
    for vip in [bed.vip_udp(), bed.vip_udp6()] {
        (0..5).for_each(|_| throw(&bed, vip, 100));
    }
    agent.process().signal(Signal::SIGCONT).unwrap();
    // The datagrams have been through XDP when they were sent, or are about to.
    agent
        .wait_until("telling of 20 packets that were lost", SOON, |agent| {
            Ok(grown(agent, &before, "redirect_failed") >= 20)
        })
        .unwrap();
    assert_eq!(grown(&agent, &before, "redirect_failed"), 20);
}
