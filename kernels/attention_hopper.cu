// Attention's forward on compute capability 9.0: the function of attention_fwd (attention.cu), for heads of 64 or 128 elements of 2
// bytes without a soft cap, where rows share much of what they see.
//
//   attention_fwd_hopper   z [N, H, D] = softmax(scores) v over each row's path; lse [N, H] = log-sum-exp of its scores
//
// Tables are those of attention_fwd_128, whose blocks come best with the longest tile lists first: of all pairs of such a block and a
// head a block of the grid takes every gridDim.x-th, in turn from the front and the back.
//
// Three warpgroups. The producer gives most of its registers away; its first warp, and no other of it, has tiles of keys and of values
// copied into a ring of STAGES tiles in the order in which they are read: keys 0, keys 1, values 0, keys 2, values 1, ... The consumers
// have 64 rows each: they hold queries in registers, and multiply them by a tile of keys while the weights of the step before are
// multiplied by its values; the softmax of the new scores runs beside the latter.
//
// Rows of a tile are those of a table. A tile whose rows follow one another is one box of 64 rows for each 64 columns (tensor copies);
// else eight rows at a multiple of eight that follow one another are one box, and all other rows are boxes of their own. Of the swizzle
// that products read a box knows by its place. Where no row stands, a box from outside of the matrix brings zeros: so a tile is full
// when all its bytes have come. It is empty when each of the consumers' warps has waited for its products.
//
// Launch: at most one block for each multiprocessor, 384 threads; dynamic shared memory 1024 + STAGES * 128 * HEAD_DIM + 128 *
// (2 * HEAD_DIM + 16) + 16 * STAGES bytes. q, k, v and the cache start at multiples of 16 bytes. k, v and the cache come as matrices
// [rows, kv_heads * HEAD_DIM] to copy boxes of.
//
// Determinism as of attention_fwd: a masked key or a tile that a row does not see leaves its sums as they are, bit for bit.
//
// References: Shah et al. 2024 (FlashAttention-3: warps that copy, products beside the softmax, tensor copies).

constexpr int STAGES = 8;  // tiles of the ring
[[maybe_unused]] constexpr int GROUP = 128;  // threads
constexpr int GROUP_ROWS = 64, QUERY_ROWS = 128;

// What is read and written.
struct Attention {
    real* z;
    float* lse;
    const real* q;
    const Boxes &k, &v, &cached_k, &cached_v;
    const int *block_rows, *list_starts, *tile_lists, *tiles, *positions, *lasts;
    int blocks, heads, kv_heads, window, ahead, alibi;
    float scale;
};

// The tiles in shared memory; tile i of all that pass through stands at i % STAGES.
struct Ring {
    real* tiles;
    u64* barriers;

    DEV real* tile(u32 i) const { return tiles + i % STAGES * (TILE * HEAD_DIM); }
    DEV u64* full(u32 i) const { return barriers + i % STAGES; }
    DEV u64* empty(u32 i) const { return barriers + STAGES + i % STAGES; }
    DEV void wait_full(u32 i) const {
#ifndef PLANT_NO_WAIT
        mbarrier_wait(full(i), i / STAGES % 2);
#endif
    }
    DEV void wait_empty(u32 i) const {
#ifdef PLANT_PHASE
        mbarrier_wait(empty(i), i / STAGES % 2);
#else
        mbarrier_wait(empty(i), i / STAGES % 2 ^ 1);
#endif
    }
    // By a whole warp, whose lanes have all done what they had to.
    DEV void arrive(u64* barrier) const {
        __syncwarp();
        if (threadIdx.x % 32 == 0) mbarrier_arrive(barrier);
    }
};

// A block of rows and a head, and the tile list.
struct Work {
    int block, head, begin, end;
};

// The work of this block of the grid in round `round`; one without tiles if there is none.
DEV Work work_of(const Attention& in, int round) {
    int place = round % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x, i = round * gridDim.x + place;
    if (i >= in.blocks * in.heads) return {0, 0, 0, 0};
    int block = i / in.heads;
    return {block, i % in.heads, in.list_starts[block], in.list_starts[block + 1]};
}
DEV int rounds_of(const Attention& in) { return (in.blocks * in.heads + gridDim.x - 1) / gridDim.x; }

// The producer's warp. Of a tile's rows, lane i has entries 2 i and 2 i + 1.
struct Producer {
    const Attention& in;
    Ring ring;
    u32 issued = 0;

    // Whether an entry of a tile is the row `distance` behind that of another entry; behind none there is none.
    static DEV bool follows(int entry, int first, int distance) {
        return entry == (first == NO_ROW ? NO_ROW : first >= 0 ? first + distance : first - distance);
    }
    // Rows from entry `at` on that one box brings, of a tile and of eights that follow one another (four bits each).
    static DEV int box_rows(bool one_run, u32 runs, int at) { return one_run ? TILE : (runs >> at / 8 * 4 & 15) == 15 ? 8 : 1; }

    DEV void copy(const Boxes& x, const Boxes& cached, int2 entries, int column) {
        constexpr int OUTSIDE = -TILE;  // no box from there has a row
        int lane = threadIdx.x % 32, of_eight = lane % 4;
        auto follow = [&](int first, int distance) {
            return follows(entries.x, first, distance) && follows(entries.y, first, distance + 1);
        };
        bool one_run = __all_sync(WARP_ALL, follow(__shfl_sync(WARP_ALL, entries.x, 0), 2 * lane));
        u32 runs = __ballot_sync(WARP_ALL, follow(__shfl_sync(WARP_ALL, entries.x, lane - of_eight), 2 * of_eight));
        ring.wait_empty(issued);
        real* tile = ring.tile(issued);
        u64* full = ring.full(issued);
#ifdef PLANT_BYTES
        if (lane == 0) mbarrier_arrive_expecting(full, TILE * HEAD_DIM);
#else
        if (lane == 0) mbarrier_arrive_expecting(full, TILE * HEAD_DIM * (int)sizeof(real));
#endif
        for (int at = 0, rows; at < TILE; at += rows) {
            rows = box_rows(one_run, runs, at);
            int entry = __shfl_sync(WARP_ALL, at % 2 ? entries.y : entries.x, at / 2);
            const Boxes& from = entry >= 0 ? x : cached;
            const TensorMap& map = rows == TILE ? from.of_64 : rows == 8 ? from.of_8 : from.of_1;
            int row = entry == NO_ROW ? OUTSIDE : entry ^ entry >> 31;
#pragma unroll
            for (int i = 0; i < HEAD_DIM; i += STRETCH)
                if (lane == 0) copy_box(tile + i * TILE + at * STRETCH, map, column + i, row, full);
        }
        issued++;
    }
    DEV void run() {
        const int4* tile_list = reinterpret_cast<const int4*>(in.tile_lists);
        const int2* tiles = reinterpret_cast<const int2*>(in.tiles);
        for (int round = 0, rounds = rounds_of(in); round < rounds; round++) {
            Work work = work_of(in, round);
            int column = work.head / (in.heads / in.kv_heads) * HEAD_DIM;
            auto entries = [&](int i) {
                return i < work.end ? tiles[(i64)tile_list[i].x * (TILE / 2) + threadIdx.x % 32] : make_int2(NO_ROW, NO_ROW);
            };
            // One tile ahead, so that a copy does not wait for its rows.
            int2 before = entries(work.end), now = entries(work.begin);
            for (int i = work.begin; i <= work.end; i++) {
                int2 next = entries(i + 1);
                if (i < work.end) copy(in.k, in.cached_k, now, column);
                if (i > work.begin) copy(in.v, in.cached_v, before, column);
                before = now, now = next;
            }
        }
    }
};

// A warp of a consumer: 16 rows of the 64 of its group.
struct Consumer {
    const Attention& in;
    Ring ring;
    real* own;  // 16 rows of shared memory, for queries and results, with what is known of the rows beside them
    u32 passed = 0;
    int first, group_first, group_last, group_low;
    FragmentA<real> queries[HEAD_DIM / 16], weights[TILE / 16];
    float s[1][TILE / 8][4], sums[1][PARTS][4], row_max[2], row_sum[2], slope;

    DEV Consumer(const Attention& in, Ring ring, real* rows) : in(in), ring(ring) {
        int warp = threadIdx.x / 32 - 4;
        own = rows + warp * 16 * STRIDE, first = warp * 16, group_first = warp / 4 * GROUP_ROWS;
    }

    DEV void load_queries(const Work& work) {
        constexpr int FAR = 0x7fffffff;
        int lane = threadIdx.x % 32;
        const int* rows = in.block_rows + work.block * QUERY_ROWS;
        slope = slope_of(work.head, in.alibi, in.scale);
        note_rows<1>(own, rows, first, in.positions, in.lasts, in.window, in.ahead);
        int last = -1, negative_low = -FAR;
#pragma unroll
        for (int i = 0; i < GROUP_ROWS; i += 32) {
            int row = rows[group_first + i + lane];
            if (row < 0) continue;
            int position = in.positions[row];
            last = max(last, min(in.lasts[row], position + in.ahead));
            negative_low = max(negative_low, in.window > 0 ? -max(0, position - in.window + 1) : 0);
        }
        group_last = warp_max(last), group_low = -warp_max(negative_low);
        for (int i = lane; i < 16 * PARTS; i += 32) {
            int row = rows[first + i / PARTS], column = i % PARTS * 8;
            const real* from = in.q + ((i64)max(row, 0) * in.heads + work.head) * HEAD_DIM + column;
            copy_async(own + i / PARTS * STRIDE + column, from, row < 0);
        }
        copy_commit();
        copy_wait<0>();
        __syncwarp();
#pragma unroll
        for (int k = 0; k < HEAD_DIM; k += 16) load_a(queries[k / 16], own + k, STRIDE);
    }

    // Where the keys and the values of entry i of a tile list stand among all tiles of the ring.
    DEV u32 keys_at(const Work& work, int i) const { return passed + max(0, 2 * (i - work.begin) - 1); }
    DEV u32 values_at(const Work& work, int i) const {
        return passed + min(2 * (i - work.begin) + 2, 2 * (work.end - work.begin) - 1);
    }

    // Whether any row of the group sees any key of a tile: the same for all of its warps.
    DEV bool sees(int4 entry) const {
        return entry.w > group_first && entry.z < group_first + GROUP_ROWS && entry.y <= group_last && entry.y + TILE > group_low;
    }

    // Weights (not yet divided by their sum) in the place of products; what the sums so far are to be multiplied by.
    DEV void online_softmax(int4 entry, float (&rescale)[2]) {
        float base2 = in.scale * LOG2_E;
        if (in.alibi) subtract_alibi(s, slope, own, entry.y);
        bool masked = !all_seen<1, TILE>(own, first, entry, entry.y);
        if (__any_sync(WARP_ALL, masked)) mask(s, own, first, entry, entry.y);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float largest = row_max[i];
#pragma unroll
            for (int n = 0; n < TILE / 8; n++) largest = fmaxf(largest, fmaxf(s[0][n][2 * i], s[0][n][2 * i + 1]));
            largest = fmaxf(largest, __shfl_xor_sync(WARP_ALL, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(WARP_ALL, largest, 2));
            float shift = largest == -INFINITE ? 0.0f : largest * base2;
            rescale[i] = exp2_fast(row_max[i] * base2 - shift);
            row_max[i] = largest;
            // Of the thread's own columns alone: they are added at the end.
            row_sum[i] *= rescale[i];
#pragma unroll
            for (int n = 0; n < TILE / 8; n++)
#pragma unroll
                for (int e = 2 * i; e < 2 * i + 2; e++) {
                    s[0][n][e] = exp2_fast(s[0][n][e] * base2 - shift);
                    row_sum[i] += s[0][n][e];
                }
        }
    }
    DEV void rescale_sums(const float (&rescale)[2]) {
#pragma unroll
        for (int n = 0; n < PARTS; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) sums[0][n][e] *= rescale[e / 2];
#pragma unroll
        for (int k = 0; k < TILE / 16; k++)
#pragma unroll
            for (int i = 0; i < 4; i++) set_pair(weights[k], i, s[0][2 * k + i / 2][i % 2 * 2], s[0][2 * k + i / 2][i % 2 * 2 + 1]);
    }

    DEV void issue_scores(u32 keys) {
        ring.wait_full(keys);
        fence_registers(queries);
        wgmma_fence();
        multiply_transposed(s, queries, ring.tile(keys));
        wgmma_commit();
    }
    DEV void issue_sums(u32 values) {
        ring.wait_full(values);
        fence_registers(weights), fence_registers(sums);
#ifndef PLANT_NO_PRODUCTS_FENCE
        wgmma_fence();
#endif
        multiply(sums, weights, ring.tile(values));
        wgmma_commit();
    }
    DEV void release(u32 i) const { ring.arrive(ring.empty(i)); }

    DEV void step(int4 entry, u32 keys, u32 values) {
        float rescale[2];
        issue_scores(keys);
        issue_sums(values);
        wgmma_wait<1>();
        fence_registers(s);
        release(keys);
        online_softmax(entry, rescale);
#ifdef PLANT_EARLY_RELEASE
        release(values);
#endif
        wgmma_wait<0>();
        fence_registers(sums);
#ifndef PLANT_EARLY_RELEASE
        release(values);
#endif
        rescale_sums(rescale);
    }
    DEV void first_step(int4 entry, u32 keys) {
        float rescale[2];
        issue_scores(keys);
#ifndef PLANT_NO_PRODUCTS_WAIT
        wgmma_wait<0>();
#endif
        fence_registers(s);
        release(keys);
        online_softmax(entry, rescale);
        rescale_sums(rescale);
    }
    DEV void last_step(u32 values) {
        issue_sums(values);
        wgmma_wait<0>();
        fence_registers(sums);
        release(values);
    }
    DEV void pass(u32 i) const {
        ring.wait_full(i);
        release(i);
    }

    DEV void store(const Work& work) {
        int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            row_sum[i] += __shfl_xor_sync(WARP_ALL, row_sum[i], 1);
            row_sum[i] += __shfl_xor_sync(WARP_ALL, row_sum[i], 2);
            int row = row_of(own, g + 8 * i);
            if (row >= 0 && t == 0) in.lse[(i64)row * in.heads + work.head] = row_max[i] * in.scale + logf(row_sum[i]);
            row_sum[i] = 1.0f / row_sum[i];
        }
        store_rows(in.z + work.head * HEAD_DIM, sums, own, row_sum, (i64)in.heads * HEAD_DIM, HEAD_DIM, 0,
                   [&](int r) { return row_of(own, r); });
    }

    DEV void run() {
        const int4* tile_list = reinterpret_cast<const int4*>(in.tile_lists);
        for (int round = 0, rounds = rounds_of(in); round < rounds; round++) {
            Work work = work_of(in, round);
            if (work.begin == work.end) continue;
            load_queries(work);
#pragma unroll
            for (int i = 0; i < 2; i++) row_max[i] = -INFINITE, row_sum[i] = 0.0f;
#pragma unroll
            for (int n = 0; n < PARTS; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) sums[0][n][e] = 0.0f;
            // Stretches of steps that any row of the group sees something of.
            auto sees_at = [&](int i) { return __any_sync(WARP_ALL, i < work.end && sees(tile_list[i])); };
            for (int i = work.begin; i < work.end; i++) {
                if (!sees_at(i)) {
                    pass(keys_at(work, i)), pass(values_at(work, i));
                    continue;
                }
                first_step(tile_list[i], keys_at(work, i));
                while (sees_at(i + 1)) {
                    i++;
                    step(tile_list[i], keys_at(work, i), values_at(work, i - 1));
                }
                last_step(values_at(work, i));
            }
            passed += 2 * (work.end - work.begin);
            store(work);
        }
    }
};

extern "C" __global__ void __launch_bounds__(384, 1)
    attention_fwd_hopper(real* __restrict__ z, float* __restrict__ lse, const real* __restrict__ q,
                         const __grid_constant__ Boxes k, const __grid_constant__ Boxes v, const __grid_constant__ Boxes cached_k,
                         const __grid_constant__ Boxes cached_v, const int* __restrict__ block_rows, const int* __restrict__ list_starts,
                         const int* __restrict__ tile_lists, const int* __restrict__ tiles, const int* __restrict__ positions,
                         const int* __restrict__ lasts, int blocks, int heads, int kv_heads, float scale, int window, int ahead,
                         int alibi) {
    begin_kernel();
#if defined(SIMT) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
    DYNAMIC_SHARED(memory);
    Attention in = {z,         lse,   q,      k,     v,        cached_k, cached_v, block_rows, list_starts, tile_lists, tiles,
                    positions, lasts, blocks, heads, kv_heads, window,   ahead,    alibi,      scale};
    real* ring_tiles = reinterpret_cast<real*>(memory + (-(int)shared_address(memory) & 1023));
    real* rows = ring_tiles + STAGES * TILE * HEAD_DIM;
    Ring ring = {ring_tiles, reinterpret_cast<u64*>(rows + QUERY_ROWS * STRIDE)};
    if (threadIdx.x < STAGES) {
        mbarrier_init(ring.full(threadIdx.x), 1);
        mbarrier_init(ring.empty(threadIdx.x), 2 * GROUP / 32);
#ifndef PLANT_NO_FENCE
        fence_proxy_async();
#endif
    }
    __syncthreads();
    if (__shfl_sync(WARP_ALL, threadIdx.x / GROUP, 0) == 0) {
#ifndef PLANT_REGISTERS
        decrease_registers<40>();
#endif
        if (threadIdx.x < 32) Producer{in, ring}.run();
    } else {
        increase_registers<232>();
        Consumer(in, ring, rows).run();
    }
#endif
}
