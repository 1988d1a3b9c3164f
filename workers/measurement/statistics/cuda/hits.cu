// Finds the values that reach a limit which every token has of its own (LLM.int8(), arXiv 2208.07339, section 4.1).
//
//     N sequences of S tokens, R ranges of a sequence; T tokens, d channels, k dimensions

// Write `factor` times the root mean square of every token's finite values: one block for each of the N * S tokens.
// A token of which none is finite and not 0 has the limit infinity.
extern "C" __global__ void token_limits(
    const void *x, float *limits, i64 tokens, i64 channels, i64 stride_n, i64 stride_s, float factor)
{
    // Each thread adds up every THREADS-th channel of the token in float64, and counts its finite values.
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
    // The threads' sums are added up in shared memory: halves to halves, so that the order of additions is always the same.
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            squares[threadIdx.x] += squares[threadIdx.x + half];
            present[threadIdx.x] += present[threadIdx.x + half];
        }
        __syncthreads();
    }
    if (threadIdx.x > 0)
        return;
    // The mean is over the finite values, at least one to avoid 0 / 0. A product that rounds to 0 becomes the smallest
    // float32, because a limit of 0 would be reached by zeros.
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
    // A thread counts in a register, over as few tokens as fill the device with blocks.
    int count = 0;
    for (i64 t = tokens * r / ranges; t < tokens * (r + 1) / ranges; t++) {
        u32 magnitude = pattern_of(x, n * stride_n + t * stride_s + c) & 0x7fffffffu;
        count += magnitude < INFINITE && __uint_as_float(magnitude) >= limits[n * tokens + t];
    }
    // Several ranges add to one channel. Integers, so that the order does not matter.
    if (count)
        atomicAdd(counts + n * channels + c, count);
}

// Warps of a block; each has a word of 32 tokens' bits.
#define WARPS (THREADS / 32)

// Note the values that reach their token's limit [T], of tokens [T, d] and dimensions [k].
// Grid: (ceil(words / WARPS), ceil(k / 32)); a warp has 32 tokens, which share a word of positions, and each of its
// lanes a dimension, so that a token's values are read together.
// positions [k, words] gets a bit for every token, the first token in the highest bit of the first byte; peaks [k] the
// largest pattern; keys [capacity] for every value its dimension and the top `kept` bits of its pattern, in no certain
// order, counted by `used`. peaks and used are added to.
extern "C" __global__ void note_hits(
    const void *x, const i64 *dimensions, const float *limits, u32 *positions, u32 *peaks, i64 *keys, u64 *used,
    i64 tokens, i64 count, i64 words, i64 stride, i64 capacity, i64 kept)
{
    // Shared by the block: each of its 32 dimensions' largest pattern, how many values each warp has noted, and where
    // the block's keys begin.
    __shared__ u32 largest[32];
    __shared__ int hits[WARPS];
    __shared__ u64 first_place;
    // The word of tokens and the dimension of this thread. Threads past the last word or dimension read nothing, but go
    // on to the end, because the block and the warps are synchronized below.
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    i64 word = (i64)blockIdx.x * WARPS + warp, k = (i64)blockIdx.y * 32 + lane;
    bool present = word < words && k < count;
    i64 dimension = present ? dimensions[k] : 0;
    const i64 first = 32 * word, here = present ? min((i64)32, tokens - first) : 0;
    if (threadIdx.x < 32)
        largest[lane] = 0;
    if (lane == 0)
        hits[warp] = 0;
    __syncthreads();

    // Read the 32 tokens, of which the last word may have fewer, and keep a bit for every value that reaches its limit.
    u32 reached = 0, peak = 0;
    for (int b = 0; b < here; b++) {
        u32 magnitude = pattern_of(x, (first + b) * stride + dimension) & 0x7fffffffu;
        if (magnitude >= INFINITE || __uint_as_float(magnitude) < limits[first + b])
            continue;
        reached |= 1u << (b ^ 7);  // of each byte, the highest bit is the first token's
        peak = max(peak, magnitude);
    }
    // Words need no atomic operation: no other thread has this one. Peaks and counts are gathered for the block.
    if (present)
        positions[k * words + word] = reached;
    if (reached) {
        atomicMax(largest + lane, peak);
        atomicAdd(hits + warp, __popc(reached));
    }
    __syncthreads();

    // Reserve room for all keys of the block with one atomic operation; the warps' keys follow one another.
    int before = 0, all = 0;
    for (int w = 0; w < WARPS; w++) {
        before += w < warp ? hits[w] : 0;
        all += hits[w];
    }
    if (all == 0)  // for every thread of the block alike
        return;
    if (warp == 0 && largest[lane] > 0)
        atomicMax(peaks + k, largest[lane]);
    if (threadIdx.x == 0)
        first_place = atomicAdd(used, (u64)all);
    __syncthreads();

    // Token by token, the lanes that have a key write to adjacent places. The values are in the cache by now.
    u64 place = first_place + before;
    for (int b = 0; b < 32; b++) {
        // Of the lanes that have a key at this token, those below this one come before it.
        bool own = reached >> (b ^ 7) & 1u;
        u32 lanes = __ballot_sync(0xffffffffu, own);
        u64 at = place + __popc(lanes & ((1u << lane) - 1u));
        if (own && at < (u64)capacity)
            keys[at] = dimension << kept | (i64)(pattern_of(x, (first + b) * stride + dimension) >> (32 - kept));
        place += __popc(lanes);
    }
}
