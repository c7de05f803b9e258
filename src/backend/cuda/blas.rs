//! Dense products by cuBLASLt: by which algorithm a shape is multiplied is decided once, when it first comes.

use std::collections::HashMap;
use std::sync::Arc;

use super::algorithms::Algorithms;
use super::cublaslt::{Algorithm, CublasLt, Descriptors};
use super::driver::Device;
use super::dtype::ComputeDtype;
use super::gemm::{Gemm, GemmShape};
use super::memory::Block;
use super::settings::Settings;
use crate::Result;
use crate::backend::profile::Recorder;

/// How products of one shape are computed.
struct Plan {
    descriptors: Descriptors,
    algorithm: Algorithm,
}

/// cuBLASLt with the plans made so far.
pub struct Blas {
    plans: HashMap<GemmShape, Plan>,
    algorithms: Algorithms,
    lt: CublasLt,
}

impl Blas {
    /// Opens the library; `workspace` has [`WORKSPACE`](crate::backend::scratch::WORKSPACE) bytes.
    ///
    /// # Errors
    /// If it is not found, naming what to install, or does not start.
    pub fn new(device: Arc<Device>, dtype: ComputeDtype, settings: &Settings, workspace: Block) -> Result<Self> {
        let lt = CublasLt::new(device, dtype, settings, workspace)?;
        let algorithms = Algorithms::new(&lt, settings)?;
        Ok(Self { plans: HashMap::new(), algorithms, lt })
    }

    /// Tells a recorder from now on which algorithms are taken.
    pub fn record(&mut self, recorder: &Recorder) {
        self.algorithms.record(recorder);
    }

    /// Sees to it that there is a plan for a shape. The stream of work is not being recorded then: algorithms may be timed on it.
    ///
    /// # Errors
    /// If cuBLASLt has no algorithm for it, or the device fails.
    pub fn plan(&mut self, op: &'static str, shape: &GemmShape) -> Result<()> {
        if !self.plans.contains_key(shape) {
            let descriptors = self.lt.descriptors(op, shape)?;
            let algorithm = self.algorithms.of(&self.lt, op, shape, &descriptors)?;
            self.plans.insert(*shape, Plan { descriptors, algorithm });
        }
        Ok(())
    }

    /// Submits a product to the device's stream, whose context is current.
    ///
    /// # Errors
    /// cuBLASLt's own words.
    ///
    /// # Panics
    /// If there is no plan for its shape.
    pub fn run(&self, Gemm { shape, operands }: &Gemm) -> Result<(), String> {
        let plan = self.plans.get(shape).unwrap_or_else(|| panic!("cuBLASLt: no plan for {shape:?}"));
        self.lt.run(&plan.descriptors, &plan.algorithm, shape.accumulate, operands)
    }
}
