//! Which member a new flow gets.

use std::{collections::BTreeMap, net::SocketAddr};

use lb_common::{
    abi::{Counter, ServiceDescriptor, TCP, member_flags},
    datapath::Verdict,
    host::{ACK, Frame, Gateway, GatewayConfig, RST, SYN, Seen},
};

use crate::bed::{Bed, Net};

/// Where each of `count` clients' first packets go; nothing is left behind.
fn assignment(bed: &mut Bed, net: Net, count: u32) -> BTreeMap<u32, SocketAddr> {
    let mut settings = GatewayConfig::default();
    settings.sizes.flow_buckets = 4096;
    settings.sizes.reverse_v4_buckets = 4096;
    settings.sizes.reverse_v6_buckets = 4096;
    let fresh = lb_common::host::HostMaps::new(&settings.sizes);
    let maps = &mut bed.gateway.maps;
    (maps.flows, maps.handshakes) = (fresh.flows, fresh.handshakes);
    (maps.reverse_v4, maps.reverse_v6, maps.ports) = (fresh.reverse_v4, fresh.reverse_v6, fresh.ports);
    let config = bed.gateway.config_mut();
    (config.flow_bucket_mask, config.reverse_v4_mask, config.reverse_v6_mask) = (4095, 4095, 4095);
    (0..count)
        .map(|n| {
            let (_, packet) = bed.send_unchecked(&Frame::tcp(net.client(n), net.vip(), SYN));
            (n, Seen::parse(packet.bytes()).unwrap().destination)
        })
        .collect()
}

#[test]
fn flows_spread_evenly() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 3);
        let mut counts = BTreeMap::new();
        for backend in assignment(&mut bed, net, 3000).into_values() {
            *counts.entry(backend).or_insert(0) += 1;
        }
        // Four standard deviations of a binomial with p = 1/3.
        assert!(counts.len() == 3 && counts.values().all(|count| (897..=1103).contains(count)), "{counts:?}");
    }
}

#[test]
fn gateways_with_one_ring_key_choose_alike() {
    for net in Net::BOTH {
        let mut one = Bed::with_backends(net, 5);
        let mut two = Bed { gateway: Gateway::new(&GatewayConfig::default(), 7) };
        let backends: Vec<_> = (1..=5).map(|n| net.backend(n)).collect();
        two.gateway.add_service(net.vip(), TCP, &backends);
        let different = assignment(&mut two, net, 200);
        let ring_key = one.config().ring_key;
        two.gateway.config_mut().ring_key = ring_key;
        assert_ne!(one.config().flow_key, two.config().flow_key);
        let first = assignment(&mut one, net, 200);
        assert_eq!(first, assignment(&mut two, net, 200));
        assert_ne!(first, different);
    }
}

#[test]
fn an_unusable_backend_is_walked_past_and_nobody_else_moves() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 4);
        let before = assignment(&mut bed, net, 1000);
        let dead = net.backend(2);
        let backend = bed.gateway.backend(dead, TCP);
        bed.gateway.set_usable(backend, false);
        let during = assignment(&mut bed, net, 1000);
        let mut heirs = BTreeMap::new();
        for (client, backend) in &during {
            assert_ne!(*backend, dead);
            match before[client] == dead {
                true => *heirs.entry(*backend).or_insert(0) += 1,
                false => assert_eq!(before[client], *backend),
            }
        }
        assert!(heirs.len() == 3 && heirs.values().all(|count| *count > 40), "shared out: {heirs:?}");
        bed.gateway.set_usable(backend, true);
        assert_eq!(assignment(&mut bed, net, 1000), before);
    }
}

#[test]
fn an_unusable_backend_keeps_its_flows() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 1);
        let flow = bed.establish(net.client(1), net.vip());
        bed.gateway.set_usable(1, false);
        bed.send(&flow.request(ACK)).sends(&[]).reaches_backend_of(&flow);
        bed.send(&Frame::tcp(net.client(2), net.vip(), SYN)).refuses(Counter::DropNoBackend);
    }
}

#[test]
fn a_service_without_ring_or_usable_backend_drops() {
    for net in Net::BOTH {
        let mut bed = Bed::new(&GatewayConfig::default());
        let service = bed.gateway.add_empty_service(net.vip(), TCP);
        let syn = Frame::tcp(net.client(1), net.vip(), SYN);
        bed.send(&syn).refuses(Counter::DropNoBackend);
        // A ring whose slots are empty, or name nothing.
        bed.gateway.set_ring(service, &[0]);
        bed.send(&syn).refuses(Counter::DropNoBackend);
        bed.gateway.set_ring(service, &[40, 1 << 20, u32::MAX]);
        bed.send(&syn).refuses(Counter::DropNoBackend);
        let member = bed.gateway.add_member(service, net.backend(1));
        bed.gateway.set_ring(service, &[member]);
        for flags in [0, member_flags::VALID, member_flags::NEXT_HOP, 0xff] {
            bed.gateway.set_member_flags(member, flags);
            bed.send(&syn).refuses(Counter::DropNoBackend);
        }
        bed.gateway.set_member_flags(member, member_flags::VALID | member_flags::NEXT_HOP);
        bed.open(net.client(1), net.vip());
    }
}

#[test]
fn the_fallback_ring_serves_only_when_the_ring_has_nobody() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 2);
        let spare = bed.gateway.add_member(0, net.backend(9));
        bed.gateway.set_fallback(0, &[spare]);
        assert!(assignment(&mut bed, net, 200).values().all(|backend| *backend != net.backend(9)));
        for n in 1..=2 {
            let backend = bed.gateway.backend(net.backend(n), TCP);
            bed.gateway.set_usable(backend, false);
        }
        assert!(assignment(&mut bed, net, 200).values().all(|backend| *backend == net.backend(9)));
        let spare = bed.gateway.backend(net.backend(9), TCP);
        bed.gateway.set_usable(spare, false);
        bed.send(&Frame::tcp(net.client(300), net.vip(), SYN)).refuses(Counter::DropNoBackend);
    }
}

#[test]
fn a_ring_is_swapped_by_one_word_and_old_flows_stay() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 2);
        let old = bed.establish(net.client(1), net.vip());
        let heir = bed.gateway.add_member(0, net.backend(9));
        let word = bed.gateway.write_ring(&[heir]);
        assert_ne!(bed.open(net.client(2), net.vip()).backend, net.backend(9), "not yet");
        let descriptor: ServiceDescriptor = bed.gateway.maps.descriptors.read(0);
        bed.gateway.maps.descriptors.write(0, &ServiceDescriptor { ring: word.0, ..descriptor });
        for n in 3..30 {
            assert_eq!(bed.open(net.client(n), net.vip()).backend, net.backend(9));
        }
        bed.send(&old.request(ACK)).sends(&[]).reaches_backend_of(&old);
        bed.send(&old.reply(ACK)).sends(&[]).reaches_client_of(&old);
    }
}

#[test]
fn a_slot_that_names_another_services_member_is_walked_past() {
    for net in Net::BOTH {
        let mut bed = Bed::with_backends(net, 1);
        let elsewhere = (net.ip([203, 0, 113, 11], [0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x11]), 80).into();
        let other = bed.gateway.add_service(elsewhere, TCP, &[net.backend(2)]);
        let foreign = bed.gateway.add_member(other, net.backend(3));
        bed.gateway.set_ring(0, &[foreign, 1]);
        let mut served = 0;
        for n in 0..100 {
            let (verdict, packet) = bed.send_unchecked(&Frame::tcp(net.client(n), net.vip(), SYN));
            // A walk of eight candidates may meet the foreign member eight times.
            assert_eq!(verdict, Verdict::Transmit);
            let seen = Seen::parse(packet.bytes()).unwrap();
            if seen.flags == SYN {
                assert_eq!(seen.destination, net.backend(1));
                served += 1;
            } else {
                assert_eq!((seen.flags, seen.destination), (RST | ACK, net.client(n)));
            }
        }
        assert!(served >= 95, "{served}");
        bed.check();
    }
}
