/* What Python hands over: `cpu_linear.py` and `cpu_decoder.py` mirror these structures. */
#pragma once
#include "numbers.h"

#define BLOCK 32   /* positions of a block of the cache; `blocks.BLOCK` */
#define CHUNK 128  /* keys whose scores are held at once; starts at a multiple of itself */
#define TILE 48    /* queries that a prompt's rows attend with at once, if a key head has no more */
#define QUANTUM 32 /* inputs that share a scale and a zero point in INT4; `fit_weights.GROUP` */
#define PHASES 12  /* of a layer */

enum { NUMS, INT8, INT4 };

typedef struct {
    const void *weight; /* panels of LANES outputs: [outputs / LANES][inputs / PAIR][LANES][PAIR], or Quanta */
    const num *bias;    /* [outputs], or NULL */
    const void *scales; /* INT8: num [outputs] */
    int64_t inputs, outputs, kind;
} Matrix;

typedef struct {
    Matrix gate_up, down;
} Feed;

typedef struct {
    Matrix qkv, output, router;
    const Feed *feeds;                          /* the only one, or `experts` of them */
    const float *input_norm, *feed_norm;        /* [hidden] */
    const float *output_norm, *feed_output_norm; /* of what a block gives, [hidden], or NULL */
    const float *query_norm, *key_norm;         /* [size], or NULL */
    const float *sinks;                         /* [heads], scores that stand for no value, or NULL */
    const num *cos, *sin;                       /* [positions, rotated] */
    num *cache;                                 /* [2 * kv_heads, places, size]; see `attention.h` */
    int64_t window, experts;                    /* 0: none */
} Layer;

enum { SILU, GELU, CLAMPED };

typedef struct {
    int64_t kind;
    float limit, alpha; /* CLAMPED */
} Activation;

typedef struct {
    const Layer *layers;
    const float *norm;
    int64_t layer_count, hidden, heads, kv_heads, size, rotated, places, threads;
    int64_t chosen, normalised; /* experts of a row; whether their shares are made to add up to 1 */
    Activation activation;
    float epsilon, scale, cap; /* cap 0: scores have none */
} Model;

typedef struct {
    const int64_t *turned;  /* [rows], row of the position tables */
    const int32_t *lengths; /* [rows], keys to attend to with the new one, 0: takes no part */
    const int32_t *tables;  /* blocks of each row's sequence, `table_stride` apart; 0: all rows are of one */
    float *x;               /* [rows, hidden]: embeddings, then the residual stream */
    num *hidden;            /* out: normalised, [rows - first, hidden] */
    float *qkv;             /* scratch: [rows, qkv width] */
    num *mixed, *inner;     /* scratch: [rows, heads * size], [rows * chosen, intermediate] */
    num *normed;            /* scratch: [rows, hidden] */
    float *blocked;         /* scratch: what a block gives, [rows * chosen, hidden] */
    num *gathered;          /* scratch: the experts' rows, expert by expert, [rows * chosen, hidden] */
    float *routes;          /* scratch: the router's scores, [rows, experts in whole panels] */
    float *weights;         /* scratch: of each row's experts, [rows, chosen] */
    int32_t *experts;       /* scratch: a row's experts, and where they have it; see `experts.h` */
    float *sums;            /* scratch: [threads, rows * sums_width] */
    float *attention;       /* scratch: [threads, attention_width]; see `attention.h` */
    int64_t *counters;      /* scratch: [layers, PHASES] */
    int64_t rows, first;    /* rows before `first` are of use to later tokens only */
    int64_t table_stride;
    int64_t sums_width;      /* INT4: quanta of the widest row that is multiplied */
    int64_t attention_width; /* [queries, 2 * (CHUNK + size) + 2], of TILE queries or all of a key head's */
} Step;

typedef struct {
    const num *embedding; /* [vocabulary, hidden] */
    Matrix head;
    float *logits;        /* scratch: [rows, vocabulary]; which fills whole panels */
    double headed;        /* out: when the head was begun, in seconds of the monotonic clock */
    float embedding_scale, logit_cap; /* 0: none */
} Ends;
