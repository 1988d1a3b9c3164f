// Counts values by the top 14 bits of their float32 pattern, and collects those of one bin.
//
// Of 16384 bins real tensors use a few hundred, so atomics in global memory would queue up at the same addresses. Each
// block counts in shared memory and adds the bins that are not empty to the histogram once, at its end. Two 16-bit
// counters share a word, so that they take 32 KiB and several blocks fit on a multiprocessor; a block reads at most
// RANGE_TOKENS * CHANNELS = 65024 elements, so no counter can overflow.
//
//     T tokens, d channels

// Set a block's counters to 0; all threads of the block take part, and none counts before all are done.
__device__ void clear_bins(u32 *bins)
{
    for (int word = threadIdx.x; word < BINS / 2; word += THREADS)
        bins[word] = 0;
    __syncthreads();
}

// Count one value in the block's shared memory. Odd bins have the upper half of a word.
__device__ void count_bin(u32 *bins, u32 bits)
{
    u32 bin = bits >> SHIFT;
    atomicAdd(bins + bin / 2, bin % 2 ? 0x10000u : 1u);
}

// Add a block's counters to the histogram [BINS], once all of its threads have counted. Most bins are empty, and cost
// no atomic operation in global memory.
__device__ void add_bins(const u32 *bins, u64 *histogram)
{
    __syncthreads();
    for (int word = threadIdx.x; word < BINS / 2; word += THREADS) {
        u32 pair = bins[word];
        if (pair & 0xffffu)
            atomicAdd(histogram + 2 * word, (u64)(pair & 0xffffu));
        if (pair >> 16)
            atomicAdd(histogram + 2 * word + 1, (u64)(pair >> 16));
    }
}

// Add the finite values of tokens [T, d] to a histogram [BINS]. Grid: (ceil(T / RANGE_TOKENS), ceil(d / CHANNELS)).
extern "C" __global__ void count_bins(const void *x, u64 *histogram, i64 tokens, i64 channels, i64 stride)
{
    __shared__ u32 bins[BINS / 2];
    clear_bins(bins);
    // A thread reads two channels of each token, THREADS apart, so that neighboring threads read neighboring elements.
    // Past the last channel it takes part with a value that is not finite, which is not counted.
    i64 begin = (i64)blockIdx.x * RANGE_TOKENS, end = min(begin + RANGE_TOKENS, tokens);
    for (i64 t = begin; t < end; t++)
        for (int k = 0; k < 2; k++) {
            i64 c = (i64)blockIdx.y * CHANNELS + k * THREADS + threadIdx.x;
            u32 bits = c < channels ? pattern_of(x, t * stride + c) : INFINITE;
            if ((bits & 0x7fffffffu) < INFINITE)
                count_bin(bins, bits);
        }
    add_bins(bins, histogram);
}

// Append the magnitudes of tokens [T, d] that lie in a bin of positive values to values [capacity], in no certain
// order; `used` counts them. Grid as for count_bins.
extern "C" __global__ void collect_bin(
    const void *x, float *values, u64 *used, i64 tokens, i64 channels, i64 stride, i64 capacity, i64 number)
{
    // The tokens and channels of a block are those of count_bins.
    i64 begin = (i64)blockIdx.x * RANGE_TOKENS, end = min(begin + RANGE_TOKENS, tokens);
    for (i64 t = begin; t < end; t++)
        for (int k = 0; k < 2; k++) {
            i64 c = (i64)blockIdx.y * CHANNELS + k * THREADS + threadIdx.x;
            u32 magnitude = c < channels ? pattern_of(x, t * stride + c) & 0x7fffffffu : INFINITE;
            if (magnitude >> SHIFT != (u32)number)
                continue;
            // Few values lie in one bin, so an atomic operation for each is cheap. Should there be more than there is
            // room for, they are counted and not written.
            u64 place = atomicAdd(used, 1ull);
            if (place < (u64)capacity)
                values[place] = __uint_as_float(magnitude);
        }
}
