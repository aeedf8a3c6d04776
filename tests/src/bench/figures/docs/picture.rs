//! What a packet costs, drawn: a panel a case, a line a program, flows to the right.

use anyhow::Result;
use plotters::{
    coord::Shift,
    prelude::{
        ChartBuilder, Color, DrawingArea, IntoDrawingArea, IntoFont, LineSeries, PathElement, RGBColor,
        SVGBackend, Text, WHITE,
    },
};

use crate::bench::figures::{
    contender::{BASELINE, KANMON, PEER},
    report::Cost,
};

/// In pixels.
const WIDTH: u32 = 900;
const PANEL: u32 = 240;
const LEGEND: u32 = 36;
const COLUMNS: usize = 3;
const FONT: &str = "sans-serif";
/// Colours that people who see few of them tell apart.
const PROGRAMS: [(&str, RGBColor); 3] =
    [(KANMON, RGBColor(0, 90, 181)), (BASELINE, RGBColor(220, 110, 0)), (PEER, RGBColor(130, 130, 130))];
const GRID: RGBColor = RGBColor(225, 225, 225);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws figures as SVG; those in random order.
///
/// # Errors
/// When the library cannot lay a text out.
pub(super) fn draw(costs: &[Cost]) -> Result<String> {
    let mut cases: Vec<&str> = costs.iter().map(|cost| cost.case).collect();
    cases.dedup();
    cases.sort_unstable();
    cases.dedup();
    let mut svg = String::new();
    {
        let rows = cases.len().div_ceil(COLUMNS);
        let size = (WIDTH, LEGEND + PANEL * u32::try_from(rows)?);
        let picture = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        picture.fill(&WHITE)?;
        let (top, rest) = picture.split_vertically(LEGEND);
        legend(&top)?;
        for (area, case) in rest.split_evenly((rows, COLUMNS)).iter().zip(cases) {
            panel(area, case, costs)?;
        }
        picture.present()?;
    }
    Ok(svg)
}

fn panel(area: &Area<'_>, case: &str, costs: &[Cost]) -> Result<()> {
    let points = |program: &str| -> Vec<(f64, f64)> {
        let own = |cost: &&Cost| (cost.case, cost.program, cost.order) == (case, program, "random");
        costs.iter().filter(own).map(|cost| (f64::from(cost.flows).log2(), cost.ns.median)).collect()
    };
    let top =
        PROGRAMS.iter().flat_map(|(program, _)| points(program)).fold(1.0, |top: f64, (_, y)| top.max(y));
    let mut chart = ChartBuilder::on(area)
        .caption(case, (FONT, 18).into_font())
        .margin(8)
        .x_label_area_size(36)
        .y_label_area_size(44)
        .build_cartesian_2d(0.0..20.0, 0.0..top * 1.1)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(GRID)
        .x_labels(6)
        .x_desc("flows")
        .y_desc("ns")
        .x_label_formatter(&flows)
        .y_label_formatter(&|value| format!("{value:.0}"))
        .label_style((FONT, 13))
        .draw()?;
    for (program, colour) in PROGRAMS.iter().rev() {
        chart.draw_series(LineSeries::new(points(program), colour.stroke_width(2)))?;
    }
    Ok(())
}

fn legend(area: &Area<'_>) -> Result<()> {
    for (n, (program, colour)) in (0..).zip(PROGRAMS) {
        let x = 60 + n * 150;
        area.draw(&PathElement::new([(x, 18), (x + 24, 18)], colour.stroke_width(3)))?;
        area.draw(&Text::new(program, (x + 32, 11), (FONT, 18)))?;
    }
    Ok(())
}

/// Of a power of two: 1, 16, 1K, 1M.
fn flows(power: &f64) -> String {
    let flows = power.exp2();
    match power.round() as u32 {
        0..10 => format!("{flows:.0}"),
        10..20 => format!("{:.0}K", flows / 1024.0),
        _ => format!("{:.0}M", flows / 1_048_576.0),
    }
}
