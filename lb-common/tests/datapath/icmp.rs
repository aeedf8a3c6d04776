//! ICMP to a VIP or a SNAT address: errors go on to the end whose packet they quote, which finds in them the packet that
//! it has sent; echo requests are answered.

use std::net::IpAddr;

use lb_common::{
    abi::{Counter, TCP, UDP, vip_flags},
    datapath::Verdict,
    host::{ACK, Frame, HostPacket, Seen, TAG_8021AD, TAG_8021Q},
};

use crate::bed::{Bed, Flow, Net, Step};

/// Types of errors, with a code and the header's last four bytes.
fn errors(net: Net) -> Vec<(u8, u8, [u8; 4])> {
    match net {
        Net::V4 => vec![
            (3, 1, [0; 4]),
            (3, 3, [0; 4]),
            (3, 4, [0, 0, 5, 120]),
            (11, 0, [0; 4]),
            (12, 0, [9, 0, 0, 0]),
        ],
        Net::V6 => vec![(1, 4, [0; 4]), (2, 0, [0, 0, 5, 0]), (3, 0, [0; 4]), (4, 1, [0, 0, 0, 40])],
    }
}

/// "Unreachable: port".
fn unreachable(net: Net) -> (u8, u8) {
    if net == Net::V4 { (3, 3) } else { (1, 4) }
}

fn router(net: Net) -> IpAddr {
    net.ip([172, 16, 0, 1], [0xfd77, 0, 0, 0, 0, 0, 0, 1])
}

/// The IP packet of a frame.
fn packet_of(frame: &[u8]) -> &[u8] {
    let mut at = 12;
    while matches!(u16::from_be_bytes([frame[at], frame[at + 1]]), TAG_8021Q | TAG_8021AD) {
        at += 4;
    }
    &frame[at + 2..]
}

/// A flow of each protocol: TCP established, UDP answered.
fn flows(bed: &Bed, net: Net) -> [Flow; 2] {
    let tcp = bed.establish(net.client(1), net.vip());
    let vip = (net.vip().ip(), 53).into();
    let udp = bed.open_udp(net.client(2), vip);
    [tcp, udp]
}

fn bed(net: Net) -> Bed {
    let mut bed = Bed::with_backends(net, 3);
    let vip = (net.vip().ip(), 53).into();
    bed.gateway.add_service(vip, UDP, &[net.backend(1)]);
    bed
}

fn from_client(flow: &Flow) -> Frame {
    if flow.protocol == TCP {
        Frame { payload: b"GET / HTTP/1.1".to_vec(), ..flow.request(ACK) }
    } else {
        flow.datagram()
    }
}

fn from_backend(flow: &Flow) -> Frame {
    if flow.protocol == TCP {
        Frame { payload: b"HTTP/1.1 200 OK".to_vec(), ..flow.reply(ACK) }
    } else {
        flow.answer()
    }
}

/// How much of a packet a router quotes, in bytes behind the network header: the least (RFC 792), part of TCP's header
/// without and with its checksum, all.
const QUOTES: [usize; 5] = [8, 16, 18, 20, usize::MAX];

fn quote(net: Net, packet: &[u8], bytes: usize) -> &[u8] {
    let header = if net == Net::V4 { 20 } else { 40 };
    &packet[..packet.len().min(header + bytes.min(2000))]
}

/// What was sent, quoted as the sender's own network would: with the hops that are left when it is lost.
fn as_sent(net: Net, frame: &Frame, bytes: usize) -> Vec<u8> {
    let lost = Frame { ttl: frame.ttl - 1, ..frame.clone() };
    quote(net, packet_of(&lost.build()), bytes).to_vec()
}

/// The message in a frame, whose checksums are verified.
#[track_caller]
fn message(step: &Step) -> (Seen, [u8; 2], Vec<u8>) {
    let seen = step.seen();
    let packet = packet_of(step.bytes());
    let header = packet.len() - seen.payload.len() - 8;
    let kind = [packet[header], packet[header + 1]];
    let payload = seen.payload.clone();
    (seen, kind, payload)
}

#[test]
fn an_error_about_a_request_reaches_its_client_who_finds_his_own_packet_in_it() {
    for net in Net::BOTH {
        let bed = bed(net);
        for flow in flows(&bed, net) {
            let request = from_client(&flow);
            let forwarded = bed.send(&request).sends(&[]);
            for (kind, code, rest) in errors(net) {
                for bytes in QUOTES {
                    // A router's own name matters to traceroute alone.
                    let exceeded = kind == if net == Net::V4 { 11 } else { 3 };
                    let router_as = if exceeded { router(net) } else { flow.vip.ip() };
                    for (from, told_by) in [(router(net), router_as), (flow.backend.ip(), flow.vip.ip())] {
                        let error = Frame::icmp(from, flow.snat.ip(), kind, code, rest).payload(quote(
                            net,
                            packet_of(forwarded.bytes()),
                            bytes,
                        ));
                        let step = bed.send(&error).sends(&[Counter::IcmpForwarded]);
                        let (seen, what, quoted) = message(&step);
                        assert_eq!(
                            (seen.source.ip(), seen.destination.ip(), seen.ttl),
                            (told_by, flow.client.ip(), 63)
                        );
                        assert_eq!(what, [kind, code]);
                        assert_eq!(quoted, as_sent(net, &request, bytes), "{flow:?}, {bytes} bytes");
                    }
                }
            }
        }
    }
}

#[test]
fn an_error_about_a_reply_reaches_its_backend_which_finds_its_own_packet_in_it() {
    for net in Net::BOTH {
        let bed = bed(net);
        for flow in flows(&bed, net) {
            let reply = from_backend(&flow);
            let forwarded = bed.send(&reply).sends(&[]);
            for (kind, code, rest) in errors(net) {
                for bytes in QUOTES {
                    for from in [router(net), flow.client.ip()] {
                        let error = Frame::icmp(from, flow.vip.ip(), kind, code, rest).payload(quote(
                            net,
                            packet_of(forwarded.bytes()),
                            bytes,
                        ));
                        let step = bed.send(&error).sends(&[Counter::IcmpForwarded]);
                        let (seen, what, quoted) = message(&step);
                        assert_eq!(
                            (seen.source.ip(), seen.destination.ip(), seen.ttl),
                            (flow.snat.ip(), flow.backend.ip(), 63)
                        );
                        assert_eq!(what, [kind, code]);
                        assert_eq!(quoted, as_sent(net, &reply, bytes), "{flow:?}, {bytes} bytes");
                    }
                }
            }
        }
    }
}

#[test]
fn tags_options_and_padding_change_nothing() {
    for net in Net::BOTH {
        let bed = bed(net);
        let [flow, _] = flows(&bed, net);
        let request = from_client(&flow);
        let forwarded = bed.send(&request).sends(&[]);
        let (kind, code) = unreachable(net);
        let plain = Frame::icmp(router(net), flow.snat.ip(), kind, code, [0; 4]).payload(quote(
            net,
            packet_of(forwarded.bytes()),
            8,
        ));
        let odd = match net {
            Net::V4 => plain.clone().ip_options(&[1; 8]),
            Net::V6 => plain.clone().extension(60, 14),
        };
        let padded = Frame { padding: 23, ..plain.clone() };
        for frame in [
            plain.clone().tags(&[(TAG_8021Q, 7)]),
            plain.tags(&[(TAG_8021AD, 7), (TAG_8021Q, 8)]),
            odd,
            padded,
        ] {
            let step = bed.send(&frame).sends(&[Counter::IcmpForwarded]);
            assert_eq!(step.seen().payload, as_sent(net, &request, 8));
        }
    }
}

#[test]
fn a_datagram_without_a_checksum_is_quoted_without_one() {
    let net = Net::V4;
    let bed = bed(net);
    let [_, flow] = flows(&bed, net);
    let request = flow.datagram().without_checksum();
    let forwarded = bed.send(&request).sends(&[]);
    let error = Frame::icmp(router(net), flow.snat.ip(), 3, 3, [0; 4]).payload(packet_of(forwarded.bytes()));
    let step = bed.send(&error).sends(&[Counter::IcmpForwarded]);
    assert_eq!(step.seen().payload, as_sent(net, &request, usize::MAX));
}

#[test]
fn an_error_about_no_flow_is_dropped_at_a_vip_and_passes_at_a_snat_address() {
    for net in Net::BOTH {
        let bed = bed(net);
        let [flow, _] = flows(&bed, net);
        let (kind, code) = unreachable(net);
        let about = |frame: &Frame, to: IpAddr, bytes: usize| {
            let frame = frame.build();
            Frame::icmp(router(net), to, kind, code, [0; 4]).payload(quote(net, packet_of(&frame), bytes))
        };
        let sent = Frame::tcp(flow.snat, flow.backend, ACK);
        let other_port = Frame::tcp((flow.snat.ip(), flow.snat.port() + 1).into(), flow.backend, ACK);
        let other_backend = Frame::tcp(flow.snat, (net.stranger(), 8080).into(), ACK);
        let other_protocol = Frame::udp(flow.snat, flow.backend);
        let low_port = Frame::tcp((flow.snat.ip(), 22).into(), flow.backend, ACK);
        let neither = Frame::other(flow.snat.ip(), flow.backend.ip(), 47).payload(&[0; 20]);
        for frame in [&other_port, &other_backend, &other_protocol, &low_port, &neither] {
            bed.send(&about(frame, flow.snat.ip(), 20)).passes(Counter::PassNoFlow);
        }
        // Cut too short to say of which flow; about a packet that came from elsewhere.
        bed.send(&about(&sent, flow.snat.ip(), 7)).passes(Counter::PassNoFlow);
        bed.send(&about(&sent, flow.vip.ip(), 20)).drops(Counter::DropIcmp);
        let mut later = sent.clone();
        match net {
            Net::V4 => later.fragment = 0x0001,
            Net::V6 => later.extensions.push((44, vec![0, 8, 0, 0, 0, 1])),
        }
        bed.send(&about(&later, flow.snat.ip(), 40)).passes(Counter::PassNoFlow);

        let reply = Frame::tcp(flow.vip, flow.client, ACK);
        let to_other = Frame::tcp(flow.vip, net.client(9), ACK);
        let other_service = Frame::tcp((flow.vip.ip(), 81).into(), flow.client, ACK);
        for frame in [&to_other, &other_service] {
            bed.send(&about(frame, flow.vip.ip(), 20)).drops(Counter::DropIcmp);
        }
        bed.send(&about(&reply, flow.vip.ip(), 7)).drops(Counter::DropIcmp);
        bed.send(&about(&reply, flow.vip.ip(), 8)).sends(&[Counter::IcmpForwarded]);
        // The first fragment says of which flow it is.
        let mut first = sent.clone();
        match net {
            Net::V4 => first.fragment = 0x2000,
            Net::V6 => first.extensions.push((44, vec![0, 1, 0, 0, 0, 1])),
        }
        bed.send(&about(&first, flow.snat.ip(), 40)).sends(&[Counter::IcmpForwarded]);
    }
}

#[test]
fn what_is_quoted_behind_the_end_of_the_packet_does_not_count() {
    for net in Net::BOTH {
        let bed = bed(net);
        let [flow, _] = flows(&bed, net);
        let (kind, code) = unreachable(net);
        let sent = Frame::tcp(flow.snat, flow.backend, ACK).build();
        let whole = quote(net, packet_of(&sent), 8);
        let mut bytes = Frame::icmp(router(net), flow.snat.ip(), kind, code, [0; 4])
            .payload(&whole[..whole.len() - 1])
            .build();
        bytes.push(whole[whole.len() - 1]);
        bed.send_bytes(&bytes).passes(Counter::PassNoFlow);
    }
}

#[test]
fn other_messages_are_dropped_at_a_vip_and_pass_at_a_snat_address() {
    for net in Net::BOTH {
        let bed = bed(net);
        let [flow, _] = flows(&bed, net);
        let forwarded = bed.send(&from_client(&flow)).sends(&[]);
        // Quench, redirect, timestamp; multicast listeners, router and neighbour discovery, redirect.
        let others: &[u8] =
            if net == Net::V4 { &[0, 4, 5, 13, 17] } else { &[0, 5, 129, 130, 133, 135, 137] };
        for kind in others {
            let message = |to| {
                Frame::icmp(router(net), to, *kind, 0, [0; 4]).payload(quote(
                    net,
                    packet_of(forwarded.bytes()),
                    20,
                ))
            };
            bed.send(&message(flow.snat.ip())).passes(Counter::PassNoFlow);
            bed.send(&message(flow.vip.ip())).drops(Counter::DropIcmp);
        }
    }
}

#[test]
fn an_error_whose_hops_end_here_is_dropped() {
    for net in Net::BOTH {
        let bed = bed(net);
        let [flow, _] = flows(&bed, net);
        let forwarded = bed.send(&from_client(&flow)).sends(&[]);
        let (kind, code) = unreachable(net);
        let error = Frame::icmp(router(net), flow.snat.ip(), kind, code, [0; 4]).payload(quote(
            net,
            packet_of(forwarded.bytes()),
            20,
        ));
        for ttl in [0, 1] {
            bed.send(&error.clone().ttl(ttl)).drops(Counter::DropTtl);
        }
        bed.send(&error.ttl(2)).sends(&[Counter::IcmpForwarded]);
    }
}

fn echo_request(net: Net, from: IpAddr, payload: &[u8]) -> Frame {
    let kind = if net == Net::V4 { 8 } else { 128 };
    Frame::icmp(from, net.vip().ip(), kind, 0, [0x12, 0x34, 0, 7]).payload(payload)
}

#[test]
fn an_echo_request_to_a_vip_that_answers_is_answered_to_its_sender() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 1);
        bed.gateway.add_vip(net.vip().ip(), vip_flags::ECHO);
        let client = net.client(1).ip();
        for payload in [&b""[..], b"odd", &[0xff; 1400]] {
            for tags in [&[][..], &[(TAG_8021Q, 7)], &[(TAG_8021AD, 7), (TAG_8021Q, 8)]] {
                let request = echo_request(net, client, payload).tags(tags).ttl(3);
                let step = bed.send(&request).sends(&[Counter::EchoAnswered]);
                let (seen, what, data) = message(&step);
                assert_eq!((seen.source.ip(), seen.destination.ip(), seen.ttl), (net.vip().ip(), client, 64));
                assert_eq!(
                    (seen.source_mac, seen.destination_mac),
                    (request.destination_mac, request.source_mac)
                );
                assert_eq!((what, seen.tags), ([if net == Net::V4 { 0 } else { 129 }, 0], tags.to_vec()));
                assert_eq!(data, payload);
                // Identifier and sequence number.
                let at = step.bytes().len() - payload.len() - 4;
                assert_eq!(step.bytes()[at..at + 4], [0x12, 0x34, 0, 7]);
            }
        }
    }
}

#[test]
fn an_echo_request_is_not_answered_without_the_flag_nor_to_anybody_who_is_no_host() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 1);
        bed.send(&echo_request(net, net.client(1).ip(), b"?")).drops(Counter::DropIcmp);
        bed.gateway.add_vip(net.vip().ip(), vip_flags::ECHO);
        let nobody = match net {
            Net::V4 => [[0; 4], [127, 0, 0, 1], [224, 0, 0, 1], [255; 4]].map(|v4| net.ip(v4, [0; 8])),
            Net::V6 => [[0; 8], [0, 0, 0, 0, 0, 0, 0, 1], [0xff02, 0, 0, 0, 0, 0, 0, 1], [0xffff; 8]]
                .map(|v6| net.ip([0; 4], v6)),
        };
        for from in nobody.into_iter().chain([net.vip().ip()]) {
            bed.send(&echo_request(net, from, b"?")).drops(Counter::DropIcmp);
        }
    }
}

#[test]
fn the_node_answers_for_its_own_address_and_still_gets_no_error_of_ours() {
    for net in Net::BOTH {
        let mut bed = bed(net);
        bed.gateway.add_vip(net.vip().ip(), vip_flags::NODE_ADDRESS | vip_flags::ECHO);
        bed.send(&echo_request(net, net.client(1).ip(), b"?")).passes(Counter::PassNodeAddress);
        let [flow, _] = flows(&bed, net);
        let forwarded = bed.send(&from_backend(&flow)).sends(&[]);
        let (kind, code) = unreachable(net);
        let error =
            |packet: &[u8]| Frame::icmp(router(net), flow.vip.ip(), kind, code, [0; 4]).payload(packet);
        bed.send(&error(quote(net, packet_of(forwarded.bytes()), 20))).sends(&[Counter::IcmpForwarded]);
        let own = Frame::tcp((flow.vip.ip(), 22).into(), net.client(3), ACK).build();
        bed.send(&error(packet_of(&own))).passes(Counter::PassNodeAddress);
    }
}

#[test]
fn any_cut_of_an_error_is_forwarded_whole_or_left_alone() {
    for net in Net::BOTH {
        let bed = bed(net);
        let [flow, _] = flows(&bed, net);
        let forwarded = bed.send(&from_client(&flow)).sends(&[]);
        let (kind, code) = unreachable(net);
        let error = Frame::icmp(router(net), flow.snat.ip(), kind, code, [0; 4])
            .payload(packet_of(forwarded.bytes()))
            .build();
        for length in 14..error.len() {
            let before = bed.gateway.maps.counts();
            let mut packet = HostPacket::new(&error[..length]);
            let verdict = bed.gateway.maps.cpu(0).process(&mut packet);
            // The network header says how long it is: what is cut is no error at all.
            assert_eq!(verdict, Verdict::Pass, "{length} bytes");
            assert_eq!(packet.bytes(), &error[..length]);
            let after = bed.gateway.maps.counts();
            assert_eq!(after[Counter::IcmpForwarded as usize], before[Counter::IcmpForwarded as usize]);
        }
    }
}
