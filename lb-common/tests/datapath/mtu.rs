//! Packets that are longer than what the link takes that they would leave by: their sender is told.

use lb_common::{
    abi::{Counter, FlowState, LastHop},
    datapath::Verdict,
    host::{ACK, FIN, Frame, HostPacket, NextHop, SYN, TAG_8021Q},
};

use crate::{
    bed::{Bed, Flow, Net, Step},
    told::{Told, What},
};

/// What a narrow link takes, in bytes of the IP packet.
const NARROW: u16 = 1400;
/// What every other one does.
const USUAL: u16 = 1500;

/// A bed with one backend, behind a link of this MTU.
fn behind(net: Net, mtu: u16) -> Bed {
    let mut bed = Bed::with_backends(net, 1);
    for member in [1, 2] {
        bed.gateway.set_next_hop(member, &NextHop { mtu, ..NextHop::default() });
    }
    bed
}

/// The frame, its payload so long that its packet has so many bytes.
fn sized(frame: Frame, packet: usize) -> Frame {
    let headers = Frame { payload: Vec::new(), padding: 0, ..frame.clone() }.build().len();
    let payload = vec![0x5a; packet + frame.network_offset() - headers];
    Frame { payload, ..frame }
}

/// Sends a frame that came in by an interface of the usual MTU.
#[track_caller]
fn send(bed: &Bed, frame: &Frame) -> Step {
    bed.send_packet(HostPacket::new(&frame.build()).mtu(USUAL))
}

/// Expects a frame to be dropped, and its sender to hear which MTU it is too long for.
#[track_caller]
fn too_big(bed: &Bed, net: Net, frame: &Frame, mtu: u16) {
    let step = send(bed, frame).refuses(Counter::DropTooBig);
    let sent = frame.build();
    let packet = &sent[frame.network_offset()..sent.len() - frame.padding];
    let (kind, code, most) = if net == Net::V4 { (3, 4, 576 - 28) } else { (2, 0, 1280 - 48) };
    let told = Told::read(step.bytes());
    // The backend knows the gateway by the address that it answers, the client by the VIP.
    assert_eq!((told.source, told.destination), (frame.destination.ip(), frame.source.ip()));
    let quote = packet[..most.min(packet.len())].to_vec();
    assert_eq!(told.what, What::Icmp { kind, code, rest: mtu.into(), quote });
}

fn tcp(net: Net, bed: &Bed, n: u32) -> Flow {
    bed.establish(net.client(n), net.vip())
}

#[test]
fn requests_longer_than_the_way_to_the_backend_takes_are_refused_with_its_mtu() {
    for net in Net::BOTH {
        let bed = behind(net, NARROW);
        let flow = tcp(net, &bed, 1);
        let udp = bed.open_udp(net.client(2), net.vip());
        for frame in [flow.request(ACK), udp.datagram()] {
            for tags in [&[][..], &[(TAG_8021Q, 7)], &[(TAG_8021Q, 7), (TAG_8021Q, 8)]] {
                let frame = frame.clone().tags(tags);
                send(&bed, &sized(frame.clone(), NARROW.into())).sends(&[]);
                too_big(&bed, net, &sized(frame.clone(), usize::from(NARROW) + 1), NARROW);
                too_big(&bed, net, &sized(frame, USUAL.into()), NARROW);
            }
        }
        assert_eq!(bed.state(&flow), Some(FlowState::Established));
    }
}

#[test]
fn a_datagram_too_long_for_the_way_makes_the_flow_that_the_next_one_finds() {
    for net in Net::BOTH {
        let bed = behind(net, NARROW);
        let datagram = sized(Frame::udp(net.client(1), net.vip()), 1450);
        send(&bed, &datagram)
            .expect(Verdict::Transmit, &[Counter::FlowOpened, Counter::DropTooBig, Counter::RefusalSent]);
        send(&bed, &sized(datagram, 1300)).sends(&[]);
    }
}

#[test]
fn dont_fragment_makes_no_difference_for_the_gateway_fragments_nothing() {
    let bed = behind(Net::V4, NARROW);
    let flow = tcp(Net::V4, &bed, 1);
    for fragment in [0, 0x4000] {
        let frame = Frame { fragment, ..flow.request(ACK) };
        too_big(&bed, Net::V4, &sized(frame, 1401), NARROW);
    }
}

#[test]
fn padding_does_not_count() {
    for net in Net::BOTH {
        let bed = behind(net, NARROW);
        let flow = tcp(net, &bed, 1);
        let padded = |length| Frame { padding: 30, ..sized(flow.request(ACK), length) };
        send(&bed, &padded(NARROW.into())).sends(&[]);
        too_big(&bed, net, &padded(usize::from(NARROW) + 1), NARROW);
    }
}

#[test]
fn what_an_offload_put_together_is_no_packet_of_any_link() {
    for net in Net::BOTH {
        let bed = behind(net, NARROW);
        let flow = tcp(net, &bed, 1);
        send(&bed, &sized(flow.request(ACK), usize::from(USUAL) + 1)).sends(&[]);
        send(&bed, &sized(flow.request(ACK), 9000)).sends(&[]);
    }
}

#[test]
fn without_a_known_mtu_everything_fits() {
    for net in Net::BOTH {
        let bed = behind(net, 0);
        let flow = tcp(net, &bed, 1);
        send(&bed, &sized(flow.request(ACK), USUAL.into())).sends(&[]);
        // Nor does it come out of an interface of which nothing is known.
        bed.send(&sized(flow.reply(ACK), 9000)).sends(&[]);
    }
}

#[test]
fn replies_longer_than_the_way_to_the_client_takes_are_refused_with_its_mtu() {
    for net in Net::BOTH {
        let bed = behind(net, USUAL);
        // The client is behind the narrow link.
        let syn = Frame::tcp(net.client(1), net.vip(), SYN);
        let step = bed
            .send_packet(HostPacket::new(&syn.build()).mtu(NARROW))
            .expect(Verdict::Transmit, &[Counter::FlowOpened]);
        let seen = step.seen();
        let flow = Flow {
            protocol: 6,
            client: net.client(1),
            vip: net.vip(),
            snat: seen.source,
            backend: seen.destination,
        };
        send(&bed, &flow.reply(SYN | ACK)).sends(&[]);
        send(&bed, &flow.request(ACK)).sends(&[Counter::FlowEstablished]);
        send(&bed, &sized(flow.reply(ACK), NARROW.into())).sends(&[]);
        too_big(&bed, net, &sized(flow.reply(ACK), usize::from(NARROW) + 1), NARROW);
        too_big(&bed, net, &sized(flow.reply(FIN | ACK), USUAL.into()), NARROW);
    }
}

#[test]
fn an_interface_whose_mtu_changes_is_another_last_hop() {
    let bed = Bed::with_backends(Net::V4, 1);
    for (n, mtu) in [(1, USUAL), (2, NARROW), (3, USUAL)] {
        let syn = Frame::tcp(Net::V4.client(n), Net::V4.vip(), SYN).build();
        bed.send_packet(HostPacket::new(&syn).mtu(mtu)).sends(&[Counter::FlowOpened]);
    }
    let hops = &bed.gateway.maps.last_hops;
    let mut known: Vec<u16> = (0..hops.len())
        .map(|index| hops.read::<LastHop>(index))
        .filter(|hop| hop.word != 0)
        .map(|hop| hop.mtu)
        .collect();
    known.sort_unstable();
    assert_eq!(known, [NARROW, USUAL]);
}
