//! Checkpoints from which a training continues bit for bit.
//!
//! `checkpoint-{step}` holds the adapters as PEFT has them (of several runs, in `run-000`, `run-001`, …), `optimizer.safetensors`
//! (parameters and moments in full precision) and `trainer_state.json` (steps, cursors in the data, the log's state, and
//! the settings that a continuation must share). The order of the data and dropout are functions of seed, epoch and
//! step, so that there is no other state of random numbers. The directory appears when it is complete.
//!
//! | a continuation with | ends |
//! |---|---|
//! | the same settings, with or without gradient checkpointing | in the same bytes as a training without an interruption |
//! | another length, of a constant schedule without a warm-up by ratio, or the same number of steps said in another way | in the bytes of an undisturbed training of that length |
//! | another length, of any other schedule | it is refused, for the steps done had other learning rates |
//! | another model, of other files under its name too | it is refused; a checkpoint without `identity.files` goes on, with a warning |
//! | other passes of as many sequences a step | as one without an interruption but for rounding: sums have another order |

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::data::{TrainSequence, words};
use super::log::LogState;
use super::order::DataCursor;
use super::report_to::run_folder;
use super::run::RunState;
use super::scores::RunScores;
use super::trainable::Trainable;
use super::trainer::Trainer;
use crate::backend::Backend;
use crate::formats::adapter::{self, AdapterConfig, Table};
use crate::formats::json::difference;
use crate::formats::safetensors::{Checkpoint, Dtype, Tensor, write};
use crate::formats::{atomic, json as files};
use crate::model::Model;
use crate::{Error, Result, hash};

const PREFIX: &str = "checkpoint-";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const STATE_FILE: &str = "trainer_state.json";
/// Version of the directory's content.
const FORMAT: u32 = 2;

/// How far a run is.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RunProgress {
    cursor: DataCursor,
    total_tokens: u64,
    /// Sequences of a pass.
    batch_size: usize,
}

/// The content of `trainer_state.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    format: u32,
    global_step: u64,
    runs: Vec<RunProgress>,
    log: LogState,
    /// The loss of each run's last step, where there are several runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    losses: Vec<f64>,
    /// The evaluations of each run, where there are any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    scores: Vec<RunScores>,
    settings: Value,
}

/// The checkpoint of the most steps in `dir`, if there is one.
///
/// # Errors
/// `dir` exists and cannot be listed.
pub fn latest(dir: &Path) -> Result<Option<PathBuf>> {
    Ok(atomic::numbered_dirs(dir, PREFIX)?.pop().map(|(_, path)| path))
}

/// Removes the checkpoints of the fewest steps until there are at most `limit`.
///
/// # Errors
/// The file system refuses.
pub fn prune(dir: &Path, limit: usize) -> Result<()> {
    let found = atomic::numbered_dirs(dir, PREFIX)?;
    let surplus = found.len().saturating_sub(limit);
    found.iter().take(surplus).try_for_each(|(_, path)| atomic::remove_dir(path))
}

impl<B: Backend> Trainer<B> {
    /// Writes `dir/checkpoint-{steps}`. `configs` describe the adapters, one a run (none where weights are trained);
    /// `identity` is what the caller wants a continuation to share, beside settings and data.
    ///
    /// # Errors
    /// The device fails, or the files cannot be written.
    ///
    /// # Panics
    /// If a step has been begun and not reported.
    pub fn save(
        &self,
        backend: &mut B,
        dir: &Path,
        configs: &[AdapterConfig],
        identity: &Value,
        log: LogState,
    ) -> Result<PathBuf> {
        assert!(!self.is_ahead(), "checkpoint: a step has been begun after step {}", self.steps);
        let progress = |run: &RunState| RunProgress {
            cursor: run.order.cursor(),
            total_tokens: run.total_tokens,
            batch_size: run.settings.batch_size,
        };
        let state = State {
            format: FORMAT,
            global_step: self.steps,
            runs: self.runs.iter().map(progress).collect(),
            log,
            losses: if self.runs.len() > 1 { self.runs.iter().map(|run| run.loss).collect() } else { Vec::new() },
            scores: self.scores().to_vec(),
            settings: self.fingerprint(backend, identity),
        };
        let path = dir.join(format!("{PREFIX}{}", self.steps));
        let several = self.runs.len() > 1;
        let folders: Vec<String> = (0..self.runs.len()).map(run_folder).collect();
        let mut owned = vec![OPTIMIZER_FILE, STATE_FILE];
        owned.extend(adapter::FILES);
        owned.extend(folders.iter().map(String::as_str));
        atomic::replace_dir(&path, &owned, |stage| {
            if let Some(adaptation) = self.trainable.adaptation() {
                assert!(
                    configs.len() == adaptation.runs,
                    "checkpoint: {} configs, {} runs",
                    configs.len(),
                    adaptation.runs
                );
                for (run, config) in configs.iter().enumerate() {
                    let adapter = self.adapter(backend, run, config)?;
                    adapter.write(if several { stage.join(&folders[run]) } else { stage.to_path_buf() })?;
                }
            }
            self.save_tensors(backend, &stage.join(OPTIMIZER_FILE))?;
            atomic::write_json(stage.join(STATE_FILE), &state)
        })?;
        Ok(path)
    }

    /// Continues from a checkpoint of the same training: the steps that follow are bit for bit those that would have
    /// followed then, if passes are of as many sequences as then. Returns the state of its log.
    ///
    /// # Errors
    /// A checkpoint that is malformed, or of other settings, data or `identity`, naming the first difference.
    pub fn restore(
        &mut self,
        backend: &mut B,
        model: &mut Model<B>,
        path: &Path,
        identity: &Value,
    ) -> Result<LogState> {
        let file = path.join(STATE_FILE);
        let value = files::read(&file)?;
        let version = value.get("format").unwrap_or(&Value::Null);
        if version != &json!(FORMAT) {
            return Err(Error::field(&file, "format", FORMAT.to_string(), version.to_string()));
        }
        let state: State = serde_json::from_value(value).map_err(Error::file(&file))?;
        // Numbers pass through text on both sides, so that equal ones are equal.
        let ours = self.fingerprint(backend, identity).to_string();
        let mut ours = files::parse("settings", &ours)?;
        files::forgive_missing_files(&file, &mut ours["identity"], &state.settings["identity"]);
        if let Some((field, expected, found)) = difference("settings", &ours, &state.settings) {
            let reason = match field.rsplit('.').next() {
                Some("total_steps") => ", on which the learning rates of its schedule depend",
                _ => "",
            };
            let expected = format!("{expected} as in this training{reason}");
            return Err(Error::field(&file, field, expected, found));
        }
        if state.global_step > self.total_steps() {
            let expected = format!("at most {}", self.total_steps());
            return Err(Error::field(&file, "global_step", expected, state.global_step.to_string()));
        }
        if state.runs.len() != self.runs.len() {
            return Err(Error::field(&file, "runs", self.runs.len().to_string(), state.runs.len().to_string()));
        }
        let scores = self.scores().len();
        if state.scores.len() != scores {
            return Err(Error::field(&file, "scores", scores.to_string(), state.scores.len().to_string()));
        }
        if ![0, self.runs.len()].contains(&state.losses.len()) {
            return Err(Error::field(&file, "losses", self.runs.len().to_string(), state.losses.len().to_string()));
        }
        self.check_last_scores(&file, &state)?;
        self.restore_tensors(backend, &path.join(OPTIMIZER_FILE))?;
        for (r, (run, progress)) in self.runs.iter_mut().zip(&state.runs).enumerate() {
            if !run.order.seek(progress.cursor) {
                let expected = format!("a position in {} sequences", run.data.len());
                let found = progress.cursor.position.to_string();
                return Err(Error::field(&file, format!("runs[{r}].cursor.position"), expected, found));
            }
            if progress.batch_size != run.settings.batch_size {
                let (now, before) = (run.settings.batch_size, progress.batch_size);
                log::warn!(
                    "{}: run {r} had passes of {before} sequences, and continues with {now}: the same steps, but for the \
                     rounding of their sums",
                    path.display()
                );
            }
            run.total_tokens = progress.total_tokens;
            run.loss = state.losses.get(r).copied().unwrap_or_default();
            run.stopped = state.scores.get(r).and_then(|scores| scores.stopped);
        }
        if let Some(evaluator) = &mut self.evaluator {
            evaluator.scores = state.scores;
        }
        self.steps = state.global_step;
        self.discard_in_flight();
        self.trainable.refresh(backend, model);
        Ok(state.log)
    }

    /// Refuses an evaluation after a run's last step that a training of this length does not make.
    fn check_last_scores(&self, file: &Path, state: &State) -> Result<()> {
        let Some(evaluator) = &self.evaluator else { return Ok(()) };
        let every = evaluator.settings.every;
        for (r, (scores, run)) in state.scores.iter().zip(&self.runs).enumerate() {
            let Some(step) = scores.last.as_ref().map(|score| score.step) else { continue };
            if !step.is_multiple_of(every) && step != run.total_steps {
                let expected =
                    format!("a multiple of {every}, the steps between evaluations of a run of {}", run.total_steps);
                return Err(Error::field(file, format!("scores[{r}].last.step"), expected, step.to_string()));
            }
        }
        Ok(())
    }

    fn save_tensors(&self, backend: &mut B, path: &Path) -> Result<()> {
        let (runs, stride) = self.trainable.shape();
        let mut host = Vec::new();
        for (name, buffer) in [("params", self.trainable.params()), ("m", &self.optimizer.m), ("v", &self.optimizer.v)]
        {
            let mut values = vec![B::Element::default(); runs * stride];
            backend.download(&mut values, buffer, 0)?;
            host.push((name, values));
        }
        backend.sync()?;
        let best = self.evaluator.as_ref().map(|evaluator| evaluator.best.clone()).filter(|best| !best.is_empty());
        host.extend(best.map(|best| ("best", best)));
        let shape = [runs, stride];
        let tensors: Vec<Tensor> = host
            .iter()
            .map(|(name, values)| Tensor {
                name,
                dtype: dtype::<B>(),
                shape: &shape,
                data: bytemuck::cast_slice(values),
            })
            .collect();
        write(path, &tensors, &[])
    }

    fn restore_tensors(&mut self, backend: &mut B, path: &Path) -> Result<()> {
        let (runs, stride) = self.trainable.shape();
        let file = Checkpoint::open(path)?;
        let best = self.evaluator.as_mut().map(|evaluator| &mut evaluator.best).filter(|best| !best.is_empty());
        let is_ours = |name: &str| ["params", "m", "v"].contains(&name) || (name == "best" && best.is_some());
        file.deny_unexpected(is_ours)?;
        file.check_finite()?;
        let values = |name: &str| -> Result<Vec<B::Element>> {
            let view = file.expect(name, &[runs, stride])?;
            if view.dtype != dtype::<B>() {
                return Err(Error::field(path, name, dtype::<B>().to_string(), view.dtype.to_string()));
            }
            let elements = view.data.chunks_exact(size_of::<B::Element>());
            Ok(elements.map(bytemuck::pod_read_unaligned).collect())
        };
        if let Some(best) = best {
            *best = values("best")?;
        }
        let buffers =
            [("params", self.trainable.params_mut()), ("m", &mut self.optimizer.m), ("v", &mut self.optimizer.v)];
        for (name, buffer) in buffers {
            backend.upload(buffer, 0, &values(name)?)?;
        }
        backend.sync()
    }

    /// Everything that decides what a training computes, to be compared by [`Trainer::restore`].
    fn fingerprint(&self, backend: &B, identity: &Value) -> Value {
        let run = |run: &RunState| {
            json!({
                "settings": run.settings.fingerprint(run.total_steps),
                // What a stream makes is the caller's to identify.
                "sequences": if self.stream.is_some() { 0 } else { run.data.len() },
                "data": if self.stream.is_some() { "stream".to_owned() } else { format!("{:016x}", data_hash(&run.data)) },
            })
        };
        let runs: Vec<Value> = self.runs.iter().map(run).collect();
        let mut parts = Map::new();
        if let Some(adaptation) = self.trainable.adaptation() {
            let shapes = adaptation.layout.shapes();
            for shape in shapes {
                let of = if shapes.len() > 1 { format!("runs[{}].", shape.runs.first) } else { String::new() };
                for at in Table::ALL {
                    let site = shape.table(at);
                    parts.extend(site.map(|site| {
                        let name = format!("{of}{}", adaptation.layout.family.table_path(at));
                        (name, json!(format!("rank {}, scale {}", site.rank, site.scale)))
                    }));
                }
                for module in shape.modules() {
                    let name = format!("{of}layers.{}.{}", module.layer, module.target.name());
                    parts.insert(name, module.describe().into());
                }
                for vector in shape.vectors() {
                    let name = format!("{of}layers.{}.{}", vector.layer, vector.target.name());
                    let what = if vector.feedforward { "inputs" } else { "outputs" };
                    parts.insert(name, format!("vector of {what} (IA3)").into());
                }
            }
            if let Some(tokens) = &adaptation.layout.tokens {
                parts.insert("trainable_token_indices".into(), json!(tokens.ids));
            }
            if let Some(saved) = adaptation.layout.saved_modules() {
                parts.insert("modules_to_save".into(), json!(saved.layout.names(adaptation.layout.family)));
                parts.insert("ensure_weight_tying".into(), json!(saved.ties_head));
            }
            if adaptation.layout.prompt.is_some() {
                parts.insert("prompts".into(), json!(adaptation.prompts));
            }
            parts.insert("prefix".into(), json!(adaptation.layout.prefix.is_some()));
        }
        if let Trainable::Reparameterized(encoder) = &self.trainable {
            let form = format!("{} of width {}", encoder.shape.kind.name(), encoder.shape.hidden);
            parts.insert("encoder".into(), form.into());
        }
        let mut whole = json!({
            "identity": identity,
            "backend": backend.name(),
            "parameters": self.trainable.shape().1,
            "adapter": parts,
            "dropout": self.options.dropout,
            "row_budget": self.options.row_budget,
        });
        if let Some(alpha) = self.options.neftune_noise_alpha {
            whole["neftune_noise_alpha"] = json!(alpha);
        }
        // Before the data, whose hash has the teachers too: the first difference is what is named.
        if let Some(of) = &self.objective {
            whole["objective"] = of.fingerprint();
        }
        whole["runs"] = json!(runs);
        if let Some(evaluator) = &self.evaluator {
            whole["evaluation"] = evaluator.settings.fingerprint();
        }
        whole
    }
}

fn dtype<B: Backend>() -> Dtype {
    if size_of::<B::Element>() == 8 { Dtype::F64 } else { Dtype::F32 }
}

fn data_hash(data: &[TrainSequence]) -> u64 {
    hash::fnv1a(words(data).flat_map(u64::to_le_bytes))
}
