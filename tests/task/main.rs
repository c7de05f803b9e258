//! Tasks: data sets, templates, demonstrations and metrics.

#[path = "../support/mod.rs"]
mod support;

mod data;
mod files;
mod metrics;
mod prompts;
mod synthetic;
