/* The core for float on AVX-512 with AMX's bfloat16 tiles. */
#if !defined(__AVX512BF16__) || !(defined(__AMX_BF16__) || defined(__AMXBF16__))
#error "built without its flags: see csrc/variants/flags.mk"
#endif
#define RF_AMX 1
#define RF_REAL float
#define RF_OPS rf_ops_f32
#define RF_TABLE rf_amx_f32
#include "../core/table.c"
