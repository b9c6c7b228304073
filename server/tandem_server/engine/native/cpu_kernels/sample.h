/* The next tokens of a step's rows on a CPU: greedy, from the whole vocabulary, or by top_k, top_p and min_p.
 *
 * The rules are those of `sampler.py`: noise of `noise.py` is added to the scores that are kept, and the largest sum
 * wins. A row is one thread's, and reads its scores two or three times.
 */
#pragma once
#include "numbers.h"

#define WIDE (4 * LANES)
#define NEAR 8.0f /* a token whose score lies so far below the best one's has a share below e^-8 of its */

typedef struct {
    const float *scores;     /* [rows, vocabulary] */
    const float *numbers;    /* [rows, 7]: temperature, top_p, min_p, and what is of no concern here */
    const int64_t *integers; /* [rows, 6]: seed, top_k, whether it is random, two more, whether torch draws it */
    const int64_t *positions;
    const uint8_t *taken;
    int64_t *tokens; /* out: 0 where not taken, not finite or drawn by torch */
    uint8_t *finite; /* out */
    int64_t *last;   /* the slots' last tokens, to be replaced where taken; or NULL */
    void *room;      /* scratch: [threads, vocabulary] candidates */
    int64_t rows, vocabulary, threads;
} Draw;

typedef struct {
    float score;
    int32_t token;
} Candidate;

/* ---- noise: see `noise.py` ---- */
static uint64_t mix64(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}
static uint64_t row_key(int64_t seed, int64_t position) {
    return mix64(mix64((uint64_t)seed + 0x9e3779b97f4a7c15u) ^ ((uint64_t)position * 0x9e3779b97f4a7c15u));
}
INLINE bits mix32(bits x) {
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}
/* Of positive numbers. Reduced to 0.7 .. 1.4 and a polynomial there, as in the Cephes library. */
INLINE vec logarithm(vec x) {
    bits b = (bits)x, low = (b & 0x007fffff) < 0x3504f3;
    ints exponent = (ints)(b >> 23) - 126 + (ints)low; /* a mask is -1 */
    vec e = __builtin_convertvector(exponent, vec), m = (vec)((b & 0x007fffff) | 0x3f000000);
    m = (vec)(((bits)(m + m) & low) | ((bits)m & ~low)) - 1.0f;
    vec p = all(7.0376836292e-2f);
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    vec square = m * m;
    return m + (p * m * square - e * 2.12194440e-4f - square * 0.5f) + e * 0.693359375f;
}
INLINE vec gumbel(uint64_t key, bits tokens) {
    bits mixed = mix32(mix32((tokens * 0x9e3779b9u) ^ (uint32_t)key) ^ (uint32_t)(key >> 32));
    vec uniform = (__builtin_convertvector((ints)(mixed >> 9), vec) + 0.5f) * 0x1p-23f;
    return -logarithm(-logarithm(uniform));
}

/* ---- rows ---- */
/* Sixteen scores, those behind the row's end minus infinity. */
INLINE vec sixteen(const float *scores, int64_t at, int64_t count) {
    if (at + LANES <= count) return loadf(scores + at);
    float padded[LANES];
    for (int i = 0; i < LANES; i++) padded[i] = at + i < count ? scores[at + i] : -INFINITY;
    return loadf(padded);
}

/* The largest score; NaN if there is one. */
static float best_of(const float *scores, int64_t count) {
    vec most = all(-INFINITY);
    ints missing = {0};
    for (int64_t i = 0; i < count; i += LANES) {
        vec v = sixteen(scores, i, count);
        missing |= v != v;
        most = larger(v, most);
    }
    for (int i = 0; i < LANES; i++)
        if (missing[i]) return NAN;
    return largest_of(most);
}

/* The first place from `at` on behind which a few scores, taken together, may have one that reaches `limit`. */
static int64_t skip(const float *scores, int64_t at, int64_t count, float limit) {
    for (; at + WIDE <= count; at += WIDE) {
        vec first = larger(loadf(scores + at), loadf(scores + at + LANES));
        vec second = larger(loadf(scores + at + 2 * LANES), loadf(scores + at + 3 * LANES));
        if (largest_of(larger(first, second)) >= limit) break;
    }
    return at;
}

static int64_t first_of(const float *scores, int64_t count, float wanted) {
    int64_t i = skip(scores, 0, count, wanted);
    while (i + 1 < count && scores[i] != wanted) i++;
    return i;
}

/* The largest of score / temperature + noise; the first one of equals. */
static int64_t of_all(const float *scores, int64_t count, float temperature, uint64_t key) {
    ints places = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, chosen = places;
    vec most = all(-INFINITY);
    for (int64_t i = 0; i < count; i += LANES) {
        ints at = places + (int32_t)i;
        vec v = sixteen(scores, i, count) / temperature + gumbel(key, (bits)at);
        ints better = v > most;
        most = (vec)(((ints)v & better) | ((ints)most & ~better));
        chosen = (at & better) | (chosen & ~better);
    }
    int lane = 0;
    for (int i = 1; i < LANES; i++)
        if (most[i] > most[lane] || (most[i] == most[lane] && chosen[i] < chosen[lane])) lane = i;
    return chosen[lane];
}

INLINE int is_better(Candidate a, Candidate b) { return a.score > b.score || (a.score == b.score && a.token < b.token); }

/* Restores the heap below `at`, whose root is the best of all, or else the worst. */
static void sift(Candidate *heap, int64_t count, int64_t at, int best_first) {
    Candidate own = heap[at];
    for (int64_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && is_better(heap[child + 1], heap[child]) == best_first) child++;
        if (is_better(heap[child], own) != best_first) break;
        heap[at] = heap[child];
    }
    heap[at] = own;
}

/* The `wanted` best ones, in no order. */
static void select_top(Candidate *heap, int64_t wanted, const float *scores, int64_t count) {
    for (int64_t i = 0; i < wanted; i++) heap[i] = (Candidate){scores[i], (int32_t)i};
    for (int64_t i = wanted / 2; i-- > 0;) sift(heap, wanted, i, 0);
    for (int64_t i = wanted; (i = skip(scores, i, count, heap[0].score)) < count;)
        for (int64_t end = i + WIDE < count ? i + WIDE : count; i < end; i++)
            if (scores[i] > heap[0].score) heap[0] = (Candidate){scores[i], (int32_t)i}, sift(heap, wanted, 0, 0);
}

/* What lies no more than `within` below the best one; gives their number. */
static int64_t select_near(Candidate *out, const float *scores, int64_t count, float best, float within) {
    int64_t found = 0;
    for (int64_t i = 0; (i = skip(scores, i, count, best - within)) < count;)
        for (int64_t end = i + WIDE < count ? i + WIDE : count; i < end; i++)
            if (scores[i] >= best - within) out[found++] = (Candidate){scores[i], (int32_t)i};
    return found;
}

static float weight_of(float score, float best, float temperature) { return expf((score - best) / temperature); }

static float mass_of(const Candidate *some, int64_t count, float best, float temperature) {
    float mass = 0;
    for (int64_t i = 0; i < count; i++) mass += weight_of(some[i].score, best, temperature);
    return mass;
}

/* Draws among the best ones: top_k of them, of these as many as make up top_p, and none below min_p of the best. */
static int64_t of_some(const float *scores, int64_t count, const float *numbers, int64_t top_k, float best, uint64_t key,
                       Candidate *room) {
    float temperature = numbers[0], top_p = numbers[1], min_p = numbers[2], total;
    int64_t found = top_k;
    if (top_k < count) {
        select_top(room, top_k, scores, count);
        total = mass_of(room, top_k, best, temperature);
    } else {
        vec masses = {0};
        for (int64_t i = 0; i < count; i += LANES)
            masses += exponential((sixteen(scores, i, count) - best) / temperature);
        total = sum(masses);
        /* Nothing is kept that lies below min_p; else what is near is mostly enough. */
        float limit = min_p > 0 ? 0.01f - logf(min_p) : INFINITY;
        found = select_near(room, scores, count, best, (limit < NEAR ? limit : NEAR) * temperature);
        if (limit > NEAR && mass_of(room, found, best, temperature) < top_p * total)
            found = select_near(room, scores, count, best, INFINITY);
    }
    for (int64_t i = found / 2; i-- > 0;) sift(room, found, i, 1);
    float before = 0, most = -INFINITY;
    int64_t chosen = room[0].token;
    for (int64_t left = found; left > 0;) {
        Candidate next = room[0];
        float weight = weight_of(next.score, best, temperature);
        if (left < found && (before >= top_p * total || weight < min_p)) break;
        bits token = {(uint32_t)next.token};
        float noisy = next.score / temperature + gumbel(key, token)[0];
        if (noisy > most) most = noisy, chosen = next.token;
        before += weight;
        room[0] = room[--left];
        sift(room, left, 0, 1);
    }
    return chosen;
}

static void draw(const Draw *d, int64_t row, Candidate *room) {
    const float *scores = d->scores + row * d->vocabulary, *numbers = d->numbers + row * 7;
    const int64_t *integers = d->integers + row * 6;
    d->tokens[row] = 0, d->finite[row] = 1;
    if (!d->taken[row]) return;
    float best = best_of(scores, d->vocabulary);
    d->finite[row] = best - best == 0;
    if (!d->finite[row] || integers[5]) return;
    uint64_t key = row_key(integers[0], d->positions[row]);
    if (!integers[2]) d->tokens[row] = first_of(scores, d->vocabulary, best);
    else if (integers[1] >= d->vocabulary && numbers[1] >= 1 && numbers[2] <= 0)
        d->tokens[row] = of_all(scores, d->vocabulary, numbers[0], key);
    else d->tokens[row] = of_some(scores, d->vocabulary, numbers, integers[1], best, key, room);
}

/* The caller's share of all rows; `room` is its own. */
static void draw_share(const Draw *d, Candidate *room, int64_t *counter) {
    for (int64_t row; (row = __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED)) < d->rows;) {
        draw(d, row, room);
        if (d->last && d->taken[row]) d->last[row] = d->tokens[row];
    }
}
