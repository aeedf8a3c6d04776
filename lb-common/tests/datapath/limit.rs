//! How many flows a client's network may begin.

use std::net::SocketAddr;

use lb_common::{
    abi::{ClientWord, Counter, LimitWord},
    datapath::Verdict,
    host::{ACK, Frame, SYN},
};

use crate::bed::{Bed, Net, seconds};

/// Ten flows a second.
const INTERVAL: u32 = 100_000_000;

fn limited(net: Net) -> Bed {
    let mut bed = Bed::with_backends(net, 3);
    bed.gateway.set_interval(0, INTERVAL);
    bed
}

/// A client of network `network`, host and port `n`.
fn client(net: Net, network: u16, n: u16) -> SocketAddr {
    let ip = net.ip([198, 51, (network >> 8) as u8, network as u8], [0x2001, 0xdb8, 7, network, 0, 0, 0, n]);
    (ip, 20_000 + n).into()
}

#[test]
fn a_network_begins_the_flows_of_a_second_at_once_and_then_one_by_one() {
    for net in Net::BOTH {
        let bed = limited(net);
        let flows: Vec<_> = (0..10).map(|n| bed.open(client(net, 1, n), net.vip())).collect();
        let one_more = Frame::tcp(client(net, 1, 10), net.vip(), SYN);
        bed.send(&one_more).drops(Counter::DropNewFlowLimit);
        // Those that are there go on, and others are not touched.
        flows.iter().for_each(|flow| bed.accept(flow));
        bed.open(client(net, 2, 0), net.vip());
        bed.wait(seconds(1) / 10);
        bed.send(&one_more).sends(&[Counter::FlowOpened]);
        bed.send(&Frame::tcp(client(net, 1, 11), net.vip(), SYN)).drops(Counter::DropNewFlowLimit);
        bed.wait(seconds(100));
        (20..30).for_each(|n| {
            bed.open(client(net, 1, n), net.vip());
        });
        bed.send(&Frame::tcp(client(net, 1, 30), net.vip(), SYN)).drops(Counter::DropNewFlowLimit);
    }
}

#[test]
fn a_network_is_as_large_as_its_service_says() {
    // Bits that don't count, and the addresses of one network and of its neighbour in the last word that has some.
    for (net, beyond, own, other) in [
        (Net::V4, 8, ["198.51.100.7", "198.51.100.250"], "198.51.101.7"),
        (Net::V4, 1, ["198.51.100.6", "198.51.100.7"], "198.51.100.8"),
        (Net::V4, 31, ["128.0.0.1", "223.255.255.254"], "100.0.0.1"),
        (Net::V6, 72, ["2001:db8:0:aa00::1", "2001:db8:0:aaff:1::1"], "2001:db8:0:ab00::1"),
        (Net::V6, 0, ["2001:db8::1", "2001:db8::1"], "2001:db8::2"),
        (Net::V6, 16, ["2001:db8::1", "2001:db8::ffff"], "2001:db8::1:1"),
        (Net::V6, 127, ["2001:db8::1", "3fff::1"], "9001::1"),
    ] {
        let mut bed = limited(net);
        bed.gateway.set_beyond(0, beyond ^ if net == Net::V4 { 0 } else { ClientWord::BEYOND_V6 });
        let at = |address: &str, port: u16| SocketAddr::new(address.parse().unwrap(), port);
        for n in 0..10_u16 {
            bed.open(at(own[usize::from(n % 2)], 2000 + n), net.vip());
        }
        for address in own {
            bed.send(&Frame::tcp(at(address, 3000), net.vip(), SYN)).drops(Counter::DropNewFlowLimit);
        }
        let others = Frame::tcp(at(other, 3000), net.vip(), SYN);
        let counted = bed.gateway.maps.counter(Counter::DropNewFlowLimit);
        bed.send_unchecked(&others);
        assert_eq!(
            bed.gateway.maps.counter(Counter::DropNewFlowLimit),
            counted,
            "{other} is another network"
        );
    }
}

#[test]
fn services_are_limited_each_by_itself() {
    for net in Net::BOTH {
        let bed = limited(net);
        for n in 0..40 {
            let verdict = bed.send_unchecked(&Frame::tcp(client(net, 1, n), net.vip(), SYN)).0;
            assert_eq!(verdict == Verdict::Transmit, n < 10, "flow {n}");
            bed.open_udp(client(net, 1, n), net.vip());
        }
    }
}

#[test]
fn what_begins_no_flow_uses_nothing_up() {
    for net in Net::BOTH {
        let bed = limited(net);
        for n in 0..40 {
            bed.send(&Frame::tcp(client(net, 1, n), net.vip(), ACK)).refuses(Counter::DropNotSyn);
        }
        let flow = bed.open(client(net, 1, 0), net.vip());
        for _ in 0..40 {
            bed.send(&Frame::tcp(flow.client, flow.vip, SYN)).sends(&[]).reaches_backend_of(&flow);
        }
        (1..10).for_each(|n| {
            bed.open(client(net, 1, n), net.vip());
        });
    }
}

#[test]
fn networks_that_come_once_do_not_make_one_that_floods_forgotten() {
    let net = Net::V4;
    let bed = limited(net);
    let mut opened = 0;
    for n in 0..20_000_u32 {
        let flood = Frame::tcp(client(net, 1, n as u16), net.vip(), SYN);
        opened += u32::from(bed.send_unchecked(&flood).0 == Verdict::Transmit);
        let [_, a, b, c] = n.to_be_bytes();
        let other = Frame::tcp(([10, a + 1, b, c], 9).into(), net.vip(), SYN);
        bed.send_unchecked(&other);
    }
    let denied = bed.gateway.maps.counter(Counter::DropNewFlowLimit);
    assert!(opened <= 20 && denied >= 19_980, "{opened} let in, {denied} not");
}

#[test]
fn what_was_written_long_ago_limits_nobody() {
    let word = LimitWord::new(7 << 48, 5_000_000_000);
    assert!(word.is_of(7 << 48 | 1) && !word.is_of(6 << 48));
    assert_eq!(word.ahead(4_500_000_000), 500_000_000);
    for later in [1, 1 << 20, 1 << 47, (1 << 48) - (3 << 30)] {
        assert_eq!(word.ahead(5_000_000_000 + later), 0, "{later} ns later");
    }
}
