/* Products by weights of 8 bits: whole numbers, which bfloat16 holds exactly; an output's scale applies to its sum.
 *
 * Under `linear.h`; `cpu_quantized.py` lays the panels, [inputs / PAIR][LANES][PAIR]. Few rows take the numbers as a
 * register widens them; for many they are widened once, into the nearest cache. Both sum in the same order.
 */
#pragma once
#include "product.h"

#define WIDENED 512 /* inputs that are widened at once */

#ifdef __AVX512BF16__
/* As the pairs lie: the first eight outputs' numbers, then the others'. */
INLINE Pair pair_of_int8(const int8_t *p) {
    __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
    __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p + 1)));
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}
INLINE void store_pair(num *out, Pair w) { memcpy(out, &w, sizeof w); }
#else
INLINE Pair pair_of_int8(const int8_t *p) {
    nums n;
    memcpy(&n, p, sizeof n);
    ints both = (ints)__builtin_convertvector(n, bits);
    return (Pair){__builtin_convertvector((both << 24) >> 24, vec), __builtin_convertvector((both << 16) >> 24, vec)};
}
INLINE void store_pair(num *out, Pair w) {
    bits both = (bits)w.first >> 16 | ((bits)w.second & 0xffff0000u);
    memcpy(out, &both, sizeof both);
}
#endif

INLINE void tile_int8(vec acc[ROWS][2], const int8_t *a, const int8_t *b, const num *x, int64_t stride, int rows,
                      int64_t inputs) {
    vec sums[ROWS][2];
    for (int r = 0; r < rows; r++) sums[r][0] = sums[r][1] = (vec){0};
    for (int64_t k = 0; k < inputs; k += PAIR) {
        __builtin_prefetch(a + k * LANES + AHEAD);
        __builtin_prefetch(b + k * LANES + AHEAD);
        Pair first = pair_of_int8(a + k * LANES), second = pair_of_int8(b + k * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            sums[r][0] = add_pair(sums[r][0], first, x + r * stride + k);
            sums[r][1] = add_pair(sums[r][1], second, x + r * stride + k);
        }
    }
    for (int r = 0; r < rows; r++) acc[r][0] = sums[r][0], acc[r][1] = sums[r][1];
}

/* As `product`, from 0. */
static void product_int8(vec acc[ROWS][2], const int8_t *a, const int8_t *b, const num *x, int64_t stride, int rows,
                         int64_t n) {
#define CALL(constant) tile_int8(acc, a, b, x, stride, constant, n)
    BY_ROWS(rows, CALL)
#undef CALL
}

/* Up to MANY rows: `acc` of [rows][2]. */
static void widened_int8(vec acc[MANY][2], const int8_t *a, const int8_t *b, const num *x, int64_t stride, int rows,
                         int64_t inputs) {
    num wide[2][WIDENED * LANES] __attribute__((aligned(64)));
    for (int r = 0; r < rows; r++) acc[r][0] = acc[r][1] = (vec){0};
    for (int64_t from = 0; from < inputs; from += WIDENED) {
        int64_t count = inputs - from < WIDENED ? inputs - from : WIDENED;
        for (int64_t k = 0; k < count; k += PAIR) {
            store_pair(wide[0] + k * LANES, pair_of_int8(a + (from + k) * LANES));
            store_pair(wide[1] + k * LANES, pair_of_int8(b + (from + k) * LANES));
        }
        for (int r = 0; r < rows; r += ROWS)
            product(acc + r, wide[0], wide[1], x + r * stride + from, stride, rows - r < ROWS ? rows - r : ROWS, count);
    }
}
