/* The core for double on AVX-512 (F, DQ, BW, VL). */
#if !defined(__AVX512F__) || !defined(__AVX512DQ__) || !defined(__AVX512BW__) ||                   \
    !defined(__AVX512VL__)
#error "built without its flags: see csrc/variants/flags.mk"
#endif
#define RF_REAL double
#define RF_OPS rf_ops_f64
#define RF_TABLE rf_avx512_f64
#include "../core/table.c"
