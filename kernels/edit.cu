// Edits of rows in place (add, replace, scale, zero, project out), forward and backward.
//
//   edit_*  x [_, width] = keep * x + (add + along * (x . v)) * v at rows [count], v row value_rows [count] of
//           values [_, width]; with keep = 0 the row's elements are not part of the sum, NaN or not
//
// Launch: one block of 256 an edited row; a row is there once. Static shared memory only, any alignment.
// Determinism: fixed order (threads' strided sums, then a tree, then warps in order).

template <class T>
DEV void edit_row(T* __restrict__ x, const float* __restrict__ v, int width, float keep, float add, float along,
                  float* parts) {
    bool vectors = in_vectors(width, x, v);
    float a[8], b[8], factor = add;
    if (along != 0.0f) {
        float dot = 0.0f;
        for (int c = first_column(); c < width; c += blockDim.x * 8) {
            load_split(a, x + c, width - c, vectors);
            load_split(b, v + c, width - c, vectors);
#pragma unroll
            for (int j = 0; j < 8; j++) dot = fmaf(a[j], b[j], dot);
        }
        factor += along * block_sum(dot, parts);
    }
    for (int c = first_column(); c < width; c += blockDim.x * 8) {
        load_split(a, x + c, width - c, vectors);
        load_split(b, v + c, width - c, vectors);
#pragma unroll
        for (int j = 0; j < 8; j++) a[j] = keep == 0.0f ? factor * b[j] : keep * a[j] + factor * b[j];
        store_split(x + c, a, width - c, vectors);
    }
}

extern "C" __global__ void __launch_bounds__(256) edit_wide(float* __restrict__ x, const float* __restrict__ values,
                                                            const int* __restrict__ rows,
                                                            const int* __restrict__ value_rows, int count, int width,
                                                            float keep, float add, float along) {
    begin_kernel();
    __shared__ float parts[32];
    edit_row(x + (i64)rows[blockIdx.x] * width, values + (i64)value_rows[blockIdx.x] * width, width, keep, add, along,
             parts);
}

extern "C" __global__ void __launch_bounds__(256) edit_real(real* __restrict__ x, const float* __restrict__ values,
                                                            const int* __restrict__ rows,
                                                            const int* __restrict__ value_rows, int count, int width,
                                                            float keep, float add, float along) {
    begin_kernel();
    __shared__ float parts[32];
    edit_row(x + (i64)rows[blockIdx.x] * width, values + (i64)value_rows[blockIdx.x] * width, width, keep, add, along,
             parts);
}
