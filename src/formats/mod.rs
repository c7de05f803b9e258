//! Bytes to values and back; knows no device and no model.
//!
//! The only place of the library that opens files. Every reader validates before it returns, and an error names the
//! file, the field, what was expected and what was found. Every writer goes through [`atomic`]: a file appears under
//! its final name only when it is complete and on disk.

pub mod activations;
pub mod adapter;
pub mod atomic;
pub mod chat;
pub mod config;
pub mod hub;
pub mod json;
pub mod jsonl;
pub mod lines;
pub mod safetensors;
pub mod tables;
pub mod tokenizer;
