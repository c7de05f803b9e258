// What lora.cu is made of: dropout, factors of f32 on the tensor cores, products that write ranks and that write columns.
//
// Adapters and what they make are f32, whatever the compute dtype, as in PEFT: a factor is taken apart into its
// bf16 value, that of the rest, and that of the rest's rest (a bf16 value is one such term, a half value two), and
// products of terms that matter in f32 are made on the tensor cores.

// Terms that the compute dtype is the sum of.
template <class T>
struct Terms {
    static constexpr int count = 1;
};
template <>
struct Terms<half> {
    static constexpr int count = 2;
};
template <>
struct Terms<float> {
    static constexpr int count = 3;
};
constexpr int TERMS = Terms<real>::count, TERMS_F32 = Terms<float>::count;

template <int terms, class Fragment>
DEV void set_terms(Fragment (&f)[terms], int pair, float a, float b) {
#pragma unroll
    for (int i = 0; i < terms; i++) {
        float low, high;
        f[i].pair[pair] = pack(a, b, bf16());
        // What the next terms are made of.
        unpack(low, high, f[i].pair[pair], bf16());
        a -= low, b -= high;
    }
}
DEV void set_b(FragmentB<bf16> (&f)[TERMS_F32], const float (&v)[4]) {
    set_terms(f, 0, v[0], v[1]), set_terms(f, 1, v[2], v[3]);
}
// Of rows g and g + 8.
template <int terms>
DEV void set_a(FragmentA<bf16> (&f)[terms], const float (&top)[4], const float (&bottom)[4]) {
    set_terms(f, 0, top[0], top[1]), set_terms(f, 1, bottom[0], bottom[1]);
    set_terms(f, 2, top[2], top[3]), set_terms(f, 3, bottom[2], bottom[3]);
}
template <int terms>
DEV void multiply(float (&c)[4], const FragmentA<bf16> (&a)[terms], const FragmentB<bf16> (&b)[TERMS_F32]) {
#pragma unroll
    for (int i = 0; i < terms; i++)
#pragma unroll
        for (int j = 0; i + j < TERMS_F32; j++) mma(c, a[i], b[j]);
}

// The first `valid` of four neighbours, then zeros, wherever they lie.
template <class T>
DEV Four<T> load_four(const T* p, int valid) {
    u32 word[4];
#pragma unroll
    for (int i = 0; i < 4; i++) word[i] = i < valid ? p[i].bits : 0;
    return {make_uint2(word[0] | word[1] << 16, word[2] | word[3] << 16)};
}
DEV Four<float> load_four(const float* p, int valid) {
    float v[4];
    load4(v, p, valid);
    return {make_float4(v[0], v[1], v[2], v[3])};
}

template <class T>
DEV Four<T> four_of(const float (&v)[4], T) {
    return {make_uint2(pack(v[0], v[1], T()), pack(v[2], v[3], T()))};
}
DEV Four<float> four_of(const float (&v)[4], float) { return {make_float4(v[0], v[1], v[2], v[3])}; }

DEV u64 mix(u64 x) {
    // The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

// Of the LoRAs of a launch, that of number i.
template <class T>
DEV T pick(int i, T first, T second, T third) {
    return i == 0 ? first : i == 1 ? second : third;
}

struct Dropout {
    const u64* seeds;
    const u32* keys;
    u64 site;
    u32 threshold;
};

// What the dropout of a row is drawn from.
DEV u64 hash_of(const Dropout& dropout, int run, int row) {
    return mix(mix(mix(dropout.seeds[run]) ^ dropout.site) ^ dropout.keys[row]);
}
// Zeros what the dropout of a row drops among its columns from `column` (even) on.
template <int n>
DEV void drop(float (&v)[n], const Dropout& dropout, u64 hash, int column) {
#pragma unroll
    for (int i = 0; i < n; i += 2) {
        u64 draw = mix(hash + (u64)((column + i) / 2) * 0x9e3779b97f4a7c15ull);
        if ((u32)draw < dropout.threshold) v[i] = 0.0f;
        if ((u32)(draw >> 32) < dropout.threshold) v[i + 1] = 0.0f;
    }
}

// ---- out [., R] = u [., depth] W

constexpr int NARROW_WARPS = 2;           // each takes NARROW_STEPS * 16 of the depth at a time
constexpr int NARROW_STEPS = 4;
constexpr int NARROW_SHARE = NARROW_STEPS * 16;
constexpr int NARROW_SPLITS = 32;         // most blocks that share the depth with one share for each warp

// The workspace of blocks that share a depth.
struct SplitK {
    float* parts;  // of the first split, [rows, R]
    int* ticket;   // of the block's rows and ranks, zero before and after
    i64 pitch;     // from split to split
};

// Shares of a block: two, and of deep products four, as many as four warps have of what they make (`next_ranks`).
DEV int shares_of(int depth) { return depth > NARROW_SPLITS * NARROW_WARPS * NARROW_SHARE ? 4 : 2; }
// Blocks that share a depth.
DEV int splits_of(int depth) {
    int part = shares_of(depth) * NARROW_SHARE;
    return max((depth + part - 1) / part, 1);
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

// c += u W of 16 rows at 4 neighbours a lane, of rows g and g + 8.
template <int NR>
DEV void multiply_ranks(float (&c)[NR][4], const float (&u)[2][4], const float (&w)[NR][4]) {
    FragmentA<bf16> a[TERMS];
    set_a(a, u[0], u[1]);
#pragma unroll
    for (int n = 0; n < NR; n++) {
        FragmentB<bf16> b[TERMS_F32];
        set_b(b, w[n]);
        multiply(c[n], a, b);
    }
}

// c += u W of a tile's rows over the share of the depth from `base` on.
template <int NR, bool ALONG_DEPTH>
DEV void narrow_sums(float (&c)[NR][4], const real* __restrict__ u, const float* __restrict__ w, const int* tile,
                     int ranks, int depth, int base, i64 pitch, const Dropout& dropout) {
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
    Four<real> rows_of_u[NARROW_STEPS][2];
    float v[NARROW_STEPS][NR][4];
    // All loads of the share, before the first of them is needed.
    if (vectors && base + NARROW_SHARE <= depth) {
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
        multiply_ranks(c, two, v[s]);
    }
}

// Sums of a block's shares, of 16 rows by fragment and column, the fragments of a row in an order of the row's own: no bank is asked
// twice at once.
template <int NR>
DEV int slot_of(int row, int column) { return row * 8 * NR + (column ^ row * NR / 4 % NR * 8); }
template <int NR>
DEV void leave_sums(float (&sums)[16 * 8 * NR], const float (&c)[NR][4]) {
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < NR; n++)
#pragma unroll
        for (int i = 0; i < 2; i++)
            *reinterpret_cast<float2*>(&sums[slot_of<NR>(g + i * 8, n * 8 + 2 * t)]) =
                make_float2(c[n][2 * i], c[n][2 * i + 1]);
}

// Whether this is the last of `count` blocks with a ticket; then what all of them have stored can be loaded.
DEV bool is_last_of(int* ticket, int count) {
    __shared__ int is_last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) is_last = atomicAdd(ticket, 1) == count - 1;
    __syncthreads();
    if (is_last) __threadfence();
    return is_last;
}

// out [., R] = factor * the sum of `count` parts, in order, for NR * 8 of the ranks from `from` on.
template <int NR>
DEV void add_parts(float* __restrict__ out, const SplitK& workspace, int count, const int* __restrict__ tile, int rank,
                   int from, float factor) {
    for (int i = threadIdx.x; i < tile[2] * 8 * NR; i += blockDim.x) {
        int r = i % (8 * NR);
        if (r >= rank - from) continue;
        i64 at = (i64)(tile[1] + i / (8 * NR)) * rank + from + r;
        float sum = 0.0f;
        for (int begin = 0; begin < count; begin += NARROW_SPLITS) {
            float each[NARROW_SPLITS];
#pragma unroll
            for (int z = 0; z < NARROW_SPLITS; z++)
                each[z] = begin + z < count ? load_fresh(workspace.parts + (begin + z) * workspace.pitch + at) : 0.0f;
#pragma unroll
            for (int z = 0; z < NARROW_SPLITS; z++) sum += each[z];
        }
        out[at] = factor * sum;
    }
}

// out [., R] = factor * u [., depth] W of a tile's rows, for NR * 8 of the ranks from `from` on. Each of `splits` blocks takes a part
// of the depth, and the last of those that share one adds the parts up in order.
template <int NR, bool ALONG_DEPTH>
DEV void narrow_block(float* __restrict__ out, const real* __restrict__ u, const float* __restrict__ w,
                      const int* __restrict__ tile, int rank, int depth, float factor, const Dropout& dropout, int from,
                      int splits, SplitK workspace) {
    __shared__ __align__(8) float sums[4][16 * 8 * NR];
    int first = tile[1], rows = tile[2], ranks = min(rank - from, 8 * NR);
    int shares = shares_of(depth);
    i64 pitch = ALONG_DEPTH ? depth : rank;
#pragma unroll 1
    for (int share = threadIdx.x / 32; share < shares; share += NARROW_WARPS) {
        float c[NR][4] = {};
        int base = (blockIdx.z * shares + share) * NARROW_SHARE;
        if (base < depth)
            narrow_sums<NR, ALONG_DEPTH>(c, u, w + from * (ALONG_DEPTH ? pitch : 1), tile, ranks, depth, base, pitch, dropout);
        leave_sums<NR>(sums[share], c);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < rows * 8 * NR; i += blockDim.x) {
        int row = i / (8 * NR), column = i % (8 * NR), r = rank_of<NR, ALONG_DEPTH>(column / 8, column % 8);
        if (r >= ranks) continue;
        float sum = 0.0f;
#pragma unroll
        for (int one = 0; one < 4; one++) sum += one < shares ? sums[one][slot_of<NR>(row, column)] : 0.0f;
        i64 at = (i64)(first + row) * rank + from + r;
        if (splits > 1) {
            workspace.parts[blockIdx.z * workspace.pitch + at] = sum;
        } else {
            out[at] = factor * sum;
        }
    }
    if (splits == 1 || !is_last_of(workspace.ticket, splits)) return;
    add_parts<NR>(out, workspace, splits, tile, rank, from, factor);
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

constexpr int WIDE_WARPS = 4;  // each takes 64 columns: 32 from `from` on, and 32 from `from` + `half` on
constexpr int NEIGHBOURS = 32;  // the half of 64 columns side by side

// The 64 columns of warp number `warp` begin here.
DEV int from_of(int warp, int half) { return warp / (half / 32) * (2 * half) + warp % (half / 32) * 32; }
// Column of group n of 16, from `from` on.
DEV int group_of(int n, int half) { return n / 2 * half + n % 2 * 16; }
// Column of the warp's 64 that column q of fragment n stands for: a lane holds 4 neighbours of each of its rows, and where
// columns are neighbours in memory loads them in pairs.
DEV int column_of(int n, int q, int half) { return group_of(n / 2, half) + 2 * q + n % 2; }

// v = the 4 ranks from k on of each of the lane's columns, of W [R, width], whose ranks are neighbours (ALONG_RANK) or whose
// columns are. Whole: k + 4 <= rank, all columns are there, and addresses are aligned; else what is missing is zeros.
template <bool WHOLE, bool ALONG_RANK>
DEV void load_columns(float (&v)[8][4], const float* w, int k, int from, int half, int rank, int width) {
    int g = threadIdx.x % 32 / 4;
#pragma unroll
    for (int n = 0; n < 8; n++) {
        int column = from + column_of(n, g, half);
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

// What products are added to: what they go to itself, if `adds`, then terms of its size, in order.
struct Sum {
    bool adds;
    const real* terms;
    int count;
    i64 pitch;
};

// What a lane has of a tile's 16 rows and the warp's 64 columns: 4 neighbours of rows g and g + 8 of each group of 16 columns.
struct WideSums {
    float of[4][2][4];
};

// sums += a lane's elements of x.
template <bool WHOLE, class T>
DEV void add_rows(WideSums& sums, const T* x, const int (&row)[2], int from, int half, int width) {
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int column = from + group_of(n, half) + 4 * (threadIdx.x % 4);
            const T* p = x + (i64)row[i] * width + column;
            float old[4] = {};
            if (WHOLE) unpack(old, load_four(p));
            if (!WHOLE && column < width) load4(old, p, width - column);
#pragma unroll
            for (int j = 0; j < 4; j++) sums.of[n][i][j] += old[j];
        }
}

// `sum` of what is at `out` and its terms, + factor * drop(u W) of each of `count` factors in order.
template <bool WHOLE, bool ALONG_RANK, class T, class Get>
DEV WideSums wide_sums(const T* out, Sum sum, const int* __restrict__ tile, int from, int half, int rank, int width,
                       float factor, int count, Get factors) {
    int first = tile[1], rows = tile[2], g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    int row[2] = {first + min(g, rows - 1), first + min(g + 8, rows - 1)};
    WideSums sums = {};
    if (sum.adds) add_rows<WHOLE>(sums, out, row, from, half, width);
#pragma unroll 1
    for (int l = 0; l < sum.count; l++) add_rows<WHOLE>(sums, sum.terms + l * sum.pitch, row, from, half, width);
#pragma unroll 1
    for (int l = 0; l < count; l++) {
        const LowRank f = factors(l);
        float c[8][4] = {};
        for (int base = 0; base < rank; base += 16) {
            int k = base + 4 * t, at = WHOLE ? min(k, rank - 4) : k;
            float x[2][4], v[8][4];
#pragma unroll
            for (int i = 0; i < 2; i++) load4(x[i], f.u + (i64)row[i] * rank + at, WHOLE ? 4 : rank - k);
            load_columns<WHOLE, ALONG_RANK>(v, f.w, at, from, half, rank, width);
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
        // Asked for again: the products have no registers for it.
        const Dropout dropout = factors(l).dropout;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            u64 hash = dropout.seeds ? hash_of(dropout, tile[0], row[i]) : 0;
#pragma unroll
            for (int n = 0; n < 4; n++) {
                int column = from + group_of(n, half) + 4 * t;
                // Columns 2 t and 2 t + 1 of two fragments, in the order of memory.
                float v[4] = {c[2 * n][2 * i], c[2 * n + 1][2 * i], c[2 * n][2 * i + 1], c[2 * n + 1][2 * i + 1]};
                if (dropout.seeds) drop(v, dropout, hash, column);
#pragma unroll
                for (int j = 0; j < 4; j++) sums.of[n][i][j] += factor * v[j];
            }
        }
    }
    return sums;
}

// Calls each(n, i, at, valid) for every sums.of[n][i] of rows and columns that are there: it is `valid` neighbours from element
// `at` of [., width] on.
template <bool WHOLE, class Each>
DEV void each_four(const int* __restrict__ tile, int from, int half, int width, Each each) {
    int first = tile[1], rows = tile[2], g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (g + i * 8 >= rows) continue;
#pragma unroll
        for (int n = 0; n < 4; n++) {
            int column = from + group_of(n, half) + 4 * t;
            if (!WHOLE && column >= width) break;
            each(n, i, (i64)(first + g + i * 8) * width + column, WHOLE ? 4 : width - column);
        }
    }
}

// Where products go as they are.
template <class T>
struct Stored {
    T* out;
    DEV bool whole() const { return aligned4(out); }
    template <bool WHOLE>
    DEV void put(const WideSums& sums, const int* __restrict__ tile, int from, int half, int width) const {
        each_four<WHOLE>(tile, from, half, width, [&](int n, int i, i64 at, int valid) { store4(out + at, sums.of[n][i], valid); });
    }
};

// to.put(the sums for the warp's 64 of the columns of block number `part`).
template <bool ALONG_RANK, class T, class To, class Get>
DEV void wide_product(const T* out, Sum sum, To to, const int* __restrict__ tile, int part, int half, int rank,
                      int width, float factor, int count, Get factors) {
    int from = from_of(part * WIDE_WARPS + threadIdx.x / 32, half);
    if (from >= width || tile[2] == 0) return;
    bool whole = from + half + 32 <= width && width % 4 == 0 && rank % 4 == 0 && aligned4(out) && aligned4(sum.terms) && to.whole();
    for (int l = 0; l < count; l++) whole = whole && aligned(factors(l).u) && aligned(factors(l).w);
    if (whole) {
        auto sums = wide_sums<true, ALONG_RANK>(out, sum, tile, from, half, rank, width, factor, count, factors);
        to.template put<true>(sums, tile, from, half, width);
    } else {
        auto sums = wide_sums<false, ALONG_RANK>(out, sum, tile, from, half, rank, width, factor, count, factors);
        to.template put<false>(sums, tile, from, half, width);
    }
}

// ---- out [., R] = u [., width] W, of u that is made in 256 columns a block

// What a lane has of a tile's 16 rows and the warp's 64 columns, as it is stored.
struct WideRows {
    Four<real> of[4][2];
};

// The LoRAs that read what a launch makes, up to two: out [LoRAs, rows * R] = factor * drop(u) W, if that is not null. The tile's
// workspace has a part for each block. R, at most 32, is a multiple of 4, W lies at 16 bytes, 256 divides the width. Where narrow_block
// would take as many parts, sums are the same bits.
struct NextRanks {
    float* out;
    int rank;
    float factor;
    SplitK workspace;  // pitch: elements of out of a LoRA
    Dropout dropout;
};

// The block's part of number `l` of `loras`.
template <int NR, bool ALONG_DEPTH>
DEV void next_part(const NextRanks& next, int l, int loras, const WideRows& u, const float* w, const int* __restrict__ tile,
                   int from, int width) {
    __shared__ __align__(8) float sums[WIDE_WARPS][16 * 8 * NR];
    int first = tile[1], rows = tile[2], g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    u64 hash[2];
#pragma unroll
    for (int i = 0; i < 2; i++)
        hash[i] = next.dropout.seeds ? hash_of(next.dropout, tile[0], first + min(g + i * 8, rows - 1)) : 0;
    float c[NR][4] = {};
#pragma unroll
    for (int n = 0; n < 4; n++) {
        int k = from + group_of(n, NEIGHBOURS) + 4 * t;
        float v[NR][4], two[2][4];
        load_ranks<NR, ALONG_DEPTH>(v, w, k, next.rank, ALONG_DEPTH ? width : next.rank);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            unpack(two[i], u.of[n][i]);
            if (next.dropout.seeds) drop(two[i], next.dropout, hash[i], k);
        }
        multiply_ranks(c, two, v);
    }
#ifdef PLANT_NO_PART
    if (threadIdx.x >= 32)
#endif
        leave_sums<NR>(sums[threadIdx.x / 32], c);
    __syncthreads();
    for (int i = threadIdx.x; i < rows * 8 * NR; i += blockDim.x) {
        int row = i / (8 * NR), column = i % (8 * NR), r = rank_of<NR, ALONG_DEPTH>(column / 8, column % 8);
        if (r >= next.rank) continue;
        float sum = 0.0f;
#pragma unroll
        for (int one = 0; one < WIDE_WARPS; one++) sum += sums[one][slot_of<NR>(row, column)];
        i64 at = (i64)(first + row) * next.rank + r;
        next.workspace.parts[(from / (WIDE_WARPS * 64) * loras + l) * next.workspace.pitch + at] = sum;
    }
    // The sums of the next take the place of these.
    __syncthreads();
}
template <int NR, bool ALONG_DEPTH, int loras>
DEV void next_ranks_of(const NextRanks& next, const WideRows* const (&u)[loras], const float* const (&w)[loras],
                    const int* __restrict__ tile, int from, int width) {
#pragma unroll
    for (int l = 0; l < loras; l++) next_part<NR, ALONG_DEPTH>(next, l, loras, *u[l], w[l], tile, from, width);
    int blocks = width / (WIDE_WARPS * 64);
    if (!is_last_of(next.workspace.ticket, blocks)) return;
#pragma unroll
    for (int l = 0; l < loras; l++) {
        i64 at = l * next.workspace.pitch;
        SplitK parts = {next.workspace.parts + at, nullptr, loras * next.workspace.pitch};
        add_parts<NR>(next.out + at, parts, blocks, tile, next.rank, 0, next.factor);
    }
#ifndef PLANT_NO_RESET
    if (threadIdx.x == 0) *next.workspace.ticket = 0;
#endif
}
// Of all warps of a block: u and W of each LoRA.
template <bool ALONG_DEPTH, int loras>
DEV void next_ranks(const NextRanks& next, const WideRows* const (&u)[loras], const float* const (&w)[loras],
                    const int* __restrict__ tile, int from, int width) {
    if (next.rank > 16) {
        next_ranks_of<4, ALONG_DEPTH>(next, u, w, tile, from, width);
    } else {
        next_ranks_of<2, ALONG_DEPTH>(next, u, w, tile, from, width);
    }
}
