//! Properties of single packets: nothing panics, and what leaves is, byte for byte, what a host would have
//! built with the new addresses.

use std::net::SocketAddr;

use lb_common::{
    abi::{Counter, TCP},
    datapath::Verdict,
    host::{ACK, Frame, GatewayConfig, HostPacket, NextHop, SYN, Seen, TAG_8021AD, TAG_8021Q, Transport},
};
use proptest::{collection::vec, prelude::*, sample::Index};

use crate::bed::{Bed, Net};

fn nets() -> impl Strategy<Value = Net> {
    prop_oneof![Just(Net::V4), Just(Net::V6)]
}

fn tags() -> impl Strategy<Value = Vec<(u16, u16)>> {
    prop_oneof![
        Just(vec![]),
        (prop_oneof![Just(TAG_8021Q), Just(TAG_8021AD)], any::<u16>()).prop_map(|tag| vec![tag]),
        (prop_oneof![Just(TAG_8021Q), Just(TAG_8021AD)], any::<u16>(), any::<u16>())
            .prop_map(|(outer, one, two)| vec![(outer, one), (TAG_8021Q, two)]),
    ]
}

/// A next hop, and the tags that it gives.
fn hops() -> impl Strategy<Value = (NextHop, Vec<(u16, u16)>)> {
    (any::<[u8; 6]>(), any::<[u8; 6]>(), tags()).prop_map(|(destination_mac, source_mac, tags)| {
        let hop = NextHop {
            destination_mac,
            source_mac,
            ifindex: 1,
            vlans: tags.iter().map(|(_, control)| *control).collect(),
            service_tag: tags.first().is_some_and(|(ethertype, _)| *ethertype == TAG_8021AD),
            mtu: 0,
        };
        (hop, tags)
    })
}

/// A first packet of a flow: SYN or datagram, with everything that varies.
fn opening_frames() -> impl Strategy<Value = (Net, Frame)> {
    let transport = prop_oneof![
        (any::<u32>(), any::<u32>(), 0..=10_usize).prop_map(|(seq, ack, words)| Transport::Tcp {
            flags: SYN,
            seq,
            ack,
            options: vec![1; words * 4]
        }),
        any::<bool>().prop_map(|checksum| Transport::Udp { checksum }),
    ];
    let network = (
        vec(any::<[u8; 4]>(), 0..=10),
        vec((prop_oneof![Just(0_u8), Just(43), Just(60)], 0..=7_usize), 0..=4),
        2..=255_u8,
        0..=2_u16,
    );
    let link = (any::<[u8; 6]>(), any::<[u8; 6]>(), tags(), 0..=20_usize);
    let client = (any::<[u8; 16]>(), any::<u16>());
    (nets(), client, transport, network, link, vec(any::<u8>(), 0..200)).prop_map(
        |(net, (address, port), transport, (options, extensions, ttl, fragment), link, payload)| {
            // Any address that can be a client's.
            let [first, b, c, d, ..] = address;
            let client: SocketAddr = match net {
                Net::V4 => ([1 + first % 126, b, c, d], port).into(),
                Net::V6 => {
                    let mut address = address;
                    address[0] = 0x20 | first & 0x1f;
                    (address, port).into()
                }
            };
            let mut frame = Frame::tcp(client, net.vip(), SYN).macs(link.0, link.1).tags(&link.2);
            frame.padding = link.3;
            frame.transport = match transport {
                // Over IPv6 there are none without.
                Transport::Udp { checksum } => Transport::Udp { checksum: checksum || net == Net::V6 },
                other => other,
            };
            frame.payload = payload;
            frame.ttl = ttl;
            if net == Net::V4 {
                frame.ip_options = options.concat();
                frame.fragment = fragment << 14;
                // Bit 13, "more fragments", stays clear: 0x4000 and 0x8000 are no fragments.
            } else {
                for (number, eights) in extensions {
                    frame = frame.extension(number, 6 + 8 * eights);
                }
            }
            (net, frame)
        },
    )
}

/// The frame that a host would have built for the way to the new ends.
fn readdressed(
    frame: &Frame,
    source: SocketAddr,
    destination: SocketAddr,
    hop: &NextHop,
    tags: &[(u16, u16)],
) -> Vec<u8> {
    let built = Frame { ttl: frame.ttl - 1, source, destination, ..frame.clone() };
    built.macs(hop.source_mac, hop.destination_mac).tags(tags).build()
}

fn bed(net: Net, hop: &NextHop) -> Bed {
    let mut bed = Bed::with_backends(net, 3);
    (1..=6).for_each(|member| bed.gateway.set_next_hop(member, hop));
    bed
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..200), room in 0..16_usize) {
        let bed = Bed::with_backends(Net::V4, 1);
        bed.send_packet(HostPacket::with_head_room(&bytes, room));
    }

    #[test]
    fn a_good_frame_with_bytes_changed_or_cut_never_panics(
        (net, frame) in opening_frames(),
        changes in vec((any::<Index>(), any::<u8>()), 0..6),
        cut in proptest::option::of(any::<Index>()),
        room in 0..16_usize,
    ) {
        let bed = bed(net, &NextHop { vlans: vec![7, 8], ..NextHop::default() });
        let mut bytes = frame.build();
        for (at, byte) in changes {
            // Headers are where it matters.
            let at = at.index(bytes.len().min(120));
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        bed.send_packet(HostPacket::with_head_room(&bytes, room));
    }

    #[test]
    fn a_request_leaves_as_a_host_would_have_built_it_and_its_reply_restores_the_tuple(
        (net, request) in opening_frames(),
        (hop, inside) in hops(),
        answer in vec(any::<u8>(), 0..100),
        flags in any::<u8>(),
    ) {
        let bed = bed(net, &hop);
        let step = bed.send(&request).sends(&[Counter::FlowOpened]);
        let seen = step.seen();
        prop_assert_eq!(seen.source.ip(), net.snat());
        prop_assert!((12288..28672).contains(&seen.source.port()));
        prop_assert!((1..=3).any(|n| net.backend(n) == seen.destination));
        let expected = readdressed(&request, seen.source, seen.destination, &hop, &inside);
        prop_assert_eq!(step.bytes(), &expected);

        let mut reply = match &request.transport {
            Transport::Udp { .. } => Frame::udp(seen.destination, seen.source),
            _ => Frame::tcp(seen.destination, seen.source, flags & 0x3f),
        };
        reply.transport = match request.transport.clone() {
            Transport::Tcp { options, .. } => Transport::Tcp { flags: flags & 0x3f, seq: 7, ack: 1, options },
            other => other,
        };
        let reply = Frame { payload: answer, ..reply }.tags(&inside);
        let step = bed.send(&reply).expect(Verdict::Transmit, &[]);
        let back = NextHop {
            destination_mac: request.source_mac,
            source_mac: request.destination_mac,
            ..NextHop::default()
        };
        let expected = readdressed(&reply, request.destination, request.source, &back, &request.tags);
        prop_assert_eq!(step.bytes(), &expected);
    }

    #[test]
    fn foreign_frames_pass_untouched_whatever_they_are(
        (net, frame) in opening_frames(),
        destination in any::<([u8; 16], u16)>(),
    ) {
        let ([a, b, c, d, ..], port) = destination;
        let to: SocketAddr = match net {
            Net::V4 => ([a, b, c, d], port).into(),
            Net::V6 => (destination.0, port).into(),
        };
        prop_assume!(to.ip() != net.vip().ip() && to.ip() != net.snat());
        let bed = Bed::with_backends(net, 1);
        bed.send(&Frame { destination: to, ..frame }).passes(Counter::PassForeign);
    }
}

#[test]
fn a_frame_of_any_length_never_panics() {
    for net in Net::BOTH {
        let bed = Bed::sized(net, 1, &GatewayConfig::default());
        for frame in [Frame::tcp(net.client(1), net.vip(), SYN), Frame::udp(net.client(1), net.vip())] {
            let bytes = frame.tags(&[(TAG_8021AD, 1), (TAG_8021Q, 2)]).payload(&[0; 32]).build();
            for length in 0..=bytes.len() {
                for room in [0, 3, 8] {
                    bed.send_packet(HostPacket::with_head_room(&bytes[..length], room));
                }
            }
        }
        let seen = bed.send(&Frame::tcp(net.client(1), net.vip(), ACK));
        assert_eq!(Seen::parse(seen.bytes()).map(|seen| seen.protocol), Ok(TCP));
    }
}
