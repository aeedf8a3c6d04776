//! What `bench failover` found, drawn: a panel a fault, a line a contender.

use anyhow::Result;
use plotters::{
    coord::Shift,
    prelude::{
        BLACK, ChartBuilder, Color, DrawingArea, IntoDrawingArea, IntoFont, LineSeries, PathElement,
        RGBColor, SVGBackend, Text, WHITE,
    },
};

use super::{
    contender::Contender,
    report::{ContenderReport, FaultReport, Report},
    series::Bin,
};

/// In pixels.
const WIDTH: u32 = 900;
const PANEL: u32 = 300;
const LEGEND: u32 = 36;
const FONT: &str = "sans-serif";
/// Colours that people who see few of them tell apart, by the order of the contenders.
const COLOURS: [RGBColor; 3] = [RGBColor(0, 90, 181), RGBColor(220, 110, 0), RGBColor(130, 130, 130)];
const GRID: RGBColor = RGBColor(225, 225, 225);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws the report as SVG.
///
/// # Errors
/// When the library cannot lay a text out.
pub(super) fn draw(report: &Report) -> Result<String> {
    let mut svg = String::new();
    paint(&mut svg, report)?;
    Ok(svg)
}

fn paint(svg: &mut String, report: &Report) -> Result<()> {
    let panels = report.faults.len();
    let height = LEGEND + PANEL * u32::try_from(panels)?;
    let picture = SVGBackend::with_string(svg, (WIDTH, height)).into_drawing_area();
    picture.fill(&WHITE)?;
    let (top, rest) = picture.split_vertically(LEGEND);
    legend(&top)?;
    for (area, fault) in rest.split_evenly((panels, 1)).iter().zip(&report.faults) {
        panel(area, fault, report.rounds)?;
    }
    Ok(picture.present()?)
}

fn panel(area: &Area<'_>, fault: &FaultReport, rounds: u32) -> Result<()> {
    let curves: Vec<Curve> = fault.contenders.iter().map(|contender| Curve::of(contender, rounds)).collect();
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let (first, last) =
        points().fold((0.0, 1.0), |(low, high): (f64, f64), &(x, _)| (low.min(x), high.max(x)));
    let top = points().fold(1.0, |top: f64, &(_, y)| top.max(y)) * 1.1;
    let mut chart = ChartBuilder::on(area)
        .caption(format!("{}: {}", fault.name, fault.story), (FONT, 20).into_font())
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(first..last, 0.0..top)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(GRID)
        .x_desc("seconds from the fault to the request's start")
        .y_desc("failed or slow in 50 ms")
        .x_label_formatter(&tidy)
        .y_label_formatter(&tidy)
        .label_style((FONT, 15))
        .draw()?;
    chart.draw_series([PathElement::new([(0.0, 0.0), (0.0, top)], BLACK.mix(0.4))])?;
    // The first of the list is drawn last, on top of the others.
    for (curve, colour) in curves.iter().zip(COLOURS).rev() {
        chart.draw_series(LineSeries::new(curve.points.iter().copied(), colour.stroke_width(2)))?;
    }
    Ok(())
}

/// Which line is whose, above the panels: within one it would hide lines.
fn legend(area: &Area<'_>) -> Result<()> {
    for (n, (contender, colour)) in (0..).zip(Contender::ALL.into_iter().zip(COLOURS)) {
        let x = 70 + n * 130;
        area.draw(&PathElement::new([(x, 18), (x + 24, 18)], colour.stroke_width(3)))?;
        area.draw(&Text::new(contender.name(), (x + 32, 11), (FONT, 18)))?;
    }
    Ok(())
}

/// A number without noise behind the point.
fn tidy(value: &f64) -> String {
    ((value * 10.0).round() / 10.0).to_string()
}

/// Requests that failed or were slow, in each bin, as the mean of the rounds.
struct Curve {
    points: Vec<(f64, f64)>,
}

impl Curve {
    fn of(contender: &ContenderReport, rounds: u32) -> Curve {
        let point = |bin: &Bin| {
            let bad = (bin.failed + bin.slow) as f64 / f64::from(rounds.max(1));
            (bin.ms as f64 / 1000.0, bad)
        };
        Curve { points: contender.series.iter().map(point).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{report, series::Run};

    fn run(bad: u64) -> Run {
        let bin = |n: i64| Bin { ms: n * 50, ok: 20, slow: if n >= 0 { bad } else { 0 }, failed: 0 };
        Run { requests: 100, slow: bad, series: (-20..100).map(bin).collect(), ..Run::default() }
    }

    #[test]
    fn the_picture_is_well_formed_with_a_panel_a_fault_and_a_line_a_contender() {
        let report = report::example(&["pod-killed", "pod-silent"], &[[run(0), run(4), run(12)]]);
        let svg = draw(&report).unwrap();
        let picture = roxmltree::Document::parse(&svg).unwrap();
        assert_eq!(picture.root_element().tag_name().name(), "svg");
        let texts: Vec<&str> = picture
            .descendants()
            .filter(|node| node.is_text())
            .filter_map(|node| node.text())
            .map(str::trim)
            .collect();
        for text in
            ["pod-killed: 1 of 6 pods < refuses", "pod-silent: 1 of 6 pods < refuses", "Kanmon", "nftables"]
        {
            assert_eq!(texts.iter().filter(|other| **other == text).count(), 1, "{text} in {texts:?}");
        }
        let curve = |node: &roxmltree::Node<'_, '_>| {
            let points = node.attribute("points").unwrap_or_default();
            node.tag_name().name() == "polyline" && points.split_whitespace().count() == 120
        };
        assert_eq!(picture.descendants().filter(curve).count(), 2 * 3);
    }

    #[test]
    fn a_line_is_the_mean_of_the_rounds() {
        let report = report::example(&["pod-killed"], &[[run(0), run(4), run(9)], [run(0), run(5), run(12)]]);
        let curve = Curve::of(&report.faults[0].contenders[1], report.rounds);
        assert_eq!(curve.points[19], (-0.05, 0.0));
        assert_eq!(curve.points[20], (0.0, 4.5));
    }

    #[test]
    fn ticks_have_no_noise() {
        assert_eq!(
            (tidy(&0.30000000000000004), tidy(&12.0), tidy(&-1.0)),
            ("0.3".into(), "12".into(), "-1".into())
        );
    }
}
