//! Events: what the agent is told, and how much of it.

use lb_common::{
    abi::{CloseReason, Counter, Event, EventKind},
    clock::TICK_NS,
    host::{ACK, FIN, Frame, GatewayConfig, RST, ledger},
};

use crate::bed::{Bed, Flow, Net};

fn kinds(bed: &Bed) -> Vec<u8> {
    bed.gateway.maps.take_events().iter().map(|event| event.kind).collect()
}

/// What an event of this flow says, of which nothing has changed since.
fn expected(bed: &Bed, flow: &Flow, kind: EventKind, service: u32) -> Event {
    let mut client = [0; 16];
    match flow.client.ip() {
        std::net::IpAddr::V4(ip) => client[..4].copy_from_slice(&ip.octets()),
        std::net::IpAddr::V6(ip) => client = ip.octets(),
    }
    let word = bed.word(flow).expect("a live flow");
    let entry = ledger::forwards(&bed.gateway.maps).into_iter().find(|entry| entry.word == word);
    let slot = entry.expect("an entry").flow;
    Event {
        time: bed.gateway.maps.clock(),
        client,
        member: bed.member_of(flow),
        client_port: flow.client.port().to_be_bytes(),
        snat_port: flow.snat.port().to_be_bytes(),
        kind: kind as u8,
        family: if flow.client.is_ipv4() { 4 } else { 6 },
        protocol: flow.protocol,
        snat: 0,
        service,
        detail: 0,
        slot: slot.slot,
        version: slot.version,
        generation: 1,
        reason: 0,
        before_generation: 0,
        reserved: [0; 3],
    }
}

fn closed(bed: &Bed, flow: &Flow, reason: CloseReason) -> Event {
    Event { reason: reason as u8, ..expected(bed, flow, EventKind::Closed, 0) }
}

#[test]
fn a_flow_is_announced_when_it_opens_and_when_it_closes() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 2);
        let flow = bed.establish(net.client(1), net.vip());
        assert_eq!(bed.gateway.maps.take_events(), [expected(&bed, &flow, EventKind::Opened, 0)]);
        bed.send(&flow.request(FIN | ACK)).sends(&[]);
        assert!(kinds(&bed).is_empty(), "one FIN is not closing");
        bed.send(&flow.reply(FIN | ACK)).sends(&[]);
        assert_eq!(bed.gateway.maps.take_events(), [closed(&bed, &flow, CloseReason::Fin)]);
        let udp = bed.open_udp(net.client(1), net.vip());
        assert_eq!(bed.gateway.maps.take_events(), [expected(&bed, &udp, EventKind::Opened, 1)]);
    }
}

#[test]
fn a_refusal_closes_a_flow_and_a_rst_that_may_be_blind_does_not_yet() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let flow = bed.open(net.client(1), net.vip());
        let _ = bed.gateway.maps.take_events();
        bed.send(&flow.reply(RST | ACK)).sends(&[Counter::ConnectRefused]);
        assert_eq!(bed.gateway.maps.take_events(), [closed(&bed, &flow, CloseReason::Reset)]);
        bed.send(&flow.reply(RST)).sends(&[]);
        assert!(kinds(&bed).is_empty(), "once");
        for from_client in [true, false] {
            let flow = bed.establish(net.client(2 + u32::from(from_client)), net.vip());
            let _ = bed.gateway.maps.take_events();
            bed.send(&if from_client { flow.request(RST) } else { flow.reply(RST) }).sends(&[]);
            assert!(kinds(&bed).is_empty());
            // What comes after it from the same side shows that it was blind: the flow goes on, and ends once.
            let (after, other) = if from_client {
                (flow.request(FIN | ACK), flow.reply(FIN | ACK))
            } else {
                (flow.reply(FIN | ACK), flow.request(FIN | ACK))
            };
            bed.send(&after).sends(&[]);
            bed.send(&other).sends(&[]);
            assert_eq!(bed.gateway.maps.take_events(), [closed(&bed, &flow, CloseReason::Fin)]);
        }
        let flow = bed.establish(net.client(9), net.vip());
        bed.send(&flow.reply(FIN | ACK)).sends(&[]);
        let _ = bed.gateway.maps.take_events();
        bed.send(&flow.request(FIN | ACK)).sends(&[]);
        assert_eq!(kinds(&bed), [EventKind::Closed as u8]);
    }
}

#[test]
fn events_beyond_the_budget_of_a_tick_are_lost_and_counted() {
    let net = Net::V4;
    let bed = Bed::sized(net, 1, &GatewayConfig { flow_events_per_tick: 3, ..GatewayConfig::default() });
    let udp = |n| Frame::udp(net.client(n), net.vip());
    for n in 0..3 {
        bed.begin(&udp(n), 17, &[Counter::FlowOpened]);
    }
    for n in 3..6 {
        bed.begin(&udp(n), 17, &[Counter::FlowOpened, Counter::FlowEventLost]);
    }
    assert_eq!(kinds(&bed).len(), 3);
    bed.gateway.maps.advance_clock(TICK_NS);
    bed.begin(&udp(6), 17, &[Counter::FlowOpened]);
    assert_eq!(kinds(&bed).len(), 1);
}

#[test]
fn events_that_nobody_reads_are_lost_and_counted() {
    let net = Net::V6;
    let mut bed = Bed::with_backends(net, 1);
    bed.gateway.maps.event_room = 2;
    let udp = |n| Frame::udp(net.client(n), net.vip());
    for n in 0..2 {
        bed.begin(&udp(n), 17, &[Counter::FlowOpened]);
    }
    bed.begin(&udp(2), 17, &[Counter::FlowOpened, Counter::FlowEventLost]);
    assert_eq!(kinds(&bed).len(), 2);
    bed.begin(&udp(3), 17, &[Counter::FlowOpened]);
}
