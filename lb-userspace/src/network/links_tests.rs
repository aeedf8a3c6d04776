//! Which interface a frame leaves by, and with which tags.

use super::*;

fn link(ifindex: u32, name: &str, kind: LinkKind) -> Link {
    let mac = Some([2, 0, 0, 0, 0, u8::try_from(ifindex).expect("small")]);
    Link { ifindex, name: name.into(), mac, mtu: 1500, up: true, kind, driver: String::new() }
}

fn vlan(ifindex: u32, name: &str, parent: u32, id: u16, service_tag: bool) -> Link {
    let mut link = link(ifindex, name, LinkKind::Vlan { parent, tci: id.to_be_bytes(), service_tag });
    link.driver = "vlan".into();
    link
}

fn links(all: &[Link]) -> Links {
    all.iter().map(|link| (link.ifindex, link.clone())).collect()
}

fn from(all: &[Link], attached: &[u32], ifindex: u32) -> Result<Egress, NextHopError> {
    egress(&links(all), &attached.iter().copied().collect(), ifindex)
}

fn refusal(all: &[Link], attached: &[u32], ifindex: u32) -> String {
    from(all, attached, ifindex).expect_err("refused").to_string()
}

#[test]
fn an_attached_interface_is_taken_as_it_is() {
    let all = [link(2, "eth0", LinkKind::Ethernet)];
    let expected =
        Egress { ifindex: 2, source_mac: [2, 0, 0, 0, 0, 2], mtu: 1500, vlan: vec![], service_tag: false };
    assert_eq!(from(&all, &[2], 2), Ok(expected));
}

#[test]
fn a_vlan_device_becomes_its_parent_and_a_tag() {
    let mut tagged = vlan(3, "eth0.100", 2, 100, false);
    tagged.mtu = 1400;
    let egress = from(&[link(2, "eth0", LinkKind::Ethernet), tagged], &[2], 3).expect("attached below");
    assert_eq!(egress.ifindex, 2);
    assert_eq!(egress.vlan, [[0, 100]]);
    assert!(!egress.service_tag);
    // Frames carry the VLAN device's own address and size.
    assert_eq!((egress.source_mac, egress.mtu), ([2, 0, 0, 0, 0, 3], 1400));
}

#[test]
fn two_vlan_devices_become_two_tags_outermost_first() {
    let all = [
        link(2, "eth0", LinkKind::Ethernet),
        vlan(3, "eth0.200", 2, 200, true),
        vlan(4, "eth0.200.100", 3, 100, false),
    ];
    let egress = from(&all, &[2], 4).expect("attached below");
    assert_eq!(egress.vlan, [[0, 200], [0, 100]]);
    assert!(egress.service_tag);
}

#[test]
fn a_vlan_device_that_is_itself_attached_needs_no_tag() {
    let all = [link(2, "eth0", LinkKind::Ethernet), vlan(3, "eth0.100", 2, 100, false)];
    let egress = from(&all, &[2, 3], 3).expect("attached");
    assert_eq!((egress.ifindex, egress.vlan), (3, vec![]));
}

#[test]
fn tags_that_cannot_be_written_are_refused() {
    let all = [
        link(2, "eth0", LinkKind::Ethernet),
        vlan(3, "a", 2, 1, false),
        vlan(4, "b", 3, 2, true),
        vlan(5, "c", 4, 3, false),
    ];
    assert!(refusal(&all, &[2], 4).contains("inner VLAN tag is 802.1ad"));
    assert!(refusal(&all, &[2], 5).contains("more than two VLAN tags"));
}

#[test]
fn an_interface_that_is_not_attached_is_named() {
    let all = [link(2, "eth0", LinkKind::Ethernet), link(3, "eth1", LinkKind::Ethernet)];
    let text = refusal(&all, &[2], 3);
    assert!(text.contains("leads out of eth1, which Kanmon is not attached to"), "{text}");
}

#[test]
fn a_vlan_device_above_an_interface_that_is_not_attached_names_both() {
    let all = [link(2, "eth0", LinkKind::Ethernet), vlan(3, "eth0.100", 2, 100, false)];
    assert!(refusal(&all, &[9], 3).contains("eth0 (under eth0.100)"));
}

#[test]
fn a_bond_is_refused_in_words_unless_attached() {
    let mut bond = link(4, "bond0", LinkKind::Ethernet);
    bond.driver = "bond".into();
    let all = [link(2, "eth0", LinkKind::Ethernet), bond];
    let text = refusal(&all, &[2], 4);
    assert!(text.contains("it is a bond") && text.contains("--interface bond0"), "{text}");
    assert_eq!(from(&all, &[4], 4).expect("attached").ifindex, 4);
}

#[test]
fn interfaces_without_ethernet_or_link_are_refused() {
    let mut down = link(2, "eth0", LinkKind::Ethernet);
    down.up = false;
    let mut tunnel = link(3, "tun0", LinkKind::NotEthernet);
    tunnel.mac = None;
    assert!(refusal(&[down], &[2], 2).contains("eth0 is down"));
    assert!(refusal(&[tunnel], &[3], 3).contains("no Ethernet header"));
    assert!(refusal(&[], &[3], 3).contains("interface 3 is not in this network namespace"));
    // The parent of a VLAN device may be in another network namespace.
    assert!(refusal(&[vlan(5, "a", 2, 1, false)], &[2], 5).contains("interface 2 is not in this"));
}

fn message(attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = 7;
    message.header.link_layer_type = LinkLayerType::Ether;
    message.header.flags = LinkFlags::Up;
    message.attributes = attributes;
    message
}

#[test]
fn the_kernels_description_of_a_vlan_device_is_understood() {
    let info = vec![
        LinkInfo::Kind(InfoKind::Vlan),
        LinkInfo::Data(InfoData::Vlan(vec![
            InfoVlan::Protocol(VlanProtocol::Ieee8021Ad),
            InfoVlan::Id(0x123),
            InfoVlan::EgressQos(vec![VlanQosMapping::Mapping(1, 2), VlanQosMapping::Mapping(0, 5)]),
        ])),
    ];
    let parsed = Link::parse(&message(vec![
        LinkAttribute::IfName("svlan".into()),
        LinkAttribute::Address(vec![2, 0, 0, 0, 0, 9]),
        LinkAttribute::Mtu(1496),
        LinkAttribute::Link(2),
        LinkAttribute::LinkInfo(info),
    ]));
    let expected = Link {
        ifindex: 7,
        name: "svlan".into(),
        mac: Some([2, 0, 0, 0, 0, 9]),
        mtu: 1496,
        up: true,
        kind: LinkKind::Vlan { parent: 2, tci: [0xa1, 0x23], service_tag: true },
        driver: "vlan".into(),
    };
    assert_eq!(parsed, Some(expected));
}

#[test]
fn a_message_about_a_bridges_port_is_not_about_the_interface() {
    let mut port = message(vec![LinkAttribute::IfName("eth0".into())]);
    assert!(Link::parse(&port).is_some());
    port.header.interface_family = AddressFamily::Bridge;
    assert_eq!(Link::parse(&port), None);
}
