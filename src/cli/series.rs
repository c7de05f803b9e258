//! Commands on one model, one after another: it is loaded once.

use super::Failure;
use super::device::Job;
use super::resolve::ModelFiles;
use crate::Result;
use crate::backend::Backend;
use crate::model::Model;

/// A command that runs on a model that is loaded already.
pub trait OnModel: Sync {
    /// Reads what it needs beside the model, and does its work; the model is then as it was, unless it has weights of an adapter's
    /// own.
    fn on<B: Backend>(&self, files: &ModelFiles, backend: &mut B, model: &mut Model<B>) -> Result<(), Failure>;
}

/// Runs each command, of which it has the number and the work; says whether the next may run on the same model.
pub type Each<'a> = &'a mut (dyn FnMut(usize, &mut dyn FnMut() -> Result<(), Failure>) -> Result<bool> + Send);

/// Commands on one model.
pub struct Series<'a, C> {
    /// The model.
    pub files: ModelFiles,
    /// The flags of each command, which name the same model, device and dtype.
    pub commands: &'a [&'a C],
    /// Runs them.
    pub each: Each<'a>,
}

impl<C: OnModel> Job for Series<'_, C> {
    fn run<B: Backend>(self, mut backend: B) -> Result<(), Failure> {
        let Self { files, commands, each } = self;
        let mut model = Model::new(&mut backend, &files.config, &files.checkpoint)?;
        for (i, command) in commands.iter().enumerate() {
            if !each(i, &mut || command.on(&files, &mut backend, &mut model))? || model.weights.owned {
                break;
            }
        }
        Ok(())
    }
}
