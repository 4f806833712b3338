/* The cases for double. */
#include "check.h"

#include "../../csrc/rf.h"

typedef double real;
typedef rf_ops_f64 rf_ops;
#define TABLE f64
#define ROUNDING 1e-13
#define test_all test_all_f64
#include "ops_cases.h"
