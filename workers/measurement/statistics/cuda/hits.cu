// Where values reach a limit that every token has of its own (LLM.int8(), arXiv 2208.07339, section 4.1).
//
//     N sequences of S tokens, R ranges of a sequence; T tokens, d channels, k dimensions

// Write `factor` times the root mean square of every token's finite values: one block for each of the N * S tokens.
// A token of which none is finite and not 0 has the limit infinity.
extern "C" __global__ void token_limits(
    const void *x, float *limits, i64 tokens, i64 channels, i64 stride_n, i64 stride_s, float factor)
{
    __shared__ double squares[THREADS];
    __shared__ int present[THREADS];
    i64 row = blockIdx.x / tokens * stride_n + blockIdx.x % tokens * stride_s;
    double sum = 0.0;
    int count = 0;
    for (i64 c = threadIdx.x; c < channels; c += THREADS) {
        u32 bits = pattern_of(x, row + c);
        if ((bits & 0x7fffffffu) >= INFINITE)
            continue;
        double v = (double)__uint_as_float(bits);
        sum += v * v;
        count++;
    }
    squares[threadIdx.x] = sum;
    present[threadIdx.x] = count;
    __syncthreads();
    // Halves are added to halves, so that the order of additions is always the same.
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            squares[threadIdx.x] += squares[threadIdx.x + half];
            present[threadIdx.x] += present[threadIdx.x + half];
        }
        __syncthreads();
    }
    if (threadIdx.x > 0)
        return;
    float limit = (float)((double)factor * sqrt(squares[0] / (double)max(present[0], 1)));
    limits[blockIdx.x] = squares[0] > 0.0 ? fmaxf(limit, __uint_as_float(1u)) : __uint_as_float(INFINITE);
}

// Count the values of every channel that reach their token's limit [N, S]; counts [N, d] are added to.
// Grid: (N * R, ceil(d / THREADS)); a thread has a channel of its own over a range of tokens.
extern "C" __global__ void count_reaching(
    const void *x, const float *limits, int *counts, i64 tokens, i64 channels, i64 ranges, i64 stride_n, i64 stride_s)
{
    i64 n = blockIdx.x / ranges, r = blockIdx.x % ranges, c = (i64)blockIdx.y * THREADS + threadIdx.x;
    if (c >= channels)
        return;
    int count = 0;
    for (i64 t = tokens * r / ranges; t < tokens * (r + 1) / ranges; t++) {
        u32 magnitude = pattern_of(x, n * stride_n + t * stride_s + c) & 0x7fffffffu;
        count += magnitude < INFINITE && __uint_as_float(magnitude) >= limits[n * tokens + t];
    }
    if (count)
        atomicAdd(counts + n * channels + c, count);
}

// Note the values that reach their token's limit [T]: one thread for each token, dimensions shared out over the grid's second axis.
// Of tokens [T, d] and dimensions [k]: positions [k, words] gets a bit for every token, the first token in the highest
// bit of the first byte; peaks [k] the largest pattern; keys [capacity] for every value its dimension and the top
// `kept` bits of its pattern, in no certain order, counted by `used`.
extern "C" __global__ void note_hits(
    const void *x, const i64 *dimensions, const float *limits, u32 *positions, u32 *peaks, i64 *keys, u64 *used,
    i64 tokens, i64 count, i64 words, i64 stride, i64 capacity, i64 kept)
{
    i64 t = (i64)blockIdx.x * THREADS + threadIdx.x;
    if (t >= tokens)
        return;
    u32 bit = 1u << (8 * (t / 8 % 4) + 7 - t % 8);
    for (i64 k = blockIdx.y; k < count; k += gridDim.y) {
        u32 bits = pattern_of(x, t * stride + dimensions[k]);
        u32 magnitude = bits & 0x7fffffffu;
        if (magnitude >= INFINITE || __uint_as_float(magnitude) < limits[t])
            continue;
        atomicOr(positions + k * words + t / 32, bit);
        atomicMax(peaks + k, magnitude);
        u64 place = atomicAdd(used, 1ull);
        if (place < (u64)capacity)
            keys[place] = dimensions[k] << kept | (i64)(bits >> (32 - kept));
    }
}
