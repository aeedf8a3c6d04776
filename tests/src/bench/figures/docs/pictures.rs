//! What is drawn of a report: a picture for each kind of figure.

use super::chart::{Axis, Panel, Picture, Series};
use crate::bench::figures::{
    contender::{BASELINE, KANMON, PEER},
    report::{Growth, Range, Report, Served, Timing},
};

/// A picture's file, what it shows in a few words, and the picture.
pub(super) type Drawn = (&'static str, &'static str, Picture);

pub(super) const PACKET: &str = "benchmarks-packet.svg";
pub(super) const WIRE: &str = "benchmarks-wire.svg";
pub(super) const CONNECTIONS: &str = "benchmarks-connections.svg";
pub(super) const RING: &str = "benchmarks-ring.svg";
pub(super) const SCALE: &str = "benchmarks-scale.svg";

/// Of all that was measured.
pub(super) fn of(report: &Report) -> Vec<Drawn> {
    let all = [
        (PACKET, "What a packet costs, by kind and number of flows", packet(report)),
        (WIRE, "What one CPU forwards, by number of flows", wire(report)),
        (CONNECTIONS, "What clients get through each contender", connections(report)),
        (RING, "How long rings and changes take", ring(&report.ring)),
        (SCALE, "How figures grow with services, backends and flows", scale(&report.scale)),
    ];
    all.into_iter().filter(|(.., picture)| !picture.panels.is_empty()).collect()
}

/// The names of rows, each once, in their order.
fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut known = Vec::new();
    names.for_each(|name| {
        if !known.contains(&name) {
            known.push(name);
        }
    });
    known
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn packet(report: &Report) -> Picture {
    let programs: Vec<&str> = [KANMON, BASELINE, PEER]
        .into_iter()
        .filter(|name| report.packet.iter().any(|cost| cost.program == *name))
        .collect();
    let panel = |case: &str| {
        let series = |program: &&str| {
            let own = report
                .packet
                .iter()
                .filter(|cost| (cost.case, cost.program, cost.order) == (case, *program, "random"));
            let points = own.map(|cost| (f64::from(cost.flows), cost.ns)).collect();
            Series { name: (*program).to_owned(), points }
        };
        Panel {
            title: case.to_owned(),
            x: Axis::Doubling("flows"),
            y: "ns a packet".into(),
            tenfold: false,
            series: programs.iter().map(series).collect(),
        }
    };
    let cases = distinct(report.packet.iter().map(|cost| cost.case));
    Picture {
        title: "What a packet costs, flows in random order",
        legend: owned(&programs),
        panels: cases.into_iter().map(panel).collect(),
    }
}

fn wire(report: &Report) -> Picture {
    let contenders = distinct(report.wire.iter().filter(|row| row.ns.is_some()).map(|row| row.contender));
    let millions =
        |rate: Range| Range { min: rate.min / 1e6, median: rate.median / 1e6, max: rate.max / 1e6 };
    let panel = |title: &str, y: &str, figure: &dyn Fn(usize) -> Option<Range>| {
        let series = |contender: &&str| {
            let own = (0..report.wire.len()).filter(|n| report.wire[*n].contender == *contender);
            let points = own.filter_map(|n| Some((f64::from(report.wire[n].flows), figure(n)?))).collect();
            Series { name: (*contender).to_owned(), points }
        };
        Panel {
            title: title.into(),
            x: Axis::Doubling("flows"),
            y: y.into(),
            tenfold: false,
            series: contenders.iter().map(series).collect(),
        }
    };
    let panels = vec![
        panel("processor time", "ns a frame", &|n| report.wire[n].ns),
        panel("throughput of one CPU", "million frames a second", &|n| {
            report.wire[n].packets_per_second.map(millions)
        }),
    ];
    Picture {
        title: "What one CPU forwards from a link back to it",
        legend: owned(&contenders),
        panels: if contenders.is_empty() { Vec::new() } else { panels },
    }
}

fn connections(report: &Report) -> Picture {
    let contenders = distinct(report.connections.iter().map(|row| row.contender));
    let mut panels = Vec::new();
    for what in distinct(report.connections.iter().map(|row| row.what)) {
        let rows = || report.connections.iter().filter(|row| row.what == what);
        let unit = rows().map(|row| row.unit).next().unwrap_or_default();
        let mut bars = |figure: &str, y: String, value: &dyn Fn(&Served) -> Option<Range>| {
            let bar = |row: &Served| {
                Some(Series { name: row.contender.to_owned(), points: vec![(1.0, value(row)?)] })
            };
            let series: Vec<Series> = rows().filter_map(bar).collect();
            if !series.is_empty() {
                let title = format!("{what}: {figure}");
                panels.push(Panel { title, x: Axis::Bars("contender"), y, tenfold: false, series });
            }
        };
        bars("rate", format!("{unit} a second"), &|row| Some(row.per_second));
        bars("99% within", "ms".into(), &|row| row.p99_ms);
        bars("all processor time", "µs each".into(), &|row| Some(row.cpu_us));
    }
    Picture { title: "What clients get", legend: owned(&contenders), panels }
}

fn ring(timings: &[Timing]) -> Picture {
    let kinds = distinct(timings.iter().map(|timing| timing.what.as_str()));
    let points = |kind: &str| {
        let own = timings.iter().filter(|timing| timing.what == kind);
        own.map(|timing| (f64::from(timing.backends), timing.ms)).collect::<Vec<_>>()
    };
    let is_build = |kind: &&str| kind.starts_with("build");
    let series = |kind: &str| Series { name: kind.to_owned(), points: points(kind) };
    let mut panels = Vec::new();
    let builds: Vec<Series> = kinds.iter().copied().filter(is_build).map(series).collect();
    if !builds.is_empty() {
        panels.push(Panel {
            title: "a ring of 65,537 slots".into(),
            x: Axis::Tenfold("backends"),
            y: "ms".into(),
            tenfold: false,
            series: builds,
        });
    }
    for kind in kinds.iter().copied().filter(|kind| !is_build(kind)) {
        let backends = timings.iter().find(|timing| timing.what == kind).map_or(0, |timing| timing.backends);
        panels.push(Panel {
            title: format!("{kind}, of {backends} endpoints"),
            x: Axis::Bars(if kind == "change" { "one endpoint" } else { "all endpoints" }),
            y: "ms".into(),
            tenfold: false,
            series: vec![series(kind)],
        });
    }
    Picture { title: "How long rings and changes take", legend: owned(&kinds), panels }
}

fn scale(rows: &[Growth]) -> Picture {
    let panel = |what: &str| {
        let own: Vec<&Growth> = rows.iter().filter(|row| row.what == what).collect();
        let differs = |value: fn(&Growth) -> u32| own.iter().any(|row| value(row) != value(own[0]));
        let (name, of): (&'static str, fn(&Growth) -> u32) = if differs(|row| row.services) {
            ("services of ten backends", |row| row.services)
        } else if differs(|row| row.backends) {
            ("backends of one service", |row| row.backends)
        } else {
            ("flows", |row| row.flows.unwrap_or(1))
        };
        let points = own.iter().map(|row| (f64::from(of(row)), row.value)).collect();
        let unit = own.first().map_or("", |row| row.unit);
        Panel {
            title: what.to_owned(),
            x: if name == "flows" { Axis::Doubling(name) } else { Axis::Tenfold(name) },
            y: if unit == "ns" { "ns a packet".into() } else { unit.to_owned() },
            // What a packet takes is to stay the same, the rest may grow with what there is.
            tenfold: unit != "ns",
            series: vec![Series { name: KANMON.to_owned(), points }],
        }
    };
    Picture {
        title: "How figures grow with services, backends and flows",
        legend: owned(&[KANMON]),
        panels: distinct(rows.iter().map(|row| row.what.as_str())).into_iter().map(panel).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_drawn_along_what_grows() {
        let row = |what: &str, unit, services, backends, flows| Growth {
            what: what.into(),
            unit,
            services,
            backends,
            flows,
            value: Range::of(&[2.0]),
            to_smallest: None,
        };
        let rows = [
            row("pass", "ns", 1, 10, Some(64)),
            row("pass", "ns", 100, 1000, Some(64)),
            row("ring", "ms", 1, 10, None),
            row("ring", "ms", 1, 100, None),
            row("maps by flows", "MB", 1, 128, Some(1024)),
            row("maps by flows", "MB", 1, 128, Some(4096)),
        ];
        let picture = scale(&rows);
        let axes: Vec<_> = picture.panels.iter().map(|panel| (panel.x, panel.tenfold)).collect();
        let expected = [
            (Axis::Tenfold("services of ten backends"), false),
            (Axis::Tenfold("backends of one service"), true),
            (Axis::Doubling("flows"), true),
        ];
        assert!(axes == expected);
        assert_eq!(picture.panels[1].series[0].points[1].0, 100.0);
    }
}
