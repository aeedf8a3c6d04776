//! SNAT ports: unique, exhausted visibly, taken back from flows that can spare them.

use std::collections::BTreeSet;

use lb_common::{
    abi::{Counter, EventKind, FlowState, ReverseWord, pack_forward},
    clock::TICK_NS,
    datapath::{Cells, Verdict},
    host::{ACK, FIN, Frame, GatewayConfig, RST, SYN, Seen, ledger},
};

use crate::{
    bed::{Bed, Flow, Net, seconds},
    sweep::sweep_twice,
};

const PORTS: u32 = 64;

/// One backend with 64 ports at one SNAT address, and room for many more flows.
fn small(net: Net) -> Bed {
    Bed::sized(net, 1, &GatewayConfig { port_words: 1, ..GatewayConfig::default() })
}

/// Fills all ports with flows, each brought into a state by `make`.
fn fill(bed: &Bed, net: Net, make: impl Fn(&Bed, std::net::SocketAddr) -> Flow) -> Vec<Flow> {
    let flows: Vec<_> = (0..PORTS).map(|n| make(bed, net.client(n))).collect();
    let ports: BTreeSet<_> = flows.iter().map(|flow| flow.snat).collect();
    assert_eq!(ports.len(), PORTS as usize, "ports are unique");
    assert_eq!(ledger::taken_ports(&bed.gateway.maps).len(), PORTS as usize);
    flows
}

fn syn(net: Net) -> Frame {
    Frame::tcp(net.client(200), net.vip(), SYN)
}

#[track_caller]
fn reclaims(bed: &Bed, net: Net) -> Flow {
    let flow = bed.begin(&syn(net), 6, &[Counter::PortReclaimed, Counter::FlowOpened]);
    assert_eq!(bed.flows(), PORTS as usize, "one went, one came");
    bed.accept(&flow);
    flow
}

#[test]
fn the_last_port_is_followed_by_a_drop_and_an_event() {
    for net in Net::BOTH {
        let bed = small(net);
        let flows = fill(&bed, net, |bed, client| bed.establish(client, net.vip()));
        let _ = bed.gateway.maps.take_events();
        for _ in 0..3 {
            bed.send(&syn(net)).drops(Counter::DropPortsExhausted);
        }
        let events = bed.gateway.maps.take_events();
        assert!(events.iter().all(|event| event.kind == EventKind::PortsExhausted as u8));
        assert_eq!(events.len(), 3);
        for flow in &flows {
            bed.send(&flow.request(ACK)).sends(&[]).reaches_backend_of(flow);
            bed.send(&flow.reply(ACK)).sends(&[]).reaches_client_of(flow);
        }
    }
}

#[test]
fn a_port_is_free_again_when_its_flow_is_gone() {
    for net in Net::BOTH {
        let bed = small(net);
        fill(&bed, net, |bed, client| bed.establish(client, net.vip()));
        bed.wait(seconds(3602));
        sweep_twice(&bed);
        assert!(ledger::taken_ports(&bed.gateway.maps).is_empty());
        fill(&bed, net, |bed, client| bed.establish(client, net.vip()));
    }
}

#[test]
fn closed_flows_give_up_their_ports_before_their_time() {
    for net in Net::BOTH {
        let bed = small(net);
        fill(&bed, net, |bed, client| {
            let flow = bed.establish(client, net.vip());
            bed.send(&flow.request(FIN | ACK)).sends(&[]);
            bed.send(&flow.reply(FIN | ACK)).sends(&[]);
            flow
        });
        reclaims(&bed, net);
    }
}

#[test]
fn refused_and_half_open_flows_give_up_their_ports() {
    for net in Net::BOTH {
        let bed = small(net);
        fill(&bed, net, |bed, client| bed.refuse(client, net.vip()));
        reclaims(&bed, net);
        let bed = small(net);
        fill(&bed, net, |bed, client| bed.open(client, net.vip()));
        reclaims(&bed, net);
    }
}

#[test]
fn flows_that_saw_a_reset_give_up_their_ports_after_a_quiet_second() {
    for net in Net::BOTH {
        for from_client in [true, false] {
            let bed = small(net);
            fill(&bed, net, |bed, client| {
                let flow = bed.establish(client, net.vip());
                bed.send(&if from_client { flow.request(RST) } else { flow.reply(RST) }).sends(&[]);
                flow
            });
            bed.send(&syn(net)).drops(Counter::DropPortsExhausted);
            bed.wait(seconds(2));
            reclaims(&bed, net);
        }
    }
}

#[test]
fn expired_flows_give_up_their_ports_without_an_agent() {
    for net in Net::BOTH {
        let bed = small(net);
        let flows = fill(&bed, net, |bed, client| bed.establish(client, net.vip()));
        bed.wait(seconds(3590));
        // One direction is enough to stay alive.
        flows.iter().for_each(|flow| drop(bed.send(&flow.reply(ACK)).sends(&[])));
        bed.wait(seconds(100));
        bed.send(&syn(net)).drops(Counter::DropPortsExhausted);
        bed.wait(seconds(3600));
        reclaims(&bed, net);
    }
}

#[test]
fn expired_udp_flows_give_up_their_ports_too() {
    for net in Net::BOTH {
        let bed = small(net);
        fill(&bed, net, |bed, client| {
            let flow = bed.open_udp(client, net.vip());
            bed.send(&flow.answer()).sends(&[]);
            bed.send(&flow.datagram()).sends(&[]);
            flow
        });
        let datagram = Frame::udp(net.client(200), net.vip());
        bed.send(&datagram).drops(Counter::DropPortsExhausted);
        bed.wait(seconds(62));
        bed.begin(&datagram, 17, &[Counter::PortReclaimed, Counter::FlowOpened]);
    }
}

#[test]
fn a_dead_flow_goes_before_a_half_open_one() {
    let net = Net::V4;
    let mut settings = GatewayConfig {
        port_words: 20,
        events_per_tick: 10_000,
        flow_events_per_tick: 10_000,
        ..GatewayConfig::default()
    };
    settings.sizes.flow_buckets = 4096;
    settings.sizes.reverse_v4_buckets = 4096;
    let bed = Bed::sized(net, 1, &settings);
    let mut n = 0;
    // Every other one is refused: the search finds either kind within its reach.
    while ledger::taken_ports(&bed.gateway.maps).len() < 1280 {
        let frame = Frame::tcp(net.client(n), net.vip(), SYN);
        let (verdict, packet) = bed.send_unchecked(&frame);
        assert_eq!(verdict, Verdict::Transmit);
        if n % 2 == 0 {
            let seen = Seen::parse(packet.bytes()).unwrap();
            let refusal = Frame::tcp(seen.destination, seen.source, RST | ACK).numbers(0, 1001);
            assert_eq!(bed.send_unchecked(&refusal).0, Verdict::Transmit);
        }
        n += 1;
        assert!(n < 1400);
    }
    let count = |bed: &Bed| {
        ledger::forwards(&bed.gateway.maps).iter().filter(|f| f.word.state() == FlowState::SynSent).count()
    };
    let half_open = count(&bed);
    for extra in 0..100 {
        let flow = Frame::tcp(net.client(5000 + extra), net.vip(), SYN);
        bed.begin(&flow, 6, &[Counter::PortReclaimed, Counter::FlowOpened]);
    }
    assert_eq!(count(&bed), half_open + 100, "no half-open flow had to go");
}

#[test]
fn a_second_snat_address_doubles_the_ports() {
    for net in Net::BOTH {
        let mut settings = GatewayConfig { port_words: 1, ..GatewayConfig::default() };
        settings.sizes.snat_stride = 2;
        settings.snat.extend([
            std::net::IpAddr::from([192, 168, 0, 3]),
            std::net::IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 3]),
        ]);
        let bed = Bed::sized(net, 1, &settings);
        let flows: Vec<_> = (0..2 * PORTS).map(|n| bed.establish(net.client(n), net.vip())).collect();
        let ends: BTreeSet<_> = flows.iter().map(|flow| flow.snat).collect();
        assert_eq!(ends.len(), 2 * PORTS as usize);
        let addresses: BTreeSet<_> = ends.iter().map(|end| end.ip()).collect();
        assert_eq!(addresses.len(), 2);
        bed.send(&syn(net)).drops(Counter::DropPortsExhausted);
        for flow in &flows {
            bed.send(&flow.reply(ACK)).sends(&[]).reaches_client_of(flow);
        }
    }
}

#[test]
fn each_backend_has_ports_of_its_own() {
    for net in Net::BOTH {
        let settings = GatewayConfig { port_words: 1, ..GatewayConfig::default() };
        let bed = Bed::sized(net, 2, &settings);
        let flows: Vec<_> = (0..100).map(|n| bed.establish(net.client(n), net.vip())).collect();
        let ends: BTreeSet<_> = flows.iter().map(|flow| (flow.snat, flow.backend)).collect();
        assert_eq!(ends.len(), 100);
    }
}

#[test]
fn where_the_reverse_table_is_full_the_bit_is_given_back() {
    for net in Net::BOTH {
        let bed = one_reverse_bucket(net);
        for n in 0..4 {
            bed.establish(net.client(n), net.vip());
        }
        bed.send(&syn(net)).drops(Counter::DropPortsExhausted);
        assert_eq!(ledger::taken_ports(&bed.gateway.maps).len(), 4);
    }
}

#[test]
fn ports_stay_within_the_range_up_to_the_very_last() {
    for net in Net::BOTH {
        for base in [1024, 65472] {
            let settings = GatewayConfig { port_base: base, port_words: 1, ..GatewayConfig::default() };
            let bed = Bed::sized(net, 1, &settings);
            let flows = fill(&bed, net, |bed, client| bed.establish(client, net.vip()));
            let ports: BTreeSet<_> = flows.iter().map(|flow| flow.snat.port()).collect();
            assert_eq!(ports, (base..=base + 63).collect());
        }
    }
}

#[test]
fn fourteen_thousand_connections_fit_on_one_backend() {
    for net in Net::BOTH {
        let mut settings = GatewayConfig::default();
        settings.sizes.flow_buckets = 8192;
        settings.sizes.reverse_v4_buckets = 8192;
        settings.sizes.reverse_v6_buckets = 8192;
        let bed = Bed::sized(net, 1, &settings);
        let mut ends = BTreeSet::new();
        for n in 0..14_000 {
            let client = (net.client(n % 200).ip(), (10_000 + n) as u16).into();
            let flow = bed
                .establish_unchecked(client, net.vip())
                .unwrap_or_else(|| panic!("{n}: {:?}", bed.gateway.maps.counts()));
            assert!(ends.insert(flow.snat), "port {} twice", flow.snat);
        }
        bed.check();
    }
}

/// Flow slots and reverse entries of [`crowded`].
const PLACES: u32 = 64;

/// One backend with all its ports, and tables that fill up long before them.
fn crowded(net: Net) -> Bed {
    let mut settings = GatewayConfig { events_per_tick: 10_000, ..GatewayConfig::default() };
    settings.sizes.flow_buckets = PLACES / 4;
    settings.sizes.reverse_v4_buckets = PLACES / 4;
    settings.sizes.reverse_v6_buckets = PLACES / 4;
    Bed::sized(net, 1, &settings)
}

#[test]
fn closed_flows_keep_no_new_one_out_however_full_the_tables_are() {
    for net in Net::BOTH {
        for live in [0, PLACES / 8, PLACES / 4, PLACES / 2] {
            let bed = crowded(net);
            let flows: Vec<_> = (0..live).map(|n| bed.establish(net.client(n), net.vip())).collect();
            for n in 0..20 * PLACES {
                let client = (net.client(250).ip(), (20_000 + n) as u16).into();
                let (verdict, packet) = bed.send_unchecked(&Frame::tcp(client, net.vip(), SYN));
                assert_eq!(verdict, Verdict::Transmit, "{n} beside {live}: {:?}", bed.gateway.maps.counts());
                let seen = Seen::parse(packet.bytes()).unwrap();
                let refusal = Frame::tcp(seen.destination, seen.source, RST | ACK).numbers(0, 1001);
                assert_eq!(bed.send_unchecked(&refusal).0, Verdict::Transmit);
            }
            bed.check();
            for flow in &flows {
                bed.send(&flow.request(ACK)).sends(&[]).reaches_backend_of(flow);
                bed.send(&flow.reply(ACK)).sends(&[]).reaches_client_of(flow);
            }
        }
    }
}

/// A reverse table of one bucket, four ways, and room for more in the flow table.
fn one_reverse_bucket(net: Net) -> Bed {
    let mut settings = GatewayConfig::default();
    settings.sizes.reverse_v4_buckets = 1;
    settings.sizes.reverse_v6_buckets = 1;
    Bed::sized(net, 1, &settings)
}

#[test]
fn a_full_reverse_bucket_gives_up_a_closed_flow_then_a_half_open_one_and_never_a_live_one() {
    for net in Net::BOTH {
        let bed = one_reverse_bucket(net);
        let mut live = vec![bed.establish(net.client(1), net.vip())];
        let half_open = bed.open(net.client(2), net.vip());
        live.push(bed.establish(net.client(3), net.vip()));
        let closed = bed.refuse(net.client(4), net.vip());
        let reclaimed = [Counter::PortReclaimed, Counter::FlowOpened];

        let fifth = bed.begin(&Frame::tcp(net.client(5), net.vip(), SYN), 6, &reclaimed);
        assert_eq!((bed.state(&closed), bed.state(&half_open)), (None, Some(FlowState::SynSent)));
        bed.accept(&fifth);
        live.push(fifth);

        let sixth = bed.begin(&Frame::tcp(net.client(6), net.vip(), SYN), 6, &reclaimed);
        assert_eq!(bed.state(&half_open), None);
        bed.send(&half_open.reply(SYN | ACK)).passes(Counter::PassNoFlow);
        bed.accept(&sixth);
        live.push(sixth);

        bed.send(&syn(net)).drops(Counter::DropPortsExhausted);
        for flow in &live {
            bed.send(&flow.request(ACK)).sends(&[]).reaches_backend_of(flow);
            bed.send(&flow.reply(ACK)).sends(&[]).reaches_client_of(flow);
        }
    }
}

#[test]
fn a_full_reverse_bucket_gives_up_an_expired_flow_once_both_sides_are_idle() {
    for net in Net::BOTH {
        let bed = one_reverse_bucket(net);
        let flows = [1, 2, 3, 4].map(|n| bed.establish(net.client(n), net.vip()));
        bed.wait(seconds(3500));
        flows.iter().for_each(|flow| drop(bed.send(&flow.reply(ACK)).sends(&[])));
        bed.wait(seconds(200));
        bed.send(&syn(net)).drops(Counter::DropPortsExhausted);
        bed.wait(seconds(3500));
        bed.send(&flows[2].request(ACK)).sends(&[]);
        let new = bed.begin(&syn(net), 6, &[Counter::PortReclaimed, Counter::FlowOpened]);
        bed.accept(&new);
        assert_eq!(bed.state(&flows[2]), Some(FlowState::Established), "its client was there");
        assert_eq!(bed.flows(), 4);
    }
}

#[test]
fn closed_flows_among_live_ones_are_found_in_a_small_port_range() {
    const CLOSED: u32 = 16;
    for net in Net::BOTH {
        let bed = small(net);
        let flows = fill(&bed, net, |bed, client| bed.establish(client, net.vip()));
        for flow in &flows[..CLOSED as usize] {
            bed.send(&flow.request(FIN | ACK)).sends(&[]);
            bed.send(&flow.reply(FIN | ACK)).sends(&[]);
        }
        let served = (0..CLOSED)
            .filter(|n| {
                bed.send_unchecked(&Frame::tcp(net.client(100 + n), net.vip(), SYN)).0 == Verdict::Transmit
            })
            .count();
        bed.check();
        // Each looks at 16 of the 64 ports; the later ones have fewer to find.
        assert!(served >= 10, "{served} of {CLOSED}");
    }
}

#[test]
fn nobody_goes_for_a_port_that_another_processor_is_just_taking() {
    for net in Net::BOTH {
        let bed = one_reverse_bucket(net);
        let flow = bed.open_udp(net.client(1), net.vip());
        // Bits without entries, as between the two steps of an insertion.
        for bitmap in (0..64).filter_map(|backend| bed.gateway.maps.ports.get(backend)) {
            (0..256).for_each(|word| _ = bitmap.fetch_or(word, u64::MAX));
        }
        for n in 0..4 {
            assert_eq!(bed.send_unchecked(&Frame::tcp(net.client(200 + n), net.vip(), SYN)).0, Verdict::Drop);
        }
        assert_eq!(bed.state(&flow), Some(FlowState::UdpNew));
    }
}

#[test]
fn a_flow_whose_port_was_taken_for_free_keeps_it() {
    for net in Net::BOTH {
        let bed = small(net);
        let first = bed.establish(net.client(0), net.vip());
        let bitmap = bed.gateway.maps.ports.get(1).unwrap();
        bitmap.fetch_and(0, 0);
        let mut ends = BTreeSet::from([first.snat]);
        for n in 1..PORTS {
            let flow = bed.establish_unchecked(net.client(n), net.vip()).expect("a port of its own");
            assert!(ends.insert(flow.snat), "port {} twice", flow.snat);
        }
        bed.check();
        bed.send(&syn(net)).drops(Counter::DropPortsExhausted);
        bed.send(&first.reply(ACK)).sends(&[]).reaches_client_of(&first);
    }
}

#[test]
fn a_flow_whose_port_was_taken_for_free_keeps_it_where_its_bucket_is_full() {
    for net in Net::BOTH {
        let bed = one_reverse_bucket(net);
        let flows = [1, 2, 3, 4].map(|n| bed.establish(net.client(n), net.vip()));
        let taken = ledger::taken_ports(&bed.gateway.maps);
        let bitmap = bed.gateway.maps.ports.get(1).unwrap();
        // Nothing is free but the ports of the flows.
        let words = taken.iter().map(|(_, _, port)| (port - bed.config().port_base) / 64);
        (0..256).for_each(|word| _ = bitmap.fetch_or(word, u64::MAX));
        for ((_, _, port), word) in taken.iter().zip(words) {
            bitmap.fetch_and(word.into(), !(1 << (port - bed.config().port_base - word * 64)));
        }
        let within_reach = |n: &u32| {
            bed.send_unchecked(&Frame::tcp(net.client(100 + n), net.vip(), SYN));
            (0..256).all(|word| bitmap.load(word) == u64::MAX)
        };
        assert!((0..1000).any(|n| within_reach(&n)), "all four are found to be in use");
        for flow in &flows {
            assert_eq!(bed.state(flow), Some(FlowState::Established));
        }
    }
}

#[test]
fn an_entry_that_outlived_its_flow_costs_no_other_flow_its_place() {
    for net in Net::BOTH {
        let bed = one_reverse_bucket(net);
        let maps = &bed.gateway.maps;
        let spared = bed.open(net.client(1), net.vip());
        let live = [2, 3].map(|n| bed.establish(net.client(n), net.vip()));
        let gone = bed.establish(net.client(4), net.vip());
        // Its flow went without it, and so long ago that the slot's version is another flow's now.
        let forwards = ledger::forwards(maps);
        let slot_of =
            |flow: &Flow| forwards.iter().find(|it| it.word.port() == flow.snat.port()).unwrap().flow;
        let (left, named) = (slot_of(&gone), slot_of(&spared));
        maps.flows.get(left.slot / 4).unwrap().store(2 * (left.slot % 4) as usize, 0);
        let (table, width) = match net {
            Net::V4 => (&maps.reverse_v4, 4),
            Net::V6 => (&maps.reverse_v6, 8),
        };
        let bucket = table.get(0).unwrap();
        let way =
            (0..4).find(|way| ReverseWord(bucket.load(way * width)).port() == gone.snat.port()).unwrap();
        let entry = ReverseWord(bucket.load(way * width));
        bucket.store(way * width + 1, pack_forward(named, entry.version(), bed.tick()));

        let verdict = bed.send_unchecked(&syn(net)).0;
        assert_eq!(verdict, Verdict::Transmit, "the half-open flow makes room");
        let ports: Vec<_> = ledger::backwards(maps).iter().map(|entry| entry.word.port()).collect();
        assert!(!ports.contains(&spared.snat.port()), "with its own entry");
        assert!(ports.contains(&gone.snat.port()), "the sweep mends the other");
        for flow in &live {
            assert_eq!(bed.state(flow), Some(FlowState::Established));
        }
    }
}

#[test]
fn flows_of_a_processor_whose_clock_is_ahead_are_not_old() {
    for net in Net::BOTH {
        let bed = small(net);
        fill(&bed, net, |bed, client| bed.establish(client, net.vip()));
        bed.gateway.maps.set_clock(bed.gateway.maps.clock() - TICK_NS);
        bed.send(&syn(net)).drops(Counter::DropPortsExhausted);
    }
}

#[test]
fn each_use_of_a_reverse_slot_has_a_version_of_its_own() {
    for net in Net::BOTH {
        let bed = one_reverse_bucket(net);
        for n in 0..12 {
            let (_, packet) = bed.send_unchecked(&Frame::tcp(net.client(n), net.vip(), SYN));
            let seen = Seen::parse(packet.bytes()).unwrap();
            bed.send_unchecked(&Frame::tcp(seen.destination, seen.source, RST | ACK).numbers(0, 1001));
        }
        let versions = ledger::backwards(&bed.gateway.maps).into_iter().map(|entry| entry.word.version());
        assert_eq!(versions.sum::<u16>(), 12, "one more each time");
    }
}
