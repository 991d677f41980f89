/* Quantization of feature maps in one pass, the deviations of their channels in another, and the convolution of
 * integers bit plane by bit plane: AND and popcount.
 *
 * A code of b bits is the sum over planes i of 2^i times its bit i; in two's complement the last plane counts -2^(b-1).
 * A product of activations x and weights w, summed over channels and taps, is then
 *
 *     sum over i, j of +-2^(i + j) popcount(x_i & w_j).
 *
 * Planes of activations: uint64_t planes[bit][word][(height + 2 pad) * (width + 2 pad)] and SLACK words behind the last
 * one; word k holds channels 64 k to 64 k + 63, channel 64 k in the lowest bit. A tap is an offset into a plane, so
 * nothing is copied for it. Planes of weights: for each block of up to 32 output channels
 * uint64_t weights[bit][word * taps + tap][channel of the block], the block rounded up to 8 channels.
 */

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#define X86 1
#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq")))
#else
#define X86 0
#endif

/* Small loops of a constant length, whose sums are to stay in registers. */
#define UNROLLED _Pragma("GCC unroll 8")
#define INLINE static inline __attribute__((always_inline))

enum { PLAIN_C, WITH_AVX2, WITH_AVX512 };
enum {
    PIXELS = 6,        /* that a block computes at once */
    LANES = 8,         /* output channels that share a vector of weights */
    GROUPS = 4,        /* vectors of weights that a block uses at once */
    WORD = 64,         /* channels in a word */
    MOST_OFFSETS = 1024 /* words times taps */
};

typedef struct {
    const uint64_t *planes;
    ptrdiff_t plane;          /* words between two bits */
    int act_bits, act_signed, weight_bits;
    int steps;                /* words times taps */
    ptrdiff_t offset[MOST_OFFSETS]; /* of each word and tap in a plane */
} Job;

int instruction_set(int set)
{
#if X86
    if (set == WITH_AVX512)
        return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vpopcntdq");
    if (set == WITH_AVX2)
        return !!__builtin_cpu_supports("avx2");
#endif
    return set == PLAIN_C;
}

/* The same code for each instruction set, made by the compiler from a function that is inlined into all. */
#if X86
#define FOR_EACH_SET(name, parameters, call)                                                                           \
    static void name##_plain parameters { call; }                                                                      \
    AVX2 static void name##_avx2 parameters { call; }                                                                  \
    AVX512 static void name##_avx512 parameters { call; }                                                              \
    static void (*const name##_in[]) parameters = {name##_plain, name##_avx2, name##_avx512};
#else
#define FOR_EACH_SET(name, parameters, call)                                                                           \
    static void name##_plain parameters { call; }                                                                      \
    static void (*const name##_in[]) parameters = {name##_plain};
#endif

/* ---- quantization ---- */

/* A grid: clamp(round(x / divisor * factor), least, most) stands for that integer / factor * divisor. */
typedef struct {
    float divisor, factor, least, most;
} Grid;

/* The order of the operations is that of the simulation, so that ties are the same. Adding and subtracting 1.5 * 2^23
 * rounds to the nearest integer, ties to even. The sign is kept for -0, which small negative values become. NaN stays,
 * since it is neither below nor above. */
INLINE float rounded(float x, Grid grid)
{
    const float magic = 12582912.0f;
    float ratio = x / grid.divisor * grid.factor;
    ratio = ratio < grid.least ? grid.least : ratio;
    ratio = ratio > grid.most ? grid.most : ratio;
    return __builtin_copysignf((ratio + magic) - magic, ratio);
}

INLINE float value_of(float rounded, Grid grid)
{
    return rounded / grid.factor * grid.divisor;
}

INLINE void quantize_with(const float *restrict x, ptrdiff_t count, Grid grid, float *restrict values)
{
    for (ptrdiff_t i = 0; i < count; i++)
        values[i] = value_of(rounded(x[i], grid), grid);
}

FOR_EACH_SET(quantize, (const float *x, ptrdiff_t count, Grid grid, float *values),
             quantize_with(x, count, grid, values))

/* The values on the grid that are nearest to `count` values, in the same order in memory. */
void quantize(int set, const float *x, ptrdiff_t count, float divisor, float factor, float least, float most,
              float *values)
{
    quantize_in[set](x, count, (Grid){divisor, factor, least, most}, values);
}

/* ---- the deviation of each channel ---- */

/* Adds a pixel's differences from the first pixel, and their squares, to the sums of each channel. */
INLINE void add_pixel(const float *restrict x, const float *restrict first, int count, double *restrict sum,
                      double *restrict square)
{
    for (int c = 0; c < count; c++) {
        double d = (double)x[c] - first[c];
        sum[c] += d;
        square[c] += d * d;
    }
}

/* One pass: the sum of squares about the mean of n values is sum(d^2) - sum(d)^2 / n, d = x - pivot. The difference
 * cancels digits where the pivot is far from the mean. Here it is one of the values, which lie at most sqrt(n)
 * deviations from their mean (Samuelson 1968). So sum(d^2) is at most n + 1 times the result, and doubles have digits
 * enough. Sums of 64 channels stay in the first cache. */
INLINE void deviations_with(const float *x, ptrdiff_t pixels, int channels, double *deviations)
{
    for (int first = 0; first < channels; first += WORD) {
        int count = channels - first < WORD ? channels - first : WORD;
        double sum[WORD] = {0}, square[WORD] = {0};
        for (ptrdiff_t p = 0; p < pixels; p++)
            add_pixel(x + p * channels + first, x + first, count, sum, square);
        for (int c = 0; c < count; c++) {
            double rest = square[c] - sum[c] * sum[c] / (double)pixels;
            rest = rest < 0 ? 0 : rest; /* NaN stays */
            deviations[first + c] = __builtin_sqrt(rest / (double)(pixels > 1 ? pixels - 1 : 1));
        }
    }
}

FOR_EACH_SET(deviations, (const float *x, ptrdiff_t pixels, int channels, double *deviations),
             deviations_with(x, pixels, channels, deviations))

/* The unbiased standard deviation over the pixels of each channel of a map (pixels, channels); 0 for a single pixel. */
void deviations(int set, const float *x, ptrdiff_t pixels, int channels, double *deviations)
{
    deviations_in[set](x, pixels, channels, deviations);
}

/* The place of the largest logit, weight (candidates, 2 + channels) times features plus bias. Features are two gradients
 * of the patch and the deviations of the channels, or their logarithms: of values below the floor that of the floor.
 * A floor of 0 takes the values themselves. Where all logits are NaN it is 0, as torch.argmax says. */
int largest_logit(int set, const float *x, ptrdiff_t pixels, int channels, const float *gradient, const double *weight,
                  const double *bias, int candidates, double floor)
{
    double features[2 + channels];
    features[0] = gradient[0];
    features[1] = gradient[1];
    deviations(set, x, pixels, channels, features + 2);
    for (int c = 0; floor > 0 && c < 2 + channels; c++)
        features[c] = log(features[c] < floor ? floor : features[c]);
    int best = 0;
    double largest = 0;
    for (int k = 0; k < candidates; k++) {
        double logit = bias[k];
        for (int c = 0; c < 2 + channels; c++)
            logit += weight[k * (2 + channels) + c] * features[c];
        if (k == 0 || logit > largest) {
            best = k;
            largest = logit;
        }
    }
    return best;
}

/* ---- quantization, and planes of the codes ---- */

/* The codes of up to 64 values, and the values that they stand for. The code of NaN is INT32_MIN. */
INLINE void encode(const float *x, int count, Grid grid, int zero, int32_t *codes, float *values)
{
    for (int c = 0; c < count; c++) {
        float integer = rounded(x[c], grid);
        codes[c] = integer == integer ? (int32_t)integer + zero : INT32_MIN;
        if (values)
            values[c] = value_of(integer, grid);
    }
}

static void planes_in_c(const uint8_t *codes, int bits, uint64_t *planes, ptrdiff_t plane)
{
    for (int i = 0; i < bits; i++) {
        uint64_t word = 0;
        for (int c = 0; c < WORD; c++)
            word |= (uint64_t)((codes[c] >> i) & 1) << c;
        planes[i * plane] = word;
    }
}

#if X86
AVX2 static void planes_in_avx2(const uint8_t *codes, int bits, uint64_t *planes, ptrdiff_t plane)
{
    __m256i low = _mm256_loadu_si256((const __m256i *)codes), high = _mm256_loadu_si256((const __m256i *)(codes + 32));
    for (int i = 0; i < bits; i++) {
        __m128i shift = _mm_cvtsi32_si128(7 - i);
        uint32_t first = (uint32_t)_mm256_movemask_epi8(_mm256_sll_epi16(low, shift));
        uint32_t second = (uint32_t)_mm256_movemask_epi8(_mm256_sll_epi16(high, shift));
        planes[i * plane] = first | (uint64_t)second << 32;
    }
}

AVX512 static void planes_in_avx512(const uint8_t *codes, int bits, uint64_t *planes, ptrdiff_t plane)
{
    __m512i all = _mm512_loadu_si512(codes);
    for (int i = 0; i < bits; i++)
        planes[i * plane] = _mm512_test_epi8_mask(all, _mm512_set1_epi8((char)(1 << i)));
}
#endif

typedef struct {
    int height, width, channels, pad;
    Grid grid;
    int zero, bits; /* the code of zero, and planes */
} Map;

/* The padding holds the code of zero in every plane. */
static void fill_border(const Map *m, uint64_t *planes)
{
    int words = (m->channels + WORD - 1) / WORD, pitch = m->width + 2 * m->pad, rows = m->height + 2 * m->pad;
    for (int i = 0; i < m->bits; i++)
        for (int k = 0; k < words; k++) {
            uint64_t *to = planes + (ptrdiff_t)(i * words + k) * rows * pitch;
            uint64_t word = (m->zero >> i) & 1 ? ~(uint64_t)0 : 0;
            for (int y = 0; y < rows; y++) {
                int outside = y < m->pad || y >= m->height + m->pad;
                for (int x = 0; x < (outside ? pitch : m->pad); x++)
                    to[y * pitch + x] = word;
                for (int x = m->width + m->pad; !outside && x < pitch; x++)
                    to[y * pitch + x] = word;
            }
        }
}

/* Cuts the bytes of 64 codes into one word of each plane. */
typedef void (*Cut)(const uint8_t *, int, uint64_t *, ptrdiff_t);

/* Returns the OR of all codes and that of the padding, negative ones inverted: bit 8 says whether there is one.
 * Above 511 where x holds NaN. */
INLINE int pack_with(Cut cut, const Map *m, const float *x, uint64_t *planes, float *values)
{
    int words = (m->channels + WORD - 1) / WORD, pitch = m->width + 2 * m->pad;
    ptrdiff_t area = (ptrdiff_t)(m->height + 2 * m->pad) * pitch;
    int32_t seen = (m->zero ^ (m->zero >> 31)) | ((m->zero >> 31) & 256); /* the padding's code */
    for (int y = 0; y < m->height; y++)
        for (int column = 0; column < m->width; column++)
            for (int k = 0; k < words; k++) {
                int count = m->channels - k * WORD < WORD ? m->channels - k * WORD : WORD;
                ptrdiff_t from = ((ptrdiff_t)y * m->width + column) * m->channels + k * WORD;
                int32_t codes[WORD] = {0};
                uint8_t bytes[WORD];
                float *to = values ? values + from : 0;
                if (count == WORD) /* a constant count makes vectors */
                    encode(x + from, WORD, m->grid, m->zero, codes, to);
                else
                    encode(x + from, count, m->grid, m->zero, codes, to);
                for (int c = 0; c < WORD; c++) {
                    seen |= (codes[c] ^ (codes[c] >> 31)) | ((codes[c] >> 31) & 256);
                    bytes[c] = (uint8_t)codes[c];
                }
                uint64_t *word = planes + k * area + (ptrdiff_t)(y + m->pad) * pitch + column + m->pad;
                cut(bytes, m->bits, word, words * area);
            }
    return seen;
}

#if X86
AVX2 static int pack_avx2(const Map *m, const float *x, uint64_t *planes, float *values)
{
    return pack_with(planes_in_avx2, m, x, planes, values);
}

AVX512 static int pack_avx512(const Map *m, const float *x, uint64_t *planes, float *values)
{
    return pack_with(planes_in_avx512, m, x, planes, values);
}
#endif

/* Quantize a map (height, width, channels) and pack its codes. values may be null. */
int pack(int set, const float *x, int height, int width, int channels, int pad, float divisor, float factor,
         float least, float most, int zero, int bits, uint64_t *planes, float *values)
{
    Map m = {height, width, channels, pad, {divisor, factor, least, most}, zero, bits};
    fill_border(&m, planes);
#if X86
    if (set == WITH_AVX512)
        return pack_avx512(&m, x, planes, values);
    if (set == WITH_AVX2)
        return pack_avx2(&m, x, planes, values);
#endif
    return pack_with(planes_in_c, &m, x, planes, values);
}

/* ---- the sums of PIXELS neighbours and groups * LANES output channels ---- */

/* Whether the product of two planes counts negative: of the two sign planes one is in it. */
INLINE int is_negative(const Job *job, int i, int j)
{
    return (job->act_signed && i == job->act_bits - 1) != (j == job->weight_bits - 1);
}

/* Pairs of planes from the highest power of two down; between two powers the sums are doubled (Horner's rule). */
#define FOR_POWERS(s) for (int s = job->act_bits + job->weight_bits - 2; s >= 0; s--)
#define FOR_PAIRS(s, i)                                                                                                \
    for (int i = s >= job->weight_bits ? s - job->weight_bits + 1 : 0; i <= s && i < job->act_bits; i++)

INLINE void block_in_c(int groups, const Job *job, const uint64_t *x, const uint64_t *w, int32_t *sums)
{
    int channels = groups * LANES;
    for (int p = 0; p < PIXELS; p++)
        for (int o = 0; o < channels; o++) {
            int32_t sum = 0;
            FOR_POWERS(s) {
                sum *= 2;
                FOR_PAIRS(s, i) {
                    const uint64_t *xi = x + i * job->plane + p, *wj = w + (ptrdiff_t)(s - i) * job->steps * channels;
                    int32_t count = 0;
                    for (int k = 0; k < job->steps; k++)
                        count += __builtin_popcountll(xi[job->offset[k]] & wj[k * channels + o]);
                    sum += is_negative(job, i, s - i) ? -count : count;
                }
            }
            sums[p * channels + o] = sum;
        }
}

#if X86
/* Bits of each byte by a table of nibbles (Mula, Kurz, Lemire, Faster Population Counts Using AVX2, 2016). */
AVX2 INLINE __m256i count_bytes(__m256i v, __m256i table, __m256i nibble)
{
    __m256i low = _mm256_shuffle_epi8(table, _mm256_and_si256(v, nibble));
    __m256i high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble));
    return _mm256_add_epi8(low, high);
}

enum { HALF = PIXELS / 2, MOST_BYTES = 31 }; /* additions of at most 8 that a byte holds */

AVX2 INLINE void block_in_avx2(int groups, const Job *job, const uint64_t *x, const uint64_t *w, int32_t *sums)
{
    const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2,
                                           2, 3, 2, 3, 3, 4);
    const __m256i nibble = _mm256_set1_epi8(15), zero = _mm256_setzero_si256();
    int channels = groups * LANES;
    for (int first = 0; first < PIXELS; first += HALF)
        for (int g = 0; g < groups; g++) {
            __m256i total[HALF][2];
            for (int p = 0; p < HALF; p++)
                total[p][0] = total[p][1] = zero;
            FOR_POWERS(s) {
                for (int p = 0; p < HALF; p++)
                    for (int h = 0; h < 2; h++)
                        total[p][h] = _mm256_slli_epi64(total[p][h], 1);
                FOR_PAIRS(s, i) {
                    const uint64_t *xi = x + i * job->plane + first;
                    const uint64_t *wj = w + (ptrdiff_t)(s - i) * job->steps * channels + g * LANES;
                    for (int start = 0; start < job->steps; start += MOST_BYTES) {
                        int end = start + MOST_BYTES < job->steps ? start + MOST_BYTES : job->steps;
                        __m256i bytes[HALF][2];
                        for (int p = 0; p < HALF; p++)
                            bytes[p][0] = bytes[p][1] = zero;
                        for (int k = start; k < end; k++) {
                            const uint64_t *at = xi + job->offset[k];
                            const __m256i *weights = (const __m256i *)(wj + k * channels);
                            __m256i w0 = _mm256_loadu_si256(weights), w1 = _mm256_loadu_si256(weights + 1);
                            for (int p = 0; p < HALF; p++) {
                                __m256i word = _mm256_set1_epi64x((long long)at[p]);
                                __m256i c0 = count_bytes(_mm256_and_si256(word, w0), table, nibble);
                                __m256i c1 = count_bytes(_mm256_and_si256(word, w1), table, nibble);
                                bytes[p][0] = _mm256_add_epi8(bytes[p][0], c0);
                                bytes[p][1] = _mm256_add_epi8(bytes[p][1], c1);
                            }
                        }
                        int negative = is_negative(job, i, s - i);
                        for (int p = 0; p < HALF; p++)
                            for (int h = 0; h < 2; h++) {
                                __m256i count = _mm256_sad_epu8(bytes[p][h], zero);
                                total[p][h] = negative ? _mm256_sub_epi64(total[p][h], count)
                                                       : _mm256_add_epi64(total[p][h], count);
                            }
                    }
                }
            }
            for (int p = 0; p < HALF; p++) {
                int64_t wide[LANES];
                _mm256_storeu_si256((__m256i *)wide, total[p][0]);
                _mm256_storeu_si256((__m256i *)(wide + 4), total[p][1]);
                for (int o = 0; o < LANES; o++)
                    sums[(first + p) * channels + g * LANES + o] = (int32_t)wide[o];
            }
        }
}

AVX512 INLINE void add_pair(int groups, int negative, const Job *job, const uint64_t *x, const uint64_t *w,
                            __m512i total[PIXELS][GROUPS])
{
    for (int k = 0; k < job->steps; k++) {
        const uint64_t *at = x + job->offset[k], *weights = w + k * groups * LANES;
        __m512i row[GROUPS];
        UNROLLED
        for (int g = 0; g < groups; g++)
            row[g] = _mm512_loadu_si512(weights + g * LANES);
        UNROLLED
        for (int p = 0; p < PIXELS; p++) {
            __m512i word = _mm512_set1_epi64((long long)at[p]);
            UNROLLED
            for (int g = 0; g < groups; g++) {
                __m512i count = _mm512_popcnt_epi64(_mm512_and_si512(word, row[g]));
                total[p][g] = negative ? _mm512_sub_epi64(total[p][g], count) : _mm512_add_epi64(total[p][g], count);
            }
        }
    }
}

AVX512 INLINE void block_in_avx512(int groups, const Job *job, const uint64_t *x, const uint64_t *w, int32_t *sums)
{
    __m512i total[PIXELS][GROUPS];
    UNROLLED
    for (int p = 0; p < PIXELS; p++)
        UNROLLED
        for (int g = 0; g < groups; g++)
            total[p][g] = _mm512_setzero_si512();
    FOR_POWERS(s) {
        UNROLLED
        for (int p = 0; p < PIXELS; p++)
            UNROLLED
            for (int g = 0; g < groups; g++)
                total[p][g] = _mm512_slli_epi64(total[p][g], 1);
        FOR_PAIRS(s, i) {
            const uint64_t *xi = x + i * job->plane;
            const uint64_t *wj = w + (ptrdiff_t)(s - i) * job->steps * groups * LANES;
            if (is_negative(job, i, s - i))
                add_pair(groups, 1, job, xi, wj, total);
            else
                add_pair(groups, 0, job, xi, wj, total);
        }
    }
    UNROLLED
    for (int p = 0; p < PIXELS; p++)
        UNROLLED
        for (int g = 0; g < groups; g++)
            _mm256_storeu_si256((__m256i *)(sums + (p * groups + g) * LANES), _mm512_cvtepi64_epi32(total[p][g]));
}
#endif

/* A function for each number of groups, so that sums stay in registers. */
#define BLOCK(attribute, name, groups)                                                                                 \
    attribute static void name##_##groups(const Job *job, const uint64_t *x, const uint64_t *w, int32_t *sums)         \
    {                                                                                                                  \
        name(groups, job, x, w, sums);                                                                                 \
    }
#define BLOCKS(attribute, name)                                                                                        \
    BLOCK(attribute, name, 1) BLOCK(attribute, name, 2) BLOCK(attribute, name, 3) BLOCK(attribute, name, 4)

typedef void (*Block)(const Job *, const uint64_t *, const uint64_t *, int32_t *);

BLOCKS(, block_in_c)
#if X86
BLOCKS(AVX2, block_in_avx2)
BLOCKS(AVX512, block_in_avx512)
#endif

static const Block blocks[][GROUPS] = {
    {block_in_c_1, block_in_c_2, block_in_c_3, block_in_c_4},
#if X86
    {block_in_avx2_1, block_in_avx2_2, block_in_avx2_3, block_in_avx2_4},
    {block_in_avx512_1, block_in_avx512_2, block_in_avx512_3, block_in_avx512_4},
#endif
};

/* Rows first_row to end_row of a convolution with stride 1 and as much padding as keeps the size.
 *
 * out is (height, width, outputs): int32_t sums + shift where scale is null, else float (sums + shift) * scale + bias.
 * Returns 0; 1 where words times taps are more than fit. */
int convolve(int set, const uint64_t *planes, int act_bits, int act_signed, int height, int width, int channels,
             int pad, const uint64_t *weights, int weight_bits, int kernel, int outputs, int first_row, int end_row,
             const int32_t *shift, const float *scale, const float *bias, void *out)
{
    int words = (channels + WORD - 1) / WORD, pitch = width + 2 * pad, inset = pad - kernel / 2;
    ptrdiff_t area = (ptrdiff_t)(height + 2 * pad) * pitch;
    Job job = {planes, words * area, act_bits, act_signed, weight_bits, words * kernel * kernel, {0}};
    if (job.steps > MOST_OFFSETS)
        return 1;
    for (int k = 0, n = 0; k < words; k++)
        for (int y = 0; y < kernel; y++)
            for (int x = 0; x < kernel; x++)
                job.offset[n++] = k * area + (ptrdiff_t)(y + inset) * pitch + x + inset;
    for (int y = first_row; y < end_row; y++) {
        const uint64_t *block_weights = weights;
        for (int first = 0; first < outputs; first += GROUPS * LANES) {
            int left = outputs - first < GROUPS * LANES ? outputs - first : GROUPS * LANES;
            int groups = (left + LANES - 1) / LANES;
            Block block = blocks[set][groups - 1];
            for (int x = 0; x < width; x += PIXELS) {
                int32_t sums[PIXELS * GROUPS * LANES];
                block(&job, planes + (ptrdiff_t)y * pitch + x, block_weights, sums);
                for (int p = 0; p < PIXELS && x + p < width; p++) {
                    ptrdiff_t at = ((ptrdiff_t)y * width + x + p) * outputs + first;
                    const int32_t *from = sums + p * groups * LANES;
                    for (int o = 0; o < left; o++) {
                        int32_t sum = from[o] + shift[first + o];
                        if (scale)
                            ((float *)out)[at + o] = (float)sum * scale[first + o] + bias[first + o];
                        else
                            ((int32_t *)out)[at + o] = sum;
                    }
                }
            }
            block_weights += (ptrdiff_t)weight_bits * job.steps * groups * LANES;
        }
    }
    return 0;
}
