//! Fragments follow the first one of their packet, and arrive as one packet again.

use std::{collections::BTreeSet, net::IpAddr};

use lb_common::{
    abi::{Counter, FRAGMENT_RECORDS, FlowState, ReactionWord, TCP, UDP, member_flags, vip_flags},
    clock::TICK_NS,
    datapath::Verdict,
    host::{
        ACK, FRAGMENT_HEADER, Frame, HostPacket, NextHop, SYN, Seen, TAG_8021AD, TAG_8021Q, fragment,
        fragments, identification, reassemble,
    },
};

use crate::bed::{Bed, Flow, Net, seconds};

/// Payload of a fragment on a link with an MTU of 3,000 bytes.
const FULL: usize = 2880;
/// As much as a datagram may carry, and a little less.
const LARGE: usize = 60_000;

/// Counters of a first and of a later fragment of a flow that there is.
const TRACKED: &[Counter] = &[Counter::FragmentTracked];
const FOLLOWED: &[Counter] = &[Counter::FragmentForwarded];

fn payload(length: usize) -> Vec<u8> {
    (0..length).map(|byte| ((byte * 7) >> 3) as u8).collect()
}

fn datagram(net: Net, client: u32, length: usize) -> Frame {
    Frame::udp(net.client(client), net.vip()).payload(&payload(length))
}

/// Sends all fragments in their order, and gives the packet that they are where they arrive.
#[track_caller]
fn pass(bed: &Bed, sent: &[Vec<u8>], first: &[Counter]) -> Seen {
    let arrived: Vec<_> = sent
        .iter()
        .enumerate()
        .map(|(n, frame)| bed.send_bytes(frame).sends(if n == 0 { first } else { FOLLOWED }).bytes().to_vec())
        .collect();
    Seen::parse(&reassemble(&arrived).unwrap()).unwrap()
}

#[track_caller]
fn id_of(bed: &Bed, frame: &[u8], counters: &[Counter]) -> u32 {
    identification(bed.send_bytes(frame).sends(counters).bytes()).unwrap()
}

#[test]
fn a_large_datagram_arrives_whole_in_either_direction() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 3);
        let request = datagram(net, 1, LARGE);
        let opens = &[Counter::FlowOpened, Counter::FragmentTracked];
        let seen = pass(&bed, &fragments(&request, 0xbeef, FULL), opens);
        assert_eq!((seen.payload, seen.ttl, seen.source.ip()), (payload(LARGE), 63, net.snat()));
        let (client, vip) = (request.source, request.destination);
        let flow = Flow { protocol: UDP, client, vip, snat: seen.source, backend: seen.destination };
        assert_eq!(bed.state(&flow), Some(FlowState::UdpNew));

        let answer = flow.answer().payload(&payload(LARGE - 1));
        let seen = pass(&bed, &fragments(&answer, 0xbeef, FULL), TRACKED);
        assert_eq!((seen.source, seen.destination), (vip, client));
        assert_eq!((seen.payload, seen.ttl), (payload(LARGE - 1), 63));
        assert_eq!(bed.state(&flow), Some(FlowState::UdpReplied));

        let stats = bed.gateway.maps.stats(bed.member_of(&flow));
        let bytes = |sent: &Frame| fragments(sent, 1, FULL).iter().map(Vec::len).sum::<usize>() as u64;
        assert_eq!((stats.packets_in, stats.packets_out), (21, 21));
        assert_eq!((stats.bytes_in, stats.bytes_out), (bytes(&request), bytes(&answer)));
    }
}

#[test]
fn segments_of_tcp_arrive_whole_in_either_direction() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 3);
        let flow = bed.establish(net.client(1), net.vip());
        let request = flow.request(ACK).payload(&payload(3000));
        assert_eq!(pass(&bed, &fragments(&request, 1, 256), TRACKED).payload, payload(3000));
        let reply = flow.reply(ACK).payload(&payload(3001));
        let seen = pass(&bed, &fragments(&reply, 1, 256), TRACKED);
        assert_eq!((seen.source, seen.destination), (flow.vip, flow.client));
        assert_eq!(seen.payload, payload(3001));
    }
}

#[test]
fn fragments_get_the_tags_of_the_way_out_and_keep_options_and_extension_headers() {
    let tags: [&[(u16, u16)]; 4] =
        [&[], &[(TAG_8021Q, 5)], &[(TAG_8021AD, 6), (TAG_8021Q, 7)], &[(TAG_8021Q, 8), (TAG_8021Q, 9)]];
    for net in Net::BOTH {
        for (n, inside) in (1..).zip(tags) {
            for outside in [vec![], vec![70], vec![71, 72]] {
                let mut bed = Bed::with_backends(net, 1);
                let hop = NextHop { vlans: outside.clone(), ..NextHop::default() };
                for member in [1, 2] {
                    bed.gateway.set_next_hop(member, &hop);
                }
                let mut request = datagram(net, n, 100).tags(inside).ip_options(&[1; 8]);
                if net == Net::V6 {
                    request = request.extension(0, 6).extension(60, 14);
                }
                let opens = &[Counter::FlowOpened, Counter::FragmentTracked];
                let seen = pass(&bed, &fragments(&request, 77, 64), opens);
                let expected: Vec<_> = outside.iter().map(|vlan| (TAG_8021Q, *vlan)).collect();
                assert_eq!(seen.tags, expected);
                assert_eq!(seen.payload, payload(100));
                // The way back is the way that the client's packets came.
                let answer = Frame::udp(seen.destination, seen.source).payload(&payload(99));
                assert_eq!(pass(&bed, &fragments(&answer, 78, 64), TRACKED).tags, inside);
            }
        }
    }
}

#[test]
fn what_comes_before_the_first_fragment_is_lost_and_what_comes_after_it_in_any_order_is_not() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        bed.open_udp(net.client(1), net.vip());
        let sent = fragments(&datagram(net, 1, 500), 9, 96);
        let [first, second, third, rest @ ..] = &sent[..] else { panic!("{} fragments", sent.len()) };
        bed.send_bytes(second).drops(Counter::DropFragment);
        let mut arrived = vec![bed.send_bytes(first).sends(TRACKED).bytes().to_vec()];
        for frame in rest.iter().rev().chain([third, second]) {
            arrived.push(bed.send_bytes(frame).sends(FOLLOWED).bytes().to_vec());
        }
        assert_eq!(Seen::parse(&reassemble(&arrived).unwrap()).unwrap().payload, payload(500));
        // Of another packet, another source, another protocol: not these.
        bed.send_bytes(&fragments(&datagram(net, 1, 500), 10, 96)[1]).drops(Counter::DropFragment);
        bed.send_bytes(&fragments(&datagram(net, 2, 500), 9, 96)[1]).drops(Counter::DropFragment);
    }
    let bed = Bed::with_backends(Net::V4, 1);
    bed.open_udp(Net::V4.client(1), Net::V4.vip());
    let sent = fragments(&datagram(Net::V4, 1, 200), 9, 96);
    bed.send_bytes(&sent[0]).sends(TRACKED);
    let mut tcp = sent[1].clone();
    tcp[23] = TCP;
    bed.send_bytes(&tcp).drops(Counter::DropFragment);
    bed.send_bytes(&sent[1]).sends(FOLLOWED);
}

#[test]
fn in_ipv6_later_fragments_need_not_say_the_protocol() {
    // RFC 8200, §4.5: only the first one's next header counts.
    let bed = Bed::with_backends(Net::V6, 1);
    bed.open_udp(Net::V6.client(1), Net::V6.vip());
    let mut sent = fragments(&datagram(Net::V6, 1, 300), 9, 96);
    for later in &mut sent[1..] {
        later[54] = 59;
    }
    pass_unparsed(&bed, &sent);
}

#[track_caller]
fn pass_unparsed(bed: &Bed, sent: &[Vec<u8>]) {
    bed.send_bytes(&sent[0]).sends(TRACKED);
    for later in &sent[1..] {
        bed.send_bytes(later).sends(FOLLOWED);
    }
}

#[test]
fn clients_that_choose_the_same_identification_are_told_apart_at_a_backend() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let clients = 1..=40;
        let sent: Vec<_> = clients.map(|n| fragments(&datagram(net, n, 100 + n as usize), 7, 64)).collect();
        let mut arrived: Vec<Vec<Vec<u8>>> = vec![Vec::new(); sent.len()];
        for step in 0..2 {
            for (n, fragments) in sent.iter().enumerate() {
                let (verdict, frame) = send(&bed, &fragments[step]);
                assert_eq!(verdict, Verdict::Transmit);
                arrived[n].push(frame);
            }
        }
        let mut ids = BTreeSet::new();
        for (n, fragments) in arrived.iter().enumerate() {
            let length = 100 + 1 + n;
            assert_eq!(identification(&fragments[0]), identification(&fragments[1]));
            ids.insert(identification(&fragments[0]).unwrap());
            let seen = Seen::parse(&reassemble(&fragments[..2.min(sent[n].len())]).unwrap_or_default());
            if sent[n].len() == 2 {
                assert_eq!(seen.unwrap().payload, payload(length));
            }
        }
        assert_eq!(ids.len(), sent.len(), "{ids:?}");
    }
}

fn send(bed: &Bed, frame: &[u8]) -> (Verdict, Vec<u8>) {
    let mut packet = HostPacket::new(frame);
    let verdict = bed.gateway.maps.cpu(0).process(&mut packet);
    (verdict, packet.bytes().to_vec())
}

#[test]
fn backends_that_choose_the_same_identification_are_told_apart_at_a_client() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 8);
        let client = net.client(1);
        let flows: Vec<_> =
            (0..24).map(|n| bed.open_udp((client.ip(), 20_000 + n).into(), net.vip())).collect();
        let backends: BTreeSet<_> = flows.iter().map(|flow| flow.backend).collect();
        assert!(backends.len() > 4, "{backends:?}");
        let mut ids = BTreeSet::new();
        for flow in &flows {
            let answer = fragments(&flow.answer().payload(&payload(100)), 7, 64);
            let id = id_of(&bed, &answer[0], TRACKED);
            assert_eq!(id_of(&bed, &answer[1], FOLLOWED), id);
            ids.insert(id);
        }
        assert_eq!(ids.len(), flows.len());
    }
}

#[test]
fn a_doubled_first_fragment_keeps_the_identification_and_a_new_packet_gets_its_own() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        bed.open_udp(net.client(1), net.vip());
        let sent = fragments(&datagram(net, 1, 200), 7, 96);
        let id = id_of(&bed, &sent[0], TRACKED);
        assert_eq!(id_of(&bed, &sent[1], FOLLOWED), id);
        assert_eq!(id_of(&bed, &sent[0], TRACKED), id);
        assert_eq!(id_of(&bed, &sent[2], FOLLOWED), id);
        // The sender has come round.
        bed.gateway.maps.advance_clock(2 * TICK_NS);
        let next = id_of(&bed, &sent[0], TRACKED);
        assert_ne!(next, id);
        assert_eq!(id_of(&bed, &sent[1], FOLLOWED), next);
        // Another flow between the same two.
        let client = (net.client(1).ip(), 9).into();
        let other = fragments(&Frame::udp(client, net.vip()).payload(&payload(200)), 7, 96);
        let third = id_of(&bed, &other[0], &[Counter::FlowOpened, Counter::FragmentTracked]);
        assert_ne!(third, next);
        assert_eq!(id_of(&bed, &other[1], FOLLOWED), third);
    }
}

#[test]
fn a_record_lives_as_long_as_a_receiver_waits() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        bed.open_udp(net.client(1), net.vip());
        let sent = fragments(&datagram(net, 1, 200), 7, 96);
        bed.send_bytes(&sent[0]).sends(TRACKED);
        bed.wait(seconds(30));
        bed.send_bytes(&sent[1]).sends(FOLLOWED);
        bed.wait(seconds(1));
        bed.send_bytes(&sent[2]).drops(Counter::DropFragment);
        // Nor does the clock of a day ago come back.
        bed.gateway.maps.advance_clock(0x1_0000 * TICK_NS - seconds(31).as_nanos() as u64);
        bed.send_bytes(&sent[2]).drops(Counter::DropFragment);
    }
}

#[test]
fn a_full_table_forgets_the_oldest_packet_and_counts_it_while_that_is_on_its_way() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        bed.open_udp(net.client(1), net.vip());
        let request = datagram(net, 1, 100);
        let all = 2 * FRAGMENT_RECORDS;
        let sent: Vec<_> = (0..all).map(|id| fragments(&request, id, 64)).collect();
        let maps = &bed.gateway.maps;
        let send = |range: std::ops::Range<u32>, part: usize| {
            range.filter(|id| send(&bed, &sent[*id as usize][part]).0 == Verdict::Transmit).count() as u32
        };
        assert_eq!(send(0..all, 0), all);
        let displaced = maps.counter(Counter::FragmentDisplaced) as u32;
        assert!(displaced >= all - FRAGMENT_RECORDS, "{displaced} displaced");
        assert_eq!(send(0..all, 1), all - displaced, "who was displaced, and nobody else");
        assert_eq!(maps.counter(Counter::DropFragment) as u32, displaced);
        // In the order in which they came.
        bed.wait(seconds(1));
        assert_eq!(send(0..64, 0), 64);
        bed.gateway.maps.advance_clock(TICK_NS);
        let before = maps.counter(Counter::FragmentDisplaced);
        assert_eq!(send(64..128, 0), 64);
        assert_eq!(send(0..128, 1), 128, "the latest are there");
        // What is displaced after a second counts for nothing.
        assert_eq!(maps.counter(Counter::FragmentDisplaced), before);
        bed.check();
    }
}

#[test]
fn a_first_fragment_without_its_whole_transport_header_is_dropped() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let syn = Frame::tcp(net.client(1), net.vip(), SYN);
        let segment = &syn.build()[syn.transport_offset()..];
        for length in [0, 8, 16] {
            let short = fragment(&syn, 7, 0, true, &segment[..length]);
            bed.send_bytes(&short).drops(Counter::DropFragmentHeader);
        }
        // Options that begin, and don't end in it.
        let mut long = segment.to_vec();
        long[12] = 0x70;
        long.extend([1; 4]);
        bed.send_bytes(&fragment(&syn, 7, 0, true, &long)).drops(Counter::DropFragmentHeader);
        long.extend([1; 4]);
        bed.send_bytes(&fragment(&syn, 7, 0, true, &long))
            .sends(&[Counter::FlowOpened, Counter::FragmentTracked]);
        let udp = datagram(net, 2, 100);
        bed.send_bytes(&fragment(&udp, 8, 0, true, &[])).drops(Counter::DropFragmentHeader);
        // Eight bytes are a header.
        let sent = fragments(&udp, 8, 8);
        let seen = pass(&bed, &sent, &[Counter::FlowOpened, Counter::FragmentTracked]);
        assert_eq!(seen.payload, payload(100));
    }
}

#[test]
fn a_later_fragment_does_not_change_the_header() {
    let net = Net::V4;
    let bed = Bed::with_backends(net, 1);
    let flow = bed.establish(net.client(1), net.vip());
    let request = flow.request(ACK).payload(&payload(100));
    let sent = fragments(&request, 7, 40);
    bed.send_bytes(&sent[0]).sends(TRACKED);
    for place in [1, 2] {
        let over = fragment(&request, 7, place, true, &[0xff; 24]);
        bed.send_bytes(&over).drops(Counter::DropFragmentHeader);
    }
    bed.send_bytes(&fragment(&request, 7, 3, true, &[0xff; 24])).sends(FOLLOWED);
    bed.send_bytes(&sent[1]).sends(FOLLOWED);
    // UDP's header ends where a later fragment begins.
    bed.open_udp(net.client(2), net.vip());
    bed.send_bytes(&fragments(&datagram(net, 2, 50), 7, 8)[0]).sends(TRACKED);
    bed.send_bytes(&fragments(&datagram(net, 2, 50), 7, 8)[1]).sends(FOLLOWED);
}

#[test]
fn in_ipv6_a_header_chain_that_goes_on_in_the_next_fragment_is_dropped() {
    // RFC 7112, §5.
    let net = Net::V6;
    let bed = Bed::with_backends(net, 1);
    bed.open_udp(net.client(1), net.vip());
    let udp = datagram(net, 1, 40);
    let segment = udp.build()[udp.transport_offset()..].to_vec();
    let mut options = vec![UDP, 0, 1, 4, 0, 0, 0, 0];
    let mut sent = fragment(&udp, 7, 0, true, &options);
    sent[54] = 60;
    bed.send_bytes(&sent).drops(Counter::DropFragmentHeader);
    options.extend(&segment);
    let mut whole = fragment(&udp, 7, 0, true, &options);
    whole[54] = 60;
    bed.send_bytes(&whole).sends(TRACKED);
    // A second fragment header, and one too many of the others.
    let twice = Frame { extensions: vec![(FRAGMENT_HEADER, vec![0, 1, 0, 0, 0, 9])], ..udp.clone() };
    bed.send_bytes(&fragment(&twice, 7, 0, true, &segment)).drops(Counter::DropFragmentHeader);
    let mut chain = udp.clone();
    for _ in 0..4 {
        chain = chain.extension(60, 6);
    }
    bed.send_bytes(&fragments(&chain, 7, 24)[0]).drops(Counter::DropFragmentHeader);
}

#[test]
fn in_ipv6_a_fragment_that_is_all_of_its_packet_is_a_whole_packet() {
    // RFC 6946, §4.
    let net = Net::V6;
    let bed = Bed::with_backends(net, 1);
    let atomic = |frame: &Frame| match &fragments(frame, 7, 2000)[..] {
        [one] => one.clone(),
        more => panic!("{} fragments", more.len()),
    };
    assert_eq!(id_of(&bed, &atomic(&datagram(net, 1, 100)), &[Counter::FlowOpened]), 7);
    let sent = bed.send_bytes(&atomic(&datagram(net, 1, 100))).sends(&[]);
    let seen = Seen::parse(&reassemble(&[sent.bytes()]).unwrap()).unwrap();
    assert_eq!(seen.payload, payload(100));
    // It leaves no record, and its datagram must be all there.
    bed.send_bytes(&fragments(&datagram(net, 1, 100), 7, 64)[1]).drops(Counter::DropFragment);
    let udp = datagram(net, 1, 100);
    let segment = udp.build()[udp.transport_offset()..].to_vec();
    bed.send_bytes(&fragment(&udp, 7, 0, false, &segment[..96])).drops(Counter::DropMalformed);
    // Its sender is told, of a closed port and of a link that takes less.
    let closed = Frame::udp(net.client(2), (net.vip().ip(), 81).into()).payload(&payload(100));
    bed.send_bytes(&atomic(&closed)).refuses(Counter::DropClosedPort);
    let mut narrow = Bed::with_backends(net, 1);
    narrow.gateway.set_next_hop(2, &NextHop { mtu: 1280, ..NextHop::default() });
    let counters = [Counter::FlowOpened, Counter::DropTooBig, Counter::RefusalSent];
    narrow.send_bytes(&atomic(&datagram(net, 1, 1300))).sends(&counters);
    // A fragment within it is none of the kind.
    let twice = Frame { extensions: vec![(FRAGMENT_HEADER, vec![0; 6])], ..datagram(net, 3, 100) };
    bed.send_bytes(&atomic(&twice)).drops(Counter::DropMalformed);
}

#[test]
fn where_the_first_fragment_is_refused_the_later_ones_go_nowhere() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 1);
        let to = |port| Frame::udp(net.client(1), (net.vip().ip(), port).into()).payload(&payload(100));
        let closed = fragments(&to(81), 7, 64);
        bed.send_bytes(&closed[0]).drops(Counter::DropClosedPort);
        bed.send_bytes(&closed[1]).drops(Counter::DropFragment);
        let service = bed.gateway.add_service((net.vip().ip(), 90).into(), UDP, &[net.backend(1)]);
        bed.gateway.set_source_ranges(service, Some(&[]));
        let barred = fragments(&to(90), 8, 64);
        bed.send_bytes(&barred[0]).drops(Counter::DropSource);
        bed.send_bytes(&barred[1]).drops(Counter::DropFragment);
        let tcp = Frame::tcp(net.client(1), net.vip(), ACK).payload(&payload(100));
        let stray = fragments(&tcp, 9, 64);
        bed.send_bytes(&stray[0]).drops(Counter::DropNotSyn);
        bed.send_bytes(&stray[1]).drops(Counter::DropFragment);
        // What the gateway does not forward in one piece either.
        let other = Frame::other(net.client(1).ip(), net.vip().ip(), 132).payload(&[7; 100]);
        let echo =
            Frame::icmp(net.client(1).ip(), net.vip().ip(), if net == Net::V4 { 8 } else { 128 }, 0, [0; 4])
                .payload(&[7; 100]);
        for frame in [other, echo] {
            for sent in fragments(&frame, 7, 64) {
                bed.send_bytes(&sent).drops(Counter::DropFragment);
            }
        }
    }
}

#[test]
fn fragments_that_are_not_for_us_pass() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 1);
        let node: IpAddr = net.ip([203, 0, 113, 11], [0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x11]);
        bed.gateway.add_vip(node, vip_flags::NODE_ADDRESS);
        for (to, counter) in [
            (net.stranger(), Counter::PassForeign),
            (net.snat(), Counter::PassNoFlow),
            (node, Counter::PassNodeAddress),
        ] {
            for port in [80, 12_288] {
                let frame = Frame::udp(net.client(1), (to, port).into()).payload(&payload(100));
                for sent in fragments(&frame, 7, 64) {
                    bed.send_bytes(&sent).passes(counter);
                }
                bed.send_bytes(&fragment(&frame, 7, 0, true, &[])).passes(counter);
            }
        }
    }
}

#[test]
fn fragments_follow_the_member_that_their_packet_went_to() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 1);
        let flow = bed.open_udp(net.client(1), net.vip());
        let member = bed.member_of(&flow);
        let flags = member_flags::VALID | member_flags::NEXT_HOP;
        let request = fragments(&datagram(net, 1, 200), 7, 64);
        let answer = fragments(&flow.answer().payload(&payload(200)), 7, 64);
        for sent in [&request, &answer] {
            bed.send_bytes(&sent[0]).sends(TRACKED);
        }
        let dying = |frame: &Frame| fragments(&frame.clone().ttl(1), 7, 64).swap_remove(1);
        bed.send_bytes(&dying(&datagram(net, 1, 200))).drops(Counter::DropTtl);
        bed.send_bytes(&dying(&flow.answer().payload(&payload(200)))).drops(Counter::DropTtl);
        bed.gateway.set_member_flags(member, member_flags::VALID);
        bed.send_bytes(&request[1]).drops(Counter::DropNoNextHop);
        bed.send_bytes(&answer[1]).sends(FOLLOWED);
        // Its packets are sent to another one: not the rest of these.
        bed.gateway.set_member_flags(member, flags | member_flags::REMOVED);
        bed.send_bytes(&request[1]).sends(FOLLOWED);
        bed.gateway.set_member_flags(member, 0);
        for sent in [&request, &answer] {
            bed.send_bytes(&sent[2]).drops(Counter::DropStaleMember);
        }
        bed.gateway.set_member_flags(member, flags);
        let line = bed.gateway.member(member);
        bed.gateway
            .maps
            .members
            .write(member, &lb_common::abi::Member { generation: line.generation + 1, ..line });
        for sent in [&request, &answer] {
            bed.send_bytes(&sent[2]).drops(Counter::DropStaleMember);
        }
    }
}

#[test]
fn first_fragments_of_syns_are_no_evidence_against_a_backend() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 2);
        bed.gateway.set_reaction(0, ReactionWord::new(1, 1000, true));
        let mut syn = Frame::tcp(net.client(1), net.vip(), SYN);
        if let lb_common::host::Transport::Tcp { options, .. } = &mut syn.transport {
            *options = vec![1; 4];
        }
        // A checksum that is right without the rest, which is nothing but zeros and never comes.
        let sent = fragment(&syn, 7, 0, true, &syn.build()[syn.transport_offset()..]);
        bed.send_bytes(&sent).sends(&[Counter::FlowOpened, Counter::FragmentTracked]);
        for _ in 0..3 {
            bed.wait(seconds(1));
            bed.send_bytes(&sent).sends(TRACKED);
        }
    }
}
