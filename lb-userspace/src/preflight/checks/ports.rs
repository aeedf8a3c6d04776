//! SNAT ports beside those that the node uses.

use super::super::facts::Ports;
use super::super::finding::Finding;
use crate::network::snat::{self, PortRangeError};

/// `snat-ports`, `node-ports`.
pub(in super::super) fn check(ports: &Ports) -> Vec<Finding> {
    let in_use = match &ports.in_use {
        Ok(in_use) => in_use,
        Err(error) => {
            let fix = "run this where /proc is mounted";
            return vec![Finding::failed("snat-ports", "this machine", error, fix)];
        }
    };
    let nodes = format!("{}-{}", in_use.node_ports.start(), in_use.node_ports.end());
    match snat::choose(&ports.request, in_use) {
        Err(error) => {
            let fix = match &error {
                PortRangeError::Shape { fix, .. } | PortRangeError::Overlap { fix, .. } => fix.clone(),
                PortRangeError::Syntax(_) | PortRangeError::NoneFree => {
                    "free 1024 ports in a row, for example: sysctl -w net.ipv4.ip_local_port_range=\"32768 60999\""
                        .to_owned()
                }
            };
            let of_nodes =
                matches!(&error, PortRangeError::Overlap { with, .. } if with.contains("NodePorts"));
            let check = if of_nodes { "node-ports" } else { "snat-ports" };
            let text = error.to_string();
            let message = text.strip_suffix(&format!("; {fix}")).unwrap_or(&text);
            vec![Finding::failed(check, "this machine", message, fix)]
        }
        Ok(range) => {
            let taken: Vec<String> = ports
                .stray_node_ports
                .iter()
                .filter(|port| (range.base..=range.last()).contains(port))
                .map(u16::to_string)
                .collect();
            let node_ports = if taken.is_empty() {
                Finding::ok("node-ports", "this machine", format!("{nodes} stay free"))
            } else {
                Finding::failed(
                    "node-ports",
                    "this machine",
                    format!("Services have NodePorts among the SNAT ports {range}: {}", taken.join(", ")),
                    "say the cluster's range with --node-ports FIRST-LAST, and choose others with --snat-ports",
                )
            };
            vec![Finding::ok("snat-ports", "this machine", format!("{range} are free")), node_ports]
        }
    }
}
