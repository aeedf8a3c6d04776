//! TCP states: only proof promotes, a RST only shortens, one FIN is not closing.

use lb_common::{
    abi::{Counter, FlowState, HandshakeBucket, HandshakeWord},
    host::{ACK, FIN, Frame, RST, SYN},
};

use crate::bed::{Bed, Flow, Net, SERVER_ISN, seconds};

/// Sends a segment of the client's, expects it at the backend, and returns the flow's state.
#[track_caller]
fn from_client(bed: &Bed, flow: &Flow, flags: u8) -> FlowState {
    bed.send(&flow.request(flags)).sends(&[]).reaches_backend_of(flow);
    bed.state(flow).expect("the flow lives")
}

/// The other way.
#[track_caller]
fn from_backend(bed: &Bed, flow: &Flow, flags: u8) -> FlowState {
    bed.send(&flow.reply(flags)).sends(&[]).reaches_client_of(flow);
    bed.state(flow).expect("the flow lives")
}

#[test]
fn a_handshake_leads_to_established() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 3);
        let flow = bed.open(net.client(1), net.vip());
        assert_eq!(bed.state(&flow), Some(FlowState::SynSent));
        assert_eq!(from_backend(&bed, &flow, SYN | ACK), FlowState::SynAcked);
        bed.send(&flow.request(ACK)).sends(&[Counter::FlowEstablished]).reaches_backend_of(&flow);
        assert_eq!(bed.state(&flow), Some(FlowState::Established));
        assert_eq!(from_client(&bed, &flow, ACK), FlowState::Established);
        assert_eq!(from_backend(&bed, &flow, ACK), FlowState::Established);
    }
}

#[test]
fn a_blind_ack_does_not_promote() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let flow = bed.open(net.client(1), net.vip());
        // Before the SYN-ACK nothing can prove anything.
        assert_eq!(from_client(&bed, &flow, ACK), FlowState::SynSent);
        assert_eq!(from_backend(&bed, &flow, SYN | ACK), FlowState::SynAcked);
        for ack in [0, 1, SERVER_ISN - 1, SERVER_ISN, SERVER_ISN + 2, (SERVER_ISN + 1).swap_bytes(), !0] {
            bed.send(&flow.request(ACK).numbers(1001, ack)).sends(&[]).reaches_backend_of(&flow);
            assert_eq!(bed.state(&flow), Some(FlowState::SynAcked), "{ack}");
        }
        // The right number in a segment that doesn't acknowledge, that opens or that resets, neither.
        for flags in [0, SYN, RST, RST | ACK, SYN | ACK] {
            bed.send(&flow.request(flags).numbers(1001, SERVER_ISN + 1)).sends(&[]);
            assert_eq!(bed.state(&flow), Some(FlowState::SynAcked), "{flags:#x}");
        }
        bed.send(&flow.request(ACK)).sends(&[Counter::FlowEstablished]);
    }
}

#[test]
fn the_initial_sequence_number_may_wrap() {
    let net = Net::V4;
    let bed = Bed::with_backends(net, 1);
    let flow = bed.open(net.client(1), net.vip());
    bed.send(&flow.reply(SYN | ACK).numbers(u32::MAX, 1001)).sends(&[]);
    bed.send(&flow.request(ACK).numbers(1001, 0)).sends(&[Counter::FlowEstablished]);
}

#[test]
fn a_number_kept_for_another_flow_of_the_slot_proves_nothing() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let flow = bed.open(net.client(1), net.vip());
        from_backend(&bed, &flow, SYN | ACK);
        let handshakes = &bed.gateway.maps.handshakes;
        let (bucket, HandshakeBucket { mut ways }) = (0..handshakes.len())
            .map(|bucket| (bucket, handshakes.read::<HandshakeBucket>(bucket)))
            .find(|(_, bucket)| bucket.ways.iter().any(|way| way.word as u32 == SERVER_ISN))
            .unwrap();
        let other = |word| HandshakeWord::answered((word >> 32) as u16 ^ 1, SERVER_ISN).0;
        ways.iter_mut().for_each(|way| way.word = other(way.word));
        handshakes.write(bucket, &HandshakeBucket { ways });
        assert_eq!(from_client(&bed, &flow, ACK), FlowState::SynAcked);
    }
}

#[test]
fn a_repeated_syn_ack_replaces_the_number_to_prove() {
    let net = Net::V6;
    let bed = Bed::with_backends(net, 1);
    let flow = bed.open(net.client(1), net.vip());
    assert_eq!(from_backend(&bed, &flow, SYN | ACK), FlowState::SynAcked);
    bed.send(&flow.reply(SYN | ACK).numbers(77, 1001)).sends(&[]);
    assert_eq!(from_client(&bed, &flow, ACK), FlowState::SynAcked);
    bed.send(&flow.request(ACK).numbers(1001, 78)).sends(&[Counter::FlowEstablished]);
}

#[test]
fn a_repeated_syn_goes_to_the_same_backend_without_a_new_flow() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 5);
        let flow = bed.open(net.client(1), net.vip());
        assert_eq!(from_client(&bed, &flow, SYN), FlowState::SynSent);
        bed.accept(&flow);
        assert_eq!(from_client(&bed, &flow, SYN), FlowState::Established);
        assert_eq!(bed.flows(), 1);
    }
}

#[test]
fn one_fin_is_not_closing_and_two_are() {
    for net in Net::BOTH {
        for client_first in [true, false] {
            let bed = Bed::with_backends(net, 1);
            let flow = bed.establish(net.client(1), net.vip());
            if client_first {
                assert_eq!(from_client(&bed, &flow, FIN | ACK), FlowState::ClientFin);
                assert_eq!(from_client(&bed, &flow, FIN | ACK), FlowState::ClientFin, "a repeated FIN");
                assert_eq!(from_backend(&bed, &flow, ACK), FlowState::ClientFin);
                assert_eq!(from_backend(&bed, &flow, FIN | ACK), FlowState::Closed);
            } else {
                assert_eq!(from_backend(&bed, &flow, FIN | ACK), FlowState::BackendFin);
                assert_eq!(from_backend(&bed, &flow, FIN | ACK), FlowState::BackendFin, "a repeated FIN");
                assert_eq!(from_client(&bed, &flow, ACK), FlowState::BackendFin);
                assert_eq!(from_client(&bed, &flow, FIN | ACK), FlowState::Closed);
            }
            // The last ACKs still get through.
            assert_eq!(from_client(&bed, &flow, ACK), FlowState::Closed);
            assert_eq!(from_backend(&bed, &flow, ACK), FlowState::Closed);
        }
    }
}

#[test]
fn a_fin_may_ride_on_the_proof() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let flow = bed.open(net.client(1), net.vip());
        from_backend(&bed, &flow, SYN | ACK);
        bed.send(&flow.request(FIN | ACK)).sends(&[Counter::FlowEstablished]);
        assert_eq!(bed.state(&flow), Some(FlowState::ClientFin));
        assert_eq!(from_backend(&bed, &flow, FIN | ACK), FlowState::Closed);
    }
}

#[test]
fn a_syn_on_a_closed_flow_is_a_new_flow() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let old = bed.establish(net.client(1), net.vip());
        from_client(&bed, &old, FIN | ACK);
        from_backend(&bed, &old, FIN | ACK);
        let syn = Frame::tcp(net.client(1), net.vip(), SYN);
        let new = bed.begin(&syn, 6, &[Counter::FlowReclaimed, Counter::FlowOpened]);
        assert_eq!(bed.state(&new), Some(FlowState::SynSent));
        assert_eq!(bed.flows(), 1);
        bed.accept(&new);
    }
}

#[test]
fn a_syn_on_a_flow_that_the_backend_refused_or_reset_is_a_new_flow() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let syn = |n| Frame::tcp(net.client(n), net.vip(), SYN);
        bed.refuse(net.client(1), net.vip());
        bed.begin(&syn(1), 6, &[Counter::FlowReclaimed, Counter::FlowOpened]);
        let flow = bed.establish(net.client(2), net.vip());
        assert_eq!(from_backend(&bed, &flow, RST), FlowState::BackendReset);
        bed.begin(&syn(2), 6, &[Counter::FlowReclaimed, Counter::FlowOpened]);
    }
}

#[test]
fn a_reset_of_the_clients_only_shortens_and_its_data_revives() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let flow = bed.establish(net.client(1), net.vip());
        assert_eq!(from_client(&bed, &flow, RST), FlowState::ClientReset);
        assert_eq!(from_client(&bed, &flow, RST), FlowState::ClientReset);
        // What comes from the other side may have been in flight; a SYN is no data.
        assert_eq!(from_backend(&bed, &flow, ACK), FlowState::ClientReset);
        assert_eq!(from_backend(&bed, &flow, FIN | ACK), FlowState::ClientReset);
        assert_eq!(from_client(&bed, &flow, SYN), FlowState::ClientReset);
        assert_eq!(from_client(&bed, &flow, ACK), FlowState::Established);
        from_client(&bed, &flow, RST);
        assert_eq!(from_client(&bed, &flow, FIN | ACK), FlowState::ClientFin);
    }
}

#[test]
fn a_reset_of_the_backends_only_shortens_and_its_data_revives() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let flow = bed.establish(net.client(1), net.vip());
        assert_eq!(from_backend(&bed, &flow, RST), FlowState::BackendReset);
        assert_eq!(from_backend(&bed, &flow, RST), FlowState::BackendReset);
        assert_eq!(from_client(&bed, &flow, ACK), FlowState::BackendReset);
        assert_eq!(from_client(&bed, &flow, RST), FlowState::BackendReset);
        assert_eq!(from_backend(&bed, &flow, ACK), FlowState::Established);
        from_backend(&bed, &flow, RST);
        assert_eq!(from_backend(&bed, &flow, FIN | ACK), FlowState::BackendFin);
    }
}

#[test]
fn resets_shorten_half_closed_flows_too() {
    let net = Net::V4;
    let bed = Bed::with_backends(net, 1);
    let one = bed.establish(net.client(1), net.vip());
    from_client(&bed, &one, FIN | ACK);
    assert_eq!(from_client(&bed, &one, RST), FlowState::ClientReset);
    let two = bed.establish(net.client(2), net.vip());
    from_client(&bed, &two, FIN | ACK);
    assert_eq!(from_backend(&bed, &two, RST), FlowState::BackendReset);
    let three = bed.establish(net.client(3), net.vip());
    from_backend(&bed, &three, FIN | ACK);
    assert_eq!(from_client(&bed, &three, RST), FlowState::ClientReset);
    let four = bed.establish(net.client(4), net.vip());
    from_backend(&bed, &four, FIN | ACK);
    assert_eq!(from_backend(&bed, &four, RST), FlowState::BackendReset);
}

#[test]
fn a_reset_before_the_handshake_is_proven_closes_only_if_it_is_the_backends() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let flow = bed.open(net.client(1), net.vip());
        assert_eq!(from_client(&bed, &flow, RST), FlowState::SynSent);
        assert_eq!(from_backend(&bed, &flow, SYN | ACK), FlowState::SynAcked);
        assert_eq!(from_client(&bed, &flow, RST), FlowState::SynAcked);
        assert_eq!(from_backend(&bed, &flow, RST), FlowState::Closed);
    }
}

#[test]
fn a_backend_that_talks_without_a_syn_ack_proves_nothing() {
    let net = Net::V4;
    let bed = Bed::with_backends(net, 1);
    let flow = bed.open(net.client(1), net.vip());
    for flags in [ACK, SYN, FIN | ACK, SYN | FIN | ACK] {
        assert_eq!(from_backend(&bed, &flow, flags), FlowState::SynSent, "{flags:#x}");
    }
    assert_eq!(from_backend(&bed, &flow, SYN | ACK), FlowState::SynAcked);
}

#[test]
fn a_late_syn_ack_does_not_move_an_established_flow() {
    let net = Net::V6;
    let bed = Bed::with_backends(net, 1);
    let flow = bed.establish(net.client(1), net.vip());
    assert_eq!(from_backend(&bed, &flow, SYN | ACK), FlowState::Established);
}

#[test]
fn an_established_flow_outlives_an_hour_while_either_side_talks() {
    for net in Net::BOTH {
        for client_talks in [true, false] {
            let bed = Bed::with_backends(net, 1);
            let flow = bed.establish(net.client(1), net.vip());
            for _ in 0..4 {
                bed.wait(seconds(3000));
                match client_talks {
                    true => from_client(&bed, &flow, ACK),
                    false => from_backend(&bed, &flow, ACK),
                };
                crate::sweep::sweep_twice(&bed);
                assert_eq!(bed.state(&flow), Some(FlowState::Established));
            }
            bed.wait(seconds(3602));
            crate::sweep::sweep_twice(&bed);
            assert_eq!(bed.state(&flow), None);
        }
    }
}
