//! The rooms up to the devices, as a crate of their own: all that the compilers of this folder build.

#[path = "../src/arch/mod.rs"]
pub mod arch;
#[path = "../src/backend/mod.rs"]
pub mod backend;
#[path = "../src/error.rs"]
pub mod error;
#[path = "../src/formats/mod.rs"]
pub mod formats;
#[path = "../src/hash.rs"]
pub mod hash;
#[path = "../src/pack.rs"]
pub mod pack;
#[path = "../src/quantization/mod.rs"]
pub mod quantization;
#[path = "../src/random/mod.rs"]
pub mod random;
pub use error::{Error, Result};
