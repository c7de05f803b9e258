// What the attention of compute capability 9.0 (sm_90a) is made of: barriers that count arrivals and bytes, copies of boxes of a matrix
// by no thread, products of warpgroups, which read matrices in shared memory while the warps go on, and registers that warps give to
// others. Beside each piece of PTX stands its meaning in C++ (tests/simt/hopper.h, tensor_copy.h). Source: PTX ISA, "Asynchronous
// Warpgroup Level Matrix Instructions", "mbarrier", "cp.async.bulk.tensor", "setmaxnreg".
//
// A tile is 64 rows of one head, in stretches of 64 columns: stretch c of row r are the 128 bytes at 128 * (64 c + r), of whose
// eight parts of 16 bytes part p stands at p ^ r % 8: the swizzle of 128 bytes that a matrix descriptor names. It starts at a
// multiple of 1024 bytes.

constexpr int STRETCH = 64;  // columns

// As the driver makes it (cuTensorMapEncodeTiled; CUDA 13 aligns it to 128 bytes).
struct __align__(128) TensorMap {
    u64 opaque[16];
};
// A matrix [rows, columns] of which boxes of 64 columns are copied, so many rows at a time: src/backend/cuda/tensor_map.rs.
struct Boxes {
    TensorMap of_64, of_8, of_1;
};

#ifndef SIMT

// A barrier is complete for a phase when `count` arrivals came since its last one, and all bytes that they announced. Phases are 0, 1,
// 0, ... What tensor copies use must be made visible to them first (fence_proxy_async).
DEV void mbarrier_init(u64* barrier, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
DEV void mbarrier_arrive(u64* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
DEV void mbarrier_arrive_expecting(u64* barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}
DEV void mbarrier_wait(u64* barrier, int phase) {
    u32 complete = 0;
    while (!complete)
        asm volatile(
            "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
            : "=r"(complete)
            : "r"(shared_address(barrier)), "r"(phase)
            : "memory");
}

// What this thread has written to shared memory may be used by products and tensor copies of those that are told of it later.
DEV void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Copies the box of `map` whose first element is at (row, column) to rows of 128 bytes in shared memory that are swizzled by their
// address; what is outside of the matrix is zero. The barrier is told of the bytes, those outside included.
DEV void copy_box(void* to, const TensorMap& map, int column, int row, u64* barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
            shared_address(to)),
        "l"(&map), "r"(column), "r"(row), "r"(shared_address(barrier))
        : "memory");
}

// Before the first product after registers of a sum or a left factor were accessed.
DEV void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Closes the group of the products issued since the last one.
DEV void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most the `open` youngest groups are under way. Sums must be settled behind it.
template <int open>
DEV void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(open) : "memory");
}
// Keeps the compiler from moving accesses of registers across this line, since it does not know when products access them.
template <int parts>
DEV void fence_registers(float (&c)[1][parts][4]) {
#pragma unroll
    for (int n = 0; n < parts; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) asm volatile("" : "+f"(c[0][n][e])::"memory");
}
template <class T, int parts>
DEV void fence_registers(FragmentA<T> (&a)[parts]) {
#pragma unroll
    for (int k = 0; k < parts; k++)
#pragma unroll
        for (int i = 0; i < 4; i++) asm volatile("" : "+r"(a[k].pair[i])::"memory");
}

template <int count>
DEV void decrease_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}
template <int count>
DEV void increase_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}

#define SUMS(n) "+f"(c[0][n][0]), "+f"(c[0][n][1]), "+f"(c[0][n][2]), "+f"(c[0][n][3])
#define SUMS_64 SUMS(0), SUMS(1), SUMS(2), SUMS(3), SUMS(4), SUMS(5), SUMS(6), SUMS(7)
#define SUMS_128 SUMS_64, SUMS(8), SUMS(9), SUMS(10), SUMS(11), SUMS(12), SUMS(13), SUMS(14), SUMS(15)
#define NAMES_64                                                                                           \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27," \
    "%28,%29,%30,%31"
#define NAMES_128                                                                                             \
    NAMES_64 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54," \
             "%55,%56,%57,%58,%59,%60,%61,%62,%63"

// c [64, n] of a warpgroup, 16 rows a warp, = A [64, 16] B [16, n], or += if `add`, without waiting. B is a matrix in shared memory:
// by_rows, each row is one of B, else one column of it.
#define PRODUCT(n, T, name, a0, a1, a2, a3, at, add_at, form)                                                       \
    template <bool by_rows>                                                                                         \
    DEV void wgmma(float (&c)[1][n / 8][4], const FragmentA<T>& a, u64 b, bool add) {                       \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, " add_at ", 0;"                                                \
                     " wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." name "." name " {" NAMES_##n "}, "          \
                     "{" a0 "," a1 "," a2 "," a3 "}, " at ", p, 1, 1, " form "; }"                                   \
                     : SUMS_##n                                                                                     \
                     : "r"(a.pair[0]), "r"(a.pair[1]), "r"(a.pair[2]), "r"(a.pair[3]), "l"(b), "r"((int)add),       \
                       "n"(by_rows ? 1 : 0));                                                                       \
    }
PRODUCT(64, bf16, "bf16", "%32", "%33", "%34", "%35", "%36", "%37", "%38")
PRODUCT(64, half, "f16", "%32", "%33", "%34", "%35", "%36", "%37", "%38")
PRODUCT(128, bf16, "bf16", "%64", "%65", "%66", "%67", "%68", "%69", "%70")
PRODUCT(128, half, "f16", "%64", "%65", "%66", "%67", "%68", "%69", "%70")

#else

inline u32 shared_address(const void* p) { return simt::shared_address(p); }
inline void mbarrier_init(u64* barrier, int count) { simt::mbarrier_init(barrier, count); }
inline void mbarrier_arrive(u64* barrier) { simt::mbarrier_arrive(barrier); }
inline void mbarrier_arrive_expecting(u64* barrier, int bytes) { simt::mbarrier_arrive(barrier, bytes); }
#define mbarrier_wait(barrier, phase) simt::mbarrier_wait(SIMT_HERE, barrier, phase)
inline void fence_proxy_async() { simt::fence_proxy_async(); }
inline void copy_box(void* to, const TensorMap& map, int column, int row, u64* barrier) {
    simt::copy_box(to, &map, column, row, barrier);
}
#define wgmma_fence() simt::wgmma_fence(SIMT_HERE)
#define wgmma_commit() simt::wgmma_commit(SIMT_HERE)
template <int open>
inline void wgmma_wait() {
    simt::wgmma_wait(SIMT_HERE, open);
}
template <class T>
inline void fence_registers(T&) {}
template <int count>
inline void decrease_registers() {
    simt::set_max_registers(SIMT_HERE, count, false);
}
template <int count>
inline void increase_registers() {
    simt::set_max_registers(SIMT_HERE, count, true);
}
template <bool by_rows, int parts, class T>
inline void wgmma(float (&c)[1][parts][4], const FragmentA<T>& a, u64 b, bool add) {
    auto value = [](u16 bits) { return widen(T{bits}); };
    simt::wgmma(SIMT_HERE, {&c[0][0][0], 4 * parts, a.pair, b, add, by_rows, value});
}

#endif

// A matrix in shared memory, of a tile from a row or a column on: `lead` bytes from one stretch to the next where rows are those of
// the matrix, `stride` bytes from 8 rows to the next 8.
DEV u64 descriptor(const void* start, int lead, int stride) {
    constexpr u64 SWIZZLE_128 = (u64)1 << 62;
    return SWIZZLE_128 | (u64)(stride >> 4) << 32 | (u64)(lead >> 4) << 16 | (shared_address(start) & 0x3ffff) >> 4;
}

// c [64, 64] = A [64, HEAD_DIM] B^T for a tile B, issued.
template <class T>
DEV void multiply_transposed(float (&c)[1][TILE / 8][4], const FragmentA<T> (&a)[HEAD_DIM / 16], const T* tile) {
#pragma unroll
    for (int k = 0; k < HEAD_DIM; k += 16) {
        const T* start = tile + k / STRETCH * (TILE * STRETCH) + k % STRETCH;
        wgmma<false>(c, a[k / 16], descriptor(start, 16, 8 * STRETCH * sizeof(T)), k > 0);
    }
}
// c [64, HEAD_DIM] += A [64, 64] B for a tile B, issued.
template <class T>
DEV void multiply(float (&c)[1][HEAD_DIM / 8][4], const FragmentA<T> (&a)[TILE / 16], const T* tile) {
    constexpr int LEAD = TILE * STRETCH * sizeof(T), STRIDE_8 = 8 * STRETCH * sizeof(T);
#pragma unroll
    for (int k = 0; k < TILE; k += 16) wgmma<true>(c, a[k / 16], descriptor(tile + k * STRETCH, LEAD, STRIDE_8), true);
}
