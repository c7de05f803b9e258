// Learned positions (Gehring et al. 2017).
//
//   position_fwd        x [rows, width] += table [_, width] at first + positions [rows]
//   position_bwd_table  d_table [_, width] += d_x [rows, width]: group u is row first + ids[u]
//
// A group adds rows order[starts[u]..starts[u+1]] of d_x, in that order.
// Launch: one block of 256 a row (fwd) or a group (bwd). No shared memory, any alignment.
// Determinism: every element has one writer and a fixed order of sums.

extern "C" __global__ void __launch_bounds__(256) position_fwd(float* __restrict__ x, const real* __restrict__ table,
                                                               const int* __restrict__ positions, int rows, int width,
                                                               int first) {
    begin_kernel();
    x += (i64)blockIdx.x * width;
    table += (i64)(first + positions[blockIdx.x]) * width;
    bool vectors = in_vectors(width, x, table);
    for (int c = first_column(); c < width; c += blockDim.x * 8) {
        float v[8], place[8];
        load_split(v, x + c, width - c, vectors);
        load_split(place, table + c, width - c, vectors);
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] += place[j];
        store_split(x + c, v, width - c, vectors);
    }
}

extern "C" __global__ void __launch_bounds__(256) position_bwd_table(float* __restrict__ d_table,
                                                                     const float* __restrict__ d_x,
                                                                     const int* __restrict__ ids,
                                                                     const int* __restrict__ starts,
                                                                     const int* __restrict__ order, int groups,
                                                                     int width, int first) {
    begin_kernel();
    int u = blockIdx.x;
    add_rows(d_table + (i64)(first + ids[u]) * width, d_x, order + starts[u], starts[u + 1] - starts[u], width);
}
