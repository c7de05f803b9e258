//! Figures as SVG, drawn by plotters.
//!
//! The crate writes colours and fonts into every element. Here each colour stands for a role, and what is written of it becomes
//! a class, so that the page's style sheet decides how series look on light and dark ground and on paper. Sizes are quarters of
//! CSS pixels, because the crate draws at whole numbers.

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::model::{Figure, Kind, Look, Point, Series};
use super::words::{escape, number, printable};
use crate::{Error, Result};

/// Units of a CSS pixel.
const UNIT: i32 = 4;
/// CSS pixels of a figure at its natural size.
const SIZE: (i32, i32) = (440, 280);
/// CSS pixels of a line with its marker in a legend.
const KEY: (i32, i32) = (34, 14);
/// CSS pixels of the text.
const TEXT: i32 = 13;
/// Characters of the name of a bar.
const LONGEST_NAME: usize = 18;
/// The mean width of a character, as a share of the text's size.
const CHARACTER: f64 = 0.56;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Drawn = std::result::Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// What a colour stands for: the class of an element.
#[derive(Clone, Copy)]
enum Role {
    /// The line of a series.
    Line,
    /// What is filled of a marker.
    Mark,
    /// What is drawn of a marker.
    Outline,
    /// The band of a series.
    Band,
    /// A bar.
    Bar,
    /// Text, axes and grid, which are of no series.
    Text,
    Axis,
    Grid,
}

impl Role {
    const ALL: [Self; 8] =
        [Self::Line, Self::Mark, Self::Outline, Self::Band, Self::Bar, Self::Text, Self::Axis, Self::Grid];

    fn class(self) -> &'static str {
        match self {
            Self::Line => "l",
            Self::Mark => "m",
            Self::Outline => "o",
            Self::Band => "b",
            Self::Bar => "r",
            Self::Text => "t",
            Self::Axis => "a",
            Self::Grid => "g",
        }
    }

    fn color(self, look: Look) -> RGBColor {
        RGBColor(0xA0 + self as u8, look.0, 0xEE)
    }

    /// A style of so many CSS pixels.
    fn ink(self, look: Look, width: f64) -> ShapeStyle {
        let style: ShapeStyle = self.color(look).into();
        style.stroke_width((width * f64::from(UNIT)) as u32)
    }
}

/// A figure as an `svg` element.
///
/// # Errors
/// The crate cannot draw it.
pub fn draw(figure: &Figure) -> Result<String> {
    let mut text = String::new();
    let failed = |e| Error::argument(format!("figure {}", figure.id), "a figure that can be drawn", e);
    let root = SVGBackend::with_string(&mut text, size(SIZE)).into_drawing_area();
    plot(figure, &root).and_then(|()| root.present()).map_err(failed)?;
    drop(root);
    let head = format!(
        "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-labelledby=\"{id}-title {id}-text\">\n\
         <title id=\"{id}-title\">{}</title>\n<desc id=\"{id}-text\">{}</desc>",
        SIZE.0 * UNIT,
        SIZE.1 * UNIT,
        escape(&figure.title),
        escape(&figure.alt()),
        id = escape(&figure.id),
    );
    Ok(classed(&text, &head))
}

/// The line and the marker of a look, for a legend.
///
/// # Errors
/// The crate cannot draw it.
pub fn key(look: Look, kind: Kind) -> Result<String> {
    let mut text = String::new();
    let root = SVGBackend::with_string(&mut text, size(KEY)).into_drawing_area();
    let (width, middle) = (KEY.0 * UNIT, KEY.1 * UNIT / 2);
    let drawn = match kind {
        Kind::Lines => root.draw(&PathElement::new([(0, middle), (width, middle)], Role::Line.ink(look, 2.0))),
        Kind::Bars => root.draw(&Rectangle::new([(0, 0), (width, 2 * middle)], Role::Bar.ink(look, 1.0).filled())),
        Kind::Scatter => Ok(()),
    };
    let drawn = drawn.and_then(|()| marker(&root, look, (width / 2, middle))).and_then(|()| root.present());
    drawn.map_err(|e| Error::argument("legend", "a look that can be drawn", e))?;
    drop(root);
    let head = format!("<svg class=\"key\" viewBox=\"0 0 {} {}\" aria-hidden=\"true\">", width, KEY.1 * UNIT);
    Ok(classed(&text, &head))
}

fn size(pixels: (i32, i32)) -> (u32, u32) {
    ((pixels.0 * UNIT) as u32, (pixels.1 * UNIT) as u32)
}

/// The crate's text with another head, and with classes in place of colours and fonts.
fn classed(text: &str, head: &str) -> String {
    let body = text.split_once('\n').map_or("", |(_, body)| body);
    let mut body = body.replace(" opacity=\"1\"", "").replace(" font-family=\"sans-serif\"", "");
    for role in Role::ALL {
        for look in 0..Look::COUNT {
            let RGBColor(r, g, b) = role.color(Look(look));
            let class = format!("class=\"{0} {0}{look}\"", role.class());
            for attribute in ["fill", "stroke"] {
                body = body.replace(&format!("{attribute}=\"#{r:02X}{g:02X}{b:02X}\""), &class);
            }
        }
    }
    format!("{head}\n{body}")
}

fn plot(figure: &Figure, root: &Area) -> Drawn {
    if figure.kind == Kind::Bars {
        return bars(figure, root);
    }
    let (x, y) = (x_range(figure), y_range(figure));
    let left = label_width(y.iter().map(|&v| number(v, digits(&y))));
    let mut chart: Chart = ChartBuilder::on(root)
        .margin_top(28 * UNIT)
        .margin_right(14 * UNIT)
        .x_label_area_size(44 * UNIT)
        .y_label_area_size(left)
        .build_cartesian_2d(x[0]..x[1], y[0]..y[1])?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .max_light_lines(0)
        .bold_line_style(Role::Grid.ink(Look(0), 1.0))
        .axis_style(Role::Axis.ink(Look(0), 1.0))
        .label_style(text(HPos::Center, VPos::Center))
        .x_labels(if figure.ticks.is_empty() { 6 } else { 0 })
        .y_labels(6)
        .x_label_formatter(&|v| number(*v, digits(&x)))
        .y_label_formatter(&|v| number(*v, digits(&y)))
        .draw()?;
    let at = |x: f64, y: f64| chart.backend_coord(&(x, y));
    let (low, high) = (at(x[0], y[0]), at(x[1], y[1]));
    if y[0] < 0.0 && y[1] > 0.0 {
        let zero = at(x[0], 0.0).1;
        root.draw(&PathElement::new([(low.0, zero), (high.0, zero)], Role::Axis.ink(Look(0), 1.0)))?;
    }
    for (i, name) in ticks(figure, high.0 - low.0) {
        let place = (at(i as f64, y[0]).0, low.1 + 7 * UNIT);
        label(root, &name, place, (HPos::Center, VPos::Top))?;
    }
    x_name(&figure.x_label, root, (low.0 + high.0) / 2)?;
    label(root, &figure.y_label, (2 * UNIT, 4 * UNIT), (HPos::Left, VPos::Top))?;
    if figure.kind == Kind::Lines { lines(figure, root, &at) } else { scatter(figure, root, &at) }
}

/// The name of the axis below a chart.
fn x_name(name: &str, root: &Area, middle: i32) -> Drawn {
    label(root, name, (middle, (SIZE.1 - 2) * UNIT), (HPos::Center, VPos::Bottom))
}

/// Text at a place; the crate escapes it.
fn label(root: &Area, name: &str, place: (i32, i32), (h, v): (HPos, VPos)) -> Drawn {
    root.draw(&Text::new(printable(name), place, text(h, v)))
}

fn text(h: HPos, v: VPos) -> TextStyle<'static> {
    // The crate divides a font's size by its guess of a line's height.
    let font = ("sans-serif", f64::from(TEXT * UNIT) * 1.24).into_font();
    TextStyle { color: Role::Text.color(Look(0)).to_backend_color(), ..TextStyle::from(font) }.pos(Pos::new(h, v))
}

/// Decimals of the labels of an axis.
fn digits(range: &[f64; 2]) -> usize {
    let step = (range[1] - range[0]) / 6.0;
    (-step.log10().floor()).clamp(0.0, 6.0) as usize
}

/// Room for labels of the y axis.
fn label_width(labels: impl Iterator<Item = String>) -> i32 {
    let longest = labels.map(|label| label.chars().count()).max().unwrap_or(0);
    (longest as f64 * f64::from(TEXT * UNIT) * CHARACTER) as i32 + 14 * UNIT
}

fn x_range(figure: &Figure) -> [f64; 2] {
    if !figure.ticks.is_empty() {
        return [-0.35, figure.ticks.len() as f64 - 0.65];
    }
    let values = figure.series.iter().flat_map(|series| &series.points).map(|point| point.x);
    padded(values, None, 0.04)
}

fn y_range(figure: &Figure) -> [f64; 2] {
    let points = figure.series.iter().flat_map(|series| &series.points);
    let ends = points.filter_map(|point| {
        let (mean, sd) = (point.y.mean?, point.y.sd.unwrap_or(0.0));
        Some([mean - sd, mean + sd])
    });
    let zero = (figure.kind == Kind::Bars).then_some([0.0, 0.0]);
    padded(ends.chain(zero).flatten(), figure.y_range, 0.06)
}

/// The range of values, a share wider to each side; what must be in it is not widened.
fn padded(values: impl Iterator<Item = f64>, at_least: Option<[f64; 2]>, share: f64) -> [f64; 2] {
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    values.filter(|v| v.is_finite()).for_each(|v| (low, high) = (low.min(v), high.max(v)));
    if low > high {
        (low, high) = (0.0, 1.0);
    }
    let margin = if high > low { share * (high - low) } else { (0.1 * high.abs()).max(0.01) };
    let [least, most] = at_least.unwrap_or([low, high]);
    let keep = at_least.is_some();
    let low = if keep && low >= least { least } else { low.min(least) - margin };
    let high = if keep && high <= most { most } else { high.max(most) + margin };
    [low, high]
}

/// The places whose names there is room for: the last always, others at equal distance.
fn ticks(figure: &Figure, width: i32) -> Vec<(usize, String)> {
    let count = figure.ticks.len();
    if count == 0 {
        return Vec::new();
    }
    let character = f64::from(TEXT * UNIT) * CHARACTER;
    let longest = figure.ticks.iter().map(|name| name.chars().count()).max().unwrap_or(0) as f64 * character;
    let place = f64::from(width) / count as f64;
    let numbers = figure.ticks.iter().filter(|name| name.parse::<f64>().is_ok()).count();
    // Numbers can be left out between others; other names are shortened.
    let step = if 2 * numbers > count { ((longest + character) / place).ceil().max(1.0) as usize } else { 1 };
    let room = ((place * step as f64 / character) as usize).saturating_sub(1).max(1);
    let short = |name: &String| match name.chars().count() > room {
        true => name.chars().take(room.saturating_sub(1)).chain(['…']).collect(),
        false => name.clone(),
    };
    let shown = |i: &usize| *i + 1 == count || i.is_multiple_of(step) && *i + step < count;
    (0..count).filter(shown).map(|i| (i, short(&figure.ticks[i]))).collect()
}

/// Runs of places next to each other that have values.
fn runs<'a>(figure: &Figure, series: &'a Series) -> Vec<Vec<&'a Point>> {
    let mut runs: Vec<Vec<&Point>> = Vec::new();
    for point in series.points.iter().filter(|point| point.y.mean.is_some()) {
        match runs.last_mut() {
            Some(run) if figure.ticks.is_empty() || run.last().is_some_and(|last| point.x - last.x <= 1.0) => {
                run.push(point);
            }
            _ => runs.push(vec![point]),
        }
    }
    runs
}

type Place<'a> = dyn Fn(f64, f64) -> (i32, i32) + 'a;

fn lines(figure: &Figure, root: &Area, at: &Place) -> Drawn {
    for series in &figure.series {
        for run in runs(figure, series) {
            let edge = |side: f64| {
                let spread = |p: &&&Point| p.y.sd.is_some();
                let place = move |p: &&Point| at(p.x, p.y.mean.unwrap_or_default() + side * p.y.sd.unwrap_or_default());
                run.iter().filter(spread).map(place).collect::<Vec<_>>()
            };
            let (upper, lower) = (edge(1.0), edge(-1.0));
            if upper.len() > 1 {
                let outline: Vec<_> = upper.into_iter().chain(lower.into_iter().rev()).collect();
                root.draw(&Polygon::new(outline, Role::Band.ink(series.look, 1.0).filled()))?;
            }
        }
    }
    for series in &figure.series {
        let means: Vec<Vec<(i32, i32)>> = runs(figure, series)
            .iter()
            .map(|run| run.iter().map(|p| at(p.x, p.y.mean.unwrap_or_default())).collect())
            .collect();
        for run in &means {
            root.draw(&PathElement::new(run.clone(), Role::Line.ink(series.look, 2.0)))?;
        }
        // So many points that their markers would touch are a curve.
        if series.points.len() <= 64 {
            means.iter().flatten().try_for_each(|&place| marker(root, series.look, place))?;
        }
    }
    Ok(())
}

/// Bars from left to right, with their names before them: names are longer than the bars are thick.
fn bars(figure: &Figure, root: &Area) -> Drawn {
    let (values, places) = (y_range(figure), figure.ticks.len() as f64);
    let name = |name: &String| match name.chars().count() {
        0..=LONGEST_NAME => name.clone(),
        _ => name.chars().take(LONGEST_NAME - 1).chain(['…']).collect(),
    };
    let mut chart: Chart = ChartBuilder::on(root)
        .margin_top(4 * UNIT)
        .margin_right(20 * UNIT)
        .x_label_area_size(44 * UNIT)
        .y_label_area_size(label_width(figure.ticks.iter().map(name)))
        .build_cartesian_2d(values[0]..values[1], -0.5..places - 0.5)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .max_light_lines(0)
        .bold_line_style(Role::Grid.ink(Look(0), 1.0))
        .axis_style(Role::Axis.ink(Look(0), 1.0))
        .label_style(text(HPos::Center, VPos::Center))
        .x_labels(6)
        .y_labels(0)
        .x_label_formatter(&|v| number(*v, digits(&values)))
        .draw()?;
    // The first place is the uppermost.
    let at = |value: f64, place: f64| chart.backend_coord(&(value, places - 1.0 - place));
    let (low, high) = (at(values[0], places - 0.5), at(values[1], -0.5));
    let zero = at(0.0, 0.0).0;
    root.draw(&PathElement::new([(zero, low.1), (zero, high.1)], Role::Axis.ink(Look(0), 1.0)))?;
    x_name(&figure.y_label, root, (low.0 + high.0) / 2)?;
    for (i, tick) in figure.ticks.iter().enumerate() {
        let place = i as f64;
        label(root, &name(tick), (low.0 - 7 * UNIT, at(0.0, place).1), (HPos::Right, VPos::Center))?;
        let here = |series: &Series| series.points.iter().copied().find(|p| p.x == place && p.y.mean.is_some());
        let present: Vec<(Look, Point)> = figure.series.iter().filter_map(|s| Some((s.look, here(s)?))).collect();
        let thick = 0.7 / present.len().max(1) as f64;
        for (j, (look, point)) in present.iter().enumerate() {
            let (mean, sd) = (point.y.mean.unwrap_or_default(), point.y.sd.unwrap_or_default());
            let middle = place - 0.35 + (j as f64 + 0.5) * thick;
            let corners = [at(0.0, middle - 0.45 * thick), at(mean, middle + 0.45 * thick)];
            root.draw(&Rectangle::new(corners, Role::Bar.ink(*look, 1.0).filled()))?;
            let spread = [at(mean - sd, middle), at(mean + sd, middle)];
            root.draw(&PathElement::new(spread, Role::Axis.ink(*look, 1.5)))?;
            marker(root, *look, at(mean, middle))?;
        }
    }
    Ok(())
}

fn scatter(figure: &Figure, root: &Area, at: &Place) -> Drawn {
    let points = figure.series.iter().flat_map(|s| s.points.iter().map(|p| (s.look, p)));
    let mut drawn = points.filter_map(|(look, p)| Some((look, at(p.x, p.y.mean?))));
    drawn.try_for_each(|(look, place)| marker(root, look, place))
}

/// The marker of a look around a place.
fn marker(root: &Area, look: Look, (x, y): (i32, i32)) -> Drawn {
    let r = 4 * UNIT;
    let shape = |corners: &[(i32, i32)]| corners.iter().map(|(dx, dy)| (x + dx, y + dy)).collect::<Vec<_>>();
    let closed = |corners: &[(i32, i32)]| shape(&[corners, &corners[..1]].concat());
    let (filled, drawn) = (Role::Mark.ink(look, 1.0).filled(), Role::Outline.ink(look, 1.75));
    let (square, half) = ([(-r, -r), (r, -r), (r, r), (-r, r)], 7 * r / 8);
    let triangle = [(0, -r), (r, half), (-r, half)];
    match look.0 {
        0 => root.draw(&Circle::new((x, y), r, drawn)),
        1 => root.draw(&Circle::new((x, y), r, filled)),
        2 => root.draw(&Polygon::new(shape(&square.map(|(a, b)| (half * a / r, half * b / r))), filled)),
        3 => root.draw(&Polygon::new(shape(&[(0, -r - UNIT), (r + UNIT, 0), (0, r + UNIT), (-r - UNIT, 0)]), filled)),
        4 => root.draw(&Polygon::new(shape(&triangle), filled)),
        5 => root.draw(&PathElement::new(closed(&square.map(|(a, b)| (half * a / r, half * b / r))), drawn)),
        6 => root.draw(&PathElement::new(closed(&triangle.map(|(a, b)| (a, -b))), drawn)),
        7 => {
            root.draw(&PathElement::new(shape(&[(-half, -half), (half, half)]), drawn))?;
            root.draw(&PathElement::new(shape(&[(-half, half), (half, -half)]), drawn))
        }
        _ => {
            root.draw(&PathElement::new(shape(&[(-r, 0), (r, 0)]), drawn))?;
            root.draw(&PathElement::new(shape(&[(0, -r), (0, r)]), drawn))
        }
    }
}
