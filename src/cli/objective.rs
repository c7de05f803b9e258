//! The objective of a training: flags as they are meant, and the teachers of the examples.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::args::{ObjectiveArgs, ObjectiveKind};
use super::resolve::{ModelFiles, flag_of};
use super::texts;
use crate::formats::activations::ActivationFile;
use crate::formats::jsonl::{Example, Row};
use crate::formats::tokenizer::Tokenizer;
use crate::hooks::{Naming, Selection, site};
use crate::train::data::SequenceTeacher;
use crate::train::examples::Prepared;
use crate::train::objective::Objective;
use crate::train::teachers::{self, ContextOptions};
use crate::{Error, Result};

/// The teacher's word for the base model behind demonstrations.
const ICL: &str = "icl";
/// Demonstrations where nothing says how many.
const DEMOS: usize = 5;
/// Weights of a mixture where nothing says what they are.
const CE_WEIGHT: f64 = 0.02;
const ACTIVATION_WEIGHT: f64 = 0.98;
const LOGIT_WEIGHT: f64 = 0.0;

/// The objective that flags ask for; none for cross-entropy alone.
pub fn objective(args: &ObjectiveArgs, files: &ModelFiles) -> Result<Option<Objective>> {
    refuse_unused(args)?;
    let (ce, activations, logits) = match args.objective {
        ObjectiveKind::Ce => return Ok(None),
        ObjectiveKind::Activations => (0.0, 1.0, 0.0),
        ObjectiveKind::Logits => (0.0, 0.0, 1.0),
        ObjectiveKind::Mixed => (
            args.ce_weight.unwrap_or(CE_WEIGHT),
            args.activation_weight.unwrap_or(ACTIVATION_WEIGHT),
            args.logit_weight.unwrap_or(LOGIT_WEIGHT),
        ),
    };
    let weights = [("--ce-weight", ce), ("--activation-weight", activations), ("--logit-weight", logits)];
    if let Some((flag, weight)) = weights.iter().find(|(_, weight)| !(weight.is_finite() && *weight >= 0.0)) {
        return Err(Error::argument(*flag, "a number from 0", weight));
    }
    if activations == 0.0 && logits == 0.0 {
        let expected = "above 0, or --logit-weight: without both there is no teacher";
        return Err(Error::argument("--activation-weight", expected, activations));
    }
    let temperature = args.temperature.unwrap_or(1.0);
    if !(temperature.is_finite() && temperature > 0.0) {
        return Err(Error::argument("--temperature", "a number above 0", temperature));
    }
    let mut selection = Selection::default();
    if activations > 0.0 {
        let layers = args.objective_layers.as_deref().unwrap_or("all");
        let layers = site::layers(layers, files.config.num_hidden_layers).map_err(flag_of("--objective-layers"))?;
        let sites = args.objective_sites.as_ref().map_or("attn_out".to_owned(), |sites| sites.join(","));
        let of_sites = flag_of("--objective-sites");
        selection = Selection::parse_outputs(&sites, &layers, &Naming::tl(&files.config)).map_err(&of_sites)?;
        files.config.check_tuned(&selection).map_err(&of_sites)?;
    }
    Ok(Some(Objective { ce, activations, logits, selection, temperature, table: None }))
}

/// Refuses flags that this objective does not read.
fn refuse_unused(args: &ObjectiveArgs) -> Result<()> {
    use ObjectiveKind::{Activations, Ce, Logits, Mixed};
    let icl = args.teacher.as_deref().is_none_or(|teacher| teacher == ICL);
    // A part of the mixture that counts nothing is not computed.
    let counts = |weight: Option<f64>, default: f64| args.objective == Mixed && weight.unwrap_or(default) != 0.0;
    let states = args.objective == Activations || counts(args.activation_weight, ACTIVATION_WEIGHT);
    let distributions = args.objective == Logits || counts(args.logit_weight, LOGIT_WEIGHT);
    let of_states = "beside --objective activations, or mixed with an --activation-weight above 0";
    let of_distributions = "beside --objective logits, or mixed with a --logit-weight above 0";
    let taught = args.objective != Ce;
    for (flag, given, read, expected) in [
        ("--teacher", args.teacher.is_some(), taught, "beside --objective activations, logits or mixed"),
        ("--demos", args.demos.is_some(), taught && icl, "beside --teacher icl of an objective that has a teacher"),
        ("--demos-separator", args.demos_separator.is_some(), taught && icl, "beside --teacher icl"),
        ("--objective-sites", args.objective_sites.is_some(), states, of_states),
        ("--objective-layers", args.objective_layers.is_some(), states, of_states),
        ("--ce-weight", args.ce_weight.is_some(), args.objective == Mixed, "beside --objective mixed"),
        ("--activation-weight", args.activation_weight.is_some(), args.objective == Mixed, "beside --objective mixed"),
        ("--logit-weight", args.logit_weight.is_some(), args.objective == Mixed, "beside --objective mixed"),
        ("--temperature", args.temperature.is_some(), distributions, of_distributions),
    ] {
        if given && !read {
            let objective = serde_json::json!(args.objective);
            let teacher = args.teacher.as_deref().map_or(String::new(), |teacher| format!(" with --teacher {teacher}"));
            return Err(Error::argument(flag, expected, format!("--objective {objective}{teacher}").replace('"', "")));
        }
    }
    Ok(())
}

/// Whether the teacher is the base model behind demonstrations.
pub fn in_context(args: &ObjectiveArgs) -> bool {
    args.objective != ObjectiveKind::Ce && args.teacher.as_deref().is_none_or(|teacher| teacher == ICL)
}

/// The teachers of a file's examples.
pub struct TaughtRows<'a> {
    /// The file of the examples.
    pub path: &'a Path,
    /// Its rows as they are.
    pub rows: &'a [Row],
    /// Its sequences.
    pub prepared: &'a Prepared,
    /// None where they need none.
    pub tokenizer: Option<&'a Tokenizer>,
    /// Whether an EOS is appended.
    pub add_eos: bool,
}

/// The teachers of the sequences, of each seed; a table, where it is a file, goes into the objective.
pub fn teachers(
    args: &ObjectiveArgs,
    objective: &mut Objective,
    files: &ModelFiles,
    taught: &TaughtRows<'_>,
    seeds: &[u64],
) -> Result<BTreeMap<u64, Vec<SequenceTeacher>>> {
    let TaughtRows { path, rows, prepared, tokenizer, add_eos } = *taught;
    if in_context(args) {
        let own = |row: &&usize| matches!(rows[**row].example, Example::Demonstrated { .. });
        let with_own = prepared.rows.iter().filter(own).count();
        if args.demos.is_some() && with_own > 0 {
            if with_own == prepared.rows.len() {
                let expected =
                    format!("none, since all examples of {} have demonstrations of their own", path.display());
                return Err(Error::argument("--demos", expected, args.demos.unwrap_or_default()));
            }
            log::warn!(
                "{}: {with_own} of {} examples have demonstrations of their own, which --demos does not change",
                path.display(),
                prepared.rows.len()
            );
        }
        let others = |row: usize| {
            let differs = |&&other: &&usize| rows[other].example != rows[row].example;
            prepared.rows.iter().filter(differs).take(DEMOS).count()
        };
        let demos = args.demos.unwrap_or_else(|| prepared.rows.iter().map(|&row| others(row)).min().unwrap_or(0));
        let separator = args.demos_separator.as_deref().map_or("\n\n".to_owned(), texts::unescaped);
        let options = ContextOptions { demos, separator, add_eos };
        let of_seed = |&seed: &u64| {
            let vocab = files.config.vocab_size;
            Ok((seed, teachers::in_context(path, rows, prepared, tokenizer, vocab, &options, seed)?))
        };
        return seeds.iter().map(of_seed).collect();
    }
    if prepared.truncated > 0 {
        let expected = "no truncated example beside a teacher's file, whose documents end as the examples do";
        return Err(Error::argument("--max-length", expected, format!("{} of them", prepared.truncated)));
    }
    let file = ActivationFile::open(args.teacher.as_deref().unwrap_or_default())?;
    let wanted = (&objective.selection, objective.logits > 0.0);
    let (found, table) = teachers::captured(&file, &files.config, wanted, prepared)?;
    objective.table = Some(Arc::new(table));
    Ok(seeds.iter().map(|&seed| (seed, found.clone())).collect())
}

/// What of the teachers is to be the same where a training goes on, to be named rather than a hash of all that they read; none for
/// the cross-entropy alone.
pub fn identity(args: &ObjectiveArgs) -> Option<Value> {
    let of_context = json!({
        "demos": args.demos.unwrap_or(DEMOS),
        "demos_separator": args.demos_separator.as_deref().map_or("\n\n".to_owned(), texts::unescaped),
    });
    match (args.objective, in_context(args)) {
        (ObjectiveKind::Ce, _) => None,
        (_, true) => Some(json!({ "teacher": "icl", "of_context": of_context })),
        (_, false) => Some(json!({ "teacher": "captured" })),
    }
}
