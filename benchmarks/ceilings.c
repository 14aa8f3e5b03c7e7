/* What this machine can do at most: ceilings KIND THREADS prints the best of a few rounds, by powers of ten.
   read: GB/s of all threads reading, each its own part of one buffer that is far larger than any cache.
   int8, bf16: 1e9 operations/s (a multiplication or an addition is one) of dot products from registers.
   Ends with 3 where the compiler has no such instruction. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#if defined(__AVX512VNNI__) || defined(__AVX512BF16__)
#include <immintrin.h>
#endif

enum { LANES = 32, MAX_THREADS = 256, ROUNDS = 5, SUMS = 12, DOTS = 4000000 };
static const size_t BYTES = 1u << 30;

struct part {
    const uint64_t *begin;
    size_t count; /* words, a multiple of LANES; or dot products */
    uint64_t sum;
};

static void *read_part(void *argument) {
    struct part *part = argument;
    uint64_t lanes[LANES] = {0};
    for (size_t i = 0; i < part->count; i += LANES)
        for (int lane = 0; lane < LANES; lane++) lanes[lane] += part->begin[i + lane];
    for (int lane = 0; lane < LANES; lane++) part->sum += lanes[lane];
    return NULL;
}

/* Sums stay in registers: variables, since gcc keeps an array in memory. They begin with different values, else
   they would be one; the empty asm keeps the compiler from seeing that the factors never change. */
#define EACH(X, A) \
    X(0, A) X(1, A) X(2, A) X(3, A) X(4, A) X(5, A) X(6, A) X(7, A) X(8, A) X(9, A) X(10, A) X(11, A)
#define BEGIN(I, START) sum##I = START(I),
#define ADD(I, DOT)                \
    sum##I = DOT(sum##I, a, b);    \
    __asm__ volatile("" : "+v"(sum##I));
#define FIRST_WORD(I, _)                    \
    memcpy(&word, &sum##I, sizeof word);    \
    part->sum += word;

#define DOTS_OF(NAME, SUM, FACTOR, START, ONES, DOT)                \
    static void *NAME(void *argument) {                             \
        struct part *part = argument;                               \
        uint32_t word;                                              \
        SUM EACH(BEGIN, START) unused = START(0);                   \
        FACTOR a = ONES, b = ONES;                                  \
        for (size_t i = 0; i < part->count; i += SUMS) {            \
            EACH(ADD, DOT)                                          \
            __asm__ volatile("" : "+v"(a), "+v"(b));                \
        }                                                           \
        EACH(FIRST_WORD, )                                          \
        (void)unused;                                               \
        return NULL;                                                \
    }

#ifdef __AVX512VNNI__
DOTS_OF(int8_dots, __m512i, __m512i, _mm512_set1_epi32, _mm512_set1_epi8(1), _mm512_dpbusd_epi32)
#else
#define int8_dots NULL
#endif
#ifdef __AVX512BF16__
DOTS_OF(bf16_dots, __m512, __m512bh, _mm512_set1_ps, (__m512bh)_mm512_set1_epi16(0x3c80), _mm512_dpbf16_ps)
#else
#define bf16_dots NULL
#endif

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}

static double measure(void *(*work)(void *), struct part *parts, int threads) {
    pthread_t ids[MAX_THREADS];
    double start = seconds();
    for (int i = 1; i < threads; i++) pthread_create(&ids[i], NULL, work, &parts[i]);
    work(&parts[0]);
    for (int i = 1; i < threads; i++) pthread_join(ids[i], NULL);
    return seconds() - start;
}

static const uint64_t *filled(size_t bytes) {
    uint64_t *buffer = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffer == MAP_FAILED) exit(1);
    madvise(buffer, bytes, MADV_HUGEPAGE);
    for (size_t i = 0; i < bytes / sizeof(uint64_t); i++) buffer[i] = i;
    return buffer;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    int threads = atoi(argv[2]);
    if (threads < 1 || threads > MAX_THREADS) return 2;
    int reads = !strcmp(argv[1], "read");
    void *(*work)(void *) = reads ? read_part : !strcmp(argv[1], "int8") ? int8_dots : bf16_dots;
    if (!work) return 3;
    size_t count = reads ? BYTES / sizeof(uint64_t) / threads / LANES * LANES : (size_t)DOTS * SUMS;
    const uint64_t *buffer = reads ? filled(count * threads * sizeof(uint64_t)) : NULL;
    struct part parts[MAX_THREADS] = {0};
    for (int i = 0; i < threads; i++) parts[i] = (struct part){reads ? buffer + i * count : NULL, count, 0};
    /* a dot product multiplies and adds 64 bytes, or 32 numbers of 16 bits */
    double work_of_one = reads ? sizeof(uint64_t) : work == int8_dots ? 128 : 64;
    double best = 0;
    uint64_t sum = 0;
    for (int i = 0; i < ROUNDS; i++) {
        double rate = count * threads * work_of_one / 1e9 / measure(work, parts, threads);
        if (rate > best) best = rate;
        for (int t = 0; t < threads; t++) sum += parts[t].sum;
    }
    printf("%.3f\n", best);
    return sum == 42; /* so that the sums are wanted */
}
