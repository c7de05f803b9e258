//! The page of a comparison: which arm writes best, what demonstrations do for soft prompts, and what their likeness does.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::model::{Answer, Block, Figure, Kind, Look, Page, Point, Section, Series, Table, Tone};
use super::words::{count, list, mean_sd, number, visible};
use crate::probe::statistics::MeanSd;
use crate::task::metrics::Interval;
use crate::{Error, Result};

/// The least difference of scores, from 0 to 100, that counts where there is no interval.
const POINT: f64 = 1.0;

/// What the page needs of a comparison's `report.json`, see [`crate::compare::report`].
#[derive(Deserialize)]
struct Report {
    plan: Value,
    metrics: Vec<Judge>,
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Judge {
    task: String,
    metric: String,
    signature: String,
    #[serde(default)]
    examples: Vec<ExampleQuery>,
}

#[derive(Deserialize)]
struct ExampleQuery {
    input: String,
    gold: String,
}

#[derive(Deserialize)]
struct Row {
    arm: String,
    source: Option<String>,
    target: String,
    length: Option<usize>,
    score: MeanSd,
    interval: Option<Interval>,
    seeds: Vec<Value>,
    bins: Vec<Bin>,
    #[serde(default)]
    outputs: Vec<String>,
}

#[derive(Deserialize)]
struct Bin {
    low: f64,
    high: f64,
    queries: usize,
    score: MeanSd,
}

impl Judge {
    /// The metric, with its signature where that says more.
    fn words(&self) -> String {
        let more = if self.signature == self.metric { String::new() } else { format!(" ({})", self.signature) };
        format!("{}{more}", self.metric)
    }
}

impl Row {
    /// Whether it was trained on another task than it is judged on.
    fn is_transfer(&self) -> bool {
        self.source.as_ref().is_some_and(|source| *source != self.target)
    }

    fn name(&self) -> String {
        let source = self.source.as_ref().filter(|_| self.is_transfer());
        let source = source.map_or_else(String::new, |source| format!(" of {source}"));
        let length = self.length.map_or_else(String::new, |n| format!(" ({n})"));
        format!("{}{source}{length}", self.arm)
    }

    fn mean(&self) -> f64 {
        self.score.mean.unwrap_or(f64::NEG_INFINITY)
    }

    /// The score with its 95% interval.
    fn words(&self) -> String {
        let interval = self.interval.map(|i| format!(" [{}, {}]", number(i.low, 1), number(i.high, 1)));
        format!("{}{}", mean_sd(self.score, 1), interval.unwrap_or_default())
    }

    /// Whether its interval lies above that of another.
    fn is_above(&self, other: &Self) -> bool {
        self.interval.zip(other.interval).is_some_and(|(own, other)| own.low > other.high)
    }
}

impl Report {
    /// The rows of a target that were trained on it, or not at all.
    fn own<'a>(&'a self, target: &'a str) -> impl Iterator<Item = &'a Row> {
        self.rows.iter().filter(move |row| row.target == target && !row.is_transfer())
    }

    /// The best of the rows of an arm on a target.
    fn best<'a>(&'a self, target: &'a str, arm: &str) -> Option<&'a Row> {
        self.own(target).filter(|row| row.arm == arm).max_by(|a, b| a.mean().total_cmp(&b.mean()))
    }

    /// The arms, in the order of the report.
    fn arms(&self) -> Vec<&str> {
        let mut arms: Vec<&str> = Vec::new();
        for row in &self.rows {
            if !arms.contains(&row.arm.as_str()) {
                arms.push(&row.arm);
            }
        }
        arms
    }
}

/// The page of the content of a comparison's `report.json`, which stands at `path`; `command` repeats it.
///
/// # Errors
/// It is not a comparison's report.
pub fn page(report: &Value, path: &Path, command: &str) -> Result<Page> {
    let report = Report::deserialize(report).map_err(Error::file(path))?;
    let Some(judge) = report.metrics.first() else {
        return Err(Error::field(path, "metrics", "at least one target", "none"));
    };
    let get = |key: &str| report.plan[key].as_str().unwrap_or("–").to_owned();
    let targets: Vec<String> = report.metrics.iter().map(|judge| judge.task.clone()).collect();
    let sections = [scores(&report), bins(&report), transfer(&report), examples(&report), settings(&report)];
    Ok(Page {
        title: format!("Demonstrations and soft prompts in {} on {}", get("model"), list(&targets)),
        asked: vec![asked(&report, judge)],
        verdict: headline(&report, judge),
        answers: answers(&report, judge),
        over: "the seeds".to_owned(),
        summary: summary(&report),
        sections: sections.into_iter().flatten().collect(),
        command: command.to_owned(),
    })
}

fn asked(report: &Report, judge: &Judge) -> String {
    let settings = &report.plan["settings"];
    let queries: usize = report.own(&judge.task).next().map_or(0, |row| row.bins.iter().map(|bin| bin.queries).sum());
    let seeds = settings["seeds"].as_array().map_or(0, Vec::len);
    let arms: Vec<String> = report.arms().into_iter().map(str::to_owned).collect();
    format!(
        "What does {model} write for {queries} of {task} under {arms}? Judged by {signature}; {demonstrations} before a \
         query, {seeds} for whatever is random. pt: a learned soft prompt; ipt: a soft prompt before retrieved demonstrations; in brackets its virtual tokens.",
        model = report.plan["model"].as_str().unwrap_or("–"),
        queries = count(queries, "query", "queries"),
        task = judge.task,
        arms = list(&arms),
        signature = judge.words(),
        demonstrations =
            count(settings["demonstrations"].as_u64().unwrap_or(0) as usize, "demonstration", "demonstrations"),
        seeds = count(seeds, "seed", "seeds"),
    )
}

fn headline(report: &Report, judge: &Judge) -> String {
    let best = report.own(&judge.task).max_by(|a, b| a.mean().total_cmp(&b.mean()));
    let Some(best) = best.filter(|row| row.score.mean.is_some()) else {
        return format!("No arm has a score on {}", judge.task);
    };
    let equals = report.own(&judge.task).filter(|row| row.arm != best.arm && !best.is_above(row));
    let mut equals: Vec<String> = equals.map(|row| row.arm.clone()).collect();
    equals.dedup();
    let lowest = report.own(&judge.task).map(Row::mean).fold(f64::INFINITY, f64::min);
    if best.mean() == lowest {
        return format!(
            "On {}, no arm scores more than another ({} {})",
            judge.task,
            mean_sd(best.score, 1),
            judge.metric
        );
    }
    let rest = match equals.is_empty() {
        true => "clearly above all other arms".to_owned(),
        false => format!("not clearly above {}", list(&equals)),
    };
    format!("On {}, {} scores highest ({} {}), {rest}", judge.task, best.name(), mean_sd(best.score, 1), judge.metric)
}

fn answer(question: &str, word: &str, tone: Tone, text: String) -> Answer {
    Answer { question: question.to_owned(), word: word.to_owned(), tone, text }
}

fn answers(report: &Report, judge: &Judge) -> Vec<Answer> {
    let target = &judge.task;
    let demonstrations = ["icl-retrieved", "icl-random"].into_iter().find_map(|arm| report.best(target, arm));
    let mut answers = Vec::new();
    for (arm, name) in [("pt", "a soft prompt"), ("ipt", "a soft prompt with demonstrations")] {
        if let (Some(soft), Some(shown)) = (report.best(target, arm), demonstrations) {
            let (word, tone) = match (soft.is_above(shown), shown.is_above(soft)) {
                (true, _) => ("Yes", Tone::Yes),
                (_, true) => ("No", Tone::No),
                _ => ("Not told apart", Tone::Open),
            };
            let text = format!("{}: {}; {}: {}.", soft.name(), soft.words(), shown.name(), shown.words());
            answers.push(answer(&format!("Does {name} beat demonstrations alone?"), word, tone, text));
        }
    }
    answers.extend(beside(report, target));
    answers.extend(steadier(report, target));
    answers.extend(likeness(report, target));
    let study = "Sun et al. (arXiv:2302.11521) report: PT and IPT above ICL on all five tasks; no winner between PT and IPT; IPT \
                 steadier over seeds than PT, and in need of demonstrations that are like the query.";
    answers.push(answer("What did the study find?", "For comparison", Tone::Open, study.to_owned()));
    answers
}

/// Pairs of rows of PT and IPT with soft prompts of one length.
fn pairs<'a>(report: &'a Report, target: &'a str) -> Vec<(&'a Row, &'a Row)> {
    let ipt = |pt: &Row| report.own(target).find(|row| row.arm == "ipt" && row.length == pt.length);
    report.own(target).filter(|row| row.arm == "pt").filter_map(|pt| Some((pt, ipt(pt)?))).collect()
}

fn beside(report: &Report, target: &str) -> Option<Answer> {
    let pairs = pairs(report, target);
    let wins = pairs.iter().filter(|(pt, ipt)| ipt.is_above(pt)).count();
    let losses = pairs.iter().filter(|(pt, ipt)| pt.is_above(ipt)).count();
    let (word, tone) = match (wins, losses) {
        _ if pairs.is_empty() => return None,
        (0, 0) => ("Not told apart", Tone::Open),
        (_, 0) => ("Yes", Tone::Yes),
        (0, _) => ("No", Tone::No),
        _ => ("At some lengths", Tone::Partly),
    };
    let one = |(pt, ipt): &(&Row, &Row)| {
        format!("{} virtual tokens: ipt {}, pt {}", pt.length.unwrap_or(0), ipt.words(), pt.words())
    };
    let text = format!("{}.", pairs.iter().map(one).collect::<Vec<_>>().join("; "));
    Some(answer("Do demonstrations help a soft prompt?", word, tone, text))
}

fn steadier(report: &Report, target: &str) -> Option<Answer> {
    let spreads =
        pairs(report, target).into_iter().filter_map(|(pt, ipt)| Some((pt.length?, pt.score.sd?, ipt.score.sd?)));
    let spreads: Vec<(usize, f64, f64)> = spreads.collect();
    let less = spreads.iter().filter(|(_, pt, ipt)| ipt < pt).count();
    let more = spreads.iter().filter(|(_, pt, ipt)| ipt > pt).count();
    let (word, tone) = match (less, more) {
        _ if spreads.is_empty() => return None,
        (0, 0) => ("Not told apart", Tone::Open),
        (_, 0) => ("Yes", Tone::Yes),
        (0, _) => ("No", Tone::No),
        _ => ("At some lengths", Tone::Partly),
    };
    let one = |(length, pt, ipt): &(usize, f64, f64)| {
        format!("{length} virtual tokens: ipt {}, pt {}", number(*ipt, 2), number(*pt, 2))
    };
    let text = format!("SD over the seeds, {}.", spreads.iter().map(one).collect::<Vec<_>>().join("; "));
    Some(answer("Is it steadier with demonstrations?", word, tone, text))
}

fn likeness(report: &Report, target: &str) -> Option<Answer> {
    let ends = |arm: &str| {
        let row = report.best(target, arm)?;
        let (first, last) = (row.bins.first()?, row.bins.last()?);
        (row.bins.len() > 1).then_some((row, first.score, last.score, last.score.mean? - first.score.mean?))
    };
    let found: Vec<_> = ["icl-retrieved", "ipt"].into_iter().filter_map(ends).collect();
    let (word, tone) = match found.iter().filter(|(.., gain)| *gain > POINT).count() {
        _ if found.is_empty() => return None,
        n if n == found.len() => ("Higher where they are alike", Tone::Yes),
        0 => ("Not higher", Tone::No),
        _ => ("In some arms", Tone::Partly),
    };
    let one = |(row, first, last, _): &(&Row, MeanSd, MeanSd, f64)| {
        format!(
            "{}: {} on the queries least like their nearest demonstration, {} on those most",
            row.name(),
            mean_sd(*first, 1),
            mean_sd(*last, 1)
        )
    };
    let text = format!("{}.", found.iter().map(one).collect::<Vec<_>>().join("; "));
    Some(answer("Does likeness of the demonstrations matter?", word, tone, text))
}

fn look(report: &Report, arm: &str) -> Look {
    Look::nth(report.arms().iter().position(|other| *other == arm).unwrap_or(0))
}

/// Scores of the arms on the first target.
fn summary(report: &Report) -> Vec<Block> {
    report.metrics.iter().take(1).filter_map(|judge| bars(report, judge)).map(Block::Figure).collect()
}

fn bars(report: &Report, judge: &Judge) -> Option<Figure> {
    let rows: Vec<&Row> = report.own(&judge.task).collect();
    let series = |(i, row): (usize, &&Row)| Series {
        name: row.name(),
        look: look(report, &row.arm),
        points: vec![Point { x: i as f64, y: row.score }],
    };
    let figure = Figure {
        id: format!("scores-{}", judge.task),
        title: format!("Scores on {}", judge.task),
        note: String::new(),
        x_label: "arm".to_owned(),
        y_label: judge.metric.clone(),
        ticks: rows.iter().map(|row| row.name()).collect(),
        y_range: None,
        kind: Kind::Bars,
        series: rows.iter().enumerate().map(series).collect(),
    };
    figure.filled()
}

fn lengths(report: &Report, judge: &Judge) -> Option<Figure> {
    let mut lengths: Vec<usize> = report.own(&judge.task).filter_map(|row| row.length).collect();
    lengths.sort_unstable();
    lengths.dedup();
    let series = report.arms().into_iter().map(|arm| {
        let of = |length: &usize| report.own(&judge.task).find(|row| row.arm == arm && row.length == Some(*length));
        Series::placed(arm, look(report, arm), lengths.iter().map(|length| Some(of(length)?.score)))
    });
    let figure = Figure {
        id: format!("lengths-{}", judge.task),
        title: format!("Scores on {} by the length of the soft prompt", judge.task),
        note: String::new(),
        x_label: "virtual tokens of the soft prompt".to_owned(),
        y_label: judge.metric.clone(),
        ticks: lengths.iter().map(usize::to_string).collect(),
        y_range: None,
        kind: Kind::Lines,
        series: series.collect(),
    };
    figure.filled().filter(|_| lengths.len() > 1)
}

/// Scores by how like the nearest demonstration is.
fn bins(report: &Report) -> Option<Section> {
    let figures = report.metrics.iter().filter_map(|judge| {
        let first = report.own(&judge.task).next().filter(|row| row.bins.len() > 1)?;
        let best = report.arms().into_iter().filter_map(|arm| report.best(&judge.task, arm));
        let series = best.map(|row| {
            let values = row.bins.iter().map(|bin| Some(bin.score));
            Series::placed(row.name(), look(report, &row.arm), values)
        });
        let figure = Figure {
            id: format!("likeness-{}", judge.task),
            title: format!("Scores on {} by the likeness of the nearest demonstration", judge.task),
            note: "Of each arm the best length. The nearest demonstration is the same in every arm, shown or not."
                .to_owned(),
            x_label: "similarity of the nearest demonstration".to_owned(),
            y_label: judge.metric.clone(),
            ticks: first.bins.iter().map(|b| format!("{}–{}", number(b.low, 2), number(b.high, 2))).collect(),
            y_range: None,
            kind: Kind::Lines,
            series: series.collect(),
        };
        figure.filled().map(Block::Figure)
    });
    let blocks: Vec<Block> = figures.collect();
    let title = "Likeness of the demonstrations".to_owned();
    (!blocks.is_empty()).then(|| Section { id: "likeness".to_owned(), title, text: Vec::new(), blocks })
}

/// Scores of what was trained on one task and judged on another.
fn transfer(report: &Report) -> Option<Section> {
    let mut kinds: Vec<(&str, Option<usize>)> = Vec::new();
    for row in report.rows.iter().filter(|row| row.source.is_some()) {
        if !kinds.contains(&(&row.arm, row.length)) {
            kinds.push((&row.arm, row.length));
        }
    }
    let table = |(arm, length): &(&str, Option<usize>)| {
        let cell = |source: &Judge, target: &Judge| {
            let of = |row: &&Row| {
                (row.arm.as_str(), row.length) == (*arm, *length)
                    && row.target == target.task
                    && row.source.as_ref() == Some(&source.task)
            };
            report.rows.iter().find(of).map_or_else(|| "–".to_owned(), |row| mean_sd(row.score, 2))
        };
        let row = |source: &Judge| {
            let cells = report.metrics.iter().map(|target| cell(source, target));
            std::iter::once(source.task.clone()).chain(cells).collect()
        };
        let header = report.metrics.iter().map(|judge| format!("on {} ({})", judge.task, judge.metric));
        let length = length.map_or_else(String::new, |n| format!(" ({n})"));
        Block::Table(Table {
            caption: format!("{arm}{length}"),
            header: std::iter::once("trained on".to_owned()).chain(header).collect(),
            rows: report.metrics.iter().map(row).collect(),
            text: false,
        })
    };
    let text = vec!["What was learned on the task of the row, judged on the task of the column.".to_owned()];
    (report.metrics.len() > 1).then(|| Section {
        id: "transfer".to_owned(),
        title: "Transfer".to_owned(),
        text,
        blocks: kinds.iter().map(table).collect(),
    })
}

fn scores(report: &Report) -> Option<Section> {
    let row = |row: &Row| {
        let interval =
            row.interval.map_or_else(|| "–".to_owned(), |i| format!("{} to {}", number(i.low, 2), number(i.high, 2)));
        vec![row.name(), row.target.clone(), row.seeds.len().to_string(), mean_sd(row.score, 2), interval]
    };
    let header = ["arm", "judged on", "seeds", "score", "95% interval over the queries"];
    let table = Table {
        caption: "Mean ± SD over the seeds".to_owned(),
        header: header.map(str::to_owned).to_vec(),
        rows: report.rows.iter().map(row).collect(),
        text: false,
    };
    let text = report.metrics.iter().map(|judge| format!("{}: {}", judge.task, judge.words())).collect();
    let others = report.metrics.iter().skip(1).filter_map(|judge| bars(report, judge));
    let figures = others.chain(report.metrics.iter().filter_map(|judge| lengths(report, judge))).map(Block::Figure);
    let blocks = figures.chain([Block::Table(table)]).collect();
    Some(Section { id: "scores".to_owned(), title: "Scores".to_owned(), text, blocks })
}

/// Some queries with what the model wrote under each arm.
fn examples(report: &Report) -> Option<Section> {
    let table = |judge: &Judge| {
        let best: Vec<&Row> = report.arms().into_iter().filter_map(|arm| report.best(&judge.task, arm)).collect();
        let row = |(i, query): (usize, &ExampleQuery)| {
            let written = best.iter().map(|row| row.outputs.get(i).map_or("–", String::as_str));
            [&query.input, &query.gold].into_iter().map(String::as_str).chain(written).map(visible).collect()
        };
        Block::Table(Table {
            caption: judge.task.clone(),
            header: ["query", "gold"].map(str::to_owned).into_iter().chain(best.iter().map(|row| row.name())).collect(),
            rows: judge.examples.iter().enumerate().map(row).collect(),
            text: true,
        })
    };
    let blocks: Vec<Block> = report.metrics.iter().filter(|judge| !judge.examples.is_empty()).map(table).collect();
    let text =
        "What was written to the first queries, under the first seed; of each arm with the best length.".to_owned();
    let (id, title) = ("examples".to_owned(), "Examples".to_owned());
    (!blocks.is_empty()).then(|| Section { id, title, text: vec![text], blocks })
}

fn settings(report: &Report) -> Option<Section> {
    let plan = report.plan.as_object()?;
    let mut rows = Vec::new();
    // The data's part lists every query.
    let shown = plan.iter().filter(|(key, _)| *key != "data");
    shown.for_each(|(key, value)| super::settings::flatten(key, value, &mut rows));
    let header = ["setting", "value"].map(str::to_owned).to_vec();
    let table = Table { caption: String::new(), header, rows, text: true };
    let text = format!(
        "An arm is called above another where the 95% intervals over the queries do not overlap; scores of groups of queries, \
         which have none, where they differ by more than {POINT}."
    );
    let title = "Settings, and how to read this page".to_owned();
    Some(Section { id: "settings".to_owned(), title, text: vec![text], blocks: vec![Block::Table(table)] })
}
