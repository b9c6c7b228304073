/* All layers of a dense decoder on a CPU, for a decode step or a prompt's chunk, and the product by one matrix alone.
 *
 * Compiled at load by `cpu_compiler.py` for the machine at hand, for bfloat16 (TANDEM_BF16) or for float32; called by
 * `cpu_linear.py` and `cpu_decoder.py`. A whole step is one parallel region: threads take a phase's tasks from a
 * counter, and wait for each other between phases.
 *
 * Each output of a row is summed in the order of its inputs by one accumulator, and each row attends by itself: what a
 * row gives depends on no other row, whatever their number. Sums are float32; between layers x stays float32.
 */
#include "attention.h"
#include "experts.h"
#include "sample.h"
#include <time.h>

extern int omp_get_thread_num(void);

/* `out` = x W^T + bias: in numbers or float32, or onto what `onto` holds, or silu(gate) * up of its two halves.
 * `sums`: scratch of [threads, rows * inputs / QUANTUM] for INT4. */
void tandem_linear(const Matrix *m, const num *x, float *sums, int64_t rows, int mode, void *out, const num *onto,
                   int64_t threads) {
    static const Activation silu = {SILU, 0, 0};
    const void *more = mode == GATED ? (const void *)&silu : onto;
    int64_t counter = 0;
#pragma omp parallel num_threads(threads)
    share(m, x, sums + omp_get_thread_num() * rows * (m->inputs / QUANTUM), rows, mode, out, more, &counter, threads);
}

/* The rows from `first` on, normalised; before that, what the block before gave is added, normalised by `behind`. */
static void norm_share(const Model *m, const Step *s, const float *behind, const float *weight, int64_t first, num *out,
                       int64_t *counter) {
    for (int64_t row; (row = first + __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED)) < s->rows;) {
        float *x = s->x + row * m->hidden, *given = s->blocked + row * m->hidden;
        if (behind) {
            float factor = norm_factor(given, m->hidden, m->epsilon);
            for (int64_t i = 0; i < m->hidden; i += LANES)
                storef(x + i, loadf(x + i) + loadf(given + i) * factor * loadf(behind + i));
        }
        float factor = norm_factor(x, m->hidden, m->epsilon);
        num *own = out + (row - first) * m->hidden;
        for (int64_t i = 0; i < m->hidden; i += LANES) store(own + i, loadf(x + i) * factor * loadf(weight + i));
    }
}

/* The rows from `first` on through a block's feed-forward: onto x, or to `blocked` where a norm stands behind it. */
static void feed_share(const Model *m, const Layer *l, const Step *s, int64_t first, float *sums, int64_t *counter) {
    int64_t rows = s->rows - first;
    float *x = s->x + first * m->hidden, *blocked = s->blocked + first * m->hidden;
    if (!l->experts) {
        share(&l->feeds->gate_up, s->normed, sums, rows, GATED, s->inner, &m->activation, counter, m->threads);
#pragma omp barrier
        if (l->feed_output_norm)
            share(&l->feeds->down, s->inner, sums, rows, TO_FLOATS, blocked, NULL, counter + 1, m->threads);
        else share(&l->feeds->down, s->inner, sums, rows, ONTO_FLOATS, x, NULL, counter + 1, m->threads);
        return;
    }
    share(&l->router, s->normed, sums, rows, TO_FLOATS, s->routes, NULL, counter, m->threads);
#pragma omp barrier
#pragma omp single
    gather(m, l, s, s->normed, rows);
    expert_share(m, l, s, 0, sums, counter + 1);
#pragma omp barrier
    expert_share(m, l, s, 1, sums, counter + 2);
#pragma omp barrier
    for (int64_t row; (row = __atomic_fetch_add(counter + 3, 1, __ATOMIC_RELAXED)) < rows;)
        combine(m, l, s, x + row * m->hidden, row);
}

/* Each row's token through all layers; a row may be of a sequence of its own, or of one that all are of. */
void tandem_layers(const Model *m, const Step *s) {
    int64_t threads = m->threads, query = m->heads * m->size;
    memset(s->counters, 0, (m->layer_count * PHASES + 1) * sizeof(int64_t));
#pragma omp parallel num_threads(threads)
    {
        float *scratch = s->attention + omp_get_thread_num() * s->attention_width;
        float *sums = s->sums + omp_get_thread_num() * s->rows * s->sums_width;
        int64_t *counter = s->counters;
        const float *behind = NULL;
        for (const Layer *l = m->layers; l < m->layers + m->layer_count; l++, counter += PHASES) {
            /* What is no more than keys and values to others need not go on behind the last attention. */
            int64_t first = l + 1 < m->layers + m->layer_count ? 0 : s->first, rows = s->rows - first;
            const num *mixed = s->mixed + first * query;
            float *x = s->x + first * m->hidden, *blocked = s->blocked + first * m->hidden;
            norm_share(m, s, behind, l->input_norm, 0, s->normed, counter);
#pragma omp barrier
            share(&l->qkv, s->normed, sums, s->rows, TO_FLOATS, s->qkv, NULL, counter + 1, threads);
#pragma omp barrier
            turn_share(m, l, s, counter + 2);
#pragma omp barrier
            attend_share(m, l, s, first, counter + 3, scratch);
#pragma omp barrier
            if (l->output_norm) share(&l->output, mixed, sums, rows, TO_FLOATS, blocked, NULL, counter + 4, threads);
            else share(&l->output, mixed, sums, rows, ONTO_FLOATS, x, NULL, counter + 4, threads);
#pragma omp barrier
            norm_share(m, s, l->output_norm, l->feed_norm, first, s->normed, counter + 5);
#pragma omp barrier
            feed_share(m, l, s, first, sums, counter + 6);
            behind = l->feed_output_norm;
#pragma omp barrier
        }
        norm_share(m, s, behind, m->norm, s->first, s->hidden, counter);
    }
}

/* The caller's share of rows whose numbers are squeezed into plus and minus `cap`. */
static void cap_share(float *rows, int64_t count, int64_t width, float cap, int64_t *counter) {
    for (int64_t row; (row = __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED)) < count;)
        for (float *x = rows + row * width, *end = x + width; x < end; x += LANES) storef(x, cap * tangent(loadf(x) / cap));
}

/* The same for who calls it alone; `width` is a multiple of LANES. */
void tandem_cap(float *rows, int64_t count, int64_t width, float cap, int64_t threads) {
    int64_t counter = 0;
#pragma omp parallel num_threads(threads)
    cap_share(rows, count, width, cap, &counter);
}

/* A whole decode step: what `tandem_layers` does for the tokens that the slots drew last, then the head, then a draw. */
void tandem_step(const Model *m, const Step *s, Ends *e, const Draw *d) {
    for (int64_t row = 0; row < s->rows; row++) {
        const num *own = e->embedding + (s->lengths[row] && d->last[row] > 0 ? d->last[row] : 0) * m->hidden;
        for (int64_t i = 0; i < m->hidden; i += LANES) storef(s->x + row * m->hidden + i, load(own + i));
        if (!e->embedding_scale) continue;
        num rounded[LANES]; /* to the number format, as the checkpoints were trained */
        for (int64_t i = 0; i < m->hidden; i += LANES) {
            float *x = s->x + row * m->hidden + i;
            store(rounded, loadf(x) * e->embedding_scale), storef(x, load(rounded));
        }
    }
    tandem_layers(m, s);
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    e->headed = now.tv_sec + 1e-9 * now.tv_nsec;
    int64_t head = 0, capped = 0, drawn = 0;
#pragma omp parallel num_threads(m->threads)
    {
        float *sums = s->sums + omp_get_thread_num() * s->rows * s->sums_width;
        share(&e->head, s->hidden, sums, s->rows, TO_FLOATS, e->logits, NULL, &head, m->threads);
#pragma omp barrier
        if (e->logit_cap) {
            cap_share(e->logits, s->rows, d->vocabulary, e->logit_cap, &capped);
#pragma omp barrier
        }
        draw_share(d, (Candidate *)d->room + omp_get_thread_num() * d->vocabulary, &drawn);
    }
}
