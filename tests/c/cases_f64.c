/* The cases for double. */
#include "check.h"

#include "../../csrc/rf.h"

typedef double real;
typedef rf_ops_f64 rf_ops;

static const double rounding = 1e-13; // relative, of a sum of products

static const rf_ops *ops_of(const rf_core *core) {
    return core->f64;
}

#include "ops_cases.h"

void test_all_f64(void) {
    test_all();
}
