//! ICMP through the gateway: what senders must hear of their packets, and pings.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread::{self, JoinHandle},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tests::{netns::Link, scenario::eventually, topology::Bed};

use super::{ANSWER, SOON, gateway, grown};

const MEGABYTE: usize = 1 << 20;
/// What goes one way in a transfer.
pub(super) const BULK: usize = 100 * MEGABYTE;
/// MTU of the narrow link. Everything else carries 1,500 bytes.
pub(super) const NARROW: u32 = 1400;

/// Takes one connection: reads what comes and then sends as much as `answer` says. Gives what was read.
fn serve_one(bed: &Bed, pod: &str, address: SocketAddr, answer: usize) -> JoinHandle<usize> {
    let listener = bed.pod_ns(pod).unwrap().run(|| TcpListener::bind(address)).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(ANSWER)).unwrap();
        stream.set_write_timeout(Some(ANSWER)).unwrap();
        let read = read_all(&mut stream);
        send(&mut stream, answer);
        read
    })
}

fn read_all(stream: &mut TcpStream) -> usize {
    let mut buffer = vec![0; MEGABYTE];
    let mut all = 0;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return all,
            Ok(read) => all += read,
        }
    }
}

/// As much of it as gets through.
fn send(stream: &mut TcpStream, bytes: usize) {
    let block = vec![7; MEGABYTE];
    for _ in 0..bytes / MEGABYTE {
        if stream.write_all(&block).is_err() {
            return;
        }
    }
}

/// Sends so much through a VIP, and gives how much has arrived at the pod, and here of its answer.
pub(super) fn transfer(bed: &Bed, vip: SocketAddr, there: usize, back: usize) -> (usize, usize) {
    let pod = bed.ready_pods().remove(0);
    let address = pod.sockets().into_iter().find(|address| address.is_ipv4() == vip.is_ipv4()).unwrap();
    let server = serve_one(bed, &pod.name, address, back);
    let mut stream = bed.client_ns().run(|| TcpStream::connect_timeout(&vip, ANSWER)).unwrap();
    stream.set_read_timeout(Some(ANSWER)).unwrap();
    stream.set_write_timeout(Some(ANSWER)).unwrap();
    send(&mut stream, there);
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let here = read_all(&mut stream);
    (server.join().unwrap(), here)
}

/// A bed of one pod whose server is a test's own, at the address of [`Bed::vip_http`].
pub(super) fn with_own_server() -> (Bed, tests::agent::Agent) {
    let (bed, agent) = gateway(1);
    give_own_server(&bed, &agent);
    (bed, agent)
}

/// Leaves one pod of a bed of two, without a server and without probes.
pub(super) fn give_own_server(bed: &Bed, agent: &tests::agent::Agent) {
    bed.scale("shanghai", 0).unwrap();
    let pod = bed.ready_pods().remove(0);
    bed.manifests()
        .write(
            "policy.yaml",
            "apiVersion: kanmon.dev/v1alpha1\nkind: LoadBalancingPolicy\n\
             metadata: {namespace: demo, name: unprobed}\n\
             spec:\n  targetRefs: [{group: \"\", kind: Service, name: httpbin}]\n  healthCheck: {type: None}\n",
        )
        .unwrap();
    eventually("the pod is used without probes, alone", SOON, || {
        let rows = agent.backends().unwrap();
        !rows.is_empty() && rows.iter().all(|row| row.is(&pod) && row.usable && row.healthy.is_none())
    });
    bed.kill_pod_server(&pod.name).unwrap();
}

#[test]
fn a_narrow_link_to_a_cluster_is_no_black_hole_for_uploads() {
    let (bed, agent) = with_own_server();
    bed.set_cluster_mtu("hangzhou", NARROW).unwrap();
    let before = agent.counters().unwrap();
    for vip in [bed.vip_http(), bed.vip_http6()] {
        assert_eq!(transfer(&bed, vip, BULK, 0), (BULK, 0), "{vip}");
    }
    assert!(grown(&agent, &before, "icmp_forwarded") >= 2);
}

#[test]
fn a_narrow_link_to_a_client_is_no_black_hole_for_downloads() {
    let (bed, agent) = with_own_server();
    Link::find(bed.cen(), "client").unwrap().set_mtu(NARROW).unwrap();
    let before = agent.counters().unwrap();
    for vip in [bed.vip_http(), bed.vip_http6()] {
        assert_eq!(transfer(&bed, vip, 0, BULK), (0, BULK), "{vip}");
    }
    assert!(grown(&agent, &before, "icmp_forwarded") >= 2);
}

#[test]
fn a_client_hears_at_once_that_no_server_has_the_port() {
    let (bed, agent) = with_own_server();
    let before = agent.counters().unwrap();
    for vip in [bed.vip_udp(), bed.vip_udp6()] {
        let any: IpAddr = if vip.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
        let socket = bed.client_ns().run(|| UdpSocket::bind((any, 0))).unwrap();
        socket.connect(vip).unwrap();
        socket.set_read_timeout(Some(ANSWER)).unwrap();
        socket.send(b"anybody there?").unwrap();
        let error = socket.recv(&mut [0; 64]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{vip}: {error}");
    }
    assert_eq!(grown(&agent, &before, "icmp_forwarded"), 2);
}

/// Whether an address answers an echo request, within a time for each of few tries.
fn pings(bed: &Bed, address: IpAddr) -> bool {
    let (domain, protocol, kind) = match address {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128),
    };
    bed.client_ns().run(|| {
        let mut socket = Socket::new(domain, Type::DGRAM, Some(protocol)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        socket.connect(&SocketAddr::new(address, 0).into()).unwrap();
        // The kernel puts the identifier and the checksum in.
        socket.send(&[kind, 0, 0, 0, 0, 0, 0, 1, b'?']).unwrap();
        let mut answer = [0; 64];
        matches!(socket.read(&mut answer), Ok(length) if answer[length - 1] == b'?')
    })
}

#[test]
fn a_vip_answers_pings_as_long_as_a_backend_is_usable() {
    let (bed, agent) = gateway(1);
    bed.client_ns().sysctl("net.ipv4.ping_group_range", "0 2147483647").unwrap();
    let vips = [bed.vip_http().ip(), bed.vip_http6().ip()];
    let before = agent.counters().unwrap();
    for vip in vips {
        assert!(pings(&bed, vip), "{vip}");
    }
    assert_eq!(grown(&agent, &before, "echo_answered"), 2);
    for cluster in bed.cluster_names() {
        bed.scale(&cluster, 0).unwrap();
    }
    eventually("no VIP answers", SOON, || vips.iter().all(|vip| !pings(&bed, *vip)));
    bed.scale("shanghai", 1).unwrap();
    eventually("both answer again", SOON, || vips.iter().all(|vip| pings(&bed, *vip)));
}
