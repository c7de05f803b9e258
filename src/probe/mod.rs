//! The same demonstrations as prompt and as training data, compared in the hidden states (Duan et al., arXiv
//! 2311.10367).
//!
//! | arm | weights | input |
//! |---|---|---|
//! | anchor | pretrained | the query alone |
//! | ICL | pretrained | the demonstrations, then the query |
//! | IT | LoRA, tuned on the same demonstrations (prompt to answer, loss on the answer) | the query alone |
//! | PT | soft prompt, tuned as IT is | the soft prompt, then the query |
//! | IPT | soft prompt, tuned on each demonstration behind the seed's others | the soft prompt, the demonstrations, the query |
//! | IT-ACT, IT-KL | LoRA, tuned as IT is but towards the states, or the answers' distributions, of each demonstration behind the seed's others | the query alone |
//!
//! The first three are in every probe; the further ones (of soft prompts Sun et al., arXiv 2302.11521; towards ICL Mishra et al.,
//! arXiv 2509.22621, and Snell et al., arXiv 2209.15189) are asked for. An [`arm::Arm`] is
//! a value: each is tuned and read by the same code ([`run`]), and every pair of them is compared.
//!
//! States are read at the last token of every query, after every block and after the final norm. The anchor is read once;
//! the queries of a seed continue one segment of demonstrations; all seeds' tunings are runs of the same passes, and so
//! are their readings. Where the lowest layers are not adapted, IT begins with what the anchor's reading left above them.

pub mod arm;
pub mod factors;
pub mod plan;
pub mod report;
pub mod statistics;
pub mod tuning;

mod arm_run;
mod arm_states;
mod below;
mod compared;
mod condition;
mod demonstrations;
mod draw;
mod evaluate;
mod layer;
mod measured;
mod packing;
mod patching;
mod points;
mod position;
mod progress;
mod readouts;
mod recovery;
mod run;
mod settings;
mod states;
mod work;

pub use condition::{Base, Condition};
pub use demonstrations::SimilarityBy;
pub use draw::{DemonstrationPool, PlanInputs, similarity_to_queries};
pub use evaluate::Evaluation;
pub use measured::Measures;
pub use position::Position;
pub use progress::{Phase, Progress};
pub use run::{Outcome, run, run_conditions, run_studies};
pub use settings::{ProbeSettings, SoftSettings, TuningKind};
