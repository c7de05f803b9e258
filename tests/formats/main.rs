//! Files in and out: against files and values of transformers, PEFT and torch, and round trips.

#[path = "../support/mod.rs"]
mod support;

#[path = "../fuzz/mod.rs"]
mod fuzz;

mod activations;
mod adapter;
mod adapter_families;
mod added_tokens;
mod bitsandbytes;
mod chat;
mod config;
mod control_vector;
mod edits;
mod family_configs;
mod gguf;
mod hub;
mod keys;
mod lines;
mod quantized;
mod rows;
mod safetensors;
mod tokenizer;
mod torch;
mod torchao;
mod vocabulary;
