//! Between the host and the device.

use super::Cuda;
use super::memory::{AccBuffer, ComputeBuffer};
use super::readback::PendingReadback;
use crate::Result;
use crate::backend::{HostSlice, Transfer};

impl Transfer for Cuda {
    type PendingReadback = PendingReadback;

    fn upload(&mut self, buffer: &mut AccBuffer, offset: usize, values: &[f32]) -> Result<()> {
        let op = "upload";
        buffer.assert_holds(op, offset + values.len());
        let written = self.cx.write(op, buffer.ptr(offset), bytemuck::cast_slice(values));
        self.cx.attributed(written)
    }

    fn download(&mut self, values: &mut [f32], buffer: &AccBuffer, offset: usize) -> Result<()> {
        let op = "download";
        buffer.assert_holds(op, offset + values.len());
        let read = self.cx.read(op, bytemuck::cast_slice_mut(values), buffer.ptr(offset));
        self.cx.attributed(read)
    }

    fn download_async(&mut self, buffer: &AccBuffer, len: usize) -> Result<PendingReadback> {
        let op = "download";
        buffer.assert_holds(op, len);
        let begun = self.cx.begin_read(op, buffer.ptr(0), len);
        self.cx.attributed(begun)
    }

    fn wait_readback(&mut self, pending: PendingReadback) -> Result<Vec<f32>> {
        let values = self.cx.end_read("download", pending);
        let values = self.cx.attributed(values)?;
        self.interrupt.check()?;
        Ok(values)
    }

    fn borrow_acc<'a>(&self, _: &'a AccBuffer) -> Option<HostSlice<'a>> {
        None
    }

    fn borrow_compute<'a>(&self, _: &'a ComputeBuffer) -> Option<HostSlice<'a>> {
        None
    }

    fn sync(&mut self) -> Result<()> {
        self.cx.sync()?;
        self.interrupt.check()
    }
}
