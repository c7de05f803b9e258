//! `train-lora`: trains LoRA adapters on a file of examples, and writes them in PEFT's format.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use super::Failure;
use super::args::{DEFAULT_LORA_ALPHA, DEFAULT_R, LoraInit, PeftType, TrainLoraArgs, TrainingArgs};
use super::device::{Job, dispatch};
use super::resolve::{self, ModelFiles};
use super::train_ia3;
use super::training::{self, Apart, Named, Training};
use crate::arch::{Family, ModelConfig};
use crate::backend::Backend;
use crate::formats::adapter::{Adapter, AdapterConfig, InitLoraWeights, LoraAdapter, LoraConfig, Modules};
use crate::model::{Adaptation, Layout, Model, Source, lora_start};
use crate::train::settings::RunSettings;
use crate::train::trainable::Trainable;
use crate::train::trainer::{Run, TrainerOptions};
use crate::{Error, Result};

pub fn run(args: &TrainLoraArgs) -> Result<(), Failure> {
    training::check_logs(&args.training.checkpoints)?;
    if args.peft_type == PeftType::Ia3 {
        return train_ia3::run(args);
    }
    if args.feedforward_modules.is_some() {
        return Err(Error::argument("--feedforward-modules", "--peft-type ia3 beside it", "lora").into());
    }
    let training = &args.training;
    let files = resolve::base_model(&training.base.model, &training.common)?;
    let runs = runs(args, &files)?;
    let seeds = runs.iter().map(|run| run.settings.seed);
    let data = training::data(training, &files, seeds, |_| Ok(()))?;
    let dtype = files.dtype;
    dispatch(&training.common, dtype, Train { args, files, runs, data, apart: Apart::default() })
}

/// The flags in which trainings of LoRAs may differ that are runs of the same passes.
pub const APART: [&str; 5] = ["target_modules", "r", "lora_alpha", "learning_rate", "seed"];

/// Whether a training is one run that may go with others, which differ from it in [`APART`] alone.
pub fn is_run(args: &TrainLoraArgs) -> bool {
    let TrainingArgs { optim, checkpoints, init_adapter, dry_run, .. } = &args.training;
    let one = [args.r.len(), args.lora_alpha.len(), optim.learning_rate.len().max(1), args.seeds as usize];
    let sets = args.target_modules.iter().flatten().any(|word| word.contains(';'));
    one == [1; 4]
        && !sets
        && args.peft_type == PeftType::Lora
        && args.init_lora_weights != LoraInit::Pissa
        && init_adapter.is_none()
        && checkpoints.report_to.is_empty()
        && !dry_run
}

/// Trains what [`is_run`], in the same passes, which may take `memory` bytes; each writes what it would alone, but for
/// checkpoints.
///
/// # Errors
/// As [`run`], of any of them.
pub fn run_together(all: &[&TrainLoraArgs], memory: Option<usize>) -> Result<(), Failure> {
    let mut all = all.to_vec();
    // Those whose adapters are alike are computed together.
    all.sort_by_key(|args| (args.target_modules.clone(), args.r.clone(), args.lora_alpha[0].to_bits()));
    let first = all[0];
    let files = resolve::base_model(&first.training.base.model, &first.training.common)?;
    let runs = all.iter().map(|args| runs(args, &files)).collect::<Result<Vec<_>>>()?.concat();
    assert_eq!(runs.len(), all.len(), "train-lora: a run each");
    let seeds = runs.iter().map(|run| run.settings.seed);
    let data = training::data(&first.training, &files, seeds, |_| Ok(()))?;
    let (dtype, common) = (files.dtype, &first.training.common);
    let runs_apart = all.iter().map(|args| (*args, args.training.out.clone())).collect();
    let apart = Apart { runs: runs_apart, memory };
    dispatch(common, dtype, Train { args: first, files, runs, data, apart })
}

/// One run of the grid.
#[derive(Clone)]
struct LoraRun {
    /// What it begins with; an adapter of zeros stands for a new one, which is initialized on the device.
    init: LoraAdapter,
    /// With the run's learning rate and seed.
    settings: RunSettings,
    /// The flags that have several values, and this run's.
    name: Map<String, Value>,
}

/// A run for every combination of modules, rank, alpha, learning rate and seed. Those whose adapters are alike come
/// together, since they are computed together.
fn runs(args: &TrainLoraArgs, files: &ModelFiles) -> Result<Vec<LoraRun>> {
    let (training, family) = (&args.training, files.config.family);
    let mut sets: Vec<Modules> = match target_sets(args.target_modules.as_deref())? {
        sets if sets.is_empty() => vec![resolve::modules(None, family)],
        sets => sets.iter().map(|set| resolve::modules(Some(set), family)).collect(),
    };
    let layers_to_transform = resolve::layers(&args.layers_to_transform, files.config.num_hidden_layers)?;
    if layers_to_transform.is_some() {
        sets.iter_mut().try_for_each(|set| listed(set, family))?;
    }
    training::distinct("--r", &args.r)?;
    training::distinct("--lora-alpha", &args.lora_alpha)?;
    let rates = training::learning_rates(training)?;
    let seeds = resolve::seeds(training.seed, args.seeds)?;
    // None is given beside an adapter to go on from, which has its own.
    let ranks = if args.r.is_empty() { &[DEFAULT_R][..] } else { &args.r };
    let alphas = if args.lora_alpha.is_empty() { &[DEFAULT_LORA_ALPHA][..] } else { &args.lora_alpha };
    training::check_count(&[sets.len(), ranks.len(), alphas.len(), rates.len(), seeds.len()])?;
    let mut runs = Vec::new();
    for target_modules in &sets {
        for &r in ranks {
            for &lora_alpha in alphas {
                let asked = LoraConfig {
                    use_rslora: args.use_rslora,
                    use_dora: args.use_dora,
                    layers_to_transform: layers_to_transform.clone(),
                    rank_pattern: resolve::pattern("--rank-pattern", &args.rank_pattern, |v| {
                        v.as_u64()?.try_into().ok()
                    })?,
                    alpha_pattern: resolve::pattern("--alpha-pattern", &args.alpha_pattern, Value::as_f64)?,
                    init_lora_weights: scheme(args.init_lora_weights),
                    modules_to_save: args.modules_to_save.clone(),
                    trainable_token_indices: args.trainable_token_indices.clone().into(),
                    ensure_weight_tying: args.ensure_weight_tying,
                    base_model_name_or_path: Some(training.base.model.clone()),
                    ..LoraConfig::new(r, lora_alpha, target_modules.clone())
                };
                let init = init(args, files, asked)?;
                for &rate in &rates {
                    for &seed in &seeds {
                        let settings = training::settings(training, rate, seed)?;
                        let settings = RunSettings { loraplus_lr_ratio: args.loraplus_lr_ratio, ..settings };
                        let flags = [
                            ("target_modules", sets.len(), resolve::modules_name(target_modules)),
                            ("r", args.r.len(), json!(r)),
                            ("lora_alpha", args.lora_alpha.len(), json!(lora_alpha)),
                            ("learning_rate", rates.len(), json!(settings.learning_rate)),
                            ("seed", seeds.len(), json!(seed)),
                        ];
                        let varied = flags.into_iter().filter(|(_, count, _)| *count > 1);
                        let name = varied.map(|(flag, _, value)| (flag.to_owned(), value)).collect();
                        runs.push(LoraRun { init: init.clone(), settings, name });
                    }
                }
            }
        }
    }
    let fixed = training.init_adapter.is_some() || args.init_lora_weights == LoraInit::Pissa;
    let drops = args.lora_dropout.unwrap_or(runs[0].init.config.lora_dropout) > 0.0;
    training::check_seeds(training, args.seeds, fixed && !drops)?;
    let shapes = sets.len() * ranks.len() * alphas.len();
    if training.init_adapter.is_some() && shapes > 1 {
        let expected = "one --r, --lora-alpha and --target-modules beside it, since it has its own";
        return Err(Error::argument("--init-adapter", expected, format!("{shapes} combinations")));
    }
    if args.init_lora_weights == LoraInit::Pissa && args.use_dora {
        let expected = "a start that leaves the base model as it is, beside --use-dora, whose norms are of that";
        return Err(Error::argument("--init-lora-weights", expected, "pissa"));
    }
    if args.init_lora_weights == LoraInit::Pissa && shapes > 1 {
        let expected = "one --r, --lora-alpha and --target-modules beside it, since it changes the base model";
        return Err(Error::argument("--init-lora-weights pissa", expected, format!("{shapes} combinations")));
    }
    Ok(runs)
}

/// Modules as names, of which PEFT takes those of some layers.
fn listed(modules: &mut Modules, family: Family) -> Result<()> {
    match modules {
        Modules::List(_) => Ok(()),
        Modules::AllLinear => {
            *modules = Modules::List(resolve::all_linear(family));
            Ok(())
        }
        Modules::Regex(found) => {
            let expected = "names beside --layers-to-transform; an expression names the layers itself";
            Err(Error::argument("--target-modules", expected, format!("{found:?}")))
        }
    }
}

/// How adapters start, by PEFT's name.
fn scheme(init: LoraInit) -> InitLoraWeights {
    match init {
        LoraInit::True => InitLoraWeights::True,
        LoraInit::False => InitLoraWeights::False,
        LoraInit::Gaussian => InitLoraWeights::Gaussian,
        LoraInit::Orthogonal => InitLoraWeights::Orthogonal,
        LoraInit::Pissa => InitLoraWeights::Pissa,
    }
}

/// The sets of `--target-modules`, which was split at commas: semicolons are between the sets.
fn target_sets(words: Option<&[String]>) -> Result<Vec<Vec<String>>> {
    let Some(words) = words else { return Ok(Vec::new()) };
    let whole = words.join(",");
    let sets: Vec<Vec<String>> = whole.split(';').map(|set| set.split(',').map(str::to_owned).collect()).collect();
    let sorted = |set: &Vec<String>| {
        let mut set = set.clone();
        set.sort_unstable();
        set
    };
    training::distinct("--target-modules", &sets.iter().map(sorted).collect::<Vec<_>>())?;
    if sets.len() > 1 && sets.iter().any(|set| set.iter().all(String::is_empty)) {
        return Err(Error::argument(
            "--target-modules",
            "modules before and after every semicolon",
            format!("{whole:?}"),
        ));
    }
    Ok(sets)
}

/// A pattern as the flag has it.
fn pairs<T: Copy + Into<Value>>(entries: &[(String, T)]) -> Value {
    Value::Object(entries.iter().map(|(key, value)| (key.clone(), (*value).into())).collect())
}

/// What a run begins with.
fn init(args: &TrainLoraArgs, files: &ModelFiles, asked: LoraConfig) -> Result<LoraAdapter> {
    let Some(path) = &args.training.init_adapter else {
        asked.check_tokens(&files.config)?;
        return resolve::zero_adapter(asked, &files.config);
    };
    let dir = resolve::trained_adapter("init_adapter", path)?;
    let init = match resolve::read_adapter(&dir, files)? {
        Adapter::Lora(init) => init,
        Adapter::Ia3(_) => {
            let expected = "a LoRA, or --peft-type ia3 beside an IA3";
            return Err(Error::argument("--init-adapter", expected, format!("an IA3 ({})", path.display())));
        }
        Adapter::Prompt(prompt) => {
            let found = format!("{} ({})", prompt.config.kind.name(), path.display());
            return Err(Error::argument("--init-adapter", "a LoRA, or train-prompt for a soft prompt", found));
        }
    };
    resolve::check_base(&init, &dir, files)?;
    check_given(args, asked, &init.config, &files.config)?;
    Ok(init)
}

/// Refuses flags that are given beside `--init-adapter`, and say another thing than it.
fn check_given(args: &TrainLoraArgs, asked: LoraConfig, own: &LoraConfig, model: &ModelConfig) -> Result<()> {
    let own = own.clone();
    let of = |config: &LoraConfig| {
        let slots = config.slots(model.family, model.num_hidden_layers).ok();
        let tokens = config.trainable_token_indices.clone();
        (slots, config.saved_modules(model).ok(), config.ties_head(model), tokens, config.use_dora)
    };
    let given = [
        ("--r", args.r.len() == 1, LoraConfig { r: asked.r, ..own.clone() }),
        ("--lora-alpha", args.lora_alpha.len() == 1, LoraConfig { lora_alpha: asked.lora_alpha, ..own.clone() }),
        (
            "--target-modules",
            args.target_modules.is_some(),
            LoraConfig { target_modules: asked.target_modules, ..own.clone() },
        ),
        (
            "--layers-to-transform",
            asked.layers_to_transform.is_some(),
            LoraConfig { layers_to_transform: asked.layers_to_transform, ..own.clone() },
        ),
        ("--use-rslora", asked.use_rslora, LoraConfig { use_rslora: true, ..own.clone() }),
        ("--use-dora", asked.use_dora, LoraConfig { use_dora: true, ..own.clone() }),
        ("--rank-pattern", args.rank_pattern.is_some(), LoraConfig { rank_pattern: asked.rank_pattern, ..own.clone() }),
        (
            "--alpha-pattern",
            args.alpha_pattern.is_some(),
            LoraConfig { alpha_pattern: asked.alpha_pattern, ..own.clone() },
        ),
        (
            "--modules-to-save",
            !asked.modules_to_save.is_empty(),
            LoraConfig { modules_to_save: asked.modules_to_save, ..own.clone() },
        ),
        (
            "--trainable-token-indices",
            !asked.trainable_token_indices.is_empty(),
            LoraConfig { trainable_token_indices: asked.trainable_token_indices, ..own.clone() },
        ),
        ("--ensure-weight-tying", asked.ensure_weight_tying, LoraConfig { ensure_weight_tying: true, ..own.clone() }),
    ];
    match given.into_iter().find(|(_, given, with)| *given && of(with) != of(&own)) {
        Some((flag, ..)) => {
            let LoraConfig { r, lora_alpha, .. } = own;
            let expected = format!("what --init-adapter has (r {r}, lora_alpha {lora_alpha}), or no such flag");
            Err(Error::argument(flag, expected, "another"))
        }
        None => Ok(()),
    }
}

struct Train<'a> {
    args: &'a TrainLoraArgs,
    files: ModelFiles,
    runs: Vec<LoraRun>,
    data: training::Data,
    /// See [`Training::apart`].
    apart: Apart<'a, TrainLoraArgs>,
}

impl Job for Train<'_> {
    fn run<B: Backend>(self, mut backend: B) -> Result<(), Failure> {
        let Self { args, files, mut runs, data, apart } = self;
        let training = &args.training;
        let dropout = args.lora_dropout.unwrap_or(runs[0].init.config.lora_dropout);
        if dropout > 0.0 && runs.iter().any(|run| run.init.config.use_dora) {
            let expected = "0 beside --use-dora, whose base output PEFT drops from too; pass --lora-dropout 0";
            return Err(Error::argument("--lora-dropout", expected, dropout).into());
        }
        let mut identity = json!({ "model": training.base.model });
        let mut checkpoint = Cow::Borrowed(&files.checkpoint);
        let mut start = Vec::new();
        if training.init_adapter.is_none() {
            let source = Source::new(&files.config, &files.checkpoint)?;
            for LoraRun { init, settings, .. } in &mut runs {
                lora_start::start(init, &source, settings.seed)?;
            }
            if args.init_lora_weights == LoraInit::Pissa {
                checkpoint = Cow::Owned(lora_start::without(&runs[0].init, &source)?);
                start = runs[0].init.modules.clone();
            }
            if args.init_lora_weights != LoraInit::True {
                identity["init_lora_weights"] = json!(args.init_lora_weights);
            }
        }
        let mut model = Model::new(&mut backend, &files.config, &checkpoint)?;
        let adapters: Vec<LoraAdapter> = runs.iter().map(|run| run.init.clone()).collect();
        let layout = Layout::of_runs(&files.config, &adapters)?;
        let mut adaptation = Adaptation::new(&mut backend, layout, runs.len())?.started_at(start);
        let mut named = Vec::with_capacity(runs.len());
        for (i, LoraRun { init, name, .. }) in runs.iter().enumerate() {
            adaptation.set_run(&mut backend, &model.config, i, init)?;
            let config = LoraConfig { lora_dropout: dropout, ..init.config.clone() };
            let mut all = json!({
                "r": config.r,
                "lora_alpha": config.lora_alpha,
                "target_modules": resolve::modules_name(&config.target_modules),
                "use_rslora": config.use_rslora,
                "use_dora": config.use_dora,
                "layers_to_transform": config.layers_to_transform,
                "rank_pattern": pairs(&config.rank_pattern),
                "alpha_pattern": pairs(&config.alpha_pattern),
                "init_lora_weights": args.init_lora_weights,
                "lora_dropout": dropout,
            });
            if !config.trainable_token_indices.is_empty() {
                all["trainable_token_indices"] = json!(config.trainable_token_indices);
            }
            if !config.modules_to_save.is_empty() {
                all["modules_to_save"] = json!(config.modules_to_save);
                all["ensure_weight_tying"] = json!(config.ensure_weight_tying);
            }
            named.push(Named { config: AdapterConfig::Lora(config), name: name.clone(), settings: all });
        }
        match training.init_adapter {
            None => adaptation.start_magnitudes(&mut backend, &model)?,
            Some(_) => adaptation.update_norms(&mut backend, &model),
        }
        adaptation.install(&mut backend, &mut model)?;
        let whole = Training {
            command: "train-lora",
            args,
            training,
            files: &files,
            options: TrainerOptions { dropout, ..training::options(training) },
            runs: named,
            is_grid: runs.len() > 1 && apart.runs.is_empty(),
            identity,
            objective: data.objective.clone(),
            apart,
        };
        let run = |run: LoraRun| Run { data: data.of_run(run.settings.seed), settings: run.settings };
        let runs = runs.into_iter().map(run).collect();
        whole.run(&mut backend, &mut model, Trainable::Adapters(adaptation), runs, data.eval)
    }
}
