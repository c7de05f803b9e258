// Learned scales of a projection's output over stacked runs: DoRA's magnitudes over the norms of the adapted rows (Liu et
// al. 2024), IA3's vectors (Liu et al. 2022). Factors f = params / norms, or params where norms are null, of run r from
// element r * stride + at of params and r * norm_stride + norm_at of norms on. Rows of other runs are left alone.
//
//   weight_norm   norms [runs, output] = |W + scale B A| of each row, W [output, input], A [R, input] and B [output, R] from
//                 elements a and b of a run of params on; runs from `first` on
//   scale_fwd     unscaled [N, width] = y - bias; y [N, width] = f * unscaled + bias; unscaled and bias may be null
//   scale_bwd_*   d_params [runs, .] += sum over a run's rows of d_y * unscaled / norms; d_y [N, width] = f * d_y
//   scale_delta   out [N, width] += (f - 1) * unscaled
//
//   tiles [., 3]  run, first row, number of rows (<= 16): the stretches of rows of one run, cut; runs ascending
//   runs [., 3]   run, its first tile, number of its tiles
//
// Launch: weight_norm (ceil(output / 8), runs) x 256; fwd and delta (tiles, ceil(width / 2048)) x 256; bwd
// (ceil(width / 128), runs) x 256. Static shared memory only. Any alignment; vectors where addresses allow.
// Determinism: every element has one writer. Norms: a warp's lanes take every 32nd four neighbours, then a tree.
// Gradients: warp w sums the rows of every eighth tile, then the eight sums in order.

struct Factors {
    const float* params;
    const float* norms;
};

DEV Factors factors_of(const float* params, const float* norms, int run, i64 stride, i64 at, i64 norm_stride,
                       i64 norm_at) {
    return {params + run * stride + at, norms ? norms + run * norm_stride + norm_at : nullptr};
}

template <int n>
DEV void load_factors(float (&f)[n], const Factors& factors, int column, int width) {
#pragma unroll
    for (int i = 0; i < n; i++) {
        f[i] = 0.0f;
        int c = split_column(column, i);
        if (c >= width) continue;
        f[i] = factors.params[c];
        if (factors.norms) f[i] /= factors.norms[c];
    }
}

extern "C" __global__ void __launch_bounds__(256)
    weight_norm(float* __restrict__ norms, const real* __restrict__ weight, const float* __restrict__ params, int first,
                int rank, int input, int output, i64 stride, i64 a, i64 b, float scale, i64 norm_stride, i64 norm_at) {
    begin_kernel();
    int run = first + blockIdx.y, row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= output) return;
    const float* of_a = params + run * stride + a;
    const float* of_b = params + run * stride + b + (i64)row * rank;
    weight += (i64)row * input;
    float squares = 0.0f;
    for (int c = lane * 4; c < input; c += 128) {
        float w[4], delta[4] = {}, v[4];
        load4(w, weight + c, input - c);
        for (int r = 0; r < rank; r++) {
            load4(v, of_a + (i64)r * input + c, input - c);
#pragma unroll
            for (int i = 0; i < 4; i++) delta[i] = fmaf(of_b[r], v[i], delta[i]);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float x = w[i] + scale * delta[i];
            squares = fmaf(x, x, squares);
        }
    }
    squares = warp_sum(squares);
    if (lane == 0) norms[run * norm_stride + norm_at + row] = sqrtf(squares);
}

extern "C" __global__ void __launch_bounds__(256)
    scale_fwd(real* __restrict__ y, real* __restrict__ unscaled, const float* __restrict__ params,
              const float* __restrict__ norms, const real* __restrict__ bias, const int* __restrict__ tiles, int width,
              i64 stride, i64 at, i64 norm_stride, i64 norm_at) {
    begin_kernel();
    const int* tile = tiles + blockIdx.x * 3;
    int first = tile[1], rows = tile[2], column = blockIdx.y * 2048 + first_column();
    if (column >= width) return;
    bool vectors = in_vectors(width, y, unscaled, bias);
    float f[8], shift[8] = {}, v[8];
    load_factors(f, factors_of(params, norms, tile[0], stride, at, norm_stride, norm_at), column, width);
    if (bias) load_split(shift, bias + column, width - column, vectors);
    for (int row = first; row < first + rows; row++) {
        i64 from = (i64)row * width + column;
        load_split(v, y + from, width - column, vectors);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] -= shift[i];
        if (unscaled) store_split(unscaled + from, v, width - column, vectors);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = f[i] * v[i] + shift[i];
        store_split(y + from, v, width - column, vectors);
    }
}

template <class T>
DEV void bwd(float* __restrict__ d_params, T* __restrict__ d_y, const real* __restrict__ unscaled,
             const Factors& factors, const int* __restrict__ tiles, const int* __restrict__ run, int width) {
    __shared__ float parts[8][128];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, column = blockIdx.x * 128 + lane * 4;
    int first_tile = run[1], count = run[2];
    float f[4], sums[4] = {}, d[4], x[4];
    if (column < width) {
        load_factors(f, factors, column, width);
        for (int i = warp; i < count; i += 8) {
            const int* tile = tiles + (first_tile + i) * 3;
            for (int row = tile[1]; row < tile[1] + tile[2]; row++) {
                i64 from = (i64)row * width + column;
                load4(d, d_y + from, width - column);
                load4(x, unscaled + from, width - column);
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    sums[j] = fmaf(d[j], x[j], sums[j]);
                    d[j] *= f[j];
                }
                store4(d_y + from, d, width - column);
            }
        }
    }
#pragma unroll
    for (int j = 0; j < 4; j++) parts[warp][lane * 4 + j] = sums[j];
    __syncthreads();
    int c = blockIdx.x * 128 + threadIdx.x;
    if (threadIdx.x >= 128 || c >= width) return;
    float sum = 0.0f;
    for (int i = 0; i < 8; i++) sum += parts[i][threadIdx.x];
    d_params[c] += factors.norms ? sum / factors.norms[c] : sum;
}

// Four blocks a multiprocessor: left to aim at eight, ptxas spills.
extern "C" __global__ void __launch_bounds__(256, 4)
    scale_bwd_real(float* __restrict__ d_params, real* __restrict__ d_y, const real* __restrict__ unscaled,
                   const float* __restrict__ params, const float* __restrict__ norms, const int* __restrict__ tiles,
                   const int* __restrict__ runs, int width, i64 stride, i64 at, i64 norm_stride, i64 norm_at) {
    begin_kernel();
    const int* run = runs + blockIdx.y * 3;
    Factors factors = factors_of(params, norms, run[0], stride, at, norm_stride, norm_at);
    bwd(d_params + run[0] * stride + at, d_y, unscaled, factors, tiles, run, width);
}

extern "C" __global__ void __launch_bounds__(256)
    scale_bwd_wide(float* __restrict__ d_params, float* __restrict__ d_y, const real* __restrict__ unscaled,
                   const float* __restrict__ params, const float* __restrict__ norms, const int* __restrict__ tiles,
                   const int* __restrict__ runs, int width, i64 stride, i64 at, i64 norm_stride, i64 norm_at) {
    begin_kernel();
    const int* run = runs + blockIdx.y * 3;
    Factors factors = factors_of(params, norms, run[0], stride, at, norm_stride, norm_at);
    bwd(d_params + run[0] * stride + at, d_y, unscaled, factors, tiles, run, width);
}

extern "C" __global__ void __launch_bounds__(256)
    scale_delta(float* __restrict__ out, const real* __restrict__ unscaled, const float* __restrict__ params,
                const float* __restrict__ norms, const int* __restrict__ tiles, int width, i64 stride, i64 at,
                i64 norm_stride, i64 norm_at) {
    begin_kernel();
    const int* tile = tiles + blockIdx.x * 3;
    int first = tile[1], rows = tile[2], column = blockIdx.y * 2048 + first_column();
    if (column >= width) return;
    bool vectors = in_vectors(width, out, unscaled);
    float f[8], v[8], o[8];
    load_factors(f, factors_of(params, norms, tile[0], stride, at, norm_stride, norm_at), column, width);
    for (int row = first; row < first + rows; row++) {
        i64 from = (i64)row * width + column;
        load_split(v, unscaled + from, width - column, vectors);
        load_split(o, out + from, width - column, vectors);
#pragma unroll
        for (int i = 0; i < 8; i++) o[i] += (f[i] - 1.0f) * v[i];
        store_split(out + from, o, width - column, vectors);
    }
}
