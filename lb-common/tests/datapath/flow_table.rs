//! The flow table: who has to make room for whom, and that a key is in it once.

use std::collections::BTreeSet;

use lb_common::{
    abi::{Counter, EventKind, FlowState, FlowWord, VERSION_MASK},
    datapath::Verdict,
    host::{ACK, FIN, Frame, GatewayConfig, HostPacket, RST, SYN},
};

use crate::bed::{Bed, Flow, Net, seconds};

/// A table of one bucket: four ways.
fn tiny(net: Net) -> Bed {
    let mut settings = GatewayConfig::default();
    settings.sizes.flow_buckets = 1;
    Bed::sized(net, 1, &settings)
}

fn syn(net: Net, n: u32) -> Frame {
    Frame::tcp(net.client(n), net.vip(), SYN)
}

fn close(bed: &Bed, flow: &Flow) {
    bed.send(&flow.request(FIN | ACK)).sends(&[]);
    bed.send(&flow.reply(FIN | ACK)).sends(&[]);
    assert_eq!(bed.state(flow), Some(FlowState::Closed));
}

#[test]
fn half_open_flows_hold_half_a_bucket_and_the_oldest_goes_first() {
    for net in Net::BOTH {
        let bed = tiny(net);
        let first = bed.open(net.client(1), net.vip());
        bed.wait(seconds(1));
        let second = bed.open_udp(net.client(2), net.vip());
        bed.wait(seconds(1));
        let third = bed.begin(&syn(net, 3), 6, &[Counter::FlowDisplaced, Counter::FlowOpened]);
        assert_eq!(
            (bed.state(&first), bed.state(&second), bed.state(&third)),
            (None, Some(FlowState::UdpNew), Some(FlowState::SynSent))
        );
        bed.send(&first.reply(SYN | ACK)).passes(Counter::PassNoFlow);
        assert_eq!(bed.flows(), 2);
    }
}

#[test]
fn a_flood_of_half_open_flows_moves_no_established_one() {
    for net in Net::BOTH {
        let bed = tiny(net);
        let flows = [1, 2].map(|n| bed.establish(net.client(n), net.vip()));
        for n in 10..60 {
            bed.send_unchecked(&syn(net, n));
        }
        bed.check();
        for flow in &flows {
            bed.send(&flow.request(ACK)).sends(&[]).reaches_backend_of(flow);
            bed.send(&flow.reply(ACK)).sends(&[]).reaches_client_of(flow);
        }
    }
}

#[test]
fn a_bucket_of_live_flows_is_full() {
    for net in Net::BOTH {
        let bed = tiny(net);
        let flows = [1, 2, 3, 4].map(|n| bed.establish(net.client(n), net.vip()));
        let _ = bed.gateway.maps.take_events();
        bed.send(&syn(net, 5)).drops(Counter::DropTableFull);
        bed.send(&Frame::udp(net.client(5), net.vip())).drops(Counter::DropTableFull);
        let events = bed.gateway.maps.take_events();
        assert_eq!(
            events.iter().map(|event| event.kind).collect::<Vec<_>>(),
            [EventKind::TableFull as u8; 2]
        );
        for flow in &flows {
            bed.send(&flow.request(ACK)).sends(&[]).reaches_backend_of(flow);
        }
    }
}

#[test]
fn half_closed_and_reset_flows_are_live() {
    let net = Net::V4;
    let bed = tiny(net);
    let flows = [1, 2, 3, 4].map(|n| bed.establish(net.client(n), net.vip()));
    bed.send(&flows[0].request(FIN | ACK)).sends(&[]);
    bed.send(&flows[1].reply(FIN | ACK)).sends(&[]);
    bed.send(&flows[2].request(RST)).sends(&[]);
    bed.send(&flows[3].reply(RST)).sends(&[]);
    bed.send(&syn(net, 5)).drops(Counter::DropTableFull);
}

#[test]
fn the_oldest_closed_flow_makes_room() {
    for net in Net::BOTH {
        let bed = tiny(net);
        let flows = [1, 2, 3, 4].map(|n| bed.establish(net.client(n), net.vip()));
        close(&bed, &flows[2]);
        bed.wait(seconds(1));
        close(&bed, &flows[1]);
        let new = bed.begin(&syn(net, 5), 6, &[Counter::FlowReclaimed, Counter::FlowOpened]);
        assert_eq!((bed.state(&flows[2]), bed.state(&flows[1])), (None, Some(FlowState::Closed)));
        bed.accept(&new);
    }
}

#[test]
fn an_expired_flow_makes_room_once_both_sides_are_idle() {
    for net in Net::BOTH {
        let bed = tiny(net);
        let flows = [1, 2, 3, 4].map(|n| bed.establish(net.client(n), net.vip()));
        bed.wait(seconds(3500));
        flows.iter().for_each(|flow| drop(bed.send(&flow.reply(ACK)).sends(&[])));
        bed.wait(seconds(200));
        // Every client is silent for longer than the timeout, but no backend is.
        bed.send(&syn(net, 5)).drops(Counter::DropTableFull);
        flows.iter().for_each(|flow| drop(bed.send(&flow.reply(ACK)).sends(&[])));
        bed.wait(seconds(3700));
        flows[1..].iter().for_each(|flow| drop(bed.send(&flow.request(ACK)).sends(&[])));
        let new = bed.begin(&syn(net, 5), 6, &[Counter::FlowReclaimed, Counter::FlowOpened]);
        assert_eq!(bed.state(&flows[0]), None);
        bed.accept(&new);
    }
}

#[test]
fn an_expired_half_open_flow_is_reclaimed_not_displaced() {
    for net in Net::BOTH {
        let bed = tiny(net);
        bed.open(net.client(1), net.vip());
        let answered = bed.open(net.client(2), net.vip());
        bed.wait(seconds(12));
        // What a server repeats must not keep it.
        bed.send(&answered.reply(SYN | ACK)).sends(&[]);
        bed.begin(&syn(net, 3), 6, &[Counter::FlowReclaimed, Counter::FlowOpened]);
        bed.begin(&syn(net, 4), 6, &[Counter::FlowReclaimed, Counter::FlowOpened]);
    }
}

#[test]
fn with_the_quota_used_up_a_half_open_flow_goes_before_a_closed_one() {
    let net = Net::V4;
    let bed = tiny(net);
    let closed = bed.refuse(net.client(1), net.vip());
    bed.open(net.client(2), net.vip());
    bed.open(net.client(3), net.vip());
    bed.begin(&syn(net, 4), 6, &[Counter::FlowDisplaced, Counter::FlowOpened]);
    assert_eq!(bed.state(&closed), Some(FlowState::Closed));
}

#[test]
fn a_table_at_half_load_refuses_nobody() {
    for net in Net::BOTH {
        let mut settings = GatewayConfig::default();
        settings.sizes.flow_buckets = 1024;
        settings.sizes.reverse_v4_buckets = 2048;
        settings.sizes.reverse_v6_buckets = 2048;
        let bed = Bed::sized(net, 4, &settings);
        let refused =
            (0..2048).filter(|n| bed.establish_unchecked(net.client(*n), net.vip()).is_none()).count();
        assert_eq!(refused, 0, "the less loaded bucket gets the flow");
        bed.check();
    }
}

#[test]
fn a_held_lock_drops_the_new_flow_and_nothing_else() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let flow = bed.establish(net.client(1), net.vip());
        let maps = &bed.gateway.maps;
        (0..maps.locks.len()).for_each(|lock| maps.locks.write(lock, &1_u64));
        let before = maps.counts();
        assert_eq!(bed.send_unchecked(&syn(net, 2)).0, Verdict::Drop);
        let mut expected = before;
        expected[Counter::DropInsertContended as usize] += 1;
        assert_eq!(maps.counts(), expected);
        assert_eq!(bed.send_unchecked(&flow.request(ACK)).0, Verdict::Transmit);
        assert_eq!(bed.send_unchecked(&flow.reply(ACK)).0, Verdict::Transmit);
        assert_eq!(maps.counts(), expected);
        (0..maps.locks.len()).for_each(|lock| maps.locks.write(lock, &0_u64));
        bed.open(net.client(2), net.vip());
    }
}

#[test]
fn slots_are_reused_far_beyond_the_range_of_versions() {
    for net in Net::BOTH {
        let bed = tiny(net);
        let mut previous: Option<Flow> = None;
        for n in 0..2500 {
            let (verdict, packet) = bed.send_unchecked(&syn(net, n));
            assert_eq!(verdict, Verdict::Transmit);
            let seen = lb_common::host::Seen::parse(packet.bytes()).unwrap();
            let flow = Flow {
                protocol: 6,
                client: net.client(n),
                vip: net.vip(),
                snat: seen.source,
                backend: seen.destination,
            };
            let refusal = bed.send_unchecked(&flow.reply(RST | ACK));
            let back = lb_common::host::Seen::parse(refusal.1.bytes()).unwrap();
            assert_eq!((refusal.0, back.destination), (Verdict::Transmit, flow.client));
            if let Some(previous) = previous {
                assert_ne!(previous.snat, flow.snat);
            }
            previous = Some(flow);
        }
        bed.check();
    }
}

#[test]
fn processors_that_race_for_the_same_flows_make_each_once() {
    for net in Net::BOTH {
        let mut settings = GatewayConfig::default();
        settings.sizes.flow_buckets = 16_384;
        settings.sizes.reverse_v4_buckets = 4096;
        settings.sizes.reverse_v6_buckets = 4096;
        settings.sizes.cpus = 4;
        let bed = Bed::sized(net, 4, &settings);
        let count = 2000;
        let ends: Vec<Vec<_>> = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..4)
                .map(|cpu| {
                    let maps = &bed.gateway.maps;
                    scope.spawn(move || {
                        (0..count)
                            .map(|n| {
                                let datagram = Frame::udp(net.client(n), net.vip());
                                let mut packet = HostPacket::new(&datagram.build());
                                let verdict = maps.cpu(cpu).process(&mut packet);
                                let seen = lb_common::host::Seen::parse(packet.bytes()).unwrap();
                                (verdict == Verdict::Transmit).then_some((seen.source, seen.destination))
                            })
                            .collect()
                    })
                })
                .collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).collect()
        });
        bed.check();
        let maps = &bed.gateway.maps;
        assert_eq!(maps.counter(Counter::FlowOpened), bed.flows() as u64);
        for n in 0..count as usize {
            let mut paths: Vec<_> = ends.iter().filter_map(|ends| ends[n]).collect();
            paths.dedup();
            assert!(paths.len() <= 1, "client {n} went {paths:?}");
        }
    }
}

#[test]
fn a_tag_of_another_incarnation_of_its_slot_matches_no_word() {
    let masked: BTreeSet<_> = (0..=VERSION_MASK)
        .map(|version| FlowWord::new(FlowState::Established, version).masked_tag(0x1234_5678_9abc))
        .collect();
    assert_eq!(masked.len(), usize::from(VERSION_MASK) + 1);
}
