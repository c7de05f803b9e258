//! Demonstrations, soft prompts and both together, judged by what the model writes (Sun et al., arXiv 2302.11521).
//!
//! | arm | input | trained |
//! |---|---|---|
//! | zero-shot | the query | nothing |
//! | icl-random, icl-retrieved | demonstrations, then the query | nothing |
//! | lora | the query | LoRA |
//! | pt | soft prompt, then the query | the soft prompt |
//! | ipt | soft prompt, retrieved demonstrations, then the query | the soft prompt |
//!
//! Every combination of arm, prompt length, seed, source task (trained on) and target task (judged on) is a *cell*: a
//! file of the output directory. A cell that is there is not computed again, so that an interrupted comparison goes on
//! where it was; and since a cell's numbers do not depend on what is computed beside it, its report is the same.

mod cells;
mod inputs;
mod key;
pub mod report;
mod retrieval;
mod run;
mod samples;
mod settings;
mod task_data;
mod training;

pub use inputs::{Base, Comparison, Source};
pub use settings::{ARMS, CompareSettings, Retrieval};
