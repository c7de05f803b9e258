// What the matrix products of a linear map leave over.
//
//   add_bias         out [rows, width] += bias [width], rounded
//   linear_bwd_bias  d_bias [width] += sum over rows of d_out [rows, width]
//
// Launch: add_bias one block of 256 a row; linear_bwd_bias ceil(width / 32) blocks of 256. Any alignment.
// Determinism: linear_bwd_bias sums every eighth row, then the eight sums in order.

extern "C" __global__ void __launch_bounds__(256) add_bias(real* __restrict__ out, const real* __restrict__ bias,
                                                           int rows, int width) {
    out += (i64)blockIdx.x * width;
    for (int c = threadIdx.x * 8; c < width; c += blockDim.x * 8) {
        float v[8], b[8];
        load8(v, out + c, width - c);
        load8(b, bias + c, width - c);
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] += b[j];
        store8(out + c, v, width - c);
    }
}

extern "C" __global__ void __launch_bounds__(256) linear_bwd_bias(float* __restrict__ d_bias,
                                                                  const real* __restrict__ d_out, int rows,
                                                                  int width) {
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
