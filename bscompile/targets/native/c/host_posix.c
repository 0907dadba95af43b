/* A POSIX system: Linux on any processor, or what else has threads and files. */
#define _GNU_SOURCE
#include "bscompile_model.h"
#include "host.h"
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

void *host_allocate(size_t bytes) {
  void *memory = 0;
  return posix_memalign(&memory, BSCOMPILE_ALIGNMENT, bytes) ? 0 : memory;
}
void host_free(void *memory) { free(memory); }
long host_read(int file, void *to, size_t bytes) { return read(file, to, bytes); }
long host_write(int file, const void *from, size_t bytes) { return write(file, from, bytes); }
int host_open(const char *path) { return open(path, O_RDONLY); }
void host_say(const char *line) {
  if (write(2, line, strlen(line)) < 0 || write(2, "\n", 1) < 0) return;
}
double host_seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec + 1e-9 * now.tv_nsec;
}

/* Workers look for the next round this often, then sleep: the gaps within a call are short. */
#define SPINS 4000
#define MOST_THREADS 256

static int threads = 1, started = 1;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static atomic_uint round_number;
static atomic_int unfinished, failure;
static unsigned first_round; /* of the workers that start now */
static int (*round_task)(int, int, void *);
static void *round_data;
static PER_THREAD int inside; /* a region that begins within a region runs alone */

static void do_task(int index) {
  inside = 1;
  int code = round_task(index, threads, round_data);
  inside = 0;
  if (code) atomic_store(&failure, code);
}

static void *work(void *argument) {
  int index = (int)(intptr_t)argument;
  unsigned seen = first_round;
  for (;;) {
    for (int i = 0; i < SPINS && atomic_load(&round_number) == seen; i++) sched_yield();
    pthread_mutex_lock(&lock);
    while (atomic_load(&round_number) == seen) pthread_cond_wait(&wake, &lock);
    pthread_mutex_unlock(&lock);
    seen = atomic_load(&round_number);
    if (index >= threads) continue;
    do_task(index);
    atomic_fetch_sub(&unfinished, 1);
  }
  return 0;
}

static void start_workers(void) {
  first_round = atomic_load(&round_number);
  for (; started < threads; started++) {
    pthread_t thread;
    if (pthread_create(&thread, 0, work, (void *)(intptr_t)started)) {
      threads = started; /* as many as the system gives */
      return;
    }
    pthread_detach(thread);
  }
}

void host_set_threads(int count) {
  if (count < 1) count = 1;
  threads = count < MOST_THREADS ? count : MOST_THREADS;
}

int host_parallel(int (*task)(int index, int count, void *data), void *data) {
  if (inside || threads == 1) return task(0, 1, data);
  start_workers();
  round_task = task, round_data = data;
  atomic_store(&failure, 0);
  pthread_mutex_lock(&lock);
  atomic_store(&unfinished, threads - 1);
  atomic_fetch_add(&round_number, 1);
  pthread_cond_broadcast(&wake);
  pthread_mutex_unlock(&lock);
  do_task(0);
  while (atomic_load(&unfinished)) sched_yield();
  return atomic_load(&failure);
}
