// What every kernel stands on: dtypes, vector loads, reductions in a fixed order. This text, and behind it `tensor.cuh`, stand
// before each kernel's own when it is compiled; they include no CUDA header.
//
// REAL (given by the build) is the compute dtype: float, bf16 or half. The only inline PTX of the project is in these two and
// in attention_hopper.cuh, and beside each piece of it stands the same thing in C++ for tests that run kernels on the CPU (SIMT).

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned long long u64;
typedef long long i64;

struct bf16 {
    u16 bits;
};
struct half {
    u16 bits;
};
typedef REAL real;

#define DEV __device__ __forceinline__
#define WARP_ALL 0xffffffffu
#define INFINITE __uint_as_float(0x7f800000u)
#define LOG2_E 1.4426950408889634f

// Whether a multiprocessor has less than the 228 KB of compute capabilities 9 and 10.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ < 900 || __CUDA_ARCH__ >= 1200)
#define SMALL_SHARED 1
#elif !defined(SMALL_SHARED)
#define SMALL_SHARED 0
#endif

// Blocks of 1024 threads that a multiprocessor takes: one where it has 1536 threads, as of compute capabilities 8.6, 8.9 and 12.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 800 && (__CUDA_ARCH__ < 900 || __CUDA_ARCH__ >= 1100)
#define BLOCKS_OF_1024 1
#else
#define BLOCKS_OF_1024 2
#endif

#ifdef SIMT
#define DYNAMIC_SHARED(name) unsigned char* name = simt::dynamic_shared()
#else
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

// ---- How every kernel begins: in all its threads, before they read or write memory of the device, and before they return
//
// Built with PDL=1 for compute capability 9.0 or newer, a kernel may be launched while the one before it in the stream still runs
// (programmatic dependent launch; PTX ISA, griddepcontrol). It waits until that one has ended and what it wrote can be seen, and
// lets the next one be launched. That one waits for this one alone: so no thread may skip the wait.
#ifndef PDL
#define PDL 0
#endif
#if PDL
// What a kernel reads through restrict pointers is promised to be as it was when the kernel started. The compiler takes it from a
// cache that sees no other kernel's writes (ld.global.nc), and may read it before the wait.
#define __restrict__
#endif
// Of a pointer that a kernel does not read through.
#define WRITE_ONLY __restrict
#ifdef SIMT
#define begin_kernel() simt::begin_kernel(SIMT_HERE)
#else
DEV void begin_kernel() {
#if PDL && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
#endif

// ---- Numbers

DEV float widen(float x) { return x; }
DEV float widen(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
DEV void narrow(float& to, float x) { to = x; }

#ifndef SIMT

DEV float widen(half x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
DEV void narrow(bf16& to, float x) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }
DEV void narrow(half& to, float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }
DEV u32 pack(float low, float high, bf16) {
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
DEV u32 pack(float low, float high, half) {
    u32 both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
// What another block has written since this one began.
DEV float load_fresh(const float* p) {
    float x;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(x) : "l"(p) : "memory");
    return x;
}
DEV float4 load_fresh(const float4* p) {
    float4 x;
    asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
                 : "l"(p)
                 : "memory");
    return x;
}
// 2^x, to 2 units in the last place.
DEV float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#else

DEV float widen(half x) {
    u32 sign = (u32)(x.bits >> 15) << 31, exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | fraction << 13);
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * (float)fraction * 0x1p-24f;
    return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
}
DEV void narrow(bf16& to, float x) {
    u32 bits = __float_as_uint(x);
    to.bits = x != x ? 0x7fff : (u16)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}
DEV void narrow(half& to, float x) {
    u32 bits = __float_as_uint(x), magnitude = bits & 0x7fffffffu;
    u16 sign = (u16)(bits >> 16 & 0x8000u);
    if (magnitude > 0x7f800000u) {
        to.bits = 0x7fff;
    } else if (magnitude >= 0x477ff000u) {  // rounds to more than 65504
        to.bits = sign | 0x7c00;
    } else if (magnitude < 0x38800000u) {  // a subnormal: a multiple of 2^-24, to nearest even
        to.bits = sign | (u16)lrintf(__uint_as_float(magnitude) * 0x1p24f);
    } else {
        to.bits = sign | (u16)((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13);
    }
}
template <class T>
DEV u32 pack(float low, float high, T) {
    T l, h;
    narrow(l, low);
    narrow(h, high);
    return l.bits | (u32)h.bits << 16;
}
DEV float load_fresh(const float* p) { return *p; }
DEV float4 load_fresh(const float4* p) { return *p; }
DEV float exp2_fast(float x) { return exp2f(x); }

#endif

DEV real to_real(float x) {
    real y;
    narrow(y, x);
    return y;
}
DEV float rounded(float x) { return widen(to_real(x)); }

// ---- Vector loads and stores: 16 bytes at a time where `valid` and the address allow it

DEV bool aligned(const void* p) { return ((size_t)p & 15) == 0; }
DEV void unpack(float& low, float& high, u32 both, bf16) {
    low = __uint_as_float(both << 16);
    high = __uint_as_float(both & 0xffff0000u);
}
DEV void unpack(float& low, float& high, u32 both, half) {
    low = widen(half{(u16)both});
    high = widen(half{(u16)(both >> 16)});
}

DEV void load8_aligned(float (&v)[8], const float* p) {
    float4 a = reinterpret_cast<const float4*>(p)[0], b = reinterpret_cast<const float4*>(p)[1];
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
    v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}
template <class T>
DEV void load8_aligned(float (&v)[8], const T* p) {
    uint4 a = *reinterpret_cast<const uint4*>(p);
    unpack(v[0], v[1], a.x, T()), unpack(v[2], v[3], a.y, T());
    unpack(v[4], v[5], a.z, T()), unpack(v[6], v[7], a.w, T());
}
DEV void store8_aligned(float* p, const float (&v)[8]) {
    reinterpret_cast<float4*>(p)[0] = make_float4(v[0], v[1], v[2], v[3]);
    reinterpret_cast<float4*>(p)[1] = make_float4(v[4], v[5], v[6], v[7]);
}
template <class T>
DEV void store8_aligned(T* p, const float (&v)[8]) {
    *reinterpret_cast<uint4*>(p) =
        make_uint4(pack(v[0], v[1], T()), pack(v[2], v[3], T()), pack(v[4], v[5], T()), pack(v[6], v[7], T()));
}
// v = the first `valid` of 8 elements, then zeros.
template <class T>
DEV void load8(float (&v)[8], const T* p, i64 valid) {
    if (valid >= 8 && aligned(p)) {
        load8_aligned(v, p);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = i < valid ? widen(p[i]) : 0.0f;
}
// The first `valid` of 8 elements = v.
template <class T>
DEV void store8(T* p, const float (&v)[8], i64 valid) {
    if (valid >= 8 && aligned(p)) {
        store8_aligned(p, v);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (i < valid) narrow(p[i], v[i]);
}

// Four neighbours as they lie in memory.
template <class T>
struct Four {
    uint2 v;
};
template <>
struct Four<float> {
    float4 v;
};
template <class T>
DEV Four<T> load_four(const T* p) {
    return *reinterpret_cast<const Four<T>*>(p);
}
// v[at], ..., v[at + 3] = them.
template <int at = 0, int n, class T>
DEV void unpack(float (&v)[n], Four<T> four) {
    unpack(v[at], v[at + 1], four.v.x, T()), unpack(v[at + 2], v[at + 3], four.v.y, T());
}
template <int at = 0, int n>
DEV void unpack(float (&v)[n], Four<float> four) {
    v[at] = four.v.x, v[at + 1] = four.v.y, v[at + 2] = four.v.z, v[at + 3] = four.v.w;
}
template <class T>
DEV void load4_aligned(float (&v)[4], const T* p) {
    unpack(v, load_four(p));
}
template <class T>
DEV bool aligned4(const T* p) {
    return ((size_t)p & (4 * sizeof(T) - 1)) == 0;
}
// As load8.
template <class T>
DEV void load4(float (&v)[4], const T* p, int valid) {
    if (valid >= 4 && aligned4(p)) {
        load4_aligned(v, p);
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = i < valid ? widen(p[i]) : 0.0f;
}

// Two neighbours, aligned to both.
DEV void store2(float* p, float a, float b) { *reinterpret_cast<float2*>(p) = make_float2(a, b); }
template <class T>
DEV void store2(T* p, float a, float b) {
    *reinterpret_cast<u32*>(p) = pack(a, b, T());
}
template <int at = 0, int n>
DEV void store4_aligned(float* p, const float (&v)[n]) {
    *reinterpret_cast<float4*>(p) = make_float4(v[at], v[at + 1], v[at + 2], v[at + 3]);
}
template <int at = 0, int n, class T>
DEV void store4_aligned(T* p, const float (&v)[n]) {
    *reinterpret_cast<uint2*>(p) = make_uint2(pack(v[at], v[at + 1], T()), pack(v[at + 2], v[at + 3], T()));
}
// As store8.
template <class T>
DEV void store4(T* p, const float (&v)[4], int valid) {
    if (valid >= 4 && aligned4(p)) {
        store4_aligned(p, v);
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (i < valid) narrow(p[i], v[i]);
}

// ---- Rows, of whose elements a thread takes 8 at a time: 4 from column c on and 4 from c + 128 on
//
// So what the lanes of a warp access at once is contiguous in every dtype. c is first_column(), then that and 8 * blockDim.x, ...

DEV int first_column() { return threadIdx.x / 32 * 256 + threadIdx.x % 32 * 4; }
// The column of element j of those from column c on.
DEV int split_column(int c, int j) { return c + j + j / 4 * 124; }
// Whether rows of so many elements at these addresses, of which all threads of the block know the same, consist of whole vectors.
template <class... T>
DEV bool in_vectors(i64 width, const T*... rows) {
    return width % 4 == 0 && (aligned4(rows) && ...);
}
// v = a thread's elements of the `valid` from p on, then zeros; `vectors` promises what in_vectors says.
template <class T>
DEV void load_split(float (&v)[8], const T* p, i64 valid, bool vectors) {
    if (vectors) {
        Four<T> low = {}, high = {};
        if (valid > 0) low = load_four(p);
        if (valid > 128) high = load_four(p + 128);
        unpack<0>(v, low), unpack<4>(v, high);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = split_column(0, i) < valid ? widen(p[split_column(0, i)]) : 0.0f;
}
// A thread's elements of the `valid` from p on = v.
template <class T>
DEV void store_split(T* p, const float (&v)[8], i64 valid, bool vectors) {
    if (vectors) {
        if (valid > 0) store4_aligned<0>(p, v);
        if (valid > 128) store4_aligned<4>(p + 128, v);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (split_column(0, i) < valid) narrow(p[split_column(0, i)], v[i]);
}

// ---- Reductions in a fixed order

DEV float warp_sum(float x) {
#pragma unroll
    for (int lane = 16; lane; lane /= 2) x += __shfl_xor_sync(WARP_ALL, x, lane);
    return x;
}
DEV float warp_max(float x) {
#pragma unroll
    for (int lane = 16; lane; lane /= 2) x = fmaxf(x, __shfl_xor_sync(WARP_ALL, x, lane));
    return x;
}
DEV int warp_max(int x) {
#pragma unroll
    for (int lane = 16; lane; lane /= 2) x = max(x, __shfl_xor_sync(WARP_ALL, x, lane));
    return x;
}
// The sum over the block, for every thread; whole warps only. `parts` is shared memory of 32 floats.
DEV float block_sum(float x, float* parts) {
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
#ifndef PLANT_NO_BARRIER
    __syncthreads();
#endif
    float total = 0.0f;
    for (int i = 0; i < blockDim.x / 32; i++) total += parts[i];
    __syncthreads();
    return total;
}
DEV float block_max(float x, float* parts) {
    x = warp_max(x);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    float largest = parts[0];
    for (int i = 1; i < blockDim.x / 32; i++) largest = fmaxf(largest, parts[i]);
    __syncthreads();
    return largest;
}

// ---- Rotations

// Rotates the pairs (a, b) by the angles of these cosines and sines, or with `sign` -1 back.
template <int n>
DEV void rotate(float (&a)[n], float (&b)[n], const float (&cosine)[n], const float (&sine)[n], float sign) {
#pragma unroll
    for (int j = 0; j < n; j++) {
        float first = a[j] * cosine[j] - b[j] * (sign * sine[j]);
        b[j] = b[j] * cosine[j] + a[j] * (sign * sine[j]);
        a[j] = first;
    }
}

// ---- Gated activations

DEV float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
// A function's value and slope; a type, so that its loops are compiled for it alone.
struct Silu {
    static DEV float value(float x) { return x * sigmoid(x); }
    static DEV float slope(float x) {
        float s = sigmoid(x);
        return s * (1.0f + x * (1.0f - s));
    }
};
// gate = f(gate) * up.
template <class Function, int n>
DEV void gate_value(Function f, float (&gate)[n], const float (&up)[n]) {
#pragma unroll
    for (int j = 0; j < n; j++) gate[j] = f.value(gate[j]) * up[j];
}
// gate and up = their gradients, of that of f(gate) * up.
template <class Function, int n>
DEV void gate_gradient(Function f, float (&gate)[n], float (&up)[n], const float (&d)[n]) {
#pragma unroll
    for (int j = 0; j < n; j++) {
        float d_gate = up[j] * (d[j] * f.slope(gate[j]));
        up[j] = d[j] * f.value(gate[j]);
        gate[j] = d_gate;
    }
}

// to[0..width] += scale * from[rows[0]], then += scale * from[rows[1]], ..., by the whole block; columns are independent.
DEV void add_rows(float* __restrict__ to, const float* __restrict__ from, const int* __restrict__ rows, int count,
                  int width, float scale = 1.0f) {
    // Of no rows: one that fills a table up, and whose sum is another's.
    if (count == 0) return;
    for (int c = threadIdx.x * 4; c < width; c += blockDim.x * 4) {
        float sum[4], x[4];
        load4(sum, to + c, width - c);
        for (int i = 0; i < count; i++) {
            load4(x, from + (i64)rows[i] * width + c, width - c);
#pragma unroll
            for (int j = 0; j < 4; j++) sum[j] = fmaf(scale, x[j], sum[j]);
        }
        store4(to + c, sum, width - c);
    }
}

// ---- The softmax of a row, by the whole block: online (Milakov and Gimelshein 2018)

struct Softmax {
    float row_max, row_sum;
};

// The largest of the row's elements times scale, and the sum of exp of what they are below it.
DEV Softmax softmax_of(const float* __restrict__ logits, int vocab, float* parts, float scale = 1.0f) {
    float row_max = -INFINITE, row_sum = 0.0f, v[8];
    bool vectors = in_vectors(vocab, logits);
    for (int c = first_column(); c < vocab; c += blockDim.x * 8) {
        load_split(v, logits + c, vocab - c, vectors);
        float largest = row_max;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            v[j] *= scale;
            if (split_column(c, j) < vocab) largest = fmaxf(largest, v[j]);
        }
        row_sum *= expf(row_max - largest);
        row_max = largest;
#pragma unroll
        for (int j = 0; j < 8; j++)
            if (split_column(c, j) < vocab) row_sum += expf(v[j] - row_max);
    }
    float all = block_max(row_max, parts);
    return {all, block_sum(row_max == -INFINITE ? 0.0f : row_sum * expf(row_max - all), parts)};
}
