// Embedding with soft-prompt rows.
//
//   embed_fwd         out [rows, width] = table [V, width] at tokens [rows], times scale, rounded, or for a virtual token
//                     -(p + 1) of run r (run [rows]) row p of the prompt: element r * stride + offset + p * width of
//                     `prompt`
//   embed_bwd_prompt  d_prompt += d_out [rows, width]: group u is prompt row ids[u] of run runs[u]
//   embed_bwd_table   d_table [V, width] += d_out times scale: group u is row ids[u]
//
// scale is itself rounded to the compute dtype.
// A group adds rows order[starts[u]..starts[u+1]] of d_out, in that order.
// Launch: one block of 256 a row (fwd) or a group (bwd). No shared memory, any alignment.
// Determinism: every element has one writer and a fixed order of sums.

extern "C" __global__ void __launch_bounds__(256) embed_fwd(float* __restrict__ out, const real* __restrict__ table,
                                                            const float* __restrict__ prompt,
                                                            const int* __restrict__ tokens,
                                                            const int* __restrict__ run, int rows, int width,
                                                            i64 stride, i64 offset, float scale) {
    begin_kernel();
    int row = blockIdx.x, token = tokens[row];
    float factor = rounded(scale);
    out += (i64)row * width;
    const float* virtual_row = token < 0 ? prompt + run[row] * stride + offset + (i64)(-token - 1) * width : prompt;
    bool vectors = in_vectors(width, out, virtual_row) && aligned4(table);
    for (int c = first_column(); c < width; c += blockDim.x * 8) {
        float v[8];
        if (token < 0) {
            load_split(v, virtual_row + c, width - c, vectors);
        } else {
            load_split(v, table + (i64)token * width + c, width - c, vectors);
#pragma unroll
            for (int j = 0; j < 8; j++) v[j] = rounded(v[j] * factor);
        }
        store_split(out + c, v, width - c, vectors);
    }
}

extern "C" __global__ void __launch_bounds__(256) embed_bwd_prompt(float* __restrict__ d_prompt,
                                                                   const float* __restrict__ d_out,
                                                                   const int* __restrict__ ids,
                                                                   const int* __restrict__ runs,
                                                                   const int* __restrict__ starts,
                                                                   const int* __restrict__ order, int groups,
                                                                   int width, i64 stride, i64 offset) {
    begin_kernel();
    int u = blockIdx.x;
    float* to = d_prompt + runs[u] * stride + offset + (i64)ids[u] * width;
    add_rows(to, d_out, order + starts[u], starts[u + 1] - starts[u], width);
}

extern "C" __global__ void __launch_bounds__(256) embed_bwd_table(float* __restrict__ d_table,
                                                                  const float* __restrict__ d_out,
                                                                  const int* __restrict__ ids,
                                                                  const int* __restrict__ starts,
                                                                  const int* __restrict__ order, int groups,
                                                                  int width, float scale) {
    begin_kernel();
    int u = blockIdx.x;
    float* to = d_table + (i64)ids[u] * width;
    add_rows(to, d_out, order + starts[u], starts[u + 1] - starts[u], width, rounded(scale));
}
