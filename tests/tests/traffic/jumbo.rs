//! Frames larger than a page, in native mode: the driver gives them in several buffers.

use std::{
    net::{SocketAddr, UdpSocket},
    thread,
};

use tests::{
    agent::Agent,
    scenario::eventually,
    topology::{Bed, Options},
};

use super::{
    ANSWER, SOON, drops_since, grown,
    icmp::{BULK, give_own_server, transfer},
    small_tables,
};

/// The MTU of all links.
const JUMBO: u32 = 9000;
/// What a datagram carries: nearly all of it.
const DATAGRAM: usize = 8900;

/// A bed of jumbo frames, with one pod whose server is the test's own.
fn jumbo(two_armed: bool) -> (Bed, Agent) {
    let bed = Bed::s1(Options { pods: 1, two_armed }).unwrap();
    bed.set_mtu_everywhere(JUMBO).unwrap();
    let agent = bed.start_agent(small_tables()).unwrap();
    assert_eq!(agent.attach_mode().unwrap(), "native");
    give_own_server(&bed, &agent);
    (bed, agent)
}

/// Packets and bytes of a VIP's TCP service, towards the pod and towards clients.
fn traffic(agent: &Agent, vip: SocketAddr) -> [u64; 4] {
    let rows = agent.services().unwrap();
    let row = rows
        .iter()
        .find(|row| row["vip"] == vip.ip().to_string() && row["port"] == vip.port())
        .unwrap_or_else(|| panic!("{vip} in {rows:?}"));
    ["packets_in", "bytes_in", "packets_out", "bytes_out"].map(|name| row["traffic"][name].as_u64().unwrap())
}

#[test]
fn a_connection_uses_jumbo_frames_in_both_directions_and_their_bytes_are_counted() {
    for two_armed in [false, true] {
        let (bed, agent) = jumbo(two_armed);
        let before = agent.counters().unwrap();
        for vip in [bed.vip_http(), bed.vip_http6()] {
            for (there, back) in [(BULK, 0), (0, BULK)] {
                let [packets_in, bytes_in, packets_out, bytes_out] = traffic(&agent, vip);
                assert_eq!(transfer(&bed, vip, there, back), (there, back), "{vip}");
                let now = traffic(&agent, vip);
                let (packets, bytes) = match there {
                    0 => (now[2] - packets_out, now[3] - bytes_out),
                    _ => (now[0] - packets_in, now[1] - bytes_in),
                };
                assert!(bytes as usize > BULK, "{vip}: {bytes} bytes");
                // Not a page's worth, though the ends of writes are shorter.
                assert!(bytes / packets > 6000, "{vip}: {bytes} bytes in {packets} packets");
            }
        }
        assert_eq!(drops_since(&agent, &before), [].into());
        assert_eq!(grown(&agent, &before, "redirect_failed"), 0);
    }
}

/// Sends back what comes to an address, until one byte comes.
fn echo(bed: &Bed, address: SocketAddr) -> thread::JoinHandle<()> {
    let pod = bed.ready_pods().remove(0);
    let socket = bed.pod_ns(&pod.name).unwrap().run(|| UdpSocket::bind(address)).unwrap();
    socket.set_read_timeout(Some(4 * ANSWER)).unwrap();
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            if length == 1 {
                break;
            }
            socket.send_to(&buffer[..length], from).unwrap();
        }
    })
}

#[test]
fn datagrams_of_nearly_9000_bytes_come_through_whole_and_one_too_long_is_told_so() {
    let (bed, agent) = jumbo(true);
    let pod = bed.ready_pods().remove(0);
    let before = agent.counters().unwrap();
    for vip in [bed.vip_udp(), bed.vip_udp6()] {
        let address = pod.sockets().into_iter().find(|address| address.is_ipv4() == vip.is_ipv4()).unwrap();
        let server = echo(&bed, address);
        let any = if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = bed.client_ns().run(|| UdpSocket::bind(any)).unwrap();
        socket.connect(vip).unwrap();
        socket.set_read_timeout(Some(ANSWER)).unwrap();
        let question: Vec<u8> = (0..DATAGRAM).map(|byte| (byte / 251) as u8 ^ byte as u8).collect();
        let mut answer = vec![0; 1 << 16];
        for _ in 0..20 {
            socket.send(&question).unwrap();
            let length = socket.recv(&mut answer).unwrap();
            assert!(answer[..length] == question[..], "{vip}: {length} bytes");
        }
        socket.send(b"!").unwrap();
        server.join().unwrap();
    }
    // In one frame each.
    assert_eq!(grown(&agent, &before, "fragment_tracked"), 0);
    assert_eq!(drops_since(&agent, &before), [].into());

    // The gateway's own link to the pods takes less now.
    bed.set_gateway_mtu(1, JUMBO - 1000).unwrap();
    for vip in [bed.vip_udp(), bed.vip_udp6()] {
        let any = if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = bed.client_ns().run(|| UdpSocket::bind(any)).unwrap();
        socket.connect(vip).unwrap();
        let before = agent.counters().unwrap();
        eventually("the gateway tells of its MTU", SOON, || {
            // What the kernel has heard of the path is told as an error of the next one.
            let _ = socket.send(&[7; DATAGRAM]);
            grown(&agent, &before, "refusal_sent") > 0
        });
        assert!(grown(&agent, &before, "drop_too_big") > 0, "{vip}");
    }
}
