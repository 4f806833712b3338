/* The core for double on AVX2 and FMA. */
#if !defined(__AVX2__) || !defined(__FMA__)
#error "built without its flags: see csrc/variants/flags.mk"
#endif
#define RF_REAL double
#define RF_OPS rf_ops_f64
#define RF_TABLE rf_avx2_f64
#include "../core/table.c"
