// Layer norm (Ba et al. 2016).
//
//   layer_norm_fwd         mean [rows]; rstd [rows] = 1 / sqrt(mean((x - mean)^2) + eps);
//                          out [rows, width] = (x - mean) * rstd * weight [width] + bias [width]
//   layer_norm_bwd         d_x [rows, width] += rstd * (g - mean(g) - n * mean(g * n)), g = d_out * weight,
//                          n = (x - mean) * rstd
//   layer_norm_bwd_affine  d_affine [2, width] += sum over rows of d_out * (x - mean) * rstd, then of d_out
//
// Launch: fwd and bwd one block a row, of whole warps that have 8 elements for every thread, up to 1024 threads; bwd_affine
// ceil(width / 32) blocks of 256. Any alignment; static shared memory only. A row of up to 8192 elements is read once.
// Determinism: fixed order (threads' strided sums, then a tree, then warps in order).

extern "C" __global__ void __launch_bounds__(1024) layer_norm_fwd(real* __restrict__ out, float* __restrict__ mean,
                                                                 float* __restrict__ rstd, const float* __restrict__ x,
                                                                 const real* __restrict__ weight,
                                                                 const real* __restrict__ bias, int rows, int width,
                                                                 float eps) {
    begin_kernel();
    __shared__ float parts[32];
    x += (i64)blockIdx.x * width;
    out += (i64)blockIdx.x * width;
    bool again = width > blockDim.x * 8, vectors = in_vectors(width, x, out, weight, bias);
    float total = 0.0f, squares = 0.0f, v[8], w[8], b[8];
    for (int c = first_column(); c < width; c += blockDim.x * 8) {
        load_split(v, x + c, width - c, vectors);
#pragma unroll
        for (int j = 0; j < 8; j++) total += v[j];
    }
    float row_mean = block_sum(total, parts) / width;
    for (int c = first_column(); c < width; c += blockDim.x * 8) {
        if (again) load_split(v, x + c, width - c, vectors);
#pragma unroll
        for (int j = 0; j < 8; j++)
            if (split_column(c, j) < width) squares = fmaf(v[j] - row_mean, v[j] - row_mean, squares);
    }
    float scale = 1.0f / sqrtf(block_sum(squares, parts) / width + eps);
    if (threadIdx.x == 0) {
        mean[blockIdx.x] = row_mean;
        rstd[blockIdx.x] = scale;
    }
    for (int c = first_column(); c < width; c += blockDim.x * 8) {
        if (again) load_split(v, x + c, width - c, vectors);
        load_split(w, weight + c, width - c, vectors);
        load_split(b, bias + c, width - c, vectors);
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] = fmaf((v[j] - row_mean) * scale, w[j], b[j]);
        store_split(out + c, v, width - c, vectors);
    }
}

extern "C" __global__ void __launch_bounds__(1024) layer_norm_bwd(float* __restrict__ d_x,
                                                                 const float* __restrict__ d_out,
                                                                 const float* __restrict__ x,
                                                                 const float* __restrict__ mean,
                                                                 const float* __restrict__ rstd,
                                                                 const real* __restrict__ weight, int rows,
                                                                 int width) {
    begin_kernel();
    __shared__ float parts[32];
    x += (i64)blockIdx.x * width;
    d_x += (i64)blockIdx.x * width;
    d_out += (i64)blockIdx.x * width;
    bool vectors = in_vectors(width, d_x, d_out, x, weight);
    float row_mean = mean[blockIdx.x], scale = rstd[blockIdx.x], sum = 0.0f, dot = 0.0f, g[8], v[8], w[8];
    for (int c = first_column(); c < width; c += blockDim.x * 8) {
        load_split(g, d_out + c, width - c, vectors);
        load_split(w, weight + c, width - c, vectors);
        load_split(v, x + c, width - c, vectors);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            g[j] *= w[j];
            sum += g[j];
            dot = fmaf(g[j], v[j] - row_mean, dot);
        }
    }
    float mean_g = block_sum(sum, parts) / width;
    float proj = block_sum(dot, parts) * scale * scale / width;
    for (int c = first_column(); c < width; c += blockDim.x * 8) {
        if (width > blockDim.x * 8) {
            load_split(g, d_out + c, width - c, vectors);
            load_split(w, weight + c, width - c, vectors);
            load_split(v, x + c, width - c, vectors);
#pragma unroll
            for (int j = 0; j < 8; j++) g[j] *= w[j];
        }
        load_split(w, d_x + c, width - c, vectors);
#pragma unroll
        for (int j = 0; j < 8; j++) w[j] += scale * (g[j] - mean_g - (v[j] - row_mean) * proj);
        store_split(d_x + c, w, width - c, vectors);
    }
}

extern "C" __global__ void __launch_bounds__(256) layer_norm_bwd_affine(float* __restrict__ d_affine,
                                                                        const float* __restrict__ d_out,
                                                                        const float* __restrict__ x,
                                                                        const float* __restrict__ mean,
                                                                        const float* __restrict__ rstd, int rows,
                                                                        int width) {
    begin_kernel();
    __shared__ float scales[8][32], shifts[8][32];
    int lane = threadIdx.x % 32, part = threadIdx.x / 32, c = blockIdx.x * 32 + lane;
    float scale = 0.0f, shift = 0.0f;
    if (c < width)
        for (int row = part; row < rows; row += 8) {
            float d = d_out[(i64)row * width + c];
            scale = fmaf(d * (x[(i64)row * width + c] - mean[row]), rstd[row], scale);
            shift += d;
        }
    scales[part][lane] = scale;
    shifts[part][lane] = shift;
    __syncthreads();
    if (part == 0 && c < width) {
        for (int i = 1; i < 8; i++) scale += scales[i][lane], shift += shifts[i][lane];
        d_affine[c] += scale;
        d_affine[width + c] += shift;
    }
}
