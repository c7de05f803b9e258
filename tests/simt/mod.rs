//! The text of the kernels compiled by g++, and launches of it on the CPU.

pub mod machine;
pub mod recorder;
pub mod tables;
pub mod tape;
