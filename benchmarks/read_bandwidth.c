/* How fast this machine reads memory: read_bandwidth THREADS BYTES prints the best of a few rounds in GB/s
   (1e9 bytes). Every thread sums its own part of one buffer, which is far larger than any cache. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

enum { LANES = 32, MAX_THREADS = 256, ROUNDS = 5 };

struct part {
    const uint64_t *begin;
    size_t count; /* words, a multiple of LANES */
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

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}

static double measure(struct part *parts, int threads) {
    pthread_t ids[MAX_THREADS];
    double start = seconds();
    for (int i = 1; i < threads; i++) pthread_create(&ids[i], NULL, read_part, &parts[i]);
    read_part(&parts[0]);
    for (int i = 1; i < threads; i++) pthread_join(ids[i], NULL);
    return seconds() - start;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    int threads = atoi(argv[1]);
    if (threads < 1 || threads > MAX_THREADS) return 2;
    size_t count = strtoull(argv[2], NULL, 10) / sizeof(uint64_t) / threads / LANES * LANES;
    size_t bytes = count * threads * sizeof(uint64_t);
    uint64_t *buffer = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffer == MAP_FAILED) return 1;
    madvise(buffer, bytes, MADV_HUGEPAGE);
    for (size_t i = 0; i < bytes / sizeof(uint64_t); i++) buffer[i] = i;
    struct part parts[MAX_THREADS] = {0};
    for (int i = 0; i < threads; i++) parts[i] = (struct part){buffer + i * count, count, 0};
    uint64_t sum = 0;
    double best = 0;
    for (int i = 0; i < ROUNDS; i++) {
        double rate = bytes / 1e9 / measure(parts, threads);
        if (rate > best) best = rate;
        for (int t = 0; t < threads; t++) sum += parts[t].sum;
    }
    printf("%.3f\n", best);
    return sum == 42; /* so that the sums are wanted */
}
