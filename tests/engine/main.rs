//! The engine: packs, the passes of a model, tuning and the experiment; against f64, against files of transformers and
//! PEFT, and against itself where two ways must give the same bits.

#[path = "../support/counts.rs"]
mod counts;
#[path = "../support/mod.rs"]
mod support;

mod bitsandbytes;
mod capture;
mod choices;
mod embedded;
mod generate;
mod gguf;
mod gguf_written;
mod golden;
mod golden_choices;
mod golden_edits;
mod golden_objective;
mod golden_peft;
mod golden_prompt;
mod golden_start;
mod golden_variants;
mod head_parts;
mod mixture;
mod model;
mod names;
mod noise;
mod objective;
mod pack;
mod planned;
mod probe;
mod probe_below;
mod probe_report;
mod probe_study;
mod probe_study_states;
mod prompt_gradients;
mod table_gradients;
mod tiny_model;
mod torchao;
mod train;
mod train_conversations;
mod train_examples;
mod train_plan;
mod train_resume;
