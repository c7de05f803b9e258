// Gradient norm and AdamW (Loshchilov and Hutter 2019) over all runs at once; arrays are [runs, stride].
//
//   grad_norm_parts  parts [runs, gridDim.x] = sums of squares of a run's gradient
//   grad_norm        norm_sq [runs] = the sum of its parts
//   check_finite     stop [1] = 1 if any of values [len] is not finite; otherwise it stays
//   adamw            params, m, v += one step of every active run, unless stop [1] is set; g = d_params clipped to
//                    max_norm by norm_sq first:
//                    p *= decay; m += rest1 (g - m); v = beta2 v + rest2 g^2; p += step_size m / (sqrt(v) / root + eps)
//   steps [runs, 12] = {active, decay, beta1, 1 - beta1, beta2, 1 - beta2, root, eps, step_size, max_norm, fast decay,
//                    fast step_size}, computed in f64: decay = 1 - lr wd, root = sqrt(1 - beta2^t), step_size =
//                    -lr / (1 - beta1^t); max_norm < 0 is none
//   fast [stride], or null: not 0 where the last two stand for decay and step_size
//
// Launch: grad_norm_parts (parts, runs) x 256; grad_norm runs x 32; check_finite 1 x 256; adamw (ceil(stride / 1024),
// runs) x 256.
// Any alignment. Determinism: two stages, each in a fixed order; the launch's `parts` is part of that order.

extern "C" __global__ void __launch_bounds__(256) grad_norm_parts(float* __restrict__ parts,
                                                                  const float* __restrict__ d_params, i64 stride) {
    begin_kernel();
    __shared__ float sums[32];
    d_params += blockIdx.y * stride;
    float squares = 0.0f, v[4];
    for (i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * 4; i < stride; i += (i64)gridDim.x * blockDim.x * 4) {
        load4(v, d_params + i, (int)(stride - i < 4 ? stride - i : 4));
#pragma unroll
        for (int j = 0; j < 4; j++) squares = fmaf(v[j], v[j], squares);
    }
    squares = block_sum(squares, sums);
    if (threadIdx.x == 0) parts[blockIdx.y * gridDim.x + blockIdx.x] = squares;
}

extern "C" __global__ void __launch_bounds__(32) grad_norm(float* __restrict__ norm_sq,
                                                           const float* __restrict__ parts, int count) {
    begin_kernel();
    float sum = 0.0f;
    for (int i = threadIdx.x; i < count; i += 32) sum += parts[blockIdx.x * count + i];
    sum = warp_sum(sum);
    if (threadIdx.x == 0) norm_sq[blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(256) check_finite(float* __restrict__ stop,
                                                               const float* __restrict__ values, int len) {
    begin_kernel();
    __shared__ float parts[32];
    float wrong = 0.0f;
    for (int i = threadIdx.x; i < len; i += blockDim.x)
        if (!(fabsf(values[i]) < INFINITE)) wrong = 1.0f;
    wrong = block_max(wrong, parts);
    if (threadIdx.x == 0 && wrong > 0.0f) stop[0] = 1.0f;
}

extern "C" __global__ void __launch_bounds__(256) adamw(float* __restrict__ params, float* __restrict__ m,
                                                        float* __restrict__ v, const float* __restrict__ d_params,
                                                        const float* __restrict__ norm_sq,
                                                        const float* __restrict__ stop,
                                                        const float* __restrict__ steps,
                                                        const float* __restrict__ fast, i64 stride) {
    begin_kernel();
    const float* step = steps + blockIdx.y * 12;
    if (step[0] == 0.0f || stop[0] != 0.0f) return;
    float decay = step[1], beta1 = step[2], rest1 = step[3], beta2 = step[4], rest2 = step[5], root = step[6];
    float epsilon = step[7], step_size = step[8], max_norm = step[9], fast_decay = step[10], fast_size = step[11];
    float clip = max_norm < 0.0f ? 1.0f : fminf(max_norm / (sqrtf(norm_sq[blockIdx.y]) + 1e-6f), 1.0f);
    i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (i >= stride) return;
    int valid = (int)(stride - i < 4 ? stride - i : 4);
    float p[4], first[4], second[4], g[4], other[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (fast) load4(other, fast + i, valid);
    i += blockIdx.y * stride;
    load4(p, params + i, valid);
    load4(first, m + i, valid);
    load4(second, v + i, valid);
    load4(g, d_params + i, valid);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        g[j] *= clip;
        // As torch's lerp does: from the nearer end.
        first[j] = rest1 < 0.5f ? first[j] + rest1 * (g[j] - first[j]) : g[j] - (g[j] - first[j]) * beta1;
        second[j] = second[j] * beta2 + rest2 * g[j] * g[j];
        float factor = other[j] == 0.0f ? decay : fast_decay, size = other[j] == 0.0f ? step_size : fast_size;
        p[j] = p[j] * factor + size * first[j] / (sqrtf(second[j]) / root + epsilon);
    }
    store4(params + i, p, valid), store4(m + i, first, valid), store4(v + i, second, valid);
}
