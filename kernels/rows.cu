// Rows: casts, sums, gathers (captures among them) and their backward. (Filling with zeros and appending to a KV cache
// are calls of the driver.)
//
//   cast          out [len] = x [len], rounded
//   cast_wide     out [len] = x [len], exactly
//   residual_fwd  out [len] = a [len] + b [len]
//   gather_*      out [M, width] = x [N, width] at rows [M]
//   scatter_add   d_x [N, width] += d_out [M, width]: row ids[u] += rows order[starts[u]..starts[u+1]] of d_out; of no rows
//                 nothing is done, so that a table can be filled up
//   scatter_add_compute  the same into d_x [N, width] of the compute dtype, each sum rounded once
//
// Launch: casts and residual_fwd (ceil(len / 2048)) x 256; the others one block of 256 a row (scatter_add*: a group).
// No shared memory. Any alignment; vectors of 16 bytes where addresses and widths allow.
// Determinism: every element has one writer; scatter_add* add in the order of `order`.

extern "C" __global__ void __launch_bounds__(256) cast(real* __restrict__ out, const float* __restrict__ x, i64 len) {
    begin_kernel();
    i64 i = (i64)blockIdx.x * blockDim.x * 8 + first_column();
    if (i >= len) return;
    bool vectors = in_vectors(len, out, x);
    float v[8];
    load_split(v, x + i, len - i, vectors);
    store_split(out + i, v, len - i, vectors);
}

extern "C" __global__ void __launch_bounds__(256) cast_wide(float* __restrict__ out, const real* __restrict__ x,
                                                            i64 len) {
    begin_kernel();
    i64 i = (i64)blockIdx.x * blockDim.x * 8 + first_column();
    if (i >= len) return;
    bool vectors = in_vectors(len, out, x);
    float v[8];
    load_split(v, x + i, len - i, vectors);
    store_split(out + i, v, len - i, vectors);
}

extern "C" __global__ void __launch_bounds__(256) residual_fwd(float* __restrict__ out, const float* __restrict__ a,
                                                               const real* __restrict__ b, i64 len) {
    begin_kernel();
    i64 i = (i64)blockIdx.x * blockDim.x * 8 + first_column();
    if (i >= len) return;
    bool vectors = in_vectors(len, out, a, b);
    float sum[8], v[8];
    load_split(sum, a + i, len - i, vectors);
    load_split(v, b + i, len - i, vectors);
#pragma unroll
    for (int j = 0; j < 8; j++) sum[j] += v[j];
    store_split(out + i, sum, len - i, vectors);
}

// One row, its bits, 16 bytes a thread where both addresses allow it.
template <class T>
DEV void copy_row(T* __restrict__ out, const T* __restrict__ x, int width) {
    constexpr int VECTOR = 16 / sizeof(T);
    int whole = aligned(out) && aligned(x) ? width / VECTOR * VECTOR : 0;
    for (int c = threadIdx.x * VECTOR; c < whole; c += blockDim.x * VECTOR)
        *reinterpret_cast<uint4*>(out + c) = *reinterpret_cast<const uint4*>(x + c);
    for (int c = whole + threadIdx.x; c < width; c += blockDim.x) out[c] = x[c];
}

extern "C" __global__ void __launch_bounds__(256) gather_compute(real* __restrict__ out, const real* __restrict__ x,
                                                                 const int* __restrict__ rows, int count, int width) {
    begin_kernel();
    copy_row(out + (i64)blockIdx.x * width, x + (i64)rows[blockIdx.x] * width, width);
}

extern "C" __global__ void __launch_bounds__(256) gather_acc(float* __restrict__ out, const float* __restrict__ x,
                                                             const int* __restrict__ rows, int count, int width) {
    begin_kernel();
    copy_row(out + (i64)blockIdx.x * width, x + (i64)rows[blockIdx.x] * width, width);
}

extern "C" __global__ void __launch_bounds__(256) scatter_add(float* __restrict__ d_x, const float* __restrict__ d_out,
                                                              const int* __restrict__ ids,
                                                              const int* __restrict__ starts,
                                                              const int* __restrict__ order, int groups, int width) {
    begin_kernel();
    int u = blockIdx.x;
    add_rows(d_x + (i64)ids[u] * width, d_out, order + starts[u], starts[u + 1] - starts[u], width);
}

extern "C" __global__ void __launch_bounds__(256) scatter_add_compute(real* __restrict__ d_x,
                                                                      const float* __restrict__ d_out,
                                                                      const int* __restrict__ ids,
                                                                      const int* __restrict__ starts,
                                                                      const int* __restrict__ order, int groups,
                                                                      int width) {
    begin_kernel();
    int u = blockIdx.x, first = starts[u], end = starts[u + 1];
    if (first == end) width = 0;
    real* to = d_x + (i64)ids[u] * width;
    bool vectors = in_vectors(width, to, d_out);
    for (int c = first_column(); c < width; c += blockDim.x * 8) {
        float sum[8], v[8];
        load_split(sum, to + c, width - c, vectors);
        for (int i = first; i < end; i++) {
            load_split(v, d_out + (i64)order[i] * width + c, width - c, vectors);
#pragma unroll
            for (int j = 0; j < 8; j++) sum[j] += v[j];
        }
        store_split(to + c, sum, width - c, vectors);
    }
}
