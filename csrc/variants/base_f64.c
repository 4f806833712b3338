/* The core for double on any machine that the compiler knows. */
#define RF_REAL double
#define RF_OPS rf_ops_f64
#define RF_TABLE rf_base_f64
#include "../core/table.c"
