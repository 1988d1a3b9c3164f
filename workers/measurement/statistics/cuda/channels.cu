// Sums the squares of reference tokens and of quantized tokens' errors, channel by channel.
//
//     T tokens, d channels, R ranges of the tokens

// Add up y^2 and (y - q)^2 over a range of tokens. Grid: (R, ceil(d / THREADS)); a thread has a channel of its own.
// sums [2, R, d]; elements where either is not finite are left out.
extern "C" __global__ void channel_products(
    const void *y, const void *q, double *sums, i64 tokens, i64 channels, i64 ranges, i64 y_stride, i64 q_stride)
{
    // Neighboring threads read neighboring channels of a token. Threads past the last channel have nothing to do.
    i64 r = blockIdx.x, c = (i64)blockIdx.y * THREADS + threadIdx.x;
    if (c >= channels)
        return;
    // A thread adds up its channel alone, token by token, so no atomic operation is needed, and the order of additions
    // is always the same. float64, for an error may be in the last digits of its value.
    double signal = 0.0, noise = 0.0;
    for (i64 t = tokens * r / ranges; t < tokens * (r + 1) / ranges; t++) {
        u32 a = pattern_of(y, t * y_stride + c), b = pattern_of(q, t * q_stride + c);
        if ((a & 0x7fffffffu) >= INFINITE || (b & 0x7fffffffu) >= INFINITE)
            continue;
        double v = (double)__uint_as_float(a), e = v - (double)__uint_as_float(b);
        signal += v * v;
        noise += e * e;
    }
    // Each range has a place of its own; the host adds the ranges up.
    sums[r * channels + c] = signal;
    sums[(ranges + r) * channels + c] = noise;
}
