//! What was measured, for people: tables on the terminal, and docs/benchmarks.md with pictures.

mod chart;
mod pictures;

use std::{fmt::Write as _, path::Path};

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};

use super::{
    contender::{BASELINE, KANMON, PEER},
    report::{Cost, Goal, Growth, Range, Report, Timing},
};
use crate::{bench::page, output::write_for_caller};

/// A table, and the picture that comes before it.
struct Section {
    title: String,
    table: Table,
    picture: Option<&'static str>,
}

/// Tables for the terminal.
pub(super) fn tables(report: &Report) -> String {
    let mut text = String::new();
    for section in sections(report) {
        let _ = write!(text, "\n{}\n\n{}\n", section.title, section.table.trim_fmt());
    }
    let goals = |met| report.goals.iter().filter(|goal| goal.met == met).count();
    let (met, missed, unknown) = (goals(Some(true)), goals(Some(false)), goals(None));
    let _ = write!(text, "\nGoals: {met} met, {missed} missed, {unknown} not measured.");
    for goal in report.goals.iter().filter(|goal| goal.met == Some(false)) {
        let _ = write!(text, "\n  missed: {}", said(goal));
    }
    text
}

/// Writes the page and its pictures.
pub(super) fn write(report: &Report, directory: &Path) -> Result<()> {
    for (file, _, picture) in pictures::of(report) {
        write_for_caller(&directory.join(file), &chart::draw(&picture)?)?;
    }
    page::put(directory, page::DATA_PLANE, &markdown(report))
}

fn sections(report: &Report) -> Vec<Section> {
    let mut sections = Vec::new();
    let mut add = |title: &str, table, picture| {
        sections.push(Section { title: title.to_owned(), table, picture });
    };
    let mut cases: Vec<&str> = Vec::new();
    for cost in &report.packet {
        if !cases.contains(&cost.case) {
            cases.push(cost.case);
        }
    }
    for (n, case) in cases.into_iter().enumerate() {
        let picture = (n == 0).then_some(pictures::PACKET);
        add(&format!("{case}, ns a packet"), costs(report, case), picture);
    }
    if !report.programs.is_empty() {
        add("Programs", programs(report), None);
    }
    if !report.wire.is_empty() {
        add("On the wire, one CPU", passages(report), Some(pictures::WIRE));
    }
    if !report.connections.is_empty() {
        add("Connections", connections(report), Some(pictures::CONNECTIONS));
    }
    if !report.ring.is_empty() {
        add("Rings", rings(&report.ring), Some(pictures::RING));
    }
    if !report.scale.is_empty() {
        add("Scale", growth(&report.scale), Some(pictures::SCALE));
    }
    sections
}

fn costs(report: &Report, case: &str) -> Table {
    let mut table = table(&["flows", "order", KANMON, BASELINE, PEER, "to baseline", "to peer", "writing"]);
    let own = report.packet.iter().filter(|cost| cost.case == case && cost.program == KANMON);
    for cost in own {
        let other = |program: &str| {
            let same = |other: &&Cost| {
                (other.case, other.flows, other.order, other.program)
                    == (case, cost.flows, cost.order, program)
            };
            report.packet.iter().find(same)
        };
        let told = |cost: Option<&Cost>| cost.map_or_else(|| "–".to_owned(), |cost| cost.ns.to_string());
        let ratio = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.2}"));
        let peer = other(PEER);
        table.add_row([
            cost.flows.to_string(),
            cost.order.to_owned(),
            cost.ns.to_string(),
            told(other(BASELINE)),
            told(peer),
            ratio(cost.to_baseline),
            ratio(peer.map(|peer| cost.ns.median / peer.ns.median)),
            format!("{:.1}", cost.writing_ns.median),
        ]);
    }
    table
}

fn programs(report: &Report) -> Table {
    let mut table = table(&["program", "instructions verified", "bytes a flow"]);
    for program in &report.programs {
        let parts: Vec<String> =
            program.verified_instructions.iter().map(|(name, count)| format!("{name} {count}")).collect();
        let bytes = program.bytes_per_flow.map_or_else(|| "–".to_owned(), |bytes| bytes.to_string());
        table.add_row([program.name.to_owned(), parts.join(", "), bytes]);
    }
    table
}

fn passages(report: &Report) -> Table {
    let mut table =
        table(&["contender", "flows", "ns a frame", "frames/s", "by the wall", "lost", "to kanmon"]);
    for row in &report.wire {
        let told = |range: Option<Range>| {
            range.map_or_else(
                || "–".to_owned(),
                |range| format!("{:.0} ({:.0}–{:.0})", range.median, range.min, range.max),
            )
        };
        let own = report.passage(KANMON, row.flows);
        let to_own =
            row.ns.zip(own).map_or_else(|| "–".to_owned(), |(ns, own)| format!("{:.2}", ns.median / own));
        table.add_row([
            row.contender.to_owned(),
            row.flows.to_string(),
            row.lack.clone().unwrap_or_else(|| told(row.ns)),
            told(row.packets_per_second),
            told(row.wall_ns),
            row.lost.map_or_else(|| "–".to_owned(), |lost| format!("{lost:.4}")),
            to_own,
        ]);
    }
    table
}

fn connections(report: &Report) -> Table {
    let header = [
        "what",
        "contender",
        "a second",
        "unit",
        "to direct",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "CPU µs each",
        "between",
        "failed",
    ];
    let mut table = table(&header);
    let dash = || "–".to_owned();
    let ms = |range: Option<Range>| range.map_or_else(dash, |range| format!("{:.2}", range.median));
    for row in &report.connections {
        let rate = row.per_second;
        table.add_row([
            row.what.to_owned(),
            row.contender.to_owned(),
            format!("{:.0} ({:.0}–{:.0})", rate.median, rate.min, rate.max),
            row.unit.to_owned(),
            row.to_direct.map_or_else(dash, |value| format!("{value:.2}")),
            ms(row.p50_ms),
            ms(row.p99_ms),
            ms(row.p999_ms),
            format!("{:.1}", row.cpu_us.median),
            row.cpu_us_between.map_or_else(dash, |value| format!("{value:.1}")),
            row.failed.to_string(),
        ]);
    }
    table
}

fn rings(timings: &[Timing]) -> Table {
    let mut table = table(&["what", "slots", "services", "backends", "ms", "disruption"]);
    for timing in timings {
        table.add_row([
            timing.what.clone(),
            timing.slots.to_string(),
            timing.services.to_string(),
            timing.backends.to_string(),
            format!("{:.2} ({:.2}–{:.2})", timing.ms.median, timing.ms.min, timing.ms.max),
            timing.disruption.map_or_else(|| "–".to_owned(), |value| format!("{value:.4}")),
        ]);
    }
    table
}

fn growth(rows: &[Growth]) -> Table {
    let mut table = table(&["what", "services", "backends", "flows", "takes", "unit", "to smallest"]);
    for row in rows {
        let Range { min, median, max } = row.value;
        let takes =
            if min == max { format!("{median:.2}") } else { format!("{median:.2} ({min:.2}–{max:.2})") };
        table.add_row([
            row.what.clone(),
            row.services.to_string(),
            row.backends.to_string(),
            row.flows.map_or_else(|| "–".to_owned(), |flows| flows.to_string()),
            takes,
            row.unit.to_owned(),
            row.to_smallest.map_or_else(|| "–".to_owned(), |value| format!("{value:.2}")),
        ]);
    }
    table
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header);
    for column in 1..header.len() {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn markdown(report: &Report) -> String {
    let machine = &report.machine;
    let mut page = String::from(INTRODUCTION);
    let _ = writeln!(
        page,
        "{}, {} CPUs, last cache {}, Linux {}; all that is timed was pinned to CPU {}. The load in the minute before \
         was {}. The run took {:.0} s.",
        machine.cpu,
        machine.cpus,
        machine.last_cache.as_deref().unwrap_or("unknown"),
        machine.kernel,
        machine.pinned_to,
        machine.load_before.map_or_else(|| "unknown".to_owned(), |load| load.to_string()),
        report.seconds
    );
    let drawn = pictures::of(report);
    for mut section in sections(report) {
        let _ = write!(page, "\n## {}\n\n", section.title);
        let picture = drawn.iter().find(|(file, ..)| section.picture == Some(*file));
        if let Some((file, shows, _)) = picture {
            let _ = write!(page, "![{shows}]({file})\n\n");
        }
        section.table.load_style(presets::ASCII_MARKDOWN);
        let _ = writeln!(page, "{}", section.table);
    }
    page.push_str("\n## Goals\n\n");
    for goal in &report.goals {
        let mark = match goal.met {
            Some(true) => "met",
            Some(false) => "**missed**",
            None => "not measured in this run",
        };
        let _ = writeln!(page, "- {}: {mark}", said(goal));
    }
    page
}

fn said(goal: &Goal) -> String {
    let value = goal.value.map_or_else(String::new, |value| format!(", is {value}"));
    format!("{} {} {}{value}", goal.name, goal.op, goal.goal)
}

const INTRODUCTION: &str = "<!-- Written by `cargo xtask bench`; changes are lost. -->

Every figure stands beside something that was measured in the same run: absolute times drift with the machine, ratios
hold. `median (least–most)` is over the rounds of the run.

**Packets.** The kernel runs the packet program on frames from memory (`BPF_PROG_TEST_RUN`). A small program writes
each frame anew, of as many flows as the table says, and calls the program under test; what the same writer takes in
front of a program that only sends is subtracted (column *writing*). Where a program changes a frame's length, undoing
that counts as its own. In *random* order each flow comes once, shuffled, and then all again; *zipf* follows Zipf's law.
`baseline-lru` does the same NAT the usual way, with the kernel's `LRU_HASH` and `HASH`, and leaves out TCP states,
timeouts and counters (`benches/baseline-lru`). New flows: half as many as the tables are made for, one after the other,
into empty tables; `1` means the smallest tables, for 1,024. *bytes a flow* is all maps' memory divided by the flows
they are made for.

**On the wire.** A generator sends frames of established connections into a veth whose other end is a contender's, in
a network namespace of its own; the contender sends them back, and a program at the near end counts and drops them.
All of it runs on one CPU, one after the other: *ns a frame* is that CPU's time for each frame that arrived, *by the
wall* what a clock says, with whatever else ran there; on kernels with `CONFIG_IRQ_TIME_ACCOUNTING`, whose threads'
time lacks what is received, only that one holds. `generator` has the counting program in the contender's place: what
generator, one way and counting take. `xdp-tx` only sends back; `nftables` does DNAT and masquerade by rules, with a
flow table where the kernel has these; `routing` forwards to the VIP untranslated. The ends of rules and routing have
an XDP program that passes everything.

**Connections.** A client, a gateway and six pods in namespaces of one machine, whose CPUs all share. *new*: connections
with one request each, 64 at a time, closed by the server; *keep-alive*: requests over 64 connections that stand; *bulk*:
answers of many MB over four; *open*: so many connections a second until all are open at once. *direct* is one pod with
nobody between. *CPU* is what client, servers, contender and the kernel's receiving threads take together for each, and
*between* what of that the direct way does not take.

**Rings.** *build*: a Maglev ring over backends of one weight, *build weighted* of five; *disruption* is the share of
slots that move without need when one backend goes. *change*: an endpoint goes or comes back while the services of the
table are loaded, from the new target to the last write that packets see; *load all* is the first plan of all of them.

**Scale.** Gateways with one service and with ever more, of ten backends each and with rings as the agent makes them,
take turns in each round; *to smallest* is the ratio to the first of a kind. *nat-request*, *pass* and *new-tcp* are
packets as above, *wire* is a frame's time on the wire, all with the flows spread over the services. *ring* is one ring
of the size that so many backends get, *change* and *load all* are the agent's as above, and *maps* is what all maps
take; *maps by flows* with one service and tables for so many flows.

Another XDP program, pinned, is measured beside these by `--peer PINNED_PROGRAM`
([how](adr/0021-measuring.md)): *peer*.

";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::figures::{counters::Counts, goals, machine::Machine};

    pub(super) fn example() -> Report {
        let cost = |case, program, flows, median| Cost {
            case,
            flows,
            order: "random",
            program,
            ns: Range { min: median - 1.0, median, max: median + 1.0 },
            writing_ns: Range::default(),
            counts: Counts::default(),
            to_baseline: Some(median / 40.0),
        };
        let mut report = Report {
            machine: Machine {
                cpu: "a <CPU>".into(),
                cpus: 2,
                kernel: "6.18.0".into(),
                pinned_to: 0,
                load_before: None,
                last_cache: None,
            },
            quick: true,
            seconds: 3.0,
            packet: vec![
                cost("nat-request", KANMON, 1, 20.0),
                cost("nat-request", BASELINE, 1, 40.0),
                cost("nat-request", KANMON, 4096, 30.0),
                cost("nat-request", BASELINE, 4096, 40.0),
                cost("refused", KANMON, 1, 90.0),
                cost("refused", KANMON, 4096, 95.0),
            ],
            programs: Vec::new(),
            wire: Vec::new(),
            connections: Vec::new(),
            ring: Vec::new(),
            scale: Vec::new(),
            goals: Vec::new(),
        };
        report.goals = goals::judge(&report);
        report
    }

    #[test]
    fn a_row_has_the_baseline_and_a_dash_where_there_is_none() {
        let text = tables(&example());
        let row = |start: &str| text.lines().find(|line| line.trim().starts_with(start)).unwrap().to_owned();
        assert!(row("4096").contains("30.0 (29.0–31.0)") && row("4096").contains("0.75"), "{text}");
        assert!(text.contains("missed: packet/nat-request/4096 <= 0.6, is 0.75"), "{text}");
        assert!(text.contains("1 met, 1 missed"), "{text}");
        let page = markdown(&example());
        assert!(page.contains("| 4096"), "{page}");
        assert!(page.contains("packet/nat-request/1048576/peer <= 0.55: not measured in this run"), "{page}");
    }

    #[test]
    fn the_page_shows_each_picture_that_there_is_a_figure_for() {
        let report = example();
        let drawn = pictures::of(&report);
        assert_eq!(drawn.iter().map(|(file, ..)| *file).collect::<Vec<_>>(), [pictures::PACKET]);
        let page = markdown(&report);
        assert_eq!(page.matches(&format!("]({})", pictures::PACKET)).count(), 1, "{page}");
    }

    #[test]
    fn the_picture_of_packets_has_a_panel_a_case() {
        let svg = chart::draw(&pictures::of(&example())[0].2).unwrap();
        let picture = roxmltree::Document::parse(&svg).unwrap();
        let texts: Vec<&str> = picture
            .descendants()
            .filter(|node| node.is_text())
            .filter_map(|node| node.text())
            .map(str::trim)
            .filter(|text| !text.is_empty())
            .collect();
        for case in ["nat-request", "refused"] {
            assert_eq!(texts.iter().filter(|text| **text == case).count(), 1, "{texts:?}");
        }
        assert!(texts.contains(&"1K") && texts.contains(&KANMON), "{texts:?}");
    }
}
