/* supports.h: __builtin_cpu_supports for Windows, where not every compiler links the library that
   it needs. */
#ifndef RF_SUPPORTS_H
#define RF_SUPPORTS_H

#include <cpuid.h>
#include <string.h>

/* Registers that the operating system saves (XCR0). */
static unsigned saved_registers(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return 0;
    __asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return a;
}

static int supports(const char *feature) {
    enum { EBX, ECX, EAX };
    enum { AVX = 0x6, AVX512 = 0xe6 }; // the registers that their instructions change
    static const struct {
        const char *name;
        unsigned leaf, subleaf, word, bit, saved;
    } features[] = {
        {"fma", 1, 0, ECX, 12, AVX},          {"avx2", 7, 0, EBX, 5, AVX},
        {"avx512f", 7, 0, EBX, 16, AVX512},   {"avx512dq", 7, 0, EBX, 17, AVX512},
        {"avx512bw", 7, 0, EBX, 30, AVX512},  {"avx512vl", 7, 0, EBX, 31, AVX512},
        {"avx512bf16", 7, 1, EAX, 5, AVX512},
    };
    const unsigned saved = saved_registers();
    for (size_t i = 0; i < sizeof features / sizeof *features; i++) {
        unsigned a, b, c, d;
        if (strcmp(features[i].name, feature) != 0) continue;
        if (!__get_cpuid_count(features[i].leaf, features[i].subleaf, &a, &b, &c, &d)) return 0;
        const unsigned words[] = {[EBX] = b, [ECX] = c, [EAX] = a};
        return (saved & features[i].saved) == features[i].saved &&
               (words[features[i].word] >> features[i].bit & 1);
    }
    return 0;
}

#endif
