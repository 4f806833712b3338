/* omp.h: what the core and the extension use of OpenMP, for compilers that come without it. */
typedef enum { omp_proc_bind_false } omp_proc_bind_t;

int omp_get_thread_num(void);
int omp_get_max_threads(void);
int omp_get_thread_limit(void);
omp_proc_bind_t omp_get_proc_bind(void);
int omp_get_num_places(void);
int omp_get_place_num_procs(int place);
void omp_get_place_proc_ids(int place, int *ids);
