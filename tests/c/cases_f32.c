/* The cases for float. */
#include "check.h"

#include "../../csrc/rf.h"

typedef float real;
typedef rf_ops_f32 rf_ops;

static const double rounding = 2e-5; // relative, of a sum of products

static const rf_ops *ops_of(const rf_core *core) {
    return core->f32;
}

#include "ops_cases.h"

void test_all_f32(void) {
    test_all();
}
