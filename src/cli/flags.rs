//! The flag that sets a field: the library's errors name the fields of its settings, the user knows flags.
//!
//! Most fields are spelt as their flag is, with underscores for dashes; [`RENAMED`] and [`OF_COMMANDS`] have the others.

use clap::CommandFactory;

use super::args::Cli;
use crate::Error;

/// Fields whose flag has another name in every command that has it.
const RENAMED: [(&str, &str); 16] = [
    ("accumulation", "gradient-accumulation-steps"),
    ("beams", "num-beams"),
    ("beta1", "adam-beta1"),
    ("beta2", "adam-beta2"),
    ("demonstrations", "demos"),
    ("dir", "out"),
    ("dropout", "lora-dropout"),
    ("epsilon", "adam-epsilon"),
    ("hidden", "encoder-hidden-size"),
    ("lengths", "num-virtual-tokens"),
    ("row_budget", "batch-tokens"),
    ("rows", "batch-tokens"),
    ("schedule", "lr-scheduler-type"),
    ("steps", "max-steps"),
    ("targets", "target-modules"),
    ("warmup", "warmup-steps"),
];

/// Settings inside of settings, whose fields have flags as well.
const NESTED: [&str; 3] = ["lora_training.", "prompt_training.", "soft."];

/// Fields whose flag has another name in one command, by their path in its settings.
const OF_COMMANDS: [(&str, &str, &str); 4] = [
    ("compare", "lora_training.learning_rate", "lora-learning-rate"),
    ("probe", "soft.epochs", "prompt-epochs"),
    ("probe", "soft.learning_rate", "prompt-learning-rate"),
    ("task", "demonstrations", "shots"),
];

/// The error of a subcommand in the user's words: the argument that it names is called by its flag, if it has one. Every
/// other error, such as one that names a flag already or a line of a file, stays as it is.
pub fn in_words_of(command: &str, error: Error) -> Error {
    match error {
        Error::Argument { name, expected, found } => {
            let name = flag(command, &name).unwrap_or(name);
            Error::Argument { name, expected, found }
        }
        other => other,
    }
}

/// The flag of a subcommand, with its dashes, that sets a field; the field may be given with its path, as in
/// `soft.learning_rate`.
fn flag(command: &str, field: &str) -> Option<String> {
    let cli = Cli::command();
    let command = cli.find_subcommand(command)?;
    let of_command = OF_COMMANDS.iter().find(|(name, path, _)| *name == command.get_name() && *path == field);
    let last = NESTED.iter().find_map(|settings| field.strip_prefix(settings)).unwrap_or(field);
    let renamed = || RENAMED.iter().find(|(name, _)| *name == last).map(|(_, flag)| *flag);
    let known = |name: &str| command.get_arguments().find(|arg| named(arg, name)).and_then(clap::Arg::get_long);
    let spelt = || known(&last.replace('_', "-"));
    let flag = match of_command {
        Some((_, _, flag)) => known(flag),
        None => spelt().or_else(|| known(renamed()?)),
    }?;
    Some(format!("--{flag}"))
}

/// Whether a flag has a name, be it an alias.
fn named(arg: &clap::Arg, name: &str) -> bool {
    arg.get_long() == Some(name) || arg.get_all_aliases().is_some_and(|aliases| aliases.contains(&name))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde::Serialize;
    use serde_json::Value;

    use super::*;
    use crate::Result;
    use crate::arch::Family;
    use crate::cli::args::Command;
    use crate::cli::compare;
    use crate::compare::CompareSettings;
    use crate::probe::ProbeSettings;
    use crate::probe::SoftSettings;
    use crate::task::Task;
    use crate::train::schedule::Warmup;
    use crate::train::settings::{Length, RunSettings};

    fn compare_settings() -> CompareSettings {
        let words = "llamaprobe compare --model m --task mtop --out o --arms pt,ipt,lora";
        match Cli::parse_from(words.split(' ')).command {
            Command::Compare(args) => compare::settings(&args, Family::Llama, 4).expect("settings"),
            other => panic!("{other:?}"),
        }
    }

    /// The name in an error of an argument, in the words of a subcommand.
    fn name_of(command: &str, result: Result<()>) -> String {
        match in_words_of(command, result.expect_err("settings out of their domain")) {
            Error::Argument { name, .. } => name,
            other => panic!("{command}: {other}"),
        }
    }

    /// Demands that every field of settings has a flag of a subcommand, except those that no flag sets.
    fn all_have_flags(command: &str, settings: &impl Serialize, without: &[&str]) {
        let value = serde_json::to_value(settings).expect("settings are JSON");
        let Value::Object(fields) = value else { panic!("{command}: settings are no struct") };
        for field in fields.keys().filter(|field| !without.contains(&field.as_str())) {
            assert!(flag(command, field).is_some(), "{command}: {field} has no flag");
        }
        for field in without {
            assert!(fields.contains_key(*field) && flag(command, field).is_none(), "{command}: {field}");
        }
    }

    #[test]
    fn every_flag_is_found_by_its_field() {
        let cli = Cli::command();
        for command in cli.get_subcommands() {
            for long in command.get_arguments().filter_map(clap::Arg::get_long) {
                let found = flag(command.get_name(), &long.replace('-', "_"));
                assert_eq!(found, Some(format!("--{long}")), "{}", command.get_name());
            }
        }
    }

    #[test]
    fn every_exception_is_a_flag_of_some_command() {
        let cli = Cli::command();
        let has = |command: &clap::Command, flag: &str| command.get_arguments().any(|arg| arg.get_long() == Some(flag));
        for (field, flag) in RENAMED {
            assert!(cli.get_subcommands().any(|command| has(command, flag)), "{field}: --{flag}");
        }
        for (command, field, long) in OF_COMMANDS {
            assert_eq!(flag(command, field), Some(format!("--{long}")), "{command}: {field}");
        }
    }

    #[test]
    fn every_settings_field_has_a_flag() {
        let run = RunSettings::default();
        // `length` is epochs or max_steps, which errors name by themselves.
        for command in ["train-lora", "train-prompt"] {
            all_have_flags(command, &run, &["shuffle", "length", "min_lr_rate"]);
        }
        all_have_flags("pretrain", &run, &["shuffle", "length", "accumulation", "schedule", "epsilon"]);
        all_have_flags("probe", &ProbeSettings::new("events".parse::<Task>().expect("built in")), &["soft"]);
        all_have_flags("probe", &SoftSettings::default(), &[]);
        all_have_flags("compare", &compare_settings(), &["prompt_training", "lora_training"]);
    }

    #[test]
    fn refused_settings_are_named_by_their_flag() {
        let run = RunSettings::default();
        for (settings, expected) in [
            (RunSettings { length: Length::Epochs(0.0), ..run.clone() }, "--epochs"),
            (RunSettings { length: Length::Steps(0), ..run.clone() }, "--max-steps"),
            (RunSettings { batch_size: 0, ..run.clone() }, "--batch-size"),
            (RunSettings { accumulation: 0, ..run.clone() }, "--gradient-accumulation-steps"),
            (RunSettings { learning_rate: f64::NAN, ..run.clone() }, "--learning-rate"),
            (RunSettings { warmup: Warmup::Ratio(2.0), ..run.clone() }, "--warmup-ratio"),
            (RunSettings { beta1: 1.0, ..run.clone() }, "--adam-beta1"),
            (RunSettings { beta2: 1.0, ..run.clone() }, "--adam-beta2"),
            (RunSettings { epsilon: 0.0, ..run.clone() }, "--adam-epsilon"),
            (RunSettings { weight_decay: -1.0, ..run.clone() }, "--weight-decay"),
            (RunSettings { max_grad_norm: Some(-1.0), ..run.clone() }, "--max-grad-norm"),
        ] {
            assert_eq!(name_of("train-lora", settings.validate()), expected);
        }
        let pretrain = RunSettings { min_lr_rate: 2.0, ..run.clone() };
        assert_eq!(name_of("pretrain", pretrain.validate()), "--min-lr-rate");
        let probe = ProbeSettings::new("events".parse::<Task>().expect("built in"));
        for (settings, expected) in [
            (ProbeSettings { rows: 0, ..probe.clone() }, "--batch-tokens"),
            (ProbeSettings { seeds: Vec::new(), ..probe.clone() }, "--seeds"),
            (ProbeSettings { r: 0, ..probe.clone() }, "--r"),
            (ProbeSettings { lora_alpha: 0.0, ..probe.clone() }, "--lora-alpha"),
            (ProbeSettings { epochs: -1.0, ..probe.clone() }, "--epochs"),
            (ProbeSettings { target_modules: Vec::new(), ..probe.clone() }, "--target-modules"),
        ] {
            assert_eq!(name_of("probe", settings.validate(Family::Llama)), expected);
        }
        let compare = compare_settings();
        for (settings, expected) in [
            (CompareSettings { arms: Vec::new(), ..compare.clone() }, "--arms"),
            (CompareSettings { demonstrations: 0, ..compare.clone() }, "--demos"),
            (CompareSettings { lengths: Vec::new(), ..compare.clone() }, "--num-virtual-tokens"),
            (CompareSettings { queries: 0, ..compare.clone() }, "--queries"),
            (CompareSettings { rows: 0, ..compare.clone() }, "--batch-tokens"),
            (CompareSettings { bins: 0, ..compare.clone() }, "--bins"),
        ] {
            assert_eq!(name_of("compare", settings.validate(Family::Llama)), expected);
        }
    }

    #[test]
    fn names_that_are_no_fields_stay() {
        for name in ["--demos", "texts.jsonl:3", "report.json", "template.query", "sst2 data", "prompt 0"] {
            assert_eq!(flag("probe", name), None, "{name}");
            assert_eq!(name_of("probe", Err(Error::argument(name, "something", "nothing"))), name);
        }
    }
}
