//! What the sender of a refused packet is told, as another implementation reads it.

use std::net::IpAddr;

use etherparse::{
    Icmpv4Slice, Icmpv6Slice, IpHeaders, Ipv4Header, NetSlice, SlicedPacket, TcpSlice, TransportSlice,
};
use lb_common::host::checksum;

/// An answer; its checksums are right.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Told {
    /// MAC addresses, tags, ethertypes.
    pub(crate) link: Vec<u8>,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) ttl: u8,
    pub(crate) what: What,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum What {
    Reset { source: u16, destination: u16, flags: u8, seq: u32, ack: u32 },
    Icmp { kind: u8, code: u8, rest: u32, quote: Vec<u8> },
}

impl Told {
    /// Reads a frame, which ends where its packet does.
    #[track_caller]
    pub(crate) fn read(frame: &[u8]) -> Self {
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        let (source, destination, ttl, headers, length): (IpAddr, IpAddr, _, _, _) = match packet.net.unwrap()
        {
            NetSlice::Ipv4(ip) => {
                let header: Ipv4Header = ip.header().to_header();
                assert_eq!(header.header_checksum, header.calc_header_checksum());
                assert!(header.options.is_empty() && header.dont_fragment && !header.more_fragments);
                let (source, destination) = (ip.header().source_addr(), ip.header().destination_addr());
                (
                    source.into(),
                    destination.into(),
                    header.time_to_live,
                    IpHeaders::Ipv4(header.clone(), Default::default()),
                    usize::from(header.total_len),
                )
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header().to_header();
                let (source, destination) = (ip.header().source_addr(), ip.header().destination_addr());
                let length = 40 + usize::from(header.payload_length);
                (
                    source.into(),
                    destination.into(),
                    header.hop_limit,
                    IpHeaders::Ipv6(header, Default::default()),
                    length,
                )
            }
            other => panic!("{other:?}"),
        };
        let what = match packet.transport.unwrap() {
            TransportSlice::Tcp(tcp) => reset(&tcp, &headers),
            TransportSlice::Icmpv4(icmp) => icmp_v4(&icmp),
            TransportSlice::Icmpv6(icmp) => icmp_v6(&icmp, source, destination),
            other => panic!("{other:?}"),
        };
        Self { link: frame[..frame.len() - length].to_vec(), source, destination, ttl, what }
    }
}

#[track_caller]
fn reset(tcp: &TcpSlice<'_>, headers: &IpHeaders) -> What {
    let header = tcp.to_header();
    let check = match headers {
        IpHeaders::Ipv4(ip, _) => header.calc_checksum_ipv4(ip, tcp.payload()),
        IpHeaders::Ipv6(ip, _) => header.calc_checksum_ipv6(ip, tcp.payload()),
    };
    assert_eq!(tcp.checksum(), check.unwrap());
    assert_eq!(
        (tcp.payload(), tcp.options(), tcp.window_size(), tcp.urgent_pointer()),
        (&[][..], &[][..], 0, 0)
    );
    What::Reset {
        source: tcp.source_port(),
        destination: tcp.destination_port(),
        flags: tcp.slice()[13],
        seq: tcp.sequence_number(),
        ack: tcp.acknowledgment_number(),
    }
}

#[track_caller]
fn icmp_v4(icmp: &Icmpv4Slice<'_>) -> What {
    assert_eq!(checksum(icmp.slice()), 0);
    let rest = u32::from_be_bytes(icmp.bytes5to8());
    What::Icmp { kind: icmp.type_u8(), code: icmp.code_u8(), rest, quote: icmp.slice()[8..].to_vec() }
}

#[track_caller]
fn icmp_v6(icmp: &Icmpv6Slice<'_>, source: IpAddr, destination: IpAddr) -> What {
    let (IpAddr::V6(source), IpAddr::V6(destination)) = (source, destination) else { panic!("{source}") };
    assert!(icmp.is_checksum_valid(source.octets(), destination.octets()));
    let rest = u32::from_be_bytes(icmp.bytes5to8());
    What::Icmp { kind: icmp.type_u8(), code: icmp.code_u8(), rest, quote: icmp.slice()[8..].to_vec() }
}
