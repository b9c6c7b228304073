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
#include "linear.h"

extern int omp_get_thread_num(void);

/* `out` = x W^T + bias: in numbers or float32, or onto what `onto` holds, or silu(gate) * up of its two halves.
 * `sums`: scratch of [threads, rows * inputs / QUANTUM] for INT4. */
void tandem_linear(const Matrix *m, const num *x, float *sums, int64_t rows, int mode, void *out, const num *onto,
                   int64_t threads) {
    int64_t counter = 0;
#pragma omp parallel num_threads(threads)
    share(m, x, sums + omp_get_thread_num() * rows * (m->inputs / QUANTUM), rows, mode, out, onto, &counter, threads);
}

static void norm(num *out, const float *x, const num *weight, int64_t size, float epsilon) {
    vec squares = {0};
    for (int64_t i = 0; i < size; i += LANES) squares += loadf(x + i) * loadf(x + i);
    float factor = 1.0f / sqrtf(sum(squares) / size + epsilon);
    for (int64_t i = 0; i < size; i += LANES) store(out + i, loadf(x + i) * factor * load(weight + i));
}

static void norm_share(const Model *m, const Step *s, const num *weight, int64_t first, num *out, int64_t *counter) {
    for (int64_t row; (row = first + __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED)) < s->rows;)
        norm(out + row * m->hidden, s->x + row * m->hidden, weight, m->hidden, m->epsilon);
}

/* Each row's token through all layers; a row may be of a sequence of its own, or of one that all are of. */
void tandem_layers(const Model *m, const Step *s) {
    int64_t threads = m->threads, query = m->heads * m->size;
    memset(s->counters, 0, m->layer_count * PHASES * sizeof(int64_t));
#pragma omp parallel num_threads(threads)
    {
        float *scratch = s->attention + omp_get_thread_num() * s->attention_width;
        float *sums = s->sums + omp_get_thread_num() * s->rows * s->sums_width;
        int64_t *counter = s->counters;
        for (const Layer *l = m->layers; l < m->layers + m->layer_count; l++) {
            /* What is no more than keys and values to others need not go on behind the last attention. */
            int64_t first = l + 1 < m->layers + m->layer_count ? 0 : s->first, rows = s->rows - first;
            num *normed = s->normed + first * m->hidden, *mixed = s->mixed + first * query;
            float *x = s->x + first * m->hidden;
            norm_share(m, s, l->input_norm, 0, s->normed, counter++);
#pragma omp barrier
            share(&l->qkv, s->normed, sums, s->rows, TO_FLOATS, s->qkv, NULL, counter++, threads);
#pragma omp barrier
            turn_share(m, l, s, counter++);
#pragma omp barrier
            attend_share(m, l, s, first, counter++, scratch);
#pragma omp barrier
            share(&l->output, mixed, sums, rows, ONTO_FLOATS, x, NULL, counter++, threads);
#pragma omp barrier
            norm_share(m, s, l->feed_norm, first, s->normed, counter++);
#pragma omp barrier
            share(&l->gate_up, normed, sums, rows, GATED, s->inner, NULL, counter++, threads);
#pragma omp barrier
            share(&l->down, s->inner, sums, rows, ONTO_FLOATS, x, NULL, counter++, threads);
#pragma omp barrier
        }
    }
    for (int64_t row = s->first; row < s->rows; row++)
        norm(s->hidden + (row - s->first) * m->hidden, s->x + row * m->hidden, m->norm, m->hidden, m->epsilon);
}
