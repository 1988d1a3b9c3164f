// Where the values of some dimensions reach a magnitude (LLM.int8(), arXiv 2208.07339, section 4.1).
//
//     T tokens, d channels, k dimensions

// Note the values that reach the threshold: one thread for each token, dimensions shared out over the grid's second axis.
// Of tokens [T, d] and dimensions [k]: positions [k, words] gets a bit for every token, the first token in the highest
// bit of the first byte; peaks [k] the largest pattern; keys [capacity] for every value its dimension and the top
// `kept` bits of its pattern, in no certain order, counted by `used`.
extern "C" __global__ void note_hits(
    const void *x, const i64 *dimensions, u32 *positions, u32 *peaks, i64 *keys, u64 *used, i64 tokens, i64 count,
    i64 words, i64 stride, i64 capacity, i64 kept, float threshold)
{
    i64 t = (i64)blockIdx.x * THREADS + threadIdx.x;
    if (t >= tokens)
        return;
    u32 bit = 1u << (8 * (t / 8 % 4) + 7 - t % 8);
    for (i64 k = blockIdx.y; k < count; k += gridDim.y) {
        u32 bits = pattern_of(x, t * stride + dimensions[k]);
        u32 magnitude = bits & 0x7fffffffu;
        if (magnitude >= INFINITE || __uint_as_float(magnitude) < threshold)
            continue;
        atomicOr(positions + k * words + t / 32, bit);
        atomicMax(peaks + k, magnitude);
        u64 place = atomicAdd(used, 1ull);
        if (place < (u64)capacity)
            keys[place] = dimensions[k] << kept | (i64)(bits >> (32 - kept));
    }
}
