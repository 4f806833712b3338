/* The core for float on AVX-512 with bfloat16 dot products. */
#if !defined(__AVX512BW__) || !defined(__AVX512BF16__)
#error "built without its flags: see csrc/variants/flags.mk"
#endif
#define RF_REAL float
#define RF_OPS rf_ops_f32
#define RF_TABLE rf_avx512_bf16_f32
#include "../core/table.c"
