/* omp.h: what the core uses of OpenMP, for compilers that come without it. */
int omp_get_thread_num(void);
