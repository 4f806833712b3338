/* The core for float on AVX2 and FMA. */
#if !defined(__AVX2__) || !defined(__FMA__)
#error "built without its flags: see csrc/variants/flags.mk"
#endif
#define RF_REAL float
#define RF_OPS rf_ops_f32
#define RF_TABLE rf_avx2_f32
#include "../core/table.c"
