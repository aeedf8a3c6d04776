//! Datagrams that are larger than a frame: in fragments through the gateway, and whole at both ends.

use std::{
    net::{SocketAddr, UdpSocket},
    thread,
    time::Duration,
};

use tests::topology::Bed;

use super::{ANSWER, grown, icmp::with_own_server};

/// What a datagram carries: 41 fragments of a frame's size.
const LARGE: usize = 60_000;
/// How many each client sends.
const DATAGRAMS: u8 = 20;
/// What a datagram of one's own says where it may be lost: too many at once for a receiver's buffer.
const AGAIN: Duration = Duration::from_millis(500);

/// Content that no other client's and no other number's datagram has.
fn content(client: u8, number: u8) -> Vec<u8> {
    (0..LARGE).map(|byte| (byte / 251) as u8 ^ client.wrapping_mul(37) ^ number.wrapping_mul(101)).collect()
}

/// Answers each datagram at the pod's address by one of the same size with all of its bytes inverted, until one byte
/// comes.
fn invert(bed: &Bed, pod: &str, address: SocketAddr) -> thread::JoinHandle<usize> {
    let socket = bed.pod_ns(pod).unwrap().run(|| UdpSocket::bind(address)).unwrap();
    socket.set_read_timeout(Some(4 * ANSWER)).unwrap();
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        let mut answered = 0;
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            if length == 1 {
                break;
            }
            buffer[..length].iter_mut().for_each(|byte| *byte = !*byte);
            socket.send_to(&buffer[..length], from).unwrap();
            answered += 1;
        }
        answered
    })
}

/// Sends its datagrams one after the other, each until it is answered; how often one was sent.
fn exchange(socket: &UdpSocket, client: u8) -> usize {
    let mut buffer = vec![0; 1 << 16];
    let mut sent = 0;
    for number in 0..DATAGRAMS {
        let question = content(client, number);
        let answer: Vec<u8> = question.iter().map(|byte| !byte).collect();
        let answered = (0..20).any(|_| {
            socket.send(&question).unwrap();
            sent += 1;
            // The answer to one that was sent twice may come late.
            while let Ok(length) = socket.recv(&mut buffer) {
                if buffer[..length] == answer[..] {
                    return true;
                }
                let late = (0..number).any(|earlier| {
                    buffer[..length].iter().zip(content(client, earlier)).all(|(byte, sent)| *byte == !sent)
                });
                assert!(late, "client {client} got what was never its own");
            }
            false
        });
        assert!(answered, "client {client}: datagram {number}");
    }
    sent
}

#[test]
fn datagrams_of_60_000_bytes_reach_a_pod_and_its_clients_of_whom_several_share_an_address() {
    let (bed, agent) = with_own_server();
    let pod = bed.ready_pods().remove(0);
    for vip in [bed.vip_udp(), bed.vip_udp6()] {
        let before = agent.counters().unwrap();
        let address = pod.sockets().into_iter().find(|address| address.is_ipv4() == vip.is_ipv4()).unwrap();
        let server = invert(&bed, &pod.name, address);
        let clients: Vec<UdpSocket> = (0..4)
            .map(|n| {
                let source = bed.client().exact_sources(vip, 4, 14_000).nth(n);
                let socket = bed.client_ns().run(|| UdpSocket::bind(source)).unwrap();
                socket.connect(vip).unwrap();
                socket.set_read_timeout(Some(AGAIN)).unwrap();
                socket
            })
            .collect();
        let sent: usize = thread::scope(|scope| {
            let clients = clients.iter().zip(0..);
            let running: Vec<_> =
                clients.map(|(socket, n)| scope.spawn(move || exchange(socket, n))).collect();
            running.into_iter().map(|client| client.join().unwrap()).sum()
        });
        clients[0].send(b"!").unwrap();
        let answered = server.join().unwrap();
        assert!(answered >= 4 * usize::from(DATAGRAMS), "{answered}");
        // Every one of them in both directions, and nothing dropped on the way.
        assert_eq!(grown(&agent, &before, "fragment_tracked"), (sent + answered) as u64);
        assert!(grown(&agent, &before, "fragment_forwarded") >= 40 * (sent + answered) as u64);
        for counter in ["drop_fragment", "drop_fragment_header", "fragment_displaced"] {
            assert_eq!(grown(&agent, &before, counter), 0, "{counter}");
        }
    }
}
