// SwiGLU (Shazeer 2020): act = silu(gate) * up, silu(x) = x / (1 + exp(-x)).
//
//   swiglu_fwd  act [len] = silu(gate [len]) * up [len]
//   swiglu_bwd  d_up [len] = d_act [len] * silu(gate); d_gate [len] = d_act * up * silu'(gate)
//
// Launch: ceil(len / 2048) blocks of 256, 8 elements a thread. No shared memory, any alignment.
// Determinism: elementwise.

DEV float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

extern "C" __global__ void __launch_bounds__(256) swiglu_fwd(real* __restrict__ act, const real* __restrict__ gate,
                                                             const real* __restrict__ up, i64 len) {
    i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (i >= len) return;
    float g[8], u[8];
    load8(g, gate + i, len - i);
    load8(u, up + i, len - i);
#pragma unroll
    for (int j = 0; j < 8; j++) g[j] = g[j] * sigmoid(g[j]) * u[j];
    store8(act + i, g, len - i);
}

extern "C" __global__ void __launch_bounds__(256) swiglu_bwd(real* __restrict__ d_gate, real* __restrict__ d_up,
                                                             const float* __restrict__ d_act,
                                                             const real* __restrict__ gate,
                                                             const real* __restrict__ up, i64 len) {
    i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (i >= len) return;
    float d[8], g[8], u[8];
    load8(d, d_act + i, len - i);
    load8(g, gate + i, len - i);
    load8(u, up + i, len - i);
#pragma unroll
    for (int j = 0; j < 8; j++) {
        float s = sigmoid(g[j]);
        u[j] *= d[j] * s * (1.0f + g[j] * (1.0f - s));
        g[j] *= d[j] * s;
    }
    store8(d_gate + i, u, len - i);
    store8(d_up + i, g, len - i);
}
