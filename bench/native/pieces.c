/* The element-wise and copying work around integer products on a CPU, fused: one pass where torch takes several.
 *
 * Every function has a plain torch twin that the tests hold it equal to, bit for bit where no sum of floats is taken
 * (compiled without contraction or reassociation). Products themselves run in torch._int_mm and nowhere here, save
 * depthwise sums, which are no matrix product. Channels are last everywhere. Compiled and called by __init__.py.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

typedef int64_t i64;
#define ROUNDER 12582912.0f /* 1.5 * 2^23: adding and taking it off rounds half to even, for |x| < 2^22 */
#define BLOCK 256           /* values that wait in the first cache between two loops of one pass */
#define LANES 16 /* values side by side: GCC's vector extension, lowered to what the processor has */
typedef float floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

/* ------------------------------------------------------------------ bits: 8 flags in a byte, the first one lowest */

static inline uint8_t pack8(const uint8_t *flags) {
    uint64_t word;
    memcpy(&word, flags, 8); /* bytes of 0 or 1 */
    return (uint8_t)((word * 0x0102040810204080ull) >> 56);
}

static inline void unpack8(uint8_t bits, uint8_t *flags) {
    uint64_t word = ((uint64_t)bits * 0x0101010101010101ull) & 0x8040201008040201ull;
    word = ((word + 0x7f7f7f7f7f7f7f7full) >> 7) & 0x0101010101010101ull; /* a set bit carries into bit 7 */
    memcpy(flags, &word, 8);
}

/* bits[first .. first + count) as bytes; first is a multiple of 8 or the slow way is taken */
static inline void unpack_run(const uint8_t *bits, i64 first, i64 count, uint8_t *flags) {
    i64 i = 0;
    if (first % 8 == 0)
        for (; i + 8 <= count; i += 8) unpack8(bits[(first + i) / 8], flags + i);
    for (; i < count; i++) flags[i] = (bits[(first + i) / 8] >> ((first + i) % 8)) & 1;
}

/* 16 values, 0 where their bit is clear; bits from a multiple of 8 on */
static inline floats gated(floats values, const uint8_t *bits, i64 first) {
    uint16_t word;
    memcpy(&word, bits + first / 8, 2);
#ifdef __AVX512F__
    return (floats)_mm512_maskz_mov_ps(word, (__m512)values);
#else
    const ints places = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return (floats)((ints)values & -((((int32_t)word + (ints){0}) >> places) & 1));
#endif
}

/* flags of values [first .. first + count), first a multiple of 8 */
static inline void pack_run(uint8_t *flags, i64 first, i64 count, uint8_t *bits) {
    while (count % 8) flags[count++] = 0;
    for (i64 i = 0; i < count; i += 8) bits[(first + i) / 8] = pack8(flags + i);
}

/* ------------------------------------------------------------------------------------------------------ quantizers */

/* DoReFa's activation: codes of round(n * clip(x, 0, 1)) - offset, bits where 0 <= x <= 1; 1 if all is finite. */
int act_codes(const float *x, int8_t *codes, uint8_t *bits, i64 size, float levels, float offset) {
    int finite = 1;
#pragma omp parallel for schedule(static) reduction(&& : finite) if (size > 16384)
    for (i64 first = 0; first < size; first += BLOCK) {
        i64 count = MIN(BLOCK, size - first);
        uint8_t inside[BLOCK + 8];
        int bad = 0;
        for (i64 i = 0; i < count; i++) {
            float v = x[first + i];
            float clipped = v < 0.0f ? 0.0f : (v > 1.0f ? 1.0f : v);
            float rounded = (clipped * levels + ROUNDER) - ROUNDER;
            codes[first + i] = (int8_t)(int32_t)(rounded - offset);
            inside[i] = (v >= 0.0f) & (v <= 1.0f);
            bad |= !(fabsf(v) <= 3.402823466e38f);
        }
        finite = finite && !bad;
        pack_run(inside, first, count, bits);
    }
    return finite;
}

/* MetaGrad Eq. 1: codes of round(x * qmax / clip), half to even, or floor(.. + u) with u = lane * step + centre. */
void uniform_codes(const float *x, int8_t *codes, i64 size, float qmax, float divisor, const int16_t *lanes,
                   float lane_step, float centre) {
#pragma omp parallel for schedule(static) if (size > 16384)
    for (i64 first = 0; first < size; first += BLOCK) {
        i64 count = MIN(BLOCK, size - first);
        const float *from = x + first;
        int8_t *to = codes + first;
        if (lanes == NULL) {
            for (i64 i = 0; i < count; i++) {
                float v = from[i] * qmax / divisor;
                v = v < -qmax ? -qmax : (v > qmax ? qmax : v); /* before rounding: qmax is whole, so it is the same */
                to[i] = (int8_t)(int32_t)((v + ROUNDER) - ROUNDER);
            }
        } else {
            const int16_t *lane = lanes + first;
            for (i64 i = 0; i < count; i++) {
                float u = (float)lane[i] * lane_step + centre;
                float v = from[i] * qmax / divisor + u;
                v = v < -qmax - 1 ? -qmax - 1 : (v > qmax + 1 ? qmax + 1 : v);
                float near = (v + ROUNDER) - ROUNDER;
                near -= near > v ? 1.0f : 0.0f; /* floor */
                near = near < -qmax ? -qmax : (near > qmax ? qmax : near);
                to[i] = (int8_t)(int32_t)near;
            }
        }
    }
}

/* Largest |value|; NaN where one of `weight` is not finite, which tanh hides. */
static float weight_amax(const float *squashed, const float *weight, i64 size) {
    float most[LANES] = {0}, bad[LANES] = {0};
    for (i64 first = 0; first < size; first += LANES)
        for (i64 k = 0; k < MIN(LANES, size - first); k++) {
            const float v = fabsf(squashed[first + k]);
            most[k] = v > most[k] ? v : most[k];
            bad[k] += weight[first + k] * 0.0f;
        }
    for (int k = 1; k < LANES; k++) {
        most[0] = most[k] > most[0] ? most[k] : most[0];
        bad[0] += bad[k];
    }
    return most[0] + bad[0];
}

/* DoReFa's weight from t = tanh W: codes of round((t / (2 * max|t|) + 1/2) * n) - half; 1 if all of W is finite. */
int weight_codes(const float *squashed, const float *weight, int8_t *codes, i64 size, float levels, float half) {
    const float largest = weight_amax(squashed, weight, size), divisor = largest == 0.0f ? INFINITY : 2.0f * largest;
#pragma omp parallel for schedule(static) if (size > 16384)
    for (i64 i = 0; i < size; i++) {
        float v = (squashed[i] / divisor + 0.5f) * levels;
        codes[i] = (int8_t)(int32_t)(((v + ROUNDER) - ROUNDER) - half);
    }
    return largest == largest;
}

/* grad * (1 - t^2) / max|t| over t = tanh W, in its place; 1 for a largest of 0. */
void weight_backward(const float *grad, float *squashed, i64 size) {
    const float largest = weight_amax(squashed, squashed, size), divisor = largest == 0.0f ? 1.0f : largest;
#pragma omp parallel for schedule(static) if (size > 16384)
    for (i64 i = 0; i < size; i++) {
        float t = squashed[i];
        squashed[i] = ((-(t * t)) + 1.0f) / divisor * grad[i];
    }
}

/* -------------------------------------------------------------------------------------- patches of channels-last codes */

typedef struct {
    i64 n, h, w, c;            /* images, rows, columns, channels of the source */
    i64 c0, cb;                /* channels that are read */
    i64 row_start, row_step, row_count, row_stride, row_length;
    i64 col_start, col_step, col_count, col_stride, col_length;
    i64 pack, row_pack;        /* neighbouring outputs along a row, and of neighbouring rows, that share one patch */
} Geometry;

static inline void copy_run(int8_t *to, const int8_t *from, i64 size) {
    if (size >= 64) {
        i64 i = 0;
        for (; i + 64 <= size; i += 64) memcpy(to + i, from + i, 64);
        if (i < size) memcpy(to + size - 64, from + size - 64, 64);
    } else if (size >= 32) {
        memcpy(to, from, 32);
        memcpy(to + size - 32, from + size - 32, 32);
    } else if (size >= 16) {
        memcpy(to, from, 16);
        memcpy(to + size - 16, from + size - 16, 16);
    } else if (size >= 8) {
        memcpy(to, from, 8);
        memcpy(to + size - 8, from + size - 8, 8);
    } else {
        for (i64 i = 0; i < size; i++) to[i] = from[i];
    }
}

/* Columns, and rows, that a patch holds: all between the first and the last where outputs share it. */
static inline i64 span_of(const Geometry *g) {
    return g->pack == 1 ? g->col_count : (g->col_count - 1) * g->col_step + (g->pack - 1) * g->col_stride + 1;
}

static inline i64 row_span_of(const Geometry *g) {
    return g->row_pack == 1 ? g->row_count : (g->row_count - 1) * g->row_step + (g->row_pack - 1) * g->row_stride + 1;
}

/* (n, row_length / row_pack, col_length / pack) patches of (row span, span, cb) codes, zeros after them up to `depth`. */
static void gather(const int8_t *source, int8_t *patches, const Geometry *g, i64 depth, int8_t pad) {
    const i64 span = span_of(g), step = g->pack == 1 ? g->col_step : 1, cb = g->cb, groups = g->col_length / g->pack;
    const i64 row_span = row_span_of(g), row_step = g->row_pack == 1 ? g->row_step : 1;
    const i64 bands = g->row_length / g->row_pack, taps = row_span * span * cb;
    const int whole = cb == g->c && step == 1;
#pragma omp parallel for collapse(2) schedule(static) if (g->n * bands * groups * depth > 65536)
    for (i64 n = 0; n < g->n; n++)
        for (i64 i = 0; i < bands; i++) {
            int8_t *to = patches + (n * bands + i) * groups * depth;
            for (i64 j = 0; j < groups; j++, to += depth) {
                const i64 first = j * g->pack * g->col_stride + g->col_start;
                for (i64 t = 0; t < row_span; t++) {
                    int8_t *run = to + t * span * cb;
                    const i64 row = i * g->row_pack * g->row_stride + g->row_start + t * row_step;
                    if (row < 0 || row >= g->h) {
                        memset(run, pad, span * cb);
                        continue;
                    }
                    const int8_t *line = source + (n * g->h + row) * g->w * g->c + g->c0;
                    if (whole) {
                        i64 left = MIN(span, MAX(0, -first)), right = MIN(span, MAX(left, g->w - first));
                        if (left) memset(run, pad, left * cb);
                        copy_run(run + left * cb, line + (first + left) * cb, (right - left) * cb);
                        if (right < span) memset(run + right * cb, pad, (span - right) * cb);
                    } else
                        for (i64 s = 0; s < span; s++) {
                            const i64 column = first + s * step;
                            if (column < 0 || column >= g->w)
                                memset(run + s * cb, pad, cb);
                            else
                                copy_run(run + s * cb, line + column * g->c, cb);
                        }
                }
                if (taps < depth) memset(to + taps, 0, depth - taps);
            }
        }
}

/* Sum of codes: 8 at a time in one word, as numbers of 0 to 255. */
static inline int32_t sum_codes(const int8_t *codes, i64 count) {
    const uint64_t even = 0x00ff00ff00ff00ffull;
    int32_t sum = 0;
    i64 i = 0;
    while (i + 8 <= count) {
        const i64 last = MIN(count / 8 * 8, i + 256); /* 256 of them still fit 16 bits */
        uint64_t pairs = 0;
        sum -= 128 * (int32_t)(last - i);
        for (; i < last; i += 8) {
            uint64_t word;
            memcpy(&word, codes + i, 8);
            word ^= 0x8080808080808080ull;
            pairs += (word & even) + ((word >> 8) & even);
        }
        sum += (int32_t)((pairs * 0x0001000100010001ull) >> 48);
    }
    for (; i < count; i++) sum += codes[i];
    return sum;
}

/* Sums of 16 codes each, 16 of them at a time: bytes to pairs, to fours, then across. */
static void sum_sixteens(const int8_t *restrict codes, int32_t *restrict sums, i64 count) {
    typedef int16_t shorts __attribute__((vector_size(64), aligned(1), may_alias));
    i64 i = 0;
    for (; i + 16 <= count; i += 16) {
        ints fours[4];
        for (int part = 0; part < 4; part++) {
            const shorts word = *(const shorts *)(codes + (i + 4 * part) * 16);
            const shorts pairs = ((word << 8) >> 8) + (word >> 8);
            const ints wide = (ints)pairs;
            fours[part] = ((wide << 16) >> 16) + (wide >> 16); /* 4 neighbouring lanes belong to one pixel */
        }
        const ints even = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
        const ints low = __builtin_shuffle(fours[0], fours[1], even) + __builtin_shuffle(fours[0], fours[1], even + 1);
        const ints high = __builtin_shuffle(fours[2], fours[3], even) + __builtin_shuffle(fours[2], fours[3], even + 1);
        *(ints *)(sums + i) = __builtin_shuffle(low, high, even) + __builtin_shuffle(low, high, even + 1);
    }
    for (; i < count; i++) sums[i] = sum_codes(codes + i * 16, 16);
}

/* Sums of the codes that each output meets, per group of the source's channels: (n, row_length, col_length, groups). */
void patch_sums(const int8_t *source, int32_t *sums, const Geometry *g, i64 groups, int8_t pad) {
    const i64 per = g->c / groups, width = g->col_length * groups;
    const i64 reach_h = (g->row_length - 1) * g->row_stride + (g->row_count - 1) * g->row_step + 1;
    const i64 reach_w = (g->col_length - 1) * g->col_stride + (g->col_count - 1) * g->col_step + 1;
#pragma omp parallel if (g->n * g->h * g->w * g->c > 16384)
    {
        int32_t *framed = malloc((reach_w * groups + 1) * sizeof(int32_t)); /* one row: sums over channels */
        int32_t *across = malloc((reach_h * width + 1) * sizeof(int32_t));  /* all rows: sums over the taps of a row */
        int32_t *by_pixel = malloc((g->w * groups + 1) * sizeof(int32_t));
        int32_t *sixteens = malloc((g->w * g->c / 16 + 1) * sizeof(int32_t));
#pragma omp for schedule(static)
        for (i64 n = 0; n < g->n; n++) {
            for (i64 y = 0; y < reach_h; y++) {
                const i64 row = y + g->row_start, pixels = g->w * groups;
                const int32_t frame = (int32_t)(pad * per);
                if (row < 0 || row >= g->h)
                    for (i64 x = 0; x < pixels; x++) by_pixel[x] = frame;
                else {
                    const int8_t *line = source + (n * g->h + row) * g->w * g->c;
                    if (per == 16)
                        sum_sixteens(line, by_pixel, pixels);
                    else if (per % 16 == 0) {
                        sum_sixteens(line, sixteens, pixels * per / 16);
                        for (i64 x = 0; x < pixels; x++) {
                            by_pixel[x] = 0;
                            for (i64 c = 0; c < per / 16; c++) by_pixel[x] += sixteens[x * (per / 16) + c];
                        }
                    } else
                        for (i64 x = 0; x < pixels; x++) by_pixel[x] = sum_codes(line + x * per, per);
                }
                const i64 left = MIN(reach_w, MAX(0, -g->col_start)), right = MIN(reach_w, MAX(left, g->w - g->col_start));
                for (i64 x = 0; x < left * groups; x++) framed[x] = frame;
                memcpy(framed + left * groups, by_pixel + (left + g->col_start) * groups,
                       (right - left) * groups * sizeof(int32_t));
                for (i64 x = right * groups; x < reach_w * groups; x++) framed[x] = frame;
                int32_t *restrict to = across + y * width;
                for (i64 p = 0; p < width; p++) to[p] = 0;
                for (i64 s = 0; s < g->col_count; s++) {
                    const int32_t *restrict from = framed + s * g->col_step * groups;
                    if (g->col_stride == 1)
                        for (i64 p = 0; p < width; p++) to[p] += from[p];
                    else
                        for (i64 j = 0; j < g->col_length; j++)
                            for (i64 k = 0; k < groups; k++) to[j * groups + k] += from[j * g->col_stride * groups + k];
                }
            }
            for (i64 i = 0; i < g->row_length; i++) {
                int32_t *restrict to = sums + (n * g->row_length + i) * width;
                for (i64 p = 0; p < width; p++) to[p] = 0;
                for (i64 t = 0; t < g->row_count; t++) {
                    const int32_t *restrict from = across + (i * g->row_stride + t * g->row_step) * width;
                    for (i64 p = 0; p < width; p++) to[p] += from[p];
                }
            }
        }
        free(framed);
        free(across);
        free(by_pixel);
        free(sixteens);
    }
}

/* ------------------------------------------------------------- sums per channel, a block of rows at a time */

/* Rows are read several at a time, so that loops are long where channels are few: a "wide row" is `fold` rows, its
 * per-channel numbers repeated `fold` times. 8 divides the fold, so that a wide row's bits start at a byte. */
#define WIDE_ROWS 8 /* wide rows per block of a sum; blocks, and so results, do not depend on the threads */

static i64 fold_of(i64 c) { return MAX(8, BLOCK / c / 8 * 8); }

static float *repeated(const float *values, i64 c, i64 fold) {
    float *wide = malloc((c * fold + 1) * sizeof(float));
    for (i64 i = 0; i < fold; i++) memcpy(wide + i * c, values, c * sizeof(float));
    return wide;
}

static inline float bf16_value(uint16_t half) {
    uint32_t word = (uint32_t)half << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
}

/* grad[at ..] where bits pass it, and x (or its halves), as runs of at most BLOCK values */
static inline const float *masked(const float *grad, const uint8_t *bits, i64 at, i64 run, float *space) {
    if (!bits) return grad + at;
    i64 k = 0;
    for (; k + LANES <= run; k += LANES) *(floats *)(space + k) = gated(*(const floats *)(grad + at + k), bits, at + k);
    for (; k < run; k++) space[k] = (bits[(at + k) / 8] >> ((at + k) % 8)) & 1 ? grad[at + k] : 0.0f;
    return space;
}

static inline const float *whole(const float *x, const uint16_t *halves, i64 at, i64 run, float *space) {
    if (x) return x + at;
    for (i64 k = 0; k < run; k++) space[k] = bf16_value(halves[at + k]);
    return space;
}

/* Mean and sum of squared deviations of one block, `size` values from `from` on; space holds 2 wide rows. */
static void block_stats(const float *restrict from, i64 size, i64 c, i64 fold, float *restrict space, float *restrict mean,
                        float *restrict square) {
    const i64 width = fold * c;
    const float share = 1.0f / (size / c);
    float *restrict sum = space, *restrict centre = space + width;
    memset(sum, 0, width * sizeof(float));
    for (i64 at = 0; at < size; at += width) {
        const i64 run = MIN(width, size - at);
        for (i64 k = 0; k < run; k++) sum[k] += from[at + k];
    }
    for (i64 i = 1; i < fold; i++)
        for (i64 k = 0; k < c; k++) sum[k] += sum[i * c + k];
    for (i64 k = 0; k < c; k++) mean[k] = sum[k] * share;
    for (i64 i = 0; i < fold; i++) memcpy(centre + i * c, mean, c * sizeof(float));
    memset(sum, 0, width * sizeof(float));
    for (i64 at = 0; at < size; at += width) {
        const i64 run = MIN(width, size - at);
        for (i64 k = 0; k < run; k++) {
            const float d = from[at + k] - centre[k];
            sum[k] += d * d;
        }
    }
    for (i64 i = 1; i < fold; i++)
        for (i64 k = 0; k < c; k++) sum[k] += sum[i * c + k];
    memcpy(square, sum, c * sizeof(float));
}

/* Sums of g and of g * (x - mean) of one block, `size` values from `first` on, g masked by bits if given; halves in place
 * of x if x is NULL; kept, if not NULL, takes g. space holds 2 wide rows, mean is wide. */
static void block_sums(const float *grad, const float *restrict x, const uint16_t *restrict halves,
                       const uint8_t *restrict bits, float *kept, i64 first, i64 size, i64 c, i64 fold,
                       const float *restrict mean, float *restrict space, float *restrict sum, float *restrict dot) {
    const i64 width = fold * c;
    float *restrict s = space, *restrict d = space + width;
    memset(s, 0, 2 * width * sizeof(float));
    for (i64 row = 0; row < size; row += width)
        for (i64 k0 = 0; k0 < MIN(width, size - row); k0 += BLOCK) {
            const i64 at = first + row + k0, run = MIN(BLOCK, MIN(width, size - row) - k0);
            float g_space[BLOCK], x_space[BLOCK];
            const float *g = masked(grad, bits, at, run, g_space), *v = whole(x, halves, at, run, x_space);
            const float *restrict m = mean + k0;
            float *restrict to_s = s + k0, *restrict to_d = d + k0;
            for (i64 k = 0; k < run; k++) {
                to_s[k] += g[k];
                to_d[k] += g[k] * (v[k] - m[k]);
            }
            if (kept && kept + at != g) memcpy(kept + at, g, run * sizeof(float));
        }
    for (i64 i = 1; i < fold; i++)
        for (i64 k = 0; k < c; k++) {
            s[k] += s[i * c + k];
            d[k] += d[i * c + k];
        }
    memcpy(sum, s, c * sizeof(float));
    memcpy(dot, d, c * sizeof(float));
}

/* Blocks of `block` rows joined by Chan's formula in double. */
void join_stats(const float *means, const float *squares, i64 block, i64 rows, i64 c, double *mean, double *m2) {
    const i64 blocks = (rows + block - 1) / block;
#pragma omp parallel for schedule(static) if (blocks * c > 16384)
    for (i64 k0 = 0; k0 < c; k0 += LANES) {
        const i64 cc = MIN(LANES, c - k0);
        double total = 0.0, average[LANES] = {0}, deviation[LANES] = {0};
        for (i64 b = 0; b < blocks; b++) {
            const double count = MIN(block, rows - b * block), both = total + count;
            const double share = count / both, weight = total * share;
            for (i64 k = 0; k < cc; k++) {
                const double delta = means[b * c + k0 + k] - average[k];
                average[k] += delta * share;
                deviation[k] += squares[b * c + k0 + k] + delta * delta * weight;
            }
            total = both;
        }
        memcpy(mean + k0, average, cc * sizeof(double));
        memcpy(m2 + k0, deviation, cc * sizeof(double));
    }
}

void join_sums(const float *sums, const float *dots, i64 blocks, i64 c, double *sum, double *dot) {
#pragma omp parallel for schedule(static) if (blocks * c > 16384)
    for (i64 k0 = 0; k0 < c; k0 += LANES) {
        const i64 cc = MIN(LANES, c - k0);
        double total[LANES] = {0}, product[LANES] = {0};
        for (i64 b = 0; b < blocks; b++)
            for (i64 k = 0; k < cc; k++) {
                total[k] += sums[b * c + k0 + k];
                product[k] += dots[b * c + k0 + k];
            }
        memcpy(sum + k0, total, cc * sizeof(double));
        memcpy(dot + k0, product, cc * sizeof(double));
    }
}

/* ------------------------------------------------------------------------------------ from integers to floats, once */

typedef struct {
    i64 n, rows, cols, row_pack, pack, c; /* n * (rows / row_pack) * (cols / pack) lines of row_pack * pack * c sums */
    i64 pitch, groups;                 /* lines are `pitch` apart; `groups` equal parts of c share a row sum */
    i64 sums_pitch;                    /* row sums of one output, of which the first `groups` are read */
    i64 out_n, out_row, out_col;       /* strides of the output, in values; c lie side by side */
    int32_t factor, row_weight;        /* total = factor * sum + row_weight * row sum + column */
} Landing;

/* What is done with a block of lines right after they have landed, while they lie in the first cache. The output is dense
 * then: (images, rows, cols, c). */
typedef struct {
    i64 block_rows;            /* rows of an image in a block; divides Landing.rows */
    const float *residual;     /* added to every value */
    const uint8_t *gate;       /* then only these values stay, the others become 0; the bits of 8 values share a byte */
    float *means, *squares;    /* per block and channel: mean and sum of squared deviations of what was landed */
    const float *x;            /* per block and channel: sums of it and of it * (x - mean) ... */
    const uint16_t *halves;    /* ... x in bf16 if x is NULL */
    const float *mean;
    float *sums, *dots;
    i64 values;                /* of the whole output */
} Sequel;

typedef struct {
    const int32_t *acc, *row_sums, *columns, *places;
    float *out;
    const float *scale, *bias;
    const uint8_t *bits;
    int scale_per_channel;
    i64 first_bit;
} Landed;

/* A row of an image: one group, one scale, no places, no bias, c a multiple of 16. */
static inline __attribute__((always_inline)) void land_plain_row(const Landing *l, const int32_t *restrict line,
                                                                 float *restrict to, const int32_t *restrict sums,
                                                                 const int32_t *restrict columns, float value,
                                                                 const uint8_t *bits, i64 bit, const i64 c) {
    const int32_t factor = l->factor, weight = sums ? l->row_weight : 0;
    for (i64 j0 = 0; j0 < l->cols; j0 += l->pack, line += l->pitch) {
        const int32_t *restrict from = line;
        for (i64 j = j0; j < j0 + l->pack; j++, from += c, to += l->out_col, bit += l->out_col) {
            const int32_t base = weight ? weight * sums[j * l->sums_pitch] : 0;
            for (i64 k = 0; k < c; k += LANES) {
                const ints total = *(const ints *)(from + k) * factor + (*(const ints *)(columns + k) + base);
                const floats landed = __builtin_convertvector(total, floats) * value;
                *(floats *)(to + k) = bits ? gated(landed, bits, bit + k) : landed;
            }
        }
    }
}

static inline void land_row(const Landing *restrict l, const Landed *restrict d, i64 n, i64 i) {
    const i64 lines = l->cols / l->pack, per = l->c / l->groups, out_col = l->out_col, groups = l->groups;
    const int32_t factor = l->factor, *places = d->places;
    const float *scale = d->scale, *bias = d->bias;
    const uint8_t *bits = d->bits;
    const i64 band = n * (l->rows / l->row_pack) + i / l->row_pack;
    const int32_t *line = d->acc + band * lines * l->pitch + i % l->row_pack * l->pack * l->c;
    const int32_t *sums = d->row_sums ? d->row_sums + (n * l->rows + i) * l->cols * l->sums_pitch : NULL;
    float *row = d->out + n * l->out_n + i * l->out_row;
    const i64 row_bit = d->first_bit + n * l->out_n + i * l->out_row;
    const int plain = groups == 1 && l->c % LANES == 0 && !places && !d->scale_per_channel && !bias;
    if (plain && row_bit % 8 == 0 && out_col % 8 == 0) {
#define ROW(c) land_plain_row(l, line, row, sums, d->columns, *scale, bits, row_bit, c)
        if (l->c == 16)
            ROW(16);
        else if (l->c == 32)
            ROW(32);
        else if (l->c == 64)
            ROW(64);
        else
            ROW(l->c);
#undef ROW
        return;
    }
    for (i64 j0 = 0; j0 < l->cols; j0 += l->pack, line += l->pitch)
        for (i64 q = 0; q < l->pack; q++)
            for (i64 k = 0; k < groups; k++) {
                const i64 j = j0 + q, at = j * out_col + k * per, bit = row_bit + at;
                const int32_t *restrict from = line + q * l->c + k * per, *restrict column = d->columns + k * per;
                float *restrict to = row + at;
                const int32_t base = sums ? l->row_weight * sums[j * l->sums_pitch + k] : 0;
                i64 c = 0;
                if (!places && !d->scale_per_channel)
                    for (; c + LANES <= per; c += LANES) {
                        const ints total = *(const ints *)(from + c) * factor + (*(const ints *)(column + c) + base);
                        *(floats *)(to + c) = __builtin_convertvector(total, floats) * *scale;
                    }
                for (; c < per; c++)
                    to[c] = (float)(factor * from[c] + base + column[c] + (places ? places[i * l->out_row + at + c] : 0)) *
                            scale[d->scale_per_channel ? k * per + c : 0];
                if (bias)
                    for (c = 0; c < per; c++) to[c] += bias[k * per + c];
                if (bits) {
                    c = 0;
                    if (bit % 8 == 0)
                        for (; c + LANES <= per; c += LANES)
                            *(floats *)(to + c) = gated(*(const floats *)(to + c), bits, bit + c);
                    for (; c < per; c++) to[c] = (bits[(bit + c) / 8] >> ((bit + c) % 8)) & 1 ? to[c] : 0.0f;
                }
            }
}

/* Values of an output that goes past the caches: a line that is written whole need not be read first. A smaller one is
 * read again before it has left the third cache (ResNet-20's steps are 1.5 % faster for it, VGG-16's 2 % for the other). */
#define STREAMED (1 << 22)

static inline int can_stream(const float *to, i64 size, i64 values) {
#ifdef __AVX512F__
    return values > STREAMED && (uintptr_t)to % 64 == 0 && size % LANES == 0;
#else
    (void)to, (void)size, (void)values;
    return 0;
#endif
}

static inline void put(float *to, floats values, int streams) {
#ifdef __AVX512F__
    if (streams) {
        _mm512_stream_ps(to, (__m512)values);
        return;
    }
#endif
    (void)streams;
    *(floats *)to = values;
}

static inline void stream(float *to, const float *from, i64 size) {
#ifdef __AVX512F__
    for (i64 k = 0; k < size; k += LANES) _mm512_stream_ps(to + k, _mm512_load_ps(from + k));
    _mm_sfence();
#else
    memcpy(to, from, size * sizeof(float));
#endif
}

/* out = (factor * acc + row_weight * row_sums + columns + places) * scale [+ bias] [* bit], integers exact in int32; then
 * the sequel, if there is one. */
void land(const int32_t *acc, float *out, const Landing *l, const int32_t *row_sums, const int32_t *columns,
          const int32_t *places, const float *scale, int scale_per_channel, const float *bias, const uint8_t *bits,
          i64 first_bit, const Sequel *then) {
    int32_t *none = calloc(l->c + 1, sizeof(int32_t));
    const Landed landed = {acc,   row_sums, columns ? columns : none, places,    out, scale, bias, bits,
                           scale_per_channel, first_bit};
    const i64 step = then ? then->block_rows : 1, blocks = l->rows / step, c = l->c, fold = fold_of(c);
    const i64 size = step * l->cols * c;
    float *means = then && then->sums ? repeated(then->mean, c, fold) : NULL;
    const int streams = then && can_stream(out, size, then->values);
#pragma omp parallel if (l->n * l->rows * l->cols * l->c > 16384)
    {
        float *space = then ? malloc((2 * fold * c + 1) * sizeof(float)) : NULL;
        float *near = streams ? aligned_alloc(64, (size * sizeof(float) + 63) / 64 * 64) : NULL;
#pragma omp for collapse(2) schedule(static)
        for (i64 n = 0; n < l->n; n++)
            for (i64 b = 0; b < blocks; b++) {
                float *last = out + n * l->out_n + b * size, *to = near ? near : last;
                Landed here = landed;
                here.out = out + (to - last);
                for (i64 i = b * step; i < (b + 1) * step; i++) land_row(l, &here, n, i);
                if (!then) continue;
                const i64 at = first_bit + n * l->out_n + b * size;
                const i64 block = at / size; /* of the whole output, which is dense */
                if (then->residual) {
                    const float *restrict more = then->residual + at;
                    for (i64 k = 0; k < size; k++) to[k] += more[k];
                }
                if (then->means)
                    block_stats(to, size, c, fold, space, then->means + block * c, then->squares + block * c);
                if (then->sums)
                    block_sums(to - at, then->x, then->halves, then->gate, then->gate ? to - at : NULL, at, size, c, fold,
                               means, space, then->sums + block * c, then->dots + block * c);
                if (near) stream(last, near, size);
            }
        free(space);
        free(near);
    }
    free(means);
    free(none);
}

/* One product of fprop or dgrad: what it gathers and where its sums land, for some images at a time. */
typedef struct {
    Geometry read;             /* n is that of a call */
    Landing landing;           /* as above */
    const int8_t *source;
    int8_t *patches;
    i64 depth, pad;
    const int32_t *acc, *row_sums, *columns, *places;
    float *out;
    const float *scale, *bias;
    const uint8_t *bits;
    i64 scale_per_channel, first_bit;
    const Sequel *then;
} Job;

void gather_images(const Job *job, i64 first, i64 count) {
    Geometry read = job->read;
    read.n = count;
    gather(job->source + first * read.h * read.w * read.c, job->patches, &read, job->depth, (int8_t)job->pad);
}

void land_images(const Job *job, i64 first, i64 count) {
    Landing l = job->landing;
    l.n = count;
    const i64 at = first * l.out_n, sums = first * l.rows * l.cols * l.sums_pitch;
    land(job->acc, job->out + at, &l, job->row_sums ? job->row_sums + sums : NULL, job->columns, job->places, job->scale,
         (int)job->scale_per_channel, job->bias, job->bits, job->first_bit + at, job->then);
}

/* Both in one call: the images that were multiplied last land, and the next are gathered. */
void next_images(const Job *job, i64 landed, i64 landed_count, i64 first, i64 count) {
    if (landed_count) land_images(job, landed, landed_count);
    if (count) gather_images(job, first, count);
}

/* -------------------------------------------------------------------------------------- operands of wgrad: turned over */

static inline void turn8(const int8_t *from, i64 from_pitch, int8_t *to, i64 to_pitch) {
    uint64_t r[8], t;
    for (int i = 0; i < 8; i++) memcpy(&r[i], from + i * from_pitch, 8);
#define SWAP(a, b, shift, mask)                                                                                        \
    t = ((r[a] >> shift) ^ r[b]) & mask;                                                                               \
    r[b] ^= t;                                                                                                         \
    r[a] ^= t << shift;
    for (int i = 0; i < 4; i++) { SWAP(i, i + 4, 32, 0x00000000ffffffffull) }
    for (int i = 0; i < 8; i += 4) {
        SWAP(i, i + 2, 16, 0x0000ffff0000ffffull)
        SWAP(i + 1, i + 3, 16, 0x0000ffff0000ffffull)
    }
    for (int i = 0; i < 8; i += 2) { SWAP(i, i + 1, 8, 0x00ff00ff00ff00ffull) }
#undef SWAP
    for (int i = 0; i < 8; i++) memcpy(to + i * to_pitch, &r[i], 8);
}

#ifdef __AVX512BW__
/* 16 rows of 64 bytes: four perfect shuffles bring a byte's row to where its place in a lane was, and the other way. */
static inline void turn16(const int8_t *from, i64 from_pitch, int8_t *to, i64 to_pitch) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512(from + i * from_pitch);
#define SHUFFLE(x, y)                                                                                                  \
    for (int i = 0; i < 8; i++) {                                                                                      \
        y[2 * i] = _mm512_unpacklo_epi8(x[i], x[i + 8]);                                                               \
        y[2 * i + 1] = _mm512_unpackhi_epi8(x[i], x[i + 8]);                                                           \
    }
    SHUFFLE(a, b) SHUFFLE(b, a) SHUFFLE(a, b) SHUFFLE(b, a)
#undef SHUFFLE
#define LANE(l) _mm_storeu_si128((__m128i *)(to + (16 * l + i) * to_pitch), _mm512_extracti32x4_epi32(a[i], l));
    for (int i = 0; i < 16; i++) { LANE(0) LANE(1) LANE(2) LANE(3) }
#undef LANE
}
#endif

/* (rows, columns) bytes -> (columns, rows); pitches in bytes. */
static void turn_tile(const int8_t *from, i64 from_pitch, int8_t *to, i64 to_pitch, i64 rows, i64 columns) {
    i64 i = 0;
#ifdef __AVX512BW__
    if (columns % 64 == 0)
        for (; i + 16 <= rows; i += 16) {
            for (i64 k = i + 16; k < MIN(rows, i + 32); k++) /* rows far apart: no prefetcher follows them */
                for (i64 line = 0; line < columns; line += 64) __builtin_prefetch(from + k * from_pitch + line);
            for (i64 j = 0; j < columns; j += 64) turn16(from + i * from_pitch + j, from_pitch, to + j * to_pitch + i, to_pitch);
        }
#endif
    for (; i + 8 <= rows; i += 8) {
        i64 j = 0;
        for (i64 k = i + 8; k < MIN(rows, i + 16); k++)
            for (i64 line = 0; line < columns; line += 64) __builtin_prefetch(from + k * from_pitch + line);
        for (; j + 8 <= columns; j += 8) turn8(from + i * from_pitch + j, from_pitch, to + j * to_pitch + i, to_pitch);
        for (; j < columns; j++)
            for (i64 k = 0; k < 8; k++) to[j * to_pitch + i + k] = from[(i + k) * from_pitch + j];
    }
    for (; i < rows; i++)
        for (i64 j = 0; j < columns; j++) to[j * to_pitch + i] = from[i * from_pitch + j];
}

#define TILE 64
#define WIDE_TILE 256

/* (rows, columns) -> (columns, rows), few rows at a time: more would fall on the same lines of the cache where a row is a
 * power of two long. */
void turn(const int8_t *from, int8_t *to, i64 rows, i64 columns) {
#pragma omp parallel for schedule(static) if (rows * columns > 16384)
    for (i64 j = 0; j < columns; j += WIDE_TILE)
        turn_tile(from + j, columns, to + j * rows, rows, rows, MIN(WIDE_TILE, columns - j));
}

/* Lines of one of wgrad's operands, images innermost: line (t, s, c) of `lines`, `pitch` apart, holds (row_length,
 * col_length / pack, n) codes, zeros after them. With own = 1 the lines are (t, pack, c): the outputs that share a patch,
 * one after the other. `turned` takes what is read of the source: (rows, w, cb, n). */
void wgrad_lines(const int8_t *source, int8_t *turned, int8_t *lines, const Geometry *g, i64 pitch, int8_t pad, int own) {
    const i64 span = own ? g->pack : span_of(g), step = own || g->pack > 1 ? 1 : g->col_step, cb = g->cb, n = g->n;
    const i64 groups = g->col_length / g->pack, line = g->w * cb, last_tap = (g->row_count - 1) * g->row_step;
    const i64 top = g->row_start + MIN(0, last_tap);
    const i64 bottom = g->row_start + MAX(0, last_tap) + (g->row_length - 1) * g->row_stride + 1;
    const i64 first = MIN(g->h, MAX(0, top)), size = MAX(0, MIN(g->h, bottom) - first) * line;
    const i64 tile = cb == g->c ? WIDE_TILE : cb, pitch_in = g->h * g->w * g->c;
    const int8_t *const block = source + first * g->w * g->c + g->c0;
#pragma omp parallel if (g->row_count * span * cb * pitch > 65536)
    {
#pragma omp for schedule(static)
        for (i64 j = 0; j < size; j += tile)
            turn_tile(block + j / cb * g->c + j % cb, pitch_in, turned + j * n, n, n, MIN(tile, size - j));
#pragma omp for collapse(3) schedule(static)
        for (i64 t = 0; t < g->row_count; t++)
            for (i64 s = 0; s < span; s++)
                for (i64 c = 0; c < cb; c++) {
                    int8_t *const start = lines + ((t * span + s) * cb + c) * pitch, *to = start;
                    for (i64 i = 0; i < g->row_length; i++) {
                        const i64 row = i * g->row_stride + g->row_start + t * g->row_step;
                        if (row < 0 || row >= g->h) {
                            memset(to, pad, groups * n);
                            to += groups * n;
                            continue;
                        }
                        const int8_t *from = turned + ((row - first) * line + c) * n;
                        for (i64 j = 0; j < groups; j++, to += n) {
                            const i64 column = j * g->pack * g->col_stride + g->col_start + s * step;
                            if (column < 0 || column >= g->w)
                                memset(to, pad, n);
                            else
                                copy_run(to, from + column * cb * n, n);
                        }
                    }
                    memset(to, 0, start + pitch - to);
                }
    }
}

/* Sums of codes per channel over all rows, int64; 128 rows at a time in 16 bits, several rows side by side. */
void channel_sums(const int8_t *restrict codes, i64 *sums, i64 rows, i64 c) {
    const i64 fold = MAX(1, BLOCK / c), width = fold * c, block = 128 * fold;
    memset(sums, 0, c * sizeof(i64));
#pragma omp parallel if (rows * c > 65536)
    {
        i64 *own = calloc(c + 1, sizeof(i64));
        int16_t *restrict near = malloc((width + 1) * sizeof(int16_t));
#pragma omp for schedule(static)
        for (i64 first = 0; first < rows; first += block) {
            const i64 size = MIN(block, rows - first) * c;
            memset(near, 0, width * sizeof(int16_t));
            for (i64 at = 0; at < size; at += width) {
                const i64 run = MIN(width, size - at);
                const int8_t *restrict from = codes + first * c + at;
                for (i64 k = 0; k < run; k++) near[k] += from[k];
            }
            for (i64 i = 0; i < fold; i++)
                for (i64 k = 0; k < c; k++) own[k] += near[i * c + k];
        }
#pragma omp critical
        for (i64 k = 0; k < c; k++) sums[k] += own[k];
        free(own);
        free(near);
    }
}

/* Add one product of wgrad, lines (span, c) of (pack, o) int32, `pitch` apart, to totals (o, r, s, c) int64; the numbers
 * of the next tap along the rows lie `tap` values further. */
void fold_wgrad(const int32_t *acc, i64 *totals, i64 r, i64 s, i64 tap, i64 c, i64 o, i64 pack, i64 pitch, i64 col_step,
                i64 col_stride, int add) {
#pragma omp parallel for schedule(static) if (o * r * s * c > 16384)
    for (i64 o0 = 0; o0 < o; o0 += 16)
        for (i64 t = 0; t < r; t++)
            for (i64 u = 0; u < s; u++)
                for (i64 c0 = 0; c0 < c; c0 += 16) {
                    const i64 oc = MIN(16, o - o0), cc = MIN(16, c - c0);
                    i64 tile[16][16];
                    for (i64 b = 0; b < cc; b++) {
                        i64 line[16] = {0};
                        for (i64 j = 0; j < pack; j++) {
                            const i64 column = pack == 1 ? u : u * col_step + j * col_stride;
                            const int32_t *from = acc + t * tap + (column * c + c0 + b) * pitch + j * o + o0;
                            for (i64 a = 0; a < oc; a++) line[a] += from[a];
                        }
                        for (i64 a = 0; a < oc; a++) tile[a][b] = line[a];
                    }
                    for (i64 a = 0; a < oc; a++) {
                        i64 *to = totals + (((o0 + a) * r + t) * s + u) * c + c0;
                        if (add)
                            for (i64 b = 0; b < cc; b++) to[b] += tile[a][b];
                        else
                            for (i64 b = 0; b < cc; b++) to[b] = tile[a][b];
                    }
                }
}

/* out (o, inner) = (factor * total + rows[o] + columns) * scale; columns is (o, inner) or NULL. */
void land_wgrad(const i64 *totals, float *out, i64 o, i64 inner, i64 factor, const i64 *rows, const i64 *columns,
                const float *scale, int scale_per_channel) {
#pragma omp parallel for schedule(static) if (o * inner > 16384)
    for (i64 k = 0; k < o; k++) {
        const i64 row = rows ? rows[k] : 0;
        const float value = scale[scale_per_channel ? k : 0];
        for (i64 i = 0; i < inner; i++)
            out[k * inner + i] = (float)(factor * totals[k * inner + i] + row + (columns ? columns[k * inner + i] : 0)) * value;
    }
}

/* ------------------------------------------------------------------------------------------------ weights as operands */

/* Lines (row_pack, pack, o) of (row span, span, cb) codes, zero where an output does not reach: w is (o, r, s, cb). */
void weight_lines(const int8_t *w, int8_t *lines, i64 o, i64 r, i64 s, const Geometry *g, i64 depth) {
    const i64 cb = g->cb, span = span_of(g), pack = g->pack;
#pragma omp parallel for collapse(2) schedule(static) if (g->row_pack * pack * o * depth > 65536)
    for (i64 j = 0; j < g->row_pack * pack; j++)
        for (i64 k = 0; k < o; k++) {
            int8_t *to = lines + (j * o + k) * depth;
            memset(to, 0, depth);
            for (i64 t = 0; t < r; t++) {
                const i64 row = g->row_pack == 1 ? t : t * g->row_step + j / pack * g->row_stride;
                const int8_t *from = w + (k * r + t) * s * cb;
                if (pack == 1)
                    memcpy(to + row * span * cb, from, s * cb);
                else
                    for (i64 u = 0; u < s; u++)
                        memcpy(to + (row * span + u * g->col_step + j % pack * g->col_stride) * cb, from + u * cb, cb);
            }
        }
}

/* What an offset of the other operand's grid adds to each output: other * (mult * sum of the output's codes + more). */
void code_columns(const int8_t *w, int32_t *columns, i64 o, i64 inner, i64 other, i64 mult, i64 more) {
#pragma omp parallel for schedule(static) if (o * inner > 65536)
    for (i64 k = 0; k < o; k++) columns[k] = (int32_t)(other * (mult * sum_codes(w + k * inner, inner) + more));
}

/* (o, r, s, c) codes -> (c, rows, columns, o): the taps r0 + t * rstep .. turned round, as dgrad reads them. */
void turn_weight(const int8_t *w, int8_t *to, i64 o, i64 r, i64 s, i64 c, i64 r0, i64 rstep, i64 rows, i64 s0, i64 sstep,
                 i64 columns) {
#pragma omp parallel for collapse(2) schedule(static) if (o * rows * columns * c > 16384)
    for (i64 t = 0; t < rows; t++)
        for (i64 u = 0; u < columns; u++) {
            const i64 tap_r = r0 + (rows - 1 - t) * rstep, tap_s = s0 + (columns - 1 - u) * sstep;
            for (i64 i = 0; i < o; i += TILE)
                for (i64 j = 0; j < c; j += TILE)
                    turn_tile(w + ((i * r + tap_r) * s + tap_s) * c + j, r * s * c, to + (j * rows * columns + t * columns + u) * o + i,
                              rows * columns * o, MIN(TILE, o - i), MIN(TILE, c - j));
        }
}

/* ---------------------------------------------------------------------------------------------------------- depthwise */

typedef int16_t halves16 __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

/* Where the taps of a place lie; taps outside lie on a frame of padding. */
typedef struct {
    const Geometry *g;
    const int8_t *image, *frame;
} Taps;

static inline const int8_t *tap_at(const Taps *taps, i64 i, i64 j, i64 t, i64 s) {
    const Geometry *g = taps->g;
    const i64 row = i * g->row_stride + g->row_start + t * g->row_step;
    const i64 column = j * g->col_stride + g->col_start + s * g->col_step;
    const int in = row >= 0 && row < g->h && column >= 0 && column < g->w;
    return in ? taps->image + (row * g->w + column) * g->c : taps->frame;
}

#if defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#include <immintrin.h>
#define PAIRED 1
#define PAIR_LANES 32 /* channels side by side; two values of a channel, 16 bits each, make a lane of a product */

/* 32 codes as 16 bits, those past the mask as 0 */
static inline __m512i widened(const int8_t *codes, __mmask32 mask) {
    return _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(mask, codes));
}

static inline __mmask32 lanes_from(i64 first, i64 c) {
    return c - first >= PAIR_LANES ? 0xffffffffu : (1u << (c - first)) - 1;
}

/* Pairs come in the order of unpacklo and unpackhi; these bring 32-bit sums back into that of the channels. */
static inline void store_pairs(int32_t *to, __m512i low, __m512i high, i64 left) {
    const __m512i front = _mm512_permutex2var_epi64(low, _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0), high);
    const __m512i back = _mm512_permutex2var_epi64(low, _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4), high);
    const uint32_t all = left >= PAIR_LANES ? 0xffffffffu : (1u << left) - 1;
    _mm512_mask_storeu_epi32(to, (__mmask16)all, front);
    _mm512_mask_storeu_epi32(to + 16, (__mmask16)(all >> 16), back);
}

/* w (taps, c) as pairs of neighbouring taps: (block of channels, pair, low and high, 32) */
static int16_t *paired_weight(const int16_t *w, i64 taps, i64 c) {
    const i64 blocks = (c + PAIR_LANES - 1) / PAIR_LANES, pairs = (taps + 1) / 2;
    int16_t *paired = aligned_alloc(64, blocks * pairs * 2 * PAIR_LANES * sizeof(int16_t));
    for (i64 b = 0; b < blocks; b++) {
        const __mmask32 mask = lanes_from(b * PAIR_LANES, c);
        for (i64 p = 0; p < pairs; p++) {
            const __m512i one = _mm512_maskz_loadu_epi16(mask, w + 2 * p * c + b * PAIR_LANES);
            const __m512i two = 2 * p + 1 < taps ? _mm512_maskz_loadu_epi16(mask, w + (2 * p + 1) * c + b * PAIR_LANES)
                                                 : _mm512_setzero_si512();
            int16_t *to = paired + (b * pairs + p) * 2 * PAIR_LANES;
            _mm512_store_si512(to, _mm512_unpacklo_epi16(one, two));
            _mm512_store_si512(to + PAIR_LANES, _mm512_unpackhi_epi16(one, two));
        }
    }
    return paired;
}

static inline void sums_of_place(const int8_t *const *from, const int16_t *paired, i64 pairs, i64 c, int32_t *to) {
    for (i64 k = 0; k < c; k += PAIR_LANES) {
        const __mmask32 mask = lanes_from(k, c);
        const int16_t *weight = paired + k * pairs * 2;
        __m512i low = _mm512_setzero_si512(), high = low;
        for (i64 p = 0; p < pairs; p++, weight += 2 * PAIR_LANES) {
            const __m512i one = widened(from[2 * p] + k, mask), two = widened(from[2 * p + 1] + k, mask);
            low = _mm512_dpwssd_epi32(low, _mm512_unpacklo_epi16(one, two), _mm512_load_si512(weight));
            high = _mm512_dpwssd_epi32(high, _mm512_unpackhi_epi16(one, two), _mm512_load_si512(weight + PAIR_LANES));
        }
        store_pairs(to + k, low, high, c - k);
    }
}
#else
#define PAIRED 0

static inline void sums_of_place(const int8_t *const *from, const int16_t *w, i64 taps, i64 c, int32_t *to) {
    i64 k = 0;
    for (; k + LANES <= c; k += LANES) {
        ints sum = {0};
        for (i64 u = 0; u < taps; u++)
            sum += __builtin_convertvector(*(const bytes *)(from[u] + k), ints) *
                   __builtin_convertvector(*(const halves16 *)(w + u * c + k), ints);
        *(ints *)(to + k) = sum;
    }
    for (; k < c; k++) {
        int32_t sum = 0;
        for (i64 u = 0; u < taps; u++) sum += (int32_t)from[u][k] * w[u * c + k];
        to[k] = sum;
    }
}
#endif

static int8_t *framed(i64 c, int8_t pad) {
    int8_t *frame = malloc(c + 64);
    memset(frame, pad, c + 64);
    return frame;
}

/* Direct sums of a depthwise convolution: acc (n, row_length, col_length, c) of a * w, w (r, s, c). */
void depthwise(const int8_t *restrict source, const int16_t *restrict w, int32_t *restrict acc, const Geometry *g,
               int8_t pad) {
    const i64 c = g->c, count = g->row_count * g->col_count;
    int8_t *frame = framed(c, pad);
#if PAIRED
    const i64 steps = (count + 1) / 2;
    int16_t *weight = paired_weight(w, count, c);
#else
    const i64 steps = count;
    const int16_t *weight = w;
#endif
#pragma omp parallel if (g->n * g->row_length * g->col_length * c > 4096)
    {
        const int8_t **from = malloc((count + 1) * sizeof(*from));
        from[count] = frame; /* the odd tap's partner, whose weight is 0 */
#pragma omp for collapse(2) schedule(static)
        for (i64 n = 0; n < g->n; n++)
            for (i64 i = 0; i < g->row_length; i++) {
                const Taps taps = {g, source + n * g->h * g->w * c, frame};
                for (i64 j = 0; j < g->col_length; j++) {
                    for (i64 t = 0; t < g->row_count; t++)
                        for (i64 s = 0; s < g->col_count; s++) from[t * g->col_count + s] = tap_at(&taps, i, j, t, s);
                    sums_of_place(from, weight, steps, c, acc + ((n * g->row_length + i) * g->col_length + j) * c);
                }
            }
        free(from);
    }
#if PAIRED
    free(weight);
#endif
    free(frame);
}

/* depthwise and land, `images` at a time, so that sums are landed while they lie in the second cache. */
void depthwise_land(const int8_t *source, const int16_t *w, int32_t *acc, const Geometry *geometry, int8_t pad, i64 images,
                    float *out, const Landing *landing, const int32_t *columns, const int32_t *places, const float *scale,
                    int scale_per_channel, const float *bias, const uint8_t *bits, i64 first_bit, const Sequel *then) {
    Geometry g = *geometry;
    Landing l = *landing;
    for (i64 n = 0; n < geometry->n; n += images) {
        g.n = l.n = MIN(images, geometry->n - n);
        depthwise(source + n * g.h * g.w * g.c, w, acc, &g, pad);
        land(acc, out + n * l.out_n, &l, NULL, columns, places, scale, scale_per_channel, bias, bits,
             first_bit + n * l.out_n, then);
    }
}

/* One row of outputs' share of a tap's sums for all channels: near += error * a, in the order that the pairs have. */
#if PAIRED
static void add_row(const Taps *taps, const int8_t *errors, i64 i, int32_t *near) {
    const Geometry *g = taps->g;
    const i64 c = g->c, length = g->col_length, blocks = (c + PAIR_LANES - 1) / PAIR_LANES;
    __m512i *paired = aligned_alloc(64, (length + 1) * sizeof(__m512i));
    for (i64 b = 0; b < blocks; b++) {
        const i64 k = b * PAIR_LANES;
        const __mmask32 mask = lanes_from(k, c);
        for (i64 j = 0; j < length; j += 2) {
            const __m512i one = widened(errors + j * c + k, mask);
            const __m512i two = j + 1 < length ? widened(errors + (j + 1) * c + k, mask) : _mm512_setzero_si512();
            paired[j] = _mm512_unpacklo_epi16(one, two);
            paired[j + 1] = _mm512_unpackhi_epi16(one, two);
        }
        for (i64 t = 0; t < g->row_count; t++)
            for (i64 s = 0; s < g->col_count; s++) {
                int32_t *to = near + ((t * g->col_count + s) * blocks + b) * PAIR_LANES;
                __m512i low = _mm512_loadu_si512(to), high = _mm512_loadu_si512(to + 16);
                for (i64 j = 0; j < length; j += 2) {
                    const __m512i one = widened(tap_at(taps, i, j, t, s) + k, mask);
                    const __m512i two = widened(tap_at(taps, i, j + 1 < length ? j + 1 : j, t, s) + k, mask);
                    low = _mm512_dpwssd_epi32(low, _mm512_unpacklo_epi16(one, two), paired[j]);
                    high = _mm512_dpwssd_epi32(high, _mm512_unpackhi_epi16(one, two), paired[j + 1]);
                }
                _mm512_storeu_si512(to, low);
                _mm512_storeu_si512(to + 16, high);
            }
    }
    free(paired);
}
static inline i64 near_pitch(i64 c) { return (c + PAIR_LANES - 1) / PAIR_LANES * PAIR_LANES; }
static inline i64 near_place(i64 k) { /* of channel k among 32: low and high hold fours in turn */
    return k / 32 * 32 + (k % 8 >= 4 ? 16 : 0) + k % 32 / 8 * 4 + k % 4;
}
#else
static void add_row(const Taps *taps, const int8_t *errors, i64 i, int32_t *near) {
    const Geometry *g = taps->g;
    const i64 c = g->c;
    for (i64 t = 0; t < g->row_count; t++)
        for (i64 s = 0; s < g->col_count; s++) {
            int32_t *restrict to = near + (t * g->col_count + s) * c;
            i64 k = 0;
            for (; k + LANES <= c; k += LANES) {
                ints sum = *(const ints *)(to + k);
                for (i64 j = 0; j < g->col_length; j++)
                    sum += __builtin_convertvector(*(const bytes *)(errors + j * c + k), ints) *
                           __builtin_convertvector(*(const bytes *)(tap_at(taps, i, j, t, s) + k), ints);
                *(ints *)(to + k) = sum;
            }
            for (; k < c; k++)
                for (i64 j = 0; j < g->col_length; j++)
                    to[k] += (int32_t)errors[j * c + k] * tap_at(taps, i, j, t, s)[k];
        }
}
static inline i64 near_pitch(i64 c) { return c; }
static inline i64 near_place(i64 k) { return k; }
#endif

/* Direct wgrad of a depthwise convolution: totals (r, s, c) int64 of a * error; one image's sums must fit int32. */
void depthwise_wgrad(const int8_t *restrict source, const int8_t *restrict error, i64 *totals, const Geometry *g,
                     int8_t pad) {
    const i64 c = g->c, taps_in_all = g->row_count * g->col_count, pitch = near_pitch(c);
    int8_t *frame = framed(c, pad);
    memset(totals, 0, taps_in_all * c * sizeof(i64));
#pragma omp parallel if (g->n * g->row_length * g->col_length * c > 4096)
    {
        i64 *own = calloc(taps_in_all * pitch, sizeof(i64));
        int32_t *near = malloc(taps_in_all * pitch * sizeof(int32_t)); /* one image's sums */
#pragma omp for schedule(static)
        for (i64 n = 0; n < g->n; n++) {
            const Taps taps = {g, source + n * g->h * g->w * c, frame};
            memset(near, 0, taps_in_all * pitch * sizeof(int32_t));
            for (i64 i = 0; i < g->row_length; i++)
                add_row(&taps, error + (n * g->row_length + i) * g->col_length * c, i, near);
            for (i64 k = 0; k < taps_in_all * pitch; k++) own[k] += near[k];
        }
#pragma omp critical
        for (i64 t = 0; t < taps_in_all; t++)
            for (i64 k = 0; k < c; k++) totals[t * c + k] += own[t * pitch + near_place(k)];
        free(own);
        free(near);
    }
    free(frame);
}

/* --------------------------------------------------------------------------------- batch-norm, activations and pooling */

/* Mean and sum of squared deviations per channel, x as (rows, c): blocks joined by Chan's formula in double. */
void norm_stats(const float *restrict x, i64 rows, i64 c, double *mean, double *m2) {
    const i64 fold = fold_of(c), block = WIDE_ROWS * fold, blocks = (rows + block - 1) / block;
    float *means = malloc((blocks * c + 1) * sizeof(float)), *squares = malloc((blocks * c + 1) * sizeof(float));
#pragma omp parallel if (rows * c > 16384)
    {
        float *space = malloc((2 * fold * c + 1) * sizeof(float));
#pragma omp for schedule(static)
        for (i64 b = 0; b < blocks; b++)
            block_stats(x + b * block * c, MIN(block, rows - b * block) * c, c, fold, space, means + b * c, squares + b * c);
        free(space);
    }
    join_stats(means, squares, block, rows, c, mean, m2);
    free(means);
    free(squares);
}

static inline float between(float from, float to, float share) { /* torch's lerp */
    return share < 0.5f ? from + share * (to - from) : to - (to - from) * (1.0f - share);
}

/* What normalising needs: y = (x - rounded) * factor + shift. Folds the batch into the running statistics, if given. */
void norm_factors(const double *mean, const double *m2, i64 rows, i64 c, double eps, const float *weight,
                  const float *bias, float *rounded, float *factor, float *shift, float *inverse, float *running_mean,
                  float *running_var, float share) {
    for (i64 k = 0; k < c; k++) {
        const double inverse_k = 1.0 / sqrt(m2[k] / rows + eps), factor_k = inverse_k * weight[k];
        rounded[k] = (float)mean[k];
        factor[k] = (float)factor_k;
        shift[k] = (float)(bias[k] - (mean[k] - rounded[k]) * factor_k); /* what rounding the mean left over */
        inverse[k] = (float)inverse_k;
        if (running_mean) {
            running_mean[k] = between(running_mean[k], rounded[k], share);
            running_var[k] = between(running_var[k], (float)(m2[k] / (rows - 1)), share);
        }
    }
}

static inline uint16_t bf16_of(float value) {
    uint32_t word;
    memcpy(&word, &value, 4);
    if ((word & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((word >> 16) | 0x40); /* NaN stays one */
    return (uint16_t)((word + 0x7fffu + ((word >> 16) & 1)) >> 16);
}

/* The largest value under a ceiling; an infinite one stops nothing, as in torch's ReLU. */
static inline float below_ceiling(float ceiling) { return isinf(ceiling) ? ceiling : nextafterf(ceiling, 0.0f); }

/* y = (x - mean) * factor + shift per channel (a large mean does not cancel after rounding). With halves also x in bf16. */
void norm_apply(const float *restrict x, float *restrict y, i64 rows, i64 c, const float *mean, const float *factor,
                const float *shift, uint16_t *restrict halves) {
    const i64 fold = fold_of(c), width = fold * c, size = rows * c;
    float *restrict means = repeated(mean, c, fold);
    float *restrict factors = repeated(factor, c, fold), *restrict shifts = repeated(shift, c, fold);
#pragma omp parallel for schedule(static) if (size > 16384)
    for (i64 row = 0; row < size; row += width)
        for (i64 k0 = 0; k0 < MIN(width, size - row); k0 += BLOCK) {
            const i64 at = row + k0, run = MIN(BLOCK, MIN(width, size - row) - k0);
            const float *restrict m = means + k0, *restrict a = factors + k0, *restrict b = shifts + k0;
            const float *restrict from = x + at;
            float *restrict to = y + at;
            for (i64 k = 0; k < run; k++) to[k] = (from[k] - m[k]) * a[k] + b[k];
            if (halves)
                for (i64 k = 0; k < run; k++) halves[at + k] = bf16_of(from[k]);
        }
    free(means);
    free(factors);
    free(shifts);
}

/* What norm_codes reads and writes, per-channel numbers repeated to a wide row. */
typedef struct {
    const float *x, *residual, *mean, *factor, *shift;
    float *y;
    int8_t *codes;
    uint8_t *gate, *inside;
    float ceiling, levels, offset;
    int streams; /* y is written past the caches */
} Coding;

/* Values [at .. at + run), numbers from wide[k0] on; 0 added to `bad` for what is finite. */
static void code_few(const Coding *w, i64 at, i64 k0, i64 run, float *bad) {
    const float below = below_ceiling(w->ceiling);
    uint8_t gates[BLOCK + 8], insides[BLOCK + 8];
    for (i64 k = 0; k < run; k++) {
        float v = w->x[at + k];
        if (w->mean) v = (v - w->mean[k0 + k]) * w->factor[k0 + k] + w->shift[k0 + k];
        if (w->residual) v = v + w->residual[at + k];
        gates[k] = !(v <= 0.0f) & !(v > below);
        v = v <= 0.0f ? 0.0f : (v > below ? w->ceiling : v);
        insides[k] = (v >= 0.0f) & (v <= 1.0f);
        *bad += v * 0.0f;
        if (w->y) w->y[at + k] = v;
        if (w->codes) {
            const float rounded = ((v > 1.0f ? 1.0f : v) * w->levels + ROUNDER) - ROUNDER;
            w->codes[at + k] = (int8_t)(int32_t)(rounded - w->offset);
            gates[k] &= w->inside ? 1 : insides[k];
        }
    }
    pack_run(gates, at, run, w->gate);
    if (w->inside) pack_run(insides, at, run, w->inside);
}

#ifdef __AVX512F__
/* The same for 16 values at a time; `run` is a multiple of 16. The flags are constants where it is called. */
static inline __attribute__((always_inline)) void code_run(const Coding *w, i64 at, i64 k0, i64 run, __m512 *bad,
                                                           const int mean, const int residual, const int y,
                                                           const int codes, const int inside) {
    const __m512 zero = _mm512_setzero_ps(), one = _mm512_set1_ps(1.0f), ceiling = _mm512_set1_ps(w->ceiling);
    const __m512 below = _mm512_set1_ps(below_ceiling(w->ceiling)), levels = _mm512_set1_ps(w->levels);
    const __m512i offset = _mm512_set1_epi32((int32_t)w->offset);
    for (i64 k = 0; k < run; k += LANES) {
        __m512 v = _mm512_loadu_ps(w->x + at + k);
        if (mean) {
            v = _mm512_sub_ps(v, _mm512_loadu_ps(w->mean + k0 + k));
            v = _mm512_mul_ps(v, _mm512_loadu_ps(w->factor + k0 + k));
            v = _mm512_add_ps(v, _mm512_loadu_ps(w->shift + k0 + k));
        }
        if (residual) v = _mm512_add_ps(v, _mm512_loadu_ps(w->residual + at + k));
        uint16_t gate = _mm512_cmp_ps_mask(v, zero, _CMP_NLE_UQ) & _mm512_cmp_ps_mask(v, below, _CMP_NGT_UQ);
        v = _mm512_min_ps(ceiling, _mm512_max_ps(zero, v)); /* the second operand where one is NaN */
        *bad = _mm512_add_ps(*bad, _mm512_mul_ps(v, zero));
        if (y) put(w->y + at + k, (floats)v, w->streams);
        if (codes) {
            const uint16_t in = _mm512_cmp_ps_mask(v, one, _CMP_LE_OQ);
            const __m512 scaled = _mm512_mul_ps(_mm512_min_ps(v, one), levels);
            const __m512i code = _mm512_sub_epi32(_mm512_cvtps_epi32(scaled), offset); /* half to even */
            _mm_storeu_si128((__m128i *)(w->codes + at + k), _mm512_cvtepi32_epi8(code));
            if (inside)
                memcpy(w->inside + (at + k) / 8, &in, 2);
            else
                gate &= in;
        }
        memcpy(w->gate + (at + k) / 8, &gate, 2);
    }
}
#endif

/* y = min(max((x - mean) * factor + shift + residual, 0), ceiling) and its codes as act_codes makes them; mean NULL leaves
 * x as it is, and residual, y, codes, halves (x in bf16) may be NULL. gate takes the bits of 0 < y < ceiling and inside
 * those of 0 <= y <= 1; without inside, gate takes both at once. 1 if all of y is finite. */
int norm_codes(const float *x, const float *residual, float *y, int8_t *codes, i64 rows, i64 c, const float *mean,
               const float *factor, const float *shift, uint8_t *gate, uint8_t *inside, float ceiling,
               uint16_t *restrict halves, float levels, float offset) {
    const i64 fold = fold_of(c), width = fold * c, size = rows * c;
    float *means = mean ? repeated(mean, c, fold) : NULL;
    float *factors = mean ? repeated(factor, c, fold) : NULL, *shifts = mean ? repeated(shift, c, fold) : NULL;
    const Coding work = {x, residual, means, factors, shifts, y, codes, gate, inside, ceiling, levels, offset,
                         y && can_stream(y, width, size)};
    int finite = 1;
#pragma omp parallel for schedule(static) reduction(&& : finite) if (size > 16384)
    for (i64 row = 0; row < size; row += width) {
        const Coding w = work;
        float bad = 0.0f;
        for (i64 k0 = 0; k0 < MIN(width, size - row); k0 += BLOCK) {
            const i64 at = row + k0, run = MIN(BLOCK, MIN(width, size - row) - k0);
            i64 done = 0;
#ifdef __AVX512F__
            __m512 bads = _mm512_setzero_ps();
            done = run / LANES * LANES;
            if (w.mean && w.codes && !w.y && !w.residual)
                code_run(&w, at, k0, done, &bads, 1, 0, 0, 1, 0);
            else if (w.mean && w.codes && w.y && w.inside)
                code_run(&w, at, k0, done, &bads, 1, w.residual != NULL, 1, 1, 1);
            else
                code_run(&w, at, k0, done, &bads, w.mean != NULL, w.residual != NULL, w.y != NULL, w.codes != NULL,
                         w.inside != NULL);
            bad += _mm512_reduce_add_ps(bads);
#endif
            if (done < run) code_few(&w, at + done, k0 + done, run - done, &bad);
            if (halves)
                for (i64 k = 0; k < run; k++) halves[at + k] = bf16_of(x[at + k]);
        }
#ifdef __AVX512F__
        if (w.streams) _mm_sfence();
#endif
        finite = finite && bad == 0.0f;
    }
    free(means);
    free(factors);
    free(shifts);
    return finite;
}

/* g = grad where bits pass it, written to kept if that is not NULL, and its sums over rows: of g and of g * (x - mean). */
void norm_sums(const float *grad, const float *restrict x, const uint16_t *restrict halves,
               const uint8_t *restrict bits, float *kept, i64 rows, i64 c, const float *mean, double *sum, double *dot) {
    const i64 fold = fold_of(c), block = WIDE_ROWS * fold, blocks = (rows + block - 1) / block;
    float *sums = malloc((blocks * c + 1) * sizeof(float)), *dots = malloc((blocks * c + 1) * sizeof(float));
    float *means = repeated(mean, c, fold);
#pragma omp parallel if (rows * c > 16384)
    {
        float *space = malloc((2 * fold * c + 1) * sizeof(float));
#pragma omp for schedule(static)
        for (i64 b = 0; b < blocks; b++)
            block_sums(grad, x, halves, bits, kept, b * block * c, MIN(block, rows - b * block) * c, c, fold, means, space,
                       sums + b * c, dots + b * c);
        free(space);
    }
    join_sums(sums, dots, blocks, c, sum, dot);
    free(sums);
    free(dots);
    free(means);
}

/* What the way back needs: dx = g * factor + (x - mean) * slope + shift; and the parameters' gradients. */
void norm_slopes(const double *sum, const double *dot, i64 rows, i64 c, const float *weight, const float *inverse,
                 float *factor, float *slope, float *shift, float *d_weight, float *d_bias) {
    for (i64 k = 0; k < c; k++) {
        factor[k] = weight[k] * inverse[k];
        slope[k] = (float)(dot[k] * (double)(factor[k] * (inverse[k] * inverse[k])) / -(double)rows);
        shift[k] = (float)(sum[k] * factor[k] / -(double)rows);
        d_weight[k] = (float)(dot[k] * inverse[k]);
        d_bias[k] = (float)sum[k];
    }
}

/* dx = g * factor + (x - mean) * slope + shift per channel, g masked by bits; x from halves if NULL. Largest |dx|; NaN
 * where any is. */
float norm_backward(const float *restrict grad, const float *restrict x, const uint16_t *restrict halves,
                   const uint8_t *restrict bits, float *restrict dx, i64 rows, i64 c, const float *mean,
                   const float *factor, const float *slope, const float *shift) {
    const i64 fold = fold_of(c), width = fold * c, size = rows * c;
    float *means = repeated(mean, c, fold), *factors = repeated(factor, c, fold);
    float *slopes = repeated(slope, c, fold), *shifts = repeated(shift, c, fold);
    int32_t largest = 0; /* as bits: those of |d| are in the order of the values, infinity and NaN above them all */
#pragma omp parallel for schedule(static) reduction(max : largest) if (size > 16384)
    for (i64 row = 0; row < size; row += width)
        for (i64 k0 = 0; k0 < MIN(width, size - row); k0 += BLOCK) {
            const i64 at = row + k0, run = MIN(BLOCK, MIN(width, size - row) - k0);
            float g_space[BLOCK], x_space[BLOCK];
            const float *g = masked(grad, bits, at, run, g_space), *v = whole(x, halves, at, run, x_space);
            const float *restrict m = means + k0, *restrict f = factors + k0;
            const float *restrict p = slopes + k0, *restrict q = shifts + k0;
            float *restrict to = dx + at;
            ints most = {0};
            i64 k = 0;
            for (; k + LANES <= run; k += LANES) {
#define AT(array) (*(const floats *)((array) + k))
                const floats d = AT(g) * AT(f) + (AT(v) - AT(m)) * AT(p) + AT(q);
#undef AT
                const ints size_of = (ints)d & 0x7fffffff;
                *(floats *)(to + k) = d;
#ifdef __AVX512F__
                most = (ints)_mm512_max_epi32((__m512i)most, (__m512i)size_of);
#else
                most = (size_of & (size_of > most)) | (most & ~(size_of > most));
#endif
            }
            for (; k < run; k++) {
                const float d = g[k] * f[k] + (v[k] - m[k]) * p[k] + q[k];
                int32_t word;
                memcpy(&word, &d, 4);
                to[k] = d;
                most[0] = MAX(most[0], word & 0x7fffffff);
            }
            for (int lane = 0; lane < LANES; lane++) largest = MAX(largest, most[lane]);
        }
    free(means);
    free(factors);
    free(slopes);
    free(shifts);
    float amax;
    memcpy(&amax, &largest, 4);
    return largest < 0x7f800000 ? amax : NAN;
}

/* Two codes of -8..7 in a byte, the even one in the low half; an odd count ends with a zero. */
void pack_nibbles(const int8_t *restrict codes, uint8_t *restrict packed, i64 size) {
#pragma omp parallel for schedule(static) if (size > 65536)
    for (i64 first = 0; first < size / 2; first += BLOCK) {
        const i64 last = MIN(first + BLOCK, size / 2);
        for (i64 i = first; i < last; i++)
            packed[i] = (uint8_t)((codes[2 * i] & 15) | ((uint8_t)codes[2 * i + 1] << 4));
    }
    if (size % 2) packed[size / 2] = (uint8_t)(codes[size - 1] & 15);
}

void unpack_nibbles(const uint8_t *restrict packed, int8_t *restrict codes, i64 size) {
#pragma omp parallel for schedule(static) if (size > 65536)
    for (i64 first = 0; first < size / 2; first += BLOCK) {
        const i64 last = MIN(first + BLOCK, size / 2);
        for (i64 i = first; i < last; i++) {
            codes[2 * i] = (int8_t)((int8_t)(packed[i] << 4) >> 4);
            codes[2 * i + 1] = (int8_t)((int8_t)packed[i] >> 4);
        }
    }
    if (size % 2) codes[size - 1] = (int8_t)((int8_t)(packed[size / 2] << 4) >> 4);
}

/* y = min(max(x, 0), ceiling), bits where 0 < x < ceiling; in place if y == x. */
void rectify(const float *x, float *y, uint8_t *bits, i64 size, float ceiling) {
    const float below = below_ceiling(ceiling);
#pragma omp parallel for schedule(static) if (size > 16384)
    for (i64 first = 0; first < size; first += BLOCK) {
        const i64 count = MIN(BLOCK, size - first);
        uint8_t flags[BLOCK + 8];
        for (i64 i = 0; i < count; i++) {
            const float v = x[first + i];
            flags[i] = !(v <= 0.0f) & !(v > below);
            y[first + i] = v <= 0.0f ? 0.0f : (v > below ? ceiling : v);
        }
        pack_run(flags, first, count, bits);
    }
}

/* out = grad where a bit is set, 0 elsewhere (as torch's threshold backward: a NaN behind a zero bit is dropped). */
void rectify_backward(const float *grad, const uint8_t *bits, float *out, i64 size) {
#pragma omp parallel for schedule(static) if (size > 16384)
    for (i64 first = 0; first < size; first += BLOCK) {
        const i64 count = MIN(BLOCK, size - first);
        uint8_t flags[BLOCK];
        unpack_run(bits, first, count, flags);
        for (i64 i = 0; i < count; i++) out[first + i] = flags[i] ? grad[first + i] : 0.0f;
    }
}

/* Largest value of each window, (n, row_length, col_length, c), and which tap it was (the first of equals; NaN wins). */
void max_pool(const float *x, float *y, uint8_t *taps, const Geometry *g) {
    const i64 c = g->c;
#pragma omp parallel for collapse(2) schedule(static) if (g->n * g->row_length * g->col_length * c > 4096)
    for (i64 n = 0; n < g->n; n++)
        for (i64 i = 0; i < g->row_length; i++)
            for (i64 j = 0; j < g->col_length; j++) {
                const i64 at = ((n * g->row_length + i) * g->col_length + j) * c;
                for (i64 k = 0; k < c; k++) {
                    y[at + k] = -INFINITY;
                    taps[at + k] = 255;
                }
                for (i64 t = 0; t < g->row_count; t++) {
                    const i64 row = i * g->row_stride + g->row_start + t * g->row_step;
                    if (row < 0 || row >= g->h) continue;
                    for (i64 s = 0; s < g->col_count; s++) {
                        const i64 column = j * g->col_stride + g->col_start + s * g->col_step;
                        if (column < 0 || column >= g->w) continue;
                        const float *from = x + ((n * g->h + row) * g->w + column) * c;
                        const uint8_t tap = (uint8_t)(t * g->col_count + s);
                        for (i64 k = 0; k < c; k++) {
                            const int better = (from[k] > y[at + k]) | (from[k] != from[k]) | (taps[at + k] == 255);
                            y[at + k] = better ? from[k] : y[at + k];
                            taps[at + k] = better ? tap : taps[at + k];
                        }
                    }
                }
            }
}

/* The other way: each window's gradient goes to its tap. dx is set whole. */
void max_pool_backward(const float *grad, const uint8_t *taps, float *dx, const Geometry *g) {
    const i64 c = g->c;
#pragma omp parallel for schedule(static)
    for (i64 n = 0; n < g->n; n++) {
        memset(dx + n * g->h * g->w * c, 0, g->h * g->w * c * sizeof(float));
        for (i64 i = 0; i < g->row_length; i++)
            for (i64 j = 0; j < g->col_length; j++) {
                const i64 at = ((n * g->row_length + i) * g->col_length + j) * c;
                for (i64 t = 0; t < g->row_count; t++) {
                    const i64 row = i * g->row_stride + g->row_start + t * g->row_step;
                    if (row < 0 || row >= g->h) continue;
                    for (i64 s = 0; s < g->col_count; s++) {
                        const i64 column = j * g->col_stride + g->col_start + s * g->col_step;
                        if (column < 0 || column >= g->w) continue;
                        float *to = dx + ((n * g->h + row) * g->w + column) * c;
                        const uint8_t tap = (uint8_t)(t * g->col_count + s);
                        for (i64 k = 0; k < c; k++) to[k] += taps[at + k] == tap ? grad[at + k] : 0.0f;
                    }
                }
            }
    }
}

/* Option A's shortcut: y (n, ceil(h / stride), ceil(w / stride), half + c + half) takes every stride-th pixel of x
 * (n, h, w, c), and zeros in the channels before and after. */
void pad_shortcut(const float *restrict x, float *restrict y, i64 n, i64 h, i64 w, i64 c, i64 half, i64 stride) {
    const i64 rows = (h + stride - 1) / stride, cols = (w + stride - 1) / stride, wide = c + 2 * half;
#pragma omp parallel for schedule(static) if (n * rows * cols * wide > 16384)
    for (i64 line = 0; line < n * rows; line++) {
        const float *from = x + (line / rows * h + line % rows * stride) * w * c;
        float *to = y + line * cols * wide;
        for (i64 j = 0; j < cols; j++, from += stride * c, to += wide) {
            for (i64 k = 0; k < half; k++) to[k] = 0.0f;
            for (i64 k = 0; k < c; k++) to[half + k] = from[k];
            for (i64 k = half + c; k < wide; k++) to[k] = 0.0f;
        }
    }
}

/* The other way: each gradient goes to the pixel it was taken from, beside zeros, or is `added` to what dx holds. */
void pad_shortcut_backward(const float *restrict grad, float *restrict dx, i64 n, i64 h, i64 w, i64 c, i64 half,
                           i64 stride, int added) {
    const i64 rows = (h + stride - 1) / stride, cols = (w + stride - 1) / stride, wide = c + 2 * half;
#pragma omp parallel for schedule(static) if (n * h * w * c > 16384)
    for (i64 line = 0; line < n * rows; line++) {
        const i64 row = line % rows * stride;
        const float *from = grad + line * cols * wide + half;
        float *to = dx + (line / rows * h + row) * w * c;
        if (!added) memset(to, 0, MIN(stride, h - row) * w * c * sizeof(float));
        for (i64 j = 0; j < cols; j++, from += wide, to += stride * c)
            if (added)
                for (i64 k = 0; k < c; k++) to[k] += from[k];
            else
                for (i64 k = 0; k < c; k++) to[k] = from[k];
    }
}

/* ---------------------------------------------------- tables: a function of one or two numbers, read at many places */

/* Where a value lies along an axis of `nodes` nodes over -1..1: its cell, and how far into it. NaN stays in the share. */
static inline int32_t cell_of(float value, i64 nodes, float *share) {
    const float top = (float)(nodes - 1);
    float at = (value + 1.0f) * (0.5f * top);
    at = at < 0.0f ? 0.0f : (at > top ? top : at);
    const float inside = at == at ? at : 0.0f; /* an index has to be one also where there is no number */
    const int32_t first = (int32_t)inside, last = (int32_t)(nodes - 2);
    const int32_t cell = first < last ? first : last;
    *share = at - (float)cell;
    return cell;
}

/* Cells and shares of a run of places; `y` is NULL for a table of one row. */
static inline void find_cells(const float *x, const float *y, i64 count, i64 rows, i64 cols, float slope_x,
                              float slope_y, int32_t *cells, float *share_x, float *share_y) {
    for (i64 i = 0; i < count; i++) cells[i] = cell_of(x[i] * slope_x, cols, share_x + i);
    if (y == NULL)
        for (i64 i = 0; i < count; i++) share_y[i] = 0.0f;
    else
        for (i64 i = 0; i < count; i++)
            cells[i] += cell_of(y[i] * slope_y, rows, share_y + i) * (int32_t)(cols - 1);
}

/* The table read at x * slope_x and y * slope_y in -1..1, (bi)linearly, and joined to the gradient:
 * out = (added ? grad : 0) + core * (gains ? gains[i] : gain). A cell holds its first node, the rise by either
 * input and by both, so that one place reads one line. `poison` is 0, or NaN for a layer that is not finite. */
void table_read(const float *restrict table, i64 rows, i64 cols, const float *x, const float *y, float slope_x,
                float slope_y, const float *grad, const float *gains, float gain, int added, float poison,
                float *restrict out, i64 size) {
#pragma omp parallel for schedule(static) if (size > 16384)
    for (i64 first = 0; first < size; first += BLOCK) {
        const i64 count = MIN(BLOCK, size - first);
        int32_t cells[BLOCK];
        float share_x[BLOCK], share_y[BLOCK], core[BLOCK];
        find_cells(x + first, y == NULL ? NULL : y + first, count, rows, cols, slope_x, slope_y, cells, share_x, share_y);
        for (i64 i = 0; i < count; i++) {
            const float *cell = table + 4 * cells[i];
            core[i] = (cell[0] + share_x[i] * cell[1]) + share_y[i] * (cell[2] + share_x[i] * cell[3]) + poison;
        }
        if (gains == NULL)
            for (i64 i = 0; i < count; i++) core[i] *= gain;
        else
            for (i64 i = 0; i < count; i++) core[i] *= gains[first + i];
        if (added)
            for (i64 i = 0; i < count; i++) out[first + i] = grad[first + i] + core[i];
        else
            memcpy(out + first, core, count * sizeof(float));
    }
}

/* The adjoint: `values` times the gain go to (copies, cells, 4) sums, shared out among `copies` so that no two threads
 * meet and the order of the sums depends on their number alone. */
void table_scatter(double *restrict sums, i64 copies, i64 rows, i64 cols, const float *x, const float *y, float slope_x,
                   float slope_y, const float *values, const float *gains, float gain, i64 size) {
    const i64 cells_in_all = MAX(1, rows - 1) * (cols - 1), share = (size + copies - 1) / copies;
#pragma omp parallel for schedule(static, 1) if (size > 16384)
    for (i64 copy = 0; copy < copies; copy++) {
        double *own = sums + copy * cells_in_all * 4;
        const i64 end = MIN(size, (copy + 1) * share);
        for (i64 first = copy * share; first < end; first += BLOCK) {
            const i64 count = MIN(BLOCK, end - first);
            int32_t cells[BLOCK];
            float share_x[BLOCK], share_y[BLOCK], quads[4 * BLOCK];
            find_cells(x + first, y == NULL ? NULL : y + first, count, rows, cols, slope_x, slope_y, cells, share_x,
                       share_y);
            for (i64 i = 0; i < count; i++) {
                const float value = values[first + i] * (gains == NULL ? gain : gains[first + i]);
                quads[4 * i] = value;
                quads[4 * i + 1] = value * share_x[i];
                quads[4 * i + 2] = value * share_y[i];
                quads[4 * i + 3] = value * share_x[i] * share_y[i];
            }
            for (i64 i = 0; i < count; i++) {
                double *to = own + 4 * (i64)cells[i];
                for (int k = 0; k < 4; k++) to[k] += (double)quads[4 * i + k];
            }
        }
    }
}
