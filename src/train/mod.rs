//! Training: many runs over one frozen base in the same passes, or all weights of the base in one run.
//!
//! [`trainer`] takes optimiser steps;

pub mod data;
pub mod log;
pub mod optim;
pub mod order;
pub mod passes;
pub mod schedule;
pub mod settings;
pub mod trainer;
