// What every kernel stands on: dtypes, vector loads, reductions in a fixed order, tensor-core fragments, and
// asynchronous copies. This text stands before each kernel's own when it is compiled; it includes no CUDA header.
//
// REAL (given by the build) is the compute dtype: float, bf16 or half. The only inline PTX of the project is here, and
// beside each piece of it stands the same thing in C++ for tests that run kernels on the CPU (SIMT).

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

#ifdef SIMT
#define DYNAMIC_SHARED(name) unsigned char* name = simt::dynamic_shared()
#else
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
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

DEV void load4_aligned(float (&v)[4], const float* p) {
    float4 a = *reinterpret_cast<const float4*>(p);
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
}
template <class T>
DEV void load4_aligned(float (&v)[4], const T* p) {
    uint2 a = *reinterpret_cast<const uint2*>(p);
    unpack(v[0], v[1], a.x, T()), unpack(v[2], v[3], a.y, T());
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

// Two neighbours; `whole` promises that both exist and that the address is aligned to both.
DEV void store2(float* p, float a, float b, int valid, bool whole) {
    if (whole) {
        *reinterpret_cast<float2*>(p) = make_float2(a, b);
    } else {
        if (valid > 0) p[0] = a;
        if (valid > 1) p[1] = b;
    }
}
template <class T>
DEV void store2(T* p, float a, float b, int valid, bool whole) {
    if (whole) {
        *reinterpret_cast<u32*>(p) = pack(a, b, T());
    } else {
        if (valid > 0) narrow(p[0], a);
        if (valid > 1) narrow(p[1], b);
    }
}
DEV void store4_aligned(float* p, const float (&v)[4]) {
    *reinterpret_cast<float4*>(p) = make_float4(v[0], v[1], v[2], v[3]);
}
template <class T>
DEV void store4_aligned(T* p, const float (&v)[4]) {
    *reinterpret_cast<uint2*>(p) = make_uint2(pack(v[0], v[1], T()), pack(v[2], v[3], T()));
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

// to[0..width] += scale * from[rows[0]], then += scale * from[rows[1]], ..., by the whole block; columns are independent.
DEV void add_rows(float* __restrict__ to, const float* __restrict__ from, const int* __restrict__ rows, int count,
                  int width, float scale = 1.0f) {
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
    for (int c = threadIdx.x * 8; c < vocab; c += blockDim.x * 8) {
        load8(v, logits + c, vocab - c);
        float largest = row_max;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            v[j] *= scale;
            if (c + j < vocab) largest = fmaxf(largest, v[j]);
        }
        row_sum *= expf(row_max - largest);
        row_max = largest;
#pragma unroll
        for (int j = 0; j < 8; j++)
            if (c + j < vocab) row_sum += expf(v[j] - row_max);
    }
    float all = block_max(row_max, parts);
    return {all, block_sum(row_max == -INFINITE ? 0.0f : row_sum * expf(row_max - all), parts)};
}

// ---- Tensor-core fragments: C [16, 8] += A [16, 16] B [16, 8] of 16-bit floats
//
// Lane 4 g + t of a warp holds these elements:
//   A: pair 0 = rows g, columns 2t, 2t+1; pair 1 = the same of row g+8; pairs 2 and 3 = columns 2t+8, 2t+9 of both
//   B: pair 0 = rows 2t, 2t+1 of column g; pair 1 = rows 2t+8, 2t+9
//   C: 0, 1 = row g, columns 2t, 2t+1; 2, 3 = row g+8

template <class T>
struct FragmentA {
    u32 pair[4];
};
template <class T>
struct FragmentB {
    u32 pair[2];
};

template <class T>
DEV void set_pair(FragmentA<T>& f, int i, float low, float high) {
    f.pair[i] = pack(low, high, T());
}
template <class T>
DEV void set_pair(FragmentB<T>& f, int i, float low, float high) {
    f.pair[i] = pack(low, high, T());
}

#ifndef SIMT

DEV void mma(float (&c)[4], const FragmentA<bf16>& a, const FragmentB<bf16>& b) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.pair[0]), "r"(a.pair[1]), "r"(a.pair[2]), "r"(a.pair[3]), "r"(b.pair[0]), "r"(b.pair[1]));
}
DEV void mma(float (&c)[4], const FragmentA<half>& a, const FragmentB<half>& b) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.pair[0]), "r"(a.pair[1]), "r"(a.pair[2]), "r"(a.pair[3]), "r"(b.pair[0]), "r"(b.pair[1]));
}

DEV u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
DEV void load_matrices(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
DEV void load_matrices_transposed(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// 16 bytes from global to shared memory, both aligned to 16, or 16 zeros; there once waited for.
DEV void copy_async(void* to, const void* from, bool zeros) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(zeros ? 0 : 16)
                 : "memory");
}
// Closes the group of the copies issued since the last one.
DEV void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most the `open` youngest groups of this thread are under way.
template <int open>
DEV void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(open) : "memory");
}

#else

// The values that the lanes of a warp bring together, as whole matrices.
template <class T>
struct MmaOperand {
    float* c;
    const FragmentA<T>* a;
    const FragmentB<T>* b;
};
template <class T>
DEV float element(const u32* pairs, int i, T) {
    float low, high;
    unpack(low, high, pairs[i / 2], T());
    return i % 2 ? high : low;
}
template <class T>
DEV float element(const FragmentA<T>* f, int i) {
    return element(f->pair, i, T());
}
template <class T>
DEV float element(const FragmentB<T>* f, int i) {
    return element(f->pair, i, T());
}

template <class T>
inline void mma_at(const char* where, float (&c)[4], const FragmentA<T>& a, const FragmentB<T>& b) {
    MmaOperand<T> operand{c, &a, &b};
    simt::warp_operation(WARP_ALL, operand, where, [](MmaOperand<T>** lanes, u32) {
        float A[16][16], B[16][8];
        for (int lane = 0; lane < 32; lane++) {
            int g = lane / 4, t = lane % 4;
            for (int i = 0; i < 8; i++) A[g + i / 2 % 2 * 8][2 * t + i % 2 + i / 4 * 8] = element(lanes[lane]->a, i);
            for (int i = 0; i < 4; i++) B[2 * t + i % 2 + i / 2 * 8][g] = element(lanes[lane]->b, i);
        }
        for (int lane = 0; lane < 32; lane++)
            for (int i = 0; i < 4; i++) {
                int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
                float sum = lanes[lane]->c[i];
                for (int k = 0; k < 16; k++) sum += A[row][k] * B[k][column];
                lanes[lane]->c[i] = sum;
            }
    });
}
#define mma(...) mma_at(SIMT_HERE, __VA_ARGS__)

inline void load_matrices_at(const char* where, u32 (&r)[4], const void* row, bool transposed) {
    struct Operand {
        u16 row[8];
        u32* r;
        bool transposed;
    } operand{{}, r, transposed};
    if ((size_t)row & 15) simt::fail("ldmatrix: a row is not aligned to 16 bytes");
    {
        sanitize::Whole whole(row, nullptr, 16);
        for (int i = 0; i < 8; i++) operand.row[i] = static_cast<const u16*>(row)[i];
    }
    simt::warp_operation(WARP_ALL, operand, where, [](Operand** lanes, u32) {
        for (int lane = 0; lane < 32; lane++)
            for (int m = 0; m < 4; m++) {
                int i = lane / 4, j = lane % 4 * 2;
                bool transposed = lanes[lane]->transposed;
                u16 low = transposed ? lanes[8 * m + j]->row[i] : lanes[8 * m + i]->row[j];
                u16 high = transposed ? lanes[8 * m + j + 1]->row[i] : lanes[8 * m + i]->row[j + 1];
                lanes[lane]->r[m] = low | (u32)high << 16;
            }
    });
}
#define load_matrices(r, row) load_matrices_at(SIMT_HERE, r, row, false)
#define load_matrices_transposed(r, row) load_matrices_at(SIMT_HERE, r, row, true)

// In words, so that the sanitizers see each access.
inline void land(const simt::Copy& copy) {
    sanitize::Whole whole(copy.zeros ? nullptr : copy.from, copy.to, 16);
    u64* to = static_cast<u64*>(copy.to);
    const u64* from = static_cast<const u64*>(copy.from);
    to[0] = copy.zeros ? 0 : from[0];
    to[1] = copy.zeros ? 0 : from[1];
}
inline void copy_async(void* to, const void* from, bool zeros) {
    if (((size_t)to | (size_t)from) & 15) simt::fail("cp.async: an address is not aligned to 16 bytes");
    bool early;
    {
        sanitize::Quiet quiet;
        early = simt::scheduler().early;
        if (!early) simt::self().open.push_back({to, from, zeros});
    }
    if (early) land({to, from, zeros});
}
inline void copy_commit() {
    sanitize::Quiet quiet;
    simt::self().groups.push_back(std::move(simt::self().open));
    simt::self().open.clear();
}
template <int open>
inline void copy_wait() {
    std::vector<simt::Copy> due;
    {
        sanitize::Quiet quiet;
        auto& groups = simt::self().groups;
        while (groups.size() > open) {
            due.insert(due.end(), groups[0].begin(), groups[0].end());
            groups.erase(groups.begin());
        }
    }
    for (const simt::Copy& copy : due) land(copy);
}

#endif

// The A fragment of 16 rows and columns of a row-major tile in shared memory; its rows are aligned to 16 bytes.
template <class T>
DEV void load_a(FragmentA<T>& f, const T* tile, int stride) {
    int lane = threadIdx.x % 32;
    load_matrices(f.pair, tile + lane % 16 * stride + lane / 16 * 8);
}
// Two B fragments of a tile that holds 16 columns of B as rows: columns 0 to 7 and 8 to 15.
template <class T>
DEV void load_b(FragmentB<T>& left, FragmentB<T>& right, const T* tile, int stride) {
    int lane = threadIdx.x % 32;
    u32 r[4];
    load_matrices(r, tile + (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8);
    left.pair[0] = r[0], left.pair[1] = r[1];
    right.pair[0] = r[2], right.pair[1] = r[3];
}
// The same of a tile that holds 16 rows of B as rows.
template <class T>
DEV void load_b_rows(FragmentB<T>& left, FragmentB<T>& right, const T* tile, int stride) {
    int lane = threadIdx.x % 32;
    u32 r[4];
    load_matrices_transposed(r, tile + lane % 16 * stride + lane / 16 * 8);
    left.pair[0] = r[0], left.pair[1] = r[1];
    right.pair[0] = r[2], right.pair[1] = r[3];
}

// Products of a warp with tiles in shared memory, their rows aligned to 16 bytes.
template <class T>
struct Product {
    // c [16, n] += A [16, depth] B^T for tiles A [16, .] and B [n, .].
    template <int n, int depth>
    static DEV void transposed(float (&c)[n / 8][4], const T* a, const T* b, int stride) {
#pragma unroll
        for (int k = 0; k < depth; k += 16) {
            FragmentA<T> left;
            load_a(left, a + k, stride);
#pragma unroll
            for (int j = 0; j < n; j += 16) {
                FragmentB<T> first, second;
                load_b(first, second, b + j * stride + k, stride);
                mma(c[j / 8], left, first);
                mma(c[j / 8 + 1], left, second);
            }
        }
    }
    // c [16, n] += A [16, depth] B for sums A (the C fragments of an earlier product), rounded, and a tile B [depth, .].
    template <int n, int depth>
    static DEV void of_sums(float (&c)[n / 8][4], const float (&a)[depth / 8][4], const T* b, int stride) {
#pragma unroll
        for (int k = 0; k < depth; k += 16) {
            FragmentA<T> left;
#pragma unroll
            for (int i = 0; i < 4; i++)
                set_pair(left, i, a[k / 8 + i / 2][i % 2 * 2], a[k / 8 + i / 2][i % 2 * 2 + 1]);
#pragma unroll
            for (int j = 0; j < n; j += 16) {
                FragmentB<T> first, second;
                load_b_rows(first, second, b + k * stride + j, stride);
                mma(c[j / 8], left, first);
                mma(c[j / 8 + 1], left, second);
            }
        }
    }
};
// The same by plain FMA: each lane makes the sums that it would hold.
template <>
struct Product<float> {
    template <int n, int depth>
    static DEV void transposed(float (&c)[n / 8][4], const float* a, const float* b, int stride) {
        int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll 1
        for (int k = 0; k < depth; k += 4) {
            float rows[2][4], column[4];
            load4_aligned(rows[0], a + g * stride + k);
            load4_aligned(rows[1], a + (g + 8) * stride + k);
#pragma unroll
            for (int j = 0; j < n / 8; j++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    load4_aligned(column, b + (j * 8 + 2 * t + e) * stride + k);
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        c[j][e] = fmaf(rows[0][i], column[i], c[j][e]);
                        c[j][2 + e] = fmaf(rows[1][i], column[i], c[j][2 + e]);
                    }
                }
        }
    }
    template <int n, int depth>
    static DEV void of_sums(float (&c)[n / 8][4], const float (&a)[depth / 8][4], const float* b, int stride) {
        int lane = threadIdx.x % 32, t = lane % 4;
#pragma unroll
        for (int k = 0; k < depth; k++) {
            int owner = (lane & ~3) + k % 8 / 2;
            float top = __shfl_sync(WARP_ALL, a[k / 8][k % 2], owner);
            float bottom = __shfl_sync(WARP_ALL, a[k / 8][2 + k % 2], owner);
#pragma unroll
            for (int j = 0; j < n / 8; j++) {
                float2 row = *reinterpret_cast<const float2*>(b + k * stride + j * 8 + 2 * t);
                c[j][0] = fmaf(top, row.x, c[j][0]), c[j][1] = fmaf(top, row.y, c[j][1]);
                c[j][2] = fmaf(bottom, row.x, c[j][2]), c[j][3] = fmaf(bottom, row.y, c[j][3]);
            }
        }
    }
};
