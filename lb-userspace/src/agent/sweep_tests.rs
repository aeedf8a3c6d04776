//! Passes over tables that the packet program itself has filled.

use std::net::SocketAddr;

use lb_common::abi::{CloseReason, Member, PortBitmap, UDP};
use lb_common::clock;
use lb_common::datapath::Verdict;
use lb_common::host::{Frame, Gateway, GatewayConfig, HostPacket, ledger};

use super::*;

const SECOND: u64 = 1_000_000_000;

/// A gateway with a UDP service on members 1 and 2, whose flows expire after 10 s.
fn gateway() -> Gateway {
    let mut gateway = Gateway::new(&GatewayConfig::default(), 7);
    gateway.maps.set_clock(1000 * SECOND);
    let backends: [SocketAddr; 2] = ["10.0.0.1:53".parse().unwrap(), "10.0.0.2:53".parse().unwrap()];
    gateway.add_service("203.0.113.10:53".parse().unwrap(), UDP, &backends);
    gateway
}

/// So many clients each send one datagram.
fn flows(gateway: &Gateway, count: u16) {
    for port in 0..count {
        let client = SocketAddr::from(([198, 51, 100, 7], 40_000 + port));
        let frame = Frame::udp(client, "203.0.113.10:53".parse().unwrap());
        assert_eq!(gateway.maps.cpu(0).process(&mut HostPacket::new(&frame.build())), Verdict::Transmit);
    }
}

struct Swept<'a> {
    gateway: &'a Gateway,
    sweep: Sweep,
    orders: watch::Sender<Orders>,
}

impl<'a> Swept<'a> {
    fn new(gateway: &'a Gateway) -> Self {
        let orders = watch::channel(Orders::default()).0;
        Self { gateway, sweep: Sweep::new(Orders::default()), orders }
    }

    /// Why flows have ended since the last call, each with its client's port.
    fn ended(&mut self) -> Vec<(CloseReason, Option<u16>)> {
        let port = |client: Client| u16::from_be_bytes(client.port);
        let mut ended: Vec<_> =
            self.sweep.take_ended().map(|ended| (ended.reason, ended.client.map(port))).collect();
        ended.sort_by_key(|(_, port)| *port);
        ended
    }

    /// A whole pass in chunks of this size, and the number of chunks.
    fn pass(&mut self, chunk: u32) -> (Pass, u32) {
        let maps = &self.gateway.maps;
        let (tables, config) = (maps.cpu(0), maps.config.expect("settings"));
        let (receiver, now) = (self.orders.subscribe(), clock::tick(maps.clock()));
        for chunks in 1..1_000_000 {
            if let Some(pass) = self.sweep.advance(&tables, &config, now, chunk, &receiver) {
                return (pass, chunks);
            }
        }
        panic!("the pass does not end");
    }
}

#[test]
fn a_pass_counts_the_same_flows_whatever_the_size_of_its_chunks() {
    let gateway = gateway();
    flows(&gateway, 100);
    let mut swept = Swept::new(&gateway);
    let (whole, chunks) = swept.pass(u32::MAX);
    assert_eq!(chunks, 1);
    assert_eq!(whole.states[FlowState::UdpNew as usize], 100);
    assert_eq!(whole.usage.flows.values().sum::<u64>(), 100);
    assert_eq!(whole.usage.flows.len(), 2, "both members have some");
    assert_eq!(whole.usage.busy_backends.len(), 2);
    let (small, chunks) = swept.pass(10);
    assert!(chunks > 50, "{chunks}");
    assert_eq!(small, whole);
}

#[test]
fn an_expired_flow_goes_in_the_second_pass_and_frees_its_backend() {
    let gateway = gateway();
    flows(&gateway, 20);
    gateway.maps.advance_clock(11 * SECOND);
    let mut swept = Swept::new(&gateway);
    assert_eq!(swept.pass(100).0.evicted, 0, "the first pass only marks");
    assert_eq!(swept.pass(100).0.evicted, 20);
    let (after, _) = swept.pass(100);
    assert_eq!(after.usage, FlowUsage::default());
    ledger::check(&gateway.maps).expect("nothing is left half done");
    assert!(ledger::taken_ports(&gateway.maps).is_empty());
}

#[test]
fn flows_of_an_unwanted_member_go_at_once_and_others_stay() {
    let gateway = gateway();
    flows(&gateway, 100);
    let mut swept = Swept::new(&gateway);
    let of_first = swept.pass(100).0.usage.flows[&1];
    swept.orders.send_replace(Orders { applied: 3, unwanted: Arc::new([1].into()) });
    assert_eq!(swept.pass(100).0.evicted, of_first);
    let (after, _) = swept.pass(100);
    assert_eq!(after.usage.flows.get(&1), None);
    assert_eq!(after.usage.flows[&2], 100 - of_first);
    assert_eq!(after.usage.applied, 3, "the pass began after that plan had been applied");
}

#[test]
fn a_member_that_comes_back_within_a_pass_keeps_its_flows() {
    let gateway = gateway();
    flows(&gateway, 100);
    let mut swept = Swept::new(&gateway);
    swept.orders.send_replace(Orders { applied: 0, unwanted: Arc::new([1, 2].into()) });
    swept.pass(u32::MAX);
    flows(&gateway, 100);
    swept.orders.send_replace(Orders::default());
    assert_eq!(swept.pass(100).0.evicted, 0);
}

#[test]
fn a_port_that_nobody_has_is_given_back_in_the_second_pass() {
    let gateway = gateway();
    let config = gateway.maps.config.expect("settings");
    let mut bitmap: PortBitmap = gateway.maps.ports.read(config.snat_stride);
    bitmap.words[3] = 1 << 5;
    gateway.maps.ports.write(config.snat_stride, &bitmap);
    let mut swept = Swept::new(&gateway);
    let (first, _) = swept.pass(100);
    assert_eq!((first.mended, first.usage.busy_backends.contains(&1)), (0, true));
    let (second, _) = swept.pass(100);
    assert_eq!((second.mended, second.usage.busy_backends.contains(&1)), (1, false));
}

#[test]
fn an_expired_flow_is_told_with_its_client_and_how_long_it_was_idle() {
    let gateway = gateway();
    flows(&gateway, 3);
    gateway.maps.advance_clock(11 * SECOND);
    let mut swept = Swept::new(&gateway);
    swept.pass(100);
    assert_eq!(swept.ended(), []);
    swept.pass(100);
    let idle: Vec<u16> = swept.sweep.seen.ended.iter().map(|ended| ended.idle).collect();
    assert!(idle.iter().all(|idle| (40..=42).contains(idle)), "eleven seconds in ticks: {idle:?}");
    assert_eq!(swept.ended(), [40_000, 40_001, 40_002].map(|port| (CloseReason::Timeout, Some(port))));
    swept.pass(100);
    assert_eq!(swept.ended(), []);
}

#[test]
fn flows_of_an_unwanted_member_end_because_their_backend_does() {
    let gateway = gateway();
    flows(&gateway, 20);
    let mut swept = Swept::new(&gateway);
    swept.orders.send_replace(Orders { applied: 0, unwanted: Arc::new([1, 2].into()) });
    swept.pass(100);
    let all: Vec<_> = (0..20).map(|n| (CloseReason::BackendRemoved, Some(40_000 + n))).collect();
    assert_eq!(swept.ended(), all);
}

#[test]
fn a_flow_whose_member_is_gone_already_is_told_with_its_client_all_the_same() {
    let gateway = gateway();
    flows(&gateway, 20);
    for index in [1, 2] {
        let Member { generation, .. } = gateway.member(index);
        gateway.maps.members.write(index, &Member { generation, ..Member::default() });
    }
    let mut swept = Swept::new(&gateway);
    swept.pass(10);
    let all: Vec<_> = (0..20).map(|n| (CloseReason::BackendRemoved, Some(40_000 + n))).collect();
    assert_eq!(swept.ended(), all);
}
