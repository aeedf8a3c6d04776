//! Trips: a backend that fails connection after connection gets no new flows for a time.

use std::net::SocketAddr;

use lb_common::{
    abi::{Backend, Counter, EventKind, ReactionWord, TCP},
    host::{ACK, Frame, RST, SYN},
};

use crate::bed::{Bed, Flow, Net, seconds};

const REFUSED: &[Counter] = &[Counter::ConnectRefused];
const TRIPPED: &[Counter] = &[Counter::ConnectRefused, Counter::BackendTripped];

/// Backends of which one is tripped for ten seconds after so many errors in a row.
fn with_threshold(net: Net, backends: u8, errors: u16) -> Bed {
    let mut bed = Bed::with_backends(net, backends);
    bed.gateway.set_reaction(0, ReactionWord::new(errors, 10_000, false));
    // A walk of eight candidates may meet one of two backends eight times.
    let members: Vec<_> = (1..=u32::from(backends)).collect();
    bed.gateway.set_fallback(0, &members);
    bed
}

/// Opens flows, as new clients from `first` on, until one goes to this backend. Returns it, and the next client.
fn open_to(bed: &Bed, net: Net, backend: SocketAddr, first: u32) -> (Flow, u32) {
    (first..first + 200)
        .map(|n| (bed.open(net.client(n), net.vip()), n + 1))
        .find(|(flow, _)| flow.backend == backend)
        .expect("one of many goes there")
}

fn line(bed: &mut Bed, backend: SocketAddr) -> Backend {
    let index = bed.gateway.backend(backend, TCP);
    bed.gateway.maps.backends.read(index)
}

/// Refuses flows to a backend, the last of which trips it; returns the next client.
fn trip(bed: &Bed, net: Net, backend: SocketAddr, errors: u16, mut client: u32) -> u32 {
    for n in 1..=errors {
        let (flow, next) = open_to(bed, net, backend, client);
        bed.send(&flow.reply(RST | ACK)).sends(if n < errors { REFUSED } else { TRIPPED });
        client = next;
    }
    client
}

#[test]
fn errors_in_a_row_trip_a_backend_and_time_brings_it_back() {
    for net in Net::BOTH {
        let mut bed = with_threshold(net, 3, 3);
        let bad = net.backend(2);
        let next = trip(&bed, net, bad, 3, 0);
        assert_eq!(
            (line(&mut bed, bad).errors, line(&mut bed, bad).tripped_until),
            (0, bed.gateway.maps.clock() + 10_000_000_000)
        );
        for n in next..next + 100 {
            assert_ne!(bed.open(net.client(n), net.vip()).backend, bad);
        }
        // UDP is another backend, though of the same address.
        let datagrams = (0..40).map(|n| bed.open_udp(net.client(n), net.vip()).backend);
        assert!(datagrams.collect::<Vec<_>>().contains(&bad));
        bed.wait(seconds(10));
        open_to(&bed, net, bad, 500);
    }
}

#[test]
fn a_trip_is_announced_with_the_member_and_the_errors() {
    for net in Net::BOTH {
        let bed = with_threshold(net, 2, 2);
        let bad = net.backend(1);
        trip(&bed, net, bad, 2, 0);
        let events = bed.gateway.maps.take_events();
        let tripped: Vec<_> = events.iter().filter(|event| event.kind == EventKind::Tripped as u8).collect();
        let [event] = tripped[..] else { panic!("{events:?}") };
        assert_eq!(
            (bed.gateway.member(event.member).port, event.detail, event.service),
            (8080_u16.to_be_bytes(), 2, 0)
        );
        assert_eq!(event.member, 1);
    }
}

#[test]
fn an_answer_ends_the_row() {
    for net in Net::BOTH {
        let mut bed = with_threshold(net, 2, 2);
        let bad = net.backend(1);
        let mut client = 0;
        for _ in 0..3 {
            let (refused, next) = open_to(&bed, net, bad, client);
            bed.send(&refused.reply(RST | ACK)).sends(REFUSED);
            assert_eq!(line(&mut bed, bad).errors, 1);
            let (answered, next) = open_to(&bed, net, bad, next);
            bed.send(&answered.reply(SYN | ACK)).sends(&[]);
            assert_eq!(line(&mut bed, bad).errors, 0);
            client = next;
        }
    }
}

#[test]
fn a_refusal_after_the_answer_is_no_connect_error() {
    let net = Net::V4;
    let mut bed = with_threshold(net, 1, 1);
    let flow = bed.open(net.client(1), net.vip());
    bed.send(&flow.reply(SYN | ACK)).sends(&[]);
    bed.send(&flow.reply(RST | ACK)).sends(&[]).reaches_client_of(&flow);
    assert_eq!(line(&mut bed, net.backend(1)).tripped_until, 0);
}

#[test]
fn where_all_are_tripped_new_flows_go_on_as_if_none_were() {
    for net in Net::BOTH {
        let bed = with_threshold(net, 2, 1);
        let next = trip(&bed, net, net.backend(1), 1, 0);
        let next = trip(&bed, net, net.backend(2), 1, next);
        let opened = [Counter::FlowOpened, Counter::FlowFailedOpen];
        let mut seen = Vec::new();
        for n in next..next + 50 {
            let flow = bed.begin(&Frame::tcp(net.client(n), net.vip(), SYN), TCP, &opened);
            // What fails now says nothing new.
            bed.send(&flow.reply(RST | ACK)).sends(REFUSED);
            seen.push(flow.backend);
        }
        assert!(seen.contains(&net.backend(1)) && seen.contains(&net.backend(2)));
        bed.wait(seconds(10));
        bed.open(net.client(next + 100), net.vip());
    }
}

#[test]
fn errors_of_flows_from_before_the_trip_do_not_lengthen_it() {
    let net = Net::V4;
    let mut bed = with_threshold(net, 2, 1);
    let bad = net.backend(1);
    let (late, next) = open_to(&bed, net, bad, 0);
    trip(&bed, net, bad, 1, next);
    let until = line(&mut bed, bad).tripped_until;
    bed.wait(seconds(2));
    bed.send(&late.reply(RST | ACK)).sends(REFUSED);
    assert_eq!((line(&mut bed, bad).tripped_until, line(&mut bed, bad).errors), (until, 0));
}

#[test]
fn a_threshold_of_0_never_trips() {
    let net = Net::V6;
    let mut bed = with_threshold(net, 1, 0);
    for n in 0..50 {
        bed.refuse(net.client(n), net.vip());
    }
    assert_eq!((line(&mut bed, net.backend(1)).errors, line(&mut bed, net.backend(1)).tripped_until), (0, 0));
}

#[test]
fn a_trip_is_of_the_backend_in_all_of_its_services() {
    let net = Net::V4;
    let mut bed = with_threshold(net, 2, 1);
    let elsewhere = ([203, 0, 113, 99], 80).into();
    bed.gateway.add_service(elsewhere, TCP, &[net.backend(1)]);
    trip(&bed, net, net.backend(1), 1, 0);
    bed.begin(
        &Frame::tcp(net.client(300), elsewhere, SYN),
        TCP,
        &[Counter::FlowOpened, Counter::FlowFailedOpen],
    );
}
