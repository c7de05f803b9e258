//! The `llamaprobe` program: [`llamaprobe::cli`] on this process's arguments.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    llamaprobe::cli::main(std::env::args_os())
}
