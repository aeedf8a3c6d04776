//! A SYN that nobody answered goes to another backend when it comes again.

use std::time::Duration;

use lb_common::{
    abi::{Counter, EventKind, FlowState, FlowWord, TCP},
    datapath::{Cells, Verdict},
    host::{ACK, Frame, HostPacket, RST, SYN, Transport},
};

use crate::bed::{Bed, Flow, Net, SERVER_ISN, seconds};

const RESCUED: &[Counter] = &[Counter::ConnectUnanswered, Counter::FlowRescued];
const UNANSWERED: &[Counter] = &[Counter::ConnectUnanswered];

fn syn(net: Net, n: u32) -> Frame {
    Frame::tcp(net.client(n), net.vip(), SYN)
}

fn with_options(mut frame: Frame, list: &[u8], padding: usize) -> Frame {
    if let Transport::Tcp { options, .. } = &mut frame.transport {
        *options = list.to_vec();
    }
    Frame { padding, ..frame }
}

/// Sends the SYN once more, and gives the flow's path.
#[track_caller]
fn again(bed: &Bed, net: Net, n: u32, counters: &[Counter]) -> Flow {
    bed.begin(&syn(net, n), TCP, counters)
}

#[test]
fn the_syn_that_comes_again_goes_to_another_backend() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 4);
        let old = bed.open(net.client(1), net.vip());
        let member = bed.member_of(&old);
        bed.wait(seconds(1));
        let new = again(&bed, net, 1, RESCUED);
        assert_ne!(new.backend, old.backend);
        assert_eq!((bed.flows(), bed.word(&new).unwrap().attempt()), (1, 1));
        assert_eq!(bed.gateway.maps.stats(bed.member_of(&new)).connections, 1);
        let rescue = bed.gateway.maps.take_events().pop().unwrap();
        assert_eq!((rescue.kind, rescue.member), (EventKind::Rescued as u8, bed.member_of(&new)));
        assert_eq!((rescue.detail, rescue.snat_port), (member, new.snat.port().to_be_bytes()));
        // The late answer is nobody's; the node's own stack resets it.
        bed.send(&old.reply(SYN | ACK)).passes(Counter::PassNoFlow);
        bed.accept(&new);
        bed.send(&new.request(ACK)).sends(&[]).reaches_backend_of(&new);
    }
}

#[test]
fn sooner_than_that_it_proves_nothing() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 4);
        let flow = bed.open(net.client(1), net.vip());
        for _ in 0..3 {
            bed.wait(Duration::from_millis(290));
            bed.send(&syn(net, 1)).sends(&[]).reaches_backend_of(&flow);
        }
        // It is the first one that counts.
        bed.wait(Duration::from_millis(70));
        assert_ne!(again(&bed, net, 1, RESCUED).backend, flow.backend);
    }
}

#[test]
fn an_answered_one_stays_where_it_is() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 4);
        let flow = bed.open(net.client(1), net.vip());
        bed.send(&flow.reply(SYN | ACK)).sends(&[]);
        bed.wait(seconds(2));
        bed.send(&syn(net, 1)).sends(&[]).reaches_backend_of(&flow);
        bed.send(&flow.request(ACK)).sends(&[Counter::FlowEstablished]);
        bed.wait(seconds(2));
        bed.send(&syn(net, 1)).sends(&[]).reaches_backend_of(&flow);
    }
}

#[test]
fn twice_at_most_and_each_silence_is_counted_once() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 8);
        let mut backends = vec![bed.open(net.client(1), net.vip()).backend];
        for _ in 0..2 {
            bed.wait(seconds(1));
            backends.push(again(&bed, net, 1, RESCUED).backend);
        }
        assert!(backends[0] != backends[1] && backends[1] != backends[2] && backends[2] != backends[0]);
        bed.wait(seconds(1));
        assert_eq!(again(&bed, net, 1, UNANSWERED).backend, backends[2]);
        bed.wait(seconds(1));
        let last = again(&bed, net, 1, &[]);
        assert_eq!(last.backend, backends[2]);
        bed.accept(&last);
    }
}

#[test]
fn the_second_time_it_is_one_of_another_cluster() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 4);
        for n in 1..=4 {
            let backend = bed.gateway.backend(net.backend(n), TCP);
            bed.gateway.set_cluster(backend, if n == 4 { 200 } else { 100 });
        }
        // The other cluster has no share of the ring.
        bed.gateway.set_ring(0, &[1, 2, 3]);
        bed.gateway.set_fallback(0, &[1, 2, 3, 4]);
        for n in 0..20 {
            bed.open(net.client(n), net.vip());
            bed.wait(seconds(1));
            assert_ne!(again(&bed, net, n, RESCUED).backend, net.backend(4));
            bed.wait(seconds(1));
            assert_eq!(again(&bed, net, n, RESCUED).backend, net.backend(4));
        }
    }
}

#[test]
fn the_only_backend_gets_it_again() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let flow = bed.open(net.client(1), net.vip());
        bed.wait(seconds(1));
        assert_eq!(again(&bed, net, 1, UNANSWERED), flow);
        bed.wait(seconds(1));
        assert_eq!(again(&bed, net, 1, &[]), flow);
        bed.accept(&flow);
    }
}

#[test]
fn a_syn_with_data_stays_where_it_is() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 4);
        let flow = bed.begin(&syn(net, 1).payload(b"early"), TCP, &[Counter::FlowOpened]);
        bed.wait(seconds(1));
        bed.send(&syn(net, 1)).sends(&[]).reaches_backend_of(&flow);
        let other = bed.open(net.client(2), net.vip());
        bed.wait(seconds(1));
        bed.send(&syn(net, 2).payload(b"late")).sends(UNANSWERED).reaches_backend_of(&other);
    }
}

/// A SYN that no backend answers for what is wrong with it must not speak against any.
#[test]
fn a_syn_that_no_backend_would_answer_is_no_evidence() {
    let far = |net: Net| syn(net, 1).ttl(15).build();
    let corrupt = |net: Net, place: usize| {
        let mut bytes = with_options(syn(net, 1), &[2, 4, 5, 180], 6).build();
        let place = if place < 20 { 14 + place } else { bytes.len() - 6 - 24 + place - 20 };
        bytes[place] ^= 1;
        bytes
    };
    // The window, the checksum and the last option of the segment; the identification in an IPv4 header.
    let broken = |net: Net| [34, 36, 43].map(|place| corrupt(net, place)).into_iter().chain([far(net)]);
    let header = [corrupt(Net::V4, 4), syn(Net::V4, 1).ip_options(&[1, 1, 1, 0]).build()];
    let mut all: Vec<(Net, Vec<u8>)> = header.map(|bytes| (Net::V4, bytes)).into();
    all.extend(Net::BOTH.into_iter().flat_map(|net| broken(net).map(move |bytes| (net, bytes))));
    for (net, bytes) in all {
        let bed = Bed::with_backends(net, 4);
        bed.send_packet(HostPacket::new(&bytes)).sends(&[Counter::FlowOpened]);
        for _ in 0..3 {
            bed.wait(seconds(1));
            bed.send_packet(HostPacket::new(&bytes)).sends(&[]);
        }
    }
}

#[test]
fn options_and_padding_take_nothing_from_a_good_syn() {
    for net in Net::BOTH {
        for length in (0..=40).step_by(4) {
            let bed = Bed::with_backends(net, 4);
            let good = || with_options(syn(net, 1), &vec![3; length], 10);
            let flow = bed.begin(&good(), TCP, &[Counter::FlowOpened]);
            bed.wait(seconds(1));
            assert_ne!(bed.begin(&good(), TCP, RESCUED).backend, flow.backend, "{length}");
        }
    }
}

#[test]
fn the_answer_after_a_rescue_is_what_the_client_has_to_prove() {
    let net = Net::V4;
    let bed = Bed::with_backends(net, 4);
    bed.open(net.client(1), net.vip());
    bed.wait(seconds(1));
    let new = again(&bed, net, 1, RESCUED);
    // Nothing is proven before the new backend's answer, whatever the number.
    bed.send(&new.request(ACK)).sends(&[]).reaches_backend_of(&new);
    assert_eq!(bed.state(&new), Some(FlowState::SynSent));
    bed.send(&new.reply(SYN | ACK).numbers(77, 1001)).sends(&[]);
    bed.send(&new.request(ACK).numbers(1001, SERVER_ISN + 1)).sends(&[]);
    assert_eq!(bed.state(&new), Some(FlowState::SynAcked));
    bed.send(&new.request(ACK).numbers(1001, 78)).sends(&[Counter::FlowEstablished]);
}

#[test]
fn while_a_flow_is_moved_its_old_backend_is_not_heard() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 2);
        let flow = bed.open(net.client(1), net.vip());
        let slot = lb_common::host::ledger::forwards(&bed.gateway.maps)[0].flow;
        let cells = bed.gateway.maps.flows.get(slot.slot / 4).unwrap();
        cells.store(2 * (slot.slot % 4) as usize, FlowWord::new(FlowState::Claimed, slot.version).0);
        for flags in [SYN | ACK, RST | ACK] {
            assert_eq!(bed.send_unchecked(&flow.reply(flags)).0, Verdict::Drop);
        }
        assert_eq!(bed.gateway.maps.counter(Counter::DropMoved), 2);
    }
}

#[test]
fn a_tripped_backend_is_walked_past() {
    let net = Net::V4;
    let mut bed = Bed::with_backends(net, 3);
    bed.gateway.set_fallback(0, &[1, 2, 3]);
    let flow = bed.open(net.client(1), net.vip());
    let mut others = (1..=3).map(|n| net.backend(n)).filter(|backend| *backend != flow.backend);
    let (tripped, heir) = (others.next().unwrap(), others.next().unwrap());
    let index = bed.gateway.backend(tripped, TCP);
    let line: lb_common::abi::Backend = bed.gateway.maps.backends.read(index);
    let tripped_until = bed.gateway.maps.clock() + 60_000_000_000;
    bed.gateway.maps.backends.write(index, &lb_common::abi::Backend { tripped_until, ..line });
    bed.wait(seconds(1));
    assert_eq!(again(&bed, net, 1, RESCUED).backend, heir);
}
