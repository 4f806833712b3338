/* module.c: reformer_c._core: its methods, and the instruction set in use. */
#include "bind.h"
#include "system.h"

#if defined(__clang__)
#define COMPILER "clang " __clang_version__
#elif defined(__GNUC__)
#define COMPILER "gcc " __VERSION__
#else
#define COMPILER "unknown"
#endif

/* The module's only mutable state: a pointer, read once per call. */
typedef struct {
    _Atomic(const rf_core *) core;
} module_state;

const rf_core *rf_module_core(PyObject *module) {
    return atomic_load(&((module_state *)PyModule_GetState(module))->core);
}

/* The names of the cores that were built, or of those that run here. */
static PyObject *names(int only_those_that_run) {
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list; i++) {
        const rf_core *core = rf_core_at(i);
        const char *text = only_those_that_run ? core ? core->name : NULL : rf_core_built(i);
        if (!text) break;
        PyObject *name = PyUnicode_FromString(text);
        if (!name || PyList_Append(list, name) < 0) Py_CLEAR(list);
        Py_XDECREF(name);
    }
    PyObject *tuple = list ? PyList_AsTuple(list) : NULL;
    Py_XDECREF(list);
    return tuple;
}

/* Use the core of this name, or the best one if NULL. */
static int select_core(PyObject *module, const char *name, const char *who, PyObject *error) {
    for (size_t i = 0; rf_core_at(i); i++) {
        if (name && strcmp(name, rf_core_at(i)->name) != 0) continue;
        atomic_store(&((module_state *)PyModule_GetState(module))->core, rf_core_at(i));
        return 0;
    }
    PyObject *built = names(0), *run = names(1);
    if (built && run)
        PyErr_Format(error, "%s must be one of %R, got '%s' (built: %R)", who, run, name, built);
    Py_XDECREF(built);
    Py_XDECREF(run);
    return -1;
}

static PyObject *select_isa(PyObject *module, PyObject *name) {
    const char *text = PyUnicode_AsUTF8(name);
    if (!text || select_core(module, text, "name", PyExc_ValueError) < 0) return NULL;
    Py_RETURN_NONE;
}

static PyObject *isa(PyObject *module, PyObject *none) {
    (void)none;
    return PyUnicode_FromString(rf_module_core(module)->name);
}

static PyObject *isas(PyObject *module, PyObject *none) {
    (void)module, (void)none;
    return names(1);
}

static PyObject *isas_built(PyObject *module, PyObject *none) {
    (void)module, (void)none;
    return names(0);
}

static PyObject *forked(PyObject *module, PyObject *none) {
    (void)module, (void)none;
    return PyBool_FromLong(rf_forked());
}

/* (total, available, peak) bytes of memory, None where Python finds them by itself. */
static PyObject *memory(PyObject *module, PyObject *none) {
    (void)module, (void)none;
    uint64_t total, available, peak;
    if (!rf_system_memory(&total, &available, &peak)) Py_RETURN_NONE;
    return Py_BuildValue("KKK", (unsigned long long)total, (unsigned long long)available,
                         (unsigned long long)peak);
}

#define FAST(name, function) {name, (PyCFunction)(void (*)(void))function, METH_FASTCALL, NULL},
#define METHOD(op) FAST(#op, bind_##op)

static PyMethodDef methods[] = {
    // clang-format off
    RF_BINDINGS(METHOD)
    FAST("layer_scratch", rf_layer_scratch)
    FAST("attention_scratch", rf_attention_scratch)
    // clang-format on
    {"select_isa", select_isa, METH_O, "Use this instruction set from the next call on."},
    {"isa", isa, METH_NOARGS, "The instruction set in use."},
    {"isas", isas, METH_NOARGS, "The instruction sets that this machine can run, best first."},
    {"isas_built", isas_built, METH_NOARGS, "All instruction sets that were built."},
    {"pool_enter", rf_pool_enter, METH_NOARGS, "Reuse freed memory; returns what pool_exit needs."},
    {"pool_exit", rf_pool_exit, METH_O, "End a pool_enter, whose result is the argument."},
    {"pool_cached", rf_pool_cached, METH_NOARGS, "Bytes that are free and cached."},
    {"pool_trim", rf_pool_trim, METH_NOARGS, "Return cached bytes to the system; their number."},
    {"pool_set_memory", rf_pool_set_memory, METH_O,
     "Set the total memory; a part may stay cached."},
    {"openmp_threads", rf_openmp_threads, METH_NOARGS, "omp_get_max_threads() of this thread."},
    {"openmp_processors", rf_openmp_processors, METH_NOARGS, "Processors that OpenMP binds to."},
    {"memory", memory, METH_NOARGS, "Bytes of memory: total, available, peak; or None."},
    {"forked", forked, METH_NOARGS, "Whether this process was forked; its calls are then serial."},
    {NULL, NULL, 0, NULL},
};

static int execute(PyObject *module) {
#ifdef _OPENMP
    const long openmp = _OPENMP;
#else
    const long openmp = 0;
#endif
    if (rf_call_init() < 0 || rf_spec_init() < 0 || rf_run_init() < 0 || rf_pool_init() < 0)
        return -1;
    if (PyModule_AddIntConstant(module, "openmp", openmp) < 0) return -1;
    const long limit = rf_openmp_thread_limit();
    if (PyModule_AddIntConstant(module, "openmp_thread_limit", limit) < 0) return -1;
    if (PyModule_AddStringConstant(module, "compiler", COMPILER) < 0) return -1;
    const char *name = getenv("REFORMER_C_ISA");
    return select_core(module, name && *name ? name : NULL, "REFORMER_C_ISA", PyExc_ImportError);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, execute},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_core",
    .m_doc = "The C core of reformer_c; reformer_c.ops is its documented interface.",
    .m_size = sizeof(module_state),
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__core(void) {
    return PyModuleDef_Init(&definition);
}
