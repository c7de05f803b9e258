//! An instrument to compare the ways a language model is adapted, inside the model.
pub mod error;
pub mod formats;
pub use error::{Error, Result};
