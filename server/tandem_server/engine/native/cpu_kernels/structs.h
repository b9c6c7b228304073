/* What Python hands over: `cpu_linear.py` and `cpu_decoder.py` mirror these structures. */
#pragma once
#include "numbers.h"

#define BLOCK 32   /* positions of a block of the cache; `blocks.BLOCK` */
#define CHUNK 128  /* keys whose scores are held at once; starts at a multiple of itself */
#define TILE 48    /* queries that a prompt's rows attend with at once, if a key head has no more */
#define QUANTUM 32 /* inputs that share a scale and a zero point in INT4; `fit_weights.GROUP` */
#define PHASES 8   /* of a layer */

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
    num *cache;                                                /* [2 * kv_heads, places, size]; see `attention.h` */
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
    float *attention;       /* scratch: [threads, attention_width]; see `attention.h` */
    int64_t *counters;      /* scratch: [layers, PHASES] */
    int64_t rows, first;    /* rows before `first` are of use to later tokens only */
    int64_t table_stride;
    int64_t sums_width;      /* INT4: quanta of the widest row that is multiplied */
    int64_t attention_width; /* [queries, 2 * (CHUNK + size) + 2], of TILE queries or all of a key head's */
} Step;
