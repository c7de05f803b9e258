//! Training: many runs over one frozen base in the same passes, or all weights of the base in one run.
//!
//! [`trainer`] takes optimiser steps; [`fit`] makes of them a whole training, with a log and checkpoints or in memory
//! alone; [`examples`] makes its data from files.

pub mod checkpoint;
mod conversation;
pub mod data;
mod evaluate;
pub mod examples;
pub mod fill;
pub mod fit;
mod frozen_states;
pub mod generation_eval;
pub mod log;
pub mod mixture;
pub mod noise;
pub mod objective;
pub mod optim;
pub mod order;
pub mod passes;
pub mod planned;
pub mod report_to;
mod run;
pub mod schedule;
pub mod scores;
pub mod settings;
mod step;
pub mod teachers;
mod towards;
pub mod trainable;
pub mod trainer;
