//! Interfaces: whether the packet program can be attached, and what the kernel does beside it.

use super::super::facts::{Interface, LinkFacts};
use super::super::finding::{Finding, count};
use crate::config::XdpMode;

/// Drivers with native XDP in Linux 6.1, which is the oldest that is supported.
const NATIVE: &[&str] = &[
    "atlantic",
    "bnxt_en",
    "bond",
    "cpsw",
    "dpaa2-eth",
    "ena",
    "fsl_dpa",
    "fsl_enetc",
    "hv_netvsc",
    "i40e",
    "ice",
    "igb",
    "igc",
    "ixgbe",
    "ixgbevf",
    "mana",
    "mlx4_en",
    "mlx5_core",
    "mvneta",
    "mvpp2",
    "nfp",
    "qede",
    "sfc",
    "stmmaceth",
    "thunder-nicvf",
    "tun",
    "veth",
    "virtio_net",
];
/// Kinds of device that never will: they have no driver of their own that could run it.
const NEVER: &[&str] = &["bridge", "dummy", "ifb", "ipvlan", "macvlan", "vlan", "vxlan", "wireguard"];
/// A frame of more does not fit a page beside what XDP keeps there; the driver then needs multi-buffer XDP.
const ONE_PAGE: u32 = 3506;

/// `interface`, `xdp`, `queues`, `offloads`, `rp-filter` for each.
pub(in super::super) fn check(interfaces: &[Interface], mode: XdpMode, cpus: usize) -> Vec<Finding> {
    if interfaces.is_empty() {
        let fix = "name it: --interface eth0";
        return vec![Finding::failed("interface", "-", "no interface is named to attach to", fix)];
    }
    let mut findings = Vec::new();
    for interface in interfaces {
        let Some(link) = &interface.link else {
            let fix = format!("name one that there is: {}", interface.existing.join(", "));
            findings.push(Finding::failed("interface", &interface.name, "does not exist", fix));
            continue;
        };
        findings.push(state(&interface.name, link));
        findings.push(xdp(interface, link, mode));
        findings.extend(queues(&interface.name, link, cpus));
        findings.push(offloads(&interface.name, link));
        findings.push(rp_filter(&interface.name, link, interfaces.len()));
    }
    findings
}

fn state(name: &str, link: &LinkFacts) -> Finding {
    if !link.ethernet {
        let fix = "attach to the Ethernet interface below it; VLAN tags are read and written by the program";
        Finding::failed("interface", name, "has no Ethernet header of its own", fix)
    } else if !link.up {
        Finding::failed("interface", name, "is down", format!("ip link set {name} up"))
    } else {
        Finding::ok(
            "interface",
            name,
            format!("is up, driver {}, MTU {}", or_unknown(&link.driver), link.mtu),
        )
    }
}

fn xdp(interface: &Interface, link: &LinkFacts, mode: XdpMode) -> Finding {
    let name = &interface.name;
    if let Some(problem) = &interface.foreign_program {
        let fix = format!("ip link set dev {name} xdp off, or stop what attached it");
        return Finding::failed("xdp", name, problem, fix);
    }
    let driver = link.driver.as_str();
    if mode == XdpMode::Generic {
        let fix = "leave --xdp-mode away where the driver can do better";
        return Finding::warning("xdp", name, "generic mode, at several times the cost a packet", fix);
    }
    if NEVER.contains(&driver) {
        let fix = "attach to the device below it, or say --xdp-mode generic";
        return Finding::failed("xdp", name, format!("a {driver} device has no native XDP"), fix);
    }
    if !NATIVE.contains(&driver) {
        return Finding::warning(
            "xdp",
            name,
            format!("driver {} is not known to have native XDP", or_unknown(driver)),
            "try it; if it refuses, say --xdp-mode generic",
        );
    }
    if link.mtu > ONE_PAGE {
        return Finding::warning(
            "xdp",
            name,
            format!("native mode with an MTU of {}: the driver must have multi-buffer XDP", link.mtu),
            format!("if it refuses: ip link set {name} mtu 3498"),
        );
    }
    Finding::ok("xdp", name, format!("driver {driver} has native XDP, and nobody else's program is there"))
}

/// virtio_net needs a transmit queue for each processor, or processors wait for each other.
fn queues(name: &str, link: &LinkFacts, cpus: usize) -> Option<Finding> {
    if link.driver != "virtio_net" {
        return None;
    }
    let found = format!(
        "{} for {}",
        count(link.tx_queues, "transmit queue", "transmit queues"),
        count(cpus, "processor", "processors")
    );
    Some(if link.tx_queues < cpus {
        Finding::warning(
            "queues",
            name,
            format!("{found}: they take turns"),
            format!("ethtool -L {name} combined {cpus}, or a type of machine with more queues"),
        )
    } else {
        Finding::ok("queues", name, found)
    })
}

fn offloads(name: &str, link: &LinkFacts) -> Finding {
    let of = |prefix: &str| -> Vec<&str> {
        link.offloads.iter().map(String::as_str).filter(|offload| offload.starts_with(prefix)).collect()
    };
    let merging: Vec<&str> = [of("rx-gro-hw"), of("rx-lro")].concat();
    if !merging.is_empty() {
        let off = merging.iter().map(|offload| format!("{offload} off")).collect::<Vec<_>>().join(" ");
        return Finding::warning(
            "offloads",
            name,
            format!(
                "{} {} on: the card merges packets, which native XDP does not take",
                merging.join(", "),
                if merging.len() == 1 { "is" } else { "are" }
            ),
            format!("ethtool -K {name} {off}"),
        );
    }
    let tags = of("rx-vlan");
    if !tags.is_empty() {
        return Finding::warning(
            "offloads",
            name,
            format!(
                "{} {} VLAN tags from XDP; the agent switches that off",
                tags.join(", "),
                if tags.len() == 1 { "hides" } else { "hide" }
            ),
            format!("ethtool -K {name} rxvlan off, to see that the driver lets it"),
        );
    }
    Finding::ok("offloads", name, "none that is in the way of XDP")
}

/// Strict filtering hurts where packets come in by another interface than the one that leads to their source.
fn rp_filter(name: &str, link: &LinkFacts, interfaces: usize) -> Finding {
    match link.rp_filter {
        Some(1) if interfaces > 1 => Finding::failed(
            "rp-filter",
            name,
            "net.ipv4.conf rp_filter is strict on a gateway with several interfaces: answers to its probes, and what \
             it passes on to the node, are dropped where they come in by another one",
            format!("sysctl -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.{name}.rp_filter=2"),
        ),
        Some(value) => Finding::ok("rp-filter", name, format!("rp_filter is {value}")),
        None => Finding::ok("rp-filter", name, "no IPv4 here"),
    }
}

fn or_unknown(driver: &str) -> &str {
    if driver.is_empty() { "unknown" } else { driver }
}
