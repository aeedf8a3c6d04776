//! Members that drain, vanish, or whose index is given to another backend.

use lb_common::{
    abi::{Counter, Member, TCP, UDP, member_flags},
    host::{ACK, Array, FIN, Frame, RST, SYN, ledger},
};

use crate::{
    bed::{Bed, Flow, Net},
    sweep::{sweep, sweep_twice},
};

const USABLE: u8 = member_flags::VALID | member_flags::NEXT_HOP;

/// The index of the TCP or UDP service's only member.
fn only_member(protocol: u8) -> u32 {
    if protocol == TCP { 1 } else { 2 }
}

/// Gives the members of these flows other flags, and their services a fallback ring over the other member of
/// two: a walk of eight candidates may find the same one eight times.
fn retire(bed: &mut Bed, flows: &[Flow], flags: u8) {
    for flow in flows {
        let member = bed.member_of(flow);
        let service = bed.gateway.member(member).service;
        bed.gateway.set_member_flags(member, flags);
        bed.gateway.set_fallback(service, &[(4 * service + 3) - member]);
    }
}

#[test]
fn a_recycled_member_never_gets_a_strangers_segment() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 1);
        let flow = bed.establish(net.client(1), net.vip());
        bed.gateway.recycle_member(only_member(TCP), 0, net.backend(9));
        for flags in [ACK, FIN | ACK, RST, SYN | ACK] {
            bed.send(&flow.request(flags)).drops(Counter::DropStaleMember);
            bed.send(&flow.reply(flags)).drops(Counter::DropStaleMember);
        }
        // A SYN begins a flow of its own, to the new member.
        let syn = Frame::tcp(net.client(1), net.vip(), SYN);
        let new = bed.begin(&syn, TCP, &[Counter::FlowReclaimed, Counter::FlowOpened]);
        assert_eq!(new.backend, net.backend(9));
        bed.accept(&new);
    }
}

#[test]
fn a_recycled_member_never_gets_a_strangers_datagram() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 1);
        let old = bed.open_udp(net.client(1), net.vip());
        bed.gateway.recycle_member(only_member(UDP), 1, net.backend(9));
        bed.send(&old.answer()).drops(Counter::DropStaleMember);
        let new = bed.begin(&old.datagram(), UDP, &[Counter::FlowReclaimed, Counter::FlowOpened]);
        assert_eq!(new.backend, net.backend(9));
        bed.send(&new.answer()).sends(&[]).reaches_client_of(&new);
    }
}

#[test]
fn every_generation_is_another_member() {
    let net = Net::V4;
    let mut bed = Bed::with_backends(net, 1);
    for generation in 2..=300_u32 {
        let flow = bed.open(net.client(generation), net.vip());
        bed.gateway.recycle_member(only_member(TCP), 0, net.backend(1));
        assert_eq!(bed.gateway.member(1).generation as u32, (generation - 1) % 255 + 1);
        bed.send(&flow.request(ACK)).drops(Counter::DropStaleMember);
        bed.send(&flow.reply(ACK)).drops(Counter::DropStaleMember);
        sweep_twice(&bed);
    }
}

#[test]
fn the_sweep_clears_a_recycled_members_flows_and_gives_the_ports_back() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 1);
        for n in 0..20 {
            bed.establish(net.client(n), net.vip());
        }
        bed.gateway.recycle_member(only_member(TCP), 0, net.backend(9));
        let report = sweep(&bed);
        assert_eq!((report.evicted, report.mended), (20, 20));
        assert_eq!(bed.flows(), 0);
        assert!(ledger::backwards(&bed.gateway.maps).is_empty());
        assert!(ledger::taken_ports(&bed.gateway.maps).is_empty());
    }
}

#[test]
fn an_invalid_or_missing_member_is_stale() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 1);
        let flow = bed.establish(net.client(1), net.vip());
        bed.gateway.set_member_flags(only_member(TCP), 0);
        bed.send(&flow.request(ACK)).drops(Counter::DropStaleMember);
        bed.send(&flow.reply(ACK)).drops(Counter::DropStaleMember);
        bed.gateway.maps.members = Array::of::<Member>(1);
        bed.send(&flow.request(ACK)).drops(Counter::DropStaleMember);
        bed.send(&flow.reply(ACK)).passes(Counter::PassNoFlow);
    }
}

#[test]
fn a_draining_member_keeps_its_flows_and_gets_no_new_ones() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 2);
        let tcp = bed.establish(net.client(1), net.vip());
        let udp = bed.open_udp(net.client(1), net.vip());
        retire(&mut bed, &[tcp, udp], USABLE | member_flags::DRAINING);
        bed.send(&tcp.request(ACK)).sends(&[]).reaches_backend_of(&tcp);
        bed.send(&tcp.reply(ACK)).sends(&[]).reaches_client_of(&tcp);
        bed.send(&udp.datagram()).sends(&[]).reaches_backend_of(&udp);
        for n in 2..50 {
            assert_ne!(bed.establish(net.client(n), net.vip()).backend, tcp.backend);
            assert_ne!(bed.open_udp(net.client(n), net.vip()).backend, udp.backend);
        }
    }
}

#[test]
fn a_removed_member_lets_tcp_finish_and_udp_move_at_once() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 2);
        let tcp = bed.establish(net.client(1), net.vip());
        let udp = bed.open_udp(net.client(1), net.vip());
        retire(&mut bed, &[tcp, udp], USABLE | member_flags::REMOVED);
        bed.send(&tcp.request(ACK)).sends(&[]).reaches_backend_of(&tcp);
        bed.send(&tcp.reply(ACK)).sends(&[]).reaches_client_of(&tcp);
        let moved = bed.begin(&udp.datagram(), UDP, &[Counter::FlowReclaimed, Counter::FlowOpened]);
        assert_ne!(moved.backend, udp.backend);
        bed.send(&moved.answer()).sends(&[]).reaches_client_of(&moved);
        bed.send(&udp.answer()).passes(Counter::PassNoFlow);
    }
}

#[test]
fn a_removed_member_without_a_successor_answers_nobody() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 1);
        let udp = bed.open_udp(net.client(1), net.vip());
        bed.gateway.set_member_flags(only_member(UDP), USABLE | member_flags::REMOVED);
        bed.send(&udp.datagram()).sends(&[
            Counter::FlowReclaimed,
            Counter::DropNoBackend,
            Counter::RefusalSent,
        ]);
        bed.send(&udp.datagram()).refuses(Counter::DropNoBackend);
    }
}

#[test]
fn a_member_without_a_next_hop_gets_nothing_and_its_replies_still_pass_through() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 2);
        let flow = bed.establish(net.client(1), net.vip());
        retire(&mut bed, &[flow], member_flags::VALID);
        bed.send(&flow.request(ACK)).drops(Counter::DropNoNextHop);
        bed.send(&flow.reply(ACK)).sends(&[]).reaches_client_of(&flow);
        for n in 2..30 {
            assert_ne!(bed.open(net.client(n), net.vip()).backend, flow.backend);
        }
    }
}
