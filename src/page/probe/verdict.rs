//! What a probe's numbers say, in words.
//!
//! Every statement is about the last layer's states and is made by the same rule: a difference counts where it is above a
//! least size and above twice its SD over the seeds. The thresholds are this program's own.

use super::view::{Layer, Outcome, PatchLayer, View};
use crate::page::model::{Answer, Tone};
use crate::page::words::{capitalized, count, list, mean_sd, number};
use crate::probe::statistics::MeanSd;

/// The least 1 − cosine that is a move.
pub const LEAST_MOVE: f64 = 0.01;
/// The least difference of cosines, recoveries or accuracies that counts.
pub const LEAST_DIFFERENCE: f64 = 0.05;
/// SDs over the seeds that a difference must exceed.
pub const SPREADS: f64 = 2.0;
/// The update cosine from which two updates are called one direction, if it is above the baselines.
pub const SAME: f64 = 0.5;
/// The share of ICL's gain that a state must bring back to be called its cause, and the most that a random vector may.
pub const CAUSE: [f64; 2] = [0.8, 0.1];

/// Which arms left the state of the query alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    icl: bool,
    it: bool,
}

/// How the updates of ICL and IT lie to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    /// Above both baselines, and large.
    Same,
    /// Above both baselines.
    Partly,
    /// Above noise, and no higher than on shuffled queries.
    Common,
    /// Not above noise.
    Different,
    /// As far below zero as `Partly` is above it.
    Opposite,
}

/// Whether a difference is above a least size and above its spread.
fn clear(difference: MeanSd, least: f64) -> bool {
    difference.mean.is_some_and(|mean| mean > least && mean > SPREADS * difference.sd.unwrap_or(0.0))
}

/// Whether the second of two values is clearly above the first.
pub fn differ(low: MeanSd, high: MeanSd) -> bool {
    clear(difference(high, low), LEAST_DIFFERENCE)
}

/// The difference of two values that are independent of each other.
fn difference(a: MeanSd, b: MeanSd) -> MeanSd {
    let sd = match (a.sd, b.sd) {
        (None, None) => None,
        (x, y) => Some(x.unwrap_or(0.0).hypot(y.unwrap_or(0.0))),
    };
    MeanSd { mean: a.mean.zip(b.mean).map(|(a, b)| a - b), sd }
}

fn left(cosine: Option<MeanSd>) -> bool {
    let whole = MeanSd { mean: Some(1.0), sd: None };
    cosine.is_some_and(|cosine| clear(difference(whole, cosine), LEAST_MOVE))
}

/// Which arms moved the state at a layer.
fn moved(layer: &Layer) -> Moved {
    Moved { icl: left(layer.value(["anchor", "icl"], "cosine")), it: left(layer.value(["anchor", "it"], "cosine")) }
}

fn direction(layer: &Layer) -> Option<Direction> {
    let update = layer.measure(["icl", "it"], "update")?;
    let mean = update.value.mean?;
    let below = |baseline: &str, seeds: MeanSd| {
        let apart =
            || difference(update.value, update.baseline(baseline).unwrap_or(MeanSd { mean: Some(0.0), sd: None }));
        clear(if seeds.mean.is_some() { seeds } else { apart() }, LEAST_DIFFERENCE)
    };
    let (above_noise, above_shuffled) =
        (below("gaussian", layer.over_gaussian), below("shuffled", layer.over_shuffled));
    let negative = MeanSd { mean: Some(-mean), sd: update.value.sd };
    Some(match (above_noise, above_shuffled) {
        (true, true) if mean >= SAME => Direction::Same,
        (true, true) => Direction::Partly,
        (true, false) => Direction::Common,
        (false, _) if clear(negative, LEAST_DIFFERENCE) => Direction::Opposite,
        (false, _) => Direction::Different,
    })
}

/// Whether more than half of the update cosine is there with other queries too.
fn is_common(layer: &Layer) -> bool {
    let update = layer.measure(["icl", "it"], "update");
    let shuffled = update.and_then(|update| update.baseline("shuffled")?.mean.zip(update.value.mean));
    shuffled.is_some_and(|(shuffled, mean)| shuffled > mean / 2.0)
}

/// The verdict in one sentence.
pub fn headline(view: &View) -> String {
    let Some(last) = view.result.layers.last() else { return "The report has no states to judge".to_owned() };
    let both = Moved { icl: true, it: true };
    let sentence = match (moved(last), direction(last)) {
        (Moved { icl: false, it: false }, _) => {
            return "Neither ICL nor instruction tuning moved the states: that they are alike says nothing".to_owned();
        }
        (Moved { icl: true, it: false }, _) => {
            return "ICL moved the states, instruction tuning did not: they did not do the same".to_owned();
        }
        (Moved { icl: false, it: true }, _) => {
            return "Instruction tuning moved the states, ICL did not: they did not do the same".to_owned();
        }
        (now, Some(direction)) if now == both => match direction {
            Direction::Same if is_common(last) => {
                "move the states in the same direction, most of it common to all queries"
            }
            Direction::Same => "move the states in the same direction, query by query",
            Direction::Partly => "move the states in directions that are alike only in part",
            Direction::Common => "share one shift of the states for all queries, and nothing for the single query",
            Direction::Different => "move the states in different directions",
            Direction::Opposite => "move the states in opposite directions",
        },
        _ => "move the states; the direction was not compared",
    };
    let cause = match cause(&view.result) {
        Some(Tone::Yes) => ", and ICL’s state is enough for its answers",
        Some(Tone::No) => ", but ICL’s state alone does not bring its answers",
        _ => "",
    };
    format!("ICL and instruction tuning {sentence}{cause}")
}

/// The questions and their answers; `factors` is the one about the factors.
pub fn answers(view: &View, factors: Answer) -> Vec<Answer> {
    let mut answers = Vec::new();
    if let Some(last) = view.result.layers.last() {
        answers.extend([move_answer(&view.result, last), direction_answer(&view.result, last)]);
    }
    answers.extend([cause_answer(&view.result), scores_answer(view), factors, evidence()]);
    answers
}

fn answer(question: &str, word: &str, tone: Tone, text: String) -> Answer {
    Answer { question: question.to_owned(), word: word.to_owned(), tone, text }
}

fn move_answer(result: &Outcome, last: &Layer) -> Answer {
    let show = |arms| last.value(arms, "cosine").map_or_else(|| "–".to_owned(), |value| mean_sd(value, 3));
    let mut text = format!(
        "Cosine with the query’s own state: {} after the demonstrations (ICL), {} after the tuning (IT); 1 is no move.",
        show(["anchor", "icl"]),
        show(["anchor", "it"])
    );
    if let Some(ratio) = last.value(["icl", "it"], "norm_ratio") {
        text += &format!(" IT’s update is {} times as long as ICL’s.", mean_sd(ratio, 2));
    }
    let now = moved(last);
    let raw = show(["icl", "it"]);
    text += &match (now.icl, now.it) {
        (true, true) => format!(" ICL–IT is {raw}."),
        (false, false) => {
            format!(" So the {raw} of ICL–IT is no likeness of the two: both stayed where the query was.")
        }
        _ => format!(" So the {raw} of ICL–IT is the cosine of one that moved with one that stayed."),
    };
    let layers = result.layers.len();
    let of = |which: fn(Moved) -> bool| result.layers.iter().filter(|layer| which(moved(layer))).count();
    text += &format!(" Moved at {} (ICL) and {} (IT) of {layers} layers.", of(|m| m.icl), of(|m| m.it));
    let (word, tone) = match (now.icl, now.it) {
        (true, true) => ("Both moved", Tone::Yes),
        (true, false) => ("Only ICL moved", Tone::Partly),
        (false, true) => ("Only IT moved", Tone::Partly),
        (false, false) => ("Neither moved", Tone::No),
    };
    answer("Did the states move?", word, tone, text)
}

fn direction_answer(result: &Outcome, last: &Layer) -> Answer {
    let question = "In the same direction?";
    let Some(found) = direction(last) else {
        return answer(question, "Not compared", Tone::Open, "The report has no cosine of the updates.".to_owned());
    };
    let update = last.measure(["icl", "it"], "update");
    let value = update.map_or_else(String::new, |update| mean_sd(update.value, 3));
    let baseline =
        |name: &str| update.and_then(|u| u.baseline(name)).map_or_else(|| "–".to_owned(), |value| mean_sd(value, 3));
    let mut text = format!(
        "Cosine of the updates {value}; against the updates on other queries {}, against Gaussian noise {}.",
        baseline("shuffled"),
        baseline("gaussian")
    );
    let both = |layer: &&Layer| moved(layer) == Moved { icl: true, it: true };
    let counts = |layer: &Layer| matches!(direction(layer), Some(Direction::Same | Direction::Partly));
    let above = result.layers.iter().filter(both).filter(|layer| counts(layer)).count();
    text += &format!(" Above both baselines at {above} of {} layers", result.layers.len());
    let highest = result.layers.iter().filter_map(|layer| Some((layer, layer.value(["icl", "it"], "update")?.mean?)));
    let highest = highest.max_by(|a, b| a.1.total_cmp(&b.1));
    text += &highest.map_or_else(
        || ".".to_owned(),
        |(layer, mean)| format!(", highest at layer {} ({}).", layer.name, number(mean, 3)),
    );
    let (word, tone) = match found {
        _ if moved(last) != (Moved { icl: true, it: true }) => {
            text += " Where an arm did not move, its update is noise, and so is this cosine.";
            ("Does not apply", Tone::Open)
        }
        Direction::Same => {
            if is_common(last) {
                text += " Most of it is common to all queries.";
            }
            ("Yes", Tone::Yes)
        }
        Direction::Partly => ("In part", Tone::Partly),
        Direction::Common => {
            text += " What is shared is the same for every query.";
            ("Only a common shift", Tone::Partly)
        }
        Direction::Different => ("No", Tone::No),
        Direction::Opposite => ("Opposite", Tone::No),
    };
    if result.seeds == 1 {
        text += " One seed: there is no spread to judge by.";
    }
    answer(question, word, tone, text)
}

/// What ICL gains over the anchor: of the accuracy, or of the log-probability where there is none.
struct Gain {
    size: f64,
    /// The place of its recovery in [`super::view::PatchVector::recovery`].
    of: usize,
}

/// ICL's gain, where it is clear.
fn gain(result: &Outcome) -> Option<Gain> {
    let (icl, anchor) = (result.arm("icl")?, result.arm("anchor")?);
    let of = usize::from(icl.accuracy.mean.is_none());
    let gain =
        if of == 0 { difference(icl.accuracy, anchor.accuracy) } else { difference(icl.log_prob, anchor.log_prob) };
    gain.mean.filter(|_| clear(gain, LEAST_DIFFERENCE)).map(|size| Gain { size, of })
}

/// The layers whose patching is a test: at the last block the state is all that the answer is made of.
fn tested(result: &Outcome) -> &[PatchLayer] {
    let layers = &result.patching[..];
    if layers.len() > 1 { &layers[..layers.len() - 1] } else { layers }
}

/// The layer at which a vector recovers most, with its share.
fn best<'a>(result: &'a Outcome, vector: &str, of: usize) -> Option<(&'a PatchLayer, f64)> {
    let layers = tested(result).iter().filter_map(|layer| Some((layer, layer.vector(vector)?.recovery[of].mean?)));
    // Of equals the first.
    layers.rev().max_by(|a, b| a.1.total_cmp(&b.1))
}

fn random_at(layer: &PatchLayer, of: usize) -> f64 {
    layer.vector("random").and_then(|vector| vector.recovery[of].mean).unwrap_or(0.0)
}

/// Whether ICL's states cause its answers; none where that was not tested or there is nothing to recover.
fn cause(result: &Outcome) -> Option<Tone> {
    let of = gain(result)?.of;
    let share = |layer: &PatchLayer| Some((layer.vector("icl")?.recovery[of].mean?, random_at(layer, of)));
    let shares: Vec<(f64, f64)> = tested(result).iter().filter_map(share).collect();
    let above = |by: &dyn Fn(f64, f64) -> bool| shares.iter().any(|&(icl, random)| by(icl, random));
    if shares.is_empty() {
        return None;
    }
    Some(if above(&|icl, random| icl >= CAUSE[0] && random < CAUSE[1]) {
        Tone::Yes
    } else if above(&|icl, random| icl - random >= 0.2) {
        Tone::Partly
    } else {
        Tone::No
    })
}

fn cause_answer(result: &Outcome) -> Answer {
    let question = "Do the states cause the answers?";
    if result.patching.is_empty() {
        let text = "No state was written into another pass (patching), so these numbers cannot tell a cause from a \
                    coincidence.";
        return answer(question, "Not tested", Tone::Open, text.to_owned());
    }
    let (Some(tone), Some(gain)) = (cause(result), gain(result)) else {
        let text = "ICL is not clearly better than the query alone: there is no gain that a state could bring back.";
        return answer(question, "Nothing to recover", Tone::Open, text.to_owned());
    };
    let percent = |share: f64| format!("{}%", number(100.0 * share, 0));
    let mut parts = Vec::new();
    if let Some((layer, share)) = shown(result, tone, gain.of) {
        parts.push(format!(
            "ICL’s state of the last token, written into the query’s own pass after block {}, brings back {} of ICL’s gain \
             of {}{}; a random vector as long as the update {}",
            layer.name,
            percent(share),
            number(gain.size, 3),
            if gain.of == 0 { "" } else { " nats" },
            percent(random_at(layer, gain.of)),
        ));
    }
    let others = [
        ("task_vector", "ICL’s mean update on other queries (task vector)"),
        ("it", "IT’s state"),
        ("other_task", "another task’s vector"),
    ];
    let others = others.into_iter().filter_map(|(vector, name)| {
        let (layer, share) = best(result, vector, gain.of)?;
        Some(format!("{name} {} (block {})", percent(share), layer.name))
    });
    let others: Vec<String> = others.collect();
    if !others.is_empty() {
        parts.push(format!("at best, {}", list(&others)));
    }
    let word = match tone {
        Tone::Yes => "Yes",
        Tone::Partly => "In part",
        _ => "No",
    };
    let text = format!("{}. The last block is left out: there it could not be otherwise.", parts.join("; "));
    answer(question, word, tone, text)
}

/// The layer that is told of, with the share that ICL's state recovers there: where the random vector may not, if that is the
/// answer, and else the best.
fn shown(result: &Outcome, tone: Tone, of: usize) -> Option<(&PatchLayer, f64)> {
    let share = |layer: &PatchLayer| layer.vector("icl").and_then(|vector| vector.recovery[of].mean);
    let caused = |layer: &&PatchLayer| random_at(layer, of) < CAUSE[1] && share(layer).is_some_and(|s| s >= CAUSE[0]);
    let first = tested(result).iter().find(caused).filter(|_| tone == Tone::Yes);
    first.and_then(|layer| Some((layer, share(layer)?))).or_else(|| best(result, "icl", of))
}

fn scores_answer(view: &View) -> Answer {
    let result = &view.result;
    let question = "Do the answers agree?";
    let score = |arm: &str| result.arm(arm).map(|scores| scores.accuracy).filter(|accuracy| accuracy.mean.is_some());
    let (Some(anchor), Some(icl), Some(it)) = (score("anchor"), score("icl"), score("it")) else {
        let text = "The task is free text, which has no accuracy here; log-probabilities are below.";
        return answer(question, "No accuracy", Tone::Open, text.to_owned());
    };
    let mut text = format!(
        "{}: {} of the query alone, {} of ICL, {} of IT.",
        capitalized(view.length_normalization.accuracy()),
        mean_sd(anchor, 3),
        mean_sd(icl, 3),
        mean_sd(it, 3)
    );
    let agreement = result.outputs.iter().find(|output| output.name == "agreement" && output.of == ["icl", "it"]);
    if let Some(agreement) = agreement {
        text += &format!(" ICL and IT give the same answer to {} of the queries.", mean_sd(agreement.value, 3));
    }
    let gains = |arm| differ(anchor, arm);
    let apart = differ(icl, it) || differ(it, icl);
    let (word, tone) = match (gains(icl), gains(it), apart) {
        (true, true, false) => ("Both learn, equally well", Tone::Yes),
        (true, true, true) => ("Both learn, not equally well", Tone::Partly),
        (true, false, _) => ("Only ICL clearly learns", Tone::No),
        (false, true, _) => ("Only IT clearly learns", Tone::No),
        (false, false, false) => ("Neither is above the query alone", Tone::Open),
        (false, false, true) => ("They differ, and neither learns", Tone::No),
    };
    answer(question, word, tone, text)
}

fn evidence() -> Answer {
    let text = "Doimo et al. (arXiv:2409.03662): few-shot prompts organise early layers by meaning, fine-tuning late layers by \
                answer. IA2 (arXiv:2509.22621): ICL and tuned models have different activations. A likeness here is of this \
                model, task and measure.";
    answer("What speaks against likeness?", "Two studies", Tone::Open, text.to_owned())
}

/// How the words were chosen.
pub fn rules(view: &View) -> String {
    format!(
        "Statements are about the states of the last layer ({}). A difference counts where it is above {} and above \
         {SPREADS} SD over {}; a state moved where 1 − cosine with the anchor is above {LEAST_MOVE} and above {SPREADS} SD. \
         Updates are called one direction from a cosine of {SAME}, if it is above both baselines. A state is called the \
         cause where it brings back at least {}% of ICL’s gain and a random vector less than {}%. These thresholds are \
         llamaprobe’s own.",
        view.result.layers.last().map_or("–", |layer| &layer.name),
        LEAST_DIFFERENCE,
        count(view.result.seeds, "seed", "seeds"),
        100.0 * CAUSE[0],
        100.0 * CAUSE[1],
    )
}
