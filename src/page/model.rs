//! What a page says and shows, whatever it is about: words, figures and tables.

use crate::probe::statistics::MeanSd;

/// All that one HTML file holds, before it is markup.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// What was done, in a few words.
    pub title: String,
    /// What was asked, a paragraph each.
    pub asked: Vec<String>,
    /// What came out, in one sentence.
    pub verdict: String,
    /// The questions behind the verdict, each with its answer in numbers.
    pub answers: Vec<Answer>,
    /// What means and SDs of figures are over.
    pub over: String,
    /// What belongs to the verdict on the first screen.
    pub summary: Vec<Block>,
    /// What comes below the first screen, in this order.
    pub sections: Vec<Section>,
    /// The command that repeats it.
    pub command: String,
}

/// A question with its answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The question, as a full sentence.
    pub question: String,
    /// The answer in a word or three.
    pub word: String,
    /// How the answer turned out.
    pub tone: Tone,
    /// The numbers that it rests on, in words.
    pub text: String,
}

/// How an answer turned out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// The numbers say yes to the question.
    Yes,
    /// They say yes to a part of it.
    Partly,
    /// They say no.
    No,
    /// Not to be told from these numbers.
    Open,
}

/// A part of a page under a heading.
#[derive(Clone, Debug, PartialEq)]
pub struct Section {
    /// Its anchor: ASCII letters, digits and dashes.
    pub id: String,
    /// The words of its heading.
    pub title: String,
    /// Paragraphs before the blocks.
    pub text: Vec<String>,
    /// Figures and tables below the text, in this order.
    pub blocks: Vec<Block>,
}

/// What is no running text.
#[derive(Clone, Debug, PartialEq)]
pub enum Block {
    /// A plot.
    Figure(Figure),
    /// A table.
    Table(Table),
}

/// A plot.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// Its anchor, unique on its page: ASCII letters, digits and dashes.
    pub id: String,
    /// What it shows, in a few words.
    pub title: String,
    /// How to read it; may be empty.
    pub note: String,
    /// Quantity and unit of the x axis.
    pub x_label: String,
    /// Quantity and unit of the y axis.
    pub y_label: String,
    /// Names of the places 0, 1, … on the x axis; empty where x is a number.
    pub ticks: Vec<String>,
    /// A range that the y axis shows at least.
    pub y_range: Option<[f64; 2]>,
    /// How the series are drawn.
    pub kind: Kind,
    /// The series, in the order of the legend.
    pub series: Vec<Series>,
}

/// How series are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A line with a band of one SD to each side.
    Lines,
    /// Bars from zero, with a line of one SD to each side.
    Bars,
    /// A marker at each point, joined by nothing.
    Scatter,
}

/// Values that belong together.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Colour, dash and marker.
    pub look: Look,
    /// Its values, by x.
    pub points: Vec<Point>,
}

/// A colour with a dash and a marker of its own, so that no series is told by colour alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look(pub u8);

impl Look {
    /// How many there are; the last two are for baselines.
    pub const COUNT: u8 = 9;
    /// The query alone.
    pub const ANCHOR: Self = Self(0);
    /// Demonstrations before the query, and what compares them with the anchor.
    pub const ICL: Self = Self(1);
    /// Tuning on the demonstrations, and what compares it with the anchor.
    pub const IT: Self = Self(2);
    /// Both of them beside each other.
    pub const BOTH: Self = Self(3);
    /// The baseline of shuffled queries.
    pub const SHUFFLED: Self = Self(7);
    /// The baseline of Gaussian noise.
    pub const NOISE: Self = Self(8);

    /// The `i`th of the looks that are no baseline's, from the start again after the last.
    pub fn nth(i: usize) -> Self {
        Self((i % usize::from(Self::SHUFFLED.0)) as u8)
    }
}

/// A value of a series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Where it stands; with ticks the number of its place.
    pub x: f64,
    /// The value and its spread, or the y of a scatter.
    pub y: MeanSd,
}

/// A table whose first column is text.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// What it shows; may be empty.
    pub caption: String,
    /// Names of the columns.
    pub header: Vec<String>,
    /// The cells, a row each.
    pub rows: Vec<Vec<String>>,
    /// Whether the other columns are text too, and not numbers.
    pub text: bool,
}

impl Series {
    /// Of values at the places 0, 1, …; those that are missing leave a gap.
    pub fn placed(name: impl Into<String>, look: Look, values: impl IntoIterator<Item = Option<MeanSd>>) -> Self {
        let point = |(i, y): (usize, Option<MeanSd>)| Some(Point { x: i as f64, y: y.filter(|y| y.mean.is_some())? });
        Self { name: name.into(), look, points: values.into_iter().enumerate().filter_map(point).collect() }
    }
}

impl Figure {
    /// The same without the series that have no values; none if no series has.
    pub fn filled(mut self) -> Option<Self> {
        self.series.retain(|series| series.points.iter().any(|point| point.y.mean.is_some()));
        (!self.series.is_empty()).then_some(self)
    }

    /// The name of a place on the x axis.
    pub fn x(&self, point: &Point) -> String {
        // A place is a small whole number.
        let tick = self.ticks.get(point.x as usize).filter(|_| point.x >= 0.0);
        tick.cloned().unwrap_or_else(|| point.x.to_string())
    }

    /// The figure in words, for who does not see it.
    pub fn alt(&self) -> String {
        let kind = match self.kind {
            Kind::Lines => "Line plot",
            Kind::Bars => "Bar chart",
            Kind::Scatter => "Scatter plot",
        };
        let mut text = format!("{kind} of {} against {}.", self.y_label, self.x_label);
        for series in &self.series {
            let values = || series.points.iter().filter_map(|p| Some((p, p.y.mean?)));
            let (Some(first), Some(last)) = (values().next(), values().next_back()) else { continue };
            let low = values().map(|(_, y)| y).fold(f64::INFINITY, f64::min);
            let high = values().map(|(_, y)| y).fold(f64::NEG_INFINITY, f64::max);
            text += &match self.kind {
                Kind::Scatter => format!(" {}: {} points.", series.name, series.points.len()),
                _ if values().count() == 1 => format!(" {}: {:.3}.", series.name, first.1),
                _ => format!(
                    " {}: {:.3} at {}, {:.3} at {}, between {low:.3} and {high:.3}.",
                    series.name,
                    first.1,
                    self.x(first.0),
                    last.1,
                    self.x(last.0)
                ),
            };
        }
        text
    }
}

impl Page {
    /// Every figure, in the order of the page.
    pub fn figures(&self) -> impl Iterator<Item = &Figure> {
        let blocks = self.summary.iter().chain(self.sections.iter().flat_map(|section| &section.blocks));
        blocks.filter_map(|block| match block {
            Block::Figure(figure) => Some(figure),
            Block::Table(_) => None,
        })
    }
}
