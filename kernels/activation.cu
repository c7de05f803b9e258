// Activations of MLPs, with a gate (Shazeer 2020) and without.
//
//   gated_fwd       act [len] = f(gate [len]) * up [len]
//   gated_bwd       d_up [len] = d_act [len] * f(gate); d_gate [len] = d_act * up * f'(gate)
//   swiglu_fwd, swiglu_bwd  the same of f = SiLU, in fewer registers than all functions together take
//   activation_fwd  act [len] = f(x [len])
//   activation_bwd  d_x [len] = d_act [len] * f'(x [len])
//
// kind chooses f: 0 max(x, 0); 1 x (1 + erf(x / sqrt(2))) / 2 (Hendrycks and Gimpel 2016); 2 its approximation
// x (1 + tanh(u)) / 2, u = sqrt(2 / pi) (x + 0.044715 x^3); 3 tanh(x); 4 x / (1 + exp(-x)) (SiLU).
//
// Launch: ceil(len / 2048) blocks of 256, 8 elements a thread. No shared memory, any alignment.
// Determinism: elementwise.

DEV float normal(float x) { return 0.5f * (1.0f + erff(x * 0.7071067811865476f)); }
// (1 + tanh(u)) / 2.
DEV float gelu_gate(float x) { return sigmoid(1.5957691216057308f * fmaf(0.044715f * x * x, x, x)); }

// Functions as Silu is one.
struct Relu {
    static DEV float value(float x) { return fmaxf(x, 0.0f); }
    static DEV float slope(float x) { return x > 0.0f ? 1.0f : 0.0f; }
};
struct Gelu {
    static DEV float value(float x) { return x * normal(x); }
    static DEV float slope(float x) { return fmaf(x * 0.3989422804014327f, expf(-0.5f * x * x), normal(x)); }
};
struct GeluTanh {
    static DEV float value(float x) { return x * gelu_gate(x); }
    // The gate is 1 - gate(-x), but near 1 that difference would have few digits.
    static DEV float slope(float x) {
        float inner = 1.5957691216057308f * fmaf(0.134145f * x, x, 1.0f);
        return gelu_gate(x) * fmaf(x * gelu_gate(-x), inner, 1.0f);
    }
};
struct Tanh {
    static DEV float value(float x) { return tanhf(x); }
    static DEV float slope(float x) {
        float act = tanhf(x);
        return fmaf(-act, act, 1.0f);
    }
};

template <class Run>
DEV void with_function(int kind, Run run) {
    switch (kind) {
        case 0: return run(Relu());
        case 1: return run(Gelu());
        case 2: return run(GeluTanh());
        case 3: return run(Tanh());
        default: return run(Silu());
    }
}

template <class Function>
DEV void gate_fwd(Function f, real* __restrict__ act, const real* __restrict__ gate, const real* __restrict__ up, i64 len) {
    i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (i >= len) return;
    float g[8], u[8];
    load8(g, gate + i, len - i);
    load8(u, up + i, len - i);
    gate_value(f, g, u);
    store8(act + i, g, len - i);
}

template <class Function>
DEV void gate_bwd(Function f, real* __restrict__ d_gate, real* __restrict__ d_up, const float* __restrict__ d_act,
                  const real* __restrict__ gate, const real* __restrict__ up, i64 len) {
    i64 i = (i64)blockIdx.x * blockDim.x * 8 + first_column();
    if (i >= len) return;
    bool vectors = in_vectors(len, d_gate, d_up, d_act, gate, up);
    float d[8], g[8], u[8];
    load_split(d, d_act + i, len - i, vectors);
    load_split(g, gate + i, len - i, vectors);
    load_split(u, up + i, len - i, vectors);
    gate_gradient(f, g, u, d);
    store_split(d_gate + i, g, len - i, vectors);
    store_split(d_up + i, u, len - i, vectors);
}

extern "C" __global__ void __launch_bounds__(256) swiglu_fwd(real* __restrict__ act, const real* __restrict__ gate,
                                                             const real* __restrict__ up, i64 len) {
    begin_kernel();
    gate_fwd(Silu(), act, gate, up, len);
}

extern "C" __global__ void __launch_bounds__(256) swiglu_bwd(real* __restrict__ d_gate, real* __restrict__ d_up,
                                                             const float* __restrict__ d_act,
                                                             const real* __restrict__ gate,
                                                             const real* __restrict__ up, i64 len) {
    begin_kernel();
    gate_bwd(Silu(), d_gate, d_up, d_act, gate, up, len);
}

extern "C" __global__ void __launch_bounds__(256) gated_fwd(real* __restrict__ act, const real* __restrict__ gate,
                                                            const real* __restrict__ up, int kind, i64 len) {
    begin_kernel();
    with_function(kind, [&](auto f) { gate_fwd(f, act, gate, up, len); });
}

extern "C" __global__ void __launch_bounds__(256) gated_bwd(real* __restrict__ d_gate, real* __restrict__ d_up,
                                                            const float* __restrict__ d_act,
                                                            const real* __restrict__ gate,
                                                            const real* __restrict__ up, int kind, i64 len) {
    begin_kernel();
    with_function(kind, [&](auto f) { gate_bwd(f, d_gate, d_up, d_act, gate, up, len); });
}

extern "C" __global__ void __launch_bounds__(256) activation_fwd(real* __restrict__ act, const real* __restrict__ x,
                                                                 int kind, i64 len) {
    begin_kernel();
    i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (i >= len) return;
    float v[8];
    load8(v, x + i, len - i);
    with_function(kind, [&](auto f) {
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] = f.value(v[j]);
    });
    store8(act + i, v, len - i);
}

extern "C" __global__ void __launch_bounds__(256) activation_bwd(real* __restrict__ d_x,
                                                                 const float* __restrict__ d_act,
                                                                 const real* __restrict__ x, int kind, i64 len) {
    begin_kernel();
    i64 i = (i64)blockIdx.x * blockDim.x * 8 + first_column();
    if (i >= len) return;
    bool vectors = in_vectors(len, d_x, d_act, x);
    float d[8], v[8];
    load_split(d, d_act + i, len - i, vectors);
    load_split(v, x + i, len - i, vectors);
    with_function(kind, [&](auto f) {
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] = d[j] * f.slope(v[j]);
    });
    store_split(d_x + i, v, len - i, vectors);
}
