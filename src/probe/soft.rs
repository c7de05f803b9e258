//! The arms of soft prompts (Sun et al., arXiv 2302.11521), beside the others' on the same queries.
//!
//! | arm | input | learnt from |
//! |---|---|---|
//! | PT | the prompt, then the query | the prompt, then each of the seed's demonstrations as question and answer |
//! | IPT | the prompt, the demonstrations, the query | the same, but before each demonstration stand the seed's others |
//!
//! Only the prompt is learnt. States are read at the query's last token, as everywhere, whatever rows stand before it.

use serde::{Deserialize, Serialize};

use super::arms::{Reading, read};
use super::packing::Group;
use super::plan::{Plan, SeedPlan};
use super::report::{ArmLayer, Pair, SoftReport, layer_name};
use super::similarity::compare;
use super::statistics::MeanSd;
use super::tuning::tune;
use super::{Count, Phase, ProbeSettings, Progress, asked, mean_loss};
use crate::backend::Backend;
use crate::formats::adapter::{PromptAdapter, PromptConfig, PromptKind};
use crate::model::{Adaptation, Model, PromptStart};
use crate::pack::Label;
use crate::task::metrics::score;
use crate::task::prompts::Lesson;
use crate::{Error, Result};

/// An arm of soft prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SoftArm {
    /// Prompt tuning.
    Pt,
    /// Prompt tuning with demonstrations.
    Ipt,
}

impl SoftArm {
    /// As reports and the command line spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pt => "pt",
            Self::Ipt => "ipt",
        }
    }
}

/// How soft prompts are tuned. Defaults are our own choices, not those of a paper.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SoftSettings {
    /// The arms (default none).
    pub arms: Vec<SoftArm>,
    /// Rows of a prompt (default 20). It begins as embeddings of random tokens.
    pub num_virtual_tokens: usize,
    /// Learning rate, the same at every step (default 1e-2).
    pub learning_rate: f64,
    /// Passes over the demonstrations (default 10).
    pub epochs: f64,
}

impl Default for SoftSettings {
    fn default() -> Self {
        Self { arms: Vec::new(), num_virtual_tokens: 20, learning_rate: 1e-2, epochs: 10.0 }
    }
}

impl SoftSettings {
    /// Checks what the settings of the other tuning do not share.
    pub(super) fn validate(&self) -> Result<()> {
        let rows = self.num_virtual_tokens;
        if rows == 0 || rows > PromptConfig::MAX_ROWS {
            return Err(Error::argument("--num-virtual-tokens", format!("from 1 to {}", PromptConfig::MAX_ROWS), rows));
        }
        for (i, arm) in self.arms.iter().enumerate() {
            if self.arms[..i].contains(arm) {
                return Err(Error::argument("--arms", "each arm once", format!("{} twice", arm.name())));
            }
        }
        Ok(())
    }
}

/// What the arms before have read, by seed.
pub(super) struct Others<'a> {
    pub anchor: &'a Reading,
    /// Name and readings.
    pub arms: Vec<(&'static str, Vec<&'a Reading>)>,
}

/// What an arm gives.
pub(super) struct Outcome {
    /// One for each seed.
    pub reports: Vec<SoftReport>,
    pub prompts: Vec<PromptAdapter>,
    pub readings: Vec<Reading>,
    /// Tokens of the sequences of all steps, and rows read.
    pub tokens: (usize, usize),
}

/// Tunes and reads one arm.
#[allow(clippy::too_many_arguments)]
pub(super) fn run<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    name: &str,
    plan: &Plan,
    settings: &ProbeSettings,
    arm: SoftArm,
    others: &Others<'_>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Outcome> {
    let rows = settings.soft.num_virtual_tokens;
    let mut start = Adaptation::zeros(backend, &model.config, PromptKind::PromptTuning, vec![rows; plan.seeds.len()])?;
    for (run, seed) in plan.seeds.iter().enumerate() {
        let begun = PromptStart::SampleVocab.rows(backend, model, rows, seed.seed)?;
        start.set_prompt(backend, run, &begun)?;
    }
    let lessons: Vec<&[Lesson]> = plan.seeds.iter().map(|seed| lessons(seed, arm)).collect();
    let SoftSettings { learning_rate, epochs, .. } = settings.soft;
    let own = ProbeSettings { learning_rate, epochs, ..settings.clone() };
    let tuned = tune(backend, model, start, plan, &lessons, &own, Phase::TuneSoft(arm), progress)?;

    let groups = plan.seeds.iter().enumerate().flat_map(|(run, seed)| {
        let (label, queries) = match arm {
            SoftArm::Pt => (Label::Query, plan.prompts()),
            SoftArm::Ipt => (Label::Demonstration, seed.icl_prompts()),
        };
        let learnt = lessons[run].iter().map(asked).collect();
        [(label, queries), (Label::Query, learnt)].map(|(label, prompts)| Group {
            run: Some(run),
            soft: rows,
            label,
            prompts,
        })
    });
    let groups: Vec<Group> = groups.collect();
    let total = groups.iter().map(|g| g.prompts.len()).sum();
    let mut count = Count { phase: Phase::Soft(arm), done: 0, total, progress };
    let (readings, read_rows) = read(backend, model, Some(&tuned.adaptation), &groups, settings.rows, &mut count)?;

    let right = plan.right();
    let config = &model.config;
    let report = |(s, seed): (usize, &SeedPlan)| {
        let (queries, learnt) = (&readings[2 * s], &readings[2 * s + 1]);
        let scored = score(&queries.log_probs, &right, plan.labels.is_some());
        SoftReport {
            arm,
            accuracy: scored.accuracy,
            log_prob: scored.log_prob,
            loss: tuned.losses[s].clone(),
            final_loss: mean_loss(learnt, lessons[s]),
            adapter: None,
            layers: (0..queries.states.len())
                .map(|l| layer(others, s, queries, l, config.hidden_size, seed.seed))
                .collect(),
        }
    };
    let reports = plan.seeds.iter().enumerate().map(report).collect();
    let config = PromptConfig {
        kind: PromptKind::PromptTuning,
        num_virtual_tokens: rows,
        token_dim: tuned.adaptation.layout.width,
        num_layers: config.num_hidden_layers,
        num_attention_heads: config.num_attention_heads,
        encoder_hidden_size: None,
        prefix_projection: false,
        base_model_name_or_path: Some(name.to_string()),
    };
    let prompts =
        (0..plan.seeds.len()).map(|run| tuned.adaptation.prompt(backend, run, &config)).collect::<Result<_>>()?;
    let readings = readings.into_iter().step_by(2).collect();
    Ok(Outcome { reports, prompts, readings, tokens: (tuned.tokens, read_rows) })
}

fn lessons(seed: &SeedPlan, arm: SoftArm) -> &[Lesson] {
    match arm {
        SoftArm::Pt => &seed.train,
        SoftArm::Ipt => &seed.ipt_train,
    }
}

/// An arm at one layer beside all before it.
fn layer(others: &Others<'_>, s: usize, own: &Reading, l: usize, width: usize, seed: u64) -> ArmLayer {
    let (anchor, states) = (&others.anchor.states[l], &own.states[l]);
    let mut with_anchor = MeanSd::of([]);
    let pairs = others.arms.iter().map(|(name, readings)| {
        let found = compare(anchor, &readings[s].states[l], states, width, seed, l);
        with_anchor = MeanSd::of(found.anchor_it);
        Pair {
            with: (*name).to_owned(),
            cosine: MeanSd::of(found.icl_it),
            update: MeanSd::of(found.update),
            update_shuffled: MeanSd::of(found.update_shuffled),
        }
    });
    let pairs = pairs.collect();
    ArmLayer { layer: layer_name(l, own.states.len()), anchor: with_anchor, pairs }
}
