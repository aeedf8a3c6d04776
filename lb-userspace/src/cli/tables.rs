//! The views as tables for people.

use std::fmt::Write;
use std::time::Duration;

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};

use crate::config::format_duration;
use crate::status::view::{Backend, Connection, Flow, Service, Status, Traffic};

/// `kanmon status`.
pub(super) fn status(status: &Status) -> String {
    let mut facts = plain(&[]);
    let attach: Vec<String> = status.attach.iter().map(|a| format!("{} ({})", a.interface, a.mode)).collect();
    let snat: Vec<String> = status.snat.addresses.iter().map(ToString::to_string).collect();
    let place = match (&status.region, &status.zone) {
        (None, None) => "not set".to_owned(),
        (region, zone) => [region.as_deref(), zone.as_deref()].map(|part| part.unwrap_or("-")).join("/"),
    };
    let since = if status.adopted { " (went on with the maps of a former agent)" } else { "" };
    let backends = status.backends;
    for (name, value) in [
        ("ready", if status.ready { "yes".to_owned() } else { "no".to_owned() }),
        ("since", format!("{}{since}", status.since)),
        ("version", format!("{}, map layout {}, kernel {}", status.version, status.abi, status.kernel)),
        ("place", place),
        ("attached", or_none(attach.join(", "))),
        ("pins", status.pin_dir.clone()),
        ("services", status.services.to_string()),
        (
            "backends",
            format!("{} ({} healthy, {} take new flows)", backends.total, backends.healthy, backends.usable),
        ),
        ("SNAT", format!("{} ports {}", or_none(snat.join(", ")), status.snat.ports)),
        (
            "flows",
            format!(
                "{} of {} ({:.1}%)",
                status.flows.total,
                status.flows.capacity,
                status.flows.fill * 100.0
            ),
        ),
        ("memory", bytes(status.memory.get("total").copied().unwrap_or(0))),
    ] {
        facts.add_row([name, &value]);
    }
    let mut text = format!("{facts}\n");

    let header = ["CLUSTER", "REGION", "STATE", "CONNECTED", "SINCE", "SERVICES", "ENDPOINTS", "PROBLEM"];
    section(&mut text, "CLUSTERS", &header, |table| {
        for cluster in &status.clusters {
            table.add_row([
                Cell::new(&cluster.name),
                dash(cluster.region.as_deref()),
                Cell::new(&cluster.state),
                connected(cluster.connection.as_ref()),
                dash(cluster.connection.as_ref().map(|connection| connection.since.as_str())),
                number(cluster.services as u64),
                number(cluster.endpoints as u64),
                dash(cluster.problem.as_deref()),
            ]);
        }
    });
    section(&mut text, "DRAINED BY HAND", &["WHAT", "NAME", "SINCE", "BACKENDS", "FLOWS LEFT"], |table| {
        for drained in &status.drained {
            table.add_row([
                Cell::new(&drained.kind),
                Cell::new(&drained.name),
                Cell::new(&drained.since),
                number(drained.backends as u64),
                number(drained.flows),
            ]);
        }
    });
    section(&mut text, "FLOWS", &["STATE", "FLOWS"], |table| {
        for (state, flows) in status.flows.states.iter().filter(|(_, flows)| **flows > 0) {
            table.add_row([Cell::new(state), number(*flows)]);
        }
    });
    section(&mut text, "COUNTERS (those that are not 0)", &["COUNTER", "PACKETS"], |table| {
        for (name, count) in status.counters.iter().filter(|(_, count)| **count > 0) {
            table.add_row([Cell::new(name), number(*count)]);
        }
    });
    if let Some(why) = &status.redirects_uncounted {
        let _ = writeln!(text, "\nredirect_failed does not count: {why}");
    }
    section(&mut text, "NOT FROM THIS NODE (everybody else can connect)", &["VIP", "WHY"], |table| {
        for no_client in &status.node_is_no_client {
            table.add_row([Cell::new(no_client.vip), Cell::new(&no_client.reason)]);
        }
    });
    section(&mut text, "PROBLEMS", &["CLUSTER", "OBJECT", "REASON", "MESSAGE"], |table| {
        for problem in &status.problems {
            table.add_row([
                dash(problem.cluster.as_deref()),
                Cell::new(&problem.object),
                Cell::new(&problem.reason),
                Cell::new(&problem.message),
            ]);
        }
    });
    text
}

/// `kanmon services`.
pub(super) fn services(services: &[Service]) -> String {
    if services.is_empty() {
        return "no services\n".to_owned();
    }
    let mut table = plain(&[
        "SERVICE",
        "VIP",
        "PROTOCOL",
        "FRONT",
        "USABLE",
        "CLUSTERS",
        "RING",
        "CONNECTIONS",
        "IN",
        "OUT",
        "PROBLEM",
    ]);
    for service in services {
        let degraded = service.degraded.then_some("every probe fails: all endpoints are tried");
        table.add_row([
            Cell::new(format!("{}/{}", service.namespace, service.name)),
            Cell::new(std::net::SocketAddr::new(service.vip, service.port)),
            Cell::new(&service.protocol),
            Cell::new(service.front.as_deref().unwrap_or("(gateway)")),
            Cell::new(format!("{}/{}", service.usable, service.endpoints)),
            Cell::new(or_none(service.clusters.join(","))),
            service
                .ring
                .map_or_else(|| dash(None), |ring| Cell::new(format!("{} v{}", ring.slots, ring.version))),
            number(service.traffic.connections),
            inward(&service.traffic),
            outward(&service.traffic),
            dash(service.problem.as_deref().or(degraded)),
        ]);
    }
    format!("{table}\n")
}

/// `kanmon backends`.
pub(super) fn backends(backends: &[Backend]) -> String {
    if backends.is_empty() {
        return "no backends\n".to_owned();
    }
    let mut table = plain(&[
        "CLUSTER",
        "ZONE",
        "SERVICE",
        "POD",
        "ADDRESS",
        "PROTOCOL",
        "STATE",
        "FLOWS",
        "CONNECTIONS",
        "IN",
        "OUT",
        "NEXT HOP",
        "REASON",
    ]);
    for backend in backends {
        let state = match (backend.usable, backend.draining, backend.healthy) {
            (true, ..) => "usable",
            (false, true, _) => "draining",
            (false, false, Some(false)) => "unhealthy",
            (false, false, _) => "unusable",
        };
        table.add_row([
            Cell::new(&backend.cluster),
            dash(Some(backend.zone.as_str()).filter(|zone| !zone.is_empty())),
            Cell::new(&backend.service),
            dash(Some(backend.pod.as_str()).filter(|pod| !pod.is_empty())),
            Cell::new(std::net::SocketAddr::new(backend.address, backend.port)),
            Cell::new(&backend.protocol),
            Cell::new(state),
            number(backend.flows),
            number(backend.traffic.connections),
            inward(&backend.traffic),
            outward(&backend.traffic),
            dash(backend.next_hop.as_deref()),
            dash(reason(backend).as_deref()),
        ]);
    }
    format!("{table}\n")
}

/// Why a backend takes no new flows, and how long it keeps the others.
fn reason(backend: &Backend) -> Option<String> {
    let reason = backend.reason.as_deref()?;
    Some(match backend.drain_seconds {
        Some(seconds) if backend.flows > 0 => {
            format!("{reason}; its flows are ended in {}", format_duration(Duration::from_secs(seconds)))
        }
        _ => reason.to_owned(),
    })
}

/// `kanmon flows`.
pub(super) fn flows(flows: &[Flow]) -> String {
    if flows.is_empty() {
        return "no flows\n".to_owned();
    }
    let mut table =
        plain(&["CLIENT", "VIP", "PROTOCOL", "UPSTREAM HOST", "CLUSTER", "POD", "STATE", "SNAT", "IDLE"]);
    for flow in flows {
        table.add_row([
            Cell::new(flow.client),
            Cell::new(flow.vip),
            Cell::new(&flow.protocol),
            Cell::new(flow.upstream_host),
            dash(flow.cluster.as_deref()),
            dash(flow.pod.as_deref()),
            Cell::new(&flow.state),
            Cell::new(flow.snat),
            Cell::new(format!("{:.1} s", flow.idle_seconds)).set_alignment(CellAlignment::Right),
        ]);
    }
    format!("{table}\n")
}

/// A number of bytes as people read it.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// Whether a cluster's API server answers, and why not.
fn connected(connection: Option<&Connection>) -> Cell {
    match connection.map(|connection| (connection.connected, connection)) {
        None => dash(None),
        Some((Some(true), connection)) if !connection.synced => Cell::new("yes (reading)"),
        Some((Some(true), _)) => Cell::new("yes"),
        Some((Some(false), connection)) => Cell::new(format!("no ({})", connection.reason)),
        Some((None, _)) => Cell::new("not yet"),
    }
}

pub(super) fn plain(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if !header.is_empty() {
        table.set_header(header);
    }
    table
}

fn section(text: &mut String, title: &str, header: &[&str], fill: impl FnOnce(&mut Table)) {
    let mut table = plain(header);
    fill(&mut table);
    if !table.is_empty() {
        write!(text, "\n{title}\n{table}\n").expect("a String takes what is written to it");
    }
}

fn inward(traffic: &Traffic) -> Cell {
    Cell::new(format!("{} pkts {}", traffic.packets_in, bytes(traffic.bytes_in)))
        .set_alignment(CellAlignment::Right)
}

fn outward(traffic: &Traffic) -> Cell {
    Cell::new(format!("{} pkts {}", traffic.packets_out, bytes(traffic.bytes_out)))
        .set_alignment(CellAlignment::Right)
}

fn number(value: u64) -> Cell {
    Cell::new(value).set_alignment(CellAlignment::Right)
}

fn dash(value: Option<&str>) -> Cell {
    Cell::new(value.unwrap_or("-"))
}

fn or_none(text: String) -> String {
    if text.is_empty() { "none".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::view::{DrainCause, Ring};

    #[test]
    fn bytes_are_rounded_to_a_readable_unit() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes(160 << 20), "160.0 MiB");
    }

    #[test]
    fn a_degraded_service_says_why_in_its_row() {
        let service = Service {
            namespace: "demo".into(),
            name: "httpbin".into(),
            vip: "fd00:100::10".parse().unwrap(),
            port: 80,
            protocol: "TCP".into(),
            front: None,
            not_fronts: vec![],
            endpoints: 2,
            usable: 2,
            clusters: vec!["hangzhou".into(), "shanghai".into()],
            ring: Some(Ring { slots: 251, version: 1 }),
            source_ranges: None,
            affinity_seconds: None,
            traffic: Traffic::default(),
            degraded: true,
            problem: None,
        };
        let table = services(&[service]);
        for part in [
            "demo/httpbin",
            "[fd00:100::10]:80",
            "(gateway)",
            "2/2",
            "hangzhou,shanghai",
            "251 v1",
            "every probe",
        ] {
            assert!(table.contains(part), "{part} is missing in\n{table}");
        }
    }

    #[test]
    fn a_draining_backend_shows_why_and_how_long_its_flows_have() {
        let row = Backend {
            cluster: "hangzhou".into(),
            region: String::new(),
            zone: String::new(),
            service: "demo/httpbin".into(),
            vip: [192, 168, 100, 10].into(),
            pod: "hangzhou-1".into(),
            address: [10, 0, 1, 10].into(),
            port: 8080,
            protocol: "TCP".into(),
            ready: true,
            healthy: None,
            usable: false,
            draining: true,
            drain_cause: Some(DrainCause::ByHand),
            drain_seconds: Some(90),
            flows: 7,
            traffic: Traffic::default(),
            next_hop: None,
            reason: Some("cluster hangzhou is drained by hand".into()),
        };
        let table = backends(std::slice::from_ref(&row));
        for part in ["draining", " 7 ", "cluster hangzhou is drained by hand; its flows are ended in 1m30s"] {
            assert!(table.contains(part), "{part} is missing in\n{table}");
        }
        let done = backends(&[Backend { flows: 0, ..row }]);
        assert!(!done.contains("are ended"), "it has none left:\n{done}");
    }

    #[test]
    fn an_empty_list_is_said_in_words() {
        assert_eq!(services(&[]), "no services\n");
        assert_eq!(backends(&[]), "no backends\n");
        assert_eq!(flows(&[]), "no flows\n");
    }
}
