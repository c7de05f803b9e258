// Cross-entropy of label rows, for a chunk of rows whose logits have been made: all of them never exist at once.
//
//   cross_entropy_fwd  loss [rows] = log-sum-exp(logits [rows, vocab]) - logits at targets [rows]
//   cross_entropy_bwd  the same loss; d_logits [rows, vocab] = row_weights [rows] * (softmax - onehot), rounded; where
//                      inverse_cap is not 0, that of logits before they were capped: times 1 - (logits * inverse_cap)^2
//   logits_bias        logits [rows, vocab] += bias [vocab]
//   logits_softcap     logits [len] = cap * tanh(logits / cap)
//
// Launch: one block of 256 a row, static shared memory; logits_softcap ceil(len / 2048) blocks of 256. Any alignment.
// (d_x = d_logits head, d_head += d_logits^T x are dense products.)
// Determinism: fixed order (each thread's strided maximum and sum, then a tree, then warps in order).
// Reference: online softmax, Milakov and Gimelshein 2018.

extern "C" __global__ void __launch_bounds__(256) cross_entropy_fwd(float* __restrict__ loss,
                                                                    const float* __restrict__ logits,
                                                                    const int* __restrict__ targets, int rows,
                                                                    int vocab) {
    begin_kernel();
    __shared__ float parts[32];
    int row = blockIdx.x;
    logits += (i64)row * vocab;
    Softmax s = softmax_of(logits, vocab, parts);
    if (threadIdx.x == 0) loss[row] = logf(s.row_sum) + (s.row_max - logits[targets[row]]);
}

extern "C" __global__ void __launch_bounds__(256) cross_entropy_bwd(float* __restrict__ loss,
                                                                    real* __restrict__ d_logits,
                                                                    const float* __restrict__ logits,
                                                                    const int* __restrict__ targets,
                                                                    const float* __restrict__ row_weights, int rows,
                                                                    int vocab, float inverse_cap) {
    begin_kernel();
    __shared__ float parts[32];
    int row = blockIdx.x, target = targets[row];
    logits += (i64)row * vocab;
    d_logits += (i64)row * vocab;
    Softmax s = softmax_of(logits, vocab, parts);
    if (threadIdx.x == 0) loss[row] = logf(s.row_sum) + (s.row_max - logits[target]);
    float weight = row_weights[row], scale = weight / s.row_sum, v[8];
    bool vectors = in_vectors(vocab, logits, d_logits);
    for (int c = first_column(); c < vocab; c += blockDim.x * 8) {
        load_split(v, logits + c, vocab - c, vectors);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float capped = v[j] * inverse_cap;
            v[j] = scale * expf(v[j] - s.row_max) - (split_column(c, j) == target ? weight : 0.0f);
            v[j] *= fmaf(-capped, capped, 1.0f);
        }
        store_split(d_logits + c, v, vocab - c, vectors);
    }
}

extern "C" __global__ void __launch_bounds__(256) logits_bias(float* __restrict__ logits,
                                                              const real* __restrict__ bias, int rows, int vocab) {
    begin_kernel();
    logits += (i64)blockIdx.x * vocab;
    bool vectors = in_vectors(vocab, logits, bias);
    float v[8], b[8];
    for (int c = first_column(); c < vocab; c += blockDim.x * 8) {
        load_split(v, logits + c, vocab - c, vectors);
        load_split(b, bias + c, vocab - c, vectors);
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] += b[j];
        store_split(logits + c, v, vocab - c, vectors);
    }
}

extern "C" __global__ void __launch_bounds__(256) logits_softcap(float* __restrict__ logits, float cap, i64 len) {
    begin_kernel();
    i64 i = (i64)blockIdx.x * blockDim.x * 8 + first_column();
    if (i >= len) return;
    bool vectors = in_vectors(len, logits);
    float v[8];
    load_split(v, logits + i, len - i, vectors);
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = cap * tanhf(v[j] / cap);
    store_split(logits + i, v, len - i, vectors);
}
