//! A device's memory, as buffers.

use super::memory::{AccBuffer, ComputeBuffer, Parts};
use super::pack::{DeviceTables, Index};
use super::weight::Weight;
use super::{Cuda, load, rows};
use crate::Result;
use crate::backend::Buffers;
use crate::formats::quantized::QuantizedView;
use crate::formats::safetensors::TensorView;
use crate::pack::Pack;

impl Buffers for Cuda {
    type Acc = AccBuffer;
    type Compute = ComputeBuffer;
    type Weight = Weight;
    type Index = Index;
    type Pack = DeviceTables;
    type Element = f32;

    fn name(&self) -> String {
        format!("{} {}", self.cx.device.name(), self.dtype().flag())
    }

    fn acc(&mut self, len: usize) -> Result<AccBuffer> {
        let op = "acc";
        let buffer = self.cx.acc(op, len);
        let buffer = self.cx.attributed(buffer)?;
        self.cx.zero_acc(op, &buffer, len);
        Ok(buffer)
    }

    fn compute(&mut self, len: usize) -> Result<ComputeBuffer> {
        let op = "compute";
        let buffer = self.cx.compute(op, len);
        let buffer = self.cx.attributed(buffer)?;
        self.cx.zero(op, buffer.ptr(0), len * buffer.element_size());
        Ok(buffer)
    }

    fn beside(&mut self, count: usize) {
        self.cx.beside = Parts::expected(count);
    }

    fn expect_whole(&mut self, weight: &Weight) {
        if let Some(blocks) = weight.blocks() {
            self.cx.expect_decoded(blocks.decoded_bytes(self.cx.dtype.size()));
        }
    }

    fn weight(&mut self, view: &TensorView) -> Result<Weight> {
        let weight = load::weight(&mut self.cx, view);
        self.cx.attributed(weight).map(Weight::Dense)
    }

    fn quantized_weight(&mut self, view: &QuantizedView) -> Result<Weight> {
        let weight = load::quantized_weight(&mut self.cx, view);
        self.cx.attributed(weight).map(Weight::Quantized)
    }

    fn trainable_weight(&mut self, params: &AccBuffer, offset: usize, len: usize) -> Result<Weight> {
        let op = "trainable_weight";
        params.assert_holds(op, offset + len);
        let weight = self.cx.compute(op, len);
        let weight = self.cx.attributed(weight)?;
        rows::cast_from(&mut self.cx, op, &weight, (params, offset), len);
        Ok(Weight::Dense(weight))
    }

    fn index(&mut self, values: &[u32]) -> Result<Index> {
        let index = Index::new(&mut self.cx, values);
        self.cx.attributed(index)
    }

    fn pack(&mut self, pack: &Pack) -> Result<DeviceTables> {
        let tables = DeviceTables::new(&mut self.cx, pack);
        self.cx.attributed(tables)
    }
}
