/* test_core.c: every core of this machine against the portable one, on awkward sizes, with every
   buffer watched. Needs no Python; meant for the sanitizers. */
#include "check.h"

#include "../../csrc/rf.h"

#define REAL float
#define OPS rf_ops_f32
#define TABLE f32
#define ROUNDING 2e-5
#define NAME(name) name##_f32
#include "ops_cases.h"
#undef REAL
#undef OPS
#undef TABLE
#undef ROUNDING
#undef NAME

#define REAL double
#define OPS rf_ops_f64
#define TABLE f64
#define ROUNDING 1e-13
#define NAME(name) name##_f64
#include "ops_cases.h"

int main(void) {
    printf("cores:");
    for (size_t i = 0; rf_core_at(i); i++) printf(" %s", rf_core_at(i)->name);
    printf("\n");
    test_all_f32();
    test_all_f64();
    printf("%zu results are right\n", checks);
}
