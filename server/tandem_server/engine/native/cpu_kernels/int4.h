/* Products by weights of 4 bits, looked up in a register; a group of inputs has a scale and a zero point of its own.
 *
 * Under `linear.h`; `cpu_quantized.py` lays the panels. A group is summed by itself, then scaled; its zero point is
 * multiplied by the sum of the row's inputs. Both lie behind the numbers, so that a layer is one stream of bytes.
 */
#pragma once
#include "product.h"
#include "structs.h"

/* QUANTUM inputs of a panel, [panels][inputs / QUANTUM]: a weight is (number - 8) * scale + zero. A word holds eight
 * inputs of one output, the even ones in its low half: two neighbours are always 16 bits apart. */
typedef struct {
    uint32_t numbers[QUANTUM / 8][LANES];
    num scale_and_zero[LANES][2];
} Quanta;

#ifdef __AVX512BF16__
/* -8 to 7 twice: looked up by five bits, of which the highest is a neighbour's. */
static const num NUMBERS[32] = {0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000,
                                0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040,
                                0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};
INLINE Pair unpack(bits word, int place) {
    return _mm512_permutexvar_epi16((__m512i)(word >> (4 * place)), _mm512_loadu_si512(NUMBERS));
}
#else
INLINE Pair unpack(bits word, int place) {
    ints even = (ints)(word >> (4 * place) & 15) - 8, odd = (ints)(word >> (4 * place + 16) & 15) - 8;
    return (Pair){__builtin_convertvector(even, vec), __builtin_convertvector(odd, vec)};
}
#endif

/* `rows` rows against one panel; `sums` of the rows' inputs, [rows][count], since a zero point is in all of them.
 * A quantum's sum begins anew, so the processor adds up several at once. */
INLINE void tile_int4(vec acc[ROWS], const Quanta *q, const num *x, const float *sums, int rows, int64_t count) {
    vec total[ROWS];
    for (int r = 0; r < rows; r++) total[r] = (vec){0};
    for (int64_t k = 0; k < count; k++, q++) {
        vec own[ROWS];
        for (int r = 0; r < rows; r++) own[r] = (vec){0};
#pragma GCC unroll 4
        for (int eight = 0; eight < QUANTUM / 8; eight++) {
            bits word;
            memcpy(&word, q->numbers[eight], sizeof word);
            __builtin_prefetch((const char *)q->numbers[eight] + AHEAD);
#pragma GCC unroll 4
            for (int place = 0; place < 4; place++) {
                Pair w = unpack(word, place);
#pragma GCC unroll 8
                for (int r = 0; r < rows; r++)
                    own[r] = add_pair(own[r], w, x + (r * count + k) * QUANTUM + eight * 8 + place * 2);
            }
        }
        bits both;
        memcpy(&both, q->scale_and_zero, sizeof both);
        __builtin_prefetch((const char *)q->scale_and_zero + AHEAD);
        vec scale = (vec)(both << 16), zero = (vec)(both & 0xffff0000u);
        for (int r = 0; r < rows; r++) total[r] += own[r] * scale + zero * sums[r * count + k];
    }
    for (int r = 0; r < rows; r++) acc[r] = total[r];
}

/* As `product`, from 0; rows lie behind each other. */
static void product_int4(vec acc[ROWS][2], const Quanta *a, const Quanta *b, const num *x, const float *sums, int rows,
                         int64_t inputs) {
    int64_t n = inputs / QUANTUM;
    for (int side = 0; side < 2; side++) {
        const Quanta *q = side ? b : a;
        vec one[ROWS];
#define CALL(constant) tile_int4(one, q, x, sums, constant, n)
        BY_ROWS(rows, CALL)
#undef CALL
        for (int r = 0; r < rows; r++) acc[r][side] = one[r];
    }
}

/* Of each QUANTUM of inputs. */
static void sum_quanta(float *sums, const num *x, int64_t rows, int64_t inputs) {
    for (int64_t i = 0; i < rows * (inputs / QUANTUM); i++, x += QUANTUM) sums[i] = sum(load(x) + load(x + LANES));
}
