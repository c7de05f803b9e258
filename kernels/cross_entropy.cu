// Cross-entropy of label rows, for a chunk of rows whose logits have been made: all of them never exist at once.
//
//   cross_entropy_fwd  loss [rows] = log-sum-exp(logits [rows, vocab]) - logits at targets [rows]
//   cross_entropy_bwd  the same loss; d_logits [rows, vocab] = row_weights [rows] * (softmax - onehot), rounded
//   logits_softcap     logits [len] = cap tanh(logits / cap)
//
// Where cap > 0 the losses are of capped logits, as logits_softcap makes them, and d_logits is the gradient of the uncapped.
//
// Launch: one block of 256 a row, static shared memory; logits_softcap ceil(len / 2048) blocks of 256. Any alignment.
// (d_x = d_logits head, d_head += d_logits^T x are dense products.)
// Determinism: fixed order (each thread's strided maximum and sum, then a tree, then warps in order).
// Reference: online softmax, Milakov and Gimelshein 2018.

// What stands for a logit; types, so that loops are compiled for each alone.
struct Uncapped {
    DEV float value(float x) const { return x; }
    DEV float slope(float) const { return 1.0f; }
};
struct Softcap {
    float cap;
    DEV float value(float x) const { return cap * tanhf(x / cap); }
    DEV float slope(float x) const {
        float t = tanhf(x / cap);
        return fmaf(-t, t, 1.0f);
    }
};
template <class Run>
DEV void with_cap(float cap, Run run) {
    if (cap > 0.0f) return run(Softcap{cap});
    run(Uncapped());
}

struct Softmax {
    float top, total;
};

template <class Cap>
DEV Softmax softmax_of(Cap cap, const float* __restrict__ logits, int vocab, float* parts) {
    float top = -INFINITE, total = 0.0f, v[8];
    for (int c = threadIdx.x * 8; c < vocab; c += blockDim.x * 8) {
        load8(v, logits + c, vocab - c);
        float largest = top;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            v[j] = cap.value(v[j]);
            if (c + j < vocab) largest = fmaxf(largest, v[j]);
        }
        total *= expf(top - largest);
        top = largest;
#pragma unroll
        for (int j = 0; j < 8; j++)
            if (c + j < vocab) total += expf(v[j] - top);
    }
    float all = block_max(top, parts);
    return {all, block_sum(top == -INFINITE ? 0.0f : total * expf(top - all), parts)};
}

extern "C" __global__ void __launch_bounds__(256) cross_entropy_fwd(float* __restrict__ loss,
                                                                    const float* __restrict__ logits,
                                                                    const int* __restrict__ targets, int rows,
                                                                    int vocab, float cap) {
    __shared__ float parts[32];
    int row = blockIdx.x;
    logits += (i64)row * vocab;
    with_cap(cap, [&](auto cap) {
        Softmax s = softmax_of(cap, logits, vocab, parts);
        if (threadIdx.x == 0) loss[row] = logf(s.total) + (s.top - cap.value(logits[targets[row]]));
    });
}

extern "C" __global__ void __launch_bounds__(256) cross_entropy_bwd(float* __restrict__ loss,
                                                                    real* __restrict__ d_logits,
                                                                    const float* __restrict__ logits,
                                                                    const int* __restrict__ targets,
                                                                    const float* __restrict__ row_weights, int rows,
                                                                    int vocab, float cap) {
    __shared__ float parts[32];
    int row = blockIdx.x, target = targets[row];
    logits += (i64)row * vocab;
    d_logits += (i64)row * vocab;
    with_cap(cap, [&](auto cap) {
        Softmax s = softmax_of(cap, logits, vocab, parts);
        if (threadIdx.x == 0) loss[row] = logf(s.total) + (s.top - cap.value(logits[target]));
        float weight = row_weights[row], scale = weight / s.total, v[8];
        for (int c = threadIdx.x * 8; c < vocab; c += blockDim.x * 8) {
            load8(v, logits + c, vocab - c);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                float d = scale * expf(cap.value(v[j]) - s.top) - (c + j == target ? weight : 0.0f);
                v[j] = d * cap.slope(v[j]);
            }
            store8(d_logits + c, v, vocab - c);
        }
    });
}

extern "C" __global__ void __launch_bounds__(256) logits_softcap(float* __restrict__ logits, float cap, i64 len) {
    i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (i >= len) return;
    float v[8];
    load8(v, logits + i, len - i);
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = Softcap{cap}.value(v[j]);
    store8(logits + i, v, len - i);
}
