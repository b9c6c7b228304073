/* A layer's product for all rows: its panels two by two, each thread's share of them, and what becomes of the sums.
 *
 * Called by `layers.c` within a parallel region. Sums go out as numbers or as float32, onto what stands there, or as
 * the gated activation of two halves.
 */
#pragma once
#include "structs.h"
#ifdef TANDEM_BF16
#include "int4.h"
#include "int8.h"
#else
#include "product.h"
#endif

enum { TO_NUMS, TO_FLOATS, ONTO_NUMS, ONTO_FLOATS, GATED };

/* Of a gate's and an up's sums. */
INLINE vec activated(const Activation *a, vec gate, vec up) {
    if (a->kind == SILU) return sigmoid_times(gate, gate) * up;
    /* With tanh: x * (1 + tanh(y)) / 2 is x / (1 + e^-2y). */
    if (a->kind == GELU) return sigmoid_times(gate, 1.59576912f * (gate + 0.044715f * gate * gate * gate)) * up;
    vec bound = all(-a->limit); /* on the left: a NaN on the right stays */
    gate = -larger(bound, -gate), up = larger(bound, -larger(bound, -up));
    return sigmoid_times(gate, gate * a->alpha) * (up + 1.0f);
}

/* Up to MANY rows times two panels of any kind. */
static void multiply(const Matrix *m, vec acc[MANY][2], const int64_t panel[2], const num *x, const float *sums,
                     int rows) {
    int64_t inputs = m->inputs, size = inputs * LANES;
    (void)sums; /* of 4 bits only */
#ifdef TANDEM_BF16
    if (m->kind == INT8) {
        const int8_t *a = (const int8_t *)m->weight + panel[0] * size, *b = (const int8_t *)m->weight + panel[1] * size;
        if (rows > ROWS) widened_int8(acc, a, b, x, inputs, rows, inputs);
        else product_int8(acc, a, b, x, inputs, rows, inputs);
        for (int side = 0; side < 2; side++) {
            vec scale = load((const num *)m->scales + panel[side] * LANES);
            for (int r = 0; r < rows; r++) acc[r][side] *= scale;
        }
        return;
    }
#endif
    for (int r = 0; r < rows; r += ROWS) {
        int n = rows - r < ROWS ? rows - r : ROWS;
#ifdef TANDEM_BF16
        if (m->kind == INT4) {
            const Quanta *q = m->weight;
            int64_t count = inputs / QUANTUM;
            product_int4(acc + r, q + panel[0] * count, q + panel[1] * count, x + r * inputs, sums + r * count, n,
                         inputs);
            continue;
        }
#endif
        const num *a = (const num *)m->weight + panel[0] * size, *b = (const num *)m->weight + panel[1] * size;
        for (int i = 0; i < n; i++) acc[r + i][0] = acc[r + i][1] = (vec){0};
        product(acc + r, a, b, x + r * inputs, inputs, n, inputs);
    }
}

/* Panels `2 * task` and the one behind it (GATED: a gate's and its up's), for all rows. `more`: what ONTO_NUMS adds to,
 * or the Activation. */
static void panels(const Matrix *m, const num *x, const float *sums, int64_t rows, int64_t task, int mode, void *out,
                   const void *more) {
    int64_t count = m->outputs / LANES, half = count / 2;
    int64_t first = mode == GATED ? task : 2 * task, second = mode == GATED ? task + half : first + 1;
    int alone = second >= count; /* an odd last panel is computed twice, and kept once */
    const int64_t both[2] = {first, alone ? first : second};
    vec bias_a = m->bias ? load(m->bias + both[0] * LANES) : (vec){0};
    vec bias_b = m->bias ? load(m->bias + both[1] * LANES) : (vec){0};
    int64_t width = mode == GATED ? m->outputs / 2 : m->outputs;
    for (int64_t row = 0; row < rows; row += MANY) {
        int n = rows - row < MANY ? (int)(rows - row) : MANY;
        vec acc[MANY][2];
        multiply(m, acc, both, x + row * m->inputs, sums + row * (m->inputs / QUANTUM), n);
        for (int r = 0; r < n; r++) {
            vec left = acc[r][0] + bias_a, right = acc[r][1] + bias_b;
            int64_t place = (row + r) * width + first * LANES;
            if (mode == GATED) {
                store((num *)out + place, activated(more, left, right));
                continue;
            }
            for (int side = 0; side < (alone ? 1 : 2); side++) {
                vec v = side ? right : left;
                int64_t at = place + side * LANES;
                if (mode == TO_NUMS) store((num *)out + at, v);
                else if (mode == ONTO_NUMS) store((num *)out + at, v + load((const num *)more + at));
                else if (mode == TO_FLOATS) storef((float *)out + at, v);
                else storef((float *)out + at, v + loadf((float *)out + at));
            }
        }
    }
}

static int64_t tasks_of(const Matrix *m, int mode) {
    int64_t count = m->outputs / LANES;
    return mode == GATED ? count / 2 : (count + 1) / 2;
}

/* The caller's share of all panels; others take theirs from the same counter. `sums` is scratch of the caller's own. */
static void share(const Matrix *m, const num *x, float *sums, int64_t rows, int mode, void *out, const void *more,
                  int64_t *counter, int64_t threads) {
#ifdef TANDEM_BF16
    if (m->kind == INT4) sum_quanta(sums, x, rows, m->inputs);
#endif
    int64_t tasks = tasks_of(m, mode), at_once = tasks / (threads * 8);
    if (at_once < 1) at_once = 1;
    for (;;) {
        int64_t task = __atomic_fetch_add(counter, at_once, __ATOMIC_RELAXED);
        if (task >= tasks) return;
        for (int64_t end = task + at_once < tasks ? task + at_once : tasks; task < end; task++)
            panels(m, x, sums, rows, task, mode, out, more);
    }
}
