// LoRA over stacked runs (Hu et al. 2021): rows of run r pass through adapter r, rows of the base model through none.
// Run r has A [R, input] from element r * stride + a of params on and B [output, R] from r * stride + b on.
//
//   lora_fwd_shrink  xa [N, R] = A drop(x [N, input])
//   lora_fwd_expand  y [N, output] += scale * B xa
//   lora_delta       out [N, output] = scale * B xa
//   lora_bwd_xa      d_xa [N, R] = scale * B^T d_y [N, output]
//   lora_bwd_params  d_params: B += scale * d_y^T xa, A += d_xa^T drop(x), of all runs
//   lora_bwd_x       d_x [N, input] += drop(A^T d_xa)
// Rows of the base model are left alone: the host fills xa and out with zeros first. The backward of lora_delta is bwd_xa (whose
// d_xa is then filled so too) and bwd_params with an input of no columns.
//
// drop(x) keeps an element, times keep_scale = 1 / (1 - p), unless the hash of (seeds [runs], site, keys [N] of the row,
// column) is less than threshold = p * 2^32: the same decisions as on the CPU. No dropout: seeds null, keep_scale 1.
//
//   tiles [., 3]  run, first row, number of rows (<= 16): the stretches of rows of one run, cut; runs ascending
//   runs [., 3]   run, its first tile, number of its tiles
//
// Launch: shrink, bwd_xa (tiles, ceil(R / 32)) x 256; expand, delta, bwd_x (tiles, ceil(width / 512)) x 256 with the
// width of the output; bwd_params (ceil(output / 64) + ceil(input / 64), runs, ceil(R / 16)) x 128. Static shared memory
// only. Any alignment; vectors where addresses allow. Fragments come straight from global memory: each operand is read
// once, and a sum over k may take its terms in any order that both sides agree on, here 4 neighbours a lane.
//
// Adapters and what they make are f32, whatever the compute dtype, as in PEFT: a factor is taken apart into its
// bf16 value, that of the rest, and that of the rest's rest (a bf16 value is one such term, a half value two), and
// products of terms that matter in f32 are made on the tensor cores.
// Determinism: every element has one writer; partial sums of warps are added in order, a run's rows in row order.

DEV u64 mix(u64 x) {
    // The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

struct Dropout {
    const u64* seeds;
    const u32* keys;
    u64 site;
    u32 threshold;
};

// Zeros what the dropout of a row drops among its columns from `column` (even) on.
template <int n>
DEV void drop(float (&v)[n], const Dropout& dropout, int run, int row, int column) {
    u64 hash = mix(mix(mix(dropout.seeds[run]) ^ dropout.site) ^ dropout.keys[row]);
#pragma unroll
    for (int i = 0; i < n; i += 2) {
        u64 draw = mix(hash + (u64)((column + i) / 2) * 0x9e3779b97f4a7c15ull);
        if ((u32)draw < dropout.threshold) v[i] = 0.0f;
        if ((u32)(draw >> 32) < dropout.threshold) v[i + 1] = 0.0f;
    }
}

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

// The next terms of two values, which become the rests.
DEV void take(float& low, float& high, float& a, float& b) {
    bf16 term;
    narrow(term, a), low = widen(term), a -= low;
    narrow(term, b), high = widen(term), b -= high;
}
template <int terms, class Fragment>
DEV void set_terms(Fragment (&f)[terms], int pair, float a, float b) {
#pragma unroll
    for (int i = 0; i < terms; i++) {
        float low, high;
        take(low, high, a, b);
        set_pair(f[i], pair, low, high);
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

// w[i * pitch] for 4 indices from k on; those from `end` on are zeros.
DEV void load_strided(float (&v)[4], const float* w, int k, int end, int pitch) {
    if (pitch == 1) {
        load4(v, w + k, end - k);
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = k + i < end ? w[(i64)(k + i) * pitch] : 0.0f;
}

// out [., R] = factor * u [., depth] W of a tile's rows, W [depth, R] at w[k * pitch_k + r * pitch_r]. The eight warps
// share the depth.
DEV void narrow_product(float* __restrict__ out, const real* __restrict__ u, const float* __restrict__ w,
                        const int* __restrict__ tile, int rank, int depth, int pitch_k, int pitch_r, float factor,
                        Dropout dropout) {
    __shared__ float parts[8][16][33];
    int run = tile[0], first = tile[1], rows = tile[2], from = blockIdx.y * 32;
    int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    float c[4][4] = {};
    for (int base = warp * 16; base < depth; base += 128) {
        int k = base + 4 * t;
        float x[2][4];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int row = g + i * 8;
            load4(x[i], u + (i64)(first + row) * depth + k, row < rows ? depth - k : 0);
            if (dropout.seeds && row < rows) drop(x[i], dropout, run, first + row, k);
        }
        FragmentA<bf16> a[TERMS];
        set_a(a, x[0], x[1]);
#pragma unroll
        for (int n = 0; n < 4; n++) {
            if (from + n * 8 >= rank) break;
            int r = from + n * 8 + g;
            float v[4];
            load_strided(v, w + (i64)r * pitch_r, k, r < rank ? depth : 0, pitch_k);
            FragmentB<bf16> b[TERMS_F32];
            set_b(b, v);
            multiply(c[n], a, b);
        }
    }
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) parts[warp][g + i / 2 * 8][n * 8 + 2 * t + i % 2] = c[n][i];
    __syncthreads();
    for (int i = threadIdx.x; i < 16 * 32; i += blockDim.x) {
        int row = i / 32, r = from + i % 32;
        if (row >= rows || r >= rank) continue;
        float sum = 0.0f;
        for (int part = 0; part < 8; part++) sum += parts[part][row][i % 32];
        out[(i64)(first + row) * rank + r] = factor * sum;
    }
}

// c [16, 64] = u [., R] W of a tile's rows for the warp's columns, W [R, width] at w[r * pitch_r + c * pitch_c]. The
// columns of two fragments are interleaved, so that a lane holds 4 neighbours of each of its rows.
DEV void wide_product(float (&c)[4][2][4], const float* __restrict__ u, const float* __restrict__ w,
                      const int* __restrict__ tile, int from, int rank, int width, int pitch_r, int pitch_c) {
    int first = tile[1], rows = tile[2], g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (int base = 0; base < rank; base += 16) {
        int k = base + 4 * t;
        float x[2][4];
        FragmentA<bf16> a[TERMS_F32];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int row = g + i * 8;
            load4(x[i], u + (i64)(first + row) * rank + k, row < rows ? rank - k : 0);
        }
        set_a(a, x[0], x[1]);
#pragma unroll
        for (int n = 0; n < 8; n++) {
            int column = from + n / 2 * 16 + g / 2 * 4 + g % 2 + n % 2 * 2;
            float v[4];
            load_strided(v, w + (i64)column * pitch_c, k, column < width ? rank : 0, pitch_r);
            FragmentB<bf16> b[TERMS_F32];
            set_b(b, v);
            multiply(c[n / 2][n % 2], a, b);
        }
    }
}

// What becomes of the 4 neighbouring sums of a row, at their place in the output.
template <class Store>
DEV void each_four(float (&c)[4][2][4], const int* tile, int from, int width, Store store) {
    int first = tile[1], rows = tile[2], g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int row = g + i * 8, column = from + n * 16 + 4 * t;
            float v[4] = {c[n][0][2 * i], c[n][0][2 * i + 1], c[n][1][2 * i], c[n][1][2 * i + 1]};
            if (row < rows && column < width) store(v, first + row, column, width - column);
        }
}

extern "C" __global__ void __launch_bounds__(256, 1)
    lora_fwd_shrink(float* __restrict__ xa, const real* __restrict__ x, const float* __restrict__ params,
                    const int* __restrict__ tiles, const u64* __restrict__ seeds, const u32* __restrict__ keys,
                    u64 site, u32 threshold, float keep_scale, int rank, int input, i64 stride, i64 a) {
    const int* tile = tiles + blockIdx.x * 3;
    Dropout dropout = {seeds, keys, site, threshold};
    const float* adapter = params + tile[0] * stride + a;
    narrow_product(xa, x, adapter, tile, rank, input, 1, input, keep_scale, dropout);
}

extern "C" __global__ void __launch_bounds__(256, 1)
    lora_fwd_expand(real* __restrict__ y, const float* __restrict__ xa, const float* __restrict__ params,
                    const int* __restrict__ tiles, int rank, int output, i64 stride, i64 b, float scale) {
    const int* tile = tiles + blockIdx.x * 3;
    int from = blockIdx.y * 512 + threadIdx.x / 32 * 64;
    float c[4][2][4] = {};
    wide_product(c, xa, params + tile[0] * stride + b, tile, from, rank, output, 1, rank);
    each_four(c, tile, from, output, [&](float(&v)[4], int row, int column, int valid) {
        real* to = y + (i64)row * output + column;
        float old[4];
        load4(old, to, valid);
#pragma unroll
        for (int j = 0; j < 4; j++) v[j] = old[j] + scale * v[j];
        store4(to, v, valid);
    });
}

extern "C" __global__ void __launch_bounds__(256, 1)
    lora_delta(float* __restrict__ out, const float* __restrict__ xa, const float* __restrict__ params,
               const int* __restrict__ tiles, int rank, int output, i64 stride, i64 b, float scale) {
    const int* tile = tiles + blockIdx.x * 3;
    int from = blockIdx.y * 512 + threadIdx.x / 32 * 64;
    float c[4][2][4] = {};
    wide_product(c, xa, params + tile[0] * stride + b, tile, from, rank, output, 1, rank);
    each_four(c, tile, from, output, [&](float(&v)[4], int row, int column, int valid) {
#pragma unroll
        for (int j = 0; j < 4; j++) v[j] *= scale;
        store4(out + (i64)row * output + column, v, valid);
    });
}

extern "C" __global__ void __launch_bounds__(256, 1)
    lora_bwd_xa(float* __restrict__ d_xa, const real* __restrict__ d_y, const float* __restrict__ params,
                const int* __restrict__ tiles, int rank, int output, i64 stride, i64 b, float scale) {
    const int* tile = tiles + blockIdx.x * 3;
    const float* adapter = params + tile[0] * stride + b;
    narrow_product(d_xa, d_y, adapter, tile, rank, output, rank, 1, scale, {});
}

extern "C" __global__ void __launch_bounds__(128, 1)
    lora_bwd_params(float* __restrict__ d_params, const real* __restrict__ d_y, const float* __restrict__ xa,
                    const real* __restrict__ x, const float* __restrict__ d_xa, const int* __restrict__ tiles,
                    const int* __restrict__ runs, const u64* __restrict__ seeds, const u32* __restrict__ keys,
                    u64 site, u32 threshold, float keep_scale, int rank, int input, int output, i64 stride, i64 a,
                    i64 b, float scale) {
    // Warp w sums over every fourth tile; then it adds up the four sums of the fragments w.
    __shared__ float parts[4][4][8][32];
    int blocks_b = (output + 63) / 64, warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    bool is_b = blockIdx.x < blocks_b;
    const real* u = is_b ? d_y : x;
    const float* w = is_b ? xa : d_xa;
    int width = is_b ? output : input, from = (is_b ? blockIdx.x : blockIdx.x - blocks_b) * 64, to_r = blockIdx.z * 16;
    int run = runs[blockIdx.y * 3], first_tile = runs[blockIdx.y * 3 + 1], count = runs[blockIdx.y * 3 + 2];
    Dropout dropout = {seeds, keys, site, threshold};
    float c[4][2][4] = {};
    for (int i = warp; i < count; i += 4) {
        const int* tile = tiles + (first_tile + i) * 3;
        int first = tile[1], rows = tile[2], column = from + 8 * g;
        float v[4][8], r[2][4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int row = 4 * t + j;
            load8(v[j], u + (i64)(first + row) * width + column, row < rows ? width - column : 0);
            if (!is_b && seeds && row < rows) drop(v[j], dropout, run, first + row, column);
#pragma unroll
            for (int n = 0; n < 2; n++) {
                int at = to_r + n * 8 + g;
                r[n][j] = row < rows && at < rank ? w[(i64)(first + row) * rank + at] : 0.0f;
            }
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
    float* to = d_params + run * stride + (is_b ? b : a);
    float factor = is_b ? scale : keep_scale;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int column = from + 8 * g + 2 * warp + i % 4 / 2, r = to_r + i / 4 * 8 + 2 * t + i % 2;
        if (column >= width || r >= rank) continue;
        float sum = 0.0f;
        for (int part = 0; part < 4; part++) sum += parts[part][warp][i][lane];
        to[is_b ? (i64)column * rank + r : (i64)r * input + column] += factor * sum;
    }
}

extern "C" __global__ void __launch_bounds__(256, 1)
    lora_bwd_x(float* __restrict__ d_x, const float* __restrict__ d_xa, const float* __restrict__ params,
               const int* __restrict__ tiles, const u64* __restrict__ seeds, const u32* __restrict__ keys, u64 site,
               u32 threshold, float keep_scale, int rank, int input, i64 stride, i64 a) {
    const int* tile = tiles + blockIdx.x * 3;
    int run = tile[0], from = blockIdx.y * 512 + threadIdx.x / 32 * 64;
    Dropout dropout = {seeds, keys, site, threshold};
    float c[4][2][4] = {};
    wide_product(c, d_xa, params + tile[0] * stride + a, tile, from, rank, input, input, 1);
    each_four(c, tile, from, input, [&](float(&v)[4], int row, int column, int valid) {
        float* to = d_x + (i64)row * input + column;
        float old[4];
        if (seeds) drop(v, dropout, run, row, column);
        load4(old, to, valid);
#pragma unroll
        for (int j = 0; j < 4; j++) v[j] = old[j] + keep_scale * v[j];
        store4(to, v, valid);
    });
}
