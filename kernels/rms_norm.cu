// RMS norm (Zhang and Sennrich 2019).
//
//   rms_norm_fwd          rstd [rows] = 1 / sqrt(mean(x^2) + eps); out [rows, width] = n * w, n = x * rstd, w by weight [width]
//   residual_rms_norm_fwd sum [rows, width] = a + b, and the same of x = sum
//   rms_norm_bwd          d_x [rows, width] += rstd * (g - n * mean(g * n)), g = d_out * w; d_x_real = d_x, unless it is null
//   rms_norm_bwd_rounded  the same of d_out in the compute dtype
//   rms_norm_bwd_weight   d_weight [width] += sum over rows of d_out * x * rstd
//   rms_norm_compute_fwd, rms_norm_compute_bwd, rms_norm_compute_bwd_weight
//                         the same of x and gradients in the compute dtype; d_x = in place of d_out
//
// form chooses how the weight multiplies, and what is rounded: 0 round(n) * weight; 1 n * weight; 2 n * (1 + weight).
//
// Launch: fwds and bwds one block a row, of whole warps that have 8 elements for every thread, up to 1024 threads; bwd_weights
// ceil(width / 32) blocks of 256. Any alignment; static shared memory only. A row of up to 8192 elements is read once.
// Determinism: fixed order (threads' strided sums, then a tree, then warps in order).

// How the weight multiplies; a type, so that loops are compiled for it alone.
template <int form>
struct Form {
    static DEV float factor(float w) { return form == 2 ? 1.0f + w : w; }
    static DEV float apply(float n, float w) { return (form == 0 ? rounded(n) : n) * factor(w); }
};
template <class Run>
DEV void with_form(int form, Run run) {
    switch (form) {
        case 0: return run(Form<0>());
        case 1: return run(Form<1>());
        default: return run(Form<2>());
    }
}

// The row of a block; `load` gives a thread's elements from column c on, and `again` if they do not stay in registers.
template <class Load, class Again>
DEV void norm_row(real* __restrict__ out, float* __restrict__ rstd, const real* __restrict__ weight, int width,
                  float eps, int form, float* parts, Load load, Again again) {
    out += (i64)blockIdx.x * width;
    float squares = 0.0f, v[8], w[8];
    bool vectors = in_vectors(width, out, weight);
    for (int c = first_column(); c < width; c += blockDim.x * 8) {
        load(v, c);
#pragma unroll
        for (int j = 0; j < 8; j++) squares = fmaf(v[j], v[j], squares);
    }
    float scale = 1.0f / sqrtf(block_sum(squares, parts) / width + eps);
    if (threadIdx.x == 0) rstd[blockIdx.x] = scale;
    with_form(form, [&](auto form) {
        for (int c = first_column(); c < width; c += blockDim.x * 8) {
            if (width > blockDim.x * 8) again(v, c);
            load_split(w, weight + c, width - c, vectors);
#pragma unroll
            for (int j = 0; j < 8; j++) v[j] = form.apply(v[j] * scale, w[j]);
#ifdef PLANT_BOUND
            store_split(out + c + 1, v, width - c, false);
#else
            store_split(out + c, v, width - c, vectors);
#endif
        }
    });
}

extern "C" __global__ void __launch_bounds__(1024, BLOCKS_OF_1024)
    rms_norm_fwd(real* __restrict__ out, float* __restrict__ rstd, const float* __restrict__ x,
                 const real* __restrict__ weight, int rows, int width, float eps, int form) {
    begin_kernel();
    __shared__ float parts[32];
    x += (i64)blockIdx.x * width;
    bool vectors = in_vectors(width, x);
    auto load = [&](float(&v)[8], int c) { load_split(v, x + c, width - c, vectors); };
    norm_row(out, rstd, weight, width, eps, form, parts, load, load);
}

extern "C" __global__ void __launch_bounds__(1024, BLOCKS_OF_1024)
    rms_norm_compute_fwd(real* __restrict__ out, float* __restrict__ rstd, const real* __restrict__ x,
                         const real* __restrict__ weight, int rows, int width, float eps, int form) {
    begin_kernel();
    __shared__ float parts[32];
    x += (i64)blockIdx.x * width;
    bool vectors = in_vectors(width, x);
    auto load = [&](float(&v)[8], int c) { load_split(v, x + c, width - c, vectors); };
    norm_row(out, rstd, weight, width, eps, form, parts, load, load);
}

extern "C" __global__ void __launch_bounds__(1024, BLOCKS_OF_1024)
    residual_rms_norm_fwd(float* __restrict__ sum, real* __restrict__ out, float* __restrict__ rstd,
                          const float* __restrict__ a, const real* __restrict__ b, const real* __restrict__ weight,
                          int rows, int width, float eps, int form) {
    begin_kernel();
    __shared__ float parts[32];
    i64 from = (i64)blockIdx.x * width;
    a += from, b += from, sum += from;
    bool vectors = in_vectors(width, a, b, sum);
    auto load = [&](float(&v)[8], int c) {
        float w[8];
        load_split(v, a + c, width - c, vectors);
        load_split(w, b + c, width - c, vectors);
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] += w[j];
        store_split(sum + c, v, width - c, vectors);
    };
    // A thread reads what it has written itself.
    auto again = [&](float(&v)[8], int c) { load_split(v, sum + c, width - c, vectors); };
    norm_row(out, rstd, weight, width, eps, form, parts, load, again);
}

// The gradient of the block's row: `d_out` gives a thread's elements of the output's gradient from column c on, `store`
// takes those of the input's.
template <class T, class Load, class Store>
DEV void norm_row_bwd(const T* __restrict__ x, const float* __restrict__ rstd, const real* __restrict__ weight, int width,
                      int form, float* parts, Load d_out, Store store) {
    x += (i64)blockIdx.x * width;
    float scale = rstd[blockIdx.x], dot = 0.0f, g[8], v[8], w[8];
    bool vectors = in_vectors(width, x, weight);
    with_form(form, [&](auto form) {
        auto load = [&](int c) {
            d_out(g, c);
            load_split(w, weight + c, width - c, vectors);
            load_split(v, x + c, width - c, vectors);
#pragma unroll
            for (int j = 0; j < 8; j++) g[j] *= form.factor(w[j]);
        };
        for (int c = first_column(); c < width; c += blockDim.x * 8) {
            load(c);
#pragma unroll
            for (int j = 0; j < 8; j++) dot = fmaf(g[j], v[j], dot);
        }
        float along = block_sum(dot, parts) * scale * scale / width;
        for (int c = first_column(); c < width; c += blockDim.x * 8) {
            if (width > blockDim.x * 8) load(c);
#pragma unroll
            for (int j = 0; j < 8; j++) g[j] = scale * (g[j] - v[j] * along);
            store(g, c);
        }
    });
}

template <class T>
DEV void add_norm_row_bwd(float* __restrict__ d_x, real* __restrict__ d_x_real, const T* __restrict__ d_out,
                          const float* __restrict__ x, const float* __restrict__ rstd, const real* __restrict__ weight,
                          int width, int form, float* parts) {
    d_x += (i64)blockIdx.x * width;
    d_out += (i64)blockIdx.x * width;
    if (d_x_real) d_x_real += (i64)blockIdx.x * width;
    bool vectors = in_vectors(width, d_x, d_x_real, d_out);
    auto load = [&](float(&g)[8], int c) { load_split(g, d_out + c, width - c, vectors); };
    auto store = [&](const float(&d)[8], int c) {
        float sum[8];
        load_split(sum, d_x + c, width - c, vectors);
#pragma unroll
        for (int j = 0; j < 8; j++) sum[j] += d[j];
        store_split(d_x + c, sum, width - c, vectors);
        if (d_x_real) store_split(d_x_real + c, sum, width - c, vectors);
    };
    norm_row_bwd(x, rstd, weight, width, form, parts, load, store);
}

extern "C" __global__ void __launch_bounds__(1024) rms_norm_bwd(float* __restrict__ d_x,
                                                               real* __restrict__ d_x_real,
                                                               const float* __restrict__ d_out,
                                                               const float* __restrict__ x,
                                                               const float* __restrict__ rstd,
                                                               const real* __restrict__ weight, int rows, int width,
                                                               int form) {
    begin_kernel();
    __shared__ float parts[32];
    add_norm_row_bwd(d_x, d_x_real, d_out, x, rstd, weight, width, form, parts);
}

extern "C" __global__ void __launch_bounds__(1024)
    rms_norm_bwd_rounded(float* __restrict__ d_x, real* __restrict__ d_x_real, const real* __restrict__ d_out,
                         const float* __restrict__ x, const float* __restrict__ rstd, const real* __restrict__ weight,
                         int rows, int width, int form) {
    begin_kernel();
    __shared__ float parts[32];
    add_norm_row_bwd(d_x, d_x_real, d_out, x, rstd, weight, width, form, parts);
}

extern "C" __global__ void __launch_bounds__(1024) rms_norm_compute_bwd(real* d_x, const real* __restrict__ x,
                                                                       const float* __restrict__ rstd,
                                                                       const real* __restrict__ weight, int rows,
                                                                       int width, int form) {
    begin_kernel();
    __shared__ float parts[32];
    d_x += (i64)blockIdx.x * width;
    bool vectors = in_vectors(width, d_x);
    // A thread reads what it writes itself, and before that.
    auto load = [&](float(&g)[8], int c) { load_split(g, d_x + c, width - c, vectors); };
    auto store = [&](const float(&d)[8], int c) { store_split(d_x + c, d, width - c, vectors); };
    norm_row_bwd(x, rstd, weight, width, form, parts, load, store);
}

template <class T>
DEV void add_weight_gradient(float* __restrict__ d_weight, const T* __restrict__ d_out, const T* __restrict__ x,
                             const float* __restrict__ rstd, int rows, int width, float (*sums)[32]) {
    int lane = threadIdx.x % 32, part = threadIdx.x / 32, c = blockIdx.x * 32 + lane;
    float sum = 0.0f;
    if (c < width)
        for (int row = part; row < rows; row += 8)
            sum = fmaf(widen(d_out[(i64)row * width + c]) * widen(x[(i64)row * width + c]), rstd[row], sum);
    sums[part][lane] = sum;
    __syncthreads();
    if (part == 0 && c < width) {
        for (int i = 1; i < 8; i++) sum += sums[i][lane];
        d_weight[c] += sum;
    }
}

extern "C" __global__ void __launch_bounds__(256) rms_norm_bwd_weight(float* __restrict__ d_weight,
                                                                      const float* __restrict__ d_out,
                                                                      const float* __restrict__ x,
                                                                      const float* __restrict__ rstd, int rows,
                                                                      int width) {
    begin_kernel();
    __shared__ float sums[8][32];
    add_weight_gradient(d_weight, d_out, x, rstd, rows, width, sums);
}

extern "C" __global__ void __launch_bounds__(256)
    rms_norm_compute_bwd_weight(float* __restrict__ d_weight, const real* __restrict__ d_out,
                                const real* __restrict__ x, const float* __restrict__ rstd, int rows, int width) {
    begin_kernel();
    __shared__ float sums[8][32];
    add_weight_gradient(d_weight, d_out, x, rstd, rows, width, sums);
}
