//! Next hops from the kernel's messages.

use super::*;
use crate::network::links::{Link, LinkKind};

const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 0, 1));
const POD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 2));
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xaa];

fn route(kind: RouteType, attributes: Vec<RouteAttribute>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.kind = kind;
    message.attributes = attributes;
    message
}

fn via_gateway(mtu: Option<u32>) -> Path {
    Path { neighbour: NeighbourKey { ifindex: 2, address: GATEWAY }, mtu }
}

fn surroundings(neighbour: Option<Neighbour>) -> Surroundings {
    let link = Link {
        ifindex: 2,
        name: "eth0".into(),
        mac: Some([2, 0, 0, 0, 0, 2]),
        mtu: 1500,
        up: true,
        kind: LinkKind::Ethernet,
        driver: "veth".into(),
    };
    Surroundings {
        links: Links::from([(2, link)]),
        attached: BTreeSet::from([2]),
        neighbours: neighbour.map(|entry| (via_gateway(None).neighbour, entry)).into_iter().collect(),
        refused: HashMap::new(),
    }
}

fn entry(state: NeighbourState) -> Neighbour {
    Neighbour { mac: Some(MAC), state, managed: true, ours: true }
}

#[test]
fn a_route_by_a_gateway_makes_the_gateway_the_neighbour() {
    let answer = route(
        RouteType::Unicast,
        vec![
            RouteAttribute::Oif(2),
            RouteAttribute::Gateway(GATEWAY.into()),
            RouteAttribute::Metrics(vec![RouteMetric::Hoplimit(9), RouteMetric::Mtu(1400)]),
        ],
    );
    assert_eq!(path(POD, &answer), Ok(via_gateway(Some(1400))));
}

#[test]
fn an_on_link_address_is_its_own_neighbour() {
    let answer = route(RouteType::Unicast, vec![RouteAttribute::Oif(2)]);
    let expected = Path { neighbour: NeighbourKey { ifindex: 2, address: POD }, mtu: None };
    assert_eq!(path(POD, &answer), Ok(expected));
}

#[test]
fn an_ipv4_route_may_have_an_ipv6_gateway() {
    let gateway: Ipv6Addr = "fe80::1".parse().expect("an address");
    let answer = route(
        RouteType::Unicast,
        vec![RouteAttribute::Oif(2), RouteAttribute::Via(RouteVia::Inet6(gateway))],
    );
    assert_eq!(path(POD, &answer).expect("usable").neighbour.address, IpAddr::V6(gateway));
}

#[test]
fn routes_that_lead_to_nobody_are_refused() {
    assert_eq!(path(POD, &route(RouteType::Local, vec![RouteAttribute::Oif(1)])), Err(NextHopError::Local));
    let broadcast = path(POD, &route(RouteType::Broadcast, vec![RouteAttribute::Oif(2)]));
    assert_eq!(broadcast, Err(NextHopError::RouteType("broadcast".into())));
}

#[test]
fn path_interface_and_neighbour_make_a_next_hop() {
    for state in [NeighbourState::Reachable, NeighbourState::Stale, NeighbourState::Permanent] {
        let expected = NextHop {
            destination_mac: MAC,
            source_mac: [2, 0, 0, 0, 0, 2],
            ifindex: 2,
            mtu: 1500,
            vlan: vec![],
            service_tag: false,
        };
        assert_eq!(assemble(&via_gateway(None), &surroundings(Some(entry(state)))), Ok(expected));
    }
}

#[test]
fn the_smaller_of_the_routes_and_the_interfaces_mtu_counts() {
    let surroundings = surroundings(Some(entry(NeighbourState::Reachable)));
    let mtu = |route| assemble(&via_gateway(route), &surroundings).expect("resolved").mtu;
    assert_eq!([mtu(None), mtu(Some(0)), mtu(Some(1400)), mtu(Some(9000))], [1500, 1500, 1400, 1500]);
}

#[test]
fn a_neighbour_that_does_not_answer_is_an_error_with_its_state() {
    for (neighbour, state) in [(None, "incomplete"), (Some(entry(NeighbourState::Failed)), "failed")] {
        let error = assemble(&via_gateway(None), &surroundings(neighbour)).expect_err("unresolved");
        let expected =
            NextHopError::Unresolved { neighbour: GATEWAY, interface: "eth0".into(), state: state.into() };
        assert_eq!(error, expected);
        assert!(error.to_string().contains("192.168.0.1 on eth0 does not answer"), "{error}");
    }
}

#[test]
fn a_neighbour_that_the_kernel_refuses_says_why() {
    let mut surroundings = surroundings(None);
    surroundings.refused.insert(via_gateway(None).neighbour, "no buffer space available".into());
    let error = assemble(&via_gateway(None), &surroundings).expect_err("refused").to_string();
    assert!(error.ends_with("192.168.0.1 on eth0: no buffer space available"), "{error}");
}

#[test]
fn neighbours_are_read_with_their_flags() {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = 2;
    message.header.state = NeighbourState::Reachable;
    let Ok(gateway) = GATEWAY.to_string().parse() else { unreachable!("an IPv4 address") };
    message.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::Inet(gateway)),
        NeighbourAttribute::LinkLayerAddress(MAC.to_vec()),
        NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed),
        NeighbourAttribute::Protocol(PROTOCOL),
    ];
    let expected = (via_gateway(None).neighbour, entry(NeighbourState::Reachable));
    assert_eq!(neighbour(&message), Some(expected));
    message.header.family = AddressFamily::Bridge;
    assert_eq!(neighbour(&message), None);
}

#[test]
fn a_changed_route_concerns_the_addresses_in_its_network() {
    let mut message = route(RouteType::Unicast, vec![RouteAttribute::Destination(POD.into())]);
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = 24;
    let range = covered(&message).expect("an IP route");
    assert_eq!(range, IpAddr::from([10, 0, 1, 0])..=IpAddr::from([10, 0, 1, 255]));
    message.header.destination_prefix_length = 32;
    assert_eq!(covered(&message), Some(POD..=POD));
}

#[test]
fn a_changed_default_route_concerns_its_whole_family_and_no_other() {
    let mut message = route(RouteType::Unicast, vec![]);
    message.header.address_family = AddressFamily::Inet6;
    let range = covered(&message).expect("an IP route");
    assert!(range.contains(&"2001:db8::1".parse::<IpAddr>().expect("an address")));
    assert!(!range.contains(&POD));
}
