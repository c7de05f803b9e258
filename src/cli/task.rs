//! `task`: what a built-in task asks.

use super::args::{TaskArgs, TaskName};
use super::{Failure, output};
use crate::task::synthetic::evaluate::Set;
use crate::task::synthetic::{self, Curriculum, Episode};
use crate::{Error, Result};

/// Lines of an episode that is shown.
const LINES: usize = 9;

pub fn run(args: &TaskArgs) -> Result<(), Failure> {
    let TaskName::Synthetic = args.task;
    for episode in episodes(args)? {
        output::line(format_args!("{}\n", episode.text()))?;
    }
    Ok(())
}

fn episodes(args: &TaskArgs) -> Result<Vec<Episode>> {
    if args.set == "train" {
        return Ok(synthetic::training(&Curriculum::default(), args.seed, 1, 2, args.show));
    }
    let names = || Set::ALL.map(Set::name).join(", ");
    let set = Set::ALL.into_iter().find(|set| set.name() == args.set);
    let set = set.ok_or_else(|| Error::unsupported("--set", &args.set, format!("train, {}", names())))?;
    Ok(set.episodes(args.seed, args.show, LINES))
}
