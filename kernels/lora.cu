// LoRA over stacked runs (Hu et al. 2021): rows of run r pass through adapter r, rows of the base model through none.
// Run r has A [R, input] from element r * stride + a of params on and B [output, R] from r * stride + b on.
//
//   lora_fwd_shrink  xa [N, R] = A drop(x [N, input])
//   lora_fwd_expand  y [N, output] += scale * B xa
//   lora_delta       out [N, output] = scale * B xa
//   lora_bwd_xa      d_xa [N, R] = scale * B^T d_y [N, output]
//   lora_bwd_inputs  d_params: B += scale * d_y^T xa, A += d_xa^T drop(x), of all runs; d_x [N, input] += drop(A^T d_xa)
// Up to three LoRAs of one input, rank and scale go through a launch, each with its own A and B, outputs and dropout; names of
// what is the second's and the third's end in 1 and 2. They are added to d_x in order, and before them, where all rows are of the
// runs, term_count terms [N, input], term_pitch apart: to what is there if `adds`, else to 0.
//
// Rows of the base model and of other runs are left alone, but for xa, where they are zeros; the host fills out with zeros first.
// The backward of lora_delta is bwd_xa (whose d_xa is then filled so too) and bwd_inputs with an input of no columns.
//
// drop(x) keeps an element, times keep_scale = 1 / (1 - p), unless the hash of (seeds [runs], site, keys [N] of the row,
// column) is less than threshold = p * 2^32: the same decisions as on the CPU. No dropout: seeds null, keep_scale 1.
//
// The narrow products are split-K: up to NARROW_SPLITS blocks share a depth, as many whatever the pack, so that a row's sums are
// the same bits in any. Their workspace: partial sums `parts` [splits, LoRAs, rows * R], and `tickets`, zeros before and after.
//
//   tiles [., 3]  run, first row, number of rows (<= 16): the stretches of rows of one run, cut; runs ascending; then tiles of no
//                 rows, of which nothing is done, up to the size of the table
//   runs [., 3]   run, its first tile, number of its tiles
//   run_of [rows] run of each row, or -1; the runs of the tiles are those from first_run to end_run - 1
//
// Launch: shrink (tile_count + ceil(rows / 16), or tile_count where all rows have tiles, ceil(R / 32) * LoRAs, splits) x 64;
// bwd_xa (tiles, ceil(R / 32) * LoRAs, splits of the deepest) x 64; expand (tiles, ceil(widest output / 256), LoRAs) x 128; delta
// (tiles, ceil(output / 256)) x 128; bwd_inputs (runs * ceil(R / 16) * sum of (ceil(output / 64) + ceil(input / 64)), and where a
// d_x is wanted tile_count * ceil(input / 256) more) x 128: `tiles` are those of all runs, own_tiles [tile_count, 3] those of
// `runs`. Static shared memory only. Any alignment; vectors where addresses allow, and then all loads of a step before the first is
// used. Fragments come straight from global memory: each operand is read once, and a sum over k may take its terms in any order
// that both sides agree on, here 4 neighbours a lane.
//
// Determinism: every element has one writer; partial sums of warps and blocks are added in order. A run's tiles are summed by four
// warps, every fourth tile each, then the four sums in order.

// ---- out [., R] = u [., depth] W

constexpr int NARROW_WARPS = 2;           // each takes NARROW_STEPS * 16 of the depth at a time
constexpr int NARROW_STEPS = 4;
constexpr int NARROW_SPLITS = 32;         // most blocks that share the depth

// The workspace of blocks that share a depth.
struct SplitK {
    float* parts;  // of the first split, [rows, R]
    int* ticket;   // of the block's rows and ranks, zero before and after
    i64 pitch;     // from split to split
};

// Blocks that share a depth.
DEV int splits_of(int depth) {
    constexpr int UNIT = NARROW_WARPS * NARROW_STEPS * 16;
    int units = max((depth + UNIT - 1) / UNIT, 1), each = (units + NARROW_SPLITS - 1) / NARROW_SPLITS;
    return (units + each - 1) / each;
}

// A block's LoRA, its ranks (from a multiple of 32 on), and its workspace.
struct Narrow {
    int lora, from;
    SplitK workspace;
};
DEV Narrow narrow_of(float* parts, int* tickets, i64 pitch, int rank) {
    int blocks = (rank + 31) / 32, lora = blockIdx.y / blocks, loras = gridDim.y / blocks;
    int* ticket = tickets + blockIdx.x * gridDim.y + blockIdx.y;
    return {lora, (int)(blockIdx.y % blocks) * 32, {parts + lora * pitch, ticket, loras * pitch}};
}

// The ranks of a lane's fragments: column q of fragment n stands for one of NR * 8. Where ranks are neighbours in memory, a lane
// loads those of its fragments at once.
template <int NR, bool ALONG_DEPTH>
DEV int rank_of(int n, int q) {
    return ALONG_DEPTH ? n * 8 + q : q * NR + n;
}

// v[n] = W at k..k + 4 for the lane's rank of each fragment, unguarded. W [depth, R] lies rank by rank (ALONG_DEPTH), or else
// depth by depth, with `ranks` (a multiple of 4) from the pointer on, beyond which anything may be loaded.
template <int NR, bool ALONG_DEPTH>
DEV void load_ranks(float (&v)[NR][4], const float* w, int k, int ranks, i64 pitch) {
    int g = threadIdx.x % 32 / 4;
    if (ALONG_DEPTH) {
#pragma unroll
        for (int n = 0; n < NR; n++) load4_aligned(v[n], w + min(n * 8 + g, ranks - 1) * pitch + k);
        return;
    }
    const float* from = w + k * pitch + (g * NR < ranks ? g * NR : 0);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        float row[NR];
        if constexpr (NR == 4) {
            load4_aligned(row, from + j * pitch);
        } else if constexpr (NR == 2) {
            float2 pair = *reinterpret_cast<const float2*>(from + j * pitch);
            row[0] = pair.x, row[1] = pair.y;
        } else {
            row[0] = from[j * pitch];
        }
#pragma unroll
        for (int n = 0; n < NR; n++) v[n][j] = row[n];
    }
}
// The same, element by element: those from `depth` and from `ranks` on are zeros.
template <int NR, bool ALONG_DEPTH>
DEV void load_ranks(float (&v)[NR][4], const float* w, int k, int depth, int ranks, i64 pitch) {
#pragma unroll
    for (int n = 0; n < NR; n++) {
        int r = rank_of<NR, ALONG_DEPTH>(n, threadIdx.x % 32 / 4);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            i64 at = ALONG_DEPTH ? r * pitch + k + j : (k + j) * pitch + r;
            v[n][j] = k + j < depth && r < ranks ? w[at] : 0.0f;
        }
    }
}

// c += u W of a tile's rows over the warps' shares of the depth from..to.
template <int NR, bool ALONG_DEPTH>
DEV void narrow_sums(float (&c)[NR][4], const real* __restrict__ u, const float* __restrict__ w, const int* tile,
                     int ranks, int depth, int from, int to, i64 pitch, const Dropout& dropout) {
    int first = tile[1], rows = tile[2], g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const real* x[2];
    u64 hash[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        // Sums of rows and ranks that are not there are not stored: what is loaded for them does not matter.
        int row = first + min(g + i * 8, rows - 1);
        x[i] = u + (i64)row * depth + 4 * t;
        hash[i] = dropout.seeds ? hash_of(dropout, tile[0], row) : 0;
    }
    bool vectors = depth % 4 == 0 && pitch % 4 == 0 && aligned4(u) && aligned(w);
    constexpr int SHARE = NARROW_STEPS * 16;
    for (int base = from + threadIdx.x / 32 * SHARE; base < to; base += NARROW_WARPS * SHARE) {
        Four<real> rows_of_u[NARROW_STEPS][2];
        float v[NARROW_STEPS][NR][4];
        // All loads of the share, before the first of them is needed.
        if (vectors && base + SHARE <= depth) {
#pragma unroll
            for (int s = 0; s < NARROW_STEPS; s++) {
#pragma unroll
                for (int i = 0; i < 2; i++) rows_of_u[s][i] = load_four(x[i] + base + s * 16);
                load_ranks<NR, ALONG_DEPTH>(v[s], w, base + s * 16 + 4 * t, ranks, pitch);
            }
        } else {
#pragma unroll
            for (int s = 0; s < NARROW_STEPS; s++) {
                int k = base + s * 16 + 4 * t;
#pragma unroll
                for (int i = 0; i < 2; i++) rows_of_u[s][i] = load_four(x[i] + base + s * 16, depth - k);
                load_ranks<NR, ALONG_DEPTH>(v[s], w, k, depth, ranks, pitch);
            }
        }
#pragma unroll
        for (int s = 0; s < NARROW_STEPS; s++) {
            float two[2][4];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                unpack(two[i], rows_of_u[s][i]);
                if (dropout.seeds) drop(two[i], dropout, hash[i], base + s * 16 + 4 * t);
            }
            FragmentA<bf16> a[TERMS];
            set_a(a, two[0], two[1]);
#pragma unroll
            for (int n = 0; n < NR; n++) {
                FragmentB<bf16> b[TERMS_F32];
                set_b(b, v[s][n]);
                multiply(c[n], a, b);
            }
        }
    }
}

// out [., R] = factor * u [., depth] W of a tile's rows, for NR * 8 of the ranks from `from` on. Each of `splits` blocks takes a part
// of the depth, and the last of those that share one adds the parts up in order.
template <int NR, bool ALONG_DEPTH>
DEV void narrow_block(float* __restrict__ out, const real* __restrict__ u, const float* __restrict__ w,
                      const int* __restrict__ tile, int rank, int depth, float factor, const Dropout& dropout, int from,
                      int splits, SplitK workspace) {
    // Sums of 16 rows by fragment and column, the fragments of a row in an order of the row's own: no bank is asked twice at once.
    __shared__ __align__(8) float sums[NARROW_WARPS][16 * 8 * NR];
    auto slot = [](int row, int column) { return row * 8 * NR + (column ^ row * NR / 4 % NR * 8); };
    __shared__ int is_last;
    int first = tile[1], rows = tile[2], ranks = min(rank - from, 8 * NR);
    int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    constexpr int UNIT = NARROW_WARPS * NARROW_STEPS * 16;
    int part = (depth + UNIT * splits - 1) / (UNIT * splits) * UNIT, begin = blockIdx.z * part;
    i64 pitch = ALONG_DEPTH ? depth : rank;
    float c[NR][4] = {};
    narrow_sums<NR, ALONG_DEPTH>(c, u, w + from * (ALONG_DEPTH ? pitch : 1), tile, ranks, depth, begin,
                                 min(begin + part, depth), pitch, dropout);
#pragma unroll
    for (int n = 0; n < NR; n++)
#pragma unroll
        for (int i = 0; i < 2; i++)
            *reinterpret_cast<float2*>(&sums[warp][slot(g + i * 8, n * 8 + 2 * t)]) =
                make_float2(c[n][2 * i], c[n][2 * i + 1]);
    __syncthreads();
    for (int i = threadIdx.x; i < rows * 8 * NR; i += blockDim.x) {
        int row = i / (8 * NR), column = i % (8 * NR), r = rank_of<NR, ALONG_DEPTH>(column / 8, column % 8);
        if (r >= ranks) continue;
        float sum = 0.0f;
#pragma unroll
        for (int one = 0; one < NARROW_WARPS; one++) sum += sums[one][slot(row, column)];
        i64 at = (i64)(first + row) * rank + from + r;
        if (splits > 1) {
            workspace.parts[blockIdx.z * workspace.pitch + at] = sum;
        } else {
            out[at] = factor * sum;
        }
    }
    if (splits == 1) return;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) is_last = atomicAdd(workspace.ticket, 1) == splits - 1;
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    for (int i = threadIdx.x; i < rows * 8 * NR; i += blockDim.x) {
        int r = i % (8 * NR);
        if (r >= ranks) continue;
        i64 at = (i64)(first + i / (8 * NR)) * rank + from + r;
        float each[NARROW_SPLITS], sum = 0.0f;
#pragma unroll
        for (int z = 0; z < NARROW_SPLITS; z++)
            each[z] = z < splits ? load_fresh(workspace.parts + z * workspace.pitch + at) : 0.0f;
#pragma unroll
        for (int z = 0; z < NARROW_SPLITS; z++) sum += each[z];
        out[at] = factor * sum;
    }
    if (threadIdx.x == 0) *workspace.ticket = 0;
}

template <bool ALONG_DEPTH>
DEV void narrow_product(float* __restrict__ out, const real* __restrict__ u, const float* __restrict__ w,
                        const int* __restrict__ tile, int rank, int depth, float factor, const Dropout& dropout, int from,
                        SplitK workspace) {
    if (tile[2] == 0) return;
    int ranks = rank - from, splits = splits_of(depth);
    if ((int)blockIdx.z >= splits) return;
    if (ranks > 16) {
        narrow_block<4, ALONG_DEPTH>(out, u, w, tile, rank, depth, factor, dropout, from, splits, workspace);
    } else if (ranks > 8) {
        narrow_block<2, ALONG_DEPTH>(out, u, w, tile, rank, depth, factor, dropout, from, splits, workspace);
    } else {
        narrow_block<1, ALONG_DEPTH>(out, u, w, tile, rank, depth, factor, dropout, from, splits, workspace);
    }
}

// ---- out [., width] = u [., R] W, or +=

constexpr int WIDE_WARPS = 4;  // each takes 64 columns

// Column of the warp's 64 that column q of fragment n stands for: a lane holds 4 neighbours of each of its rows, and where
// columns are neighbours in memory loads them in pairs.
DEV int column_of(int n, int q) { return n / 2 * 16 + 2 * q + n % 2; }

// v = the 4 ranks from k on of each of the lane's columns, of W [R, width], whose ranks are neighbours (ALONG_RANK) or whose
// columns are. Whole: k + 4 <= rank, all columns are there, and addresses are aligned; else what is missing is zeros.
template <bool WHOLE, bool ALONG_RANK>
DEV void load_columns(float (&v)[8][4], const float* w, int k, int from, int rank, int width) {
    int g = threadIdx.x % 32 / 4;
#pragma unroll
    for (int n = 0; n < 8; n++) {
        int column = from + column_of(n, g);
        if (WHOLE && ALONG_RANK) {
            load4_aligned(v[n], w + (column * rank + k));
        } else if (WHOLE) {
            if (n % 2) continue;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float2 pair = *reinterpret_cast<const float2*>(w + ((k + j) * width + column));
                v[n][j] = pair.x, v[n + 1][j] = pair.y;
            }
        } else {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int at = ALONG_RANK ? column * rank + k + j : (k + j) * width + column;
                v[n][j] = k + j < rank && column < width ? w[at] : 0.0f;
            }
        }
    }
}

// What is multiplied: u [., R], W [R, width] of the tile's run, and what is dropped of the product.
struct LowRank {
    const float* u;
    const float* w;
    Dropout dropout;
};

// What products are added to: `out` itself, if `adds`, then terms of its size, in order.
template <class T>
struct Sum {
    bool adds;
    const T* terms;
    int count;
    i64 pitch;
};

// out = `sum` + factor * drop(u W) of each of `count` factors in order, of a tile's rows for the warp's 64 columns.
template <bool WHOLE, bool ALONG_RANK, class T, class Get>
DEV void wide_columns(T* out, Sum<T> sum, const int* __restrict__ tile, int from, int rank, int width, float factor,
                      int count, Get factors) {
    int first = tile[1], rows = tile[2], g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    int row[2] = {first + min(g, rows - 1), first + min(g + 8, rows - 1)};
    float sums[4][2][4] = {};
#pragma unroll 1
    for (int l = sum.adds ? -1 : 0; l < sum.count; l++) {
        const T* term = l < 0 ? out : sum.terms + l * sum.pitch;
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int column = from + n * 16 + 4 * t;
                const T* p = term + (i64)row[i] * width + column;
                float old[4] = {};
                if (WHOLE) unpack(old, load_four(p));
                if (!WHOLE && column < width) load4(old, p, width - column);
#pragma unroll
                for (int j = 0; j < 4; j++) sums[n][i][j] += old[j];
            }
    }
#pragma unroll 1
    for (int l = 0; l < count; l++) {
        const LowRank f = factors(l);
        float c[8][4] = {};
        for (int base = 0; base < rank; base += 16) {
            int k = base + 4 * t, at = WHOLE ? min(k, rank - 4) : k;
            float x[2][4], v[8][4];
#pragma unroll
            for (int i = 0; i < 2; i++) load4(x[i], f.u + (i64)row[i] * rank + at, WHOLE ? 4 : rank - k);
            load_columns<WHOLE, ALONG_RANK>(v, f.w, at, from, rank, width);
#pragma unroll
            for (int i = 0; i < 8; i++) x[i / 4][i % 4] = k < rank ? x[i / 4][i % 4] : 0.0f;
            FragmentA<bf16> a[TERMS_F32];
            set_a(a, x[0], x[1]);
#pragma unroll
            for (int n = 0; n < 8; n++) {
                FragmentB<bf16> b[TERMS_F32];
                set_b(b, v[n]);
                multiply(c[n], a, b);
            }
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            u64 hash = f.dropout.seeds ? hash_of(f.dropout, tile[0], row[i]) : 0;
#pragma unroll
            for (int n = 0; n < 4; n++) {
                int column = from + n * 16 + 4 * t;
                // Columns 2 t and 2 t + 1 of two fragments, in the order of memory.
                float v[4] = {c[2 * n][2 * i], c[2 * n + 1][2 * i], c[2 * n][2 * i + 1], c[2 * n + 1][2 * i + 1]};
                if (f.dropout.seeds) drop(v, f.dropout, hash, column);
#pragma unroll
                for (int j = 0; j < 4; j++) sums[n][i][j] += factor * v[j];
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (g + i * 8 >= rows) continue;
#pragma unroll
        for (int n = 0; n < 4; n++) {
            int column = from + n * 16 + 4 * t;
            if (!WHOLE && column >= width) break;
            store4(out + (i64)row[i] * width + column, sums[n][i], WHOLE ? 4 : width - column);
        }
    }
}

// The same for the warp's 64 of a block's columns `part` * 256 to `part` * 256 + 255.
template <bool ALONG_RANK, class T, class Get>
DEV void wide_product(T* out, Sum<T> sum, const int* __restrict__ tile, int part, int rank, int width, float factor,
                      int count, Get factors) {
    int from = (part * WIDE_WARPS + threadIdx.x / 32) * 64;
    if (from >= width || tile[2] == 0) return;
    bool whole = from + 64 <= width && width % 4 == 0 && rank % 4 == 0 && aligned4(out);
    for (int l = 0; l < count; l++) whole = whole && aligned(factors(l).u) && aligned(factors(l).w);
    if (whole) {
        wide_columns<true, ALONG_RANK>(out, sum, tile, from, rank, width, factor, count, factors);
    } else {
        wide_columns<false, ALONG_RANK>(out, sum, tile, from, rank, width, factor, count, factors);
    }
}

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

extern "C" __global__ void __launch_bounds__(32 * WIDE_WARPS, 1)
    lora_fwd_expand(real* __restrict__ y, real* __restrict__ y1, real* __restrict__ y2, const float* __restrict__ xa,
                    const float* __restrict__ xa1, const float* __restrict__ xa2, const float* __restrict__ params,
                    const int* __restrict__ tiles, int rank, int output, int output1, int output2, i64 stride, i64 b,
                    i64 b1, i64 b2, float scale) {
    const int* tile = tiles + blockIdx.x * 3;
    int l = blockIdx.z;
    LowRank factors = {pick(l, xa, xa1, xa2), params + tile[0] * stride + pick(l, b, b1, b2), {}};
    wide_product<true>(pick(l, y, y1, y2), {true}, tile, blockIdx.y, rank, pick(l, output, output1, output2), scale, 1,
                             [&](int) { return factors; });
}

extern "C" __global__ void __launch_bounds__(32 * WIDE_WARPS, 1)
    lora_delta(float* __restrict__ out, const float* __restrict__ xa, const float* __restrict__ params,
               const int* __restrict__ tiles, int rank, int output, i64 stride, i64 b, float scale) {
    const int* tile = tiles + blockIdx.x * 3;
    LowRank factors = {xa, params + tile[0] * stride + b, {}};
    wide_product<true>(out, {}, tile, blockIdx.y, rank, output, scale, 1, [&](int) { return factors; });
}

// d_xa [LoRAs, rows * R]
extern "C" __global__ void __launch_bounds__(32 * NARROW_WARPS, 1)
    lora_bwd_xa(float* __restrict__ d_xa, const real* __restrict__ d_y, const real* __restrict__ d_y1,
                const real* __restrict__ d_y2, const float* __restrict__ params, const int* __restrict__ tiles,
                float* __restrict__ parts, int* __restrict__ tickets, i64 pitch, int rank, int output, int output1,
                int output2, i64 stride, i64 b, i64 b1, i64 b2, float scale) {
    const int* tile = tiles + blockIdx.x * 3;
    Narrow narrow = narrow_of(parts, tickets, pitch, rank);
    int l = narrow.lora;
    const float* adapter = params + tile[0] * stride + pick(l, b, b1, b2);
    narrow_product<false>(d_xa + l * pitch, pick(l, d_y, d_y1, d_y2), adapter, tile, rank,
                          pick(l, output, output1, output2), scale, {}, narrow.from, narrow.workspace);
}

// d_params += factor * u^T w of a run's rows, in the order of memory: for 64 columns of u [., width] and 16 ranks of w [., R], in B
// [width, R] or A [R, width].
DEV void add_outer(float* __restrict__ d_params, const real* __restrict__ u, const float* __restrict__ w, bool is_b, int from,
                   int to_r, int width, int rank, float factor, const int* __restrict__ tiles,
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
    float old[2][4];
    int column[2], r[2], valid[2];
    // 4 neighbours in memory at a time: ranks of a column of B, columns of a rank of A.
#pragma unroll
    for (int q = 0; q < 2; q++) {
        int four = threadIdx.x + q * 128;
        column[q] = is_b ? four / 4 : four % 16 * 4, r[q] = is_b ? four % 4 * 4 : four / 16;
        i64 c = from + column[q], at = to_r + r[q];
        valid[q] = c >= width || at >= rank ? 0 : (int)(is_b ? rank - at : width - c);
        load4(old[q], d_params + (is_b ? c * rank + at : at * (i64)width + c), valid[q]);
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

extern "C" __global__ void __launch_bounds__(32 * WIDE_WARPS, 3)
    lora_bwd_inputs(float* __restrict__ d_params, float* d_x, const float* __restrict__ terms, int term_count, i64 term_pitch,
                    int adds, const real* __restrict__ d_y, const real* __restrict__ d_y1, const real* __restrict__ d_y2,
                    const float* __restrict__ xa, const float* __restrict__ xa1, const float* __restrict__ xa2,
                    const real* __restrict__ x, const float* __restrict__ d_xa, i64 pitch, const float* __restrict__ params,
                    const int* __restrict__ tiles, const int* __restrict__ own_tiles, int tile_count,
                    const int* __restrict__ runs, int run_count, const u64* __restrict__ seeds, const u32* __restrict__ keys,
                    u64 site, u64 site1, u64 site2, u32 threshold, float keep_scale, int loras, int rank, int input,
                    int output, int output1, int output2, i64 stride, i64 a, i64 a1, i64 a2, i64 b, i64 b1, i64 b2,
                    float scale) {
    auto dropout = [&](int l) { return Dropout{seeds, keys, pick(l, site, site1, site2), threshold}; };
    int ranks = (rank + 15) / 16, of_a = (input + 63) / 64, columns = 0;
    for (int l = 0; l < loras; l++) columns += (pick(l, output, output1, output2) + 63) / 64 + of_a;
    int block = blockIdx.x, sums = columns * ranks * run_count;
    if (block < sums) {
        int column = block % columns, l = 0, width = output, of_b = (output + 63) / 64;
        const int* run_tiles = runs + block / columns % run_count * 3;
        int to_r = block / columns / run_count * 16;
        while (column >= of_b + of_a) {
            column -= of_b + of_a, l++;
            width = pick(l, output, output1, output2), of_b = (width + 63) / 64;
        }
        bool is_b = column < of_b;
        float* to = d_params + run_tiles[0] * stride + (is_b ? pick(l, b, b1, b2) : pick(l, a, a1, a2));
        const real* u = is_b ? pick(l, d_y, d_y1, d_y2) : x;
        const float* w = is_b ? pick(l, xa, xa1, xa2) : d_xa + l * pitch;
        add_outer(to, u, w, is_b, (is_b ? column : column - of_b) * 64, to_r, is_b ? width : input, rank,
                  is_b ? scale : keep_scale, tiles, run_tiles, dropout(l));
        return;
    }
    block -= sums;
    const int* tile = own_tiles + block % tile_count * 3;
    Sum<float> sum = {adds != 0, terms, term_count, term_pitch};
    wide_product<false>(d_x, sum, tile, block / tile_count, rank, input, keep_scale, loras, [&](int l) {
        return LowRank{d_xa + l * pitch, params + tile[0] * stride + pick(l, a, a1, a2), dropout(l)};
    });
}
