/* A model as a program, without Python:

       model weights.bin [--threads N] [--repeat N] < inputs > outputs

   Standard input holds the bytes of all inputs, one after the other, standard output gets those of
   the outputs. It goes on with the next inputs until there are no more. --repeat runs every call
   N times and tells the fastest on standard error. */
#include "bscompile_model.h"
#include "host.h"

#define MOST 1024 /* inputs or outputs */

/* Read exactly `bytes`; 1 where the file ends before the first, -1 where it ends later. */
static int take(int file, char *to, size_t bytes) {
  size_t done = 0;
  while (done < bytes) {
    long count = host_read(file, to + done, bytes - done);
    if (count <= 0) return done ? -1 : 1;
    done += (size_t)count;
  }
  return 0;
}

static int give(const char *from, size_t bytes) {
  size_t done = 0;
  while (done < bytes) {
    long count = host_write(1, from + done, bytes - done);
    if (count <= 0) return 1;
    done += (size_t)count;
  }
  return 0;
}

static int same(const char *a, const char *b) {
  while (*a && *a == *b) a++, b++;
  return *a == *b;
}

static int number(const char *text) {
  int value = 0;
  while (*text >= '0' && *text <= '9' && value < 100000) value = 10 * value + (*text++ - '0');
  return *text ? -1 : value;
}

static int load(const char *path) {
  size_t bytes = bscompile_weights_bytes();
  int file = host_open(path);
  char *weights = host_allocate(bytes + 1), extra;
  if (file < 0 || !weights || (bytes && take(file, weights, bytes)) || take(file, &extra, 1) != 1) {
    host_say("bscompile: the weights cannot be read, or are those of another model");
    return 1;
  }
  return bscompile_load(weights, bytes);
}

static void tell_time(double seconds) {
  char line[] = "fastest call:              us", *at = line + 25;
  for (long us = (long)(seconds * 1e6 + 0.5); us || at == line + 25; us /= 10)
    *at-- = (char)('0' + us % 10);
  host_say(line);
}

static int call(const void *const *inputs, void *const *outputs, int repeat) {
  double fastest = 1e30;
  for (int i = 0; i < repeat; i++) {
    double start = host_seconds();
    if (bscompile_run(inputs, outputs)) return 1;
    double taken = host_seconds() - start;
    if (taken < fastest) fastest = taken;
  }
  if (repeat > 1) tell_time(fastest);
  return 0;
}

static int serve(int repeat) {
  static const void *inputs[MOST];
  static void *outputs[MOST];
  int in = bscompile_input_count(), out = bscompile_output_count();
  size_t total = 0;
  if (in > MOST || out > MOST) {
    host_say("bscompile: too many inputs or outputs for this program; call it as a library");
    return 1;
  }
  for (int i = 0; i < in; i++) total += bscompile_input_bytes(i);
  for (int i = 0; i < in; i++) inputs[i] = host_allocate(bscompile_input_bytes(i) + 1);
  for (int i = 0; i < out; i++) outputs[i] = host_allocate(bscompile_output_bytes(i) + 1);
  do {
    int begun = 0;
    for (int i = 0; i < in; i++) {
      int ended = take(0, (char *)inputs[i], bscompile_input_bytes(i));
      if (ended == 1 && !begun) return 0;
      if (ended) {
        host_say("bscompile: standard input ends in the middle of the inputs");
        return 1;
      }
      begun = begun || bscompile_input_bytes(i);
    }
    if (call(inputs, outputs, repeat)) return 1;
    for (int i = 0; i < out; i++)
      if (give(outputs[i], bscompile_output_bytes(i))) return 1;
  } while (total);
  return 0;
}

int main(int count, char **words) {
  int threads = 0, repeat = 1;
  for (int i = 2; i < count; i += 2) {
    int value = i + 1 < count ? number(words[i + 1]) : -1;
    if (value > 0 && same(words[i], "--threads")) threads = value;
    else if (value > 0 && same(words[i], "--repeat")) repeat = value;
    else count = 1;
  }
  if (count < 2) {
    host_say("usage: model weights.bin [--threads N] [--repeat N] < inputs > outputs");
    return 2;
  }
  if (load(words[1])) return 1;
  if (threads) bscompile_set_threads(threads);
  return serve(repeat);
}
