/* Attention of a step's rows over the blocks of their sequences, and the way of new keys and values into the cache.
 *
 * Called by `layers.c` within a parallel region. To the product a block is panels: of its keys with positions as
 * outputs, [BLOCK / LANES][size / PAIR][LANES][PAIR], of its values with positions as inputs,
 * [size / LANES][BLOCK / PAIR][LANES][PAIR]. A prompt's neighbouring rows read a block together; what a row gives
 * depends on its own keys alone, for keys that it does not see add an exact 0, and chunks start where they always do.
 */
#pragma once
#include "product.h"
#include "structs.h"

/* ---- into the cache ---- */
static void norm_in_place(float *x, const float *weight, int64_t size, float epsilon) {
    float factor = norm_factor(x, size, epsilon);
    for (int64_t i = 0; i < size; i += LANES) storef(x + i, loadf(x + i) * factor * loadf(weight + i));
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

static num *block_of(const Model *m, const Layer *l, const int32_t *table, int64_t head, int64_t block) {
    return l->cache + (head * m->places + (int64_t)table[block] * BLOCK) * m->size;
}

INLINE void fetch(const num *block, int64_t size) {
    for (int64_t i = 0; i < BLOCK * size; i += 64 / sizeof(num)) __builtin_prefetch(block + i);
}

/* One row's key and value; the first of a block makes what is behind it zeros, which shares of 0 may be multiplied by. */
static void write(const Model *m, const Layer *l, const int32_t *table, int64_t head, int64_t position,
                  const float *key, const float *value) {
    num *keys = block_of(m, l, table, head, position / BLOCK), narrow[LANES];
    num *values = keys + m->kv_heads * m->places * m->size;
    int64_t at = position % BLOCK, lane = at % LANES;
    if (at == 0) memset(values, 0, BLOCK * m->size * sizeof(num));
    for (int64_t i = 0; i < m->size; i += LANES) {
        store(narrow, loadf(key + i));
        num *panel = keys + (at / LANES * m->size + i) * LANES + lane * PAIR;
        for (int j = 0; j < LANES; j += PAIR) memcpy(panel + j * LANES, narrow + j, PAIR * sizeof(num));
        store(narrow, loadf(value + i));
        panel = values + i * BLOCK + at / PAIR * PAIR * LANES + at % PAIR;
        for (int j = 0; j < LANES; j++) panel[j * PAIR] = narrow[j];
    }
}

/* Norms and turns a row's queries and key of one key head, scales the queries, writes the rest to the cache. */
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
    write(m, l, s->tables + row * s->table_stride, head, s->lengths[row] - 1, key, value);
}

/* Rows of one block of a sequence are one thread's, in their order: they share the bytes of the cache. */
static void turn_share(const Model *m, const Layer *l, const Step *s, int64_t *counter) {
    int64_t before = s->table_stride ? 0 : (s->lengths[0] - 1) % BLOCK, together = s->table_stride ? 1 : BLOCK;
    int64_t items = (before + s->rows + together - 1) / together * m->kv_heads;
    for (int64_t item; (item = __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED)) < items;) {
        int64_t first = item / m->kv_heads * together - before, end = first + together;
        for (int64_t row = first < 0 ? 0 : first; row < (end < s->rows ? end : s->rows); row++)
            if (s->lengths[row]) turn_and_write(m, l, s, row, item % m->kv_heads);
    }
}

/* ---- out of it ---- */
/* Scores of a chunk, `count` of them, to shares, of which keys before `begin` and from `end` on get none; gives the
 * factor by which all that was summed before shrinks. */
static float share_out(num *shares, float *scores, int64_t count, int64_t begin, int64_t end, float cap, float *most,
                       float *total) {
    const ints places = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    vec largest = all(-INFINITY), sums = {0};
    for (int64_t j = 0; j < count; j += LANES) {
        vec v = loadf(scores + j);
        if (cap) storef(scores + j, v = cap * tangent(v / cap));
        if (j < begin || j + LANES > end) {
            ints at = places + (int32_t)j, seen = (at >= (int32_t)begin) & (at < (int32_t)end);
            v = (vec)(((ints)v & seen) | ((ints)all(-INFINITY) & ~seen));
            storef(scores + j, v);
        }
        largest = larger(v, largest);
    }
    float top = largest_of(larger(largest, all(*most)));
    float base = top == -INFINITY ? 0 : top, shrunk = expf(*most - base);
    for (int64_t j = 0; j < count; j += LANES) {
        vec e = exponential(loadf(scores + j) - base);
        store(shares + j, e);
        sums += e;
    }
    *total = *total * shrunk + sum(sums), *most = top;
    return shrunk;
}

/* `count` rows of one sequence from `first` on, their queries of one key head, over all keys that any of them sees. */
INLINE void attend(const Model *m, const Layer *l, const Step *s, int64_t first, int64_t count, int64_t head,
                   int64_t size, float *scratch) {
    int64_t group = m->heads / m->kv_heads, queries = count * group, width = m->heads + 2 * m->kv_heads;
    const int32_t *table = s->tables + first * s->table_stride;
    float *scores = scratch, *mixed = scores + queries * CHUNK;
    num *query = (num *)(mixed + queries * size), *shares = query + queries * size;
    float *most = (float *)(shares + queries * CHUNK), *total = most + queries;
    for (int64_t q = 0; q < queries; q++) {
        const float *from = s->qkv + ((first + q / group) * width + head * group + q % group) * size;
        for (int64_t i = 0; i < size; i += LANES) store(query + q * size + i, loadf(from + i));
        most[q] = l->sinks ? l->sinks[head * group + q % group] : -INFINITY, total[q] = l->sinks ? 1 : 0;
    }
    memset(mixed, 0, queries * size * sizeof(float));

    int64_t end = s->lengths[first + count - 1];
    int64_t begin = l->window && s->lengths[first] > l->window ? s->lengths[first] - l->window : 0;
    for (int64_t from = begin / BLOCK * BLOCK; from < end;) {
        int64_t chunk = from / CHUNK * CHUNK, until = chunk + CHUNK < end ? chunk + CHUNK : end, seen = 0;
        const num *values[CHUNK / BLOCK];
        for (int64_t at = from; at < until; at += BLOCK, seen++) {
            const num *keys = block_of(m, l, table, head, at / BLOCK);
            values[seen] = keys + m->kv_heads * m->places * size;
            fetch(values[seen], size);
            if (at + BLOCK < end) fetch(block_of(m, l, table, head, at / BLOCK + 1), size);
            for (int64_t q = 0; q < queries; q += ROWS) {
                int n = queries - q < ROWS ? (int)(queries - q) : ROWS;
                vec acc[ROWS][2];
                for (int r = 0; r < n; r++) acc[r][0] = acc[r][1] = (vec){0};
                product(acc, keys, keys + size * LANES, query + q * size, size, n, size);
                for (int r = 0; r < n; r++)
                    for (int side = 0; side < 2; side++)
                        storef(scores + (q + r) * CHUNK + seen * BLOCK + side * LANES, acc[r][side]);
            }
        }
        for (int64_t q = 0; q < queries; q++) {
            int64_t length = s->lengths[first + q / group], start = l->window ? length - l->window : 0;
            float shrunk = share_out(shares + q * CHUNK, scores + q * CHUNK, seen * BLOCK, start - from, length - from,
                                     m->cap, most + q, total + q);
            for (int64_t i = 0; shrunk != 1.0f && i < size; i += LANES)
                storef(mixed + q * size + i, loadf(mixed + q * size + i) * shrunk);
        }
        for (int64_t i = 0; i < size; i += 2 * LANES) {
            int64_t second = i + LANES < size ? i + LANES : i; /* an odd last panel is computed twice, and kept once */
            for (int64_t q = 0; q < queries; q += ROWS) {
                int n = queries - q < ROWS ? (int)(queries - q) : ROWS;
                vec acc[ROWS][2];
                float *out = mixed + q * size;
                for (int r = 0; r < n; r++)
                    acc[r][0] = loadf(out + r * size + i), acc[r][1] = loadf(out + r * size + second);
                for (int64_t block = 0; block < seen; block++)
                    product(acc, values[block] + i * BLOCK, values[block] + second * BLOCK,
                            shares + q * CHUNK + block * BLOCK, CHUNK, n, BLOCK);
                for (int r = 0; r < n; r++)
                    storef(out + r * size + second, acc[r][1]), storef(out + r * size + i, acc[r][0]);
            }
        }
        from = chunk + CHUNK;
    }
    for (int64_t q = 0; q < queries; q++) {
        num *out = s->mixed + ((first + q / group) * m->heads + head * group + q % group) * size;
        for (int64_t i = 0; i < size; i += LANES) store(out + i, loadf(mixed + q * size + i) / total[q]);
    }
}

/* Rows from `first` on; of a prompt as many together as make a tile, the longest first. */
static void attend_share(const Model *m, const Layer *l, const Step *s, int64_t first, int64_t *counter,
                         float *scratch) {
    int64_t group = m->heads / m->kv_heads, together = s->table_stride || group >= TILE ? 1 : TILE / group;
    int64_t items = (s->rows - first + together - 1) / together * m->kv_heads;
    for (int64_t item; (item = __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED)) < items;) {
        int64_t tile = (items - 1 - item) / m->kv_heads, head = item % m->kv_heads, row = first + tile * together;
        int64_t count = s->rows - row < together ? s->rows - row : together;
        num *out = s->mixed + (row * m->heads + head * group) * m->size;
        if (!s->lengths[row]) memset(out, 0, group * m->size * sizeof(num));
        else if (m->size == 64) attend(m, l, s, row, count, head, 64, scratch);
        else if (m->size == 128) attend(m, l, s, row, count, head, 128, scratch);
        else if (m->size == 256) attend(m, l, s, row, count, head, 256, scratch);
        else attend(m, l, s, row, count, head, m->size, scratch);
    }
}
