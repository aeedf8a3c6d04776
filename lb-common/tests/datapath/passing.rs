//! What is not ours passes, untouched, before any rule that can drop.

use std::net::IpAddr;

use lb_common::{
    abi::{Counter, TCP, address_filter, vip_flags},
    datapath::{Family, V4, V6},
    hash,
    host::{ACK, Frame, RST, SYN},
};

use crate::bed::{Bed, Net};

/// Frames to a destination that a VIP would drop: each for another reason.
fn refusable(net: Net, to: IpAddr) -> Vec<Vec<u8>> {
    let client = net.client(1);
    let closed = (to, 81).into();
    let icmp = if net == Net::V4 { 1 } else { 58 };
    let mut frames = vec![
        Frame::tcp(client, closed, SYN).build(),
        Frame::udp(client, closed).build(),
        Frame::tcp(client, closed, ACK).ttl(0).build(),
        Frame::udp(client, closed).build().split_last().map(|(_, cut)| cut.to_vec()).unwrap(),
        Frame::other(client.ip(), to, icmp).payload(&[8, 0, 0, 0]).build(),
        Frame::other(client.ip(), to, 132).payload(&[0; 12]).build(),
    ];
    let mut fragment = Frame::udp(client, closed).payload(&[0; 16]);
    match net {
        Net::V4 => fragment.fragment = 0x2000,
        Net::V6 => fragment = fragment.extension(44, 6),
    }
    frames.push(fragment.build());
    frames
}

#[test]
fn frames_that_are_not_ip_pass() {
    let bed = Bed::with_backends(Net::V4, 1);
    let mut frame = Frame::tcp(Net::V4.client(1), Net::V4.vip(), SYN).build();
    for ethertype in [0x0806_u16, 0x0000, 0x05dc, 0x8847, 0xffff] {
        frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
        bed.send_bytes(&frame).passes(Counter::PassNotIp);
    }
}

#[test]
fn a_version_that_contradicts_the_ethertype_passes() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let frame = Frame::tcp(net.client(1), net.vip(), SYN).build();
        for version in (0..16).filter(|version| *version != frame[14] >> 4) {
            let mut wrong = frame.clone();
            wrong[14] = version << 4 | 5;
            bed.send_bytes(&wrong).passes(Counter::PassNotIp);
        }
    }
}

#[test]
fn frames_cut_short_pass_up_to_the_network_header_and_drop_from_there() {
    for net in Net::BOTH {
        for tags in 0..=2 {
            let bed = Bed::with_backends(net, 1);
            let frame = Frame::tcp(net.client(1), net.vip(), SYN).tags(&vec![(0x8100, 7); tags]);
            let addresses_end = frame.network_offset() + if net == Net::V4 { 20 } else { 40 };
            let bytes = frame.build();
            for length in 0..bytes.len() {
                let counter =
                    if length < addresses_end { Counter::PassNotIp } else { Counter::DropMalformed };
                let step = bed.send_bytes(&bytes[..length]);
                match length < addresses_end {
                    true => step.passes(counter),
                    false => step.drops(counter),
                };
            }
        }
    }
}

#[test]
fn a_third_tag_is_not_looked_behind() {
    let bed = Bed::with_backends(Net::V4, 1);
    let frame = Frame::tcp(Net::V4.client(1), Net::V4.vip(), SYN).tags(&[(0x8100, 1); 3]);
    bed.send(&frame).passes(Counter::PassNotIp);
    let inner_service_tag = frame.tags(&[(0x8100, 1), (0x88a8, 1)]);
    bed.send(&inner_service_tag).passes(Counter::PassNotIp);
}

#[test]
fn foreign_traffic_passes_whatever_it_is() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        for frame in refusable(net, net.stranger()) {
            bed.send_bytes(&frame).passes(Counter::PassForeign);
        }
    }
}

/// An address of nobody's that shares an element of the filter with one of ours.
fn twin(bed: &Bed, net: Net, flag: u64) -> IpAddr {
    (0..=u16::MAX)
        .map(|n| net.ip([192, 0, (n >> 8) as u8, n as u8], [0x2001, 0xdb8, 9, 0, 0, 0, 0, n]))
        .find(|twin| {
            let index = match twin {
                IpAddr::V4(twin) => V4::filter_index(u32::from_ne_bytes(twin.octets())),
                IpAddr::V6(twin) => V6::filter_index(bytemuck::cast(twin.octets())),
            };
            bed.gateway.maps.address_filter.read::<u64>(index) & flag != 0
        })
        .expect("a thousand elements, and far more addresses")
}

#[test]
fn an_address_that_only_looks_like_ours_to_the_filter_passes() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        for flag in [address_filter::VIP, address_filter::SNAT] {
            for frame in refusable(net, twin(&bed, net, flag)) {
                bed.send_bytes(&frame).passes(Counter::PassForeign);
            }
        }
    }
}

#[test]
fn a_vip_that_only_looks_like_a_snat_address_to_the_filter_refuses_closed_ports() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 1);
        let vip = twin(&bed, net, address_filter::SNAT);
        bed.gateway.add_service((vip, 80).into(), TCP, &[net.backend(1)]);
        bed.send(&Frame::tcp(net.client(1), (vip, 81).into(), SYN)).refuses(Counter::DropClosedPort);
        bed.send(&Frame::udp(net.client(1), (vip, 80).into())).refuses(Counter::DropClosedPort);
        bed.gateway.add_vip(vip, vip_flags::NODE_ADDRESS);
        let open = Frame::tcp(net.client(1), (vip, 81).into(), SYN);
        bed.send(&open).passes(Counter::PassNodeAddress);
    }
}

#[test]
fn all_passes_while_there_are_no_settings() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 1);
        bed.gateway.maps.config = None;
        bed.send(&Frame::tcp(net.client(1), net.vip(), SYN)).passes(Counter::PassForeign);
    }
}

#[test]
fn what_comes_to_a_snat_address_without_being_a_reply_passes() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 2);
        let flow = bed.establish(net.client(1), net.vip());
        for frame in refusable(net, net.snat()) {
            bed.send_bytes(&frame).passes(Counter::PassNoFlow);
        }
        let port = flow.snat.port();
        let other = (1..=2).map(|n| net.backend(n)).find(|backend| *backend != flow.backend).unwrap();
        let to = |port: u16| (net.snat(), port).into();
        let strangers = [
            // Another backend, another port of the backend, a host that is no backend.
            Frame::tcp(other, flow.snat, ACK),
            Frame::tcp((flow.backend.ip(), 8081).into(), flow.snat, ACK),
            Frame::tcp((net.stranger(), 8080).into(), flow.snat, RST),
            // The neighbouring port, the ends of the range and what is beyond them, the node's own SSH.
            Frame::tcp(flow.backend, to(port ^ 1), ACK),
            Frame::tcp(flow.backend, to(12287), ACK),
            Frame::tcp(flow.backend, to(12288), ACK),
            Frame::tcp(flow.backend, to(28671), ACK),
            Frame::tcp(flow.backend, to(28672), ACK),
            Frame::tcp(flow.backend, to(22), SYN),
            // The other protocol.
            Frame::udp(flow.backend, flow.snat),
        ];
        for frame in strangers {
            bed.send(&frame).passes(Counter::PassNoFlow);
        }
        bed.send(&flow.reply(ACK)).sends(&[]).reaches_client_of(&flow);
    }
}

#[test]
fn where_the_vip_is_an_address_of_the_node_what_has_no_service_passes() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 1);
        bed.gateway.add_vip(net.vip().ip(), vip_flags::NODE_ADDRESS);
        for frame in refusable(net, net.vip().ip()) {
            bed.send_bytes(&frame).passes(Counter::PassNodeAddress);
        }
        let flow = bed.establish(net.client(1), net.vip());
        assert_eq!(flow.backend, net.backend(1));
    }
}

#[test]
fn a_vip_that_is_also_the_snat_address_takes_requests_and_replies() {
    for net in Net::BOTH {
        let mut bed = Bed::new(&Default::default());
        let vip = (net.snat(), 80).into();
        bed.gateway.add_service(vip, TCP, &[net.backend(1)]);
        let flow = bed.establish(net.client(1), vip);
        bed.send(&flow.reply(ACK)).sends(&[]).reaches_client_of(&flow);
        // Neither a service nor a reply.
        let nothing = Frame::tcp(net.client(2), (net.snat(), flow.snat.port()).into(), SYN);
        bed.send(&nothing).passes(Counter::PassNoFlow);
    }
}

#[test]
fn the_filter_index_of_every_address_lies_within_the_filter() {
    for n in 0..100_000_u32 {
        let word = n.wrapping_mul(0x9e37_79b9);
        assert!(hash::filter_index_v4(word) < 1024);
        assert!(hash::filter_index_v6([word, n, !word, word.rotate_left(7)]) < 1024);
    }
}
