//! Rewriting: link layer, VLAN tags, options and extension headers, checksums.

use lb_common::{
    abi::{Counter, TCP, UDP},
    datapath::Verdict,
    host::{ACK, Frame, HostPacket, NextHop, SYN, Seen, TAG_8021AD, TAG_8021Q},
};

use crate::bed::{Bed, Net};

/// Every kind of tagging that a frame may come in with.
fn taggings() -> [Vec<(u16, u16)>; 5] {
    [
        vec![],
        vec![(TAG_8021Q, 0x6064)],
        vec![(TAG_8021AD, 0x0064)],
        vec![(TAG_8021Q, 0x0064), (TAG_8021Q, 0x20c8)],
        vec![(TAG_8021AD, 0xe064), (TAG_8021Q, 0x00c8)],
    ]
}

/// The next hop that sends with these tags.
fn hop(tags: &[(u16, u16)]) -> NextHop {
    NextHop {
        vlans: tags.iter().map(|(_, control)| *control).collect(),
        service_tag: tags.first().is_some_and(|(ethertype, _)| *ethertype == TAG_8021AD),
        ..NextHop::default()
    }
}

#[test]
fn frames_take_the_tags_of_where_they_go_and_replies_those_of_where_they_came_from() {
    for net in Net::BOTH {
        for outside in taggings() {
            for inside in taggings() {
                let mut bed = Bed::with_backends(net, 1);
                bed.gateway.set_next_hop(1, &hop(&inside));
                let syn = Frame::tcp(net.client(1), net.vip(), SYN).tags(&outside).payload(b"data");
                let seen = bed.send(&syn).sends(&[Counter::FlowOpened]).seen();
                assert_eq!(seen.tags, inside, "{outside:?} to {inside:?}");
                assert_eq!(
                    (seen.source_mac, seen.destination_mac),
                    (NextHop::default().source_mac, NextHop::default().destination_mac)
                );
                assert_eq!((seen.payload.as_slice(), seen.ttl), (b"data".as_slice(), 63));
                let reply = Frame::tcp(seen.destination, seen.source, SYN | ACK).tags(&inside);
                let back = bed.send(&reply).sends(&[]).seen();
                assert_eq!(back.tags, outside, "{inside:?} back to {outside:?}");
                assert_eq!((back.source_mac, back.destination_mac), (syn.destination_mac, syn.source_mac));
                assert_eq!((back.source, back.destination), (net.vip(), net.client(1)));
            }
        }
    }
}

#[test]
fn no_room_for_tags_is_a_drop() {
    for net in Net::BOTH {
        let tags = &taggings()[4];
        let mut bed = Bed::with_backends(net, 1);
        bed.gateway.set_next_hop(1, &hop(tags));
        let syn = Frame::tcp(net.client(1), net.vip(), SYN).build();
        for (room, counters) in
            [(0, &[Counter::FlowOpened, Counter::DropNoRoom][..]), (7, &[Counter::DropNoRoom][..])]
        {
            bed.send_packet(HostPacket::with_head_room(&syn, room)).expect(Verdict::Drop, counters);
        }
        let seen = bed.send_packet(HostPacket::with_head_room(&syn, 8)).sends(&[]).seen();
        assert_eq!(&seen.tags, tags);
        // Back to the client the frame gets shorter: no room needed.
        let reply = Frame::tcp(seen.destination, seen.source, SYN | ACK).tags(tags);
        bed.send_packet(HostPacket::with_head_room(&reply.build(), 0)).sends(&[]);
    }
}

#[test]
fn another_interface_is_a_redirect_both_ways() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 1);
        bed.gateway.set_next_hop(1, &NextHop { ifindex: 7, ..NextHop::default() });
        let syn = HostPacket::new(&Frame::tcp(net.client(1), net.vip(), SYN).build());
        let seen = bed.send_packet(syn).expect(Verdict::Redirect(7), &[Counter::FlowOpened]).seen();
        let reply = Frame::tcp(seen.destination, seen.source, SYN | ACK).build();
        bed.send_packet(HostPacket::new(&reply).on(7)).expect(Verdict::Redirect(1), &[]);
        bed.send_packet(HostPacket::new(&reply).on(1)).expect(Verdict::Transmit, &[]);
    }
}

#[test]
fn options_and_extension_headers_travel_along_untouched() {
    for length in (4..=40).step_by(4) {
        let bed = Bed::with_backends(Net::V4, 1);
        let options: Vec<u8> = (0..length).map(|n: u8| n.wrapping_mul(7) + 1).collect();
        let frame = Frame::tcp(Net::V4.client(1), Net::V4.vip(), SYN).ip_options(&options).payload(b"x");
        let step = bed.send(&frame).sends(&[Counter::FlowOpened]);
        assert_eq!(step.bytes()[34..34 + length as usize], options);
        assert_eq!(step.seen().destination, Net::V4.backend(1));
    }
    for headers in 1..=4 {
        let bed = Bed::with_backends(Net::V6, 1);
        let frame = [(0, 6), (43, 22), (60, 6), (60, 62)]
            .into_iter()
            .take(headers)
            .fold(Frame::udp(Net::V6.client(1), Net::V6.vip()), |frame, (n, length)| {
                frame.extension(n, length)
            })
            .payload(b"x");
        let step = bed.send(&frame).sends(&[Counter::FlowOpened]);
        let (first, last) = (54, frame.transport_offset());
        assert_eq!(step.bytes()[first..last], frame.build()[first..last]);
        assert_eq!(step.seen().destination, Net::V6.backend(1));
    }
}

#[test]
fn padding_is_kept_and_covered_by_no_checksum() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let frame = Frame { padding: 11, ..Frame::tcp(net.client(1), net.vip(), SYN) };
        let step = bed.send(&frame).sends(&[Counter::FlowOpened]);
        assert_eq!(step.bytes().len(), frame.build().len());
        step.seen();
    }
}

#[test]
fn a_udp_checksum_that_computes_to_0_is_sent_as_ffff() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let flow = bed.open_udp(net.client(1), net.vip());
        // The payload takes out of the sum what is left of it.
        let left = bed.send(&flow.datagram().payload(&[0, 0])).sends(&[]).seen().checksum;
        let request = flow.datagram().payload(&left.to_be_bytes());
        assert_eq!(bed.send(&request).sends(&[]).reaches_backend_of(&flow).seen().checksum, 0xffff);
        let left = bed.send(&flow.answer().payload(&[0, 0])).sends(&[]).seen().checksum;
        let answer = flow.answer().payload(&left.to_be_bytes());
        assert_eq!(bed.send(&answer).sends(&[]).reaches_client_of(&flow).seen().checksum, 0xffff);
    }
}

#[test]
fn a_tcp_checksum_that_computes_to_0_is_sent_as_0() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let flow = bed.establish(net.client(1), net.vip());
        let left = bed.send(&flow.request(ACK).payload(&[0, 0])).sends(&[]).seen().checksum;
        let request = flow.request(ACK).payload(&left.to_be_bytes());
        assert_eq!(bed.send(&request).sends(&[]).reaches_backend_of(&flow).seen().checksum, 0);
        assert_eq!(flow.protocol, TCP);
    }
}

#[test]
fn the_ttl_is_decremented_once_each_way() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let flow = bed.establish(net.client(1), net.vip());
        for ttl in 2..=255 {
            assert_eq!(bed.send(&flow.request(ACK).ttl(ttl)).sends(&[]).seen().ttl, ttl - 1);
            assert_eq!(bed.send(&flow.reply(ACK).ttl(ttl)).sends(&[]).seen().ttl, ttl - 1);
        }
    }
}

#[test]
fn a_next_hop_that_changes_takes_effect_with_the_next_packet() {
    let net = Net::V4;
    let mut bed = Bed::with_backends(net, 1);
    let flow = bed.establish(net.client(1), net.vip());
    let moved = NextHop { destination_mac: [2, 9, 9, 9, 9, 9], ..hop(&taggings()[3]) };
    bed.gateway.set_next_hop(1, &moved);
    let seen: Seen = bed.send(&flow.request(ACK)).sends(&[]).reaches_backend_of(&flow).seen();
    assert_eq!((seen.destination_mac, seen.tags), (moved.destination_mac, taggings()[3].clone()));
}
