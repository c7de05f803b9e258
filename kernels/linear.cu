// What the matrix products of a linear map leave over.
//
//   linear_bwd_bias  d_bias [width] += sum over rows of d_out [rows, width]
//
// Launch: ceil(width / 32) blocks of 256. Any alignment.
// Determinism: a block sums every eighth row, then the eight sums in order.

extern "C" __global__ void __launch_bounds__(256) linear_bwd_bias(float* __restrict__ d_bias,
                                                                  const real* __restrict__ d_out, int rows,
                                                                  int width) {
    begin_kernel();
    __shared__ float sums[8][32];
    int lane = threadIdx.x % 32, part = threadIdx.x / 32, c = blockIdx.x * 32 + lane;
    float sum = 0.0f;
    if (c < width)
        for (int row = part; row < rows; row += 8) sum += widen(d_out[(i64)row * width + c]);
    sums[part][lane] = sum;
    __syncthreads();
    if (part == 0 && c < width) {
        for (int i = 1; i < 8; i++) sum += sums[i][lane];
        d_bias[c] += sum;
    }
}
