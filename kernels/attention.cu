// Attention over a forest of segments, causal or bidirectional, with grouped key-value heads.
//
//   attention_fwd        z [N, H, D] = softmax(scores) v over each row's path, scores = scale q k^T, capped, less ALiBi's
//                        bias; lse [N, H] = log-sum-exp of its scores
//   attention_bwd_delta  d_z_real [N, H, D] = d_z, rounded; delta [N, H] = sum(d_z_real z)
//   attention_bwd_dq     d_q [N, H, D] =
//   attention_bwd_dkv    d_k, d_v [N, K, D] =, collected from all rows that see a key, over the heads of its group
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
//                          list of query block b is list_starts[b]..list_starts[b + 1], ascending by position
//   order, begins, ends    [N] each: depth-first order of the rows; row order[j] sees row order[i] if
//                          begins[i] <= j < ends[i]
//   positions, lasts       [N] each: a row's position, and the last that it sees: its own, or its segment's last in a
//                          bidirectional pack
// A row sees a key if it lies on its path (by its block's tile list, or begins and ends), at no later position than lasts
// says, and, if window > 0, at a position greater than its own minus window and at most `ahead` beyond its own.
//
// Launch: all blocks have 32 * WARPS threads and handle 16 * WARPS rows, each warp 16 of them:
//   fwd, dq  (blocks * 64 / (16 * WARPS), H); dkv (ceil(N / (16 * WARPS)), K)
//   dynamic shared memory, in rows of HEAD_DIM + 16 bytes: fwd 16 * WARPS + 4 * FWD_STEP; dq, dkv 32 * WARPS + 4 * BWD_STEP
//   delta ceil(N H / 8) x 256; pattern (M, H) x 128; result (M, H) x 256
// q, k, v, d_z_real and the cache start at multiples of 16 bytes.
//
// Determinism: everything has one writer and a fixed order. Keys are taken in tiles at fixed positions, and a masked key
// or a tile that a row does not see leaves its sums as they are, bit for bit: a row's z, lse and d_q are the same bits
// however its path is cut into segments and whatever else is in the pack.
//
// References: Milakov and Gimelshein 2018 (online softmax); Dao et al. 2022, Dao 2023 (tiles in shared memory, the
// backward from lse and delta).

constexpr int TILE = 64, FWD_STEP = SMALL_SHARED ? FWD_SMALL : FWD_LARGE;
constexpr int BLOCK_ROWS = 16 * WARPS;
constexpr int STRIDE = HEAD_DIM + 16 / (int)sizeof(real);  // odd in units of 16 bytes: no bank conflicts
constexpr int PARTS = HEAD_DIM / 8;                        // C fragments of a row of heads
// Columns of a key's gradient whose sums a thread holds at a time.
constexpr int COLUMNS = HEAD_DIM > 128 && sizeof(real) == 4 ? HEAD_DIM / 2 : HEAD_DIM;
constexpr int NO_ROW = -0x7fffffff - 1, DKV_BLOCKS = STRIDE * (int)sizeof(real) <= 144 ? 3 : 1;  // a multiprocessor

// `count` rows of one head of each of `n` matrices into tiles one after another in shared memory: row i is row rows[i] of x, or
// of the cache (`cached`), or none (also from `valid` on). A thread loads the numbers of the rows that it copies a part
// of (of wide heads in f32 one at a time: registers), then copies, so that no copy waits for its own load.
template <int count, int n>
DEV void fetch(real* tile, const real* const (&x)[n], const real* const (&cached)[n], const int* rows, int valid, int pitch,
               int width) {
    constexpr int CHUNK = 16 / (int)sizeof(real), CHUNKS = HEAD_DIM / CHUNK, THREADS = 32 * WARPS;
    constexpr int TURNS = (count * CHUNKS + THREADS - 1) / THREADS, AHEAD = TURNS > 16 ? 1 : TURNS;
    constexpr bool EVEN = THREADS % CHUNKS == 0;  // then a thread has a column of its own
    auto row_of = [](int i) { return EVEN ? threadIdx.x / CHUNKS + i * (THREADS / CHUNKS) : (threadIdx.x + i * THREADS) / CHUNKS; };
    auto column_of = [](int i) { return (EVEN ? threadIdx.x : threadIdx.x + i * THREADS) % CHUNKS * CHUNK; };
    int limit = count * CHUNKS % THREADS ? min(valid, count) : valid, numbers[AHEAD], bytes = pitch * (int)sizeof(real);
#pragma unroll 1
    for (int first = 0; first < TURNS; first += AHEAD) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) numbers[i] = row_of(first + i) < limit ? rows[row_of(first + i)] : NO_ROW;
#pragma unroll
        for (int i = first; i < first + AHEAD && width % CHUNK == 0; i++) {
            if (count * CHUNKS % THREADS && row_of(i) >= count) break;
            int number = numbers[i - first], at = number == NO_ROW ? 0 : number ^ number >> 31;
            bool missing = column_of(i) >= width, none = number == NO_ROW || missing, own = number >= 0;
#pragma unroll
            for (int m = 0; m < n; m++) {
                const real *ours = x[m] + (missing ? 0 : column_of(i)), *theirs = cached[m] + (missing ? 0 : column_of(i));
                const char* row = reinterpret_cast<const char*>(own ? ours : theirs) + (i64)at * bytes;
                copy_async(tile + (m * count + row_of(i)) * STRIDE + column_of(i), row, none);
            }
        }
    }
#pragma unroll
    for (int m = 0; m < n; m++)
        for (int i = threadIdx.x; i < count * HEAD_DIM && width % CHUNK; i += THREADS) {
            int r = i / HEAD_DIM, c = i % HEAD_DIM, row = r < valid ? rows[r] : NO_ROW;
            const real* from = row >= 0 ? x[m] + (i64)row * pitch : cached[m] - ((i64)row + 1) * pitch;
            tile[(m * count + r) * STRIDE + c] = row == NO_ROW || c >= width ? to_real(0.0f) : from[c];
        }
}
template <int count>
DEV void fetch(real* tile, const real* x, const int* rows, int valid, int pitch, int width) {
    const real* const one[] = {x};
    fetch<count>(tile, one, one, rows, valid, pitch, width);
}

// A float that belongs to row `row` of a tile, in the 16 bytes of padding after it.
DEV float* beside(const real* tile, int row) {
    return reinterpret_cast<float*>(const_cast<real*>(tile) + row * STRIDE + HEAD_DIM);
}

// ALiBi's slope of head `head`, and the same for what is still multiplied by `scale`.
DEV float slope_of(int head, int alibi) {
    if (alibi == 0) return 0.0f;
    return exp2f(-(head < alibi ? 8.0f * (head + 1) : 4.0f * (2 * (head - alibi) + 1)) / alibi);
}
DEV float slope_of(int head, int alibi, float scale) { return slope_of(head, alibi) / scale; }

// A part of a tile of keys.
struct Step {
    int entry, part;
};

// The next entry of a tile list, from the given one on, that any of BLOCK_ROWS block rows sees.
DEV int concerned(int entry, int end, const int4* tile_list, int first) {
    while (entry < end && (tile_list[entry].w <= first || tile_list[entry].z >= first + BLOCK_ROWS)) entry++;
    return entry;
}
template <int step>
DEV Step after(Step s, int end, const int4* tile_list, int first) {
    if (s.part + 1 < TILE / step) return {s.entry, s.part + 1};
    return {concerned(s.entry + 1, end, tile_list, first), 0};
}

// What is left to multiply products by until they are scores: capping has scaled them.
DEV float unit_of(float scale) { return SOFTCAP ? 1.0f : scale; }
// A soft cap of scores: `outer * tanh(inner * x)` of the product x.
struct Cap { float inner, outer; };
DEV Cap cap_of(float cap, float scale) { return {scale / cap, cap}; }
// tanh(x). Scores of 16-bit factors need its first 7 digits behind the point, whatever x: more would take registers that a
// wide head does not leave.
DEV float tanh_of(float x) {
    return sizeof(real) == 4 ? tanhf(x) : 1.0f - 2.0f / (1.0f + exp2_fast(2.0f * LOG2_E * x));
}
// Scores capped, and the slopes there.
template <int parts>
DEV void apply_softcap(float (&s)[parts][4], float (&slopes)[parts][4], Cap cap) {
#pragma unroll
    for (int n = 0; n < parts; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            float t = tanh_of(cap.inner * s[n][e]);
            s[n][e] = cap.outer * t;
            slopes[n][e] = fmaf(-t, t, 1.0f);
        }
}

// What a thread knows of its two rows of queries and of the 16 of its warp.
struct Rows {
    int row[2], block_row[2], last[2], low[2];  // of the pack, in the block, and the last and first position seen
    int warp_first, warp_last, warp_low, warp_high;
};

DEV Rows rows_of(const int* block_rows, int first, const int* positions, const int* lasts, int window, int ahead) {
    Rows rows;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        rows.block_row[i] = first + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + i * 8;
        rows.row[i] = block_rows[rows.block_row[i]];
        int position = rows.row[i] < 0 ? -1 : positions[rows.row[i]];
        rows.last[i] = rows.row[i] < 0 ? -1 : min(lasts[rows.row[i]], position + ahead);
        rows.low[i] = window > 0 ? max(0, position - window + 1) : 0;
    }
    rows.warp_last = warp_max(max(rows.last[0], rows.last[1]));
    rows.warp_first = -warp_max(max(-rows.last[0], -rows.last[1]));
    rows.warp_high = warp_max(max(rows.low[0], rows.low[1]));
    rows.warp_low = -warp_max(max(-rows.low[0], -rows.low[1]));
    return rows;
}
// Whether any, and whether every row of the warp sees something, and everything, of `step` keys from position `key` on.
template <int step>
DEV bool any_seen(const Rows& rows, int4 entry, int key, int warp_row) {
    return entry.w > warp_row && entry.z < warp_row + 16 && key <= rows.warp_last && key + step > rows.warp_low;
}
template <int step>
DEV bool all_seen(const Rows& rows, int4 entry, int key, int warp_row) {
    return entry.z <= warp_row && entry.w >= warp_row + 16 && key + step - 1 <= rows.warp_first &&
           key >= rows.warp_high;
}
// The same of one element: sum e of a C fragment, for the key at `position`.
DEV bool seen(const Rows& rows, int4 entry, int position, int e) {
    int i = e / 2;
    return rows.block_row[i] >= entry.z && rows.block_row[i] < entry.w && position <= rows.last[i] &&
           position >= rows.low[i];
}

// Scores of keys from position `key` on, -inf where a row does not see one.
template <int parts>
DEV void mask(float (&s)[parts][4], const Rows& rows, int4 entry, int key) {
    int first = key + 2 * (threadIdx.x % 4);
#pragma unroll
    for (int n = 0; n < parts; n++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            if (!seen(rows, entry, first + n * 8 + e % 2, e)) s[n][e] = -INFINITE;
}

// Products of keys, or their capped scores, from position `key` on, less `slope` (ALiBi) for every position to the row's own.
template <int parts>
DEV void subtract_alibi(float (&s)[parts][4], float slope, const Rows& rows, int key) {
    int first = key + 2 * (threadIdx.x % 4);
#pragma unroll
    for (int n = 0; n < parts; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) s[n][e] -= slope * (rows.last[e / 2] - (first + n * 8 + e % 2));
}

// Columns of one head's row, from `from` on, = row i (0, 1) of the thread's sums, times `scale`.
template <int parts>
DEV void store_row(real* to, const float (&c)[parts][4], int i, float scale, int width, int from = 0) {
    int t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < parts; n++) {
        int column = from + n * 8 + 2 * t;
        store2(to + column, c[n][2 * i] * scale, c[n][2 * i + 1] * scale, width - column,
               width % 2 == 0 && column < width);
    }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, 1)
    attention_fwd(real* __restrict__ z, float* __restrict__ lse, const real* __restrict__ q, const real* __restrict__ k,
                  const real* __restrict__ v, const real* __restrict__ cached_k, const real* __restrict__ cached_v,
                  const int* __restrict__ block_rows, const int* __restrict__ list_starts,
                  const int* __restrict__ tile_lists, const int* __restrict__ tiles, const int* __restrict__ positions,
                  const int* __restrict__ lasts, int heads, int kv_heads, int width, float scale, int window, int ahead,
                  int alibi, float cap) {
    DYNAMIC_SHARED(memory);
    real* queries = reinterpret_cast<real*>(memory);
    real* buffers = queries + BLOCK_ROWS * STRIDE;
    constexpr int BUFFER = 2 * FWD_STEP * STRIDE;
    int block = blockIdx.x / (TILE / BLOCK_ROWS), first = blockIdx.x % (TILE / BLOCK_ROWS) * BLOCK_ROWS;
    int head = blockIdx.y, group = head / (heads / kv_heads), t = threadIdx.x % 4, warp = threadIdx.x / 32;
    int warp_row = first + warp * 16, end = list_starts[block + 1];
    i64 pitch = (i64)kv_heads * width;
    q += head * width, z += head * width;
    k += group * width, v += group * width, cached_k += group * width, cached_v += group * width;
    block_rows += block * TILE;
    const int4* tile_list = reinterpret_cast<const int4*>(tile_lists);
    Step now = {concerned(list_starts[block], end, tile_list, first), 0};
    auto fetch_step = [&](Step s, real* to) {
        const int* rows = tiles + (i64)tile_list[s.entry].x * TILE + s.part * FWD_STEP;
        const real *const own[] = {k, v}, *const cached[] = {cached_k, cached_v};
        fetch<FWD_STEP>(to, own, cached, rows, FWD_STEP, pitch, width);
    };
    fetch<BLOCK_ROWS>(queries, q, block_rows + first, BLOCK_ROWS, (i64)heads * width, width);
    if (now.entry < end) fetch_step(now, buffers);
    copy_commit();
    Rows rows = rows_of(block_rows, first, positions, lasts, window, ahead);
    float sums[PARTS][4] = {}, row_max[2] = {-INFINITE, -INFINITE}, row_sum[2] = {0.0f, 0.0f}, base2 = unit_of(scale) * LOG2_E;
    float slope = slope_of(head, alibi, unit_of(scale));
    for (int stage = 0; now.entry < end; stage ^= 1) {
        Step next = after<FWD_STEP>(now, end, tile_list, first);
        if (next.entry < end) fetch_step(next, buffers + (stage ^ 1) * BUFFER);
        copy_commit();
#ifndef PLANT_NO_WAIT
        copy_wait<1>();
#endif
        __syncthreads();
        int4 entry = tile_list[now.entry];
        int key = entry.y + now.part * FWD_STEP;
        const real *keys = buffers + stage * BUFFER, *values = keys + FWD_STEP * STRIDE;
        if (any_seen<FWD_STEP>(rows, entry, key, warp_row)) {
            float s[FWD_STEP / 8][4] = {}, slopes[FWD_STEP / 8][4];
            Product<real>::transposed<FWD_STEP, HEAD_DIM>(s, queries + warp * 16 * STRIDE, keys, STRIDE);
            if (SOFTCAP) apply_softcap(s, slopes, cap_of(cap, scale));
            if (alibi) subtract_alibi(s, slope, rows, key);
            if (!all_seen<FWD_STEP>(rows, entry, key, warp_row)) mask(s, rows, entry, key);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float largest = row_max[i];
#pragma unroll
                for (int n = 0; n < FWD_STEP / 8; n++) largest = fmaxf(largest, fmaxf(s[n][2 * i], s[n][2 * i + 1]));
                largest = fmaxf(largest, __shfl_xor_sync(WARP_ALL, largest, 1));
                largest = fmaxf(largest, __shfl_xor_sync(WARP_ALL, largest, 2));
                float shift = largest == -INFINITE ? 0.0f : largest * base2;
                float rescale = exp2_fast(row_max[i] * base2 - shift), part = 0.0f;
                row_max[i] = largest;
#pragma unroll
                for (int n = 0; n < FWD_STEP / 8; n++)
#pragma unroll
                    for (int e = 2 * i; e < 2 * i + 2; e++) {
                        s[n][e] = exp2_fast(s[n][e] * base2 - shift);
                        part += s[n][e];
                    }
                part += __shfl_xor_sync(WARP_ALL, part, 1);
                part += __shfl_xor_sync(WARP_ALL, part, 2);
                row_sum[i] = row_sum[i] * rescale + part;
#pragma unroll
                for (int n = 0; n < PARTS; n++) sums[n][2 * i] *= rescale, sums[n][2 * i + 1] *= rescale;
            }
            Product<real>::of_sums<HEAD_DIM, FWD_STEP>(sums, s, values, STRIDE);
        }
#ifndef PLANT_NO_BARRIER
        __syncthreads();  // before what was read is filled again
#endif
        now = next;
    }
    copy_wait<0>();
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (rows.row[i] < 0) continue;
        i64 at = (i64)rows.row[i] * heads;
        store_row(z + at * width, sums, i, 1.0f / row_sum[i], width);
        if (t == 0) lse[at + head] = row_max[i] * unit_of(scale) + logf(row_sum[i]);
    }
}

extern "C" __global__ void __launch_bounds__(256)
    attention_bwd_delta(float* __restrict__ delta, real* __restrict__ d_z_real, const float* __restrict__ d_z,
                        const real* __restrict__ z, int rows, int heads, int width) {
    i64 at = (i64)blockIdx.x * 8 + threadIdx.x / 32;
    if (at >= (i64)rows * heads) return;
    float sum = 0.0f, d[8], x[8];
    for (int c = threadIdx.x % 32 * 8; c < width; c += 256) {
        load8(d, d_z + at * width + c, width - c);
        load8(x, z + at * width + c, width - c);
#pragma unroll
        for (int j = 0; j < 8; j++) sum = fmaf(rounded(d[j]), x[j], sum);
        store8(d_z_real + at * width + c, d, width - c);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) delta[at] = sum;
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, 1)
    attention_bwd_dq(real* __restrict__ d_q, const float* __restrict__ delta, const real* __restrict__ d_z,
                     const float* __restrict__ lse, const real* __restrict__ q, const real* __restrict__ k,
                     const real* __restrict__ v, const int* __restrict__ block_rows, const int* __restrict__ list_starts,
                     const int* __restrict__ tile_lists, const int* __restrict__ tiles,
                     const int* __restrict__ positions, const int* __restrict__ lasts, int heads, int kv_heads,
                     int width, float scale, int window, int ahead, int alibi, float cap) {
    DYNAMIC_SHARED(memory);
    real *queries = reinterpret_cast<real*>(memory), *gradients = queries + BLOCK_ROWS * STRIDE;
    real* buffers = gradients + BLOCK_ROWS * STRIDE;
    constexpr int BUFFER = 2 * BWD_STEP * STRIDE;
    int block = blockIdx.x / (TILE / BLOCK_ROWS), first = blockIdx.x % (TILE / BLOCK_ROWS) * BLOCK_ROWS;
    int head = blockIdx.y, group = head / (heads / kv_heads), warp = threadIdx.x / 32;
    int warp_row = first + warp * 16, end = list_starts[block + 1];
    i64 pitch = (i64)kv_heads * width;
    q += head * width, d_z += head * width, d_q += head * width, k += group * width, v += group * width;
    block_rows += block * TILE;
    const int4* tile_list = reinterpret_cast<const int4*>(tile_lists);
    Step now = {concerned(list_starts[block], end, tile_list, first), 0};
    auto fetch_step = [&](Step s, real* to) {
        const int* rows = tiles + (i64)tile_list[s.entry].x * TILE + s.part * BWD_STEP;
        const real* const both[] = {k, v};
        fetch<BWD_STEP>(to, both, both, rows, BWD_STEP, pitch, width);
    };
    fetch<BLOCK_ROWS>(queries, q, block_rows + first, BLOCK_ROWS, (i64)heads * width, width);
    fetch<BLOCK_ROWS>(gradients, d_z, block_rows + first, BLOCK_ROWS, (i64)heads * width, width);
    if (now.entry < end) fetch_step(now, buffers);
    copy_commit();
    Rows rows = rows_of(block_rows, first, positions, lasts, window, ahead);
    float sums[PARTS][4] = {}, shift[2], delta_of[2], base2 = unit_of(scale) * LOG2_E;
    float slope = slope_of(head, alibi, unit_of(scale));
#pragma unroll
    for (int i = 0; i < 2; i++) {
        shift[i] = rows.row[i] < 0 ? 0.0f : lse[(i64)rows.row[i] * heads + head] * LOG2_E;
        delta_of[i] = rows.row[i] < 0 ? 0.0f : delta[(i64)rows.row[i] * heads + head];
    }
    for (int stage = 0; now.entry < end; stage ^= 1) {
        Step next = after<BWD_STEP>(now, end, tile_list, first);
        if (next.entry < end) fetch_step(next, buffers + (stage ^ 1) * BUFFER);
        copy_commit();
        copy_wait<1>();
        __syncthreads();
        int4 entry = tile_list[now.entry];
        int key = entry.y + now.part * BWD_STEP;
        const real *keys = buffers + stage * BUFFER, *values = keys + BWD_STEP * STRIDE;
        if (any_seen<BWD_STEP>(rows, entry, key, warp_row)) {
            float s[BWD_STEP / 8][4] = {}, d_p[BWD_STEP / 8][4] = {}, slopes[BWD_STEP / 8][4];
            Product<real>::transposed<BWD_STEP, HEAD_DIM>(s, queries + warp * 16 * STRIDE, keys, STRIDE);
            Product<real>::transposed<BWD_STEP, HEAD_DIM>(d_p, gradients + warp * 16 * STRIDE, values, STRIDE);
            if (SOFTCAP) apply_softcap(s, slopes, cap_of(cap, scale));
            if (alibi) subtract_alibi(s, slope, rows, key);
            if (!all_seen<BWD_STEP>(rows, entry, key, warp_row)) mask(s, rows, entry, key);
#pragma unroll
            for (int n = 0; n < BWD_STEP / 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    // Of what is masked, exactly 0.
                    s[n][e] = exp2_fast(s[n][e] * base2 - shift[e / 2]) * (d_p[n][e] - delta_of[e / 2]);
                    if (SOFTCAP) s[n][e] *= slopes[n][e];
                }
            Product<real>::of_sums<HEAD_DIM, BWD_STEP>(sums, s, keys, STRIDE);
        }
        __syncthreads();  // before what was read is filled again
        now = next;
    }
    copy_wait<0>();
#pragma unroll
    for (int i = 0; i < 2; i++)
        if (rows.row[i] >= 0) store_row(d_q + (i64)rows.row[i] * heads * width, sums, i, scale, width);
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

// COLUMNS of d_k, d_v [16, D] of the warp's keys, from `from` on, = over all heads of the group and all queries that see
// them. The gradients that are not wanted are one fragment that nobody touches.
template <bool want_k, bool want_v>
DEV void collect(float (&d_k)[want_k ? COLUMNS / 8 : 1][4], float (&d_v)[want_v ? COLUMNS / 8 : 1][4], const Keys& in,
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
    // The queries of one head after the other.
    struct { int head, query; } now = {(int)blockIdx.y * heads_of_group, seen_by.begin};
    int end_head = now.head + heads_of_group;
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
    if (now.query < seen_by.end) fetch_step(now, 0);
    copy_commit();
    for (int stage = 0; now.query < seen_by.end && now.head < end_head; stage ^= 1) {
        auto next = now;
        next.query += BWD_STEP;
        if (next.query >= seen_by.end) next = {now.head + 1, seen_by.begin};
        if (next.head < end_head) fetch_step(next, stage ^ 1);
        copy_commit();
        copy_wait<1>();
        __syncthreads();
        int query = now.query;
        const real *queries = buffers + stage * BUFFER, *gradients = queries + BWD_STEP * STRIDE;
        if (query + BWD_STEP > warp_begin && query < warp_end) {
            float p[BWD_STEP / 8][4] = {}, slopes[BWD_STEP / 8][4];
            Product<real>::transposed<BWD_STEP, HEAD_DIM>(p, keys + warp * 16 * STRIDE, queries, STRIDE);
            if (SOFTCAP) apply_softcap(p, slopes, cap_of(in.cap, in.scale));
            float slope = in.alibi ? slope_of(now.head, in.alibi, unit_of(in.scale)) : 0.0f;
            bool all = query >= warp_all_from && query + BWD_STEP <= warp_all && in.window == 0;
#pragma unroll
            for (int n = 0; n < BWD_STEP / 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    int column = n * 8 + 2 * t + e % 2, j = query + column, i = e / 2;
                    bool sees = all || (j >= begin[i] && j < until[i]);
                    if (in.window > 0 && sees) {
                        int distance = in.positions[in.order[j]] - position[i];
                        sees = distance < in.window && -distance <= in.ahead;
                    }
                    if (in.alibi) p[n][e] -= slope * (beside(queries, column)[1] - position[i]);
                    p[n][e] = sees ? exp2_fast(p[n][e] * base2 - *beside(queries, column)) : 0.0f;
                    // Where nothing else needs p, the slopes need no registers of their own until d_s is there.
                    if (SOFTCAP && !want_v) p[n][e] *= slopes[n][e];
                }
            if (want_v) Product<real>::of_sums<want_v ? COLUMNS : 8, BWD_STEP>(d_v, p, gradients + from, STRIDE);
            if (want_k) {
                float d_s[BWD_STEP / 8][4] = {};
                Product<real>::transposed<BWD_STEP, HEAD_DIM>(d_s, values + warp * 16 * STRIDE, gradients, STRIDE);
#pragma unroll
                for (int n = 0; n < BWD_STEP / 8; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        d_s[n][e] = p[n][e] * (d_s[n][e] - *beside(gradients, n * 8 + 2 * t + e % 2));
                        if (SOFTCAP && want_v) d_s[n][e] *= slopes[n][e];
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
                      const real* __restrict__ k, const real* __restrict__ v, const int* __restrict__ order,
                      const int* __restrict__ begins, const int* __restrict__ ends, const int* __restrict__ positions,
                      const int* __restrict__ lasts, int rows, int heads, int kv_heads, int width, float scale,
                      int window, int ahead, int alibi, float cap) {
    DYNAMIC_SHARED(memory);
    real *keys = reinterpret_cast<real*>(memory), *values = keys + BLOCK_ROWS * STRIDE;
    real* buffers = values + BLOCK_ROWS * STRIDE;
    int first = blockIdx.x * BLOCK_ROWS, begin = rows, end = 0;
    for (int i = first + threadIdx.x % 32; i < min(first + BLOCK_ROWS, rows); i += 32) {
        begin = min(begin, begins[i]);
        end = max(end, ends[i]);
    }
    Stretch seen_by = {-warp_max(-begin), warp_max(end)};
    i64 pitch = (i64)kv_heads * width, offset = blockIdx.y * width;
    fetch<BLOCK_ROWS>(keys, k + offset, order + first, rows - first, pitch, width);
    fetch<BLOCK_ROWS>(values, v + offset, order + first, rows - first, pitch, width);
    Keys in = {d_z,  q,    k,     v,        lse,   delta,  order, begins, ends,
               positions, lasts, rows, heads, kv_heads, width, window, ahead, alibi, scale, cap};
    auto store = [&](real* to, const float(&sums)[COLUMNS / 8][4], float scale, int from) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int index = first + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + i * 8;
            if (index < rows) store_row(to + order[index] * pitch + offset, sums, i, scale, width, from);
        }
    };
    if (HEAD_DIM <= 128) {
        float of_k[COLUMNS / 8][4] = {}, of_v[COLUMNS / 8][4] = {};
        collect<true, true>(of_k, of_v, in, keys, values, buffers, first, seen_by, 0);
        store(d_k, of_k, scale, 0);
        store(d_v, of_v, 1.0f, 0);
    } else {
        // All sums of a wide head do not fit the registers: the scores are made again for each part.
#pragma unroll 1
        for (int from = 0; from < HEAD_DIM; from += COLUMNS) {
            float none[1][4], of_v[COLUMNS / 8][4] = {}, of_k[COLUMNS / 8][4] = {};
            collect<false, true>(none, of_v, in, keys, values, buffers, first, seen_by, from);
            store(d_v, of_v, 1.0f, from);
            collect<true, false>(of_k, none, in, keys, values, buffers, first, seen_by, from);
            store(d_k, of_k, scale, from);
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
