//! Source ranges: who may begin flows of a service.

use std::net::IpAddr;

use lb_common::{
    abi::{Counter, TCP, UDP, member_flags},
    datapath::Verdict,
    host::{ACK, FIN, Frame, GatewayConfig, RST, SYN},
};
use proptest::prelude::*;

use crate::bed::{Bed, Net, seconds};

/// A network around the clients.
fn around(net: Net) -> (IpAddr, u8) {
    match net {
        Net::V4 => (net.ip([198, 51, 100, 0], [0; 8]), 24),
        Net::V6 => (net.ip([0; 4], [0x2001, 0xdb8, 2, 0, 0, 0, 0, 0]), 64),
    }
}

/// A network without them.
fn elsewhere(net: Net) -> (IpAddr, u8) {
    match net {
        Net::V4 => (net.ip([198, 51, 101, 0], [0; 8]), 24),
        Net::V6 => (net.ip([0; 4], [0x2001, 0xdb8, 3, 0, 0, 0, 0, 0]), 64),
    }
}

fn everything(net: Net) -> (IpAddr, u8) {
    (net.ip([0; 4], [0; 8]), 0)
}

#[test]
fn a_client_outside_all_ranges_is_dropped_whatever_it_begins_with() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 2);
        for service in [0, 1] {
            bed.gateway.set_source_ranges(service, Some(&[elsewhere(net)]));
        }
        let client = net.client(1);
        for flags in [SYN, ACK, FIN | ACK, SYN | ACK] {
            bed.send(&Frame::tcp(client, net.vip(), flags)).refuses(Counter::DropSource);
        }
        bed.send(&Frame::tcp(client, net.vip(), RST)).drops(Counter::DropSource);
        bed.send(&Frame::tcp(client, net.vip(), SYN).ttl(1)).refuses(Counter::DropSource);
        bed.send(&Frame::udp(client, net.vip())).refuses(Counter::DropSource);
        assert_eq!(bed.flows(), 0);
    }
}

#[test]
fn a_client_in_one_of_the_ranges_is_served() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 2);
        let exactly = (net.client(1).ip(), if net == Net::V4 { 32 } else { 128 });
        for ranges in [&[around(net)][..], &[elsewhere(net), around(net)], &[exactly], &[everything(net)]] {
            for service in [0, 1] {
                bed.gateway.set_source_ranges(service, Some(ranges));
            }
            bed.establish(net.client(1), net.vip());
            bed.open_udp(net.client(1), net.vip());
            bed.send(&Frame::tcp(net.client(1), net.vip(), RST)).sends(&[]);
            bed = Bed::with_backends(net, 2);
        }
        bed.gateway.set_source_ranges(0, Some(&[exactly]));
        bed.open(net.client(1), net.vip());
        bed.send(&Frame::tcp(net.client(2), net.vip(), SYN)).refuses(Counter::DropSource);
    }
}

#[test]
fn ranges_without_a_range_let_nobody_in_and_none_let_everybody_in() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 1);
        bed.gateway.set_source_ranges(0, Some(&[]));
        bed.send(&Frame::tcp(net.client(1), net.vip(), SYN)).refuses(Counter::DropSource);
        bed.gateway.set_source_ranges(0, None);
        bed.open(net.client(1), net.vip());
    }
}

#[test]
fn ranges_of_the_other_family_let_nobody_in() {
    for net in Net::BOTH {
        let other = if net == Net::V4 { Net::V6 } else { Net::V4 };
        let mut bed = Bed::with_backends(net, 1);
        bed.gateway.set_source_ranges(0, Some(&[everything(other)]));
        bed.send(&Frame::tcp(net.client(1), net.vip(), SYN)).refuses(Counter::DropSource);
    }
}

#[test]
fn each_service_has_its_own_ranges() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 1);
        bed.gateway.set_source_ranges(0, Some(&[elsewhere(net)]));
        bed.gateway.set_source_ranges(1, Some(&[around(net)]));
        bed.send(&Frame::tcp(net.client(1), net.vip(), SYN)).refuses(Counter::DropSource);
        bed.open_udp(net.client(1), net.vip());
    }
}

#[test]
fn a_flow_outlives_the_range_that_let_it_in_but_its_port_begins_no_other() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 1);
        bed.gateway.set_source_ranges(0, Some(&[around(net)]));
        let flow = bed.establish(net.client(1), net.vip());
        bed.gateway.set_source_ranges(0, Some(&[elsewhere(net)]));
        bed.send(&flow.request(ACK)).sends(&[]).reaches_backend_of(&flow);
        bed.send(&flow.reply(ACK)).sends(&[]).reaches_client_of(&flow);
        bed.send(&flow.request(FIN | ACK)).sends(&[]);
        bed.send(&flow.reply(FIN | ACK)).sends(&[]);
        bed.send(&flow.request(SYN)).refuses(Counter::DropSource);
        bed.wait(seconds(61));
        crate::sweep::sweep_twice(&bed);
        bed.send(&flow.request(ACK)).refuses(Counter::DropSource);
    }
}

#[test]
fn a_datagram_whose_pod_is_gone_is_asked_again() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 1);
        let flow = bed.open_udp(net.client(1), net.vip());
        bed.gateway.set_source_ranges(1, Some(&[elsewhere(net)]));
        bed.send(&flow.datagram()).sends(&[]).reaches_backend_of(&flow);
        let member = bed.member_of(&flow);
        let flags = bed.gateway.member(member).flags | member_flags::DRAINING | member_flags::REMOVED;
        bed.gateway.set_member_flags(member, flags);
        bed.send(&flow.datagram()).refuses(Counter::DropSource);
    }
}

#[test]
fn a_reply_is_not_asked_where_it_comes_from() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 1);
        bed.gateway.set_source_ranges(0, Some(&[around(net)]));
        let flow = bed.open(net.client(1), net.vip());
        bed.accept(&flow);
    }
}

/// Of the first `length` bits, whether both have the same: the obvious way, on the number that an address is.
fn shares(a: IpAddr, b: IpAddr, length: u8) -> bool {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            length == 0 || u32::from(a) >> (32 - length) == u32::from(b) >> (32 - length)
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            length == 0 || u128::from(a) >> (128 - length) == u128::from(b) >> (128 - length)
        }
        _ => false,
    }
}

/// Addresses that often share their first bits, and always the first 8: a client can't have any.
fn address(net: Net) -> BoxedStrategy<IpAddr> {
    let bits = any::<u128>().prop_flat_map(|noise| (Just(noise), 8..=128_u32));
    bits.prop_map(move |(noise, keep)| {
        let noise = noise.checked_shr(keep).unwrap_or(0);
        match net {
            Net::V4 => IpAddr::from((0xc633_6400 ^ (noise >> 96) as u32).to_be_bytes()),
            Net::V6 => IpAddr::from((0x2001_0db8_u128 << 96 ^ noise).to_be_bytes()),
        }
    })
    .boxed()
}

fn ranges(net: Net) -> impl Strategy<Value = Vec<(IpAddr, u8)>> {
    let most = if net == Net::V4 { 32 } else { 128_u8 };
    prop::collection::vec((address(net), 0..=most), 0..20)
}

/// A family, the ranges of both services, and clients.
type World = (Net, [Vec<(IpAddr, u8)>; 2], Vec<IpAddr>);

fn world() -> impl Strategy<Value = World> {
    prop::sample::select(&Net::BOTH[..]).prop_flat_map(|net| {
        (Just(net), [ranges(net), ranges(net)], prop::collection::vec(address(net), 1..30))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 50, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn who_is_let_in_is_who_is_in_a_range((net, ranges, clients) in world()) {
        let silent = GatewayConfig { refusals_per_tick: 0, ..GatewayConfig::default() };
        let mut bed = Bed::sized(net, 1, &silent);
        for (service, ranges) in (0..).zip(&ranges) {
            bed.gateway.set_source_ranges(service, Some(ranges));
        }
        for (n, client) in (0..).zip(clients) {
            let client = (client, 20_000 + n).into();
            for (protocol, ranges) in [TCP, UDP].into_iter().zip(&ranges) {
                let frame = if protocol == TCP {
                    Frame::tcp(client, net.vip(), SYN)
                } else {
                    Frame::udp(client, net.vip())
                };
                let allowed = ranges.iter().any(|(network, length)| shares(*network, client.ip(), *length));
                let dropped = bed.gateway.maps.counter(Counter::DropSource);
                let (verdict, _) = bed.send_unchecked(&frame);
                let wanted = if allowed { Verdict::Transmit } else { Verdict::Drop };
                prop_assert_eq!(verdict, wanted, "{} in {:?}", client, ranges);
                let dropped = bed.gateway.maps.counter(Counter::DropSource) - dropped;
                prop_assert_eq!(dropped, u64::from(!allowed));
            }
        }
    }
}
