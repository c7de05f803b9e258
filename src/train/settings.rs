//! How one run is trained. The defaults are those of torch's AdamW and transformers' `TrainingArguments`, except where
//! a field says otherwise.

use serde::Serialize;
use serde_json::{Value, json};

use super::schedule::{Schedule, Warmup};
use crate::{Error, Result};

/// When a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Length {
    /// After so many passes over the data.
    Epochs(f64),
    /// After so many optimiser steps.
    Steps(u64),
}

/// Settings of one run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunSettings {
    /// Seed of the data order and of dropout (default 42).
    pub seed: u64,
    /// Whether each epoch is shuffled; otherwise the order is the file's (default true).
    pub shuffle: bool,
    /// When the run ends (default 3 epochs).
    pub length: Length,
    /// Sequences of one forward and backward pass (default 8).
    pub batch_size: usize,
    /// Passes whose gradients make one optimiser step (default 1). Their loss is the mean over the label tokens of
    /// all of them, so that 2 passes of 4 sequences are 1 of 8. At the end of an epoch there are fewer.
    pub accumulation: usize,
    /// Peak learning rate (default 2e-4, a usual one for LoRA).
    pub learning_rate: f64,
    /// Learning rate of B over that of A (LoRA+, Hayou et al., arXiv 2402.12354); none is one rate for all (default none).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loraplus_lr_ratio: Option<f64>,
    /// Its course after the warm-up (default linear).
    pub schedule: Schedule,
    /// Share of the peak to which the course falls, rather than to zero (default 0).
    pub min_lr_rate: f64,
    /// Steps in which it rises from 0 (default none).
    pub warmup: Warmup,
    /// Decay of the first moment (default 0.9).
    pub beta1: f64,
    /// Decay of the second moment (default 0.999).
    pub beta2: f64,
    /// Added to the root of the second moment (default 1e-8).
    pub epsilon: f64,
    /// Decoupled weight decay of every trained parameter (default 0).
    pub weight_decay: f64,
    /// Threshold to which the gradient's norm is clipped; none never clips (default 1).
    pub max_grad_norm: Option<f64>,
}

impl Default for RunSettings {
    fn default() -> Self {
        Self {
            seed: 42,
            shuffle: true,
            length: Length::Epochs(3.0),
            batch_size: 8,
            accumulation: 1,
            learning_rate: 2e-4,
            loraplus_lr_ratio: None,
            schedule: Schedule::Linear,
            min_lr_rate: 0.0,
            warmup: Warmup::Steps(0),
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: Some(1.0),
        }
    }
}

impl RunSettings {
    /// Optimiser steps of the run over `sequences` sequences. An epoch's last step takes what is left.
    pub fn total_steps(&self, sequences: usize) -> u64 {
        match self.length {
            Length::Steps(n) => n,
            Length::Epochs(e) => {
                let per_epoch = sequences.div_ceil(self.batch_size * self.accumulation);
                (e * per_epoch as f64).ceil() as u64
            }
        }
    }

    /// What decides the steps of a run of `total_steps` steps: the length only where learning rates depend on it, and of
    /// passes only the sequences of a step.
    pub fn fingerprint(&self, total_steps: u64) -> Value {
        let mut value = json!(self);
        if let Some(fields) = value.as_object_mut() {
            let _ = ["length", "batch_size", "accumulation", "warmup"].map(|field| fields.remove(field));
            fields.insert("sequences_per_step".into(), json!(self.batch_size * self.accumulation));
            fields.insert("warmup_steps".into(), json!(self.warmup.steps(total_steps)));
            if self.schedule != Schedule::Constant {
                fields.insert("total_steps".into(), json!(total_steps));
            }
        }
        value
    }

    /// The same as [`RunSettings::validate`] for the field `owner` of other settings: errors name `owner.field`.
    ///
    /// # Errors
    /// [`Error::Argument`] with the path of the field.
    pub fn validate_in(&self, owner: &str) -> Result<()> {
        self.validate().map_err(|error| match error {
            Error::Argument { name, expected, found } => {
                Error::Argument { name: format!("{owner}.{name}"), expected, found }
            }
            other => other,
        })
    }

    /// Checks every field's domain.
    ///
    /// # Errors
    /// [`Error::Argument`] with the field (`epochs`, `max_steps` and `warmup_ratio` for those of [`Length`] and [`Warmup`]).
    pub fn validate(&self) -> Result<()> {
        fn check(ok: bool, name: &str, expected: &str, found: impl ToString) -> Result<()> {
            if ok { Ok(()) } else { Err(Error::argument(name, expected, found)) }
        }
        match self.length {
            Length::Epochs(e) => check(e.is_finite() && e > 0.0, "epochs", "a number above 0", e)?,
            Length::Steps(n) => check(n > 0, "max_steps", "at least 1", n)?,
        }
        check(self.batch_size > 0, "batch_size", "at least 1", self.batch_size)?;
        check(self.accumulation > 0, "accumulation", "at least 1", self.accumulation)?;
        let product = self.batch_size.checked_mul(self.accumulation);
        check(product.is_some(), "accumulation", "a product with batch_size below 2^64", "more")?;
        let lr = self.learning_rate;
        check(lr.is_finite() && lr >= 0.0, "learning_rate", "a number from 0", lr)?;
        if let Some(ratio) = self.loraplus_lr_ratio {
            check(ratio.is_finite() && ratio > 0.0, "loraplus_lr_ratio", "a number above 0", ratio)?;
        }
        let rate = self.min_lr_rate;
        check((0.0..=1.0).contains(&rate), "min_lr_rate", "a number from 0 to 1", rate)?;
        if let Warmup::Ratio(r) = self.warmup {
            check((0.0..=1.0).contains(&r), "warmup_ratio", "a number from 0 to 1", r)?;
        }
        for (name, beta) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            check((0.0..1.0).contains(&beta), name, "a number from 0 to below 1", beta)?;
        }
        check(self.epsilon.is_finite() && self.epsilon > 0.0, "epsilon", "a number above 0", self.epsilon)?;
        let decay = self.weight_decay;
        check(decay.is_finite() && decay >= 0.0, "weight_decay", "a number from 0", decay)?;
        if let Some(norm) = self.max_grad_norm {
            check(norm.is_finite() && norm > 0.0, "max_grad_norm", "a number above 0", norm)?;
        }
        Ok(())
    }
}
