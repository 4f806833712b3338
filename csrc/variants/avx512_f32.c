/* The core for float on AVX-512 (F, DQ, BW, VL). */
#if !defined(__AVX512F__) || !defined(__AVX512DQ__) || !defined(__AVX512BW__) ||                   \
    !defined(__AVX512VL__)
#error "built without its flags: see csrc/variants/flags.mk"
#endif
#define RF_REAL float
#define RF_OPS rf_ops_f32
#define RF_TABLE rf_avx512_f32
#include "../core/table.c"
