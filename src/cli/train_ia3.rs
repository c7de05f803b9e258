//! `train-lora --peft-type ia3`: vectors that multiply what projections put out or take in, in PEFT's format.

use serde_json::{Map, Value, json};

use super::Failure;
use super::args::{DEFAULT_LORA_ALPHA, DEFAULT_R, LoraInit, TrainLoraArgs};
use super::device::{Job, dispatch};
use super::resolve::{self, ModelFiles};
use super::training::{self, Apart, Named, Training};
use crate::arch::{Family, Projection};
use crate::backend::Backend;
use crate::formats::adapter::{Adapter, AdapterConfig, Ia3Adapter, Ia3Config, Modules};
use crate::model::{Adaptation, Layout, Model};
use crate::train::settings::RunSettings;
use crate::train::trainable::Trainable;
use crate::train::trainer::Run;
use crate::{Error, Result};

pub fn run(args: &TrainLoraArgs) -> Result<(), Failure> {
    deny_flags_of_lora(args)?;
    let training = &args.training;
    let files = resolve::base_model(&training.base.model, &training.common)?;
    let init = init(args, &files)?;
    let rates = training::learning_rates(training)?;
    let seeds = resolve::seeds(training.seed, args.seeds)?;
    training::check_count(&[rates.len(), seeds.len()])?;
    training::check_seeds(training, args.seeds, true)?;
    let mut runs = Vec::new();
    for &rate in &rates {
        for &seed in &seeds {
            let settings = training::settings(training, rate, seed)?;
            let flags =
                [("learning_rate", rates.len(), json!(settings.learning_rate)), ("seed", seeds.len(), json!(seed))];
            let varied = flags.into_iter().filter(|(_, count, _)| *count > 1);
            runs.push((settings, varied.map(|(flag, _, value)| (flag.to_owned(), value)).collect()));
        }
    }
    let of_runs = runs.iter().map(|(settings, _): &(RunSettings, Map<String, Value>)| settings.seed);
    let data = training::data(training, &files, of_runs, |_| Ok(()))?;
    let dtype = files.dtype;
    dispatch(&training.common, dtype, Train { args, files, init, runs, data })
}

/// Refuses what only a LoRA has.
fn deny_flags_of_lora(args: &TrainLoraArgs) -> Result<()> {
    let given = [
        ("--layers-to-transform", args.layers_to_transform.is_some()),
        // Beside --init-adapter there is none where none is given.
        ("--r", !args.r.is_empty() && args.r != [DEFAULT_R]),
        ("--lora-alpha", !args.lora_alpha.is_empty() && args.lora_alpha != [DEFAULT_LORA_ALPHA]),
        ("--use-rslora", args.use_rslora),
        ("--use-dora", args.use_dora),
        ("--rank-pattern", args.rank_pattern.is_some()),
        ("--alpha-pattern", args.alpha_pattern.is_some()),
        ("--init-lora-weights", args.init_lora_weights != LoraInit::True),
        ("--loraplus-lr-ratio", args.loraplus_lr_ratio.is_some()),
        ("--lora-dropout", args.lora_dropout.is_some()),
        ("--modules-to-save", !args.modules_to_save.is_empty()),
        ("--trainable-token-indices", !args.trainable_token_indices.is_empty()),
    ];
    let found = given.into_iter().find(|(_, given)| *given);
    found.map_or(Ok(()), |(flag, _)| Err(Error::argument(flag, "no setting of a LoRA beside --peft-type ia3", "one")))
}

/// What every run begins with: the adapter to go on from, or vectors of ones.
fn init(args: &TrainLoraArgs, files: &ModelFiles) -> Result<Ia3Adapter> {
    let Some(path) = &args.training.init_adapter else {
        let config = config(args, files.config.family)?;
        return Ia3Adapter::ones(config, &files.config);
    };
    match Adapter::read(resolve::trained_adapter("init_adapter", path)?, &files.config)? {
        Adapter::Ia3(init) => {
            let given = args.target_modules.is_some() || args.feedforward_modules.is_some();
            let same = |asked: Ia3Config| asked.slots(init.family, files.config.num_hidden_layers).ok() == slots(&init);
            match given && !config(args, files.config.family).is_ok_and(same) {
                true => {
                    let expected = "those of --init-adapter, or none";
                    Err(Error::argument("--target-modules and --feedforward-modules", expected, "others"))
                }
                false => Ok(init),
            }
        }
        _ => Err(Error::argument("--init-adapter", "an IA3 beside --peft-type ia3", "another adapter")),
    }
}

/// What an adapter adapts.
fn slots(adapter: &Ia3Adapter) -> Option<Vec<(usize, Projection, bool)>> {
    Some(adapter.modules.iter().map(|module| (module.layer, module.target, module.feedforward)).collect())
}

/// The choice of modules that the flags ask for, or PEFT's for the family.
fn config(args: &TrainLoraArgs, family: Family) -> Result<Ia3Config> {
    let names = |modules: &[Projection]| {
        Modules::List(modules.iter().map(|&target| family.short_name(target).to_owned()).collect())
    };
    let default = |flag: &str, which: usize| match family.ia3_modules() {
        Some(modules) => Ok(names(modules[which])),
        None => Err(Error::argument(
            flag,
            format!("some of {}, of which PEFT takes none by itself", family.module_names()),
            "none",
        )),
    };
    if let Some(words) = args.target_modules.as_deref().filter(|words| words.iter().any(|word| word.contains(';'))) {
        return Err(Error::argument("--target-modules", "one set beside --peft-type ia3", words.join(",")));
    }
    Ok(Ia3Config {
        target_modules: match args.target_modules.as_deref() {
            Some(words) => resolve::modules(Some(words), family),
            None => default("--target-modules", 0)?,
        },
        exclude_modules: None,
        feedforward_modules: match args.feedforward_modules.as_deref() {
            Some([empty]) if empty.is_empty() => Modules::List(Vec::new()),
            Some(words) => resolve::modules(Some(words), family),
            None => default("--feedforward-modules", 1)?,
        },
        base_model_name_or_path: Some(args.training.base.model.clone()),
    })
}

struct Train<'a> {
    args: &'a TrainLoraArgs,
    files: ModelFiles,
    init: Ia3Adapter,
    /// The settings of each run, and its values of the flags that have several.
    runs: Vec<(RunSettings, Map<String, Value>)>,
    data: training::Data,
}

impl Job for Train<'_> {
    fn run<B: Backend>(self, mut backend: B) -> Result<(), Failure> {
        let Self { args, files, init, runs, data } = self;
        let training = &args.training;
        let mut model = Model::new(&mut backend, &files.config, &files.checkpoint)?;
        let layout = Layout::of_vectors(&files.config, &init)?;
        let mut adaptation = Adaptation::new(&mut backend, layout, runs.len())?;
        for run in 0..runs.len() {
            adaptation.set_vectors(&mut backend, run, &init)?;
        }
        let settings = json!({
            "peft_type": "IA3",
            "target_modules": resolve::modules_name(&init.config.target_modules),
            "feedforward_modules": resolve::modules_name(&init.config.feedforward_modules),
        });
        let named = |(_, name): &(RunSettings, Map<String, Value>)| Named {
            config: AdapterConfig::Ia3(init.config.clone()),
            name: name.clone(),
            settings: settings.clone(),
        };
        let whole = Training {
            command: "train-lora",
            args,
            training,
            files: &files,
            options: training::options(training),
            runs: runs.iter().map(named).collect(),
            is_grid: runs.len() > 1,
            identity: json!({ "model": training.base.model, "peft_type": "ia3" }),
            objective: data.objective.clone(),
            apart: Apart::default(),
        };
        let runs = runs
            .iter()
            .map(|(settings, _)| Run { data: data.of_run(settings.seed), settings: settings.clone() })
            .collect();
        whole.run(&mut backend, &mut model, Trainable::Adapters(adaptation), runs, data.eval)
    }
}
