//! Who starts the processes that work on a sweep, and follows them. The only part of the library that starts programs.

pub mod local;
pub mod slurm;
