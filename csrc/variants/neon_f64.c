/* The core for double on NEON, which every 64-bit ARM has. */
#if !defined(__aarch64__)
#error "built without its flags: see csrc/variants/flags.mk"
#endif
#define RF_REAL double
#define RF_OPS rf_ops_f64
#define RF_TABLE rf_neon_f64
#include "../core/table.c"
