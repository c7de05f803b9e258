// Quantised matrices on the way to products, and few rows by them. A matrix is given by
//
//   codes, scales, columns, format, shift, step, rounding   as `quantized.cuh` has them
//
//   dequantize           out [rows, columns] = its values
//   embed_quantized_fwd  as embed_fwd, of a table [V, columns]
//
// Launch: dequantize one block of 256 for each 2048 elements of rows that are filled up to a multiple of 8; embed_quantized_fwd one of
// 256 a row. Any alignment of what is written.
// Determinism: every element has one writer.

extern "C" __global__ void __launch_bounds__(256) dequantize(real* WRITE_ONLY out, const u8* __restrict__ codes,
                                                             const void* __restrict__ scales, int columns, int format,
                                                             int shift, float step, int rounding, int rows) {
    begin_kernel();
    __shared__ float nf4[16];
    fill_nf4(nf4, format);
    u32 per_row = (columns + 7) / 8, unit = blockIdx.x * 256 + threadIdx.x, row = unit / per_row;
    if (row >= rows) return;
    int c = (unit - row * per_row) * 8;
    Quantized m = {codes, scales, columns, shift, step, nf4};
    float v[8];
    with_format(format, [&](auto f) { decode(f, v, m, row, c, rounding); });
    store8(out + (i64)row * columns + c, v, columns - c);
}

extern "C" __global__ void __launch_bounds__(256)
    embed_quantized_fwd(float* __restrict__ out, const u8* __restrict__ codes, const void* __restrict__ scales,
                        int columns, int format, int shift, float step, int rounding,
                        const float* __restrict__ prompt, const int* __restrict__ tokens, const int* __restrict__ run,
                        int rows, i64 stride, i64 offset, float scale) {
    begin_kernel();
    __shared__ float nf4[16];
    fill_nf4(nf4, format);
    int row = blockIdx.x, token = tokens[row];
    float factor = rounded(scale);
    out += (i64)row * columns;
    Quantized m = {codes, scales, columns, shift, step, nf4};
    const float* virtual_row = token < 0 ? prompt + run[row] * stride + offset + (i64)(-token - 1) * columns : prompt;
    for (int c = threadIdx.x * 8; c < columns; c += 2048) {
        float v[8];
        if (token < 0) {
            load8(v, virtual_row + c, columns - c);
        } else {
            with_format(format, [&](auto f) { decode(f, v, m, token, c, rounding); });
#pragma unroll
            for (int j = 0; j < 8; j++) v[j] = rounded(v[j] * factor);
        }
        store8(out + c, v, columns - c);
    }
}
