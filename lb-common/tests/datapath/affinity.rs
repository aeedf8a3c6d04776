//! Session affinity: a client stays with its backend, whatever the ring says.

use std::{collections::BTreeSet, net::SocketAddr, thread};

use lb_common::{
    abi::{AffinityBucket, AffinityWord, Backend, Counter, ReactionWord, TCP, UDP, member_flags},
    clock::TICK_NS,
    host::{Frame, GatewayConfig, SYN},
};

use crate::bed::{Bed, Flow, Net, seconds};

/// In ticks of about 268 ms: three hours.
const STAY: u32 = 40_234;

const NEW: &[Counter] = &[Counter::FlowOpened];
const KEPT: &[Counter] = &[Counter::FlowOpened, Counter::FlowAffine];

/// Both services ask that clients stay.
fn sticky(net: Net, backends: u8) -> Bed {
    let mut bed = Bed::with_backends(net, backends);
    for service in [0, 1] {
        bed.gateway.set_stay(service, STAY);
    }
    bed
}

/// The `n`th connection of a client.
fn port(client: SocketAddr, n: u16) -> SocketAddr {
    (client.ip(), 10_000 + n).into()
}

#[track_caller]
fn open(bed: &Bed, net: Net, client: SocketAddr, counters: &[Counter]) -> Flow {
    bed.begin(&Frame::tcp(client, net.vip(), SYN), TCP, counters)
}

/// What the table remembers.
fn remembered(bed: &Bed) -> Vec<AffinityWord> {
    let table = &bed.gateway.maps.affinity;
    (0..table.len())
        .flat_map(|index| table.read::<AffinityBucket>(index).entries)
        .map(|entry| AffinityWord(entry.word))
        .filter(|word| word.member() != 0)
        .collect()
}

#[test]
fn all_connections_of_a_client_go_to_one_backend_and_clients_are_spread() {
    for net in Net::BOTH {
        let bed = sticky(net, 4);
        let mut backends = BTreeSet::new();
        for n in 0..24 {
            let client = net.client(n);
            let first = open(&bed, net, port(client, 0), NEW);
            for connection in 1..4 {
                assert_eq!(open(&bed, net, port(client, connection), KEPT).backend, first.backend);
            }
            backends.insert(first.backend);
        }
        assert_eq!((backends.len(), remembered(&bed).len()), (4, 24));
    }
}

#[test]
fn without_affinity_nothing_is_remembered_and_connections_are_spread() {
    for net in Net::BOTH {
        let bed = Bed::with_backends(net, 4);
        let connections = (0..24).map(|n| open(&bed, net, port(net.client(1), n), NEW).backend);
        assert!(connections.collect::<BTreeSet<_>>().len() > 1);
        assert_eq!(remembered(&bed), []);
    }
}

#[test]
fn a_client_stays_through_every_change_of_the_ring_while_its_backend_is_there() {
    for net in Net::BOTH {
        let mut bed = sticky(net, 4);
        let firsts: Vec<_> = (0..20).map(|n| open(&bed, net, port(net.client(n), 0), NEW)).collect();
        // Another order, then one member only.
        for (round, ring) in (1..).zip([&[4, 3, 2, 1][..], &[2, 1, 4, 3], &[3]]) {
            bed.gateway.set_ring(0, ring);
            for (n, first) in (0..).zip(&firsts) {
                assert_eq!(open(&bed, net, port(net.client(n), round), KEPT).backend, first.backend);
            }
        }
    }
}

#[test]
fn each_port_of_a_service_remembers_for_itself() {
    for net in Net::BOTH {
        let mut bed = sticky(net, 4);
        bed.gateway.set_stay(1, 0);
        open(&bed, net, port(net.client(1), 0), NEW);
        bed.open_udp(net.client(1), net.vip());
        assert_eq!(remembered(&bed).len(), 1, "UDP does not ask for it");
        bed.gateway.set_stay(1, STAY);
        let first = bed.open_udp(port(net.client(1), 1), net.vip());
        let again = bed.begin(&Frame::udp(port(net.client(1), 2), net.vip()), UDP, KEPT);
        assert_eq!(first.backend, again.backend);
        assert_eq!(remembered(&bed).len(), 2);
    }
}

#[test]
fn a_stay_ends_after_its_time_and_each_connection_begins_it_anew() {
    for net in Net::BOTH {
        let mut bed = sticky(net, 4);
        bed.gateway.set_stay(0, 100);
        let tick = std::time::Duration::from_nanos(TICK_NS);
        let client = net.client(1);
        let first = open(&bed, net, port(client, 0), NEW);
        let others: Vec<u32> = (1..=4).filter(|member| *member != bed.member_of(&first)).collect();
        bed.gateway.set_ring(0, &others);
        for n in 1..4 {
            bed.wait(tick * 100);
            assert_eq!(open(&bed, net, port(client, n), KEPT).backend, first.backend);
        }
        bed.wait(tick * 101);
        let moved = open(&bed, net, port(client, 4), NEW);
        assert_ne!(moved.backend, first.backend);
        assert_eq!(open(&bed, net, port(client, 5), KEPT).backend, moved.backend);
        assert_eq!(remembered(&bed).len(), 1, "in the same place");
        // A shorter time counts at once.
        bed.gateway.set_stay(0, 10);
        bed.wait(tick * 11);
        open(&bed, net, port(client, 6), NEW);
    }
}

#[test]
fn a_backend_that_takes_no_new_flows_loses_its_clients_for_good() {
    const SOUND: u8 = member_flags::VALID | member_flags::NEXT_HOP;
    type Change = fn(&mut Bed, u32, bool);
    let changes: [Change; 4] = [
        |bed, member, well| {
            let backend = bed.gateway.member(member).backend;
            bed.gateway.set_usable(backend, well);
        },
        |bed, member, well| {
            let flags = SOUND | if well { 0 } else { member_flags::DRAINING };
            bed.gateway.set_member_flags(member, flags);
        },
        |bed, member, well| {
            let flags = if well { SOUND } else { member_flags::VALID };
            bed.gateway.set_member_flags(member, flags);
        },
        |bed, member, well| {
            let backend = bed.gateway.member(member).backend;
            let line: Backend = bed.gateway.maps.backends.read(backend);
            let tripped_until = if well { 0 } else { u64::MAX };
            bed.gateway.maps.backends.write(backend, &Backend { tripped_until, ..line });
        },
    ];
    for net in Net::BOTH {
        for change in changes {
            let mut bed = sticky(net, 3);
            let first = open(&bed, net, port(net.client(1), 0), NEW);
            let member = bed.member_of(&first);
            change(&mut bed, member, false);
            let second = open(&bed, net, port(net.client(1), 1), NEW);
            assert_ne!(second.backend, first.backend);
            change(&mut bed, member, true);
            assert_eq!(open(&bed, net, port(net.client(1), 2), KEPT).backend, second.backend);
        }
    }
}

#[test]
fn an_index_that_has_become_another_backend_keeps_nobody() {
    for net in Net::BOTH {
        let mut bed = sticky(net, 2);
        let first = open(&bed, net, port(net.client(1), 0), NEW);
        let member = bed.member_of(&first);
        bed.gateway.recycle_member(member, 0, net.backend(9));
        open(&bed, net, port(net.client(1), 1), NEW);
        // The same index in another service.
        let bed = sticky(net, 2);
        let first = open(&bed, net, port(net.client(1), 0), NEW);
        let member = bed.member_of(&first);
        let line = bed.gateway.member(member);
        let moved = lb_common::abi::Member { service: 1, ..line };
        bed.gateway.maps.members.write(member, &moved);
        let second = open(&bed, net, port(net.client(1), 1), NEW);
        assert_ne!(second.backend, first.backend);
    }
}

#[test]
fn a_tripped_backend_that_gets_a_flow_for_want_of_others_is_not_remembered() {
    for net in Net::BOTH {
        let bed = sticky(net, 1);
        let backend: Backend = bed.gateway.maps.backends.read(1);
        bed.gateway.maps.backends.write(1, &Backend { tripped_until: u64::MAX, ..backend });
        open(&bed, net, port(net.client(1), 0), &[Counter::FlowOpened, Counter::FlowFailedOpen]);
        assert_eq!(remembered(&bed), []);
    }
}

#[test]
fn a_connection_that_is_rescued_leaves_its_backend_for_once() {
    for net in Net::BOTH {
        let mut bed = sticky(net, 3);
        bed.gateway.set_reaction(0, ReactionWord::new(0, 0, true));
        let first = open(&bed, net, port(net.client(1), 0), NEW);
        let refusal = first.reply(lb_common::host::RST | lb_common::host::ACK);
        let seen = bed.send(&refusal).sends(&[Counter::ConnectRefused, Counter::FlowRescued]).seen();
        assert_ne!(seen.destination, first.backend);
        assert_eq!(open(&bed, net, port(net.client(1), 1), KEPT).backend, first.backend);
    }
}

#[test]
fn in_a_full_bucket_whoever_has_been_away_longest_is_forgotten() {
    for net in Net::BOTH {
        let mut settings = GatewayConfig::default();
        settings.sizes.flow_buckets = 1;
        let mut bed = Bed::sized(net, 4, &settings);
        bed.gateway.set_stay(0, STAY);
        // One client more than there is room for, one after the other; flows make room for each other meanwhile.
        let displaced = |bed: &Bed| bed.gateway.maps.counter(Counter::AffinityDisplaced);
        let visit = |bed: &Bed, n: u32, connection: u16| {
            let kept = bed.gateway.maps.counter(Counter::FlowAffine);
            bed.send_unchecked(&Frame::tcp(port(net.client(n), connection), net.vip(), SYN));
            bed.wait(seconds(20));
            bed.gateway.maps.counter(Counter::FlowAffine) > kept
        };
        for n in 0..4 {
            assert!(!visit(&bed, n, 0));
        }
        assert!(visit(&bed, 0, 1), "the first one has been seen again");
        assert_eq!(displaced(&bed), 0);
        assert!(!visit(&bed, 4, 0), "in the place of the second");
        assert_eq!((displaced(&bed), remembered(&bed).len()), (1, 4));
        for n in [0, 2, 3, 4] {
            assert!(visit(&bed, n, 2), "client {n}");
        }
        assert!(!visit(&bed, 1, 2));
        // Whose time is over is displaced by nobody.
        bed.wait(seconds(11_000));
        let before = displaced(&bed);
        assert!(!visit(&bed, 9, 0));
        assert_eq!(displaced(&bed), before);
    }
}

#[test]
fn processors_that_remember_one_client_at_once_leave_one_entry() {
    const CLIENTS: u32 = 40;
    let mut settings = GatewayConfig::default();
    settings.sizes.cpus = 4;
    for net in Net::BOTH {
        for round in 0..20 {
            let mut bed = Bed::sized(net, 4, &settings);
            bed.gateway.set_stay(0, STAY);
            let bed = &bed;
            let paths: Vec<Vec<(u32, SocketAddr)>> = thread::scope(|scope| {
                let threads: Vec<_> = (0..4_u16)
                    .map(|cpu| {
                        scope.spawn(move || {
                            let mut paths = Vec::new();
                            for n in 0..CLIENTS {
                                let client = port(net.client(n), cpu + 4 * round);
                                let mut packet = lb_common::host::HostPacket::new(
                                    &Frame::tcp(client, net.vip(), SYN).build(),
                                );
                                bed.gateway.maps.cpu(cpu.into()).process(&mut packet);
                                if let Ok(seen) = lb_common::host::Seen::parse(packet.bytes()) {
                                    paths.push((n, seen.destination));
                                }
                            }
                            paths
                        })
                    })
                    .collect();
                threads.into_iter().map(|thread| thread.join().expect("a processor")).collect()
            });
            bed.check();
            let words = remembered(bed);
            let tags: BTreeSet<u64> = words.iter().map(|word| word.0 >> 28).collect();
            assert_eq!(tags.len(), words.len(), "no client is there twice");
            assert_eq!(words.len(), CLIENTS as usize, "nobody is forgotten");
            for n in 0..CLIENTS {
                let all = paths.iter().flatten().filter(|(client, _)| *client == n);
                let backends: BTreeSet<_> = all.map(|(_, backend)| *backend).collect();
                assert!(backends.len() <= 1, "connections that begin at once agree: {backends:?}");
            }
        }
    }
}
