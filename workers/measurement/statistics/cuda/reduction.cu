// Computes pivots, and everything that a Reduction holds in one reading of the sequences.
//
// A block reduces some channels of a sequence over a range of its tokens. Each thread owns its channels, so their sums
// need no atomic operation and come out the same every time. What does not depend on the order of additions (counts,
// the histogram, the largest magnitude of a token) is gathered with integer atomics.
//
//     N sequences of S tokens, d channels, R ranges of a sequence

// Return the middle one of three finite values.
__device__ float median3(float a, float b, float c)
{
    return fmaxf(fminf(a, b), fminf(fmaxf(a, b), c));
}

// Write the median of three medians of three tokens of every channel; values that are not finite count as 0.
// One thread for each of the N * d channels.
extern "C" __global__ void pivots(const void *x, float *out, i64 sequences, i64 tokens, i64 channels, i64 stride_n, i64 stride_s)
{
    i64 here = (i64)blockIdx.x * THREADS + threadIdx.x;
    if (here >= sequences * channels)
        return;
    // Nine tokens spread over the sequence, from its first to its last.
    i64 first = here / channels * stride_n + here % channels;
    float v[PIVOT_TOKENS];
    for (int k = 0; k < PIVOT_TOKENS; k++) {
        u32 bits = pattern_of(x, first + (tokens - 1) * k / (PIVOT_TOKENS - 1) * stride_s);
        v[k] = (bits & 0x7fffffffu) < INFINITE ? __uint_as_float(bits) : 0.0f;
    }
    // No branch and no sorting, and one unusual token cannot move the result far.
    out[here] = median3(median3(v[0], v[3], v[6]), median3(v[1], v[4], v[7]), median3(v[2], v[5], v[8]));
}

// Return the largest value that a thread of the warp has, to all of them; all 32 must call it.
__device__ int largest_of_warp(int value)
{
    // Before compute capability 8.0 there is no instruction for it: exchange over half the distance, five times.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    for (int distance = 16; distance > 0; distance /= 2)
        value = max(value, __shfl_xor_sync(0xffffffffu, value, distance));
    return value;
#else
    return __reduce_max_sync(0xffffffffu, value);
#endif
}

// Reduce a range of tokens of some channels. Grid: (N * R, ceil(d / CHANNELS)); THREADS threads.
// extremes [2, N, R, d], sums [N, R, 4, d], counts [2, N, R, d] (over the threshold, not finite), over_fp16 [N],
// peaks [N, S] (the largest pattern, -1 before any), histogram [BINS]; the last three are added to.
extern "C" __global__ void reduce_range(
    const void *x, const float *pivot, float *extremes, double *sums, int *counts, u32 *over_fp16, int *peaks,
    u64 *histogram, i64 sequences, i64 tokens, i64 channels, i64 ranges, i64 stride_n, i64 stride_s, float threshold)
{
    // The block's histogram, of two 16-bit counters to a word (histogram.cu).
    __shared__ u32 bins[BINS / 2];
    clear_bins(bins);
    // Each thread owns two channels, THREADS apart so that neighboring threads read neighboring elements, and keeps
    // their figures in registers; past the last channel it only takes part in what the warp does together.
    i64 unit = blockIdx.x, n = unit / ranges, r = unit % ranges;
    i64 begin = tokens * r / ranges, end = tokens * (r + 1) / ranges;
    i64 c[2];
    double p[2], s1[2], s2[2], s3[2], s4[2];
    float low[2], high[2];
    int n_over[2], n_missing[2];
    u32 n_over_fp16 = 0;
    for (int k = 0; k < 2; k++) {
        c[k] = (i64)blockIdx.y * CHANNELS + k * THREADS + threadIdx.x;
        p[k] = c[k] < channels ? (double)pivot[n * channels + c[k]] : 0.0;
        s1[k] = s2[k] = s3[k] = s4[k] = 0.0;
        low[k] = __uint_as_float(INFINITE);
        high[k] = -low[k];
        n_over[k] = n_missing[k] = 0;
    }
    // Read each token once, and keep everything that follows from its values.
    for (i64 t = begin; t < end; t++) {
        int peak = -1;
        for (int k = 0; k < 2; k++) {
            if (c[k] >= channels)
                continue;
            u32 bits = pattern_of(x, n * stride_n + t * stride_s + c[k]);
            u32 magnitude = bits & 0x7fffffffu;
            // What is not finite is counted, and changes no other figure.
            if (magnitude >= INFINITE) {
                n_missing[k]++;
                continue;
            }
            float v = __uint_as_float(bits), size = __uint_as_float(magnitude);
            low[k] = fminf(low[k], v);
            high[k] = fmaxf(high[k], v);
            // Powers of the distance from the pivot, in float64: about 0 they would lose the variance's digits.
            double w = (double)v - p[k], w2 = w * w;
            s1[k] += w;
            s2[k] += w2;
            s3[k] += w2 * w;
            s4[k] += w2 * w2;
            n_over[k] += size >= threshold;
            n_over_fp16 += size > FP16_MAX;
            peak = max(peak, (int)magnitude);  // magnitudes order as their patterns do
            count_bin(bins, bits);
        }
        // One atomic operation for each warp and token, and none where no value is finite.
        peak = largest_of_warp(peak);
        if (threadIdx.x % 32 == 0 && peak >= 0)
            atomicMax(peaks + n * tokens + t, peak);
    }
    // Each range has a place of its own, so that `join_ranges` adds them up in the same order every time.
    for (int k = 0; k < 2; k++) {
        if (c[k] >= channels)
            continue;
        i64 here = unit * channels + c[k], other = sequences * ranges * channels;
        extremes[here] = low[k];
        extremes[other + here] = high[k];
        counts[here] = n_over[k];
        counts[other + here] = n_missing[k];
        double *sum = sums + unit * 4 * channels + c[k];
        sum[0] = s1[k];
        sum[channels] = s2[k];
        sum[2 * channels] = s3[k];
        sum[3 * channels] = s4[k];
    }
    // Values over fp16's largest are rare, and so is this atomic operation.
    if (n_over_fp16)
        atomicAdd(over_fp16 + n, n_over_fp16);
    add_bins(bins, histogram);
}

// Put the ranges of every channel together, in their order. One thread for each of the N * d channels.
// minimum, maximum, over, missing [N, d], power_sums [N, 4, d]; the rest as `reduce_range` left it.
extern "C" __global__ void join_ranges(
    const float *extremes, const double *sums, const int *counts, float *minimum, float *maximum, double *power_sums,
    int *over, int *missing, i64 sequences, i64 channels, i64 ranges)
{
    i64 here = (i64)blockIdx.x * THREADS + threadIdx.x;
    if (here >= sequences * channels)
        return;
    i64 n = here / channels, c = here % channels, other = sequences * ranges * channels;
    // Start from the figures of nothing, as reduce_range does.
    float low = __uint_as_float(INFINITE), high = -low;
    double s[4] = {0.0, 0.0, 0.0, 0.0};
    int n_over = 0, n_missing = 0;
    for (i64 r = 0; r < ranges; r++) {
        i64 unit = n * ranges + r, at = unit * channels + c;
        low = fminf(low, extremes[at]);
        high = fmaxf(high, extremes[other + at]);
        n_over += counts[at];
        n_missing += counts[other + at];
        for (int k = 0; k < 4; k++)
            s[k] += sums[(unit * 4 + k) * channels + c];
    }
    minimum[here] = low;
    maximum[here] = high;
    over[here] = n_over;
    missing[here] = n_missing;
    for (int k = 0; k < 4; k++)
        power_sums[(n * 4 + k) * channels + c] = s[k];
}
