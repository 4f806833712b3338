/* The cases for float. */
#include "check.h"

#include "../../csrc/rf.h"

typedef float real;
typedef rf_ops_f32 rf_ops;
#define TABLE f32
#define ROUNDING 2e-5
#define test_all test_all_f32
#include "ops_cases.h"
