// What the attention's kernels are made of: tiles in shared memory, the steps of a tile list, what rows see, rows stored. This text
// stands before that of attention.cu, whose head says what the tables are.

[[maybe_unused]] constexpr int TILE = 64, FWD_STEP = SMALL_SHARED ? FWD_SMALL : FWD_LARGE;
[[maybe_unused]] constexpr int BLOCK_ROWS = 16 * WARPS;
constexpr int STRIDE = HEAD_DIM + 16 / (int)sizeof(real);  // odd in units of 16 bytes: no bank conflicts
constexpr int PARTS = HEAD_DIM / 8;                        // C fragments of a row of heads
// Columns of a key's gradient whose sums a thread holds at a time.
[[maybe_unused]] constexpr int COLUMNS = HEAD_DIM > 128 && sizeof(real) == 4 ? HEAD_DIM / 2 : HEAD_DIM;
// Whether there is a forward with blocks of 128 rows: where the sums of 32 rows a warp fit its registers.
[[maybe_unused]] constexpr bool ROWS_128 = sizeof(real) == 2 && 128 % HEAD_DIM == 0 && !SOFTCAP;
[[maybe_unused]] constexpr int NO_ROW = -0x7fffffff - 1, DKV_BLOCKS = STRIDE * (int)sizeof(real) <= 144 ? 3 : 1;  // a multiprocessor

// Which rows a block works on, in the order of the tables. Blocks start in order, one on each multiprocessor, those of `second` rows and
// of `more` heads of the next, and then a second one: of those of a head, that with the least work comes beside that with the most.
DEV int rows_of_block(int second, int more) {
    int at = blockIdx.y, head = blockIdx.x, heads = gridDim.x;
    int third = min(2 * second + (head < 2 * more) + (head + heads < 2 * more), (int)gridDim.y);
    second += head < more;
    return at >= second && at < third ? second + third - 1 - at : at;
}

// A part of what a block of keys collects: number `index` of `count`, of the block at `block` in the table.
struct Part {
    int block, index, count;
};
// Part `at` of all blocks one after another. A block has a part for each `part_rows` rows and heads that see it, or one where
// that is 0; a count of 0 says that there are not so many.
DEV Part part_at(int at, const int* key_blocks, int blocks, int heads_of_group, int part_rows) {
    if (part_rows == 0) return {at, 0, 1};
    const int2* table = reinterpret_cast<const int2*>(key_blocks);
    int lane = threadIdx.x % 32;
    for (int first = 0, before = 0; first < blocks; first += 32) {
        int block = first + lane, count = 0;
        if (block < blocks) count = (int)(((i64)table[block].y * heads_of_group + part_rows - 1) / part_rows);
        int end = before + count;
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
            int below = __shfl_up_sync(WARP_ALL, end, distance);
            if (lane >= distance) end += below - before;
        }
        int index = at - (end - count), found = index >= 0 && index < count;
        count = warp_max(found ? count : 0);
        if (count) return {warp_max(found ? block : 0), warp_max(found ? index : 0), count};
        before = __shfl_sync(WARP_ALL, end, 31);
    }
    return {0, 0, 0};
}

// `count` rows of one head of each of `n` matrices into tiles one after another in shared memory: row i is row rows[i] of x, or
// of the cache (`cached`), or none (also from `valid` on). A thread loads the indices of the rows that it copies a part
// of (of wide heads in f32 one at a time: registers), then copies, so that no copy waits for its own load.
template <int count, int n>
DEV void fetch(real* tile, const real* const (&x)[n], const real* const (&cached)[n], const int* rows, int valid, int pitch,
               int width) {
    constexpr int CHUNK = 16 / (int)sizeof(real), CHUNKS = HEAD_DIM / CHUNK, THREADS = 32 * WARPS;
    constexpr int ITERATIONS = (count * CHUNKS + THREADS - 1) / THREADS, UNROLLED = ITERATIONS > 16 ? 1 : ITERATIONS;
    constexpr bool EVEN = THREADS % CHUNKS == 0;  // then a thread has a column of its own
    auto row_of = [](int i) { return EVEN ? threadIdx.x / CHUNKS + i * (THREADS / CHUNKS) : (threadIdx.x + i * THREADS) / CHUNKS; };
    auto column_of = [](int i) { return (EVEN ? threadIdx.x : threadIdx.x + i * THREADS) % CHUNKS * CHUNK; };
    int limit = count * CHUNKS % THREADS ? min(valid, count) : valid, indices[UNROLLED], bytes = pitch * (int)sizeof(real);
#pragma unroll 1
    for (int first = 0; first < ITERATIONS; first += UNROLLED) {
#pragma unroll
        for (int i = 0; i < UNROLLED; i++) indices[i] = row_of(first + i) < limit ? rows[row_of(first + i)] : NO_ROW;
#pragma unroll
        for (int i = first; i < first + UNROLLED && width % CHUNK == 0; i++) {
            if (count * CHUNKS % THREADS && row_of(i) >= count) break;
            int index = indices[i - first], at = index == NO_ROW ? 0 : index ^ index >> 31;
            bool missing = column_of(i) >= width, none = index == NO_ROW || missing, own = index >= 0;
#pragma unroll
            for (int m = 0; m < n; m++) {
                const real *of_pack = x[m] + (missing ? 0 : column_of(i)), *of_cache = cached[m] + (missing ? 0 : column_of(i));
                const char* row = reinterpret_cast<const char*>(own ? of_pack : of_cache) + (i64)at * bytes;
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

// The next entry of a tile list, from the given one on, that any of `rows` block rows sees.
template <int rows>
DEV int concerned(int entry, int end, const int4* tile_list, int first) {
    while (entry < end && (tile_list[entry].w <= first || tile_list[entry].z >= first + rows)) entry++;
    return entry;
}
template <int step, int rows>
DEV Step after(Step s, int end, const int4* tile_list, int first) {
    if (s.part + 1 < TILE / step) return {s.entry, s.part + 1};
    return {concerned<rows>(s.entry + 1, end, tile_list, first), 0};
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
template <int fragments, int parts>
DEV void apply_softcap(float (&s)[fragments][parts][4], float (&slopes)[fragments][parts][4], Cap cap) {
#pragma unroll
    for (int m = 0; m < fragments; m++)
#pragma unroll
        for (int n = 0; n < parts; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float t = tanh_of(cap.inner * s[m][n][e]);
                s[m][n][e] = cap.outer * t;
                slopes[m][n][e] = fmaf(-t, t, 1.0f);
            }
}

// What a warp knows of its rows of queries lies beside them in `queries`, its tile in shared memory: there it takes no registers.
// Of row r the last and the first position that it sees, and its row of the pack.
DEV int& last_of(const real* queries, int r) { return reinterpret_cast<int*>(beside(queries, r))[0]; }
DEV int& low_of(const real* queries, int r) { return reinterpret_cast<int*>(beside(queries, r))[1]; }
DEV int& row_of(const real* queries, int r) { return reinterpret_cast<int*>(beside(queries, r))[2]; }
// Of all rows the least and the greatest of the last positions, and those of the first.
enum { FIRST_LAST, LAST_LAST, FIRST_LOW, LAST_LOW };
DEV int& bound_of(const real* queries, int which) { return reinterpret_cast<int*>(beside(queries, which))[3]; }

template <int fragments>
DEV void note_rows(const real* queries, const int* block_rows, int first, const int* positions, const int* lasts, int window,
                   int ahead) {
    // Rows that are not there see nothing, and are no reason to look at anything.
    int lane = threadIdx.x % 32, row = lane < 16 * fragments ? block_rows[first + lane] : NO_ROW;
    int position = row < 0 ? -1 : positions[row], last = row < 0 ? -1 : min(lasts[row], position + ahead);
    int low = window > 0 ? max(0, position - window + 1) : 0;
    bool there = lane < 16 * fragments;
    int bounds[4] = {-warp_max(there ? -last : NO_ROW), warp_max(last), -warp_max(there ? -low : NO_ROW), warp_max(low)};
    if (there) last_of(queries, lane) = last, low_of(queries, lane) = low, row_of(queries, lane) = row;
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (lane == i) bound_of(queries, i) = bounds[i];
    __syncwarp();
}
// Whether any, and whether every row of the warp, whose first is `first`, sees something, and everything, of `step` keys from
// position `key` on.
template <int fragments, int step>
DEV bool any_seen(const real* queries, int first, int4 entry, int key) {
    return entry.w > first && entry.z < first + 16 * fragments && key <= bound_of(queries, LAST_LAST) &&
           key + step > bound_of(queries, FIRST_LOW);
}
template <int fragments, int step>
DEV bool all_seen(const real* queries, int first, int4 entry, int key) {
    return entry.z <= first && entry.w >= first + 16 * fragments && key + step - 1 <= bound_of(queries, FIRST_LAST) &&
           key >= bound_of(queries, LAST_LOW);
}

// Scores of keys from position `key` on, -inf where a row does not see one.
template <int fragments, int parts>
DEV void mask(float (&s)[fragments][parts][4], const real* queries, int first_row, int4 entry, int key) {
    int g = threadIdx.x % 32 / 4, first = key + 2 * (threadIdx.x % 4);
#pragma unroll
    for (int i = 0; i < 2 * fragments; i++) {
        int r = g + 8 * i, last = last_of(queries, r), low = low_of(queries, r);
        if (first_row + r < entry.z || first_row + r >= entry.w) last = -1;
#pragma unroll
        for (int n = 0; n < parts; n++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                int position = first + n * 8 + e;
                if (position > last || position < low) s[i / 2][n][i % 2 * 2 + e] = -INFINITE;
            }
    }
}

// Products of keys, or their capped scores, from position `key` on, less `slope` (ALiBi) for every position to the row's own.
template <int fragments, int parts>
DEV void subtract_alibi(float (&s)[fragments][parts][4], float slope, const real* queries, int key) {
    int g = threadIdx.x % 32 / 4, first = key + 2 * (threadIdx.x % 4);
#pragma unroll
    for (int i = 0; i < 2 * fragments; i++) {
        int last = last_of(queries, g + 8 * i);
#pragma unroll
        for (int n = 0; n < parts; n++)
#pragma unroll
            for (int e = 0; e < 2; e++) s[i / 2][n][i % 2 * 2 + e] -= slope * (last - (first + n * 8 + e));
    }
}

// By what heads are rotated back, as rope.cu says; no cosines and sines leave them as they are.
struct Angles {
    const float* cos_sin;
    const int* positions;
};
// Rotates the rows of one head in the warp's tile back; row r is row_of(r) of the pack, less than 0 if there is none.
template <int rows, class RowOf>
DEV void rotate_back(real* tile, Angles angles, int width, RowOf row_of) {
    int half_dim = width / 2, fours = half_dim / 4;
    for (int i = threadIdx.x % 32; i < rows * fours; i += 32) {
        int r = i / fours, column = i % fours * 4, row = row_of(r);
        if (row < 0) continue;
        real* x = tile + r * STRIDE + column;
        const float* cosines = angles.cos_sin + (i64)angles.positions[row] * width + column;
        float a[4], b[4], cosine[4], sine[4];
        load4(a, x, 4);
        load4(b, x + half_dim, 4);
        load4(cosine, cosines, 4);
        load4(sine, cosines + half_dim, 4);
        rotate(a, b, cosine, sine, -1.0f);
        store4(x, a, 4);
        store4(x + half_dim, b, 4);
    }
    __syncwarp();
}

// Columns from `from` on of the warp's rows of one head = its sums, each row of a thread (two for a fragment) times scales[i];
// row r is row_of(r) of x, less than 0 if there is none. By way of `tile`, as many rows of shared memory that no other warp
// uses: so a lane stores 16 bytes, and lanes store neighbours. What is rotated back are whole heads of a multiple of 64 elements.
template <int fragments, int parts, class RowOf>
DEV void store_rows(real* x, const float (&c)[fragments][parts][4], real* tile, const float (&scales)[2 * fragments], i64 pitch,
                    int width, int from, RowOf row_of, Angles back = {}) {
    constexpr int CHUNK = 16 / (int)sizeof(real), CHUNKS = parts * 8 / CHUNK;
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    bool vectors = width % CHUNK == 0 && aligned(x);
    __syncwarp();  // before what others still read is written
#pragma unroll
    for (int i = 0; i < 2 * fragments; i++)
#pragma unroll
        for (int n = 0; n < parts; n++) {
            const float* sums = &c[i / 2][n][i % 2 * 2];
            store2(tile + (g + 8 * i) * STRIDE + n * 8 + 2 * t, sums[0] * scales[i], sums[1] * scales[i]);
        }
    __syncwarp();
    if (HEAD_DIM <= 128 && back.cos_sin) rotate_back<16 * fragments>(tile, back, width, row_of);
    for (int i = lane; i < 16 * fragments * CHUNKS; i += 32) {
        int r = i / CHUNKS, column = i % CHUNKS * CHUNK, row = row_of(r), valid = width - from - column;
        if (row < 0) continue;
        const real* sums = tile + r * STRIDE + column;
        real* to = x + row * pitch + from + column;
        if (vectors && valid > 0) *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(sums);
        for (int j = 0; j < min(vectors ? 0 : CHUNK, valid); j++) to[j] = sums[j];
    }
    __syncwarp();  // before the tile is written again
}
