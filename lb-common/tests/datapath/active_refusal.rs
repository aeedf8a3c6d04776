//! Who is told that a packet was dropped, what, and how often; and who never is.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    abi::{Counter, Refusal, TCP, UDP, vip_flags},
    clock::TICK_NS,
    datapath::{self, Cells, V4, V6, Verdict},
    host::{
        ACK, FIN, Frame, GatewayConfig, HostPacket, RST, SYN, TAG_8021AD, TAG_8021Q, Transport, fragments,
    },
};

use crate::{
    bed::{Bed, Net, Step},
    told::{Told, What},
};

/// Every way of tagging.
const TAGGINGS: [&[(u16, u16)]; 5] = [
    &[],
    &[(TAG_8021Q, 0xe064)],
    &[(TAG_8021AD, 0x0065)],
    &[(TAG_8021Q, 0x1066), (TAG_8021Q, 0x2067)],
    &[(TAG_8021AD, 0x3068), (TAG_8021Q, 0x4069)],
];

/// A port of the VIP that no service has.
fn closed(net: Net) -> SocketAddr {
    (net.vip().ip(), 81).into()
}

/// A service of both protocols without a backend.
fn deserted(net: Net, bed: &mut Bed) -> SocketAddr {
    let vip = (net.vip().ip(), 82).into();
    bed.gateway.add_empty_service(vip, TCP);
    bed.gateway.add_empty_service(vip, UDP);
    vip
}

/// The link layer of a frame that goes back.
fn link_back(frame: &Frame) -> Vec<u8> {
    let sent = frame.build();
    [&sent[6..12], &sent[..6], &sent[12..frame.network_offset()]].concat()
}

/// What a packet looks like from its network header on, without what follows it.
fn packet(frame: &Frame) -> Vec<u8> {
    Frame { padding: 0, ..frame.clone() }.build()[frame.network_offset()..].to_vec()
}

/// Expects an ICMP error about the whole packet.
#[track_caller]
fn tells_icmp(step: &Step, frame: &Frame, from: IpAddr, [kind, code]: [u8; 2], rest: u32) {
    let what = What::Icmp { kind, code, rest, quote: packet(frame) };
    let (destination, link) = (frame.source.ip(), link_back(frame));
    assert_eq!(Told::read(step.bytes()), Told { link, source: from, destination, ttl: 64, what });
}

#[track_caller]
fn tells_reset(step: &Step, frame: &Frame, flags: u8, seq: u32, ack: u32) {
    let (from, to) = (frame.destination, frame.source);
    let what = What::Reset { source: from.port(), destination: to.port(), flags, seq, ack };
    let link = link_back(frame);
    assert_eq!(
        Told::read(step.bytes()),
        Told { link, source: from.ip(), destination: to.ip(), ttl: 64, what }
    );
}

const fn port_unreachable(net: Net) -> [u8; 2] {
    match net {
        Net::V4 => [3, 3],
        Net::V6 => [1, 4],
    }
}

const fn time_exceeded(net: Net) -> [u8; 2] {
    match net {
        Net::V4 => [11, 0],
        Net::V6 => [3, 0],
    }
}

#[test]
fn a_closed_port_and_a_service_without_backends_refuse_at_once() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 1);
        let deserted = deserted(net, &mut bed);
        for tags in TAGGINGS {
            for (vip, counter) in [(closed(net), Counter::DropClosedPort), (deserted, Counter::DropNoBackend)]
            {
                let syn = Frame::tcp(net.client(1), vip, SYN).tags(tags);
                tells_reset(&bed.send(&syn).refuses(counter), &syn, RST | ACK, 0, 1001);
                let datagram = Frame::udp(net.client(1), vip).tags(tags).payload(b"odd");
                let step = bed.send(&datagram).refuses(counter);
                tells_icmp(&step, &datagram, vip.ip(), port_unreachable(net), 0);
            }
        }
        assert_eq!(bed.flows(), 0);
    }
}

#[test]
fn a_segment_without_a_connection_is_reset_with_the_numbers_that_its_sender_accepts() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        // With ACK: the number that it acknowledges. Without: all that it counts (RFC 9293, §3.10.7.1).
        for (flags, data, says, seq, ack) in [
            (ACK, 0, RST, 77, 0),
            (SYN | ACK, 0, RST, 77, 0),
            (FIN | ACK, 9, RST, 77, 0),
            (0, 0, RST | ACK, 0, 0xffff_fffe),
            (0, 1, RST | ACK, 0, 0xffff_ffff),
            (FIN, 0, RST | ACK, 0, 0xffff_ffff),
            (FIN, 5, RST | ACK, 0, 4),
            (SYN | FIN, 0, RST | ACK, 0, 0),
            (SYN | FIN, 700, RST | ACK, 0, 700),
        ] {
            for tags in TAGGINGS {
                let mut frame = Frame::tcp(net.client(1), net.vip(), flags).tags(tags);
                frame = frame.numbers(0xffff_fffe, 77).payload(&vec![3; data]);
                frame.padding = 7;
                let step = bed.send(&frame).refuses(Counter::DropNotSyn);
                tells_reset(&step, &frame, says, seq, ack);
            }
        }
        // Data in a SYN counts, options of both headers don't.
        let mut syn = Frame::tcp(net.client(1), closed(net), SYN).payload(&[1; 11]);
        let Transport::Tcp { options, .. } = &mut syn.transport else { unreachable!() };
        *options = vec![1; 40];
        let syn = match net {
            Net::V4 => syn.ip_options(&[1; 40]),
            Net::V6 => syn.extension(60, 62).extension(0, 6),
        };
        tells_reset(&bed.send(&syn).refuses(Counter::DropClosedPort), &syn, RST | ACK, 0, 1001 + 11);
    }
}

#[test]
fn a_protocol_that_is_neither_tcp_nor_udp_is_refused() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        for tags in TAGGINGS {
            let (client, vip) = (net.client(1).ip(), net.vip().ip());
            let frame = Frame::other(client, vip, 132).payload(&[9; 33]).tags(tags);
            let (what, field) = if net == Net::V4 { ([3, 2], 0) } else { ([4, 1], 6) };
            let step = bed.send(&frame).refuses(Counter::DropProtocol);
            tells_icmp(&step, &frame, vip, what, field);
        }
    }
    // The field that names it is in the last header before it.
    let net = Net::V6;
    let bed = Bed::with_backends(net, 1);
    let frame = Frame::other(net.client(1).ip(), net.vip().ip(), 132).payload(&[9; 8]);
    for (frame, field) in [
        (frame.clone().extension(0, 6), 40),
        (frame.clone().extension(0, 14).extension(60, 6), 56),
        (frame.extension(0, 62).extension(60, 62).extension(60, 62).extension(60, 62), 40 + 3 * 64),
    ] {
        let step = bed.send(&frame).refuses(Counter::DropProtocol);
        tells_icmp(&step, &frame, net.vip().ip(), [4, 1], field);
    }
}

#[test]
fn a_packet_that_ends_its_way_at_the_gateway_shows_it() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let tcp = bed.establish(net.client(1), net.vip());
        let udp = bed.open_udp(net.client(1), net.vip());
        for tags in TAGGINGS {
            for frame in [
                Frame::tcp(net.client(2), net.vip(), SYN),
                Frame::udp(net.client(2), net.vip()).payload(&[0; 24]),
                tcp.request(ACK).payload(b"request"),
                udp.datagram(),
                // From a backend: what it sent comes back to it.
                tcp.reply(ACK).payload(b"answer"),
                udp.answer(),
            ] {
                let frame = frame.tags(tags).ttl(1);
                let step = bed.send(&frame).refuses(Counter::DropTtl);
                tells_icmp(&step, &frame, net.snat(), time_exceeded(net), 0);
            }
        }
        // A gateway without an address of its own answers by the VIP's.
        let bed = Bed::sized(net, 1, &GatewayConfig { snat: Vec::new(), ..GatewayConfig::default() });
        let frame = Frame::udp(net.client(2), net.vip()).ttl(1);
        let step = bed.send(&frame).refuses(Counter::DropTtl);
        tells_icmp(&step, &frame, net.vip().ip(), time_exceeded(net), 0);
    }
}

/// Runs the program that answers alone, as after a drop for another reason.
fn answer(net: Net, bed: &Bed, refusal: Refusal, mtu: u64, frame: &Frame) -> (Verdict, HostPacket) {
    let cells = bed.gateway.maps.refusals.get(0).unwrap();
    cells.store(0, refusal as u64);
    cells.store(1, mtu);
    let mut packet = HostPacket::new(&frame.build());
    let cpu = bed.gateway.maps.cpu(0);
    let verdict = match net {
        Net::V4 => datapath::refuse::<V4, _, _>(&mut packet, &cpu),
        Net::V6 => datapath::refuse::<V6, _, _>(&mut packet, &cpu),
    };
    (verdict, packet)
}

#[test]
fn what_is_prohibited_or_too_big_is_told_by_icmp_whatever_the_protocol() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let (prohibited, too_big) = match net {
            Net::V4 => ([3, 13], [3, 4]),
            Net::V6 => ([1, 1], [2, 0]),
        };
        for tags in TAGGINGS {
            for frame in [Frame::tcp(net.client(1), net.vip(), SYN), Frame::udp(net.client(1), net.vip())] {
                let frame = frame.tags(tags);
                for (refusal, what, rest) in
                    [(Refusal::Prohibited, prohibited, 0), (Refusal::TooBig, too_big, 1387)]
                {
                    let mtu = if refusal == Refusal::TooBig { 1387 } else { 0 };
                    let (verdict, told) = answer(net, &bed, refusal, mtu, &frame);
                    assert_eq!(verdict, Verdict::Transmit);
                    let [kind, code] = what;
                    let what = What::Icmp { kind, code, rest, quote: packet(&frame) };
                    assert_eq!(
                        Told::read(told.bytes()),
                        Told {
                            link: link_back(&frame),
                            source: net.vip().ip(),
                            destination: net.client(1).ip(),
                            ttl: 64,
                            what
                        }
                    );
                }
            }
        }
    }
}

#[test]
fn an_error_quotes_as_much_as_it_may_and_no_padding() {
    for net in Net::BOTH {
        let settings = GatewayConfig { refusals_per_tick: u32::MAX, ..GatewayConfig::default() };
        let bed = Bed::sized(net, 1, &settings);
        let most = if net == Net::V4 { 576 - 28 } else { 1280 - 48 };
        for length in (0..80).chain(most - 50..most + 20).chain([1400, 1472, 3000]) {
            let payload: Vec<u8> = (0..length).map(|n| (n * 7 + length) as u8).collect();
            let mut frame = Frame::udp(net.client(1), closed(net)).payload(&payload);
            frame.padding = length % 19;
            let (verdict, told) = bed.send_unchecked(&frame);
            assert_eq!(verdict, Verdict::Transmit);
            let What::Icmp { quote, .. } = Told::read(told.bytes()).what else { panic!("no ICMP") };
            let sent = packet(&frame);
            assert_eq!(quote, sent[..sent.len().min(most)]);
        }
    }
}

/// Expects that nobody is told.
#[track_caller]
fn silent(bed: &Bed, frame: &[u8], counter: Counter) {
    bed.send_bytes(frame).drops(counter);
}

#[test]
fn a_reset_is_never_answered() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 1);
        let deserted = deserted(net, &mut bed);
        for flags in [RST, RST | ACK, RST | SYN, RST | FIN | ACK] {
            silent(&bed, &Frame::tcp(net.client(1), closed(net), flags).build(), Counter::DropClosedPort);
            silent(&bed, &Frame::tcp(net.client(1), net.vip(), flags).build(), Counter::DropNotSyn);
            silent(&bed, &Frame::tcp(net.client(1), deserted, flags).build(), Counter::DropNotSyn);
        }
        let flow = bed.establish(net.client(1), net.vip());
        silent(&bed, &flow.request(RST).ttl(1).build(), Counter::DropTtl);
    }
}

#[test]
fn icmp_is_answered_only_where_it_asks() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let (protocol, request) = if net == Net::V4 { (1, 8) } else { (58, 128) };
        for kind in 0..=255_u8 {
            let mut icmp = vec![kind, 0, 0, 0, 1, 2, 3, 4, 5];
            let frame = Frame::other(net.client(1).ip(), net.vip().ip(), protocol);
            let mut sum = lb_common::host::ones_complement_sum(&icmp);
            if let (IpAddr::V6(client), IpAddr::V6(vip)) = (net.client(1).ip(), net.vip().ip()) {
                sum += lb_common::host::ones_complement_sum(&client.octets());
                sum += lb_common::host::ones_complement_sum(&vip.octets()) + 58 + icmp.len() as u64;
            }
            while sum > 0xffff {
                sum = (sum & 0xffff) + (sum >> 16);
            }
            icmp[2..4].copy_from_slice(&(!sum as u16).to_be_bytes());
            let (verdict, _) = answer(net, &bed, Refusal::TimeExceeded, 0, &frame.clone().payload(&icmp));
            assert_eq!(verdict == Verdict::Transmit, kind == request, "type {kind}");
            icmp[8] ^= 1;
            let (verdict, _) = answer(net, &bed, Refusal::TimeExceeded, 0, &frame.payload(&icmp));
            assert_eq!(verdict, Verdict::Drop);
        }
    }
}

#[test]
fn what_was_for_many_or_comes_from_nobody_is_never_answered() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 1);
        let other_vip = net.ip([203, 0, 113, 77], [0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x77]);
        bed.gateway.add_vip(other_vip, vip_flags::NODE_ADDRESS);
        let frames =
            |source: SocketAddr| [Frame::udp(source, closed(net)), Frame::tcp(source, closed(net), SYN)];
        for first in [0xff, 0x01, 0x33] {
            for mut frame in frames(net.client(1)) {
                frame.destination_mac[0] = first;
                silent(&bed, &frame.build(), Counter::DropClosedPort);
            }
        }
        let nobody: Vec<IpAddr> = match net {
            Net::V4 => {
                [[0, 0, 0, 0], [0, 1, 2, 3], [127, 0, 0, 1], [224, 0, 0, 1], [239, 1, 2, 3], [240, 0, 0, 1]]
                    .into_iter()
                    .chain([[255, 255, 255, 255]])
                    .map(IpAddr::from)
                    .collect()
            }
            Net::V6 => ["::", "::1", "::ffff:198.51.100.1", "::198.51.100.1", "ff02::1", "ff0e::5"]
                .map(|ip| ip.parse().unwrap())
                .to_vec(),
        };
        for source in nobody.into_iter().chain([net.vip().ip(), other_vip]) {
            for frame in frames((source, 4000).into()) {
                silent(&bed, &frame.build(), Counter::DropClosedPort);
            }
        }
        // To itself, port and all.
        silent(&bed, &Frame::tcp(closed(net), closed(net), SYN).build(), Counter::DropClosedPort);
    }
}

#[test]
fn a_wrong_checksum_is_never_answered() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 1);
        let deserted = deserted(net, &mut bed);
        let (client, length) = (net.client(1), 21);
        for (frame, counter) in [
            (Frame::tcp(client, closed(net), SYN), Counter::DropClosedPort),
            (Frame::udp(client, closed(net)), Counter::DropClosedPort),
            (Frame::tcp(client, deserted, SYN), Counter::DropNoBackend),
            (Frame::udp(client, deserted), Counter::DropNoBackend),
            (Frame::tcp(client, net.vip(), ACK), Counter::DropNotSyn),
            (Frame::tcp(client, net.vip(), SYN).ttl(1), Counter::DropTtl),
        ] {
            let frame = frame.payload(&vec![7; length]);
            bed.send(&frame).refuses(counter);
            let at = frame.transport_offset();
            let end = frame.build().len();
            // The client's port, the checksum, the first and the last byte of the data.
            let check = at + if frame.payload.len() + 8 == end - at { 6 } else { 16 };
            for place in [at, check, check + 1, end - length, end - 1] {
                let mut bytes = frame.build();
                bytes[place] ^= 0x10;
                silent(&bed, &bytes, counter);
            }
        }
        if net == Net::V4 {
            // Options are part of what an IPv4 header's checksum covers.
            let frame = Frame::udp(client, closed(net)).ip_options(&[1; 12]).without_checksum();
            bed.send(&frame).refuses(Counter::DropClosedPort);
            for place in [15, 24, 26, 44] {
                let mut bytes = frame.build();
                bytes[place] ^= 0x10;
                silent(&bed, &bytes, Counter::DropClosedPort);
            }
            let mut other = Frame::other(client.ip(), net.vip().ip(), 132).payload(&[1; 8]).build();
            other[25] ^= 1;
            silent(&bed, &other, Counter::DropProtocol);
        } else {
            let frame = Frame::udp(client, closed(net)).without_checksum();
            silent(&bed, &frame.build(), Counter::DropClosedPort);
            let nothing_follows = Frame::other(client.ip(), net.vip().ip(), 59);
            silent(&bed, &nothing_follows.build(), Counter::DropProtocol);
        }
    }
}

#[test]
fn a_segment_too_long_to_be_checked_is_not_answered() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let segment = |data: usize| Frame::tcp(net.client(1), closed(net), ACK).payload(&vec![5; data]);
        bed.send(&segment(4096 - 20)).refuses(Counter::DropClosedPort);
        silent(&bed, &segment(4096 - 19).build(), Counter::DropClosedPort);
    }
}

#[test]
fn fragments_and_broken_headers_are_not_answered() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let frame = Frame::udp(net.client(1), closed(net)).payload(&[0; 16]);
        let mut broken = frame.build();
        broken[frame.transport_offset() + 5] = 0xff;
        silent(&bed, &broken, Counter::DropMalformed);
        let [first, later] = [0, 1].map(|n| fragments(&frame, 7, 16).swap_remove(n));
        silent(&bed, &first, Counter::DropClosedPort);
        silent(&bed, &later, Counter::DropFragment);
        let fragment = match net {
            Net::V4 => Frame { fragment: 0x2000, ..frame },
            Net::V6 => frame.extension(44, 6),
        };
        let (verdict, _) = answer(net, &bed, Refusal::Port, 0, &fragment);
        assert_eq!(verdict, Verdict::Drop);
    }
}

#[test]
fn a_processor_sends_so_many_answers_a_tick_and_no_more() {
    const MOST: u32 = 3;
    for net in Net::BOTH {
        let bed = Bed::sized(net, 1, &GatewayConfig { refusals_per_tick: MOST, ..GatewayConfig::default() });
        let frames = [Frame::tcp(net.client(1), closed(net), SYN), Frame::udp(net.client(1), closed(net))];
        let mut broken = frames[0].build();
        broken[frames[0].transport_offset() + 16] ^= 1;
        for _ in 0..3 {
            for n in 0..MOST {
                // What nobody is told takes nothing away from others.
                silent(&bed, &broken, Counter::DropClosedPort);
                bed.send(&frames[n as usize % 2]).refuses(Counter::DropClosedPort);
            }
            for frame in &frames {
                let limited = &[Counter::DropClosedPort, Counter::RefusalLimited];
                bed.send(frame).expect(Verdict::Drop, limited);
            }
            // Another processor has its own.
            let verdict = bed.gateway.maps.cpu(1).process(&mut HostPacket::new(&frames[0].build()));
            assert_eq!(verdict, Verdict::Transmit);
            bed.gateway.maps.advance_clock(TICK_NS);
        }
        let bed = Bed::sized(net, 1, &GatewayConfig { refusals_per_tick: 0, ..GatewayConfig::default() });
        for frame in &frames {
            bed.send(frame).expect(Verdict::Drop, &[Counter::DropClosedPort, Counter::RefusalLimited]);
        }
    }
}

#[test]
fn a_reset_needs_no_room_and_an_error_says_when_it_has_none() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let room = if net == Net::V4 { 28 } else { 48 };
        let packet = |frame: &Frame, room| HostPacket::with_head_room(&frame.build(), room);
        let syn = Frame::tcp(net.client(1), closed(net), SYN);
        bed.send_packet(packet(&syn, 0)).refuses(Counter::DropClosedPort);
        let datagram = Frame::udp(net.client(1), closed(net));
        bed.send_packet(packet(&datagram, room)).refuses(Counter::DropClosedPort);
        bed.send_packet(packet(&datagram, room - 1))
            .expect(Verdict::Drop, &[Counter::DropClosedPort, Counter::RefusalNoRoom]);
    }
}
