/* _md5lanes: MD5 (RFC 1321) of many streams at once, for the ETags of objects under way together.
 *
 * One stream cannot be hashed faster than about 0.9 GB/s: every step needs the result of the one
 * before. Sixteen streams side by side, in the lanes of AVX-512 registers, together are hashed at
 * seven times that rate. See docs/decisions/0013. Padding is left to md5.py.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "MD5's words are little-endian, and this code takes them from memory as they are"
#endif

#define BLOCK 64
#define JOBS_MAX 64
#define LANES_MAX 16

#ifdef __clang__
#define SHUFFLE(type, x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define SHUFFLE(type, x, y, ...) __builtin_shuffle(x, y, (type){__VA_ARGS__})
#endif

#define LANES 1
#define NAME(x) x##_scalar
#define TARGET
#include "md5lanes_kernel.h"

/* SSE2 on x86-64, NEON on aarch64: what every such processor has. */
#define LANES 4
#define NAME(x) x##_baseline
#define TARGET
#include "md5lanes_kernel.h"

#ifdef __x86_64__
#define LANES 8
#define NAME(x) x##_avx2
#define TARGET __attribute__((target("avx2")))
#include "md5lanes_kernel.h"

#define LANES 16
#define NAME(x) x##_avx512
#define TARGET __attribute__((target("avx512f")))
#include "md5lanes_kernel.h"
#endif

/* What is left to hash of one piece of a stream; its state is four words, at any address. */
typedef struct Job {
    uint8_t *state;
    const uint8_t *data;
    size_t blocks;
    struct Job *next; /* the piece of the same stream that follows, or NULL */
} Job;

typedef struct {
    const char *name;
    int lanes;
    /* With fewer streams the scalar code is quicker (measured on Zen 5). */
    int worthwhile;
    void (*hash)(Job *const *jobs, int count, size_t blocks);
} Method;

/* Hash the first `blocks` blocks of up to `lanes` jobs. Lanes without a job repeat the first one,
 * whose bytes are in the cache anyway; what comes out of them is dropped. */
#define DEFINE_RUN(method, width)                                               \
    static void run_##method(Job *const *jobs, int count, size_t blocks)        \
    {                                                                           \
        uint32_t state[4][width];                                               \
        const uint8_t *data[width];                                             \
        for (int lane = 0; lane < width; lane++) {                              \
            const Job *job = jobs[lane < count ? lane : 0];                     \
            for (int i = 0; i < 4; i++)                                         \
                memcpy(&state[i][lane], job->state + 4 * i, 4);                 \
            data[lane] = job->data;                                             \
        }                                                                       \
        hash_##method(state, data, blocks);                                     \
        for (int lane = 0; lane < count; lane++)                                \
            for (int i = 0; i < 4; i++)                                         \
                memcpy(jobs[lane]->state + 4 * i, &state[i][lane], 4);          \
    }

DEFINE_RUN(scalar, 1)
DEFINE_RUN(baseline, 4)
#ifdef __x86_64__
DEFINE_RUN(avx2, 8)
DEFINE_RUN(avx512, 16)
#endif

/* The quickest first. */
static const Method METHODS[] = {
#ifdef __x86_64__
    {"avx512", 16, 3, run_avx512},
    {"avx2", 8, 4, run_avx2},
#endif
    {"baseline", 4, 4, run_baseline},
    {"scalar", 1, 1, run_scalar},
};
#define METHOD_COUNT ((int)(sizeof METHODS / sizeof METHODS[0]))

static int is_supported(const Method *method)
{
#ifdef __x86_64__
    if (strcmp(method->name, "avx512") == 0)
        return __builtin_cpu_supports("avx512f");
    if (strcmp(method->name, "avx2") == 0)
        return __builtin_cpu_supports("avx2");
#endif
    (void)method;
    return 1;
}

/* Hash all jobs, and what follows them, to their ends: `jobs` has the first job of each stream.
 * Whenever the shortest one in the lanes ends, another takes its place. */
static void hash_jobs(const Method *method, Job **jobs, int left)
{
    while (left > 0) {
        int count = left < method->lanes ? left : method->lanes;
        if (count < method->worthwhile) {
            left--;
            for (Job *job = jobs[left]; job != NULL; job = job->next)
                run_scalar(&job, 1, job->blocks);
            continue;
        }
        size_t blocks = jobs[0]->blocks;
        for (int i = 1; i < count; i++)
            if (jobs[i]->blocks < blocks)
                blocks = jobs[i]->blocks;
        method->hash(jobs, count, blocks);
        for (int i = count - 1; i >= 0; i--) {
            jobs[i]->data += blocks * BLOCK;
            jobs[i]->blocks -= blocks;
            if (jobs[i]->blocks == 0)
                jobs[i] = jobs[i]->next != NULL ? jobs[i]->next : jobs[--left];
        }
    }
}

/* The buffers of one call, to be released whatever happens. */
typedef struct {
    Py_buffer views[2 * JOBS_MAX];
    int count;
} Views;

static int take_job(Job *job, Views *views, PyObject *state, PyObject *data)
{
    Py_buffer *view = &views->views[views->count];
    if (PyObject_GetBuffer(state, view, PyBUF_WRITABLE) < 0)
        return -1;
    views->count++;
    if (view->len != 16) {
        PyErr_SetString(PyExc_ValueError, "a state has 16 bytes");
        return -1;
    }
    job->state = view->buf;
    view++;
    if (PyObject_GetBuffer(data, view, PyBUF_SIMPLE) < 0)
        return -1;
    views->count++;
    if (view->len % BLOCK != 0) {
        PyErr_SetString(PyExc_ValueError, "data comes in whole blocks of 64 bytes");
        return -1;
    }
    job->data = view->buf;
    job->blocks = (size_t)view->len / BLOCK;
    job->next = NULL;
    return 0;
}

static const Method *find_method(const char *name)
{
    for (int i = 0; i < METHOD_COUNT; i++)
        if (is_supported(&METHODS[i]) && (name == NULL || strcmp(name, METHODS[i].name) == 0))
            return &METHODS[i];
    PyErr_Format(PyExc_ValueError, "this processor has no %s", name);
    return NULL;
}

PyDoc_STRVAR(update_doc,
"update(states, data, method=None)\n\n"
"Hash each of the data into the state at the same place, all of them at once, without the GIL.\n\n"
"Args:\n"
"    states: up to 64 writable buffers of 16 bytes. Data for the same state follow each other.\n"
"    data: as many buffers, each of whole blocks of 64 bytes.\n"
"    method: one of METHODS; None: the first.");

static PyObject *update(PyObject *module, PyObject *args)
{
    PyObject *states, *data, *result = NULL;
    const char *name = NULL;
    Job jobs[JOBS_MAX], *first[JOBS_MAX], *last[JOBS_MAX];
    Views views = {.count = 0};
    int streams = 0;

    if (!PyArg_ParseTuple(args, "OO|z", &states, &data, &name))
        return NULL;
    const Method *method = find_method(name);
    if (method == NULL)
        return NULL;
    states = PySequence_Fast(states, "states are a sequence");
    if (states == NULL)
        return NULL;
    data = PySequence_Fast(data, "data is a sequence");
    if (data == NULL)
        goto end;
    Py_ssize_t count = PySequence_Fast_GET_SIZE(states);
    if (count > JOBS_MAX || count != PySequence_Fast_GET_SIZE(data)) {
        PyErr_Format(PyExc_ValueError, "at most %d states, and as many data", JOBS_MAX);
        goto end;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        Job *job = &jobs[i];
        if (take_job(job, &views, PySequence_Fast_GET_ITEM(states, i),
                     PySequence_Fast_GET_ITEM(data, i)) < 0)
            goto end;
        if (job->blocks == 0)
            continue;
        int stream = 0;
        while (stream < streams && first[stream]->state != job->state)
            stream++;
        if (stream == streams)
            first[streams++] = job;
        else
            last[stream]->next = job;
        last[stream] = job;
    }
    Py_BEGIN_ALLOW_THREADS
    hash_jobs(method, first, streams);
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
end:
    while (views.count > 0)
        PyBuffer_Release(&views.views[--views.count]);
    Py_XDECREF(data);
    Py_DECREF(states);
    return result;
}

static int set_up(PyObject *module)
{
    PyObject *names = PyDict_New();
    if (names == NULL)
        return -1;
    for (int i = 0; i < METHOD_COUNT; i++) {
        if (!is_supported(&METHODS[i]))
            continue;
        PyObject *lanes = PyLong_FromLong(METHODS[i].lanes);
        if (lanes == NULL || PyDict_SetItemString(names, METHODS[i].name, lanes) < 0) {
            Py_XDECREF(lanes);
            Py_DECREF(names);
            return -1;
        }
        Py_DECREF(lanes);
    }
    int failed = PyModule_AddObjectRef(module, "METHODS", names);
    Py_DECREF(names);
    return failed;
}

static PyMethodDef functions[] = {{"update", update, METH_VARARGS, update_doc}, {0}};

static PyModuleDef_Slot slots[] = {{Py_mod_exec, set_up}, {0}};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_md5lanes",
    .m_doc = "MD5 of many streams at once.",
    .m_methods = functions,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__md5lanes(void)
{
    return PyModuleDef_Init(&definition);
}
