//! Tasks: data sets, templates, demonstrations, prompts as tokens, and metrics.

pub mod datasets;
pub mod demonstrations;
pub mod embedding;
pub mod example;
pub mod metrics;
pub mod prompts;
pub mod readers;
pub mod retrieval;
pub mod synthetic;
pub mod templates;

pub use datasets::Task;
pub use example::{Dataset, Example};
pub use metrics::Metric;
pub use prompts::{Answer, Prompts};
pub use templates::Template;
