/* Numbers of a step on a CPU: 16 at once, as float32 wherever they are summed, in the model's format in memory.
 *
 * Read by all other files of this folder. GCC's vector extension, so any processor will do; intrinsics where one
 * instruction does what the extension cannot say.
 */
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef uint32_t bits __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

/* ---- in memory ---- */
#ifdef TANDEM_BF16
typedef uint16_t num;
typedef uint16_t nums __attribute__((vector_size(2 * LANES)));

INLINE vec load(const num *p) {
    nums n;
    memcpy(&n, p, sizeof n);
    return (vec)(__builtin_convertvector(n, bits) << 16);
}
INLINE float widen(num n) {
    union { uint32_t b; float f; } both = {(uint32_t)n << 16};
    return both.f;
}
#ifdef __AVX512BF16__
INLINE void store(num *p, vec v) {
    __m256bh n = _mm512_cvtneps_pbh((__m512)v);
    memcpy(p, &n, sizeof n);
}
#else
INLINE void store(num *p, vec v) {
    bits b = (bits)v, rounded = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
    bits nan = (bits)(v != v);
    nums n = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), nums);
    memcpy(p, &n, sizeof n);
}
#endif
#else
typedef float num;
INLINE vec load(const num *p) {
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE float widen(num n) { return n; }
INLINE void store(num *p, vec v) { memcpy(p, &v, sizeof v); }
#endif

INLINE vec loadf(const float *p) {
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE void storef(float *p, vec v) { memcpy(p, &v, sizeof v); }

/* ---- in registers ---- */
INLINE vec all(float x) { return (vec){0} + x; }
/* acc + w * x. Where no register holds a whole vector, GCC would lay `x` into memory number by number. */
#ifdef __AVX512F__
INLINE vec add_times(vec acc, vec w, float x) { return acc + w * x; }
#else
#ifdef __AVX__
#define REGISTER 8
#else
#define REGISTER 4
#endif
typedef float part __attribute__((vector_size(4 * REGISTER)));
INLINE vec add_times(vec acc, vec w, float x) {
    part factor = (part){0} + x;
    union { vec whole; part parts[LANES / REGISTER]; } sums = {acc}, weights = {w};
#pragma GCC unroll 4
    for (int i = 0; i < LANES / REGISTER; i++) sums.parts[i] += weights.parts[i] * factor;
    return sums.whole;
}
#endif
INLINE vec larger(vec a, vec b) {
    ints m = a > b;
    return (vec)(((ints)a & m) | ((ints)b & ~m));
}
/* Halves and quarters changed over: lane i beside lane i + 8, and i + 4. */
INLINE vec far(vec v) { return __builtin_shuffle(v, (ints){8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7}); }
INLINE vec near(vec v) { return __builtin_shuffle(v, (ints){4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11}); }
INLINE float sum(vec v) {
    float s = 0;
    v += far(v);
    v += near(v);
    for (int i = 0; i < 4; i++) s += v[i];
    return s;
}
/* Of numbers, the largest. */
INLINE float largest_of(vec v) {
    v = larger(v, far(v));
    v = larger(v, near(v));
    float most = v[0];
    for (int i = 1; i < 4; i++) most = v[i] > most ? v[i] : most;
    return most;
}
/* e^x to about 2 units in the last place; 0 below -87, capped at e^88; NaN stays NaN. */
INLINE vec exponential(vec x) {
    vec y = larger(-larger(-x, all(-88.0f)), all(-87.0f)), magic = all(12582912.0f);
    vec whole = (y * 1.44269504f + magic) - magic;
    vec r = y - whole * 0.693359375f + whole * 2.12194440e-4f;
    vec p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    ints scaled = (ints)p + (__builtin_convertvector(whole, ints) << 23), low = x < -87.0f, nan = x != x;
    return (vec)((scaled & ~(low | nan)) | ((ints)x & nan));
}
/* x / (1 + e^-z): the activations' common form; what is as good as 0 is 0. */
INLINE vec sigmoid_times(vec x, vec z) {
    ints gone = z < -87.0f; /* where the exponential is capped */
    return (vec)((ints)(x / (1.0f + exponential(-z))) & ~gone);
}
INLINE vec tangent(vec x) { return 1.0f - 2.0f / (exponential(x + x) + 1.0f); }
/* By which a row's numbers are multiplied to have a mean square of 1. */
static inline float norm_factor(const float *x, int64_t size, float epsilon) {
    vec squares = {0};
    for (int64_t i = 0; i < size; i += LANES) squares += loadf(x + i) * loadf(x + i);
    return 1.0f / sqrtf(sum(squares) / size + epsilon);
}
