//! VLAN tags, IPv4 options and IPv6 extension headers, on packets that are answered by real pods.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd,
};

use socket2::{Domain, SockAddr, Socket, Type};
use tests::{
    netns::{Link, Mac},
    topology::{Bed, POD_PORT},
    wire::{ACK, Frame, PSH, Packet, SYN, Tag, Wire, tcp, udp},
};

use super::{ANSWER, gateway, gateway_addresses};

/// Where frames of our own making come from: nobody, so that no kernel answers what comes back.
const STRANGERS: [&str; 2] = ["198.51.100.77", "2001:db8:c::77"];

/// The router's end of the gateway's link, seen as frames, and how to write one to the gateway.
struct Router {
    wire: Wire,
    own: Mac,
    gateway: Mac,
}

impl Router {
    fn of(bed: &Bed) -> Router {
        let link = Link::find(bed.cen(), "gateway0").unwrap();
        Router {
            wire: Wire::open(&link).unwrap(),
            own: link.mac().unwrap(),
            gateway: Link::find(bed.gateway(), "eth0").unwrap().mac().unwrap(),
        }
    }

    fn send(&self, tags: &[Tag], packet: Vec<u8>) {
        let frame = Frame { destination: self.gateway, source: self.own, tags: tags.to_vec(), packet };
        self.wire.send(&frame).unwrap();
    }

    /// The request as the gateway sent it on, after so many routers before it: untagged, to a pod, from the
    /// gateway.
    #[track_caller]
    fn forwarded(&self, bed: &Bed, routers: u8) -> Packet {
        let (frame, packet) = loop {
            let found = self.wire.receive(None, None, ANSWER).unwrap();
            // Probes and other traffic of the gateway's own come from its ephemeral ports.
            if found.1.destination.port() == POD_PORT && (12_288..28_672).contains(&found.1.source.port()) {
                break found;
            }
        };
        assert_eq!((frame.tags.as_slice(), frame.destination), (&[][..], self.own), "{frame:?}");
        assert!(gateway_addresses().contains(&packet.source.ip()), "{packet:?}");
        assert!(bed.pods().iter().any(|pod| pod.sockets().contains(&packet.destination)), "{packet:?}");
        assert!(packet.intact && packet.ttl == 64 - routers - 1, "{packet:?}");
        packet
    }

    /// The reply as it comes back: from the VIP, with the tags of the request, to where it came from.
    #[track_caller]
    fn reply(&self, from: SocketAddr, to: SocketAddr, tags: &[Tag]) -> Packet {
        let (frame, packet) = self.wire.receive(Some(from), Some(to), ANSWER).unwrap();
        assert_eq!((frame.tags.as_slice(), frame.destination), (tags, self.own), "{frame:?}");
        assert_eq!(frame.source, self.gateway);
        assert!(packet.intact, "{packet:?}");
        packet
    }
}

/// No tag, one with a priority, one of 802.1ad, and two.
fn taggings() -> [Vec<Tag>; 4] {
    [
        vec![],
        vec![Tag::vlan(0x6064)],
        vec![Tag::service(0x0065)],
        vec![Tag::service(0x2066), Tag::vlan(0x9067)],
    ]
}

#[test]
fn tagged_udp_is_forwarded_untagged_and_its_answer_leaves_with_the_tags_it_came_with() {
    let (bed, _agent) = gateway(1);
    let router = Router::of(&bed);
    for (n, tags) in (0..).zip(taggings()) {
        for (stranger, vip) in STRANGERS.into_iter().zip([bed.vip_udp(), bed.vip_udp6()]) {
            let from = SocketAddr::new(stranger.parse().unwrap(), 7000 + n);
            router.send(&tags, udp(from, vip, b"anybody there?"));
            let request = router.forwarded(&bed, 0);
            assert_eq!((request.payload.as_slice(), request.tcp), (b"anybody there?".as_slice(), None));
            let reply = router.reply(vip, from, &tags);
            let text = String::from_utf8(reply.payload).unwrap();
            assert!(text.starts_with("pod=") && text.ends_with("anybody there?"), "{tags:?}: {text}");
        }
    }
}

#[test]
fn a_tagged_tcp_connection_is_made_and_served() {
    let (bed, agent) = gateway(1);
    let router = Router::of(&bed);
    for (n, tags) in (0..).zip(taggings()) {
        for (stranger, vip) in STRANGERS.into_iter().zip([bed.vip_http(), bed.vip_http6()]) {
            let from = SocketAddr::new(stranger.parse().unwrap(), 7100 + n);
            router.send(&tags, tcp(from, vip, (1000, 0, SYN), b""));
            assert_eq!(router.forwarded(&bed, 0).tcp.unwrap().2, SYN);
            let (isn, ack, flags) = router.reply(vip, from, &tags).tcp.unwrap();
            assert_eq!((ack, flags), (1001, SYN | ACK));
            router.send(&tags, tcp(from, vip, (1001, isn.wrapping_add(1), ACK), b""));
            let question = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
            router.send(&tags, tcp(from, vip, (1001, isn.wrapping_add(1), ACK | PSH), question));
            let answer = loop {
                let segment = router.reply(vip, from, &tags);
                if !segment.payload.is_empty() {
                    break String::from_utf8(segment.payload).unwrap();
                }
            };
            assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("pod="), "{tags:?}: {answer}");
            let client = from.to_string();
            let flow = agent.flows().unwrap().into_iter().find(|flow| flow.client == client).unwrap();
            assert_eq!((flow.vip, flow.state.as_str()), (vip.to_string(), "established"));
        }
    }
}

fn set_option(socket: &Socket, level: libc::c_int, name: libc::c_int, value: &[u8]) {
    // SAFETY: the descriptor is open, and the value is as long as is said and outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            value.as_ptr().cast(),
            value.len() as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// A socket of the client's with header options.
fn with_options(
    bed: &Bed,
    target: SocketAddr,
    kind: Type,
    options: &[(libc::c_int, libc::c_int, Vec<u8>)],
) -> Socket {
    bed.client_ns().run(|| {
        let socket = Socket::new(Domain::for_address(target), kind, None).unwrap();
        for (level, name, value) in options {
            set_option(&socket, *level, *name, value);
        }
        socket.set_read_timeout(Some(ANSWER)).unwrap();
        socket.connect_timeout(&SockAddr::from(target), ANSWER).unwrap();
        socket
    })
}

/// Asks over TCP twice, so that data follows the handshake, and over UDP once.
fn ask(bed: &Bed, options: &[(libc::c_int, libc::c_int, Vec<u8>)], v6: bool) {
    let (http, echo) = if v6 { (bed.vip_http6(), bed.vip_udp6()) } else { (bed.vip_http(), bed.vip_udp()) };
    let mut stream = TcpStream::from(with_options(bed, http, Type::STREAM, options));
    for _ in 0..2 {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = [0; 512];
        let length = stream.read(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..length]);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let socket = UdpSocket::from(with_options(bed, echo, Type::DGRAM, options));
    socket.send(b"hello").unwrap();
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).unwrap();
    assert!(answer[..length].ends_with(b"hello"));
}

/// The bytes of options in the requests that the gateway sends on, TCP then UDP.
fn forwarded_options(router: &Router, bed: &Bed) -> [usize; 2] {
    let syn = router.forwarded(bed, 1);
    let datagram = loop {
        let packet = router.forwarded(bed, 1);
        if packet.tcp.is_none() {
            break packet;
        }
        assert_eq!(packet.options, syn.options, "every segment carries them");
    };
    [syn.options, datagram.options]
}

#[test]
fn ipv4_options_are_carried_through_both_ways() {
    let (bed, _agent) = gateway(1);
    let no_operation = vec![1, 1, 1, 1];
    // Record route with room for three routers, and time stamps with room for four: each router on the way
    // writes into them, and a TCP server sends back what it got.
    let record_route = [vec![7, 15, 4], vec![0; 12], vec![0]].concat();
    let time_stamps = [vec![68, 20, 5, 0], vec![0; 16]].concat();
    for option in [no_operation, record_route, time_stamps] {
        let router = Router::of(&bed);
        ask(&bed, &[(libc::IPPROTO_IP, libc::IP_OPTIONS, option.clone())], false);
        assert_eq!(forwarded_options(&router, &bed), [option.len(); 2]);
    }
}

#[test]
fn ipv6_extension_headers_are_carried_through() {
    let (bed, _agent) = gateway(1);
    // Padding, and an experimental option that may be skipped (RFC 4727): Linux takes no more than 7 bytes of
    // padding. The kernel fills in what follows.
    let short = vec![0, 0, 1, 4, 0, 0, 0, 0];
    let long = [vec![0, 1, 0x1e, 12], vec![0; 12]].concat();
    let destination = (libc::IPPROTO_IPV6, libc::IPV6_DSTOPTS, short.clone());
    let hop_by_hop = (libc::IPPROTO_IPV6, libc::IPV6_HOPOPTS, long);
    for (options, bytes) in
        [(vec![destination.clone()], 8), (vec![hop_by_hop.clone()], 16), (vec![destination, hop_by_hop], 24)]
    {
        let router = Router::of(&bed);
        ask(&bed, &options, true);
        assert_eq!(forwarded_options(&router, &bed), [bytes; 2]);
    }
}
