//! What the agent says of the traffic: flows with their upstream hosts, and a counter for every drop.

use std::{collections::BTreeSet, net::SocketAddr};

use tests::{
    client::Hold,
    netns::Link,
    scenario::eventually,
    topology::{ECHO_PORT, HTTP_PORT, VIP},
    wire::{ACK, FIN, Frame, RST, SYN, Wire, fragment, icmp_echo, tcp, udp},
};

use super::{ANSWER, SOON, connect, drops_since, gateway};

#[test]
fn flows_show_client_vip_and_the_upstream_hosts_of_both_clusters() {
    let (bed, agent) = gateway(2);
    for target in [bed.vip_http(), bed.vip_http6()] {
        let sources = bed.client().exact_sources(target, 60, 14_000);
        let clients: BTreeSet<String> = (0..60).map(|n| sources.nth(n).to_string()).collect();
        let hold = Hold { sources: Some(sources), timeout: ANSWER, ..Hold::new(target, 60) };
        let held = bed.client().hold(hold).unwrap();
        let rows = agent.flows().unwrap();
        let ours: Vec<_> = rows.iter().filter(|flow| flow.vip == target.to_string()).collect();
        let shown: BTreeSet<String> = ours.iter().map(|flow| flow.client.clone()).collect();
        assert_eq!(shown, clients);
        let pods = bed.pods();
        for flow in &ours {
            let upstream: SocketAddr = flow.upstream_host.parse().unwrap();
            let pod = pods.iter().find(|pod| pod.sockets().contains(&upstream)).unwrap();
            assert_eq!((flow.cluster.as_ref(), flow.state.as_str()), (Some(&pod.cluster), "established"));
        }
        for (pod, count) in held.now().by_pod {
            let pod = pods.iter().find(|other| other.name == pod).unwrap();
            let shown = ours.iter().filter(|flow| {
                flow.upstream_host.parse().is_ok_and(|upstream| pod.sockets().contains(&upstream))
            });
            assert_eq!(shown.count() as u64, count, "{}", pod.name);
        }
        let clusters: BTreeSet<_> = ours.iter().filter_map(|flow| flow.cluster.clone()).collect();
        assert_eq!(clusters.len(), 2);
        assert_eq!(held.stop().broken, Vec::<String>::new());
        let gone = || {
            let flows = agent.flows().unwrap();
            flows.iter().all(|flow| flow.vip != target.to_string() || flow.state != "established")
        };
        eventually("no flow is established any more", SOON, gone);
    }
}

#[test]
fn every_frame_that_is_dropped_is_counted_by_its_reason() {
    let (bed, agent) = gateway(1);
    let link = Link::find(bed.cen(), "gateway0").unwrap();
    let (wire, source) = (Wire::open(&link).unwrap(), link.mac().unwrap());
    let destination = Link::find(bed.gateway(), "eth0").unwrap().mac().unwrap();
    let before = agent.counters().unwrap();
    let send = |packet: Vec<u8>, times: usize| {
        for _ in 0..times {
            let packet = packet.clone();
            wire.send(&Frame { destination, source, tags: Vec::new(), packet }).unwrap();
        }
    };
    let hop_limit = |mut packet: Vec<u8>, hops: u8| {
        match packet[0] >> 4 {
            6 => packet[7] = hops,
            _ => {
                // One's complement: what is taken from the TTL is added to the checksum's high byte.
                let taken = packet[8] - hops;
                packet[8] = hops;
                let check = u32::from(u16::from_be_bytes([packet[10], packet[11]])) + (u32::from(taken) << 8);
                let check = ((check & 0xffff) + (check >> 16)) as u16;
                packet[10..12].copy_from_slice(&check.to_be_bytes());
            }
        }
        packet
    };
    // A client that is there: of what is refused to another, the router would tell the VIP that it can't be delivered.
    for (from, vip) in ["198.51.100.25", "2001:db8:c::25"].into_iter().zip(VIP.both()) {
        let from = SocketAddr::new(from.parse().unwrap(), 7200);
        let at = |port| SocketAddr::new(vip, port);
        send(tcp(from, at(81), (1, 0, SYN), b""), 2);
        send(udp(from, at(54), b"closed"), 1);
        // An echo reply: the VIP has asked nobody.
        let mut reply = icmp_echo(from.ip(), vip);
        let (offset, kind) = if vip.is_ipv4() { (20, 0) } else { (40, 129) };
        reply[offset] = kind;
        send(reply, 4);
        send(fragment(&udp(from, at(ECHO_PORT), b"a part of something larger")), 5);
        send(tcp(from, at(HTTP_PORT), (1, 1, ACK), b"no flow"), 3);
        send(tcp(from, at(HTTP_PORT), (1, 1, RST), b""), 2);
        send(tcp(from, at(HTTP_PORT), (1, 1, FIN | ACK), b""), 1);
        send(hop_limit(tcp(from, at(HTTP_PORT), (1, 0, SYN), b""), 1), 7);
        let mut protocol = udp(from, at(ECHO_PORT), b"something else");
        if vip.is_ipv4() {
            // SCTP's number instead of UDP's: 132 - 17 more in the low byte of the checksum's word.
            protocol[9] = 132;
            let check = u32::from(u16::from_be_bytes([protocol[10], protocol[11]])) + 0xffff - 115;
            let check = ((check & 0xffff) + (check >> 16)) as u16;
            protocol[10..12].copy_from_slice(&check.to_be_bytes());
        } else {
            protocol[6] = 132;
        }
        send(protocol, 8);
        let mut short = tcp(from, at(HTTP_PORT), (1, 0, SYN), b"");
        let offset = if vip.is_ipv4() { 20 } else { 40 };
        short[offset + 12] = 15 << 4;
        send(short, 9);
    }
    let expected = [
        ("drop_closed_port", 6),
        ("drop_icmp", 8),
        ("drop_fragment", 10),
        ("drop_not_syn", 12),
        ("drop_ttl", 14),
        ("drop_protocol", 16),
        ("drop_malformed", 18),
    ]
    .map(|(name, count)| (name.to_owned(), count));
    eventually("all are counted", SOON, || {
        drops_since(&agent, &before).values().sum::<u64>() >= expected.iter().map(|(_, count)| count).sum()
    });
    assert_eq!(drops_since(&agent, &before), expected.into());
    let after = agent.counters().unwrap();
    assert_eq!(after["flow_opened"], before["flow_opened"]);
    // For all but the RSTs and what is neither whole nor TCP, UDP or a protocol that could be told of.
    assert_eq!(after["refusal_sent"] - before["refusal_sent"], 6 + 12 - 4 + 14 + 16);
    assert_eq!(after["refusal_limited"], before["refusal_limited"]);
    connect(&bed, bed.vip_http(), 20, 10_000);
}
