// What quantized and reference tokens add up to channel by channel.
//
//     T tokens, d channels, R ranges of the tokens

// Add up y^2 and (y - q)^2 over a range of tokens. Grid: (R, ceil(d / THREADS)); a thread has a channel of its own.
// sums [2, R, d]; elements where either is not finite are left out.
extern "C" __global__ void channel_products(
    const void *y, const void *q, double *sums, i64 tokens, i64 channels, i64 ranges, i64 y_stride, i64 q_stride)
{
    i64 r = blockIdx.x, c = (i64)blockIdx.y * THREADS + threadIdx.x;
    if (c >= channels)
        return;
    double signal = 0.0, noise = 0.0;
    for (i64 t = tokens * r / ranges; t < tokens * (r + 1) / ranges; t++) {
        u32 a = pattern_of(y, t * y_stride + c), b = pattern_of(q, t * q_stride + c);
        if ((a & 0x7fffffffu) >= INFINITE || (b & 0x7fffffffu) >= INFINITE)
            continue;
        double v = (double)__uint_as_float(a), e = v - (double)__uint_as_float(b);
        signal += v * v;
        noise += e * e;
    }
    sums[r * channels + c] = signal;
    sums[(ranges + r) * channels + c] = noise;
}
