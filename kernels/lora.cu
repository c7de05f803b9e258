// LoRA over stacked runs (Hu et al. 2021): rows of run r pass through adapter r, rows of the base model through none.
// Run r has A [R, input] from element r * stride + a of params on and B [output, R] from r * stride + b on.
//
//   lora_fwd_shrink  xa [N, R] = A drop(x [N, input])
//   lora_fwd_expand  y [N, output] += scale * B xa; of the first `rotated` LoRAs the sum is rotated as rope_fwd rotates
//                    [N, heads, 2 half], with its positions and cos_sin [positions, 2 half]; half is a multiple of 32
//   lora_fwd_expand_gated  the same of gate and up [N, output] at once, and act [N, output] = SiLU(gate) * up; all rows have tiles.
//                    next_xa [N, next_rank] = next_A drop(act), if that is not null, with that LoRA's dropout
//   lora_delta       out [N, output] = scale * B xa
//   lora_bwd_xa      d_xa [N, R] = scale * B^T d_y [N, output]
//   lora_bwd_inputs  d_params: B += scale * d_y^T xa, A += d_xa^T drop(x), of all runs, or = where nothing is to be accumulated;
//                    d_x [N, input] += drop(A^T d_xa)
//   lora_bwd_gated   the same of one LoRA of act = SiLU(gate) * up [N, input], but that d_act is only read, and d_gate and d_up [N, input]
//                    are set to what comes of the sum; all rows have tiles. next_d_xa [2, N, next_rank] = next_scale * B^T d_gate, and
//                    then of d_up, if that is not null, of the LoRAs at next_b and next_b1
// Up to three LoRAs of one input, rank and scale go through a launch, each with its own A and B, outputs and dropout; names of
// what is the second's and the third's end in 1 and 2. They are added to d_x in order, and before them, where all rows are of the
// runs, term_count terms [N, input], term_pitch apart: to what is there if `adds`, else to 0; they may lie where d_x does, if nothing
// is read or written there. With rounded_d_x, which may lie where d_x does, that is set to the rounded sum, and with
// delta [N, input / head_dim], of an input z that is an attention's, delta to its products with z, summed over heads as
// attention_bwd_delta does. 64 divides head_dim, head_dim 256, 256 input; R, stride, a and b are multiples of 4 then, and addresses of
// 16 bytes.
//
// Rows of the base model and of other runs are left alone, but for xa, where they are zeros; the host fills out with zeros first.
// The backward of lora_delta is bwd_xa (whose d_xa is then filled so too) and bwd_inputs with an input of no columns.
//
// drop(x) keeps an element, times keep_scale = 1 / (1 - p), unless the hash of (seeds [runs], site, keys [N] of the row,
// column) is less than threshold = p * 2^32: the same decisions as on the CPU. No dropout: seeds null, keep_scale 1.
//
// The narrow products are split-K: blocks share a depth, as many whatever the pack, so that a row's sums are the same bits in any. A
// block's part of a deep one is as wide as what a block of expand_gated or bwd_gated makes, and is summed in the same order there and
// in shrink and bwd_xa. Their workspace: partial sums `parts` [splits, LoRAs, rows * R], and `tickets`, zeros before and after.
// Of what next_xa and next_d_xa are made, R, next_rank (at most 32), strides and where matrices begin are multiples of 4, addresses of
// 16 bytes, and 256 divides the width.
//
//   tiles [., 3]  run, first row, number of rows (<= 16): the stretches of rows of one run, cut; runs ascending; then tiles of no
//                 rows, of which nothing is done, up to the size of the table
//   runs [., 3]   run, its first tile, number of its tiles
//   run_of [rows] run of each row, or -1; the runs of the tiles are those from first_run to end_run - 1
//
// Launch: shrink (tile_count + ceil(rows / 16), or tile_count where all rows have tiles, ceil(R / 32) * LoRAs, splits) x 64;
// bwd_xa (tiles, ceil(R / 32) * LoRAs, splits of the deepest) x 64; expand (tiles, ceil(widest output / 256), LoRAs) x 128;
// expand_gated and delta (tiles, ceil(output / 256)) x 128; bwd_inputs and bwd_gated (runs * ceil(R / 16) * sum of (ceil(output / 64) +
// ceil(input / 64)), and where a gradient of the input is wanted tile_count * ceil(input / 256) more) x 128: `tiles` are those of
// all runs, own_tiles [tile_count, 3] those of `runs`. Static shared memory only. Any alignment; vectors where addresses allow, and
// then all loads of a step before the first is used. Fragments come straight from global memory: each operand is read once, and a
// sum over k may take its terms in any order that both sides agree on, here 4 neighbours a lane.
//
// Determinism: every element has one writer; partial sums of warps and blocks are added in order. A run's tiles are summed by four
// warps, every fourth tile each, then the four sums in order.

// Zeros in 16 rows of out [rows, R] from `first` on, but for those of the runs from first_run to end_run - 1.
DEV void zero_others(float* __restrict__ out, const int* __restrict__ run_of, int first, int rows, int first_run,
                     int end_run, int rank) {
    int last = min(first + 16, rows);
    for (int row = first; row < last; row++)
        if (run_of[row] < first_run || run_of[row] >= end_run)
            for (int r = threadIdx.x; r < rank; r += blockDim.x) out[(i64)row * rank + r] = 0.0f;
}

extern "C" __global__ void __launch_bounds__(32 * NARROW_WARPS, 1)
    lora_fwd_shrink(float* __restrict__ xa, float* __restrict__ xa1, float* __restrict__ xa2, const real* __restrict__ x,
                    const float* __restrict__ params, const int* __restrict__ tiles, int tile_count,
                    const int* __restrict__ run_of, int rows, int first_run, int end_run, float* __restrict__ parts,
                    int* __restrict__ tickets, i64 pitch, const u64* __restrict__ seeds, const u32* __restrict__ keys,
                    u64 site, u64 site1, u64 site2, u32 threshold, float keep_scale, int rank, int input, i64 stride,
                    i64 a, i64 a1, i64 a2) {
    begin_kernel();
    Narrow narrow = narrow_of(parts, tickets, pitch, rank);
    float* out = pick(narrow.lora, xa, xa1, xa2);
    int beyond = (int)blockIdx.x - tile_count;
    if (beyond >= 0) {
        if (narrow.from + blockIdx.z == 0) zero_others(out, run_of, beyond * 16, rows, first_run, end_run, rank);
        return;
    }
    const int* tile = tiles + blockIdx.x * 3;
    const float* adapter = params + tile[0] * stride + pick(narrow.lora, a, a1, a2);
    Dropout dropout = {seeds, keys, pick(narrow.lora, site, site1, site2), threshold};
    narrow_product<true>(out, x, adapter, tile, rank, input, keep_scale, dropout, narrow.from, narrow.workspace);
}

// Where a projection goes, if there are cosines and sines rotated, as rope.cu rotates what is stored.
struct Rotated {
    real* out;
    const float* cos_sin;
    const int* positions;

    DEV bool whole() const { return aligned4(out) && aligned(cos_sin); }
    template <bool WHOLE>
    DEV void put(const WideSums& sums, const int* __restrict__ tile, int from, int half, int width) const {
        if (!cos_sin) return Stored<real>{out}.put<WHOLE>(sums, tile, from, half, width);
        int first = tile[1], rows = tile[2], g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (g + i * 8 >= rows) continue;
            i64 row = first + g + i * 8;
            const float* angles = cos_sin + (i64)positions[row] * (2 * half) + from % (2 * half) + 4 * t;
#pragma unroll
            for (int n = 0; n < 2; n++) {
                float a[4], b[4], cosine[4], sine[4];
#pragma unroll
                for (int j = 0; j < 4; j++) a[j] = rounded(sums.of[n][i][j]), b[j] = rounded(sums.of[n + 2][i][j]);
                load4(cosine, angles + n * 16, 4);
                load4(sine, angles + half + n * 16, 4);
                rotate(a, b, cosine, sine, 1.0f);
                real* to = out + row * width + from + n * 16 + 4 * t;
                store4(to, a, 4);
                store4(to + half, b, 4);
            }
        }
    }
};

extern "C" __global__ void __launch_bounds__(32 * WIDE_WARPS, 1)
    lora_fwd_expand(real* __restrict__ y, real* __restrict__ y1, real* __restrict__ y2, const float* __restrict__ xa,
                    const float* __restrict__ xa1, const float* __restrict__ xa2, const float* __restrict__ params,
                    const int* __restrict__ tiles, const int* __restrict__ positions, const float* __restrict__ cos_sin,
                    int rotated, int half, int rank, int output, int output1, int output2, i64 stride, i64 b, i64 b1,
                    i64 b2, float scale) {
    begin_kernel();
    const int* tile = tiles + blockIdx.x * 3;
    int l = blockIdx.z;
    real* out = pick(l, y, y1, y2);
    LowRank factors = {pick(l, xa, xa1, xa2), params + tile[0] * stride + pick(l, b, b1, b2), {}};
    Rotated to = {out, l < rotated ? cos_sin : nullptr, positions};
    wide_product<true>(out, {true}, to, tile, blockIdx.y, l < rotated ? half : NEIGHBOURS, rank,
                       pick(l, output, output1, output2), scale, 1, [&](int) { return factors; });
}

// gate += and up += their factors' product, and act of both as they are stored.
template <bool WHOLE>
DEV WideRows expand_gated(real* gate, real* up, real* act, const LowRank (&factors)[2], const int* __restrict__ tile, int from,
                          int rank, int width, float scale) {
    WideSums both[2];
    WideRows made = {};
#pragma unroll
    for (int l = 0; l < 2; l++) {
        const real* y = l ? up : gate;
        both[l] = wide_sums<WHOLE, true>(y, Sum{true}, tile, from, NEIGHBOURS, rank, width, scale, 1,
                                         [&](int) { return factors[l]; });
    }
    each_four<WHOLE>(tile, from, NEIGHBOURS, width, [&](int n, int i, i64 at, int valid) {
        float g[4], u[4];
#pragma unroll
        for (int j = 0; j < 4; j++) g[j] = rounded(both[0].of[n][i][j]), u[j] = rounded(both[1].of[n][i][j]);
        store4(gate + at, g, valid);
        store4(up + at, u, valid);
        gate_value(Silu(), g, u);
        store4(act + at, g, valid);
        made.of[n][i] = four_of(g, real());
    });
    return made;
}

extern "C" __global__ void __launch_bounds__(32 * WIDE_WARPS, 1)
    lora_fwd_expand_gated(real* __restrict__ gate, real* __restrict__ up, real* __restrict__ act,
                          const float* __restrict__ xa, const float* __restrict__ xa1, const float* __restrict__ params,
                          const int* __restrict__ tiles, int rank, int output, i64 stride, i64 b, i64 b1, float scale,
                          float* __restrict__ next_xa, int next_rank, i64 next_a, float* __restrict__ parts,
                          int* __restrict__ tickets, i64 pitch, const u64* __restrict__ seeds,
                          const u32* __restrict__ keys, u64 site, u32 threshold, float keep_scale) {
    begin_kernel();
    const int* tile = tiles + blockIdx.x * 3;
    int from = (blockIdx.y * WIDE_WARPS + threadIdx.x / 32) * 64;
    if (from >= output || tile[2] == 0) return;
    const float* adapter = params + tile[0] * stride;
    const LowRank factors[2] = {{xa, adapter + b, {}}, {xa1, adapter + b1, {}}};
    bool whole = from + 64 <= output && output % 4 == 0 && rank % 4 == 0;
    whole = whole && aligned4(gate) && aligned4(up) && aligned4(act);
    for (const LowRank& f : factors) whole = whole && aligned(f.u) && aligned(f.w);
    if (!whole) {
        expand_gated<false>(gate, up, act, factors, tile, from, rank, output, scale);
        return;
    }
    WideRows made = expand_gated<true>(gate, up, act, factors, tile, from, rank, output, scale);
    if (!next_xa) return;
    NextRanks next = {next_xa, next_rank, keep_scale, {parts, tickets + blockIdx.x, pitch}, {seeds, keys, site, threshold}};
    next_ranks<true, 1>(next, {&made}, {adapter + next_a}, tile, from, output);
}

extern "C" __global__ void __launch_bounds__(32 * WIDE_WARPS, 1)
    lora_delta(float* __restrict__ out, const float* __restrict__ xa, const float* __restrict__ params,
               const int* __restrict__ tiles, int rank, int output, i64 stride, i64 b, float scale) {
    begin_kernel();
    const int* tile = tiles + blockIdx.x * 3;
    LowRank factors = {xa, params + tile[0] * stride + b, {}};
    wide_product<true>(out, {}, Stored<float>{out}, tile, blockIdx.y, NEIGHBOURS, rank, output, scale, 1,
                       [&](int) { return factors; });
}

// d_xa [LoRAs, rows * R]
extern "C" __global__ void __launch_bounds__(32 * NARROW_WARPS, 1)
    lora_bwd_xa(float* __restrict__ d_xa, const real* __restrict__ d_y, const real* __restrict__ d_y1,
                const real* __restrict__ d_y2, const float* __restrict__ params, const int* __restrict__ tiles,
                float* __restrict__ parts, int* __restrict__ tickets, i64 pitch, int rank, int output, int output1,
                int output2, i64 stride, i64 b, i64 b1, i64 b2, float scale) {
    begin_kernel();
    const int* tile = tiles + blockIdx.x * 3;
    Narrow narrow = narrow_of(parts, tickets, pitch, rank);
    int l = narrow.lora;
    const float* adapter = params + tile[0] * stride + pick(l, b, b1, b2);
    narrow_product<false>(d_xa + l * pitch, pick(l, d_y, d_y1, d_y2), adapter, tile, rank,
                          pick(l, output, output1, output2), scale, {}, narrow.from, narrow.workspace);
}

// d_params = or += factor * u^T w of a run's rows, in the order of memory: for 64 columns of u [., width] and 16 ranks of w [., R], in B
// [width, R] or A [R, width].
DEV void add_outer(float* __restrict__ d_params, bool accumulate, const real* __restrict__ u, const float* __restrict__ w,
                   bool is_b, int from, int to_r, int width, int rank, float factor, const int* __restrict__ tiles,
                   const int* __restrict__ run_tiles, const Dropout& dropout) {
    // Warp w sums over every fourth tile; then it adds up the four sums of the fragments w.
    __shared__ float parts[4][4][8][33];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int run = run_tiles[0], first_tile = run_tiles[1], count = run_tiles[2];
    bool vectors = from + 64 <= width && width % 8 == 0 && aligned(u);
    float c[4][2][4] = {};
    for (int i = warp; i < count; i += 4) {
        const int* tile = tiles + (first_tile + i) * 3;
        int first = tile[1], rows = tile[2], column = from + 8 * g;
        float v[4][8], r[2][4];
        if (vectors) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                i64 row = first + min(4 * t + j, rows - 1);
                load8_aligned(v[j], u + row * width + column);
#pragma unroll
                for (int n = 0; n < 2; n++) r[n][j] = w[row * rank + min(to_r + n * 8 + g, rank - 1)];
            }
        } else {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                i64 row = first + min(4 * t + j, rows - 1);
                load8(v[j], u + row * width + column, width - column);
#pragma unroll
                for (int n = 0; n < 2; n++) r[n][j] = w[row * rank + min(to_r + n * 8 + g, rank - 1)];
            }
        }
        // Rows that are not there are no terms of the sums; ranks that are not are not stored.
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int row = 4 * t + j;
#pragma unroll
            for (int i = 0; i < 8; i++) v[j][i] = row < rows ? v[j][i] : 0.0f;
#pragma unroll
            for (int n = 0; n < 2; n++) r[n][j] = row < rows ? r[n][j] : 0.0f;
            if (!is_b && dropout.seeds && row < rows) drop(v[j], dropout, hash_of(dropout, run, first + row), column);
        }
        FragmentB<bf16> right[2][TERMS_F32];
        set_b(right[0], r[0]);
        set_b(right[1], r[1]);
#pragma unroll
        for (int m = 0; m < 4; m++) {
            FragmentA<bf16> left[TERMS];
            set_terms(left, 0, v[0][2 * m], v[1][2 * m]), set_terms(left, 1, v[0][2 * m + 1], v[1][2 * m + 1]);
            set_terms(left, 2, v[2][2 * m], v[3][2 * m]), set_terms(left, 3, v[2][2 * m + 1], v[3][2 * m + 1]);
#pragma unroll
            for (int n = 0; n < 2; n++) multiply(c[m][n], left, right[n]);
        }
    }
#pragma unroll
    for (int m = 0; m < 4; m++)
#pragma unroll
        for (int i = 0; i < 8; i++) parts[warp][m][i][lane] = c[m][i / 4][i % 4];
    __syncthreads();
    float old[2][4] = {};
    int column[2], r[2], valid[2];
    // 4 neighbours in memory at a time: ranks of a column of B, columns of a rank of A.
#pragma unroll
    for (int q = 0; q < 2; q++) {
        int four = threadIdx.x + q * 128;
        column[q] = is_b ? four / 4 : four % 16 * 4, r[q] = is_b ? four % 4 * 4 : four / 16;
        i64 c = from + column[q], at = to_r + r[q];
        valid[q] = c >= width || at >= rank ? 0 : (int)(is_b ? rank - at : width - c);
        if (accumulate) load4(old[q], d_params + (is_b ? c * rank + at : at * (i64)width + c), valid[q]);
    }
#pragma unroll
    for (int q = 0; q < 2; q++) {
        i64 c = from + column[q], at = to_r + r[q];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int x = column[q] + (is_b ? 0 : j), y = r[q] + (is_b ? j : 0);
            float sum = 0.0f;
#pragma unroll
            for (int part = 0; part < 4; part++)
                sum += parts[part][x % 8 / 2][y / 8 * 4 + x % 2 * 2 + y % 2][x / 8 * 4 + y % 8 / 2];
            old[q][j] += factor * sum;
        }
        store4(d_params + (is_b ? c * rank + at : at * (i64)width + c), old[q], valid[q]);
    }
}

// Where the gradient of an input goes: to d_x, or rounded to `to`, or so and to what attention's backward begins with.
struct InputGradient {
    float* d_x;
    real* to;
    const real* z;
    float* delta;
    int head_dim;

    DEV bool whole() const { return aligned4(to) && aligned4(z); }
    template <bool WHOLE>
    DEV void put(const WideSums& sums, const int* __restrict__ tile, int from, int half, int width) const {
        if (!to) return Stored<float>{d_x}.put<WHOLE>(sums, tile, from, half, width);
        if (WHOLE && delta) return put_heads(sums, tile, from, width);
        Stored<real>{to}.put<WHOLE>(sums, tile, from, half, width);
    }
    // Of all warps of a block, with all of their columns.
    DEV void put_heads(const WideSums& sums, const int* __restrict__ tile, int from, int width) const {
        constexpr int EIGHTS = WIDE_WARPS * 8;
        __shared__ float products[16][EIGHTS + 3];  // of 8 columns each; no bank is asked twice at once
        int first = tile[1], rows = tile[2], lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        int begin = from / 8 % EIGHTS;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int r = g + i * 8;
#pragma unroll
            for (int n = 0; n < 4; n++) {
                i64 at = (i64)(first + min(r, rows - 1)) * width + from + 16 * n + 4 * t;
                float of_z[4], part = 0.0f;
                load4(of_z, z + at, 4);
                if (r < rows) store4(to + at, sums.of[n][i], 4);
                // An odd lane goes on where the even one before it ends.
#pragma unroll
                for (int j = 0; j < 4; j++) part = fmaf(rounded(sums.of[n][i][j]), of_z[j], part);
                part = __shfl_xor_sync(WARP_ALL, part, 1);
#pragma unroll
                for (int j = 0; j < 4; j++) part = fmaf(rounded(sums.of[n][i][j]), of_z[j], part);
                if (t % 2) products[r][begin + 2 * n + t / 2] = part;
            }
        }
        __syncthreads();
        // The warps add up a row each, as attention_bwd_delta's do.
        int count = head_dim / 8, heads = width / head_dim, head = (from / (WIDE_WARPS * 64) * EIGHTS + lane) / count;
        for (int r = threadIdx.x / 32; r < rows; r += WIDE_WARPS) {
            float sum = 0.0f + products[r][lane];
            for (int other = count / 2; other; other /= 2) sum += __shfl_xor_sync(WARP_ALL, sum, other);
            if (lane % count == 0) delta[(i64)(first + r) * heads + head] = sum;
        }
    }
};

// What the gradients of a LoRA's parameters are made of.
struct Gradients {
    const real* d_y;
    const float* xa;
    const real* x;
    const float* d_xa;
    i64 a, b;
    int output;
    Dropout dropout;

    // Blocks of 64 columns.
    DEV int of_b() const { return (output + 63) / 64; }
    // Adds number `column` of those of B, then of A, of a run.
    DEV void add(float* __restrict__ d_params, bool accumulate, int column, int to_r, int input, int rank, float scale,
                 float keep_scale, const int* __restrict__ tiles, const int* __restrict__ run_tiles) const {
        bool is_b = column < of_b();
        add_outer(d_params + (is_b ? b : a), accumulate, is_b ? d_y : x, is_b ? xa : d_xa, is_b,
                  (is_b ? column : column - of_b()) * 64, to_r, is_b ? output : input, rank, is_b ? scale : keep_scale,
                  tiles, run_tiles, dropout);
    }
};

extern "C" __global__ void __launch_bounds__(32 * WIDE_WARPS, 3)
    lora_bwd_inputs(float* __restrict__ d_params, int accumulate, float* d_x, const real* __restrict__ terms, int term_count,
                    i64 term_pitch, int adds, real* __restrict__ rounded_d_x, const real* __restrict__ z,
                    float* __restrict__ delta, int head_dim, const real* __restrict__ d_y,
                    const real* __restrict__ d_y1, const real* __restrict__ d_y2,
                    const float* __restrict__ xa, const float* __restrict__ xa1, const float* __restrict__ xa2,
                    const real* __restrict__ x, const float* __restrict__ d_xa, i64 pitch, const float* __restrict__ params,
                    const int* __restrict__ tiles, const int* __restrict__ own_tiles, int tile_count,
                    const int* __restrict__ runs, int run_count, const u64* __restrict__ seeds, const u32* __restrict__ keys,
                    u64 site, u64 site1, u64 site2, u32 threshold, float keep_scale, int loras, int rank, int input,
                    int output, int output1, int output2, i64 stride, i64 a, i64 a1, i64 a2, i64 b, i64 b1, i64 b2,
                    float scale) {
    begin_kernel();
    auto dropout = [&](int l) { return Dropout{seeds, keys, pick(l, site, site1, site2), threshold}; };
    int ranks = (rank + 15) / 16, of_a = (input + 63) / 64, columns = 0;
    for (int l = 0; l < loras; l++) columns += (pick(l, output, output1, output2) + 63) / 64 + of_a;
    int block = blockIdx.x, sums = columns * ranks * run_count;
    if (block < sums) {
        int column = block % columns, l = 0;
        const int* run_tiles = runs + block / columns % run_count * 3;
        auto of_b = [&] { return (pick(l, output, output1, output2) + 63) / 64; };
        while (column >= of_b() + of_a) column -= of_b() + of_a, l++;
        Gradients of = {pick(l, d_y, d_y1, d_y2), pick(l, xa, xa1, xa2), x, d_xa + l * pitch, pick(l, a, a1, a2),
                        pick(l, b, b1, b2), pick(l, output, output1, output2), dropout(l)};
        of.add(d_params + run_tiles[0] * stride, accumulate, column, block / columns / run_count * 16, input, rank, scale,
               keep_scale, tiles, run_tiles);
        return;
    }
    block -= sums;
    const int* tile = own_tiles + block % tile_count * 3;
    Sum sum = {adds != 0, terms, term_count, term_pitch};
    InputGradient to = {d_x, rounded_d_x, z, delta, head_dim};
    wide_product<false>(d_x, sum, to, tile, block / tile_count, NEIGHBOURS, rank, input, keep_scale, loras, [&](int l) {
        return LowRank{d_xa + l * pitch, params + tile[0] * stride + pick(l, a, a1, a2), dropout(l)};
    });
}

// Where the gradient of act = SiLU(gate) * up goes: on to d_gate and d_up, and to the ranks of their LoRAs.
struct GatedGradient {
    real* d_gate;
    real* d_up;
    const real* gate;
    const real* up;
    NextRanks next;
    const float* params;  // of the tile's run
    i64 b, b1;

    DEV bool whole() const { return aligned4(d_gate) && aligned4(d_up) && aligned4(gate) && aligned4(up); }
    template <bool WHOLE>
    DEV void put(const WideSums& sums, const int* __restrict__ tile, int from, int half, int width) const {
        WideRows of_gate = {}, of_up = {};
        each_four<WHOLE>(tile, from, half, width, [&](int n, int i, i64 at, int valid) {
            float g[4], u[4];
            load4(g, gate + at, valid);
            load4(u, up + at, valid);
            gate_gradient(Silu(), g, u, sums.of[n][i]);
            store4(d_gate + at, g, valid);
            store4(d_up + at, u, valid);
            of_gate.of[n][i] = four_of(g, real()), of_up.of[n][i] = four_of(u, real());
        });
        if (WHOLE && next.out) next_ranks<false, 2>(next, {&of_gate, &of_up}, {params + b, params + b1}, tile, from, width);
    }
};

extern "C" __global__ void __launch_bounds__(32 * WIDE_WARPS, 3)
    lora_bwd_gated(float* __restrict__ d_params, int accumulate, const float* __restrict__ d_act,
                   const real* __restrict__ terms, int term_count, i64 term_pitch, int adds, real* __restrict__ d_gate,
                   real* __restrict__ d_up, const real* __restrict__ gate, const real* __restrict__ up,
                   const real* __restrict__ d_y, const float* __restrict__ xa, const real* __restrict__ act,
                   const float* __restrict__ d_xa, const float* __restrict__ params, const int* __restrict__ tiles,
                   const int* __restrict__ own_tiles, int tile_count, const int* __restrict__ runs, int run_count,
                   const u64* __restrict__ seeds, const u32* __restrict__ keys, u64 site, u32 threshold, float keep_scale,
                   int rank, int input, int output, i64 stride, i64 a, i64 b, float scale, float* __restrict__ next_d_xa,
                   int next_rank, i64 next_b, i64 next_b1, float next_scale, float* __restrict__ parts,
                   int* __restrict__ tickets, i64 pitch) {
    begin_kernel();
    Gradients of = {d_y, xa, act, d_xa, a, b, output, {seeds, keys, site, threshold}};
    int columns = of.of_b() + (input + 63) / 64, block = blockIdx.x, sums = columns * ((rank + 15) / 16) * run_count;
    if (block < sums) {
        const int* run_tiles = runs + block / columns % run_count * 3;
        of.add(d_params + run_tiles[0] * stride, accumulate, block % columns, block / columns / run_count * 16, input, rank,
               scale, keep_scale, tiles, run_tiles);
        return;
    }
    block -= sums;
    const int* tile = own_tiles + block % tile_count * 3;
    const float* adapter = params + tile[0] * stride;
    NextRanks next = {next_d_xa, next_rank, next_scale, {parts, tickets + (tile - own_tiles) / 3, pitch}, {}};
    GatedGradient to = {d_gate, d_up, gate, up, next, adapter, next_b, next_b1};
    wide_product<false>(d_act, {adds != 0, terms, term_count, term_pitch}, to, tile, block / tile_count, NEIGHBOURS, rank, input,
                        keep_scale, 1, [&](int) { return LowRank{d_xa, adapter + a, of.dropout}; });
}
