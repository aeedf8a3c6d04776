//! Passes over tables that the packet program itself has filled.

use std::net::SocketAddr;

use lb_common::abi::{CloseReason, Counter, Member, PortBitmap, UDP};
use lb_common::clock;
use lb_common::datapath::Verdict;
use lb_common::host::{Frame, Gateway, GatewayConfig, HostPacket, Seen as Frames, fragments, ledger};

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

/// Sends a frame by the router with this number; what leaves, if anything does.
fn by_router(gateway: &Gateway, frame: &Frame, router: u16) -> Option<Frames> {
    let [high, low] = router.to_be_bytes();
    let frame = frame.clone().macs([2, 0, 0, 7, high, low], [2, 0, 0, 0, 0, 9]);
    let mut packet = HostPacket::new(&frame.build());
    (gateway.maps.cpu(0).process(&mut packet) == Verdict::Transmit)
        .then(|| Frames::parse(packet.bytes()).expect("a frame"))
}

#[test]
fn a_fragment_of_a_flow_that_is_gone_still_leaves_by_its_flows_last_hop() {
    let gateway = gateway();
    let vip: SocketAddr = "203.0.113.10:53".parse().unwrap();
    let client: SocketAddr = "198.51.100.7:40000".parse().unwrap();
    let seen = by_router(&gateway, &Frame::udp(client, vip), 1).expect("forwarded");
    let mut swept = Swept::new(&gateway);
    // The flow is an old one when a large answer begins.
    for _ in 0..20 {
        gateway.maps.advance_clock(3 * SECOND);
        by_router(&gateway, &Frame::udp(client, vip), 1).expect("forwarded");
        swept.pass(1000);
    }
    let answer = Frame::udp(seen.destination, seen.source).payload(&[7; 2000]);
    let [first, last] = &fragments(&answer, 9, 1440)[..] else { panic!("two fragments") };
    let process = |frame: &[u8]| {
        let mut packet = HostPacket::new(frame);
        (gateway.maps.cpu(0).process(&mut packet), packet)
    };
    assert_eq!(process(first).0, Verdict::Transmit);
    // Its backend goes, and all its flows with it.
    swept.orders.send_replace(Orders { applied: 0, unwanted: Arc::new([1, 2].into()) });
    for _ in 0..8 {
        swept.pass(1000);
        gateway.maps.advance_clock(3 * SECOND);
    }
    assert!(ledger::forwards(&gateway.maps).is_empty());
    // Routers enough to take every free place.
    for router in 2..4000 {
        let other = SocketAddr::from(([198, 51, 100, 8], 40_000 + router));
        by_router(&gateway, &Frame::udp(other, vip), router);
    }
    assert!(gateway.maps.counter(Counter::DropLastHopsFull) > 0);
    let (verdict, packet) = process(last);
    assert_eq!(verdict, Verdict::Transmit);
    assert_eq!(packet.bytes()[..6], [2, 0, 0, 7, 0, 1], "to the router that the request came by");
    // In the end all go.
    for _ in 0..20 {
        gateway.maps.advance_clock(5 * SECOND);
        swept.pass(1000);
    }
    let used = (0..LAST_HOPS).filter(|hop| gateway.maps.last_hops.read::<[u64; 4]>(*hop)[0] & 3 != 0);
    assert_eq!(used.count(), 0);
}
