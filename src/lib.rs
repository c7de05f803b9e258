#![doc = include_str!("guide.md")]

#[forbid(unsafe_code)]
pub mod arch;
pub mod backend;
#[forbid(unsafe_code)]
pub mod capture;
#[forbid(unsafe_code)]
pub mod cli;
#[forbid(unsafe_code)]
pub mod compare;
#[forbid(unsafe_code)]
pub mod error;
pub mod formats;
#[forbid(unsafe_code)]
pub mod hash;
#[forbid(unsafe_code)]
pub mod hooks;
#[forbid(unsafe_code)]
pub mod measures;
#[forbid(unsafe_code)]
pub mod model;
#[forbid(unsafe_code)]
pub mod pack;
#[forbid(unsafe_code)]
pub mod page;
#[forbid(unsafe_code)]
pub mod probe;
#[cfg(feature = "python")]
pub mod python;
#[forbid(unsafe_code)]
pub mod quantization;
#[forbid(unsafe_code)]
pub mod random;
#[forbid(unsafe_code)]
pub mod sweep;
#[forbid(unsafe_code)]
pub mod task;
#[forbid(unsafe_code)]
pub mod train;
pub use error::{Error, Result};
