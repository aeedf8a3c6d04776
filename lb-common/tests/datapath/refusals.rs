//! What is dropped, and why. Each reason has a counter.

use lb_common::{
    abi::{Counter, FlowState, UDP},
    host::{ACK, Array, FIN, Frame, RST, SYN, Transport},
};

use crate::bed::{Bed, Net};

#[test]
fn a_closed_port_of_a_vip_is_dropped() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let closed = (net.vip().ip(), 81).into();
        bed.send(&Frame::tcp(net.client(1), closed, SYN)).refuses(Counter::DropClosedPort);
        bed.send(&Frame::udp(net.client(1), closed)).refuses(Counter::DropClosedPort);
    }
}

#[test]
fn icmp_and_other_protocols_to_a_vip_are_dropped_apart() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let other = |protocol| Frame::other(net.client(1).ip(), net.vip().ip(), protocol).payload(&[0; 20]);
        let (icmp, of_the_other_family) = if net == Net::V4 { (1, 58) } else { (58, 1) };
        bed.send(&other(icmp)).drops(Counter::DropIcmp);
        for protocol in [of_the_other_family, 2, 4, 41, 47, 50, 51, 132, 255] {
            bed.send(&other(protocol)).refuses(Counter::DropProtocol);
        }
    }
}

#[test]
fn fragments_without_their_first_one_are_dropped() {
    let bed = Bed::with_backends(Net::V4, 1);
    for word in [0x2001, 0x0001, 0x1fff, 0x3fff] {
        let mut frame = Frame::udp(Net::V4.client(1), Net::V4.vip()).payload(&[0; 32]);
        frame.fragment = word;
        bed.send(&frame).drops(Counter::DropFragment);
    }
    // "Don't fragment", and the bit that RFC 3514 makes fun of, are no fragments.
    for (n, word) in [(1, 0x4000), (2, 0x8000)] {
        let mut frame = Frame::udp(Net::V4.client(n), Net::V4.vip());
        frame.fragment = word;
        bed.begin(&frame, UDP, &[Counter::FlowOpened]);
    }
    let bed = Bed::with_backends(Net::V6, 1);
    let frame = Frame::udp(Net::V6.client(1), Net::V6.vip());
    bed.send(&frame.clone().extension(44, 6)).drops(Counter::DropFragment);
    bed.send(&frame.extension(0, 6).extension(44, 6)).drops(Counter::DropFragment);
}

/// Applies a change to a good frame and expects it to be malformed.
#[track_caller]
fn malformed(bed: &Bed, frame: &Frame, change: impl Fn(&mut Vec<u8>)) {
    let mut bytes = frame.build();
    change(&mut bytes);
    bed.send_bytes(&bytes).drops(Counter::DropMalformed);
}

#[test]
fn ipv4_headers_that_contradict_themselves_are_malformed() {
    let bed = Bed::with_backends(Net::V4, 1);
    let frame = Frame::tcp(Net::V4.client(1), Net::V4.vip(), SYN);
    for ihl in 0..5 {
        malformed(&bed, &frame, |bytes| bytes[14] = 0x40 | ihl);
    }
    // The header reaches beyond the packet; the packet is shorter than its header, longer than the frame.
    malformed(&bed, &frame, |bytes| bytes[14] = 0x4f);
    for total in [0_u16, 19, 41, 1500, 0xffff] {
        malformed(&bed, &frame, |bytes| bytes[16..18].copy_from_slice(&total.to_be_bytes()));
    }
    // Too short for the TCP header that follows.
    malformed(&bed, &frame, |bytes| bytes[16..18].copy_from_slice(&39_u16.to_be_bytes()));
}

#[test]
fn ipv6_headers_that_contradict_themselves_are_malformed() {
    let bed = Bed::with_backends(Net::V6, 1);
    let frame = Frame::tcp(Net::V6.client(1), Net::V6.vip(), SYN);
    for payload in [19_u16, 21, 1500, 0xffff, 0] {
        malformed(&bed, &frame, |bytes| bytes[18..20].copy_from_slice(&payload.to_be_bytes()));
    }
    let five = (0..5).fold(frame.clone(), |frame, _| frame.extension(60, 6));
    malformed(&bed, &five, |_| {});
    // An extension header longer than 64 bytes, one that the packet ends before, one that the frame cuts.
    malformed(&bed, &frame.clone().extension(60, 70), |_| {});
    malformed(&bed, &frame.clone().extension(60, 6), |bytes| bytes[55] = 7);
    malformed(&bed, &frame.clone().extension(60, 6), |bytes| {
        bytes.truncate(55);
        bytes[18..20].copy_from_slice(&1_u16.to_be_bytes());
    });
    malformed(&bed, &frame.clone().extension(60, 6), |bytes| {
        bytes[18..20].copy_from_slice(&7_u16.to_be_bytes());
    });
    // Four of the longest are what is allowed.
    let four = (0..4).fold(frame, |frame, _| frame.extension(60, 62));
    bed.begin(&four, lb_common::abi::TCP, &[Counter::FlowOpened]);
}

#[test]
fn transport_headers_that_contradict_themselves_are_malformed() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let tcp = Frame::tcp(net.client(1), net.vip(), SYN);
        let at = tcp.transport_offset();
        for words in [0, 1, 4, 6, 15] {
            malformed(&bed, &tcp, |bytes| bytes[at + 12] = words << 4);
        }
        let udp = Frame::udp(net.client(1), net.vip()).payload(&[0; 4]);
        for length in [0_u16, 7, 13, 0xffff] {
            malformed(&bed, &udp, |bytes| {
                bytes[at + 4..at + 6].copy_from_slice(&length.to_be_bytes());
            });
        }
    }
}

#[test]
fn a_segment_without_a_flow_makes_one_only_if_it_is_a_syn() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let all = (0..=0x1f_u8).filter(|flags| flags & (SYN | ACK | RST | FIN) != SYN);
        for flags in all {
            let step = bed.send(&Frame::tcp(net.client(1), net.vip(), flags));
            match flags & RST != 0 {
                true => step.drops(Counter::DropNotSyn),
                false => step.refuses(Counter::DropNotSyn),
            };
        }
        assert_eq!(bed.flows(), 0);
        // ECN's bits (RFC 3168) belong to a SYN.
        bed.begin(&Frame::tcp(net.client(1), net.vip(), SYN | 0xc0), 6, &[Counter::FlowOpened]);
    }
}

#[test]
fn a_ttl_that_would_reach_zero_is_dropped_in_every_direction() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let flow = bed.establish(net.client(1), net.vip());
        let udp = bed.open_udp(net.client(1), net.vip());
        for ttl in [0, 1] {
            bed.send(&Frame::tcp(net.client(2), net.vip(), SYN).ttl(ttl)).refuses(Counter::DropTtl);
            bed.send(&flow.request(FIN | ACK).ttl(ttl)).refuses(Counter::DropTtl);
            bed.send(&flow.reply(FIN | ACK).ttl(ttl)).refuses(Counter::DropTtl);
            bed.send(&udp.datagram().ttl(ttl)).refuses(Counter::DropTtl);
            bed.send(&udp.answer().ttl(ttl)).refuses(Counter::DropTtl);
        }
        // What was dropped moved no state.
        assert_eq!(bed.state(&flow), Some(FlowState::Established));
        assert_eq!(bed.state(&udp), Some(FlowState::UdpNew));
        let last = bed.send(&flow.request(ACK).ttl(2)).sends(&[]).seen();
        assert_eq!(last.ttl, 1);
    }
}

#[test]
fn tables_that_are_missing_are_said_to_be_missing() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 1);
        bed.gateway.maps.locks = Array::of::<u64>(0);
        bed.send(&Frame::tcp(net.client(1), net.vip(), SYN)).drops(Counter::DropNotReady);

        let mut bed = Bed::with_backends(net, 1);
        let flow = bed.open(net.client(1), net.vip());
        bed.gateway.maps.last_hops = Array::of::<u64>(0);
        bed.send(&flow.reply(SYN | ACK)).drops(Counter::DropNotReady);
        bed.send(&Frame::tcp(net.client(2), net.vip(), SYN)).drops(Counter::DropLastHopsFull);
    }
    // An IPv6 reply's source is in the service's descriptor.
    let mut bed = Bed::with_backends(Net::V6, 1);
    let flow = bed.open(Net::V6.client(1), Net::V6.vip());
    bed.gateway.maps.descriptors = Array::of::<u64>(0);
    bed.send(&flow.reply(SYN | ACK)).drops(Counter::DropNotReady);
}

#[test]
fn tables_that_are_missing_make_no_flow() {
    for net in Net::BOTH {
        let syn = Frame::tcp(net.client(1), net.vip(), SYN);
        let mut bed = Bed::with_backends(net, 1);
        bed.gateway.maps.flows = Array::of::<lb_common::abi::FlowBucket>(0);
        bed.send(&syn).drops(Counter::DropTableFull);

        for take in 0..2 {
            let mut bed = Bed::with_backends(net, 1);
            match take {
                0 => bed.gateway.maps.ports = Array::of::<u64>(0),
                _ => {
                    bed.gateway.maps.reverse_v4 = Array::of::<u64>(0);
                    bed.gateway.maps.reverse_v6 = Array::of::<u64>(0);
                }
            }
            bed.send(&syn).drops(Counter::DropPortsExhausted);
            assert_eq!(bed.flows(), 0);
        }
        for take in 0..4 {
            let mut bed = Bed::with_backends(net, 1);
            match take {
                0 => bed.gateway.maps.descriptors = Array::of::<u64>(0),
                1 => bed.gateway.maps.rings = Array::of::<u64>(0),
                2 => bed.gateway.maps.members = Array::of::<lb_common::abi::Member>(0),
                _ => bed.gateway.maps.backends = Array::of::<u64>(0),
            }
            bed.send(&syn).refuses(Counter::DropNoBackend);
        }
    }
}

#[test]
fn an_own_checksum_is_not_judged_but_carried_on() {
    // A wrong checksum stays wrong: the receiver drops it, as without a gateway.
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let frame =
            Frame { transport: Transport::Udp { checksum: true }, ..Frame::udp(net.client(1), net.vip()) };
        let at = frame.transport_offset() + 6;
        let mut bytes = frame.build();
        bytes[at] ^= 0x55;
        let step = bed.send_bytes(&bytes).sends(&[Counter::FlowOpened]);
        let problem = lb_common::host::Seen::parse(step.bytes()).unwrap_err();
        assert!(problem.contains("transport checksum"), "{problem}");
    }
}
