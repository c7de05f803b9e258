//! The command line: the only part that reads arguments and the environment, and that prints.
//!
//! `args` is the line as typed, `resolve` what it means, `device` the one choice of device and dtype, `flags` the words of
//! errors, and every subcommand has a file. Results go to stdout, everything else to stderr; exit code 0, 1 for an error
//! (one line), 2 for a wrong usage.

use std::ffi::OsString;
use std::process::ExitCode;

use crate::Error;

mod analyze;
pub(crate) mod args;
#[cfg(feature = "python")]
pub(crate) mod call;
mod capture;
mod compare;
#[cfg(feature = "cuda")]
mod cuda;
pub(crate) mod device;
mod edits;
mod flags;
pub(crate) mod generate;
mod generation_eval;
pub(crate) mod host;
mod identity;
mod inspect;
mod merge;
mod notes;
mod objective;
mod output;
mod parse;
mod peft;
mod plan;
mod predicted;
mod pretrain;
mod probe;
mod profile;
mod quantize;
mod report;
mod report_tables;
pub(crate) mod resolve;
mod series;
mod shell;
#[cfg(unix)]
mod signals;
mod study;
mod sweep;
mod task;
pub(crate) mod texts;
mod train_ia3;
mod train_lora;
mod train_prompt;
mod training;
mod training_results;

/// Why there is no result.
pub(crate) enum Failure {
    /// The line could not be parsed, or asks for help, which clap treats alike.
    Usage(clap::Error),
    /// The library's error, which is one line for the user.
    Error(Error),
    /// Whoever read stdout has gone, which is not our error.
    Closed,
}

impl Failure {
    /// An error of a subcommand, in which a setting is called by its flag.
    fn in_words_of(self, command: &str) -> Self {
        match self {
            Self::Error(error) => Self::Error(flags::in_words_of(command, error)),
            other => other,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Error(Error::io("write", "stdout")(error)),
        }
    }
}

/// Runs a command line whose first word is the program's name.
pub fn main(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    ExitCode::from(status(words))
}

/// The same, for a program that ends in its own way.
pub(crate) fn status(words: impl IntoIterator<Item = OsString>) -> u8 {
    notes::listen();
    #[cfg(unix)]
    signals::listen();
    match parse::parse(words).and_then(|(command, cli)| run(cli).map_err(|failure| failure.in_words_of(&command))) {
        Ok(()) | Err(Failure::Closed) => {
            notes::release();
            0
        }
        Err(Failure::Usage(error)) => {
            // Help and version are "errors" of exit code 0; a closed stream is nobody's concern here.
            let _ = error.print();
            u8::try_from(error.exit_code()).unwrap_or(2)
        }
        Err(Failure::Error(error)) => {
            // A message of a file's own format may have several lines; scripts read one.
            let line = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
            output::note(line);
            1
        }
    }
}

fn run(cli: args::Cli) -> Result<(), Failure> {
    let profile = cli.command.profile().map(profile::Recording::begin).transpose()?;
    run_command(cli.command)?;
    profile.map_or(Ok(()), profile::Recording::finish)
}

fn run_command(command: args::Command) -> Result<(), Failure> {
    match command {
        args::Command::Capture(args) => capture::run(&args),
        args::Command::TrainLora(args) => train_lora::run(&args),
        args::Command::TrainPrompt(args) => train_prompt::run(&args),
        args::Command::Probe(args) => probe::run(&args),
        args::Command::Compare(args) => compare::run(&args),
        args::Command::Report(args) => report::run(&args),
        args::Command::Generate(args) => generate::run(&args),
        args::Command::Analyze(args) => analyze::run(&args),
        args::Command::Inspect(args) => inspect::run(&args),
        args::Command::Merge(args) => merge::run(&args),
        args::Command::Quantize(args) => quantize::run(&args),
        args::Command::ControlVector(args) => edits::control_vector(&args),
        args::Command::ExportEmbedded(args) => task::export(&args),
        args::Command::Pretrain(args) => pretrain::run(&args),
        args::Command::Task(args) => task::run(&args),
        args::Command::Completions(args) => shell::completions(&args),
        args::Command::Man(args) => shell::man(&args),
        args::Command::Sweep(args) => sweep::run(&args),
    }
}
