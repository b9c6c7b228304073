/* A block's mixture of experts: each row goes through those that its router scores highest, weighted by their shares.
 *
 * Called by `layers.c` within a parallel region. Rows are gathered expert by expert, so that each expert's weights are
 * read once; a row's sum has its experts in the order of their scores, whoever else is sent to them.
 */
#pragma once
#include "linear.h"

/* Behind each other in `Step.experts`. */
typedef struct {
    int32_t *chosen; /* [rows, chosen] */
    int32_t *places; /* [rows, chosen], row of `gathered` */
    int32_t *starts; /* [experts + 1], of each expert's rows */
    int32_t *active; /* how many experts have rows, then which */
} Routing;

static Routing routing_of(const Model *m, const Layer *l, const Step *s) {
    int32_t *places = s->experts + s->rows * m->chosen, *starts = places + s->rows * m->chosen;
    return (Routing){s->experts, places, starts, starts + l->experts + 1};
}

/* One row's experts, the first of equals first, and their shares: `scores` are used up. */
static void choose(const Model *m, int64_t count, float *scores, int32_t *chosen, float *weights) {
    float most = -INFINITY, total = 0, kept = 0;
    for (int64_t e = 0; e < count; e++) most = scores[e] > most ? scores[e] : most;
    for (int64_t e = 0; e < count; e++) total += scores[e] = expf(scores[e] - most);
    for (int64_t i = 0; i < m->chosen; i++) {
        int64_t best = 0;
        for (int64_t e = 1; e < count; e++) best = scores[e] > scores[best] ? e : best;
        chosen[i] = best, weights[i] = scores[best], kept += scores[best];
        scores[best] = -1;
    }
    for (int64_t i = 0; i < m->chosen; i++) weights[i] /= m->normalised ? kept : total;
}

/* By one thread: who goes where, and the rows of each expert behind each other. */
static void gather(const Model *m, const Layer *l, const Step *s, const num *normed, int64_t rows) {
    Routing r = routing_of(m, l, s);
    int64_t pairs = rows * m->chosen, width = l->router.outputs;
    memset(r.starts, 0, (2 * l->experts + 2) * sizeof(int32_t));
    for (int64_t row = 0; row < rows; row++)
        choose(m, l->experts, s->routes + row * width, r.chosen + row * m->chosen, s->weights + row * m->chosen);
    for (int64_t pair = 0; pair < pairs; pair++) r.starts[r.chosen[pair] + 1]++;
    for (int64_t e = 0; e < l->experts; e++) {
        if (r.starts[e + 1]) r.active[++*r.active] = e;
        r.starts[e + 1] += r.starts[e];
    }
    for (int64_t pair = 0; pair < pairs; pair++) { /* starts move on to the next expert's, and come back below */
        r.places[pair] = r.starts[r.chosen[pair]]++;
        memcpy(s->gathered + r.places[pair] * m->hidden, normed + pair / m->chosen * m->hidden, m->hidden * sizeof(num));
    }
    memmove(r.starts + 1, r.starts, l->experts * sizeof(int32_t));
    r.starts[0] = 0;
}

/* The caller's share of one matrix of all experts that have rows. */
static void expert_share(const Model *m, const Layer *l, const Step *s, int is_down, float *sums, int64_t *counter) {
    Routing r = routing_of(m, l, s);
    const Matrix *first = is_down ? &l->feeds->down : &l->feeds->gate_up;
    const num *x = is_down ? s->inner : s->gathered;
    int mode = is_down ? TO_FLOATS : GATED;
    int64_t tasks = tasks_of(first, mode), count = *r.active * tasks, quanta = first->inputs / QUANTUM;
#ifdef TANDEM_BF16
    if (first->kind == INT4) sum_quanta(sums, x, r.starts[l->experts], first->inputs);
#endif
    for (int64_t item; (item = __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED)) < count;) {
        int64_t e = r.active[1 + item / tasks], from = r.starts[e], rows = r.starts[e + 1] - from;
        const Matrix *own = is_down ? &l->feeds[e].down : &l->feeds[e].gate_up;
        void *out = is_down ? (void *)(s->blocked + from * m->hidden) : s->inner + from * (own->outputs / 2);
        panels(own, x + from * own->inputs, sums + from * quanta, rows, item % tasks, mode, out, &m->activation);
    }
}

/* What a row's experts gave, onto `x`. */
static void combine(const Model *m, const Layer *l, const Step *s, float *x, int64_t row) {
    Routing r = routing_of(m, l, s);
    for (int64_t i = 0; i < m->chosen; i++) {
        const float *part = s->blocked + r.places[row * m->chosen + i] * m->hidden;
        float weight = s->weights[row * m->chosen + i];
        for (int64_t j = 0; j < m->hidden; j += LANES) storef(x + j, loadf(x + j) + loadf(part + j) * weight);
    }
}
