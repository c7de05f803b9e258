// Attention over a forest of segments, causal or bidirectional, with grouped key-value heads.
//
//   attention_fwd        z [N, H, D] = softmax(scores) v over each row's path, scores = scale q k^T, capped, less ALiBi's
//                        bias; lse [N, H] = log-sum-exp of its scores
//   attention_fwd_128    the same bits, from blocks of 128 rows, which load a tile of keys once for 32 rows a warp
//   attention_bwd_delta  d_z_real [N, H, D] = d_z, rounded; delta [N, H] = sum(d_z_real z)
//   attention_bwd_dq     d_q [N, H, D] =
//   attention_bwd_dkv    d_k, d_v [N, K, D] =, collected from all rows that see a key, over the heads of its group
//                        d_q and d_k rotated back, as rope_bwd does, if there are cos_sin [positions, D]; D is 64 or 128 then
//   attention_pattern    out [M, H, longest] = scores by position, then -inf; or exp(score - lse), then 0
//   attention_result     out [M, H, C] = z [N, H, D] of each head times the columns of weight [C, H D] that read it
//
// Built for one HEAD_DIM, a multiple of 16; `width` <= HEAD_DIM is the real D, and what is missing counts as zeros.
// WARPS, FWD_LARGE, FWD_SMALL and BWD_STEP are chosen by the host so that two blocks of width 128 in 2 bytes fit an A100.
//
// SOFTCAP is 1 in builds whose scores are capped (Gemma 2): cap tanh(scale q k^T / cap) for scale q k^T. 0 does not read `cap`.
//
// ALiBi (Press et al. 2022): a score is less by the head's slope for every position between the last key that the row sees
// and the key; alibi is the greatest power of two up to H, from which the slopes follow, or 0 for none.
//
// Tables (made from the pack by the host, src/backend/cuda/forest.rs). Rows are taken in depth-first order of the
// forest, so that the rows of all children of a segment follow one another: one long block of queries over its keys.
//   block_rows [blocks, 64]  rows of the pack of each query block, or NO_ROW
//   tiles [tiles, 64]      rows of the keys at 64 consecutive positions of some path, from a multiple of 64 on: a row
//                          of the pack, -(r + 1) for row r of the cache, or NO_ROW
//   tile_lists [., 4]      tile, position of its first key, first and end of the block rows whose path it lies on; the
//                          list of query block b is list_starts[b]..list_starts[b + 1], ascending by position. fwd_128 has
//                          blocks of 128 rows, with lists of their own
//   order, begins, ends    [N] each: depth-first order of the rows; row order[j] sees row order[i] if
//                          begins[i] <= j < ends[i]
//   key_blocks [ceil(N / 64), 2]  which 64 rows of that order each block of keys is, and how many rows see any of them
//   positions, lasts       [N] each: a row's position, and the last that it sees: its own, or its segment's last in a
//                          bidirectional pack
// A row sees a key if it lies on its path (by its block's tile list, or begins and ends), at no later position than lasts
// says, and, if window > 0, at a position greater than its own minus window and at most `ahead` beyond its own.
//
// The host has the blocks with the most tiles, and the keys that most rows see, first, and a grid has all heads of a block
// before the next: so multiprocessors end at about the same time (rows_of_block).
//
// Launch: all blocks have 32 * WARPS threads and handle 16 * WARPS rows, each warp 16 of them, fwd_128 twice as many:
//   fwd, dq  (H, blocks * 64 / (16 * WARPS)), fwd_128 (H, blocks * 128 / (32 * WARPS)); dkv (K, ceil(N / 64) * 64 / (16 * WARPS))
//   dynamic shared memory, in rows of HEAD_DIM + 16 bytes: fwd 16 * WARPS + 4 * FWD_STEP, fwd_128 32 * WARPS + 4 * FWD_STEP;
//   dq, dkv 32 * WARPS + 4 * BWD_STEP
//   delta ceil(N H / 8) x 256; pattern (M, H) x 128; result (M, H) x 256
// dkv with part_rows > 0 has (K, parts * 64 / (16 * WARPS)) blocks, which share what keys collect from many rows and heads (part_at).
// Their sums are added up in pairs, pairs of pairs and so on, of neighbours: both leave their own in `parts`, and who comes second goes
// on with both, of which the sum has the same bits whoever it is. `parts` has 2 * 16 * WARPS * HEAD_DIM floats, and `tickets` 2 ints,
// of wide heads in f32 4, zero before and after, for each block of the grid that has such a part.
// q, k, v, d_z_real and the cache start at multiples of 16 bytes.
//
// Determinism: everything has one writer and a fixed order. Keys are taken in tiles at fixed positions, and a masked key
// or a tile that a row does not see leaves its sums as they are, bit for bit: a row's z, lse and d_q are the same bits
// however its path is cut into segments and whatever else is in the pack.
//
// References: Milakov and Gimelshein 2018 (online softmax); Dao et al. 2022, Dao 2023 (tiles in shared memory, the
// backward from lse and delta).

// What the forward reads and writes.
struct Forward {
    real* z;
    float* lse;
    const real *q, *k, *v, *cached_k, *cached_v;
    const int *block_rows, *list_starts, *tile_lists, *tiles, *positions, *lasts;
    int heads, kv_heads, width, window, ahead, alibi;
    float scale, cap;
    int second, more;
};

// The forward of a block whose warps have 16 rows for each of `fragments`; tile lists are those of blocks of LIST_ROWS rows.
template <int fragments, int LIST_ROWS>
DEV void forward(unsigned char* memory, const Forward& in) {
    constexpr int WARP_ROWS = 16 * fragments, ROWS = WARP_ROWS * WARPS, BUFFER = 2 * FWD_STEP * STRIDE;
    real* queries = reinterpret_cast<real*>(memory);
    real* buffers = queries + ROWS * STRIDE;
    int rows = rows_of_block(in.second, in.more), block = rows / (LIST_ROWS / ROWS), first = rows % (LIST_ROWS / ROWS) * ROWS;
    int head = blockIdx.x, group = head / (in.heads / in.kv_heads), t = threadIdx.x % 4, warp = threadIdx.x / 32;
    int warp_row = first + warp * WARP_ROWS, end = in.list_starts[block + 1], width = in.width;
    i64 pitch = (i64)in.kv_heads * width, q_pitch = (i64)in.heads * width;
    const real *k = in.k + group * width, *v = in.v + group * width;
    const real *cached_k = in.cached_k + group * width, *cached_v = in.cached_v + group * width;
    const int* block_rows = in.block_rows + block * LIST_ROWS;
    const int4* tile_list = reinterpret_cast<const int4*>(in.tile_lists);
    Step now = {concerned<ROWS>(in.list_starts[block], end, tile_list, first), 0};
    auto fetch_step = [&](Step s, real* to) {
        const int* rows = in.tiles + (i64)tile_list[s.entry].x * TILE + s.part * FWD_STEP;
        const real *const own[] = {k, v}, *const cached[] = {cached_k, cached_v};
        fetch<FWD_STEP>(to, own, cached, rows, FWD_STEP, pitch, width);
    };
    fetch<ROWS>(queries, in.q + head * width, block_rows + first, ROWS, q_pitch, width);
    if (now.entry < end) fetch_step(now, buffers);
    copy_commit();
    queries += warp * WARP_ROWS * STRIDE;
    note_rows<fragments>(queries, block_rows, warp_row, in.positions, in.lasts, in.window, in.ahead);
    float sums[fragments][PARTS][4] = {}, row_max[2 * fragments], row_sum[2 * fragments], base2 = unit_of(in.scale) * LOG2_E;
#pragma unroll
    for (int i = 0; i < 2 * fragments; i++) row_max[i] = -INFINITE, row_sum[i] = 0.0f;
    for (int stage = 0; now.entry < end; stage ^= 1) {
        Step next = after<FWD_STEP, ROWS>(now, end, tile_list, first);
        if (next.entry < end) fetch_step(next, buffers + (stage ^ 1) * BUFFER);
        copy_commit();
#ifndef PLANT_NO_WAIT
        copy_wait<1>();
#endif
        __syncthreads();
        int4 entry = tile_list[now.entry];
        int key = entry.y + now.part * FWD_STEP;
        const real *keys = buffers + stage * BUFFER, *values = keys + FWD_STEP * STRIDE;
        if (any_seen<fragments, FWD_STEP>(queries, warp_row, entry, key)) {
            float s[fragments][FWD_STEP / 8][4] = {}, slopes[fragments][FWD_STEP / 8][4];
            Product<real>::template transposed<FWD_STEP, HEAD_DIM>(s, queries, keys, STRIDE);
            if (SOFTCAP) apply_softcap(s, slopes, cap_of(in.cap, in.scale));
            if (in.alibi) subtract_alibi(s, slope_of(head, in.alibi, unit_of(in.scale)), queries, key);
            if (!all_seen<fragments, FWD_STEP>(queries, warp_row, entry, key)) mask(s, queries, warp_row, entry, key);
#pragma unroll
            for (int i = 0; i < 2 * fragments; i++) {
                float largest = row_max[i];
#pragma unroll
                for (int n = 0; n < FWD_STEP / 8; n++) {
                    const float* two = &s[i / 2][n][i % 2 * 2];
                    largest = fmaxf(largest, fmaxf(two[0], two[1]));
                }
                largest = fmaxf(largest, __shfl_xor_sync(WARP_ALL, largest, 1));
                largest = fmaxf(largest, __shfl_xor_sync(WARP_ALL, largest, 2));
                float shift = largest == -INFINITE ? 0.0f : largest * base2;
                float rescale = exp2_fast(row_max[i] * base2 - shift), part = 0.0f;
                row_max[i] = largest;
#pragma unroll
                for (int n = 0; n < FWD_STEP / 8; n++)
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        float& score = s[i / 2][n][i % 2 * 2 + e];
                        score = exp2_fast(score * base2 - shift);
                        part += score;
                    }
                part += __shfl_xor_sync(WARP_ALL, part, 1);
                part += __shfl_xor_sync(WARP_ALL, part, 2);
                row_sum[i] = row_sum[i] * rescale + part;
#pragma unroll
                for (int n = 0; n < PARTS; n++)
#pragma unroll
                    for (int e = 0; e < 2; e++) sums[i / 2][n][i % 2 * 2 + e] *= rescale;
            }
            Product<real>::template of_sums<HEAD_DIM, FWD_STEP>(sums, s, values, STRIDE);
        }
#ifndef PLANT_NO_BARRIER
        __syncthreads();  // before what was read is filled again
#endif
        now = next;
    }
    copy_wait<0>();
    __syncthreads();  // before rows that others copy are overwritten, in a block without steps
#pragma unroll
    for (int i = 0; i < 2 * fragments; i++) {
        int row = row_of(queries, threadIdx.x % 32 / 4 + 8 * i);
        if (row >= 0 && t == 0) in.lse[(i64)row * in.heads + head] = row_max[i] * unit_of(in.scale) + logf(row_sum[i]);
        row_sum[i] = 1.0f / row_sum[i];
    }
    store_rows(in.z + head * width, sums, queries, row_sum, q_pitch, width, 0,
               [&](int r) { return row_of(queries, r); });
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, 1)
    attention_fwd(real* __restrict__ z, float* __restrict__ lse, const real* __restrict__ q, const real* __restrict__ k,
                  const real* __restrict__ v, const real* __restrict__ cached_k, const real* __restrict__ cached_v,
                  const int* __restrict__ block_rows, const int* __restrict__ list_starts,
                  const int* __restrict__ tile_lists, const int* __restrict__ tiles, const int* __restrict__ positions,
                  const int* __restrict__ lasts, int heads, int kv_heads, int width, float scale, int window, int ahead,
                  int alibi, float cap, int second, int more) {
    begin_kernel();
    DYNAMIC_SHARED(memory);
    forward<1, TILE>(memory, {z, lse, q, k, v, cached_k, cached_v, block_rows, list_starts, tile_lists, tiles, positions,
                              lasts, heads, kv_heads, width, window, ahead, alibi, scale, cap, second, more});
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, 1)
    attention_fwd_128(real* WRITE_ONLY z, float* __restrict__ lse, const real* __restrict__ q, const real* __restrict__ k,
                      const real* __restrict__ v, const real* __restrict__ cached_k, const real* __restrict__ cached_v,
                      const int* __restrict__ block_rows, const int* __restrict__ list_starts,
                      const int* __restrict__ tile_lists, const int* __restrict__ tiles, const int* __restrict__ positions,
                      const int* __restrict__ lasts, int heads, int kv_heads, int width, float scale, int window, int ahead,
                      int alibi, float cap, int second, int more) {
    begin_kernel();
    DYNAMIC_SHARED(memory);
    if constexpr (ROWS_128)
        forward<2, 2 * TILE>(memory, {z, lse, q, k, v, cached_k, cached_v, block_rows, list_starts, tile_lists, tiles,
                                      positions, lasts, heads, kv_heads, width, window, ahead, alibi, scale, cap,
                                      second, more});
}

extern "C" __global__ void __launch_bounds__(256)
    attention_bwd_delta(float* __restrict__ delta, real* __restrict__ d_z_real, const float* __restrict__ d_z,
                        const real* __restrict__ z, int rows, int heads, int width) {
    begin_kernel();
    i64 at = (i64)blockIdx.x * 8 + threadIdx.x / 32;
    if (at >= (i64)rows * heads) return;
    int lane = threadIdx.x % 32;
    float sum = 0.0f, d[4], x[4];
    for (int first = 0; first < width; first += 128) {
        int c = first + lane * 4;
        load4(d, d_z + at * width + c, width - c);
        load4(x, z + at * width + c, width - c);
        store4(d_z_real + at * width + c, d, width - c);
        // An odd lane goes on where the even one before it ends.
        float part = 0.0f;
#pragma unroll
        for (int j = 0; j < 4; j++) part = fmaf(rounded(d[j]), x[j], part);
        part = __shfl_xor_sync(WARP_ALL, part, 1);
#pragma unroll
        for (int j = 0; j < 4; j++) part = fmaf(rounded(d[j]), x[j], part);
        if (lane % 2) sum += part;
    }
    sum = warp_sum(sum);
    if (lane == 0) delta[at] = sum;
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, 1)
    attention_bwd_dq(real* __restrict__ d_q, const float* __restrict__ delta, const real* __restrict__ d_z,
                     const float* __restrict__ lse, const real* __restrict__ q, const real* __restrict__ k,
                     const real* __restrict__ v, const int* __restrict__ block_rows, const int* __restrict__ list_starts,
                     const int* __restrict__ tile_lists, const int* __restrict__ tiles,
                     const int* __restrict__ positions, const int* __restrict__ lasts, int heads, int kv_heads,
                     int width, float scale, int window, int ahead, int alibi, float cap, int second, int more,
                     const float* __restrict__ cos_sin) {
    begin_kernel();
    DYNAMIC_SHARED(memory);
    real *queries = reinterpret_cast<real*>(memory), *gradients = queries + BLOCK_ROWS * STRIDE;
    real* buffers = gradients + BLOCK_ROWS * STRIDE;
    constexpr int BUFFER = 2 * BWD_STEP * STRIDE;
    int at = rows_of_block(second, more), block = at / (TILE / BLOCK_ROWS), first = at % (TILE / BLOCK_ROWS) * BLOCK_ROWS;
    int head = blockIdx.x, group = head / (heads / kv_heads), warp = threadIdx.x / 32;
    int warp_row = first + warp * 16, end = list_starts[block + 1];
    i64 pitch = (i64)kv_heads * width;
    q += head * width, d_z += head * width, d_q += head * width, k += group * width, v += group * width;
    block_rows += block * TILE;
    const int4* tile_list = reinterpret_cast<const int4*>(tile_lists);
    Step now = {concerned<BLOCK_ROWS>(list_starts[block], end, tile_list, first), 0};
    auto fetch_step = [&](Step s, real* to) {
        const int* rows = tiles + (i64)tile_list[s.entry].x * TILE + s.part * BWD_STEP;
        const real* const both[] = {k, v};
        fetch<BWD_STEP>(to, both, both, rows, BWD_STEP, pitch, width);
    };
    fetch<BLOCK_ROWS>(queries, q, block_rows + first, BLOCK_ROWS, (i64)heads * width, width);
    fetch<BLOCK_ROWS>(gradients, d_z, block_rows + first, BLOCK_ROWS, (i64)heads * width, width);
    if (now.entry < end) fetch_step(now, buffers);
    copy_commit();
    queries += warp * 16 * STRIDE, gradients += warp * 16 * STRIDE;
    note_rows<1>(queries, block_rows, warp_row, positions, lasts, window, ahead);
    float sums[1][PARTS][4] = {}, shift[2], delta_of[2], base2 = unit_of(scale) * LOG2_E;
    float slope = slope_of(head, alibi, unit_of(scale));
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int row = row_of(queries, threadIdx.x % 32 / 4 + 8 * i);
        shift[i] = row < 0 ? 0.0f : lse[(i64)row * heads + head] * LOG2_E;
        delta_of[i] = row < 0 ? 0.0f : delta[(i64)row * heads + head];
    }
    for (int stage = 0; now.entry < end; stage ^= 1) {
        Step next = after<BWD_STEP, BLOCK_ROWS>(now, end, tile_list, first);
        if (next.entry < end) fetch_step(next, buffers + (stage ^ 1) * BUFFER);
        copy_commit();
        copy_wait<1>();
        __syncthreads();
        int4 entry = tile_list[now.entry];
        int key = entry.y + now.part * BWD_STEP;
        const real *keys = buffers + stage * BUFFER, *values = keys + BWD_STEP * STRIDE;
        if (any_seen<1, BWD_STEP>(queries, warp_row, entry, key)) {
            float s[1][BWD_STEP / 8][4] = {}, d_p[1][BWD_STEP / 8][4] = {}, slopes[1][BWD_STEP / 8][4];
            Product<real>::transposed<BWD_STEP, HEAD_DIM>(s, queries, keys, STRIDE);
            Product<real>::transposed<BWD_STEP, HEAD_DIM>(d_p, gradients, values, STRIDE);
            if (SOFTCAP) apply_softcap(s, slopes, cap_of(cap, scale));
            if (alibi) subtract_alibi(s, slope, queries, key);
            if (!all_seen<1, BWD_STEP>(queries, warp_row, entry, key)) mask(s, queries, warp_row, entry, key);
#pragma unroll
            for (int n = 0; n < BWD_STEP / 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    // Of what is masked, exactly 0.
                    s[0][n][e] = exp2_fast(s[0][n][e] * base2 - shift[e / 2]) * (d_p[0][n][e] - delta_of[e / 2]);
                    if (SOFTCAP) s[0][n][e] *= slopes[0][n][e];
                }
            Product<real>::of_sums<HEAD_DIM, BWD_STEP>(sums, s, keys, STRIDE);
        }
        __syncthreads();  // before what was read is filled again
        now = next;
    }
    copy_wait<0>();
    __syncthreads();  // before rows that others copy are overwritten, in a block without steps
    const float scales[2] = {scale, scale};
    store_rows(d_q, sums, queries, scales, (i64)heads * width, width, 0,
               [&](int r) { return row_of(queries, r); }, {cos_sin, positions});
}

// A stretch of the depth-first order.
struct Stretch {
    int begin, end;
};

// What a block of keys collects, and from whom.
struct Keys {
    const real *d_z, *q, *k, *v;
    const float *lse, *delta;
    const int *order, *begins, *ends, *positions, *lasts;
    int rows, heads, kv_heads, width, window, ahead, alibi;
    float scale, cap;
};

// What a warp knows of its part of the work on keys lies beside these, where it takes no registers: its number, how many there are,
// the place of the first in the workspace, and the first query.
DEV int* part_of(const real* keys) { return reinterpret_cast<int*>(beside(keys, threadIdx.x / 32)); }

// COLUMNS of d_k, d_v [16, D] of the warp's keys, from `from` on, = over a part of the steps: those of all queries that see
// them, of one head of the group after the other. The gradients that are not wanted are one fragment that nobody touches.
template <bool want_k, bool want_v>
DEV void collect(float (&d_k)[1][want_k ? COLUMNS / 8 : 1][4], float (&d_v)[1][want_v ? COLUMNS / 8 : 1][4], const Keys& in,
                 const real* keys, const real* values, real* buffers, int first, Stretch seen_by, int from) {
    constexpr int BUFFER = 2 * BWD_STEP * STRIDE;
    int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    int heads_of_group = in.heads / in.kv_heads, own = first + warp * 16;
    int index[2] = {own + g, own + g + 8}, begin[2], until[2], position[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        begin[i] = index[i] < in.rows ? in.begins[index[i]] : in.rows;
        until[i] = index[i] < in.rows ? in.ends[index[i]] : 0;
        position[i] = index[i] < in.rows ? in.positions[in.order[index[i]]] : 0;
    }
    int warp_end = warp_max(max(until[0], until[1])), warp_all = -warp_max(max(-until[0], -until[1]));
    int warp_begin = -warp_max(max(-begin[0], -begin[1])), warp_all_from = warp_max(max(begin[0], begin[1]));
    float base2 = unit_of(in.scale) * LOG2_E;
    struct { int head, query; } now = {(int)blockIdx.x * heads_of_group, seen_by.begin};
    int steps = (seen_by.end - seen_by.begin + BWD_STEP - 1) / BWD_STEP, left = steps * heads_of_group;
    if (part_of(keys)[1] > 1) {
        i64 all = left, index = part_of(keys)[0], count = part_of(keys)[1];
        int begin = (int)(all * index / count);
        left = (int)(all * (index + 1) / count) - begin;
        now = {now.head + begin / steps, now.query + begin % steps * BWD_STEP};
    }
    auto fetch_step = [&](auto at, int stage) {
        int head = at.head, query = at.query;
        i64 offset = head * in.width, pitch = (i64)in.heads * in.width;
        real* to = buffers + stage * BUFFER;
        const real* const both[] = {in.q + offset, in.d_z + offset};
        fetch<BWD_STEP>(to, both, both, in.order + query, in.rows - query, pitch, in.width);
        if (threadIdx.x < BWD_STEP) {
            int j = query + threadIdx.x;
            bool none = j >= in.rows;
            i64 at = none ? 0 : (i64)in.order[j] * in.heads + head;
            float* own = beside(to, threadIdx.x);
            own[0] = none ? 0.0f : in.lse[at] * LOG2_E;
            int row = none || in.alibi == 0 ? 0 : in.order[j];
            own[1] = (float)min(in.lasts[row], in.positions[row] + in.ahead);
            *beside(to + BWD_STEP * STRIDE, threadIdx.x) = none ? 0.0f : in.delta[at];
        }
    };
    if (left > 0) fetch_step(now, 0);
    copy_commit();
    for (int stage = 0; left > 0; stage ^= 1) {
        auto next = now;
        next.query += BWD_STEP;
        if (next.query >= seen_by.end) next = {now.head + 1, part_of(keys)[3]};
        if (--left > 0) fetch_step(next, stage ^ 1);
        copy_commit();
        copy_wait<1>();
        __syncthreads();
        int query = now.query;
        const real *queries = buffers + stage * BUFFER, *gradients = queries + BWD_STEP * STRIDE;
        if (query + BWD_STEP > warp_begin && query < warp_end) {
            float p[1][BWD_STEP / 8][4] = {}, slopes[1][BWD_STEP / 8][4];
            Product<real>::transposed<BWD_STEP, HEAD_DIM>(p, keys + warp * 16 * STRIDE, queries, STRIDE);
            if (SOFTCAP) apply_softcap(p, slopes, cap_of(in.cap, in.scale));
            float slope = in.alibi ? slope_of(now.head, in.alibi, unit_of(in.scale)) : 0.0f;
            bool all = query >= warp_all_from && query + BWD_STEP <= warp_all && in.window == 0;
#pragma unroll
            for (int n = 0; n < BWD_STEP / 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    int column = n * 8 + 2 * t + e % 2;
                    if (in.alibi) p[0][n][e] -= slope * (beside(queries, column)[1] - position[e / 2]);
                    p[0][n][e] = exp2_fast(p[0][n][e] * base2 - *beside(queries, column));
                    // Where nothing else needs p, the slopes need no registers of their own until d_s is there.
                    if (SOFTCAP && !want_v) p[0][n][e] *= slopes[0][n][e];
                }
#pragma unroll
            for (int n = 0; n < BWD_STEP / 8 && !all; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    int j = query + n * 8 + 2 * t + e % 2, i = e / 2;
                    bool sees = j >= begin[i] && j < until[i];
                    if (in.window > 0 && sees) {
                        int distance = in.positions[in.order[j]] - position[i];
                        sees = distance < in.window && -distance <= in.ahead;
                    }
                    p[0][n][e] = sees ? p[0][n][e] : 0.0f;
                }
            if (want_v) Product<real>::of_sums<want_v ? COLUMNS : 8, BWD_STEP>(d_v, p, gradients + from, STRIDE);
            if (want_k) {
                float d_s[1][BWD_STEP / 8][4] = {};
                Product<real>::transposed<BWD_STEP, HEAD_DIM>(d_s, values + warp * 16 * STRIDE, gradients, STRIDE);
#pragma unroll
                for (int n = 0; n < BWD_STEP / 8; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        d_s[0][n][e] = p[0][n][e] * (d_s[0][n][e] - *beside(gradients, n * 8 + 2 * t + e % 2));
                        if (SOFTCAP && want_v) d_s[0][n][e] *= slopes[0][n][e];
                    }
                Product<real>::of_sums<want_k ? COLUMNS : 8, BWD_STEP>(d_k, d_s, queries + from, STRIDE);
            }
        }
        __syncthreads();  // before what was read is filled again
        now = next;
    }
    copy_wait<0>();
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, DKV_BLOCKS)
    attention_bwd_dkv(real* __restrict__ d_k, real* __restrict__ d_v, const float* __restrict__ delta,
                      const real* __restrict__ d_z, const float* __restrict__ lse, const real* __restrict__ q,
                      const real* __restrict__ k, const real* __restrict__ v, const int* __restrict__ key_blocks,
                      const int* __restrict__ order, const int* __restrict__ begins, const int* __restrict__ ends,
                      const int* __restrict__ positions, const int* __restrict__ lasts, int rows,
                      float* __restrict__ parts, int* __restrict__ tickets, int part_rows, int heads, int kv_heads,
                      int width, float scale, int window, int ahead, int alibi, float cap, int second, int more,
                      const float* __restrict__ cos_sin) {
    begin_kernel();
    constexpr int OF_TILE = TILE / BLOCK_ROWS, THREADS = 32 * WARPS;
    DYNAMIC_SHARED(memory);
    real *keys = reinterpret_cast<real*>(memory), *values = keys + BLOCK_ROWS * STRIDE;
    real* buffers = values + BLOCK_ROWS * STRIDE;
    int at = rows_of_block(second, more), begin = rows, end = 0;
    Part part = part_at(at / OF_TILE, key_blocks, (rows + TILE - 1) / TILE, heads / kv_heads, part_rows);
    int first = key_blocks[2 * part.block] * TILE + at % OF_TILE * BLOCK_ROWS;
    if (part.count == 0 || first >= rows) return;
    for (int i = first + threadIdx.x % 32; i < min(first + BLOCK_ROWS, rows); i += 32) {
        begin = min(begin, begins[i]);
        end = max(end, ends[i]);
    }
    Stretch seen_by = {-warp_max(-begin), warp_max(end)};
    int* note = part_of(keys);
    if (threadIdx.x % 32 == 0)
        note[0] = part.index, note[1] = part.count, note[2] = at - part.index * OF_TILE, note[3] = seen_by.begin;
    __syncwarp();
    i64 pitch = (i64)kv_heads * width, offset = blockIdx.x * width;
    fetch<BLOCK_ROWS>(keys, k + offset, order + first, rows - first, pitch, width);
    fetch<BLOCK_ROWS>(values, v + offset, order + first, rows - first, pitch, width);
    Keys in = {d_z,  q,    k,     v,        lse,   delta,  order, begins, ends,
               positions, lasts, rows, heads, kv_heads, width, window, ahead, alibi, scale, cap};
    int own = threadIdx.x / 32 * 16;
    auto store = [&](real* to, const float(&sums)[1][COLUMNS / 8][4], real* tile, float scale, int from, Angles back) {
        const float scales[2] = {scale, scale};
        store_rows(to + offset, sums, tile + own * STRIDE, scales, pitch, width, from,
                   [&](int r) { return first + own + r < rows ? order[first + own + r] : NO_ROW; }, back);
    };
    // Stores sums; of several parts, the block that comes second to a pair goes on with those of both, and the last one stores.
    auto finish = [&](real* to, int which, float(&sums)[1][COLUMNS / 8][4], real* tile, float scale, int from) {
        int block = note[2] * kv_heads + blockIdx.x, next = OF_TILE * kv_heads;
        int& is_second = reinterpret_cast<int*>(beside(values, 0))[0];
        for (int span = 1; span < note[1]; span *= 2) {
            int left = note[0] & -2 * span, right = left + span, own = note[0] & -span;
            if (right >= note[1]) continue;
            auto sums_of = [&](int part) {
                int at = ((block + part * next) * 2 + which) * PARTS + from / 8;
                return reinterpret_cast<float4*>(parts) + at * THREADS + threadIdx.x;
            };
            float4* kept = sums_of(own);
#pragma unroll
            for (int n = 0; n < COLUMNS / 8; n++)
                kept[n * THREADS] = make_float4(sums[0][n][0], sums[0][n][1], sums[0][n][2], sums[0][n][3]);
            __threadfence();
            __syncthreads();
            int* ticket = tickets + ((block + right * next) * 2 + which) * (HEAD_DIM / COLUMNS) + from / COLUMNS;
            if (threadIdx.x == 0) {
                is_second = atomicAdd(ticket, 1);
                if (is_second) *ticket = 0;
            }
            __syncthreads();
            if (!is_second) return;
            __threadfence();
            const float4* others = sums_of(left + right - own);
#pragma unroll
            for (int n = 0; n < COLUMNS / 8; n++) {
                float4 x = load_fresh(others + n * THREADS);
                sums[0][n][0] += x.x, sums[0][n][1] += x.y, sums[0][n][2] += x.z, sums[0][n][3] += x.w;
            }
        }
        store(to, sums, tile, scale, from, {which ? nullptr : cos_sin, positions});
    };
    if (HEAD_DIM <= 128) {
        float of_k[1][COLUMNS / 8][4] = {}, of_v[1][COLUMNS / 8][4] = {};
        collect<true, true>(of_k, of_v, in, keys, values, buffers, first, seen_by, 0);
        finish(d_k, 0, of_k, keys, scale, 0);
        finish(d_v, 1, of_v, values, 1.0f, 0);
    } else {
        // All sums of a wide head do not fit the registers: the scores are made again for each part.
#pragma unroll 1
        for (int from = 0; from < HEAD_DIM; from += COLUMNS) {
            float none[1][1][4], of_v[1][COLUMNS / 8][4] = {}, of_k[1][COLUMNS / 8][4] = {};
            collect<false, true>(none, of_v, in, keys, values, buffers, first, seen_by, from);
            finish(d_v, 1, of_v, buffers, 1.0f, from);
            __syncthreads();  // before the buffers are filled again
            collect<true, false>(of_k, none, in, keys, values, buffers, first, seen_by, from);
            finish(d_k, 0, of_k, buffers, scale, from);
            __syncthreads();
        }
    }
}

// positions [N]; the place of each position's key stands in keys [M, longest]: a row, -(r + 1) for row r of the cache, or NO_ROW
// where the window or the end of the row's path leaves it out. rows [M].
extern "C" __global__ void __launch_bounds__(128)
    attention_pattern(float* __restrict__ out, const real* __restrict__ q, const real* __restrict__ k,
                      const real* __restrict__ cached_k, const float* __restrict__ lse, const int* __restrict__ rows,
                      const int* __restrict__ keys, const int* __restrict__ positions, const int* __restrict__ lasts,
                      int heads, int kv_heads, int width, float scale, int ahead, int alibi, float cap,
                      int longest, int normalised) {
    begin_kernel();
    int head = blockIdx.y, group = head / (heads / kv_heads), row = rows[blockIdx.x];
    int last = min(lasts[row], positions[row] + ahead);
    float slope = slope_of(head, alibi);
    out += ((i64)blockIdx.x * heads + head) * longest;
    keys += (i64)blockIdx.x * longest;
    q += ((i64)row * heads + head) * width;
    for (int p = threadIdx.x; p < longest; p += blockDim.x) {
        if (keys[p] == NO_ROW) {
            out[p] = normalised ? 0.0f : -INFINITE;
            continue;
        }
        const real* key = keys[p] >= 0 ? k + ((i64)keys[p] * kv_heads + group) * width
                                       : cached_k + (-(i64)(keys[p] + 1) * kv_heads + group) * width;
        float sum = 0.0f, a[8], b[8];
        for (int c = 0; c < width; c += 8) {
            load8(a, q + c, width - c);
            load8(b, key + c, width - c);
#pragma unroll
            for (int j = 0; j < 8; j++) sum = fmaf(a[j], b[j], sum);
        }
        float score = sum * scale;
        if (SOFTCAP) score = cap * tanh_of(score / cap);
        score -= slope * (last - p);
        out[p] = normalised ? expf(score - lse[(i64)row * heads + head]) : score;
    }
}

extern "C" __global__ void __launch_bounds__(256)
    attention_result(float* __restrict__ out, const real* __restrict__ z, const real* __restrict__ weight,
                     const int* __restrict__ rows, int heads, int head_dim, int width) {
    begin_kernel();
    int head = blockIdx.y;
    i64 pitch = (i64)heads * head_dim;
    out += ((i64)blockIdx.x * heads + head) * width;
    z += rows[blockIdx.x] * pitch + head * head_dim;
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
        const real* column = weight + c * pitch + head * head_dim;
        float sum = 0.0f, a[8], b[8];
        for (int d = 0; d < head_dim; d += 8) {
            load8(a, z + d, head_dim - d);
            load8(b, column + d, head_dim - d);
#pragma unroll
            for (int j = 0; j < 8; j++) sum = fmaf(a[j], b[j], sum);
        }
        out[c] = sum;
    }
}
