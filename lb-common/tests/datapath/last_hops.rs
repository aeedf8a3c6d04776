//! Last hops: a reply goes back the way its flow's first packet came.

use lb_common::{
    abi::{Counter, LastHopWord, UDP},
    datapath::Verdict,
    host::{ACK, Frame, HostPacket, SYN, TAG_8021AD, TAG_8021Q},
};

use crate::{
    bed::{Bed, Flow, Net, seconds},
    sweep::sweep_twice,
};

/// How many last hops there are.
fn known(bed: &Bed) -> usize {
    let hops = &bed.gateway.maps.last_hops;
    (0..hops.len()).filter(|hop| !LastHopWord(hops.read::<[u64; 4]>(*hop)[0]).is_free()).count()
}

fn router(n: u16) -> [u8; 6] {
    let [high, low] = n.to_be_bytes();
    [2, 0, 0, 7, high, low]
}

#[test]
fn each_reply_goes_to_the_router_interface_and_vlan_that_its_flow_came_from() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 1);
        let mut expected = Vec::new();
        for n in 0..8_u16 {
            let tags = match n % 4 {
                0 => vec![],
                1 => vec![(TAG_8021Q, n)],
                2 => vec![(TAG_8021AD, n)],
                _ => vec![(TAG_8021AD, n), (TAG_8021Q, 7)],
            };
            let frame = Frame::udp(net.client(n.into()), net.vip()).macs(router(n), [2, 0, 0, 0, 0, 9]);
            let frame = frame.tags(&tags);
            let packet = HostPacket::new(&frame.build()).on(10 + n as u32);
            let step = bed.send_packet(packet).expect(Verdict::Redirect(1), &[Counter::FlowOpened]);
            let seen = step.seen();
            let flow = Flow {
                protocol: UDP,
                client: frame.source,
                vip: net.vip(),
                snat: seen.source,
                backend: seen.destination,
            };
            expected.push((n, flow, tags));
        }
        assert_eq!(known(&bed), 8);
        for (n, flow, tags) in expected {
            let step = bed.send(&flow.answer()).expect(Verdict::Redirect(10 + n as u32), &[]);
            let seen = step.reaches_client_of(&flow).seen();
            assert_eq!((seen.destination_mac, seen.source_mac), (router(n), [2, 0, 0, 0, 0, 9]));
            assert_eq!(seen.tags, tags);
        }
    }
}

#[test]
fn many_flows_share_one_last_hop() {
    let net = Net::V4;
    let bed = Bed::with_backends(net, 1);
    for n in 0..50 {
        bed.open_udp(net.client(n), net.vip());
        bed.wait(seconds(1));
    }
    assert_eq!(known(&bed), 1);
}

#[test]
fn a_requests_other_way_in_does_not_move_the_replies() {
    let net = Net::V6;
    let bed = Bed::with_backends(net, 1);
    let flow = bed.establish(net.client(1), net.vip());
    bed.send(&flow.request(ACK).macs(router(3), router(4))).sends(&[]);
    let seen = bed.send(&flow.reply(ACK)).sends(&[]).seen();
    let first = Frame::tcp(net.client(1), net.vip(), SYN);
    assert_eq!((seen.destination_mac, seen.source_mac), (first.source_mac, first.destination_mac));
}

#[test]
fn a_full_table_of_last_hops_drops_new_flows_and_keeps_the_old_ones() {
    let net = Net::V4;
    let bed = Bed::with_backends(net, 1);
    let flow = bed.establish(net.client(1), net.vip());
    let hops = &bed.gateway.maps.last_hops;
    for hop in 0..hops.len() {
        if LastHopWord(hops.read::<[u64; 4]>(hop)[0]).is_free() {
            hops.write(hop, &[LastHopWord::in_use(u64::from(hop) << 8, bed.tick()).0, 0, 0, 0]);
        }
    }
    let stranger = Frame::tcp(net.client(2), net.vip(), SYN).macs(router(1), router(2));
    bed.send(&stranger).drops(Counter::DropLastHopsFull);
    bed.send(&flow.reply(ACK)).sends(&[]).reaches_client_of(&flow);
    bed.establish(net.client(3), net.vip());
}

#[test]
fn a_freed_last_hop_is_learned_anew() {
    let net = Net::V4;
    let bed = Bed::with_backends(net, 1);
    bed.establish(net.client(1), net.vip());
    bed.wait(seconds(4000));
    sweep_twice(&bed);
    let maps = &bed.gateway.maps;
    let freed = (0..1024)
        .filter(|hop| lb_common::datapath::sweep::free_last_hop(&maps.cpu(0), *hop, bed.tick(), 8))
        .count();
    assert_eq!((freed, known(&bed)), (1, 0));
    let flow = bed.establish(net.client(2), net.vip());
    bed.send(&flow.reply(ACK)).sends(&[]).reaches_client_of(&flow);
}
