//! The flow log: which flows it hears of, what it counts of them, and why they end.

use std::collections::BTreeSet;

use lb_common::{
    abi::{
        CloseReason, Counter, Event, EventKind, FlowLogWord, FlowOwner, FlowRef, FlowStats, FlowWord, UDP,
        member_flags,
    },
    clock::TICK_NS,
    host::{ACK, FIN, Frame, GatewayConfig, RST, SYN, Sizes, ledger},
};

use crate::{
    bed::{Bed, Flow, Net, seconds},
    sweep::sweep_twice,
};

fn events(bed: &Bed, kind: EventKind) -> Vec<Event> {
    let all = bed.gateway.maps.take_events().into_iter();
    all.filter(|event| event.kind == kind as u8).collect()
}

/// Reason, client's port and idle ticks of what ended.
fn ends(bed: &Bed) -> Vec<(Option<CloseReason>, u16, u32)> {
    let ended = events(bed, EventKind::Closed).into_iter();
    ended
        .map(|event| {
            let port = u16::from_be_bytes(event.client_port);
            (CloseReason::from_bits(event.reason), port, event.detail)
        })
        .collect()
}

/// Slots and versions.
fn named(events: &[Event]) -> BTreeSet<(u32, u16)> {
    events.iter().map(|event| (event.slot, event.version)).collect()
}

/// A gateway whose flow table is one bucket.
fn cramped(net: Net, backends: u8) -> Bed {
    let default = GatewayConfig::default();
    let sizes = Sizes { flow_buckets: 1, ..default.sizes };
    Bed::sized(net, backends, &GatewayConfig { sizes, ..default })
}

/// Counts the flows of all members.
fn count(bed: &mut Bed, members: u32) {
    for member in 1..=members {
        let flags = bed.gateway.member(member).flags | member_flags::COUNTED;
        bed.gateway.set_member_flags(member, flags);
    }
}

/// What is counted of a flow; `None`: nothing.
fn stats(bed: &Bed, flow: FlowRef) -> Option<FlowStats> {
    let found: FlowStats = bed.gateway.maps.flow_stats.read(flow.slot & bed.config().flow_stats_mask);
    (FlowOwner(found.owner).flow() == Some(flow)).then_some(found)
}

fn slot_of(bed: &Bed, flow: &Flow) -> FlowRef {
    let word: FlowWord = bed.word(flow).expect("a live flow");
    let entries = ledger::forwards(&bed.gateway.maps);
    entries.into_iter().find(|entry| entry.word == word).expect("an entry").flow
}

#[test]
fn one_flow_in_n_is_noted_from_its_beginning_to_its_end() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 3);
        let word = FlowLogWord::one_in(4);
        bed.gateway.set_flow_log(0, word);
        let flows: Vec<Flow> = (0..80).map(|n| bed.establish(net.client(n), net.vip())).collect();
        let forwards = ledger::forwards(&bed.gateway.maps);
        let wanted: BTreeSet<_> = forwards
            .iter()
            .filter(|entry| word.notes(entry.tag))
            .map(|entry| (entry.flow.slot, entry.flow.version))
            .collect();
        assert!((8..=36).contains(&wanted.len()), "{}", wanted.len());
        assert_eq!(named(&events(&bed, EventKind::Opened)), wanted);
        for (n, flow) in flows.iter().enumerate() {
            let mut last = [flow.request(FIN | ACK), flow.reply(FIN | ACK)];
            if n % 2 == 0 {
                last.reverse();
            }
            last.iter().for_each(|segment| drop(bed.send(segment).sends(&[])));
        }
        assert_eq!(named(&events(&bed, EventKind::Closed)), wanted);
        // The other service is noted whole.
        let udp: Vec<Flow> = (0..20).map(|n| bed.open_udp(net.client(n), net.vip())).collect();
        assert_eq!(events(&bed, EventKind::Opened).len(), udp.len());
    }
}

#[test]
fn the_flow_log_leaves_room_for_what_the_agent_must_hear() {
    let net = Net::V4;
    let limits = GatewayConfig { flow_events_per_tick: 3, events_per_tick: 4, ..GatewayConfig::default() };
    let sizes = Sizes { flow_buckets: 1, ..limits.sizes };
    let bed = Bed::sized(net, 1, &GatewayConfig { sizes, ..limits });
    for n in 0..4 {
        let counters = if n < 3 { &[][..] } else { &[Counter::FlowEventLost] };
        let flow = bed.begin(
            &Frame::tcp(net.client(n), net.vip(), SYN),
            6,
            &[&[Counter::FlowOpened], counters].concat(),
        );
        bed.accept(&flow);
    }
    let full = |n, counters: &[Counter]| {
        let step = bed.send(&Frame::tcp(net.client(n), net.vip(), SYN));
        step.expect(lb_common::datapath::Verdict::Drop, counters);
    };
    full(10, &[Counter::DropTableFull]);
    full(11, &[Counter::DropTableFull, Counter::EventLost]);
    let kinds: Vec<u8> = bed.gateway.maps.take_events().iter().map(|event| event.kind).collect();
    let opened = EventKind::Opened as u8;
    assert_eq!(kinds, [opened, opened, opened, EventKind::TableFull as u8]);
    bed.gateway.maps.advance_clock(TICK_NS);
    full(12, &[Counter::DropTableFull]);
}

#[test]
fn bytes_and_packets_are_counted_where_the_member_says_so() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 1);
        let plain = bed.establish(net.client(1), net.vip());
        assert_eq!(stats(&bed, slot_of(&bed, &plain)), None);
        count(&mut bed, 2);
        bed.send(&plain.request(ACK)).sends(&[]);
        assert_eq!(stats(&bed, slot_of(&bed, &plain)), None, "it began before");
        let opened = bed.gateway.maps.clock();
        let flow = bed.open(net.client(2), net.vip());
        bed.wait(seconds(1));
        bed.accept(&flow);
        let request = flow.request(ACK).payload(&[7; 100]);
        let reply = flow.reply(ACK).payload(&[8; 1000]);
        for frame in [&request, &reply, &reply] {
            bed.send(frame).sends(&[]);
        }
        let length = |frame: &Frame| frame.build().len() as u64;
        let found = stats(&bed, slot_of(&bed, &flow)).expect("it is counted");
        let syn = length(&Frame::tcp(net.client(2), net.vip(), SYN));
        let expected = FlowStats {
            opened,
            packets_in: 3,
            bytes_in: syn + length(&flow.request(ACK)) + length(&request),
            packets_out: 3,
            bytes_out: length(&flow.reply(SYN | ACK)) + 2 * length(&reply),
            ..found
        };
        assert_eq!(found, expected);
    }
}

#[test]
fn a_flow_that_is_not_noted_is_not_counted() {
    let mut bed = Bed::with_backends(Net::V4, 1);
    count(&mut bed, 2);
    let word = FlowLogWord::one_in(3);
    bed.gateway.set_flow_log(0, word);
    for n in 0..30 {
        bed.establish(Net::V4.client(n), Net::V4.vip());
    }
    for entry in ledger::forwards(&bed.gateway.maps) {
        assert_eq!(stats(&bed, entry.flow).is_some(), word.notes(entry.tag));
    }
}

#[test]
fn nobody_is_given_the_numbers_of_a_stranger() {
    let net = Net::V4;
    let default = GatewayConfig::default();
    let sizes = Sizes { flow_stats: 1, ..default.sizes };
    let mut bed = Bed::sized(net, 1, &GatewayConfig { sizes, ..default });
    count(&mut bed, 2);
    let first = bed.establish(net.client(1), net.vip());
    let first_slot = slot_of(&bed, &first);
    let counted = stats(&bed, first_slot).expect("who comes first is counted");
    let counters = [Counter::FlowOpened, Counter::FlowUncounted];
    let second = bed.begin(&Frame::tcp(net.client(2), net.vip(), SYN), 6, &counters);
    bed.accept(&second);
    let second_slot = slot_of(&bed, &second);
    assert_eq!(stats(&bed, second_slot), None);
    assert_eq!(stats(&bed, first_slot), Some(counted), "the second one's packets are not the first's");

    bed.send(&first.request(FIN | ACK)).sends(&[]);
    bed.send(&first.reply(FIN | ACK)).sends(&[]);
    let third = bed.open(net.client(3), net.vip());
    assert_eq!(stats(&bed, first_slot), None, "its place is another's");
    assert_eq!(stats(&bed, slot_of(&bed, &third)).map(|stats| stats.packets_in), Some(1));
    bed.send(&first.request(ACK)).sends(&[]);
    assert_eq!(stats(&bed, slot_of(&bed, &third)).map(|stats| stats.packets_in), Some(1));
}

#[test]
fn a_recycled_slot_begins_at_nothing() {
    let net = Net::V6;
    let mut bed = cramped(net, 1);
    count(&mut bed, 2);
    let mut slots = BTreeSet::new();
    for n in 0..6 {
        bed.wait(seconds(1));
        let flow = bed.establish(net.client(n), net.vip());
        let slot = slot_of(&bed, &flow);
        let stats = stats(&bed, slot).expect("it is counted");
        assert_eq!((stats.packets_in, stats.packets_out), (2, 1));
        bed.send(&flow.request(FIN | ACK)).sends(&[]);
        bed.send(&flow.reply(FIN | ACK)).sends(&[]);
        slots.insert(slot.slot);
        let later = seconds(61);
        bed.wait(later);
        sweep_twice(&bed);
    }
    assert!(slots.len() < 6, "four slots for six flows");
}

#[test]
fn a_half_open_flow_that_makes_room_is_evicted() {
    for net in Net::BOTH {
        let bed = cramped(net, 1);
        for n in 0..2 {
            bed.open(net.client(n), net.vip());
            bed.wait(seconds(1));
        }
        let _ = bed.gateway.maps.take_events();
        let frame = Frame::tcp(net.client(2), net.vip(), SYN);
        bed.begin(&frame, 6, &[Counter::FlowOpened, Counter::FlowDisplaced]);
        let [(reason, port, idle)] = ends(&bed)[..] else { panic!("one end") };
        assert_eq!((reason, port), (Some(CloseReason::Evicted), net.client(0).port()));
        assert!((7..=8).contains(&idle), "two seconds in ticks: {idle}");
    }
}

#[test]
fn an_expired_flow_that_makes_room_has_timed_out_and_one_with_a_rst_was_reset() {
    for net in Net::BOTH {
        for reset in [false, true] {
            let bed = cramped(net, 1);
            let flows: Vec<Flow> = (0..4).map(|n| bed.establish(net.client(n), net.vip())).collect();
            bed.wait(seconds(1));
            if reset {
                bed.send(&flows[2].reply(RST)).sends(&[]);
            }
            bed.wait(seconds(if reset { 11 } else { 3601 }));
            let _ = bed.gateway.maps.take_events();
            let frame = Frame::tcp(net.client(9), net.vip(), SYN);
            bed.begin(&frame, 6, &[Counter::FlowOpened, Counter::FlowReclaimed]);
            let [(reason, port, idle)] = ends(&bed)[..] else { panic!("one end") };
            if reset {
                assert_eq!((reason, port), (Some(CloseReason::Reset), net.client(2).port()));
                // Eleven seconds since the RST, which came from the backend.
                assert!((40..=42).contains(&idle), "{idle}");
            } else {
                assert_eq!(reason, Some(CloseReason::Timeout));
                assert!((13_415..=13_420).contains(&idle), "{idle}");
            }
        }
    }
}

#[test]
fn a_closed_flow_that_makes_room_has_been_told_before() {
    let net = Net::V4;
    let bed = cramped(net, 1);
    for n in 0..4 {
        let flow = bed.establish(net.client(n), net.vip());
        bed.send(&flow.request(FIN | ACK)).sends(&[]);
        bed.send(&flow.reply(FIN | ACK)).sends(&[]);
    }
    assert_eq!(ends(&bed).len(), 4);
    bed.begin(&Frame::tcp(net.client(9), net.vip(), SYN), 6, &[Counter::FlowOpened, Counter::FlowReclaimed]);
    // The same client's new connection in place of its old one.
    let again = Frame::tcp(net.client(9), net.vip(), SYN);
    bed.send(&again).sends(&[]);
    assert_eq!(ends(&bed), []);
}

#[test]
fn a_new_connection_in_place_of_one_that_was_reset_ends_that() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let flow = bed.establish(net.client(1), net.vip());
        bed.send(&flow.reply(RST)).sends(&[]);
        let _ = bed.gateway.maps.take_events();
        let frame = Frame::tcp(net.client(1), net.vip(), SYN);
        bed.begin(&frame, 6, &[Counter::FlowOpened, Counter::FlowReclaimed]);
        assert_eq!(ends(&bed), [(Some(CloseReason::Reset), net.client(1).port(), 0)]);
    }
}

#[test]
fn a_datagram_that_leaves_a_removed_backend_ends_its_flow() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 2);
        let flow = bed.open_udp(net.client(1), net.vip());
        let member = bed.member_of(&flow);
        let line = bed.gateway.member(member);
        bed.gateway.set_member_flags(member, line.flags | member_flags::REMOVED);
        let _ = bed.gateway.maps.take_events();
        bed.begin(&flow.datagram(), UDP, &[Counter::FlowOpened, Counter::FlowReclaimed]);
        assert_eq!(ends(&bed), [(Some(CloseReason::BackendRemoved), net.client(1).port(), 0)]);
    }
}

#[test]
fn a_flow_whose_port_is_taken_away_is_told_with_its_client() {
    for net in Net::BOTH {
        let default = GatewayConfig { port_words: 1, ..GatewayConfig::default() };
        let bed = Bed::sized(net, 1, &default);
        for n in 0..64 {
            bed.begin(&Frame::udp(net.client(n), net.vip()), UDP, &[Counter::FlowOpened]);
            if n == 0 {
                bed.wait(seconds(1));
            }
        }
        let _ = bed.gateway.maps.take_events();
        let counters = [Counter::FlowOpened, Counter::PortReclaimed];
        bed.begin(&Frame::udp(net.client(100), net.vip()), UDP, &counters);
        let [(reason, port, _)] = ends(&bed)[..] else { panic!("one end") };
        assert_eq!(reason, Some(CloseReason::Evicted));
        assert!((net.client(0).port()..=net.client(63).port()).contains(&port), "{port}");
    }
}
