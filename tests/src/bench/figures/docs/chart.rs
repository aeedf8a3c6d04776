//! Panels of lines or bars in one picture: a title, a legend, axes with units, and black on white, so that it can be
//! read on pages of any colour.

use anyhow::Result;
use plotters::{
    coord::Shift,
    prelude::{
        BLACK, ChartBuilder, Circle, Color, DrawingArea, IntoDrawingArea, IntoFont, LineSeries, PathElement,
        RGBColor, Rectangle, SVGBackend, Text, WHITE,
    },
};

use crate::bench::figures::report::Range;

/// In pixels.
const WIDTH: u32 = 900;
const PANEL: u32 = 240;
const TITLE: u32 = 34;
const LEGEND_ROW: u32 = 24;
const LEGEND_ENTRY: i32 = 170;
const COLUMNS: usize = 3;
const LEGEND_COLUMNS: usize = 5;
const FONT: &str = "sans-serif";
/// Colours that people who see few of them tell apart, by the order of the legend.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 90, 181),
    RGBColor(220, 110, 0),
    RGBColor(130, 130, 130),
    RGBColor(0, 140, 100),
    RGBColor(170, 60, 140),
    RGBColor(70, 180, 230),
];
const GRID: RGBColor = RGBColor(225, 225, 225);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A picture.
pub(super) struct Picture {
    pub(super) title: &'static str,
    /// What the colours stand for.
    pub(super) legend: Vec<String>,
    pub(super) panels: Vec<Panel>,
}

/// One of its panels.
pub(super) struct Panel {
    pub(super) title: String,
    pub(super) x: Axis,
    /// What the height is, with its unit.
    pub(super) y: String,
    /// Whether each step upwards is ten times as much.
    pub(super) tenfold: bool,
    pub(super) series: Vec<Series>,
}

/// What lies to the right.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Axis {
    /// So many of something, each step to the right twice as many.
    Doubling(&'static str),
    /// The same, ten times as many.
    Tenfold(&'static str),
    /// A bar for each series, of its only point.
    Bars(&'static str),
}

/// What has one colour.
pub(super) struct Series {
    /// As in the legend.
    pub(super) name: String,
    /// Positions to the right, from 1, and heights: a line through the medians, and between what the rounds were.
    pub(super) points: Vec<(f64, Range)>,
}

impl Axis {
    const fn name(self) -> &'static str {
        match self {
            Axis::Doubling(name) | Axis::Tenfold(name) | Axis::Bars(name) => name,
        }
    }

    fn position(self, x: f64) -> f64 {
        match self {
            Axis::Doubling(_) => x.log2(),
            Axis::Tenfold(_) => x.log10(),
            Axis::Bars(_) => x,
        }
    }

    fn label(self, position: f64) -> String {
        match self {
            Axis::Doubling(_) => binary(position.exp2()),
            Axis::Tenfold(_) => decimal(10_f64.powf(position)),
            Axis::Bars(_) => String::new(),
        }
    }
}

impl Panel {
    /// Where a height is drawn.
    fn height(&self, y: f64) -> f64 {
        if self.tenfold { y.max(0.001).log10() } else { y }
    }

    fn heights(&self) -> impl Iterator<Item = f64> {
        let all = self.series.iter().flat_map(|series| &series.points);
        all.flat_map(|(_, range)| [self.height(range.min), self.height(range.max)])
    }

    fn width(&self) -> f64 {
        match self.x {
            Axis::Bars(_) => self.series.len() as f64,
            axis => {
                let all = self.series.iter().flat_map(|series| &series.points);
                all.map(|(x, _)| axis.position(*x)).fold(1.0, f64::max)
            }
        }
    }
}

/// Draws a picture as SVG.
///
/// # Errors
/// When the library cannot lay a text out.
pub(super) fn draw(picture: &Picture) -> Result<String> {
    let mut svg = String::new();
    {
        let rows = u32::try_from(picture.panels.len().div_ceil(COLUMNS))?;
        let legend_rows = u32::try_from(picture.legend.len().div_ceil(LEGEND_COLUMNS))?;
        let head = TITLE + LEGEND_ROW * legend_rows + 8;
        let area = SVGBackend::with_string(&mut svg, (WIDTH, head + PANEL * rows)).into_drawing_area();
        area.fill(&WHITE)?;
        let (top, rest) = area.split_vertically(head);
        top.draw(&Text::new(picture.title, (16, 10), (FONT, 21)))?;
        legend(&top, &picture.legend)?;
        for (area, panel) in rest.split_evenly((rows as usize, COLUMNS)).iter().zip(&picture.panels) {
            draw_panel(area, panel, &picture.legend)?;
        }
        area.present()?;
    }
    Ok(svg)
}

fn legend(area: &Area<'_>, names: &[String]) -> Result<()> {
    for (n, name) in names.iter().enumerate() {
        let x = 16 + (n % LEGEND_COLUMNS) as i32 * LEGEND_ENTRY;
        let y = TITLE as i32 + (n / LEGEND_COLUMNS) as i32 * LEGEND_ROW as i32;
        area.draw(&PathElement::new(
            [(x, y + 9), (x + 24, y + 9)],
            COLOURS[n % COLOURS.len()].stroke_width(3),
        ))?;
        area.draw(&Text::new(name.as_str(), (x + 32, y + 2), (FONT, 17)))?;
    }
    Ok(())
}

fn draw_panel(area: &Area<'_>, panel: &Panel, legend: &[String]) -> Result<()> {
    let (low, high) = panel.heights().fold((f64::MAX, f64::MIN), |(low, high), y| (low.min(y), high.max(y)));
    let range = if panel.tenfold {
        low.floor()..high.ceil().max(low.floor() + 1.0)
    } else {
        0.0..high.max(0.1) * 1.1
    };
    let bottom = range.start;
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, (FONT, 17).into_font())
        .margin(8)
        .x_label_area_size(36)
        .y_label_area_size(52)
        .build_cartesian_2d(0.0..panel.width(), range)?;
    let bars = matches!(panel.x, Axis::Bars(_));
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(GRID)
        .x_labels(if bars { 0 } else { 6 })
        .x_desc(panel.x.name())
        .y_desc(&panel.y)
        .x_label_formatter(&|position| panel.x.label(*position))
        .y_label_formatter(&|y| decimal(if panel.tenfold { 10_f64.powf(*y) } else { *y }))
        .label_style((FONT, 13))
        .draw()?;
    // The first of the legend is drawn last, on top of the others.
    for (n, series) in panel.series.iter().enumerate().rev() {
        let place = legend.iter().position(|name| *name == series.name).unwrap_or(0);
        let colour = COLOURS[place % COLOURS.len()];
        let x_of = |x: f64| if bars { n as f64 + 0.5 } else { panel.x.position(x) };
        let at = |x: f64, y: f64| (x_of(x), panel.height(y));
        if bars {
            let bar = |(x, range): &(f64, Range)| {
                let (middle, top) = at(*x, range.median);
                Rectangle::new([(middle - 0.35, bottom), (middle + 0.35, top)], colour.filled())
            };
            chart.draw_series(series.points.iter().map(bar))?;
        } else {
            let medians = series.points.iter().map(|(x, range)| at(*x, range.median));
            chart.draw_series(LineSeries::new(medians.clone(), colour.stroke_width(2)))?;
            chart.draw_series(medians.map(|point| Circle::new(point, 2, colour.filled())))?;
        }
        let style = if bars { BLACK.mix(0.7) } else { colour.mix(0.7) };
        let spans = series.points.iter().map(|(x, range)| [at(*x, range.min), at(*x, range.max)]);
        chart.draw_series(spans.map(|span| PathElement::new(span, style)))?;
    }
    Ok(())
}

/// 1, 16, 1K, 1M: of powers of two.
fn binary(value: f64) -> String {
    match value.round() as u64 {
        0..1024 => format!("{value:.0}"),
        1024..1_048_576 => format!("{:.0}K", value / 1024.0),
        _ => format!("{:.0}M", value / 1_048_576.0),
    }
}

/// 0.2, 16, 1k, 2.5M: of any number.
fn decimal(value: f64) -> String {
    let short =
        |value: f64| if value < 10.0 { tidy((value * 100.0).round() / 100.0) } else { tidy(value.round()) };
    match value {
        1_000_000.0.. => format!("{}M", short(value / 1e6)),
        1000.0.. => format!("{}k", short(value / 1e3)),
        _ => short(value),
    }
}

fn tidy(value: f64) -> String {
    value.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_short() {
        assert_eq!([1.0, 4096.0, 1_048_576.0].map(binary), ["1", "4K", "1M"]);
        assert_eq!([0.25, 12.0, 1000.0, 2_500_000.0].map(decimal), ["0.25", "12", "1k", "2.5M"]);
    }

    #[test]
    fn a_picture_has_its_title_its_legend_and_each_panel_s_axes() {
        let range = |median: f64| Range { min: median / 2.0, median, max: median * 2.0 };
        let lines =
            |name: &str| Series { name: name.into(), points: vec![(1.0, range(3.0)), (1000.0, range(90.0))] };
        let bar = |name: &str| Series { name: name.into(), points: vec![(1.0, range(5.0))] };
        let names = || vec!["one <".to_owned(), "other".to_owned()];
        let panel = |title: &str, x, tenfold, series| Panel {
            title: title.into(),
            x,
            y: "ms".into(),
            tenfold,
            series,
        };
        let picture = Picture {
            title: "What it takes",
            legend: names(),
            panels: vec![
                panel("lines", Axis::Tenfold("services"), true, vec![lines("one <"), lines("other")]),
                panel("bars", Axis::Bars("contender"), false, vec![bar("one <"), bar("other")]),
            ],
        };
        let svg = draw(&picture).unwrap();
        let document = roxmltree::Document::parse(&svg).unwrap();
        let texts: Vec<&str> = document
            .descendants()
            .filter(|node| node.is_text())
            .filter_map(|node| node.text())
            .map(str::trim)
            .collect();
        for text in ["What it takes", "one <", "other", "lines", "bars", "services", "contender", "ms", "1k"]
        {
            assert!(texts.contains(&text), "{text} in {texts:?}");
        }
        let filled = |colour: &str| {
            document.descendants().filter(|node| node.attribute("fill") == Some(colour)).count()
        };
        // Two points and a bar of each.
        assert_eq!((filled("#005AB5"), filled("#DC6E00")), (3, 3));
    }
}
