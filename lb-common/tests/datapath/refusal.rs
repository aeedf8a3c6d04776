//! A SYN that was refused goes to another backend at once, made anew from a copy.

use std::time::Duration;

use lb_common::{
    abi::{Counter, EventKind, FlowState, ReactionWord, SynCopy, TCP},
    datapath::Verdict,
    host::{ACK, Frame, GatewayConfig, HostPacket, RST, SYN, TAG_8021Q, Transport},
};

use crate::bed::{Bed, Flow, Net, Step, seconds};

const RESCUED: &[Counter] = &[Counter::ConnectRefused, Counter::FlowRescued];
const SWALLOWED: &[Counter] = &[Counter::ConnectRefused, Counter::DropRefused];

fn with_retries(net: Net, backends: u8) -> Bed {
    retrying(Bed::with_backends(net, backends), backends)
}

fn retrying(mut bed: Bed, backends: u8) -> Bed {
    bed.gateway.set_reaction(0, ReactionWord::new(0, 0, true));
    let members: Vec<_> = (1..=u32::from(backends)).collect();
    bed.gateway.set_fallback(0, &members);
    bed
}

/// The path of the flow that a SYN now takes.
fn path(step: &Step, of: &Flow) -> Flow {
    let seen = step.seen();
    assert_eq!((seen.flags, seen.payload.len()), (SYN, 0));
    Flow { snat: seen.source, backend: seen.destination, ..*of }
}

/// Refuses a flow's SYN, which is rescued; gives the new path.
#[track_caller]
fn rescued(bed: &Bed, flow: &Flow) -> Flow {
    path(&bed.send(&flow.reply(RST | ACK)).sends(RESCUED), flow)
}

#[test]
fn a_refused_syn_goes_to_another_backend_at_once() {
    for net in Net::BOTH {
        let bed = with_retries(net, 4);
        let old = bed.open(net.client(1), net.vip());
        let new = rescued(&bed, &old);
        assert_ne!(new.backend, old.backend);
        let kinds: Vec<_> = bed.gateway.maps.take_events().iter().map(|event| event.kind).collect();
        assert_eq!(kinds, [EventKind::Opened as u8, EventKind::Rescued as u8]);
        bed.send(&old.reply(RST | ACK)).passes(Counter::PassNoFlow);
        bed.accept(&new);
    }
}

#[test]
fn it_is_the_client_s_syn_to_the_byte() {
    for net in Net::BOTH {
        for length in (0..=40_u8).step_by(4) {
            let bed = with_retries(net, 4);
            let mut frame = Frame::tcp(net.client(1), net.vip(), SYN | 0xc0).ttl(33);
            let transport = frame.transport_offset();
            if let Transport::Tcp { options, seq, .. } = &mut frame.transport {
                *options = (0..length).map(|n| n.wrapping_mul(31) | 1).collect();
                *seq = 0xfedc_ba98;
            }
            let first = bed.send(&frame).sends(&[Counter::FlowOpened]);
            let seen = first.seen();
            let old = Flow {
                protocol: TCP,
                client: frame.source,
                vip: frame.destination,
                snat: seen.source,
                backend: seen.destination,
            };
            // Refusals come padded, tagged, and shorter than what becomes of them.
            let refusal = old.reply(RST | ACK).numbers(0, 0xfedc_ba99);
            let refusal = if length % 8 == 0 { refusal } else { refusal.tags(&[(TAG_8021Q, 7)]) };
            let step = bed.send(&Frame { padding: 6, ..refusal }).sends(RESCUED);
            let seen = step.seen();
            assert_ne!(seen.destination, old.backend);
            assert_eq!((seen.ttl, seen.flags & 0x3f, step.bytes().len()), (32, SYN, first.bytes().len()));
            // Addresses, ports, checksums apart.
            let (one, other) = (&first.bytes()[transport..], &step.bytes()[transport..]);
            assert_eq!((&one[4..16], &one[18..]), (&other[4..16], &other[18..]));
            assert_eq!(first.bytes()[..24], step.bytes()[..24]);
        }
    }
}

#[test]
fn the_last_refusal_is_the_clients() {
    for net in Net::BOTH {
        let bed = with_retries(net, 8);
        let first = bed.open(net.client(1), net.vip());
        let second = rescued(&bed, &first);
        let third = rescued(&bed, &second);
        assert!(third.backend != second.backend && third.backend != first.backend);
        bed.send(&third.reply(RST | ACK)).sends(&[Counter::ConnectRefused]).reaches_client_of(&third);
        assert_eq!(bed.state(&third), Some(FlowState::Closed));
        assert_eq!(bed.gateway.maps.take_events().pop().unwrap().kind, EventKind::Closed as u8);
        // Where there are only two, the second's is.
        let bed = with_retries(net, 2);
        let second = rescued(&bed, &bed.open(net.client(1), net.vip()));
        bed.send(&second.reply(RST | ACK)).sends(&[Counter::ConnectRefused]).reaches_client_of(&second);
    }
}

#[test]
fn a_blind_refusal_changes_nothing() {
    for net in Net::BOTH {
        let bed = with_retries(net, 4);
        let flow = bed.open(net.client(1), net.vip());
        for (flags, ack) in [(RST, 1001), (RST | ACK, 1000), (RST | ACK, 1002), (RST | ACK, 0)] {
            bed.send(&flow.reply(flags).numbers(0, ack)).sends(&[]).reaches_client_of(&flow);
            assert_eq!(bed.state(&flow), Some(FlowState::SynSent));
        }
        // Right in its low bits alone: no copy has that number.
        bed.send(&flow.reply(RST | ACK).numbers(0, 1001 + (1 << 21))).expect(Verdict::Drop, SWALLOWED);
    }
}

#[test]
fn without_a_copy_the_client_s_next_syn_is_rescued_however_soon() {
    for net in Net::BOTH {
        let bed = with_retries(net, 4);
        let flow = bed.open(net.client(1), net.vip());
        let syns = &bed.gateway.maps.syns;
        (0..syns.len()).for_each(|index| syns.write::<SynCopy>(index, &bytemuck::Zeroable::zeroed()));
        bed.send(&flow.reply(RST | ACK)).expect(Verdict::Drop, SWALLOWED);
        assert_eq!(bed.state(&flow), Some(FlowState::Refused));
        bed.send(&flow.reply(RST | ACK)).drops(Counter::DropRefused);
        let syn = Frame::tcp(net.client(1), net.vip(), SYN);
        let new = bed.begin(&syn, TCP, &[Counter::FlowRescued]);
        assert_ne!(new.backend, flow.backend);
        bed.accept(&new);
    }
}

#[test]
fn a_copy_that_another_flow_has_overwritten_is_none() {
    let net = Net::V4;
    let bed = with_retries(net, 4);
    let flow = bed.open(net.client(1), net.vip());
    let syns = &bed.gateway.maps.syns;
    for index in 0..syns.len() {
        let copy: SynCopy = syns.read(index);
        syns.write(index, &SynCopy { word: copy.word ^ 1, ..copy });
    }
    bed.send(&flow.reply(RST | ACK)).expect(Verdict::Drop, SWALLOWED);
}

/// Two elements are one pair, for the copies of all flows.
#[test]
fn a_copy_outlives_the_next_flow_s_and_goes_before_a_younger_one() {
    for net in Net::BOTH {
        let mut settings = GatewayConfig::default();
        settings.sizes.flow_buckets = 2;
        let bed = retrying(Bed::sized(net, 4, &settings), 4);
        let open = |n| {
            bed.wait(Duration::from_millis(2));
            bed.open(net.client(n), net.vip())
        };
        let (oldest, _, third) = (open(1), open(2), open(3));
        bed.send(&oldest.reply(RST | ACK)).expect(Verdict::Drop, SWALLOWED);
        let fourth = open(4);
        rescued(&bed, &third);
        rescued(&bed, &fourth);
    }
}

#[test]
fn a_frame_without_room_at_its_head_is_swallowed() {
    for net in Net::BOTH {
        let bed = with_retries(net, 4);
        let mut frame = Frame::tcp(net.client(1), net.vip(), SYN);
        if let Transport::Tcp { options, .. } = &mut frame.transport {
            *options = vec![1; 20];
        }
        let flow = bed.begin(&frame, TCP, &[Counter::FlowOpened]);
        let refusal = HostPacket::with_head_room(&flow.reply(RST | ACK).build(), 16);
        bed.send_packet(refusal).expect(Verdict::Drop, SWALLOWED);
        bed.begin(&frame, TCP, &[Counter::FlowRescued]);
    }
}

#[test]
fn a_syn_with_data_is_not_rescued() {
    for net in Net::BOTH {
        let bed = with_retries(net, 4);
        let syn = Frame::tcp(net.client(1), net.vip(), SYN).payload(b"early");
        let flow = bed.begin(&syn, TCP, &[Counter::FlowOpened]);
        bed.send(&flow.reply(RST | ACK)).sends(&[Counter::ConnectRefused]).reaches_client_of(&flow);
        assert_eq!(bed.state(&flow), Some(FlowState::Closed));
    }
}

#[test]
fn a_syn_with_network_options_is_not_rescued() {
    let net = Net::V4;
    let bed = with_retries(net, 4);
    let syn = Frame::tcp(net.client(1), net.vip(), SYN).ip_options(&[1, 1, 1, 1]);
    let flow = bed.begin(&syn, TCP, &[Counter::FlowOpened]);
    // Routers drop such packets at will: that nobody answers says nothing of the backend, and no other gets it.
    bed.send(&flow.reply(RST | ACK)).sends(&[Counter::ConnectRefused]).reaches_client_of(&flow);
}

#[test]
fn the_switch_turns_it_off() {
    for net in Net::BOTH {
        let mut bed = with_retries(net, 4);
        bed.gateway.set_reaction(0, ReactionWord::new(1, 1000, false));
        let flow = bed.open(net.client(1), net.vip());
        let counters = [Counter::ConnectRefused, Counter::BackendTripped];
        bed.send(&flow.reply(RST | ACK)).sends(&counters).reaches_client_of(&flow);
    }
}

#[test]
fn a_silent_one_after_a_refusal_is_counted_from_its_own_syn_on() {
    let net = Net::V6;
    let bed = with_retries(net, 8);
    let first = bed.open(net.client(1), net.vip());
    bed.wait(seconds(1));
    let second = rescued(&bed, &first);
    let syn = Frame::tcp(net.client(1), net.vip(), SYN);
    bed.send(&syn).sends(&[]).reaches_backend_of(&second);
    bed.wait(seconds(1));
    let third = bed.begin(&syn, TCP, &[Counter::ConnectUnanswered, Counter::FlowRescued]);
    assert!(third.backend != second.backend && third.backend != first.backend);
}

#[test]
fn a_refusing_backend_is_tripped_and_its_flows_are_rescued_all_the_same() {
    for net in Net::BOTH {
        let mut bed = with_retries(net, 3);
        bed.gateway.set_reaction(0, ReactionWord::new(1, 60_000, true));
        let flow = bed.open(net.client(1), net.vip());
        let counters = [Counter::ConnectRefused, Counter::BackendTripped, Counter::FlowRescued];
        let new = path(&bed.send(&flow.reply(RST | ACK)).sends(&counters), &flow);
        bed.accept(&new);
        for n in 2..40 {
            assert_ne!(bed.open(net.client(n), net.vip()).backend, flow.backend);
        }
    }
}
