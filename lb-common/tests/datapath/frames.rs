//! Frames of every shape: shortest and longest, padded, with sources that nobody can answer, without checksums.

use lb_common::{
    abi::{Counter, FlowState, UDP, vip_flags},
    host::{ACK, Frame, HostPacket, SYN, TAG_8021AD, TAG_8021Q},
};

use crate::bed::{Bed, Net};

/// Sources that are no client's.
fn martians(net: Net) -> Vec<std::net::IpAddr> {
    let texts = match net {
        Net::V4 => &[
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.255.0.9",
            "224.0.0.1",
            "239.9.9.9",
            "240.0.0.1",
            "255.255.255.255",
        ][..],
        Net::V6 => &["::", "::1", "::198.51.100.1", "::ffff:198.51.100.1", "ff02::1", "ff0e::101"],
    };
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn sources_that_nobody_can_answer_begin_no_flow() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        for martian in martians(net) {
            let source = (martian, 4000).into();
            bed.send(&Frame::tcp(source, net.vip(), SYN)).drops(Counter::DropMartian);
            bed.send(&Frame::udp(source, net.vip())).drops(Counter::DropMartian);
        }
        assert_eq!(bed.flows(), 0);
    }
}

#[test]
fn a_packet_from_its_own_destination_begins_no_flow() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        for port in [net.vip().port(), 4000] {
            let land = (net.vip().ip(), port).into();
            bed.send(&Frame::tcp(land, net.vip(), SYN)).drops(Counter::DropMartian);
            bed.send(&Frame::udp(land, net.vip())).drops(Counter::DropMartian);
        }
        assert_eq!(bed.flows(), 0);
    }
}

#[test]
fn a_vip_is_no_client_of_another_one_unless_it_is_the_node() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 1);
        let other = net.ip([203, 0, 113, 99], [0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x99]);
        bed.gateway.add_vip(other, 0);
        bed.send(&Frame::tcp((other, 4000).into(), net.vip(), SYN)).drops(Counter::DropMartian);
        bed.gateway.add_vip(other, vip_flags::NODE_ADDRESS);
        bed.send(&Frame::tcp((other, 4000).into(), net.vip(), SYN)).sends(&[Counter::FlowOpened]);
    }
}

#[test]
fn martians_to_a_port_without_a_service_hear_nothing() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        for martian in martians(net) {
            let closed = (net.vip().ip(), 81).into();
            bed.send(&Frame::tcp((martian, 4000).into(), closed, SYN)).drops(Counter::DropClosedPort);
        }
    }
}

#[test]
fn datagrams_without_checksum_pass_over_ipv4_and_not_over_ipv6() {
    let bed = Bed::with_backends(Net::V4, 1);
    let frame = Frame::udp(Net::V4.client(1), Net::V4.vip()).without_checksum();
    let flow = bed.begin(&frame, UDP, &[Counter::FlowOpened]);
    assert_eq!(bed.send(&flow.datagram().without_checksum()).sends(&[]).seen().checksum, 0);
    assert_eq!(bed.send(&flow.answer().without_checksum()).sends(&[]).seen().checksum, 0);
    assert_ne!(bed.send(&flow.answer()).sends(&[]).seen().checksum, 0, "each packet for itself");

    let bed = Bed::with_backends(Net::V6, 1);
    let frame = Frame::udp(Net::V6.client(1), Net::V6.vip()).without_checksum();
    bed.send(&frame).drops(Counter::DropNoChecksum);
    assert_eq!(bed.flows(), 0);
    let flow = bed.open_udp(Net::V6.client(1), Net::V6.vip());
    bed.send(&flow.datagram().without_checksum()).drops(Counter::DropNoChecksum);
    bed.send(&flow.answer().without_checksum()).drops(Counter::DropNoChecksum);
    assert_eq!(bed.flows(), 1);
}

#[test]
fn the_shortest_frames_are_forwarded_with_and_without_ethernets_padding() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        for (n, padded) in [(1, false), (2, true)] {
            let pad = |frame: Frame| {
                let short = 60_usize.saturating_sub(frame.build().len());
                Frame { padding: if padded { short } else { 0 }, ..frame }
            };
            let empty = pad(Frame::udp(net.client(n), net.vip()));
            let flow = bed.begin(&empty, UDP, &[Counter::FlowOpened]);
            let answer = pad(Frame::udp(flow.backend, flow.snat));
            let seen = bed.send(&answer).sends(&[]).reaches_client_of(&flow).seen();
            assert_eq!(seen.payload, b"");
        }
    }
}

#[test]
fn padding_stays_and_is_no_part_of_the_packet() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let flow = bed.establish(net.client(1), net.vip());
        for padding in [1, 2, 3, 46, 300] {
            let frame = Frame { padding, ..flow.request(ACK).payload(b"odd") };
            let step = bed.send(&frame).sends(&[]).reaches_backend_of(&flow);
            assert_eq!(step.seen().payload, b"odd");
            assert_eq!(step.bytes().len(), frame.build().len());
        }
    }
}

#[test]
fn a_jumbo_frame_is_a_frame() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let flow = bed.establish(net.client(1), net.vip());
        let headers = flow.request(ACK).build().len() - 14;
        for frame in [flow.request(ACK), flow.reply(ACK)] {
            let frame = frame.payload(&vec![0x77; 9000 - headers]);
            let packet = HostPacket::new(&frame.build()).mtu(9000);
            assert_eq!(bed.send_packet(packet).sends(&[]).seen().payload.len(), 9000 - headers);
        }
        assert_eq!(bed.state(&flow), Some(FlowState::Established));
    }
}

#[test]
fn headers_as_long_as_they_may_be_are_carried_both_ways() {
    for net in Net::BOTH {
        for tags in [&[][..], &[(TAG_8021Q, 5)], &[(TAG_8021AD, 5), (TAG_8021Q, 6)]] {
            let bed = Bed::with_backends(net, 1);
            let long = |frame: Frame| match net {
                Net::V4 => frame.ip_options(&[1; 40]),
                Net::V6 => [0, 43, 60, 60].iter().fold(frame, |frame, number| frame.extension(*number, 62)),
            };
            let frame = long(Frame::udp(net.client(1), net.vip())).tags(tags).payload(b"there");
            let flow = bed.begin(&frame, UDP, &[Counter::FlowOpened]);
            let answer = long(flow.answer());
            let seen = bed.send(&answer).sends(&[]).reaches_client_of(&flow).seen();
            assert_eq!((seen.payload.as_slice(), seen.tags.len()), (b"answer".as_slice(), tags.len()));
        }
    }
}
