//! Histories of packets against a NAT that is a hash map.
//!
//! The model doesn't know which flows the program evicts, but it knows the rules: what is delivered is
//! delivered to whom the model says, an established flow is delivered always, and the tables agree.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use lb_common::{
    abi::{Counter, FlowState, ReactionWord, TCP, UDP},
    datapath::Verdict,
    host::{ACK, FIN, Frame, GatewayConfig, RST, SYN},
};
use proptest::{collection::vec, prelude::*};

use crate::{
    bed::{Bed, Flow, Net},
    sweep::sweep,
};

#[derive(Clone, Debug)]
enum Action {
    /// A TCP segment of a client's, with the right acknowledgement number or a wrong one.
    Segment {
        client: u32,
        flags: u8,
        right: bool,
    },
    Datagram {
        client: u32,
    },
    /// The backend's segment in the flow that this client had last.
    Answer {
        client: u32,
        flags: u8,
    },
    UdpAnswer {
        client: u32,
    },
    Wait {
        milliseconds: u64,
    },
    Sweep,
}

const CLIENTS: u32 = 24;

fn actions() -> impl Strategy<Value = Action> {
    let flags = prop_oneof![
        4 => Just(ACK),
        4 => Just(SYN),
        3 => Just(SYN | ACK),
        2 => Just(FIN | ACK),
        1 => Just(RST),
        1 => any::<u8>().prop_map(|flags| flags & 0x3f),
    ];
    prop_oneof![
        12 => (0..CLIENTS, flags.clone(), prop::bool::weighted(0.8))
            .prop_map(|(client, flags, right)| Action::Segment { client, flags, right }),
        4 => (0..CLIENTS).prop_map(|client| Action::Datagram { client }),
        12 => (0..CLIENTS, flags).prop_map(|(client, flags)| Action::Answer { client, flags }),
        3 => (0..CLIENTS).prop_map(|client| Action::UdpAnswer { client }),
        2 => (0..8000_u64).prop_map(|milliseconds| Action::Wait { milliseconds }),
        1 => Just(Action::Sweep),
    ]
}

#[derive(Default)]
struct Model {
    /// The flow that each client was given last, by client and protocol.
    flows: HashMap<(SocketAddr, u8), Flow>,
    /// Who was given a port last, by (backend, SNAT end, protocol).
    owners: HashMap<(SocketAddr, SocketAddr, u8), SocketAddr>,
}

impl Model {
    fn request(&mut self, bed: &Bed, frame: &Frame, protocol: u8) {
        let established = self.live(bed, frame.source, protocol);
        let opened = bed.gateway.maps.counter(Counter::FlowOpened);
        let rescues = bed.gateway.maps.counter(Counter::FlowRescued);
        let refusals = bed.gateway.maps.counter(Counter::RefusalSent);
        let step = bed.send(frame);
        let is_new = bed.gateway.maps.counter(Counter::FlowOpened) > opened;
        let rescued = bed.gateway.maps.counter(Counter::FlowRescued) > rescues;
        assert!(!(is_new && established.is_some()), "an established flow is not made anew");
        if step.verdict != Verdict::Transmit {
            assert!(established.is_none(), "{frame:?} of an established flow: {step:?}");
            return;
        }
        let seen = step.seen();
        if bed.gateway.maps.counter(Counter::RefusalSent) > refusals {
            assert!(established.is_none(), "{frame:?} of an established flow: {step:?}");
            assert_eq!(seen.destination.ip(), frame.source.ip(), "to nobody but its sender");
            return;
        }
        let path = Flow {
            protocol,
            client: frame.source,
            vip: frame.destination,
            snat: seen.source,
            backend: seen.destination,
        };
        if is_new || rescued {
            self.owners.insert((path.backend, path.snat, protocol), path.client);
            self.flows.insert((path.client, protocol), path);
        }
        assert_eq!(self.flows.get(&(path.client, protocol)), Some(&path), "the flow's own path");
    }

    fn answer(&mut self, bed: &Bed, flow: &Flow, frame: &Frame) {
        let established = self.live(bed, flow.client, flow.protocol);
        let refusals = bed.gateway.maps.counter(Counter::DropRefused);
        let rescues = bed.gateway.maps.counter(Counter::FlowRescued);
        let step = bed.send(frame);
        if step.verdict != Verdict::Transmit {
            let swallowed = bed.gateway.maps.counter(Counter::DropRefused) > refusals;
            assert_eq!(step.verdict, if swallowed { Verdict::Drop } else { Verdict::Pass });
            assert!(established.is_none(), "{frame:?} of an established flow: {step:?}");
            return;
        }
        let owner = self.owners[&(flow.backend, flow.snat, flow.protocol)];
        let seen = step.seen();
        if bed.gateway.maps.counter(Counter::FlowRescued) > rescues {
            // The refusal has become the owner's SYN, to another backend.
            assert_eq!((seen.flags, seen.destination != flow.backend), (SYN, true));
            let path = Flow { client: owner, snat: seen.source, backend: seen.destination, ..*flow };
            self.owners.insert((path.backend, path.snat, TCP), owner);
            self.flows.insert((owner, TCP), path);
            return;
        }
        assert_eq!((seen.source, seen.destination), (flow.vip, owner), "to nobody but the port's owner");
    }

    /// The client's flow, if it is established: nothing may cut it off.
    fn live(&self, bed: &Bed, client: SocketAddr, protocol: u8) -> Option<Flow> {
        let flow = self.flows.get(&(client, protocol)).copied()?;
        let owner = self.owners.get(&(flow.backend, flow.snat, protocol));
        (owner == Some(&client) && bed.state(&flow) == Some(FlowState::Established)).then_some(flow)
    }

    /// Every flow that is established now; they have to survive what comes next.
    fn established(&self, bed: &Bed) -> Vec<Flow> {
        self.flows.keys().filter_map(|(client, protocol)| self.live(bed, *client, *protocol)).collect()
    }
}

fn run(net: Net, settings: &GatewayConfig, history: &[Action]) {
    let mut bed = Bed::sized(net, 3, settings);
    bed.gateway.set_reaction(0, ReactionWord::new(3, 2_000, true));
    let mut model = Model::default();
    for action in history {
        let established = model.established(&bed);
        match *action {
            Action::Segment { client, flags, right } => {
                let frame = Frame::tcp(net.client(client), net.vip(), flags);
                let sequence = if flags & SYN != 0 { 1000 } else { 1001 };
                model.request(&bed, &frame.numbers(sequence, if right { 5001 } else { 9 }), TCP);
            }
            Action::Datagram { client } => {
                model.request(&bed, &Frame::udp(net.client(client), net.vip()), UDP);
            }
            Action::Answer { client, flags } => {
                if let Some(flow) = model.flows.get(&(net.client(client), TCP)).copied() {
                    model.answer(&bed, &flow, &flow.reply(flags));
                }
            }
            Action::UdpAnswer { client } => {
                if let Some(flow) = model.flows.get(&(net.client(client), UDP)).copied() {
                    model.answer(&bed, &flow, &flow.answer());
                }
            }
            Action::Wait { milliseconds } => bed.wait(Duration::from_millis(milliseconds)),
            Action::Sweep => {
                sweep(&bed);
            }
        }
        for flow in established {
            assert!(bed.state(&flow).is_some(), "{action:?} evicted the established {flow:?}");
        }
        bed.check();
    }
}

/// Tables that hold every flow.
fn roomy() -> GatewayConfig {
    let mut settings = GatewayConfig { port_words: 2, ..GatewayConfig::default() };
    settings.sizes.flow_buckets = 64;
    settings.sizes.reverse_v4_buckets = 64;
    settings.sizes.reverse_v6_buckets = 64;
    settings
}

/// Tables that are always full.
fn crowded() -> GatewayConfig {
    let mut settings = GatewayConfig { port_words: 1, ..GatewayConfig::default() };
    settings.sizes.flow_buckets = 4;
    settings.sizes.reverse_v4_buckets = 2;
    settings.sizes.reverse_v6_buckets = 2;
    settings
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_program_agrees_with_a_hash_map(history in vec(actions(), 1..250), v6 in any::<bool>()) {
        run(if v6 { Net::V6 } else { Net::V4 }, &roomy(), &history);
    }

    #[test]
    fn the_program_agrees_with_a_hash_map_when_tables_are_full(
        history in vec(actions(), 1..250),
        v6 in any::<bool>(),
    ) {
        run(if v6 { Net::V6 } else { Net::V4 }, &crowded(), &history);
    }
}
