/* check.h: guarded buffers, random inputs, and failures.

   A buffer has exactly the requested size, with guard bytes on both sides. Under the address
   sanitizer the guards cannot even be read. Buffers start as NaN, so that elements that were not
   written show. */
#ifndef CHECK_H
#define CHECK_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RESULTS = 8 }; // of a case, at most

extern const char *what;   // the current case, for messages
extern size_t checks;      // results that were compared
extern int random_buffers; // do new buffers hold random bytes instead of NaN?

void fail(const char *message);

/* `bytes` bytes of NaN, or random ones, 64-byte aligned, between guards. */
void *buffer(size_t bytes);

/* Check all guards, and free all buffers. */
void release(void);

/* Random numbers, the same on every machine: 31 bits, below n, and roughly normal. */
uint32_t draw(void);
size_t below(size_t n);
double normal(void);

/* All cases of an element type. */
void test_all_f32(void);
void test_all_f64(void);

/* What of the extension needs no Python. */
void test_all_of_the_module(void);

#endif
