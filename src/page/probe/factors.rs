//! The factors of a probe: what its numbers are at each level.

use super::names;
use super::verdict;
use super::view::{Condition, Outcome, View};
use crate::page::model::{Answer, Block, Figure, Kind, Look, Section, Series, Tone};
use crate::page::words::{list, number};
use crate::probe::statistics::MeanSd;

/// A factor and its levels with their results; the other factors stand where the first condition has them.
struct Factor<'a> {
    name: &'a str,
    levels: Vec<(&'a str, &'a Outcome)>,
}

/// Every factor with more than one level.
fn factors(view: &View) -> Vec<Factor<'_>> {
    let names = view.conditions.first().into_iter().flat_map(|first| &first.levels);
    names.map(|(name, _)| factor(view, name)).filter(|factor| factor.levels.len() > 1).collect()
}

fn factor<'a>(view: &'a View, name: &'a str) -> Factor<'a> {
    fn others<'a>(condition: &'a Condition, name: &str) -> Vec<&'a (String, String)> {
        condition.levels.iter().filter(|(other, _)| other != name).collect()
    }
    let level = |condition: &'a Condition| {
        let (_, level) = condition.levels.iter().find(|(other, _)| other == name)?;
        let same = others(condition, name) == others(&view.conditions[0], name);
        same.then_some((level.as_str(), &condition.result))
    };
    let mut levels: Vec<(&str, &Outcome)> = view.conditions.iter().filter_map(level).collect();
    let numbers: Option<Vec<f64>> = levels.iter().map(|(level, _)| level.parse().ok()).collect();
    if numbers.is_some() {
        let number = |level: &str| level.parse::<f64>().unwrap_or_default();
        levels.sort_by(|a, b| number(a.0).total_cmp(&number(b.0)));
    }
    Factor { name, levels }
}

impl Factor<'_> {
    /// The title of the factor.
    fn title(&self) -> String {
        match self.name {
            "demos" => "Number of demonstrations".to_owned(),
            "labels" => "Labels of the demonstrations".to_owned(),
            "source" => "Task of the demonstrations".to_owned(),
            "similarity" => "Similarity of the demonstrations to the queries".to_owned(),
            "steps" => "Steps of the tuning".to_owned(),
            "r" => "LoRA rank".to_owned(),
            other => names::sentence(&other.replace('-', " ")),
        }
    }

    /// The same in a word or two.
    fn short(&self) -> String {
        if self.name == "r" { self.title() } else { names::sentence(&self.name.replace('-', " ")) }
    }

    /// The level with the least and that with the greatest of a value, if they differ clearly.
    fn range(&self, value: &dyn Fn(&Outcome) -> Option<MeanSd>) -> Option<[(&str, f64); 2]> {
        let levels = self.levels.iter().filter_map(|(level, result)| Some((*level, value(result)?)));
        let levels: Vec<(&str, MeanSd, f64)> = levels.filter_map(|(l, v)| Some((l, v, v.mean?))).collect();
        let low = levels.iter().min_by(|a, b| a.2.total_cmp(&b.2))?;
        let high = levels.iter().max_by(|a, b| a.2.total_cmp(&b.2))?;
        verdict::differ(low.1, high.1).then_some([(low.0, low.2), (high.0, high.2)])
    }
}

fn update(result: &Outcome) -> Option<MeanSd> {
    result.layers.last()?.value(["icl", "it"], "update")
}

fn accuracy(result: &Outcome, arm: &str) -> Option<MeanSd> {
    result.arm(arm).map(|scores| scores.accuracy).filter(|accuracy| accuracy.mean.is_some())
}

/// On what the result depends.
pub fn answer(view: &View) -> Answer {
    let question = "On what does it depend?".to_owned();
    let factors = factors(view);
    if factors.is_empty() {
        let text = "No factor was varied (labels, number, task and similarity of the demonstrations, steps of the tuning, model).";
        return Answer { question, word: "Not varied".to_owned(), tone: Tone::Open, text: text.to_owned() };
    }
    let mut matter = Vec::new();
    let mut sentences = Vec::new();
    for factor in &factors {
        let show = |name: &str, [low, high]: [(&str, f64); 2]| {
            format!("{name} {} ({}) to {} ({})", number(low.1, 2), low.0, number(high.1, 2), high.0)
        };
        let ranges = [
            ("update cosine", factor.range(&update)),
            ("ICL accuracy", factor.range(&|result| accuracy(result, "icl"))),
            ("IT accuracy", factor.range(&|result| accuracy(result, "it"))),
        ];
        let ranges: Vec<String> = ranges.into_iter().filter_map(|(name, range)| Some(show(name, range?))).collect();
        if ranges.is_empty() {
            sentences.push(format!("{}: no clear change.", factor.short()));
        } else {
            matter.push(factor.name.to_owned());
            sentences.push(format!("{}: {}.", factor.short(), list(&ranges)));
        }
    }
    let (word, tone) = match matter.is_empty() {
        true => ("On none of the factors".to_owned(), Tone::No),
        false => (names::sentence(&list(&matter)), Tone::Yes),
    };
    Answer { question, word, tone, text: sentences.join(" ") }
}

/// A section for every factor: accuracy and cosines over its levels, and the updates by layer at each.
pub fn sections(view: &View) -> Vec<Section> {
    let section = |factor: Factor| {
        let figures = [scores(&factor), cosines(&factor), layers(&factor)];
        Section {
            id: format!("factor-{}", factor.name),
            title: factor.title(),
            text: Vec::new(),
            blocks: figures.into_iter().filter_map(Figure::filled).map(Block::Figure).collect(),
        }
    };
    factors(view).into_iter().map(section).filter(|section| !section.blocks.is_empty()).collect()
}

impl Factor<'_> {
    fn over(&self, value: &dyn Fn(&Outcome) -> Option<MeanSd>) -> Vec<Option<MeanSd>> {
        self.levels.iter().map(|(_, result)| value(result)).collect()
    }

    /// A figure over the levels.
    fn figure(&self, what: &str, title: &str, y_label: &str, series: Vec<Series>) -> Figure {
        Figure {
            id: format!("{}-{what}", self.name),
            title: title.to_owned(),
            note: String::new(),
            x_label: self.name.to_owned(),
            y_label: y_label.to_owned(),
            ticks: self.levels.iter().map(|(level, _)| (*level).to_owned()).collect(),
            y_range: Some([0.0, 1.0]),
            kind: Kind::Lines,
            series,
        }
    }
}

fn scores(factor: &Factor) -> Figure {
    let arms = factor.levels[0].1.arms.iter().enumerate().map(|(i, scores)| {
        let values = factor.over(&|result| accuracy(result, &scores.arm));
        Series::placed(names::arm(&scores.arm), names::arm_look(&scores.arm, i), values)
    });
    factor.figure("accuracy", "Accuracy", "accuracy", arms.collect())
}

fn cosines(factor: &Factor) -> Figure {
    let baseline = |name: &str| {
        let of = |result: &Outcome| result.layers.last()?.measure(["icl", "it"], "update")?.baseline(name);
        let (title, look) = names::baseline(name);
        Series::placed(title, look, factor.over(&of))
    };
    let pair = |arm: &str, look| {
        let of = |result: &Outcome| result.layers.last()?.value(["anchor", arm], "cosine");
        Series::placed(format!("states: anchor–{}", names::arm(arm)), look, factor.over(&of))
    };
    let series = vec![
        Series::placed("updates: ICL–IT", Look::BOTH, factor.over(&update)),
        baseline("shuffled"),
        baseline("gaussian"),
        pair("icl", Look::ICL),
        pair("it", Look::IT),
    ];
    factor.figure("cosine", "Cosines at the last layer", "cosine", series)
}

/// The update cosine of ICL and IT by layer, a line for each level.
fn layers(factor: &Factor) -> Figure {
    let series = factor.levels.iter().enumerate().map(|(i, (level, result))| {
        let values = result.layers.iter().map(|layer| layer.value(["icl", "it"], "update"));
        Series::placed(*level, Look::nth(i), values)
    });
    let ticks = factor.levels.first().map_or_else(Vec::new, |(_, result)| names::layers(&result.layers));
    Figure {
        ticks,
        x_label: "layer".to_owned(),
        ..factor.figure("layers", "Cosine of the updates, by layer", "cosine of updates", series.collect())
    }
}
