/* The core for float on NEON, which every 64-bit ARM has. */
#if !defined(__aarch64__)
#error "built without its flags: see csrc/variants/flags.mk"
#endif
#define RF_REAL float
#define RF_OPS rf_ops_f32
#define RF_TABLE rf_neon_f32
#include "../core/table.c"
