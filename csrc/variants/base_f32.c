/* The core for float on any machine that the compiler knows. */
#define RF_REAL float
#define RF_OPS rf_ops_f32
#define RF_TABLE rf_base_f32
#include "../core/table.c"
