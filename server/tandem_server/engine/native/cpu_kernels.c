/* All layers of a dense decoder on a CPU, for a decode step or a prompt's chunk, and the product by one matrix alone.
 *
 * Compiled at load by `cpu_compiler.py` for the machine at hand, for bfloat16 (TANDEM_BF16) or for float32; called by
 * `cpu_linear.py` and `cpu_decoder.py`, whose structures mirror those below. A whole step is one parallel region:
 * threads take a phase's tasks from a counter, and wait for each other between phases.
 *
 * Each output of a row is summed in the order of its inputs by one accumulator, and each row attends by itself: what a
 * row gives depends on no other row, whatever their number. Sums are float32; between layers x stays float32.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#define LANES 16
#define ROWS 8     /* rows of a tile of the product: with two panels, 16 accumulators */
#define GROUP 32   /* inputs whose weights are widened at once */
#define CHUNK 128  /* keys whose scores are held at once */
#define QUANTUM 32 /* inputs that share a scale and a zero point in INT4; `fit_weights.GROUP` */
#define BLOCK 32   /* positions of a block of the cache; `blocks.BLOCK` */
#define AHEAD 1024 /* bytes that the weights are fetched before they are needed */
#define PHASES 8   /* of a layer */
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef uint32_t bits __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

/* ---- numbers as they lie in memory ---- */
#ifdef TANDEM_BF16
typedef uint16_t num;
typedef uint16_t nums __attribute__((vector_size(2 * LANES)));
#define PAIR 2 /* inputs that lie side by side in a panel */

INLINE vec load(const num *p) {
    nums n;
    memcpy(&n, p, sizeof n);
    return (vec)(__builtin_convertvector(n, bits) << 16);
}
INLINE float widen(num n) {
    union { uint32_t b; float f; } both = {(uint32_t)n << 16};
    return both.f;
}
INLINE void store(num *p, vec v) {
    bits b = (bits)v, rounded = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
    bits nan = (bits)(v != v);
    nums n = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), nums);
    memcpy(p, &n, sizeof n);
}
#else
typedef float num;
#define PAIR 1
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
INLINE float sum(vec v) {
    float s = 0;
    v += __builtin_shuffle(v, (ints){8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7});
    v += __builtin_shuffle(v, (ints){4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11});
    for (int i = 0; i < 4; i++) s += v[i];
    return s;
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

/* ---- what Python hands over ---- */
enum { NUMS, INT8, INT4 };

typedef struct {
    const void *weight; /* panels of LANES outputs: [outputs / LANES][inputs / PAIR][LANES][PAIR], or Quanta */
    const num *bias;    /* [outputs], or NULL */
    const void *scales; /* INT8: num [outputs] */
    int64_t inputs, outputs, kind;
} Matrix;

typedef struct {
    Matrix qkv, output, gate_up, down;
    const num *input_norm, *feed_norm, *query_norm, *key_norm; /* the last two may be NULL */
    const num *cos, *sin;                                      /* [positions, rotated] */
    num *cache;                                                /* [2 * kv_heads, places, size] */
    int64_t window;                                            /* 0: none */
} Layer;

typedef struct {
    const Layer *layers;
    const num *norm;
    int64_t layer_count, hidden, intermediate, heads, kv_heads, size, rotated, places, threads;
    float epsilon, scale;
} Model;

typedef struct {
    const int64_t *turned;  /* [rows], row of the position tables */
    const int32_t *lengths; /* [rows], keys to attend to with the new one, 0: takes no part */
    const int32_t *tables;  /* blocks of each row's sequence, `table_stride` apart; 0: all rows are of one */
    float *x;               /* [rows, hidden]: embeddings, then the residual stream */
    num *hidden;            /* out: normalised, [rows - first, hidden] */
    float *qkv;             /* scratch: [rows, qkv width] */
    num *mixed, *inner;     /* scratch: [rows, heads * size], [rows, intermediate] */
    num *normed;            /* scratch: [rows, hidden] */
    float *sums;            /* scratch: [threads, rows * sums_width] */
    float *scores;          /* scratch: [threads, heads * (CHUNK + size + 2)] */
    int64_t *counters;      /* scratch: [layers, PHASES] */
    int64_t rows, first;    /* rows before `first` are of use to later tokens only */
    int64_t table_stride;
    int64_t sums_width; /* INT4: quanta of the widest row that is multiplied */
} Step;

/* ---- the product ---- */
#ifdef TANDEM_BF16
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
INLINE vec multiply_add(vec acc, const num *w, const num *x) { return add_times(acc, loadf(w), *x); }
#endif

/* `rows` rows against two panels at once; unrolled for each constant number of rows. */
INLINE void tile(vec acc[ROWS][2], const num *a, const num *b, const num *x, int64_t stride, int rows, int64_t inputs) {
    vec sums[ROWS][2];
    for (int r = 0; r < rows; r++) sums[r][0] = sums[r][1] = (vec){0};
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

static void product(vec acc[ROWS][2], const num *a, const num *b, const num *x, int64_t stride, int rows, int64_t n) {
    switch (rows) {
        case 1: tile(acc, a, b, x, stride, 1, n); break;
        case 2: tile(acc, a, b, x, stride, 2, n); break;
        case 3: tile(acc, a, b, x, stride, 3, n); break;
        case 4: tile(acc, a, b, x, stride, 4, n); break;
        case 5: tile(acc, a, b, x, stride, 5, n); break;
        case 6: tile(acc, a, b, x, stride, 6, n); break;
        case 7: tile(acc, a, b, x, stride, 7, n); break;
        default: tile(acc, a, b, x, stride, 8, n);
    }
}

#ifdef TANDEM_BF16
/* `pairs` pairs of inputs of one panel: whole numbers, which bfloat16 holds exactly. */
INLINE void widen_int8(num *out, const int8_t *p, int64_t pairs) {
    for (int64_t k = 0; k < pairs; k++, p += 2 * LANES, out += 2 * LANES) {
        nums n;
        memcpy(&n, p, sizeof n);
        __builtin_prefetch(p + AHEAD);
        ints both = (ints)__builtin_convertvector(n, bits);
        bits even = (bits)__builtin_convertvector((both << 24) >> 24, vec);
        bits odd = (bits)__builtin_convertvector((both << 16) >> 24, vec);
        even = even >> 16 | odd;
        memcpy(out, &even, sizeof even);
    }
}

/* As `product`, of narrow weights: a group of inputs at a time is widened into the nearest cache, then multiplied. */
static void narrow(vec acc[ROWS][2], const Matrix *m, const int64_t panel[2], const num *x, int rows) {
    num wide[2][GROUP * LANES] __attribute__((aligned(64)));
    for (int r = 0; r < rows; r++) acc[r][0] = acc[r][1] = (vec){0};
    for (int64_t k = 0; k < m->inputs; k += GROUP) {
        int64_t count = m->inputs - k < GROUP ? m->inputs - k : GROUP;
        for (int side = 0; side < 2; side++) {
            int64_t place = (panel[side] * m->inputs + k) * LANES;
            widen_int8(wide[side], (const int8_t *)m->weight + place, count / 2);
        }
        vec sums[ROWS][2];
        product(sums, wide[0], wide[1], x + k, m->inputs, rows, count);
        for (int r = 0; r < rows; r++) acc[r][0] += sums[r][0], acc[r][1] += sums[r][1];
    }
    for (int r = 0; r < rows; r++)
        for (int side = 0; side < 2; side++)
            acc[r][side] *= load((const num *)m->scales + panel[side] * LANES);
}

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

static void product_int4(vec acc[ROWS][2], const Matrix *m, const int64_t panel[2], const num *x, const float *sums,
                         int rows) {
    int64_t n = m->inputs / QUANTUM;
    for (int side = 0; side < 2; side++) {
        const Quanta *q = (const Quanta *)m->weight + panel[side] * n;
        vec one[ROWS];
        switch (rows) {
            case 1: tile_int4(one, q, x, sums, 1, n); break;
            case 2: tile_int4(one, q, x, sums, 2, n); break;
            case 3: tile_int4(one, q, x, sums, 3, n); break;
            case 4: tile_int4(one, q, x, sums, 4, n); break;
            case 5: tile_int4(one, q, x, sums, 5, n); break;
            case 6: tile_int4(one, q, x, sums, 6, n); break;
            case 7: tile_int4(one, q, x, sums, 7, n); break;
            default: tile_int4(one, q, x, sums, 8, n);
        }
        for (int r = 0; r < rows; r++) acc[r][side] = one[r];
    }
}

/* Of each QUANTUM of inputs. */
static void sum_quanta(float *sums, const num *x, int64_t rows, int64_t inputs) {
    for (int64_t i = 0; i < rows * (inputs / QUANTUM); i++, x += QUANTUM) sums[i] = sum(load(x) + load(x + LANES));
}
#endif

enum { TO_NUMS, TO_FLOATS, ONTO_NUMS, ONTO_FLOATS, GATED };

INLINE vec silu(vec x) {
    ints gone = x < -87.0f; /* where the exponential is capped, and the result as good as 0 */
    return (vec)((ints)(x / (1.0f + exponential(-x))) & ~gone);
}

/* Panels `2 * task` and the one behind it (GATED: a gate's and its up's), for all rows. */
static void panels(const Matrix *m, const num *x, const float *sums, int64_t rows, int64_t task, int mode, void *out,
                   const num *onto) {
    int64_t count = m->outputs / LANES, size = m->inputs * LANES, half = count / 2;
    int64_t first = mode == GATED ? task : 2 * task, second = mode == GATED ? task + half : first + 1;
    int alone = second >= count; /* an odd last panel is computed twice, and kept once */
    if (alone) second = first;
    const num *a = (const num *)m->weight + first * size, *b = (const num *)m->weight + second * size;
    vec bias_a = m->bias ? load(m->bias + first * LANES) : (vec){0};
    vec bias_b = m->bias ? load(m->bias + second * LANES) : (vec){0};
    int64_t width = mode == GATED ? m->outputs / 2 : m->outputs;
    for (int64_t row = 0; row < rows; row += ROWS) {
        int n = rows - row < ROWS ? (int)(rows - row) : ROWS;
        vec acc[ROWS][2];
#ifdef TANDEM_BF16
        const int64_t both[2] = {first, second};
        if (m->kind == INT8) narrow(acc, m, both, x + row * m->inputs, n);
        else if (m->kind == INT4)
            product_int4(acc, m, both, x + row * m->inputs, sums + row * (m->inputs / QUANTUM), n);
        else
#endif
            product(acc, a, b, x + row * m->inputs, m->inputs, n, m->inputs);
        for (int r = 0; r < n; r++) {
            vec left = acc[r][0] + bias_a, right = acc[r][1] + bias_b;
            int64_t place = (row + r) * width + first * LANES;
            if (mode == GATED) {
                store((num *)out + place, silu(left) * right);
                continue;
            }
            for (int side = 0; side < (alone ? 1 : 2); side++) {
                vec v = side ? right : left;
                int64_t at = place + side * LANES;
                if (mode == TO_NUMS) store((num *)out + at, v);
                else if (mode == ONTO_NUMS) store((num *)out + at, v + load(onto + at));
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
static void share(const Matrix *m, const num *x, float *sums, int64_t rows, int mode, void *out, const num *onto,
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
            panels(m, x, sums, rows, task, mode, out, onto);
    }
}

extern int omp_get_thread_num(void);

/* `out` = x W^T + bias: in numbers or float32, or onto what `onto` holds, or silu(gate) * up of its two halves.
 * `sums`: scratch of [threads, rows * inputs / QUANTUM] for INT4. */
void tandem_linear(const Matrix *m, const num *x, float *sums, int64_t rows, int mode, void *out, const num *onto,
                   int64_t threads) {
    int64_t counter = 0;
#pragma omp parallel num_threads(threads)
    share(m, x, sums + omp_get_thread_num() * rows * (m->inputs / QUANTUM), rows, mode, out, onto, &counter, threads);
}

/* ---- the rest of a layer ---- */
static void norm(num *out, const float *x, const num *weight, int64_t size, float epsilon) {
    vec squares = {0};
    for (int64_t i = 0; i < size; i += LANES) squares += loadf(x + i) * loadf(x + i);
    float factor = 1.0f / sqrtf(sum(squares) / size + epsilon);
    for (int64_t i = 0; i < size; i += LANES) store(out + i, loadf(x + i) * factor * load(weight + i));
}

static void norm_in_place(float *x, const num *weight, int64_t size, float epsilon) {
    vec squares = {0};
    for (int64_t i = 0; i < size; i += LANES) squares += loadf(x + i) * loadf(x + i);
    float factor = 1.0f / sqrtf(sum(squares) / size + epsilon);
    for (int64_t i = 0; i < size; i += LANES) storef(x + i, loadf(x + i) * factor * load(weight + i));
}

/* Turns pairs of the halves' kind; the first half's minus is in `sin`. */
static void turn(float *x, const num *cos, const num *sin, int64_t rotated) {
    int64_t half = rotated / 2;
    for (int64_t i = 0; i < half; i++) {
        float a = x[i], b = x[half + i];
        x[i] = a * widen(cos[i]) + b * widen(sin[i]);
        x[half + i] = b * widen(cos[half + i]) + a * widen(sin[half + i]);
    }
}

static int64_t place_of(const int32_t *table, int64_t position) {
    return (int64_t)table[position / BLOCK] * BLOCK + position % BLOCK;
}

/* Norms and turns a row's queries and keys of one key head, scales the queries, writes the rest to the cache. */
static void turn_and_write(const Model *m, const Layer *l, const Step *s, int64_t row, int64_t head) {
    int64_t group = m->heads / m->kv_heads, size = m->size;
    float *mine = s->qkv + row * (m->heads + 2 * m->kv_heads) * size;
    float *query = mine + head * group * size, *key = mine + (m->heads + head) * size;
    float *value = mine + (m->heads + m->kv_heads + head) * size;
    const num *cos = l->cos + s->turned[row] * m->rotated, *sin = l->sin + s->turned[row] * m->rotated;
    for (float *q = query; q < query + group * size; q += size) {
        if (l->query_norm) norm_in_place(q, l->query_norm, size, m->epsilon);
        turn(q, cos, sin, m->rotated);
        for (int64_t i = 0; i < size; i += LANES) storef(q + i, loadf(q + i) * m->scale);
    }
    if (l->key_norm) norm_in_place(key, l->key_norm, size, m->epsilon);
    turn(key, cos, sin, m->rotated);
    num *keys = l->cache + (head * m->places + place_of(s->tables + row * s->table_stride, s->lengths[row] - 1)) * size;
    num *values = keys + m->kv_heads * m->places * size;
    for (int64_t i = 0; i < size; i += LANES) store(keys + i, loadf(key + i)), store(values + i, loadf(value + i));
}

/* A row's queries of one key head over all keys that the row sees; shares are scaled anew as larger scores come. */
INLINE void attend(const Model *m, const Layer *l, const Step *s, int64_t row, int64_t head, int64_t size,
                   float *scratch) {
    int64_t group = m->heads / m->kv_heads, length = s->lengths[row];
    const int32_t *table = s->tables + row * s->table_stride;
    const float *query = s->qkv + (row * (m->heads + 2 * m->kv_heads) + head * group) * size;
    float *scores = scratch, *mixed = scores + group * CHUNK, *most = mixed + group * size, *total = most + group;
    const num *keys = l->cache + head * m->places * size, *values = keys + m->kv_heads * m->places * size;
    for (int64_t g = 0; g < group; g++) most[g] = -INFINITY, total[g] = 0;
    memset(mixed, 0, group * size * sizeof(float));

    int64_t begin = l->window && length > l->window ? length - l->window : 0;
    for (int64_t from = begin; from < length; from += CHUNK) {
        int64_t count = length - from < CHUNK ? length - from : CHUNK;
        for (int64_t j = 0; j < count; j++) {
            const num *k = keys + place_of(table, from + j) * size;
            for (int64_t g = 0; g < group; g++) {
                vec dot = {0};
                for (int64_t i = 0; i < size; i += LANES) dot += loadf(query + g * size + i) * load(k + i);
                scores[g * CHUNK + j] = sum(dot);
            }
        }
        for (int64_t g = 0; g < group; g++) {
            float *own = scores + g * CHUNK, largest = most[g];
            for (int64_t j = count; j % LANES; j++) own[j] = -INFINITY;
            for (int64_t j = 0; j < count; j++) largest = own[j] > largest || own[j] != own[j] ? own[j] : largest;
            float faded = expf(most[g] - largest);
            vec shares = {0};
            for (int64_t j = 0; j < count; j += LANES) {
                vec e = exponential(loadf(own + j) - largest);
                storef(own + j, e);
                shares += e;
            }
            total[g] = total[g] * faded + sum(shares), most[g] = largest;
            if (faded != 1.0f)
                for (int64_t i = 0; i < size; i += LANES)
                    storef(mixed + g * size + i, loadf(mixed + g * size + i) * faded);
        }
        for (int64_t g = 0; g < group; g++) {
            vec sums[16];
            for (int64_t i = 0; i < size / LANES; i++) sums[i] = loadf(mixed + g * size + i * LANES);
            for (int64_t j = 0; j < count; j++) {
                const num *v = values + place_of(table, from + j) * size;
                for (int64_t i = 0; i < size / LANES; i++) sums[i] += scores[g * CHUNK + j] * load(v + i * LANES);
            }
            for (int64_t i = 0; i < size / LANES; i++) storef(mixed + g * size + i * LANES, sums[i]);
        }
    }
    for (int64_t g = 0; g < group; g++)
        for (int64_t i = 0; i < size; i += LANES)
            store(s->mixed + (row * m->heads + head * group + g) * size + i, loadf(mixed + g * size + i) / total[g]);
}

/* The head sizes that are common, as constants. */
static void attend_sized(const Model *m, const Layer *l, const Step *s, int64_t row, int64_t head, float *scratch) {
    if (m->size == 64) attend(m, l, s, row, head, 64, scratch);
    else if (m->size == 128) attend(m, l, s, row, head, 128, scratch);
    else attend(m, l, s, row, head, m->size, scratch);
}

static void turn_share(const Model *m, const Layer *l, const Step *s, int64_t *counter) {
    for (int64_t row; (row = __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED)) < s->rows;)
        for (int64_t head = 0; s->lengths[row] && head < m->kv_heads; head++) turn_and_write(m, l, s, row, head);
}

static void attend_share(const Model *m, const Layer *l, const Step *s, int64_t first, int64_t *counter,
                         float *scratch) {
    int64_t items = s->rows * m->kv_heads, width = m->heads / m->kv_heads * m->size;
    for (int64_t item; (item = first * m->kv_heads + __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED)) < items;) {
        int64_t row = item / m->kv_heads, head = item % m->kv_heads;
        if (s->lengths[row]) attend_sized(m, l, s, row, head, scratch);
        else memset(s->mixed + row * m->heads * m->size + head * width, 0, width * sizeof(num));
    }
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
        float *scratch = s->scores + omp_get_thread_num() * m->heads * (CHUNK + m->size + 2);
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
