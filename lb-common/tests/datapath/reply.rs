//! Replies: to whom they belong, and what they may not do.

use lb_common::{
    abi::{Counter, TCP, UDP},
    host::{ACK, FIN, Frame, RST, SYN},
};

use crate::bed::{Bed, Net};

#[test]
fn each_of_many_clients_gets_its_own_replies() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 3);
        let flows: Vec<_> = (0..200).map(|n| bed.establish(net.client(n), net.vip())).collect();
        for flow in flows.iter().rev() {
            bed.send(&flow.reply(ACK).payload(b"answer")).sends(&[]).reaches_client_of(flow);
            bed.send(&flow.request(ACK).payload(b"question")).sends(&[]).reaches_backend_of(flow);
        }
    }
}

#[test]
fn a_backend_of_two_services_answers_from_the_right_vip() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 1);
        let second = (net.ip([203, 0, 113, 11], [0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x11]), 8443).into();
        bed.gateway.add_service(second, TCP, &[net.backend(1)]);
        let one = bed.establish(net.client(1), net.vip());
        let two = bed.establish(net.client(1), second);
        assert_eq!(one.backend, two.backend);
        assert_ne!(one.snat, two.snat, "ports are counted once a backend");
        bed.send(&one.reply(ACK)).sends(&[]).reaches_client_of(&one);
        bed.send(&two.reply(ACK)).sends(&[]).reaches_client_of(&two);
    }
}

#[test]
fn a_reply_that_is_no_whole_segment_passes() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let flow = bed.establish(net.client(1), net.vip());
        let mut cut = flow.reply(ACK).build();
        cut.truncate(cut.len() - 1);
        bed.send_bytes(&cut).passes(Counter::PassNoFlow);
        let mut fragment = flow.reply(ACK);
        match net {
            Net::V4 => fragment.fragment = 0x0001,
            Net::V6 => fragment = fragment.extension(44, 6),
        }
        bed.send(&fragment).passes(Counter::PassNoFlow);
    }
}

#[test]
fn a_reply_after_its_flow_was_reclaimed_passes() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let old = bed.refuse(net.client(1), net.vip());
        let syn = Frame::tcp(net.client(1), net.vip(), SYN);
        let new = bed.begin(&syn, TCP, &[Counter::FlowReclaimed, Counter::FlowOpened]);
        if new.snat != old.snat {
            bed.send(&old.reply(FIN | ACK)).passes(Counter::PassNoFlow);
        }
        bed.accept(&new);
    }
}

#[test]
fn a_backend_cannot_speak_for_another() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 8);
        let flow = bed.establish(net.client(1), net.vip());
        for backend in (1..=8).map(|n| net.backend(n)).filter(|backend| *backend != flow.backend) {
            for flags in [ACK, RST, FIN | ACK, SYN | ACK] {
                bed.send(&Frame::tcp(backend, flow.snat, flags)).passes(Counter::PassNoFlow);
            }
        }
    }
}

#[test]
fn traffic_is_counted_for_the_member_in_both_directions() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 2);
        let flow = bed.open_udp(net.client(1), net.vip());
        let member = bed.member_of(&flow);
        let opening = Frame::udp(net.client(1), net.vip()).build().len() as u64;
        let request = flow.datagram().build().len() as u64;
        let answer = flow.answer().build().len() as u64;
        bed.send(&flow.datagram()).sends(&[]);
        for _ in 0..3 {
            bed.send(&flow.answer()).sends(&[]);
        }
        // What is dropped is not counted as traffic.
        bed.send(&flow.datagram().ttl(1)).refuses(Counter::DropTtl);
        let stats = bed.gateway.maps.stats(member);
        assert_eq!((stats.connections, stats.packets_in, stats.bytes_in), (1, 2, opening + request));
        assert_eq!((stats.packets_out, stats.bytes_out), (3, 3 * answer));
        let total: u64 = (1..=4).map(|member| bed.gateway.maps.stats(member).packets_in).sum();
        assert_eq!(total, 2, "nobody else's traffic");
        assert_eq!(flow.protocol, UDP);
    }
}

#[test]
fn each_processor_counts_for_itself() {
    let net = Net::V4;
    let bed = Bed::with_backends(net, 1);
    let flow = bed.open(net.client(1), net.vip());
    let mut packet = lb_common::host::HostPacket::new(&flow.request(SYN).build());
    bed.gateway.maps.cpu(1).process(&mut packet);
    let member = bed.member_of(&flow);
    let stride = bed.config().member_count;
    for cpu in 0..2 {
        let stats: lb_common::abi::MemberStats = bed.gateway.maps.member_stats.read(cpu * stride + member);
        assert_eq!((stats.packets_in, stats.connections), (1, 1 - cpu as u64));
    }
}
