//! `generate`: continuations of prompts.

use std::io::Write;

use serde_json::json;

use super::args::GenerateArgs;
use super::device::{Job, dispatch};
use super::resolve::{self, ModelFiles};
use super::{Failure, output, texts};
use crate::backend::Backend;
use crate::formats::adapter::Adapter;
use crate::formats::generation_config::{Decoding, GenerationDefaults};
use crate::formats::stops::Stops;
use crate::formats::tokenizer::Tokenizer;
use crate::model::{Adaptation, GenerationConfig, Model, Prompt, Sampling};
use crate::{Error, Result};

pub fn run(args: &GenerateArgs) -> Result<(), Failure> {
    let files = resolve::model_with_head(&args.model.model, &args.common)?;
    let adapter = resolve::adapter(args.model.adapter.as_deref(), &files)?;
    let sampling = sampling(args)?;
    let asked = asked(args, &files, sampling)?;
    let tokenizer = files.tokenizer()?;
    let prompts = match (&args.input, args.prompt.as_slice()) {
        (Some(input), _) => texts::read(input, &files, args.add_generation_prompt)?,
        (None, []) => return Err(Error::argument("--prompt", "a prompt, or --input FILE", "neither").into()),
        (None, prompts) => prompts
            .iter()
            .map(|text| texts::encode(&tokenizer, text, "--prompt", &files.config))
            .collect::<Result<_>>()?,
    };
    let dtype = files.dtype;
    dispatch(&args.common, dtype, Generate { args, files, adapter, tokenizer, prompts, sampling, asked })
}

fn sampling(args: &GenerateArgs) -> Result<Sampling> {
    let temperature = args.temperature;
    if !(temperature.is_finite() && temperature >= 0.0) {
        return Err(Error::argument("--temperature", "a number from 0", temperature));
    }
    if !(args.top_p > 0.0 && args.top_p <= 1.0) {
        return Err(Error::argument("--top-p", "a number above 0 and up to 1", args.top_p));
    }
    if !args.length_penalty.is_finite() {
        return Err(Error::argument("--length-penalty", "a number", args.length_penalty));
    }
    Ok(match temperature {
        0.0 if args.num_beams == 1 => Sampling::Greedy,
        0.0 => Sampling::Beam { beams: args.num_beams, length_penalty: args.length_penalty },
        temperature => Sampling::Random {
            temperature,
            top_k: (args.top_k > 0).then_some(args.top_k),
            top_p: (args.top_p < 1.0).then_some(args.top_p),
            seed: args.seed,
        },
    })
}

/// What `generation_config.json` asks for, less what flags say otherwise.
fn asked(args: &GenerateArgs, files: &ModelFiles, sampling: Sampling) -> Result<GenerationDefaults> {
    let decoding = match sampling {
        Sampling::Greedy => Decoding::Greedy,
        Sampling::Beam { .. } => Decoding::Beams,
        Sampling::Random { .. } => Decoding::Sampling,
    };
    let mut asked = GenerationDefaults::load(&files.path, decoding)?;
    if let Some(penalty) = args.repetition_penalty {
        if !(penalty.is_finite() && penalty > 0.0) {
            return Err(Error::argument("--repetition-penalty", "a number above 0", penalty));
        }
        asked.repetition_penalty = penalty;
    }
    if let Some(tokens) = args.min_new_tokens {
        asked.min_new_tokens = tokens;
    }
    Ok(asked)
}

struct Generate<'a> {
    args: &'a GenerateArgs,
    files: ModelFiles,
    adapter: Option<Adapter>,
    tokenizer: Tokenizer,
    prompts: Vec<Vec<u32>>,
    sampling: Sampling,
    asked: GenerationDefaults,
}

impl Job for Generate<'_> {
    fn run<B: Backend>(self, mut backend: B) -> Result<(), Failure> {
        let Self { args, files, adapter, tokenizer, prompts, sampling, asked } = self;
        let model = Model::new(&mut backend, &files.config, &files.checkpoint)?;
        let adaptation = match &adapter {
            Some(adapter) => Some(Adaptation::of_adapter(&mut backend, &model.config, adapter)?),
            None => None,
        };
        let run = adaptation.as_ref().map(|_| 0);
        let stops = Stops::new(&tokenizer, args.stop.iter().map(|stop| stop.replace("\\n", "\n")));
        let ends = |ids: &[u32]| stops.reached(ids);
        let generation = GenerationConfig {
            max_length: args.max_length,
            stop: tokenizer.stops().to_vec(),
            ends: (!args.stop.is_empty()).then_some(&ends),
            sampling,
            repetition_penalty: asked.repetition_penalty,
            min_new_tokens: asked.min_new_tokens,
            min_length: asked.min_length,
            ..GenerationConfig::greedy(args.max_new_tokens)
        };
        let inputs: Vec<Prompt> = prompts.iter().map(|ids| Prompt { ids: ids.clone(), run }).collect();
        // One text is shown as it grows; several would interleave, and a stop string must not be seen.
        let growing = inputs.len() == 1 && !args.common.json && args.stop.is_empty();
        let mut stream = tokenizer.stream();
        let mut shown: Result<(), Failure> = Ok(());
        let mut show = |ids: &[u32]| -> Result<(), Failure> {
            let mut out = std::io::stdout().lock();
            for &id in ids {
                out.write_all(stream.push(id)?.as_bytes())?;
            }
            Ok(out.flush()?)
        };
        if growing {
            show(&inputs[0].ids)?;
        }
        let done = model.generate(&mut backend, &inputs, adaptation.as_ref(), &generation, &mut |_, id| {
            if growing && shown.is_ok() {
                shown = show(&[id]);
            }
        })?;
        shown?;
        if growing {
            return output::line(stream.finish()?);
        }
        let mut results = Vec::new();
        for (prompt, tokens) in prompts.iter().zip(&done) {
            let text = stops.text(tokens)?;
            if args.common.json {
                results.push(json!({"prompt_ids": prompt, "ids": tokens, "text": text}));
            } else if args.stop.is_empty() {
                output::line(tokenizer.decode(&[prompt.as_slice(), tokens].concat(), true)?)?;
            } else {
                output::line(tokenizer.decode(prompt, true)? + &text)?;
            }
        }
        if args.common.json {
            output::json(&json!({ "results": results }))?;
        }
        Ok(())
    }
}
