/* threads.c: OpenMP's settings of threads and processors. */
#include "bind.h"

#ifdef _OPENMP
#include <omp.h>
#endif

/* omp_get_max_threads of this thread, which other libraries may change (threadpoolctl, PyTorch); 0
   without OpenMP. */
PyObject *rf_openmp_threads(PyObject *module, PyObject *none) {
    (void)module, (void)none;
#ifdef _OPENMP
    return PyLong_FromLong(omp_get_max_threads());
#else
    return PyLong_FromLong(0);
#endif
}

/* OMP_THREAD_LIMIT; 0 without OpenMP. */
long rf_openmp_thread_limit(void) {
#ifdef _OPENMP
    return omp_get_thread_limit();
#else
    return 0;
#endif
}

/* The set of processors that OpenMP binds its threads to (OMP_PROC_BIND, OMP_PLACES,
   GOMP_CPU_AFFINITY), empty if it does not bind. Needed because once it does, the main thread's own
   affinity is only one place. */
PyObject *rf_openmp_processors(PyObject *module, PyObject *none) {
    (void)module, (void)none;
    PyObject *set = PySet_New(NULL);
#ifdef _OPENMP
    const int places = omp_get_proc_bind() == omp_proc_bind_false ? 0 : omp_get_num_places();
    for (int place = 0; set && place < places; place++) {
        const int n = omp_get_place_num_procs(place);
        int *ids = PyMem_Calloc(n > 0 ? (size_t)n : 1, sizeof *ids);
        if (!ids) {
            Py_DECREF(set);
            return PyErr_NoMemory();
        }
        if (n > 0) omp_get_place_proc_ids(place, ids);
        for (int i = 0; set && i < n; i++) {
            PyObject *id = PyLong_FromLong(ids[i]);
            if (!id || PySet_Add(set, id) < 0) Py_CLEAR(set);
            Py_XDECREF(id);
        }
        PyMem_Free(ids);
    }
#endif
    return set;
}
