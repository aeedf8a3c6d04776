//! UDP: a reply promotes; both directions keep a flow alive.

use lb_common::{
    abi::{Counter, FlowState, FlowWord},
    datapath::{Cells, Verdict},
    host::ledger,
};

use crate::{
    bed::{Bed, Net, seconds},
    sweep::sweep_twice,
};

#[test]
fn a_reply_promotes_the_flow() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 3);
        let flow = bed.open_udp(net.client(1), net.vip());
        assert_eq!(bed.state(&flow), Some(FlowState::UdpNew));
        bed.send(&flow.datagram()).sends(&[]).reaches_backend_of(&flow);
        assert_eq!(bed.state(&flow), Some(FlowState::UdpNew), "the client alone proves nothing");
        for _ in 0..2 {
            bed.send(&flow.answer()).sends(&[]).reaches_client_of(&flow);
            assert_eq!(bed.state(&flow), Some(FlowState::UdpReplied));
        }
        bed.send(&flow.datagram()).sends(&[]).reaches_backend_of(&flow);
        assert_eq!(bed.state(&flow), Some(FlowState::UdpAssured));
        bed.send(&flow.answer()).sends(&[]).reaches_client_of(&flow);
        assert_eq!(bed.state(&flow), Some(FlowState::UdpAssured));
    }
}

#[test]
fn an_answered_flow_outlives_an_unanswered_one() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let silent = bed.open_udp(net.client(1), net.vip());
        let answered = bed.open_udp(net.client(2), net.vip());
        bed.send(&answered.answer()).sends(&[]);
        bed.wait(seconds(12));
        sweep_twice(&bed);
        assert_eq!((bed.state(&silent), bed.state(&answered)), (None, Some(FlowState::UdpReplied)));
        bed.wait(seconds(50));
        sweep_twice(&bed);
        assert_eq!(bed.state(&answered), None);
    }
}

#[test]
fn a_stream_in_one_direction_keeps_the_flow() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let flow = bed.open_udp(net.client(1), net.vip());
        bed.send(&flow.answer()).sends(&[]);
        for _ in 0..10 {
            bed.wait(seconds(40));
            bed.send(&flow.answer()).sends(&[]).reaches_client_of(&flow);
            sweep_twice(&bed);
            assert_eq!(bed.state(&flow), Some(FlowState::UdpReplied), "a server's word proves no client");
        }
        for _ in 0..10 {
            bed.wait(seconds(40));
            bed.send(&flow.datagram()).sends(&[]).reaches_backend_of(&flow);
            sweep_twice(&bed);
            assert_eq!(bed.state(&flow), Some(FlowState::UdpAssured));
        }
    }
}

#[test]
fn a_reply_that_could_not_tell_the_flow_leaves_it_to_the_next() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let flow = bed.open_udp(net.client(1), net.vip());
        let slot = ledger::forwards(&bed.gateway.maps)[0].flow.slot;
        let (cells, word) = (bed.gateway.maps.flows.get(slot / 4).unwrap(), 2 * (slot % 4) as usize);
        // As between the two steps of an insertion: the reverse entry is there, the flow not yet.
        let new = cells.load(word);
        cells.store(word, FlowWord::new(FlowState::Claimed, FlowWord(new).version()).0);
        assert_eq!(bed.send_unchecked(&flow.answer()).0, Verdict::Transmit);
        cells.store(word, new);
        bed.send(&flow.answer()).sends(&[]).reaches_client_of(&flow);
        assert_eq!(bed.state(&flow), Some(FlowState::UdpReplied));
    }
}

#[test]
fn the_same_client_and_port_over_tcp_and_udp_are_two_flows() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let udp = bed.open_udp(net.client(1), net.vip());
        let tcp = bed.open(net.client(1), net.vip());
        assert_eq!(bed.flows(), 2);
        bed.send(&udp.answer()).sends(&[]).reaches_client_of(&udp);
        bed.accept(&tcp);
    }
}

#[test]
fn a_closed_udp_flow_does_not_exist_for_its_backend() {
    let net = Net::V4;
    let bed = Bed::with_backends(net, 1);
    let flow = bed.open_udp(net.client(1), net.vip());
    bed.wait(seconds(12));
    sweep_twice(&bed);
    bed.send(&flow.answer()).passes(Counter::PassNoFlow);
    bed.open_udp(net.client(1), net.vip());
}
