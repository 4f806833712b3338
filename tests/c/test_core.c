/* test_core.c: every core of this machine against the portable one, on awkward sizes, with every
   buffer guarded; and memory. Needs no Python; meant for the sanitizers. */
#include "check.h"

#include "../../csrc/rf.h"

int main(void) {
    printf("cores:");
    for (size_t i = 0; rf_core_at(i); i++) printf(" %s", rf_core_at(i)->name);
    printf("\n");
    test_all_f32();
    test_all_f64();
    test_all_of_the_module();
    printf("%zu results are right\n", checks);
}
