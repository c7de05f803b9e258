//! `generate`: continuations of prompts.

use std::io::Write;
use std::path::Path;

use serde_json::json;

use super::args::GenerateArgs;
use super::device::{Job, dispatch};
use super::resolve::{self, ModelFiles};
use super::{Failure, edits, output, texts};
use crate::backend::Backend;
use crate::formats::adapter::Adapter;
use crate::formats::generation_config::{self, Decoding, GenerationDefaults};
use crate::formats::stops::Stops;
use crate::formats::tokenizer::Tokenizer;
use crate::hooks::{Edit, EditPlan, Naming};
use crate::model::{Adaptation, GenerationConfig, Model, Prompt, Sampling};
use crate::pack::Sequence;
use crate::{Error, Result};

pub fn run(args: &GenerateArgs) -> Result<(), Failure> {
    let files = resolve::model_with_head(&args.model.model, &args.common)?;
    let adapter = resolve::adapter(args.model.adapter.as_deref(), &files)?;
    asked(args, &files, sampling(args)?)?;
    let edits = edits::of_texts(args.edit.as_deref(), &Naming::tl(&files.config))?;
    let (tokenizer, prompts) = match (&args.input, args.prompt.as_slice()) {
        (Some(input), _) => {
            let prompts = texts::read(input, &files, args.add_generation_prompt)?;
            // A model without a tokenizer continues ids.
            let tokenizer = if args.stop.is_empty() { files.tokenizer_if_any()? } else { Some(files.tokenizer()?) };
            (tokenizer, prompts)
        }
        (None, []) => return Err(Error::argument("--prompt", "a prompt, or --input FILE", "neither").into()),
        (None, prompts) => {
            let tokenizer = files.tokenizer()?;
            let encode = |text: &String| texts::encode(&tokenizer, text, "--prompt", &files.config);
            let prompts = prompts.iter().map(encode).collect::<Result<_>>()?;
            (Some(tokenizer), prompts)
        }
    };
    let dtype = files.dtype;
    dispatch(&args.common, dtype, Generate { args, files, adapter, tokenizer, prompts, edits })
}

/// Prompts to be continued as flags say.
pub struct Continuation<'a> {
    args: &'a GenerateArgs,
    /// The model's directory.
    path: &'a Path,
    /// None of a model that has none, whose prompts are token ids.
    tokenizer: Option<&'a Tokenizer>,
    stops: Option<Stops<'a>>,
    edits: &'a [Edit],
    sampling: Sampling,
    asked: GenerationDefaults,
}

impl<'a> Continuation<'a> {
    /// What the flags ask for, of a model whose files are these.
    ///
    /// # Errors
    /// Flags out of their domain.
    pub fn new(
        args: &'a GenerateArgs,
        files: &'a ModelFiles,
        tokenizer: Option<&'a Tokenizer>,
        edits: &'a [Edit],
    ) -> Result<Self> {
        let sampling = sampling(args)?;
        let asked = asked(args, files, sampling)?;
        let strings = || args.stop.iter().map(|stop| texts::unescaped(stop));
        let stops = tokenizer.map(|tokenizer| Stops::new(tokenizer, strings()));
        Ok(Self { args, path: &files.path, tokenizer, stops, edits, sampling, asked })
    }

    /// The continuations of prompts, token ids; `on_token(i, token)` hears of every token of prompt i.
    ///
    /// # Errors
    /// As [`Model::generate`].
    pub fn run<B: Backend>(
        &self,
        backend: &mut B,
        model: &Model<B>,
        adaptation: Option<&Adaptation<B>>,
        prompts: &[Vec<u32>],
        on_token: &mut dyn FnMut(usize, u32),
    ) -> Result<Vec<Vec<u32>>> {
        let run = adaptation.map(|_| 0);
        let ends = |ids: &[u32]| self.stops.as_ref().is_some_and(|stops| stops.reached(ids));
        let generation = GenerationConfig {
            max_length: self.args.max_length,
            stop: match self.tokenizer {
                Some(tokenizer) => tokenizer.stops().to_vec(),
                None => generation_config::ends(self.path)?,
            },
            ends: (!self.args.stop.is_empty()).then_some(&ends),
            sampling: self.sampling,
            repetition_penalty: self.asked.repetition_penalty,
            min_new_tokens: self.asked.min_new_tokens,
            min_length: self.asked.min_length,
            edits: self.edits,
            ..GenerationConfig::greedy(self.args.max_new_tokens)
        };
        let inputs: Vec<Prompt> = prompts.iter().map(|ids| Prompt { ids: ids.clone(), run }).collect();
        model.generate(backend, &inputs, adaptation, &generation, on_token)
    }

    /// A continuation as text, if there is a tokenizer.
    ///
    /// # Errors
    /// Tokens that are no text.
    pub fn text(&self, tokens: &[u32]) -> Result<Option<String>> {
        self.stops.as_ref().map(|stops| stops.text(tokens)).transpose()
    }
}

fn sampling(args: &GenerateArgs) -> Result<Sampling> {
    let temperature = args.temperature;
    if !(temperature.is_finite() && temperature >= 0.0) {
        return Err(Error::argument("--temperature", "a number from 0", temperature));
    }
    if !(args.top_p > 0.0 && args.top_p <= 1.0) {
        return Err(Error::argument("--top-p", "a number above 0 and up to 1", args.top_p));
    }
    if args.num_beams == 0 {
        return Err(Error::argument("--num-beams", "at least 1", 0));
    }
    if !args.length_penalty.is_finite() {
        return Err(Error::argument("--length-penalty", "a number", args.length_penalty));
    }
    let sampling = match temperature {
        0.0 if args.num_beams == 1 => Sampling::Greedy,
        0.0 => Sampling::Beam { beams: args.num_beams, length_penalty: args.length_penalty },
        temperature => Sampling::Random {
            temperature,
            top_k: (args.top_k > 0).then_some(args.top_k),
            top_p: (args.top_p < 1.0).then_some(args.top_p),
            seed: args.seed,
        },
    };
    GenerationConfig { sampling, ..GenerationConfig::greedy(args.max_new_tokens) }.validate()?;
    Ok(sampling)
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
    /// None of a model that has none, whose prompts are token ids.
    tokenizer: Option<Tokenizer>,
    prompts: Vec<Vec<u32>>,
    edits: Vec<Edit>,
}

impl Job for Generate<'_> {
    fn run<B: Backend>(self, mut backend: B) -> Result<(), Failure> {
        let Self { args, mut files, adapter, tokenizer, prompts, edits } = self;
        let mut model = Model::for_generation(&mut backend, &files.config, &mut files.checkpoint)?;
        let adaptation = match &adapter {
            Some(adapter) => Some(Adaptation::applied(&mut backend, &mut model, adapter)?),
            None => None,
        };
        let run = adaptation.as_ref().map(|_| 0);
        // A position that a prompt or the model has not is refused before anything is shown.
        let soft = adaptation.as_ref().map_or(0, |adaptation| adaptation.prompts[0]);
        let mut sequences: Vec<Sequence> = prompts.iter().map(|ids| Sequence::prompted(soft, ids, run)).collect();
        EditPlan::new(&edits, &mut sequences)?;
        let lengths: Vec<usize> = sequences.iter().map(|sequence| sequence.tokens.len()).collect();
        let limits = GenerationConfig { max_length: args.max_length, ..GenerationConfig::greedy(args.max_new_tokens) };
        files.config.check_prompts(&lengths, &limits)?;
        let continuation = Continuation::new(args, &files, tokenizer.as_ref(), &edits)?;
        // One text is shown as it grows; several would interleave, and a stop string must not be seen.
        let growing = prompts.len() == 1 && !args.common.json && args.stop.is_empty();
        let mut stream = tokenizer.as_ref().filter(|_| growing).map(Tokenizer::stream);
        let mut shown: Result<(), Failure> = Ok(());
        let mut show = |ids: &[u32]| -> Result<(), Failure> {
            let Some(stream) = &mut stream else { return Ok(()) };
            let mut out = std::io::stdout().lock();
            for &id in ids {
                out.write_all(stream.push(id)?.as_bytes())?;
            }
            Ok(out.flush()?)
        };
        show(&prompts[0])?;
        // Where nothing is shown as it grows; a continuation may end before.
        let bar = (!growing).then(|| {
            let most = prompts.len().saturating_mul(args.max_new_tokens);
            output::progress(most as u64, "tokens at most").with_message("generating")
        });
        let done = continuation.run(&mut backend, &model, adaptation.as_ref(), &prompts, &mut |_, id| {
            if let Some(bar) = &bar {
                bar.inc(1);
            }
            if shown.is_ok() {
                shown = show(&[id]);
            }
        });
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        let done = done.map_err(|error| files.with_bad_weight(error))?;
        shown?;
        match stream {
            Some(stream) => output::line(stream.finish()?),
            None => print(args, &continuation, &prompts, &done),
        }
    }
}

/// Writes the continuations of all prompts: as text, or, of a model without a tokenizer, as token ids.
fn print(
    args: &GenerateArgs,
    continuation: &Continuation<'_>,
    prompts: &[Vec<u32>],
    done: &[Vec<u32>],
) -> Result<(), Failure> {
    let mut results = Vec::new();
    for (prompt, tokens) in prompts.iter().zip(done) {
        let text = continuation.text(tokens)?;
        let whole = || [prompt.as_slice(), tokens].concat();
        match (continuation.tokenizer, text) {
            (_, text) if args.common.json => {
                results.push(json!({"prompt_ids": prompt, "ids": tokens, "text": text}));
            }
            (Some(tokenizer), Some(text)) if !args.stop.is_empty() => {
                output::line(tokenizer.decode(prompt, true)? + &text)?;
            }
            (Some(tokenizer), _) => output::line(tokenizer.decode(&whole(), true)?)?,
            (None, _) => output::line(json!(whole()))?,
        }
    }
    if args.common.json {
        output::json(&json!({ "results": results }))?;
    }
    Ok(())
}
