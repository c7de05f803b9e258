// Rotary position embedding (Su et al. 2021) of halves, as in the LLaMA checkpoints, or of neighbours, as in GPT-J.
//
//   rope_fwd  x [rows, heads, D] = (a cos - b sin, b cos + a sin) for a = x[i], b = x[i + R/2], i < R/2; x from R on
//   rope_bwd  d_x [rows, heads, D] = the same rotated back
//   rope_neighbours_fwd, rope_neighbours_bwd  likewise for a = x[2 i], b = x[2 i + 1]
//
// In place. Of a second tensor `too` with heads of its own likewise; grids of one row of blocks leave it out.
// R <= D leading elements of a head are rotated. cos_sin [positions, R] holds the cosines [R/2], then the sines [R/2], of
// each position; positions [rows].
// Launch: (rows, tensors) blocks of 256. No shared memory, any alignment; vectors where R/2 and D are multiples of 4.
// Determinism: elementwise.

DEV void rotate_heads(real* x, const float* __restrict__ cos_sin, int heads, int head_dim, int rotary_dim, float sign) {
    int half_dim = rotary_dim / 2, chunks = (half_dim + 3) / 4;
    for (int i = threadIdx.x; i < heads * chunks; i += blockDim.x) {
        int c = i % chunks * 4, head = i / chunks * head_dim, valid = half_dim - c;
        float a[4], b[4], cosine[4], sine[4];
        load4(a, x + head + c, valid);
        load4(b, x + head + half_dim + c, valid);
        load4(cosine, cos_sin + c, valid);
        load4(sine, cos_sin + half_dim + c, valid);
        rotate(a, b, cosine, sine, sign);
        store4(x + head + c, a, valid);
        store4(x + head + half_dim + c, b, valid);
    }
}

DEV void rotate_neighbours(real* x, const float* __restrict__ cos_sin, int heads, int head_dim, int rotary_dim,
                           float sign) {
    int half_dim = rotary_dim / 2, chunks = (half_dim + 3) / 4;
    for (int i = threadIdx.x; i < heads * chunks; i += blockDim.x) {
        int c = i % chunks * 4, valid = half_dim - c;
        real* pairs = x + i / chunks * head_dim + 2 * c;
        float low[4], high[4], cosine[4], sine[4];
        load4(low, pairs, 2 * valid);
        load4(high, pairs + 4, 2 * valid - 4);
        load4(cosine, cos_sin + c, valid);
        load4(sine, cos_sin + half_dim + c, valid);
        float a[4] = {low[0], low[2], high[0], high[2]}, b[4] = {low[1], low[3], high[1], high[3]};
        rotate(a, b, cosine, sine, sign);
        const float first[4] = {a[0], b[0], a[1], b[1]}, second[4] = {a[2], b[2], a[3], b[3]};
        store4(pairs, first, 2 * valid);
        store4(pairs + 4, second, 2 * valid - 4);
    }
}

// Of the row and the tensor that the block is for.
template <bool neighbours = false>
DEV void rotate_row(real* x, real* x_too, const int* __restrict__ positions, const float* __restrict__ cos_sin, int heads,
                    int heads_too, int head_dim, int rotary_dim, float sign) {
    if (blockIdx.y) x = x_too, heads = heads_too;
    const float* angles = cos_sin + (i64)positions[blockIdx.x] * rotary_dim;
    x += (i64)blockIdx.x * heads * head_dim;
    if (neighbours)
        rotate_neighbours(x, angles, heads, head_dim, rotary_dim, sign);
    else
        rotate_heads(x, angles, heads, head_dim, rotary_dim, sign);
}

extern "C" __global__ void __launch_bounds__(256) rope_fwd(real* __restrict__ x, real* __restrict__ x_too,
                                                           const int* __restrict__ positions,
                                                           const float* __restrict__ cos_sin, int rows, int heads,
                                                           int heads_too, int head_dim, int rotary_dim) {
    begin_kernel();
    rotate_row(x, x_too, positions, cos_sin, heads, heads_too, head_dim, rotary_dim, 1.0f);
}

extern "C" __global__ void __launch_bounds__(256) rope_bwd(real* __restrict__ d_x, real* __restrict__ d_x_too,
                                                           const int* __restrict__ positions,
                                                           const float* __restrict__ cos_sin, int rows, int heads,
                                                           int heads_too, int head_dim, int rotary_dim) {
    begin_kernel();
    rotate_row(d_x, d_x_too, positions, cos_sin, heads, heads_too, head_dim, rotary_dim, -1.0f);
}

extern "C" __global__ void __launch_bounds__(256)
    rope_neighbours_fwd(real* __restrict__ x, real* __restrict__ x_too, const int* __restrict__ positions,
                        const float* __restrict__ cos_sin, int rows, int heads, int heads_too, int head_dim,
                        int rotary_dim) {
    begin_kernel();
    rotate_row<true>(x, x_too, positions, cos_sin, heads, heads_too, head_dim, rotary_dim, 1.0f);
}

extern "C" __global__ void __launch_bounds__(256)
    rope_neighbours_bwd(real* __restrict__ d_x, real* __restrict__ d_x_too, const int* __restrict__ positions,
                        const float* __restrict__ cos_sin, int rows, int heads, int heads_too, int head_dim,
                        int rotary_dim) {
    begin_kernel();
    rotate_row<true>(d_x, d_x_too, positions, cos_sin, heads, heads_too, head_dim, rotary_dim, -1.0f);
}
