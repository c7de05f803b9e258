//! Matrices of which kernels have boxes copied to shared memory, as the driver encodes them: tensor maps, three for each matrix
//! (`Boxes` of `kernels/attention_hopper.cuh`). Source: CUDA driver API, "Tensor Map Object Management".

use cudarc::driver::{result, sys};

use super::dtype::ComputeDtype;

/// Rows of a box, by map.
const BOX_ROWS: [u32; 3] = [64, 8, 1];
/// Columns of a box: with elements of 2 bytes the 128 bytes that the swizzle of products goes over.
const BOX_COLUMNS: u32 = 64;

/// A matrix `[rows, columns]` of elements of 2 bytes, its rows one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Matrix {
    /// Of its first element, a multiple of 16.
    pub address: u64,
    /// At least 1.
    pub rows: usize,
    /// A multiple of 8.
    pub columns: usize,
    /// Of its elements.
    pub dtype: ComputeDtype,
}

/// The maps of a matrix, as a kernel takes them.
#[repr(C)]
pub struct Boxes([sys::CUtensorMap; 3]);

impl Matrix {
    /// Has the driver encode the maps.
    ///
    /// # Errors
    /// Of the driver, which refuses what is not as the fields say.
    ///
    /// # Panics
    /// For elements of 4 bytes.
    pub fn encode(&self) -> Result<Boxes, result::DriverError> {
        let mut boxes = Boxes([sys::CUtensorMap { opaque: [0; 16] }; 3]);
        for (map, rows) in boxes.0.iter_mut().zip(BOX_ROWS) {
            self.encode_box(map, rows)?;
        }
        Ok(boxes)
    }

    fn encode_box(&self, map: &mut sys::CUtensorMap, box_rows: u32) -> Result<(), result::DriverError> {
        let data_type = match self.dtype {
            ComputeDtype::Bf16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            ComputeDtype::F16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            ComputeDtype::F32 => panic!("boxes of elements of 4 bytes"),
        };
        // From the innermost axis on; rows are one after another.
        let dims = [self.columns as u64, self.rows as u64];
        let strides = [(self.columns * self.dtype.size()) as u64];
        let (box_dims, element_strides) = ([BOX_COLUMNS, box_rows], [1, 1]);
        // SAFETY: the map is one of the driver's, aligned as such; arrays have as many entries as the driver reads for two axes, of
        // strides one less; the address is a number to this call.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                map,
                data_type,
                2,
                self.address as *mut _,
                dims.as_ptr(),
                strides.as_ptr(),
                box_dims.as_ptr(),
                element_strides.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_are_those_of_the_kernel() {
        let text = include_str!("../../../kernels/attention_hopper.cuh");
        let maps = BOX_ROWS.map(|rows| format!("of_{rows}")).join(", ");
        for constant in [format!("    TensorMap {maps};"), format!("constexpr int STRETCH = {BOX_COLUMNS};")] {
            assert!(text.contains(&constant), "{constant}");
        }
    }
}
