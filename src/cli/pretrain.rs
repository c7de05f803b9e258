//! `pretrain`: trains a small model from scratch, on episodes of the synthetic world.

use serde_json::{Map, Value, json};

use super::args::{CommonArgs, PretrainArgs};
use super::device::{Job, dispatch};
use super::{Failure, output, resolve, training};
use crate::arch::{Dtype, ModelConfig};
use crate::backend::Backend;
use crate::formats::atomic;
use crate::formats::lines::LineFile;
use crate::formats::safetensors;
use crate::formats::tokenizer::{self, Tokenizer};
use crate::model::{FullTuning, Model};
use crate::task::synthetic::evaluate::{Set, accuracies, check_labels, encode};
use crate::task::synthetic::{self, Curriculum, Episode};
use crate::train::data::TrainSequence;
use crate::train::fit::Output;
use crate::train::schedule::{Schedule, Warmup};
use crate::train::settings::{Length, RunSettings};
use crate::train::trainable::Trainable;
use crate::train::trainer::{StepReport, Stream, Trainer, TrainerOptions};
use crate::{Error, Result};

/// Number of texts that the tokenizer is trained on, the same for every seed.
const CORPUS: usize = 20_000;
/// Numbers of demonstrations (shots) of an evaluation.
const SHOTS: [usize; 6] = [0, 1, 2, 4, 8, 16];
/// Seed of the evaluation's episodes.
const EVAL_SEED: u64 = 99;

pub fn run(args: &PretrainArgs) -> Result<(), Failure> {
    training::check_logs(&args.checkpoints)?;
    check_common(&args.common)?;
    let text = tokenizer::train(&synthetic::corpus(0, CORPUS), args.vocab_size)?;
    let tokenizer_config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokenizer::BOS,
        "eos_token": tokenizer::EOS,
        "clean_up_tokenization_spaces": false,
        "model_max_length": args.max_position_embeddings,
    });
    let tokenizer = Tokenizer::parse(&args.out, &text, &tokenizer_config.to_string())?;
    evaluated(args).try_for_each(|(_, episodes)| check_labels(&tokenizer, &episodes)).map_err(|error| match error {
        Error::Field { field, found, .. } => {
            let expected = format!("so many that each label is a token ({field} is {found})");
            Error::argument("--vocab-size", expected, args.vocab_size)
        }
        other => other,
    })?;
    let written = written_config(args, tokenizer.vocab_size());
    let config = ModelConfig::parse(args.out.join("config.json"), &written.to_string()).map_err(as_argument)?;
    let settings = RunSettings {
        seed: args.seed,
        length: Length::Steps(args.max_steps),
        batch_size: args.batch_size,
        learning_rate: args.learning_rate,
        schedule: Schedule::Cosine,
        min_lr_rate: args.min_lr_rate,
        warmup: Warmup::Steps(args.warmup_steps),
        beta1: args.betas.adam_beta1,
        beta2: args.betas.adam_beta2,
        weight_decay: args.regularization.weight_decay,
        max_grad_norm: resolve::clip_threshold(&args.regularization),
        ..RunSettings::default()
    };
    settings.validate()?;
    let files = [("config.json", written), ("tokenizer_config.json", tokenizer_config)];
    dispatch(&args.common, Dtype::F32, Pretrain { args, config, settings, tokenizer, text, files })
}

/// The episodes of an evaluation.
fn evaluated(args: &PretrainArgs) -> impl Iterator<Item = (Set, Vec<Episode>)> {
    let (count, lines) = (args.eval_episodes, SHOTS.iter().max().copied().unwrap_or(0) + 1);
    Set::ALL.into_iter().map(move |set| (set, set.episodes(EVAL_SEED, count, lines)))
}

/// Refuses flags of a model that is there already.
fn check_common(common: &CommonArgs) -> Result<()> {
    let CommonArgs { revision, load_in, load_in_cache, tokenizer, .. } = common;
    for (flag, given) in [
        ("--revision", revision.is_some()),
        ("--load-in", load_in.is_some()),
        ("--load-in-cache", load_in_cache.is_some()),
        ("--tokenizer", tokenizer.is_some()),
    ] {
        if given {
            return Err(Error::argument(flag, "none, since model and tokenizer are made here", "one"));
        }
    }
    Ok(())
}

/// An error of a field of a configuration that nobody has written yet, as that of the argument of its name.
fn as_argument(error: Error) -> Error {
    match error {
        Error::Field { field, expected, found, .. } => Error::Argument { name: field, expected, found },
        other => other,
    }
}

/// `config.json` of the model.
fn written_config(args: &PretrainArgs, vocab: usize) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": args.hidden_size,
        "intermediate_size": args.intermediate_size,
        "num_hidden_layers": args.num_hidden_layers,
        "num_attention_heads": args.num_attention_heads,
        "num_key_value_heads": args.num_key_value_heads,
        "max_position_embeddings": args.max_position_embeddings,
        "initializer_range": args.initializer_range,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "attention_bias": false,
        "mlp_bias": false,
        "tie_word_embeddings": true,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "bfloat16",
    })
}

struct Pretrain<'a> {
    args: &'a PretrainArgs,
    config: ModelConfig,
    settings: RunSettings,
    tokenizer: Tokenizer,
    /// `tokenizer.json`.
    text: String,
    files: [(&'static str, Value); 2],
}

impl Job for Pretrain<'_> {
    fn run<B: Backend>(self, mut backend: B) -> Result<(), Failure> {
        let Self { args, config, settings, tokenizer, text, files } = self;
        let _claim = atomic::Claim::new(&args.out)?;
        let resume = resolve::resume(&args.checkpoints, &args.out)?;
        let (mut model, full) = FullTuning::random(&mut backend, config.clone(), args.initializer_range, args.seed)?;
        let tokenizer = std::sync::Arc::new(tokenizer);
        let curriculum = Curriculum::default();
        let stream = stream(args, curriculum, tokenizer.clone());
        let options = TrainerOptions { row_budget: args.batch_tokens, ..TrainerOptions::default() };
        let mut trainer = Trainer::streaming(&mut backend, &model, full, stream, settings, options)?;
        let identity = json!({ "curriculum": curriculum, "config": files[0].1, "episodes": args.batch_size });
        let output = Output {
            look_steps: Some(args.eval_steps),
            stop_after: args.stop_after,
            ..training::fit_output(&args.out, &args.checkpoints, &[], &identity)
        };
        let mut evaluation = Evaluation { args, tokenizer: &tokenizer, file: None };
        let on_step =
            |backend: &mut B, model: &Model<B>, report: &StepReport| evaluation.step(backend, model, report.step);
        let on_start = || {
            resolve::write_config(&args.out, "pretrain", args)?;
            atomic::write(args.out.join("tokenizer.json"), text.as_bytes())?;
            files.iter().try_for_each(|(name, value)| atomic::write_json(args.out.join(name), value))
        };
        training::fit(&mut backend, &mut model, &mut trainer, &output, resume.as_deref(), on_start, on_step)?;
        let Trainable::Weights(full) = trainer.finish() else { unreachable!("pretrain: weights are trained") };
        full.save(&mut backend, &config, &args.out.join("model.safetensors"), safetensors::Dtype::BF16)?;
        output::line(args.out.display())
    }
}

/// The training data: every step has new episodes.
fn stream(args: &PretrainArgs, curriculum: Curriculum, tokenizer: std::sync::Arc<Tokenizer>) -> Stream {
    let (seed, total, episodes) = (args.seed, args.max_steps, args.batch_size);
    let sequence = move |episode: &Episode| {
        let encoded = encode(&tokenizer, episode)?;
        Ok(TrainSequence::marked(encoded.ids, |i| encoded.learnt[i]))
    };
    Stream {
        batch: Box::new(move |step| {
            synthetic::training(&curriculum, seed, step, total, episodes).iter().map(&sequence).collect()
        }),
        longest: synthetic::LONGEST,
    }
}

/// Evaluates the model, and writes `evaluation.jsonl`.
struct Evaluation<'a> {
    args: &'a PretrainArgs,
    tokenizer: &'a Tokenizer,
    file: Option<LineFile>,
}

impl Evaluation<'_> {
    /// Evaluates the model after the last step, and after every `--eval-steps` steps.
    fn step<B: Backend>(&mut self, backend: &mut B, model: &Model<B>, step: u64) -> Result<()> {
        let args = self.args;
        if !step.is_multiple_of(args.eval_steps) && step != args.stop_after.unwrap_or(args.max_steps) {
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let path = args.out.join("evaluation.jsonl");
                // A resumed training repeats steps: their lines are dropped.
                let earlier = |line: &str| {
                    let value: Option<Value> = serde_json::from_str(line).ok();
                    value.and_then(|v| v.get("step")?.as_u64()).is_some_and(|s| s < step)
                };
                none.insert(LineFile::open(path, earlier)?)
            }
        };
        let mut line = Map::from_iter([("step".to_owned(), json!(step))]);
        for (set, episodes) in evaluated(args) {
            let accuracy = accuracies(backend, model, self.tokenizer, &episodes, args.batch_tokens)?;
            line.insert(set.name().to_owned(), SHOTS.iter().map(|&k| (k.to_string(), json!(accuracy[k]))).collect());
        }
        let line = serde_json::to_string(&line).map_err(Error::file(&args.out))?;
        file.append(&line)
    }
}
