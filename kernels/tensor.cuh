// Tensor cores and the shared memory that feeds them: fragments, matrix loads, asynchronous copies, products of a warp. This
// text stands behind the prelude's before each kernel's own.
//
// Fragments of C [16, 8] += A [16, 16] B [16, 8] of 16-bit floats:
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

// Sums of double, rounded once. On tensor cores too products are exact and sums are brought to the size of a float at the end, there by
// cutting (Fasi, Higham, Mikaitis and Pranesh 2021, "Numerical behavior of NVIDIA tensor cores").
template <class T>
inline void mma_at(const char* where, float (&c)[4], const FragmentA<T>& a, const FragmentB<T>& b) {
    MmaOperand<T> operand{c, &a, &b};
    simt::warp_operation(WARP_ALL, operand, where, [](MmaOperand<T>** lanes, u32) {
        double A[16][16], B[16][8];
        for (int lane = 0; lane < 32; lane++) {
            int g = lane / 4, t = lane % 4;
            for (int i = 0; i < 8; i++) A[g + i / 2 % 2 * 8][2 * t + i % 2 + i / 4 * 8] = element(lanes[lane]->a, i);
            for (int i = 0; i < 4; i++) B[2 * t + i % 2 + i / 2 * 8][g] = element(lanes[lane]->b, i);
        }
        for (int lane = 0; lane < 32; lane++)
            for (int i = 0; i < 4; i++) {
                int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
                double sum = lanes[lane]->c[i];
                for (int k = 0; k < 16; k++) sum += A[row][k] * B[k][column];
                lanes[lane]->c[i] = float(sum);
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
    simt::note_written(copy.to);
}
inline void copy_async(void* to, const void* from, bool zeros) {
    simt::must_have_begun();
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
    simt::before_landing();
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
    // c [16 m, n] += A [16 m, depth] B^T for tiles A [16 m, .] and B [n, .].
    template <int n, int depth, int m>
    static DEV void transposed(float (&c)[m][n / 8][4], const T* a, const T* b, int stride) {
#pragma unroll
        for (int k = 0; k < depth; k += 16) {
            FragmentA<T> left[m];
#pragma unroll
            for (int i = 0; i < m; i++) load_a(left[i], a + i * 16 * stride + k, stride);
#pragma unroll
            for (int j = 0; j < n; j += 16) {
                FragmentB<T> first, second;
                load_b(first, second, b + j * stride + k, stride);
#pragma unroll
                for (int i = 0; i < m; i++) {
                    mma(c[i][j / 8], left[i], first);
                    mma(c[i][j / 8 + 1], left[i], second);
                }
            }
        }
    }
    // c [16 m, n] += A [16 m, depth] B for sums A (the C fragments of an earlier product), rounded, and a tile B [depth, .].
    template <int n, int depth, int m>
    static DEV void of_sums(float (&c)[m][n / 8][4], const float (&a)[m][depth / 8][4], const T* b, int stride) {
#pragma unroll
        for (int k = 0; k < depth; k += 16) {
            FragmentA<T> left[m];
#pragma unroll
            for (int i = 0; i < 4 * m; i++) {
                const float(&sums)[4] = a[i / 4][k / 8 + i % 4 / 2];
                set_pair(left[i / 4], i % 4, sums[i % 2 * 2], sums[i % 2 * 2 + 1]);
            }
#pragma unroll
            for (int j = 0; j < n; j += 16) {
                FragmentB<T> first, second;
                load_b_rows(first, second, b + k * stride + j, stride);
#pragma unroll
                for (int i = 0; i < m; i++) {
                    mma(c[i][j / 8], left[i], first);
                    mma(c[i][j / 8 + 1], left[i], second);
                }
            }
        }
    }
};
// The same of 16 rows by plain FMA: each lane makes the sums that it would hold.
template <>
struct Product<float> {
    template <int n, int depth>
    static DEV void transposed(float (&all)[1][n / 8][4], const float* a, const float* b, int stride) {
        float(&c)[n / 8][4] = all[0];
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
    static DEV void of_sums(float (&all)[1][n / 8][4], const float (&sums)[1][depth / 8][4], const float* b, int stride) {
        float(&c)[n / 8][4] = all[0];
        const float(&a)[depth / 8][4] = sums[0];
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
