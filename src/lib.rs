//! An instrument to compare the ways a language model is adapted, inside the model.
pub mod backend;
pub mod cli;
pub mod error;
pub mod formats;
pub mod hooks;
pub mod model;
pub mod probe;
pub mod shape;
pub mod task;
pub mod train;
pub use error::{Error, Result};
