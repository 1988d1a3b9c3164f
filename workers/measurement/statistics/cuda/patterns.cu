// Reads elements of any type as bit patterns of float32; shared by all kernels of this folder.
//
// The sources are joined in the order of `nvrtc.SOURCES` and compiled by NVRTC without headers, once for every element
// type (KIND: 0 float32, 1 bfloat16, 2 float16). Constants in capitals that no file defines come from `nvrtc.CONSTANTS`.
// Patterns are compared as integers: a compiler may assume that no float is NaN or infinite, but not that of integers.

typedef unsigned int u32;
typedef unsigned short u16;
typedef long long i64;
typedef unsigned long long u64;

// The pattern of infinity. Sign aside, finite values lie below it, and NaN above.
#define INFINITE 0x7f800000u

// Return the float32 pattern of element `at` of x.
__device__ u32 pattern_of(const void *x, i64 at)
{
#if KIND == 0
    return ((const u32 *)x)[at];
#else
    u32 half = ((const u16 *)x)[at];
#if KIND == 1
    return half << 16;  // a bfloat16 is the upper half of a float32
#else
    u32 sign = (half & 0x8000u) << 16, rest = half & 0x7fffu;
    if (rest < 0x0400u)  // subnormal: a whole multiple of 2^-24, which float32 holds as a normal number
        return sign | __float_as_uint((float)(int)rest * 5.9604644775390625e-8f);
    if (rest < 0x7c00u)  // normal: the exponent moves by 127 - 15
        return sign | ((rest << 13) + (112u << 23));
    return sign | INFINITE | (rest << 13);
#endif
#endif
}
