//! Tasks: data sets, templates, demonstrations, prompts as tokens, and metrics.

mod builtin;
mod candidates;
mod columns;
pub mod datasets;
mod definition;
pub mod demonstrations;
pub mod embedding;
pub mod example;
mod lengths;
pub mod metrics;
pub mod prompts;
pub mod readers;
pub mod retrieval;
pub mod synthetic;
pub mod templates;
pub mod unreachable;

pub use candidates::Candidates;
pub use datasets::{MOST_QUERIES, Side};
pub use definition::Task;
pub use example::{Dataset, Example};
pub use lengths::{LengthNormalization, by_length};
pub use metrics::Metric;
pub use prompts::{Answer, Prompts};
pub use templates::{Template, Turn};
