//! Values as a file of a dtype has them.

use half::{bf16, f16};
use rayon::prelude::*;

use crate::formats::safetensors::Dtype;
use crate::{Error, Result};

/// Values as a file has them, each rounded to the nearest.
pub(super) fn encode(name: &str, values: &[f32], dtype: Dtype) -> Result<Vec<u8>> {
    Ok(match dtype {
        Dtype::F64 => bytemuck::cast_slice(&values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>()).to_vec(),
        Dtype::BF16 => {
            let rounded: Vec<bf16> = values.par_iter().map(|&x| bf16::from_f32(x)).collect();
            finite(name, rounded.iter().map(|x| x.to_f64()))?;
            bytemuck::cast_slice(&rounded).to_vec()
        }
        Dtype::F16 => {
            let rounded: Vec<f16> = values.par_iter().map(|&x| f16::from_f32(x)).collect();
            finite(name, rounded.iter().map(|x| x.to_f64()))?;
            bytemuck::cast_slice(&rounded).to_vec()
        }
        _ => {
            finite(name, values.iter().map(|&x| f64::from(x)))?;
            bytemuck::cast_slice(values).to_vec()
        }
    })
}

/// Refuses what a dtype cannot hold.
pub(super) fn finite(name: &str, mut values: impl Iterator<Item = f64>) -> Result<()> {
    match values.find(|x| !x.is_finite()) {
        None => Ok(()),
        Some(found) => Err(Error::NotFinite { what: format!("tensor {name}, rounded as the file has it"), found }),
    }
}
