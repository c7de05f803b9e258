// Quantised matrices on the way to products, and few rows by them. A matrix is given by
//
//   codes, scales, columns, format, shift, step, rounding   as `quantized.cuh` has them
//
//   dequantize            out [rows, columns] = its values
//   embed_quantized_fwd   as embed_fwd, of a table [V, columns]
//   quantized_linear_fwd  out [rows, output] = x [rows, columns] times the transposed matrix [output, columns], and bias [output] where
//                         that is not null: of at most FEW_ROWS rows, decoded in registers
//   quantized_logits_fwd  the same in f32
//
// Launch: dequantize one block of 256 for each 2048 elements of rows that are filled up to a multiple of 8; embed_quantized_fwd one of
// 256 a row; products one of 256 for each 16 rows of the matrix, two a warp. Any alignment of x and what is written.
// Determinism: every element has one writer. A lane sums every 32nd eight products of two rows, in order, then lanes in a tree.

constexpr int FEW_ROWS = 8;

// The body of products of few rows.
template <class Out>
DEV void few_rows(Out* __restrict__ out, const real* __restrict__ x, const real* __restrict__ bias, const Quantized& m,
                  int format, int rounding, int rows, int output) {
    int lane = threadIdx.x % 32, first = (blockIdx.x * 8 + threadIdx.x / 32) * 2;
    if (first >= output) return;
    // The last row of an odd number is taken twice, and written once.
    int second = min(first + 1, output - 1);
    float sums[2][FEW_ROWS] = {};
    for (int c = lane * 8; c < m.columns; c += 256) {
        float w[2][8], v[8];
        with_format(format, [&](auto f) {
            decode(f, w[0], m, first, c, rounding);
            decode(f, w[1], m, second, c, rounding);
        });
#pragma unroll
        for (int r = 0; r < FEW_ROWS; r++) {
            if (r >= rows) continue;
            load8(v, x + (i64)r * m.columns + c, m.columns - c);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                sums[0][r] = fmaf(v[j], w[0][j], sums[0][r]);
                sums[1][r] = fmaf(v[j], w[1][j], sums[1][r]);
            }
        }
    }
    // Lane r has the sum of row r and the first output, lane r + FEW_ROWS that of the second.
    float mine = 0.0f;
#pragma unroll
    for (int r = 0; r < FEW_ROWS; r++) {
        if (r >= rows) continue;
        float sum = warp_sum(sums[0][r]), next = warp_sum(sums[1][r]);
        if (lane == r) mine = sum;
        if (lane == r + FEW_ROWS) mine = next;
    }
    int r = lane % FEW_ROWS, column = first + lane / FEW_ROWS;
    if (lane >= 2 * FEW_ROWS || r >= rows || column >= output) return;
    if (bias) mine += widen(bias[column]);
    narrow(out[(i64)r * output + column], mine);
}

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

extern "C" __global__ void __launch_bounds__(256)
    quantized_linear_fwd(real* __restrict__ out, const real* __restrict__ x, const real* __restrict__ bias,
                         const u8* __restrict__ codes, const void* __restrict__ scales, int columns, int format,
                         int shift, float step, int rounding, int rows, int output) {
    begin_kernel();
    __shared__ float nf4[16];
    fill_nf4(nf4, format);
    few_rows(out, x, bias, {codes, scales, columns, shift, step, nf4}, format, rounding, rows, output);
}

extern "C" __global__ void __launch_bounds__(256)
    quantized_logits_fwd(float* __restrict__ out, const real* __restrict__ x, const u8* __restrict__ codes,
                         const void* __restrict__ scales, int columns, int format, int shift, float step, int rounding,
                         int rows, int output) {
    begin_kernel();
    __shared__ float nf4[16];
    fill_nf4(nf4, format);
    few_rows(out, x, nullptr, {codes, scales, columns, shift, step, nf4}, format, rounding, rows, output);
}
