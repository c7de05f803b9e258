//! Tasks: data sets, templates, demonstrations, prompts as tokens, and metrics.

pub mod datasets;
pub mod demonstrations;
pub mod metrics;
pub mod prompts;
pub mod templates;

pub use datasets::{Example, Task};
pub use prompts::{Answer, Prompts};
pub use templates::Template;
