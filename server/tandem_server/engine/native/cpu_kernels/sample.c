/* The sampler alone, a library of its own for models whose steps torch computes: called by `cpu_draw.py`. */
#include "sample.h"

extern int omp_get_thread_num(void);

void tandem_draw(const Draw *d) {
    int64_t counter = 0, threads = d->rows < d->threads ? d->rows : d->threads;
#pragma omp parallel num_threads(threads)
    draw_share(d, (Candidate *)d->room + omp_get_thread_num() * d->vocabulary, &counter);
}
