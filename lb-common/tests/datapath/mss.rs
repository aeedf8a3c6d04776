//! The largest segment that a SYN and its answer allow: lowered to what the way takes, else left alone.

use lb_common::{
    abi::{Counter, ReactionWord},
    host::{ACK, Frame, HostPacket, NextHop, RST, SYN, Seen, TAG_8021Q, Transport},
};
use proptest::prelude::*;

use crate::bed::{Bed, Flow, Net, SERVER_ISN};

/// What the narrowest link takes, in bytes of the IP packet.
const NARROW: u16 = 1400;
/// What others do.
const USUAL: u16 = 1500;

/// The largest segment that fits into so many bytes of IP.
const fn fitting(net: Net, mtu: u16) -> u16 {
    match net {
        Net::V4 => mtu - 40,
        Net::V6 => mtu - 60,
    }
}

fn mss(value: u16) -> Vec<u8> {
    let [high, low] = value.to_be_bytes();
    vec![2, 4, high, low]
}

fn with_options(frame: Frame, new: &[u8]) -> Frame {
    let mut frame = frame;
    if let Transport::Tcp { options, .. } = &mut frame.transport {
        *options = new.to_vec();
    }
    frame
}

/// The TCP options of a frame, whose checksums are right.
#[track_caller]
fn options_of(frame: &[u8], net: Net) -> Vec<u8> {
    let seen = Seen::parse(frame).unwrap();
    let header = if net == Net::V4 { 20 } else { 40 };
    let transport = 14 + 4 * seen.tags.len() + header;
    let end = transport + usize::from(frame[transport + 12] >> 4) * 4;
    frame[transport + 20..end].to_vec()
}

/// A gateway between links of these MTUs: towards the backend, and towards the client.
struct Way {
    net: Net,
    bed: Bed,
    client_mtu: u16,
    backend_mtu: u16,
}

impl Way {
    fn new(net: Net, client_mtu: u16, backend_mtu: u16) -> Self {
        let mut bed = Bed::with_backends(net, 1);
        bed.gateway.set_next_hop(1, &NextHop { mtu: backend_mtu, ..NextHop::default() });
        Self { net, bed, client_mtu, backend_mtu }
    }

    /// Sends a SYN with these options; gives the options that reach the backend, and the flow.
    #[track_caller]
    fn syn(&self, n: u32, options: &[u8], clamped: bool) -> (Vec<u8>, Flow) {
        let frame = with_options(Frame::tcp(self.net.client(n), self.net.vip(), SYN), options);
        let packet = HostPacket::new(&frame.build()).mtu(self.client_mtu);
        let mut counters = vec![Counter::FlowOpened];
        counters.extend(clamped.then_some(Counter::MssClamped));
        let step = self.bed.send_packet(packet).sends(&counters);
        let seen = step.seen();
        let (client, vip) = (frame.source, frame.destination);
        let flow = Flow { protocol: 6, client, vip, snat: seen.source, backend: seen.destination };
        (options_of(step.bytes(), self.net), flow)
    }

    /// The same of the answer, which reaches the client.
    #[track_caller]
    fn answer(&self, flow: &Flow, options: &[u8], clamped: bool) -> Vec<u8> {
        let frame = with_options(flow.reply(SYN | ACK), options);
        let packet = HostPacket::new(&frame.build()).mtu(self.backend_mtu);
        let counters = if clamped { &[Counter::MssClamped][..] } else { &[] };
        let step = self.bed.send_packet(packet).sends(counters).reaches_client_of(flow);
        options_of(step.bytes(), self.net)
    }
}

#[test]
fn both_ends_hear_what_the_narrower_side_takes() {
    for net in Net::BOTH {
        for (client_mtu, backend_mtu) in [(USUAL, NARROW), (NARROW, USUAL), (NARROW, NARROW)] {
            let way = Way::new(net, client_mtu, backend_mtu);
            let usual = mss(fitting(net, USUAL));
            let (syn, flow) = way.syn(1, &usual, true);
            assert_eq!(syn, mss(fitting(net, NARROW)), "{client_mtu} {backend_mtu}");
            assert_eq!(way.answer(&flow, &usual, true), mss(fitting(net, NARROW)));
        }
    }
}

#[test]
fn what_fits_is_left_alone() {
    for net in Net::BOTH {
        for (client_mtu, backend_mtu) in [(USUAL, NARROW), (NARROW, 0), (0, NARROW), (0, 0)] {
            let way = Way::new(net, client_mtu, backend_mtu);
            let fits = mss(fitting(net, NARROW));
            let (syn, flow) = way.syn(1, &fits, false);
            assert_eq!((syn, way.answer(&flow, &fits, false)), (fits.clone(), fits));
        }
    }
}

#[test]
fn who_does_not_say_is_not_made_to() {
    for net in Net::BOTH {
        let way = Way::new(net, USUAL, NARROW);
        for (n, options) in [
            &[][..],
            &[1; 40],
            &[0, 2, 4, 0x05, 0xb4, 0, 0, 0],
            // Lengths that lead nowhere: 0, 1, beyond the end; and an option of that number that is longer.
            &[3, 0, 2, 4, 0x05, 0xb4, 1, 1],
            &[3, 1, 2, 4, 0x05, 0xb4, 1, 1],
            &[3, 200, 2, 4, 0x05, 0xb4, 1, 1],
            &[2, 6, 0x05, 0xb4, 0, 0, 1, 1],
            // Cut off by the header's end.
            &[1, 1, 1, 1, 1, 2, 4, 0x05],
        ]
        .into_iter()
        .enumerate()
        {
            let (seen, flow) = way.syn(n as u32, options, false);
            assert_eq!(seen, options);
            assert_eq!(way.answer(&flow, options, false), options);
        }
    }
}

#[test]
fn a_payload_that_looks_like_the_option_is_none() {
    for net in Net::BOTH {
        let way = Way::new(net, USUAL, NARROW);
        let frame = Frame::tcp(net.client(1), net.vip(), SYN).payload(&mss(9000));
        let step = way.bed.send(&frame).sends(&[Counter::FlowOpened]);
        assert_eq!(step.seen().payload, mss(9000));
    }
}

#[test]
fn tags_options_and_extension_headers_are_no_obstacle() {
    for net in Net::BOTH {
        let mut way = Way::new(net, USUAL, NARROW);
        let hop = NextHop { mtu: NARROW, vlans: vec![5, 6], ..NextHop::default() };
        way.bed.gateway.set_next_hop(1, &hop);
        let frame = with_options(Frame::tcp(net.client(1), net.vip(), SYN), &mss(1460));
        let frame = match net {
            Net::V4 => frame.ip_options(&[1; 40]),
            Net::V6 => (0..4).fold(frame, |frame, _| frame.extension(60, 62)),
        };
        let frame = frame.tags(&[(TAG_8021Q, 9)]);
        let step = way.bed.send(&frame).sends(&[Counter::FlowOpened, Counter::MssClamped]);
        let seen = step.seen();
        assert_eq!(seen.tags.len(), 2);
        let end = step.bytes().len();
        assert_eq!(step.bytes()[end - 4..], mss(fitting(net, NARROW)));
    }
}

#[test]
fn a_syn_sent_again_is_clamped_again_and_no_other_segment_is() {
    for net in Net::BOTH {
        let way = Way::new(net, USUAL, NARROW);
        let (_, flow) = way.syn(1, &mss(9000), true);
        let again = with_options(Frame::tcp(net.client(1), net.vip(), SYN), &mss(9000));
        let step = way.bed.send(&again).sends(&[Counter::MssClamped]);
        assert_eq!(options_of(step.bytes(), net), mss(fitting(net, NARROW)));
        way.answer(&flow, &[], false);
        let ack = with_options(flow.request(ACK), &mss(9000)).numbers(1001, SERVER_ISN + 1);
        let step = way.bed.send(&ack).sends(&[Counter::FlowEstablished]);
        assert_eq!(options_of(step.bytes(), net), mss(9000));
    }
}

/// An option as a list of bytes, well formed; none says anything of segments.
#[test]
fn a_syn_that_goes_to_another_backend_still_says_what_its_client_s_link_takes() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 4);
        bed.gateway.set_reaction(0, ReactionWord::new(0, 0, true));
        bed.gateway.set_fallback(0, &[1, 2, 3, 4]);
        let usual = mss(fitting(net, USUAL));
        let frame = with_options(Frame::tcp(net.client(1), net.vip(), SYN), &usual);
        let packet = HostPacket::new(&frame.build()).mtu(NARROW);
        let opened = bed.send_packet(packet).sends(&[Counter::FlowOpened, Counter::MssClamped]);
        let seen = opened.seen();
        let (client, vip) = (frame.source, frame.destination);
        let flow = Flow { protocol: 6, client, vip, snat: seen.source, backend: seen.destination };
        let refusal = HostPacket::new(&flow.reply(RST | ACK).build()).mtu(USUAL);
        let rescued = [Counter::ConnectRefused, Counter::FlowRescued, Counter::MssClamped];
        let again = bed.send_packet(refusal).sends(&rescued);
        assert_ne!(again.seen().destination, flow.backend);
        assert_eq!(options_of(again.bytes(), net), mss(fitting(net, NARROW)));
    }
}

fn option() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(vec![1]),
        (3_u8..=30, prop::collection::vec(any::<u8>(), 0..9)).prop_map(|(kind, content)| {
            let mut option = vec![kind, content.len() as u8 + 2];
            option.extend(content);
            option
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Wherever it stands, at odd places too, the option and the checksum change, and nothing else.
    #[test]
    fn it_is_found_wherever_it_stands(
        v6: bool,
        before in prop::collection::vec(option(), 0..8),
        after in prop::collection::vec(option(), 0..4),
        value: u16,
    ) {
        let net = if v6 { Net::V6 } else { Net::V4 };
        let before = before.concat();
        let mut options = [before.as_slice(), &mss(value), &after.concat()].concat();
        prop_assume!(before.len() + 4 <= 40);
        options.truncate(40);
        while options.len() % 4 != 0 {
            options.push(0);
        }
        let way = Way::new(net, USUAL, NARROW);
        let most = fitting(net, NARROW);
        let (seen, _) = way.syn(1, &options, value > most);
        let mut expected = options;
        expected[before.len()..before.len() + 4].copy_from_slice(&mss(value.min(most)));
        prop_assert_eq!(seen, expected);
    }
}
