// SwiGLU (Shazeer 2020): act = silu(gate) * up, silu(x) = x / (1 + exp(-x)); and activations without a gate.
//
//   swiglu_fwd      act [len] = silu(gate [len]) * up [len]
//   swiglu_bwd      d_up [len] = d_act [len] * silu(gate); d_gate [len] = d_act * up * silu'(gate)
//   activation_fwd  act [len] = f(x [len])
//   activation_bwd  d_x [len] = d_act [len] * f'(x [len])
//
// kind chooses f: 0 max(x, 0); 1 x (1 + erf(x / sqrt(2))) / 2 (Hendrycks and Gimpel 2016); 2 its approximation
// x (1 + tanh(u)) / 2, u = sqrt(2 / pi) (x + 0.044715 x^3); 3 tanh(x) = 1 - 2 / (1 + exp(2 x)).
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

// (1 + tanh(u)) / 2.
DEV float gelu_gate(float x) { return sigmoid(1.5957691216057308f * fmaf(0.044715f * x * x, x, x)); }
DEV float normal(float x) { return 0.5f * (1.0f + erff(x * 0.7071067811865476f)); }

extern "C" __global__ void __launch_bounds__(256) activation_fwd(real* __restrict__ act, const real* __restrict__ x,
                                                                 int kind, i64 len) {
    i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (i >= len) return;
    float v[8];
    load8(v, x + i, len - i);
#pragma unroll
    for (int j = 0; j < 8; j++)
        v[j] = kind == 0   ? fmaxf(v[j], 0.0f)
               : kind == 3 ? 1.0f - 2.0f * sigmoid(-2.0f * v[j])
                           : v[j] * (kind == 1 ? normal(v[j]) : gelu_gate(v[j]));
    store8(act + i, v, len - i);
}

extern "C" __global__ void __launch_bounds__(256) activation_bwd(real* __restrict__ d_x,
                                                                 const float* __restrict__ d_act,
                                                                 const real* __restrict__ x, int kind, i64 len) {
    i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (i >= len) return;
    float d[8], v[8];
    load8(d, d_act + i, len - i);
    load8(v, x + i, len - i);
#pragma unroll
    for (int j = 0; j < 8; j++) {
        if (kind == 0) {
            v[j] = v[j] > 0.0f ? d[j] : 0.0f;
        } else if (kind == 3) {
            float act = 1.0f - 2.0f * sigmoid(-2.0f * v[j]);
            v[j] = d[j] * fmaf(-act, act, 1.0f);
        } else if (kind == 1) {
            v[j] = d[j] * fmaf(v[j] * 0.3989422804014327f, expf(-0.5f * v[j] * v[j]), normal(v[j]));
        } else {
            // The gate is 1 - gate(-x), but near 1 that difference would have few digits.
            float slope = 1.5957691216057308f * fmaf(0.134145f * v[j], v[j], 1.0f);
            v[j] = d[j] * gelu_gate(v[j]) * fmaf(v[j] * gelu_gate(-v[j]), slope, 1.0f);
        }
    }
    store8(d_x + i, v, len - i);
}
