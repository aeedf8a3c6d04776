//! The frames that tests send are what they claim to be: another implementation reads them the same way.

use std::net::SocketAddr;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use lb_common::host::{ACK, Frame, SYN, Seen, TAG_8021AD, TAG_8021Q};

fn pairs() -> [(SocketAddr, SocketAddr); 2] {
    [
        ("198.51.100.7:40000".parse().unwrap(), "203.0.113.10:80".parse().unwrap()),
        ("[2001:db8::7]:40000".parse().unwrap(), "[2001:db8:1::10]:80".parse().unwrap()),
    ]
}

#[test]
fn etherparse_reads_the_same_addresses_ports_tags_and_checksums() {
    for (source, destination) in pairs() {
        let base = Frame::tcp(source, destination, SYN | ACK)
            .payload(b"odd")
            .tags(&[(TAG_8021AD, 0x0064), (TAG_8021Q, 0x20c8)]);
        let frame = match source.is_ipv4() {
            true => base.ip_options(&[1, 1, 1, 0]),
            false => base.extension(0, 6).extension(60, 14),
        };
        let bytes = frame.build();
        let packet = SlicedPacket::from_ethernet(&bytes).unwrap();
        assert_eq!(packet.link_exts.len(), 2);
        let Some(TransportSlice::Tcp(tcp)) = packet.transport else { panic!("no TCP in {packet:?}") };
        assert_eq!((tcp.source_port(), tcp.destination_port()), (source.port(), destination.port()));
        assert!(tcp.syn() && tcp.ack() && !tcp.fin() && !tcp.rst());
        assert_eq!(tcp.payload(), b"odd");
        let header = tcp.to_header();
        let expected = match packet.net.unwrap() {
            NetSlice::Ipv4(ip) => {
                assert_eq!(ip.header().header_checksum(), ip.header().to_header().calc_header_checksum());
                header.calc_checksum_ipv4(&ip.header().to_header(), b"odd").unwrap()
            }
            NetSlice::Ipv6(ip) => header.calc_checksum_ipv6(&ip.header().to_header(), b"odd").unwrap(),
            other => panic!("{other:?}"),
        };
        assert_eq!(tcp.checksum(), expected);
        let seen = Seen::parse(&bytes).unwrap();
        assert_eq!((seen.source, seen.destination), (source, destination));
        assert_eq!((seen.checksum, seen.payload.as_slice()), (expected, b"odd".as_slice()));
        assert_eq!(seen.tags, [(TAG_8021AD, 0x0064), (TAG_8021Q, 0x20c8)]);
    }
}

#[test]
fn a_single_flipped_bit_fails_the_verification() {
    for (source, destination) in pairs() {
        let bytes = Frame::udp(source, destination).payload(&[7; 33]).build();
        assert!(Seen::parse(&bytes).is_ok());
        // From the source address on: what both checksums cover.
        let first = if source.is_ipv4() { 26 } else { 22 };
        for at in first..bytes.len() {
            for bit in 0..8 {
                let mut broken = bytes.clone();
                broken[at] ^= 1 << bit;
                assert_ne!(Seen::parse(&broken), Seen::parse(&bytes), "byte {at}, bit {bit}");
            }
        }
    }
}
