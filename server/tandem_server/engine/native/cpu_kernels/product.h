/* The product of up to eight rows and two panels of weights, of the model's own format.
 *
 * Under `linear.h`, and under `attention.h`, to which a block's keys and values are such panels. Each output is summed
 * in the order of its inputs by one accumulator, whatever the number of rows.
 */
#pragma once
#include "numbers.h"

#define ROWS 8     /* rows of a tile: with two panels, 16 accumulators */
#define MANY 64    /* rows whose sums are held at once */
#define AHEAD 1024 /* bytes that weights are fetched before they are needed */

#ifdef TANDEM_BF16
#define PAIR 2 /* inputs that lie side by side in a panel: [inputs / PAIR][LANES][PAIR] */

/* Two inputs' weights for each output: as the machine's instruction wants them, else as float32. */
#ifdef __AVX512BF16__
typedef __m512i Pair;
INLINE Pair pair_of(bits b) { return (__m512i)b; }
INLINE vec add_pair(vec acc, Pair w, const num *x) {
    int32_t pair;
    memcpy(&pair, x, 4);
    return (vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)w, (__m512bh)_mm512_set1_epi32(pair));
}
#else
typedef struct { vec first, second; } Pair;
INLINE Pair pair_of(bits b) { return (Pair){(vec)(b << 16), (vec)(b & 0xffff0000u)}; }
INLINE vec add_pair(vec acc, Pair w, const num *x) {
    return add_times(add_times(acc, w.first, widen(x[0])), w.second, widen(x[1]));
}
#endif
INLINE vec multiply_add(vec acc, const num *w, const num *x) {
    bits b;
    memcpy(&b, w, sizeof b);
    return add_pair(acc, pair_of(b), x);
}
#else
#define PAIR 1
INLINE vec multiply_add(vec acc, const num *w, const num *x) { return add_times(acc, loadf(w), *x); }
#endif

/* `rows` rows against two panels, added to what `acc` holds; unrolled for each constant number of rows. */
INLINE void tile(vec acc[ROWS][2], const num *a, const num *b, const num *x, int64_t stride, int rows, int64_t inputs) {
    vec sums[ROWS][2];
    for (int r = 0; r < rows; r++) sums[r][0] = acc[r][0], sums[r][1] = acc[r][1];
    for (int64_t k = 0; k < inputs; k += PAIR) {
        __builtin_prefetch((const char *)(a + k * LANES) + AHEAD);
        __builtin_prefetch((const char *)(b + k * LANES) + AHEAD);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            sums[r][0] = multiply_add(sums[r][0], a + k * LANES, x + r * stride + k);
            sums[r][1] = multiply_add(sums[r][1], b + k * LANES, x + r * stride + k);
        }
    }
    for (int r = 0; r < rows; r++) acc[r][0] = sums[r][0], acc[r][1] = sums[r][1];
}

/* `call(n)` with the constant n that `rows` is. */
#define BY_ROWS(rows, call) \
    switch (rows) { \
        case 1: call(1); break; \
        case 2: call(2); break; \
        case 3: call(3); break; \
        case 4: call(4); break; \
        case 5: call(5); break; \
        case 6: call(6); break; \
        case 7: call(7); break; \
        default: call(8); \
    }

static void product(vec acc[ROWS][2], const num *a, const num *b, const num *x, int64_t stride, int rows, int64_t n) {
#define CALL(constant) tile(acc, a, b, x, stride, constant, n)
    BY_ROWS(rows, CALL)
#undef CALL
}
