//! The sections of a probe's page.

use super::names;
use super::view::{Layer, Measure, Outcome, Pair, View};
use crate::page::model::{Block, Figure, Kind, Look, Point, Section, Series, Table};
use crate::page::settings::flatten;
use crate::page::words::{capitalized, count, mean_sd, number, visible};
use crate::probe::statistics::MeanSd;

/// The arms that are always there.
const THREE: [&str; 3] = ["anchor", "icl", "it"];

fn section(id: &str, title: &str, text: &[&str], blocks: Vec<Block>) -> Option<Section> {
    let text = text.iter().map(|text| (*text).to_owned()).collect();
    (!blocks.is_empty()).then(|| Section { id: id.to_owned(), title: title.to_owned(), text, blocks })
}

/// What belongs to the verdict: the updates by layer, and the scores of the arms.
pub fn summary(view: &View) -> Vec<Block> {
    let updates = measure_figure(&view.result, "update", "update", &is_of_three).map(Block::Figure);
    updates.into_iter().chain([Block::Table(scores(view))]).collect()
}

/// Whether a pair is of the arms that are always there.
fn is_of_three(pair: &Pair) -> bool {
    pair.arms.iter().all(|arm| THREE.contains(&arm.as_str()))
}

/// A table of the scores.
fn scores(view: &View) -> Table {
    let result = &view.result;
    let last = result.layers.last();
    let row = |arm: &super::view::ArmScores| {
        let anchor = last.and_then(|layer| layer.value(["anchor", &arm.arm], "cosine"));
        let cosine = anchor.map_or_else(|| "–".to_owned(), |value| mean_sd(value, 3));
        vec![names::arm(&arm.arm), mean_sd(arm.accuracy, 3), mean_sd(arm.log_prob, 2), cosine]
    };
    let header = ["arm", view.length_normalization.accuracy(), "log-prob. of gold", "cosine with anchor"];
    Table {
        caption: format!("Scores and last-layer states, mean ± SD over {}", count(result.seeds, "seed", "seeds")),
        header: header.map(str::to_owned).to_vec(),
        rows: result.arms.iter().map(row).collect(),
        text: false,
    }
}

/// The scores as bars.
pub fn accuracies(view: &View) -> Option<Section> {
    let arms = &view.result.arms;
    let figure = |id: &str, title: &str, y_label: &str, y_range, value: &dyn Fn(usize) -> MeanSd| Figure {
        id: id.to_owned(),
        title: title.to_owned(),
        note: match (view.guess, view.labels.len()) {
            (Some(guess), 0) if id == "accuracy" => {
                format!("Guessing among each query’s choices: {}.", number(guess, 3))
            }
            (Some(guess), n) if id == "accuracy" => format!("Guessing among {n} labels: {}.", number(guess, 3)),
            _ => String::new(),
        },
        x_label: "arm".to_owned(),
        y_label: y_label.to_owned(),
        ticks: arms.iter().map(|arm| names::arm(&arm.arm)).collect(),
        y_range,
        kind: Kind::Bars,
        series: (0..arms.len())
            .map(|i| {
                let points = vec![Point { x: i as f64, y: value(i) }];
                Series { name: names::arm(&arms[i].arm), look: names::arm_look(&arms[i].arm, i), points }
            })
            .collect(),
    };
    let title = capitalized(view.length_normalization.accuracy());
    let accuracy = figure("accuracy", &title, "accuracy", Some([0.0, 1.0]), &|i| arms[i].accuracy);
    let log_prob = figure("log-prob", "Log-probability of the gold answer", "nats", None, &|i| arms[i].log_prob);
    let mut blocks: Vec<Block> =
        [accuracy.filled(), log_prob.filled()].into_iter().flatten().map(Block::Figure).collect();
    blocks.extend(outputs(&view.result).map(Block::Table));
    section("answers", "Answers", &[], blocks)
}

fn outputs(result: &Outcome) -> Option<Table> {
    let row = |output: &super::view::Output| {
        let of = output.of.iter().map(|arm| names::arm(arm)).collect::<Vec<_>>().join("–");
        vec![names::output(&output.name), of, mean_sd(output.value, 3), mean_sd(output.shuffled, 3)]
    };
    let rows: Vec<Vec<String>> = result.outputs.iter().map(row).collect();
    let header = ["measure of the answers", "arms", "mean ± SD over the seeds", "with shuffled queries"];
    let header = header.map(str::to_owned).to_vec();
    (!rows.is_empty()).then(|| Table { caption: String::new(), header, rows, text: false })
}

/// A measure by layer, of the pairs asked for.
fn measure_figure(result: &Outcome, name: &str, id: &str, wanted: &dyn Fn(&Pair) -> bool) -> Option<Figure> {
    let layers = &result.layers;
    let mut series = Vec::new();
    let pairs = layers.first()?.pairs.iter().filter(|pair| wanted(pair));
    for (i, pair) in pairs.enumerate() {
        let arms = [pair.arms[0].as_str(), pair.arms[1].as_str()];
        let values = layers.iter().map(|layer| layer.value(arms, name));
        series.push(Series::placed(names::pair(pair), names::pair_look(pair, i), values));
        // Of the pair that the study is about.
        if pair.is_of(["icl", "it"]) {
            series.extend(baselines(layers, arms, name));
        }
    }
    let is_bounded = matches!(name, "cosine" | "update");
    lines(layers, id, names::measure(name), is_bounded, series)
}

/// Lines by layer of a measure with this title, label and note; bounded ones are from 0 to 1.
fn lines(
    layers: &[Layer],
    id: &str,
    (title, y_label, note): (String, String, String),
    is_bounded: bool,
    series: Vec<Series>,
) -> Option<Figure> {
    let figure = Figure {
        id: id.to_owned(),
        title: format!("{title}, by layer"),
        note,
        x_label: "layer".to_owned(),
        y_label,
        ticks: names::layers(layers),
        y_range: is_bounded.then_some([0.0, 1.0]),
        kind: Kind::Lines,
        series,
    };
    figure.filled()
}

fn baselines(layers: &[Layer], arms: [&str; 2], name: &str) -> Vec<Series> {
    let measure = layers.iter().find_map(|layer| layer.measure(arms, name));
    let known = measure.map_or(&[][..], |measure| &measure.baselines).iter();
    let series = |(baseline, _): &(String, MeanSd)| {
        let values = layers.iter().map(|layer| layer.measure(arms, name)?.baseline(baseline));
        let (title, look) = names::baseline(baseline);
        Series::placed(title, look, values)
    };
    known.map(series).collect()
}

/// The names of all measures, in the order of the report.
fn names_of_measures(result: &Outcome) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    let pairs = result.layers.iter().flat_map(|layer| &layer.pairs);
    for measure in pairs.flat_map(|pair| &pair.measures) {
        if !names.contains(&measure.name.as_str()) {
            names.push(&measure.name);
        }
    }
    names
}

/// Every measure but the updates of ICL and IT, which the first screen shows; the cosines of arms with soft prompts apart.
pub fn measures(view: &View) -> Option<Section> {
    let result = &view.result;
    let mut figures = Vec::new();
    for name in names_of_measures(result) {
        match name {
            "cosine" => figures.extend(measure_figure(result, name, name, &is_of_three)),
            "update" => {}
            // Beside the anchor there is no ratio of updates.
            "norm_ratio" => {
                let apart = |pair: &Pair| !pair.arms.contains(&"anchor".to_owned());
                figures.extend(measure_figure(result, name, "measure-norm_ratio", &apart));
            }
            _ => figures.extend(measure_figure(result, name, &format!("measure-{name}"), &|_| true)),
        }
    }
    figures.extend(of_arms(result, "id", "measure-id", &|layer| &layer.dimensions));
    figures.extend(overlaps(view));
    for scores in result.arms.iter().filter(|scores| !THREE.contains(&scores.arm.as_str())) {
        let of = |pair: &Pair| pair.arms.contains(&scores.arm);
        for name in ["cosine", "update"] {
            let figure = measure_figure(result, name, &format!("{name}-{}", scores.arm), &of);
            figures.extend(figure.map(|figure| Figure {
                title: format!("{}: {}", names::arm(&scores.arm), figure.title.to_lowercase()),
                note: String::new(),
                ..figure
            }));
        }
    }
    section("measures", "States by layer", &[], figures.into_iter().map(Block::Figure).collect())
}

/// What LoRA updates have in common, by block: those of the seeds of the first condition, and of other conditions with
/// those before them.
fn overlaps(view: &View) -> Option<Figure> {
    let levels = |number: usize| {
        let levels = view.conditions.get(number).map_or(&[][..], |condition| &condition.levels);
        levels.iter().map(|(name, level)| format!("{name} {level}")).collect::<Vec<_>>().join(", ")
    };
    let mut series = Vec::new();
    for (number, condition) in view.conditions.iter().enumerate() {
        for overlap in &condition.overlaps {
            let name = match overlap.with {
                None if number > 0 => continue,
                None => "between seeds".to_owned(),
                Some(other) => format!("{} with {}", levels(number), levels(other)),
            };
            series.push(Series::placed(name, Look::nth(series.len() + 1), overlap.layers.iter().map(|v| Some(*v))));
        }
    }
    let first = view.conditions.first().and_then(|condition| condition.overlaps.first())?;
    // More lines than looks say nothing.
    series.truncate(5);
    let expected = first.expected.map(|mean| MeanSd { mean: Some(mean), sd: None });
    series.push(Series::placed("random updates", Look::NOISE, first.layers.iter().map(|_| expected)));
    let figure = Figure {
        id: "measure-lora_overlap".to_owned(),
        title: "Overlap of the LoRA updates, by block".to_owned(),
        note: "Share of one update’s directions that lie in another’s (IA2).".to_owned(),
        x_label: "block".to_owned(),
        y_label: "overlap".to_owned(),
        ticks: (0..first.layers.len()).map(|block| block.to_string()).collect(),
        y_range: None,
        kind: Kind::Lines,
        series,
    };
    figure.filled()
}

/// What can be read off the arms' states, by layer.
pub fn readouts(view: &View) -> Option<Section> {
    let mut names: Vec<&str> = Vec::new();
    for (_, readout) in view.result.layers.iter().flat_map(|layer| &layer.readouts) {
        if !names.contains(&readout.name.as_str()) {
            names.push(&readout.name);
        }
    }
    let figure = |name: &str| of_arms(&view.result, name, &format!("readout-{name}"), &|layer| &layer.readouts);
    let figures = names.into_iter().filter_map(figure);
    let text = "What a reader of one layer’s states alone could say of the answer.";
    section("readouts", "Readouts by layer", &[text], figures.map(Block::Figure).collect())
}

/// A measure of the arms by layer, with ICL's baselines: of each arm they say what chance gives.
fn of_arms(result: &Outcome, name: &str, id: &str, get: &dyn Fn(&Layer) -> &[(String, Measure)]) -> Option<Figure> {
    let layers = &result.layers;
    let find = |layer: usize, arm: &str| {
        let of_arm = get(&layers[layer]).iter().filter(|(of, _)| of == arm).map(|(_, measure)| measure);
        of_arm.into_iter().find(|measure| name == "id" || measure.name == name)
    };
    let mut series = Vec::new();
    for (i, scores) in result.arms.iter().enumerate() {
        let values = (0..layers.len()).map(|layer| find(layer, &scores.arm).map(|measure| measure.value));
        series.push(Series::placed(names::arm(&scores.arm), names::arm_look(&scores.arm, i), values));
    }
    let known = (0..layers.len()).find_map(|layer| find(layer, "icl"));
    for (i, (control, _)) in known.into_iter().flat_map(|measure| &measure.baselines).enumerate() {
        let values = (0..layers.len()).map(|layer| find(layer, "icl")?.baseline(control));
        let look = if i == 0 { Look::SHUFFLED } else { Look::NOISE };
        series.push(Series::placed(format!("ICL, {}", names::baseline(control).0), look, values));
    }
    let words = names::measure(name);
    let is_bounded = words.1 == "accuracy";
    lines(layers, id, words, is_bounded, series)
}

/// The vectors of patching: name in the report, on the page, and how they look.
const VECTORS: [(&str, &str, Look); 6] = [
    ("icl", "ICL’s state", Look::ICL),
    ("task_vector", "task vector", Look::BOTH),
    ("it", "IT’s state", Look::IT),
    ("it_vector", "IT’s mean update", Look(5)),
    ("random", "random vector", Look::NOISE),
    ("other_task", "vector of another task", Look::SHUFFLED),
];

/// The curve of patching.
pub fn patching(view: &View) -> Option<Section> {
    let layers = &view.result.patching;
    type Get = dyn Fn(&super::view::PatchVector) -> MeanSd;
    let figure = |id: &str, title: &str, y_label: &str, y_range, get: &Get| {
        let series = VECTORS.map(|(vector, name, look)| {
            Series::placed(name, look, layers.iter().map(|layer| layer.vector(vector).map(get)))
        });
        let figure = Figure {
            id: format!("patching-{id}"),
            title: title.to_owned(),
            note: String::new(),
            x_label: "block after which the vector is written".to_owned(),
            y_label: y_label.to_owned(),
            ticks: layers.iter().map(|layer| layer.name.clone()).collect(),
            y_range,
            kind: Kind::Lines,
            series: series.to_vec(),
        };
        figure.filled().map(Block::Figure)
    };
    let unit = Some([0.0, 1.0]);
    let blocks = [
        figure("recovery", "Recovery of ICL’s gain", "recovery", unit, &|vector| vector.recovery[0]),
        figure("recovery-log-prob", "Recovery of the log-probability", "recovery", unit, &|vector| vector.recovery[1]),
        figure("accuracy", "Accuracy of the patched pass", "accuracy", unit, &|vector| vector.accuracy),
    ];
    let text = "A vector written over the last token’s state in the pass of the query alone. Recovery: (patched − \
                anchor) / (ICL − anchor) of the accuracy; 1 is all of ICL’s gain. After the last block it is 1 by \
                construction. Means of updates are over the other queries.";
    section("patching", "Patching", &[text], blocks.into_iter().flatten().collect())
}

/// The principal components of the arms' states.
pub fn pca(view: &View) -> Option<Section> {
    let pca = view.pca.as_ref()?;
    let component = |i: usize| {
        let share =
            pca.variance.get(i).map_or_else(String::new, |v| format!(" ({}% of variance)", number(100.0 * v, 0)));
        format!("component {}{share}", i + 1)
    };
    let series = pca.arms.iter().enumerate().map(|(i, (arm, points))| {
        let point = |[x, y]: &[f64; 2]| Point { x: *x, y: MeanSd { mean: Some(*y), sd: None } };
        Series { name: names::arm(arm), look: names::arm_look(arm, i), points: points.iter().map(point).collect() }
    });
    let figure = Figure {
        id: "pca".to_owned(),
        title: format!("Principal components of the states at layer {}", pca.layer),
        note: "A point is the last token of a query under an arm.".to_owned(),
        x_label: component(0),
        y_label: component(1),
        ticks: Vec::new(),
        y_range: None,
        kind: Kind::Scatter,
        series: series.collect(),
    };
    section("components", "Principal components", &[], figure.filled().map(Block::Figure).into_iter().collect())
}

/// The losses of the trainings.
pub fn training(view: &View) -> Option<Section> {
    let arms = view.result.arms.iter().enumerate().filter(|(_, arm)| arm.loss.len() > 1);
    let series = |(i, arm): (usize, &super::view::ArmScores)| {
        let points = arm.loss.iter().enumerate().map(|(step, loss)| Point { x: step as f64, y: *loss });
        Series { name: names::arm(&arm.arm), look: names::arm_look(&arm.arm, i), points: points.collect() }
    };
    let figure = Figure {
        id: "loss".to_owned(),
        title: "Loss over the tuning".to_owned(),
        note: String::new(),
        x_label: "optimiser step".to_owned(),
        y_label: "nats per label token".to_owned(),
        ticks: Vec::new(),
        y_range: None,
        kind: Kind::Lines,
        series: arms.map(series).collect(),
    };
    section("tuning", "Tuning", &[], figure.filled().map(Block::Figure).into_iter().collect())
}

/// Some queries with what each arm answers.
pub fn examples(view: &View) -> Option<Section> {
    let row = |example: &super::view::Example| {
        let answer = |answer: &super::view::ArmAnswer| {
            let score = |(label, p): &(String, f64)| format!("{}: {}", visible(label), number(*p, 2));
            std::iter::once(visible(&answer.predicted))
                .chain(answer.log_probs.iter().map(score))
                .collect::<Vec<_>>()
                .join("\n")
        };
        let tokens: Vec<String> = example.tokens.iter().map(|token| readable(token)).collect();
        let query = if tokens.is_empty() { format!("query {}", example.query) } else { tokens.join("|") };
        let first = [visible(&query), visible(&example.gold)];
        first.into_iter().chain(example.answers.iter().map(answer)).collect()
    };
    let arms = view.examples.first()?.answers.iter().map(|answer| names::arm(&answer.arm));
    let table = Table {
        caption: "Answers, with the log-probability of every label or choice".to_owned(),
        header: ["query, token by token", "gold"].map(str::to_owned).into_iter().chain(arms).collect(),
        rows: view.examples.iter().map(row).collect(),
        text: true,
    };
    section("examples", "Examples", &[], vec![Block::Table(table)])
}

/// A token of a vocabulary, whose marks of spaces and line ends are written as such.
fn readable(token: &str) -> String {
    token.replace(['▁', 'Ġ'], " ").replace('Ċ', "\n")
}

/// What was asked for, key by key.
pub fn settings(view: &View, rules: String) -> Option<Section> {
    let known = [
        ("model", view.model.clone()),
        ("device", view.device.clone()),
        ("dtype", view.dtype.clone()),
        ("llamaprobe", view.version.clone()),
    ];
    let mut rows: Vec<Vec<String>> = known.map(|(name, value)| vec![name.to_owned(), value]).to_vec();
    view.settings.iter().for_each(|(key, value)| flatten(key, value, &mut rows));
    let header = ["setting", "value"].map(str::to_owned).to_vec();
    let table = Table { caption: String::new(), header, rows, text: true };
    section("settings", "Settings, and how to read this page", &[&rules], vec![Block::Table(table)])
}
