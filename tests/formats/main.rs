//! Files in and out: against files and values of the reference libraries, and round trips.

#[path = "../support/mod.rs"]
mod support;

mod tokenizer;
