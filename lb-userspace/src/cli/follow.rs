//! `kanmon flows --follow`: the flow log as it happens.

use anyhow::{Context, Result};

use super::tables::bytes;
use super::{Flows, Output, print};
use crate::status::client;
use crate::status::protocol::FlowFilter;
use crate::status::view::{FlowRecord, RecordState};

pub(super) fn run(flows: Flows) -> Result<()> {
    let Flows { query, service, client, limit, .. } = flows;
    if query.output == Output::Table {
        print(&format!("{}\n", columns(HEADER.map(str::to_owned))))?;
    }
    client::follow(&query.socket, FlowFilter { service, client, limit }, |line| match query.output {
        Output::Json => print(&format!("{line}\n")),
        Output::Table => {
            let record = serde_json::from_str(line).context("a record of another version of kanmon")?;
            print(&format!("{}\n", row(&record)))
        }
    })
}

const HEADER: [&str; 9] =
    ["TIME", "STATE", "PROTOCOL", "CLIENT", "VIP", "SERVICE", "UPSTREAM HOST", "CLUSTER", "WHAT"];
/// Columns are as wide as most of what stands in them: rows come one by one.
const WIDTHS: [usize; 8] = [24, 8, 8, 21, 21, 16, 21, 12];

fn row(record: &FlowRecord) -> String {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let socket = |address: Option<std::net::SocketAddr>| or_dash(address.map(|address| address.to_string()));
    let state = match record.state {
        RecordState::Opened => "opened",
        RecordState::Rescued => "rescued",
        RecordState::Closed => "closed",
        RecordState::Lost => "lost",
    };
    columns([
        record.time.clone(),
        state.to_owned(),
        or_dash(record.protocol.clone()),
        socket(record.client),
        socket(record.vip),
        or_dash(record.service.clone()),
        socket(record.upstream_host),
        or_dash(record.cluster.clone()),
        what(record),
    ])
}

/// What else is to be said of it.
fn what(record: &FlowRecord) -> String {
    let mut parts = Vec::new();
    if let (Some(lost), Some(place)) = (record.lost, record.lost_in.as_deref()) {
        parts.push(format!("{lost} records lost in the {place}"));
    }
    match (record.state, record.previous_upstream_host) {
        (RecordState::Rescued, Some(before)) => parts.push(format!("from {before}")),
        _ => parts.extend(record.close_reason.clone()),
    }
    parts.extend(record.duration_seconds.map(|seconds| format!("{seconds:.3} s")));
    for (way, packets, count) in
        [("in", record.packets_in, record.bytes_in), ("out", record.packets_out, record.bytes_out)]
    {
        if let (Some(packets), Some(count)) = (packets, count) {
            parts.push(format!("{way} {packets} pkts {}", bytes(count)));
        }
    }
    parts.join(", ")
}

fn columns(cells: [String; 9]) -> String {
    let mut line = String::new();
    for (cell, width) in cells.iter().zip(WIDTHS) {
        line.push_str(&format!("{cell:width$}  "));
    }
    line.push_str(&cells[8]);
    line.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_what_happened_to_whom() {
        let record = FlowRecord {
            client: Some("198.51.100.2:40000".parse().unwrap()),
            vip: Some("192.168.100.10:80".parse().unwrap()),
            protocol: Some("TCP".into()),
            service: Some("demo/httpbin".into()),
            upstream_host: Some("10.0.1.10:8080".parse().unwrap()),
            cluster: Some("hangzhou".into()),
            close_reason: Some("fin".into()),
            duration_seconds: Some(0.25),
            bytes_in: Some(100),
            packets_in: Some(2),
            bytes_out: Some(2048),
            packets_out: Some(3),
            ..FlowRecord::of("2026-01-01T00:00:00.000Z".into(), RecordState::Closed)
        };
        let row = row(&record);
        for part in ["closed", "198.51.100.2:40000", "demo/httpbin", "10.0.1.10:8080", "hangzhou"] {
            assert!(row.contains(part), "{part} is missing: {row}");
        }
        assert!(row.ends_with("fin, 0.250 s, in 2 pkts 100 B, out 3 pkts 2.0 KiB"), "{row}");
        let before = Some("10.0.1.11:8080".parse().unwrap());
        let state = RecordState::Rescued;
        let rescued =
            FlowRecord { state, previous_upstream_host: before, ..FlowRecord::of("t".into(), state) };
        assert!(super::row(&rescued).ends_with("from 10.0.1.11:8080"));
        let lost = super::row(&FlowRecord::lost("t".into(), 7, "kernel"));
        assert!(lost.ends_with("7 records lost in the kernel"), "{lost}");
    }
}
