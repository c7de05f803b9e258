// Distances to a teacher, with their gradients.
//
//   state_loss  loss [rows] += mean((x - target)^2) of rows of x, target [rows, width];
//               d_x [rows, width] = row_weights [rows] * 2 / width * (x - target)
//   kl_loss     loss [rows] = T^2 KL(softmax(teacher / T) || softmax(logits / T)) of logits, teacher [rows, vocab];
//               d_logits [rows, vocab] = row_weights [rows] * T * (softmax(logits / T) - softmax(teacher / T)), rounded; where
//               inverse_cap is not 0, that of logits before they were capped: times 1 - (logits * inverse_cap)^2
//
// Launch: one block of 256 a row, static shared memory, any alignment.
// Determinism: fixed order (each thread's strided sum, then a tree, then warps in order).
// References: Hinton, Vinyals and Dean 2015 (T^2); mse_loss of torch.

extern "C" __global__ void __launch_bounds__(256) state_loss(float* __restrict__ loss, float* __restrict__ d_x,
                                                             const float* __restrict__ x,
                                                             const float* __restrict__ target,
                                                             const float* __restrict__ row_weights, int rows,
                                                             int width) {
    begin_kernel();
    __shared__ float parts[32];
    i64 at = (i64)blockIdx.x * width;
    float a[8], b[8], sum = 0.0f, factor = row_weights[blockIdx.x] * (2.0f / (float)width);
    bool vectors = in_vectors(width, x + at, target + at, d_x + at);
    for (int c = first_column(); c < width; c += blockDim.x * 8) {
        load_split(a, x + at + c, width - c, vectors);
        load_split(b, target + at + c, width - c, vectors);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float d = a[j] - b[j];
            sum = fmaf(d, d, sum);
            a[j] = factor * d;
        }
        store_split(d_x + at + c, a, width - c, vectors);
    }
    sum = block_sum(sum, parts);
    if (threadIdx.x == 0) loss[blockIdx.x] += sum / (float)width;
}

extern "C" __global__ void __launch_bounds__(256) kl_loss(float* __restrict__ loss, real* __restrict__ d_logits,
                                                          const float* __restrict__ logits,
                                                          const float* __restrict__ teacher,
                                                          const float* __restrict__ row_weights, int rows, int vocab,
                                                          float temperature, float inverse, float inverse_cap) {
    begin_kernel();
    __shared__ float parts[32];
    i64 at = (i64)blockIdx.x * vocab;
    logits += at;
    teacher += at;
    d_logits += at;
    Softmax x = softmax_of(logits, vocab, parts, inverse), t = softmax_of(teacher, vocab, parts, inverse);
    float weight = row_weights[blockIdx.x] * temperature, of_x = 1.0f / x.row_sum, of_t = 1.0f / t.row_sum;
    // Of each token the difference of its log-probabilities, rather than of two sums that are nearly the same.
    float shift = logf(x.row_sum) - logf(t.row_sum), sum = 0.0f, a[8], b[8];
    bool vectors = in_vectors(vocab, logits, teacher, d_logits);
    for (int c = first_column(); c < vocab; c += blockDim.x * 8) {
        load_split(a, logits + c, vocab - c, vectors);
        load_split(b, teacher + c, vocab - c, vectors);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float capped = a[j] * inverse_cap, p = a[j] * inverse - x.row_max, q = b[j] * inverse - t.row_max;
            float share = expf(q) * of_t;
            if (split_column(c, j) < vocab) sum = fmaf(share, q - p + shift, sum);
            a[j] = weight * (expf(p) * of_x - share) * fmaf(-capped, capped, 1.0f);
        }
        store_split(d_logits + c, a, vocab - c, vectors);
    }
    sum = block_sum(sum, parts);
    if (threadIdx.x == 0) loss[blockIdx.x] = temperature * temperature * sum;
}
