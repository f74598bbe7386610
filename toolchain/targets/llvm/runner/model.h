/* A loaded model as the runner uses it: entry points by name, a buffer per input and output, timing loops.
 *
 * Buffers end right before a page nobody may touch (up to their alignment), so that code which writes beyond them dies here
 * and is reported, in place of spoiling something quietly. */
#ifndef TC_MODEL_H
#define TC_MODEL_H
#include "elf.h"

enum { MOST_VALUES = 256, BUFFER_ALIGNMENT = 64 };

typedef struct { /* <model>_tensor of the model's header */
    const char *name, *dtype;
    const int64_t *shape;
    int32_t rank;
    int64_t size_bytes;
    const int64_t *extents;
} tensor;

typedef struct {
    int (*create)(void **model, const char *path, int threads);
    int (*run_bucket)(void *model, int64_t bucket, const void *const *inputs, void *const *outputs);
    int (*run_range)(void *model, int64_t bucket, const void *const *inputs, void *const *outputs, int64_t first, int64_t end);
    void (*destroy)(void *model);
    int64_t (*n_inputs)(void);
    int64_t (*n_outputs)(void);
    int64_t (*n_buckets)(void);
    int64_t (*n_ops)(int64_t bucket);
    const tensor *(*bucket_input)(int64_t bucket, int64_t i);
    const tensor *(*bucket_output)(int64_t bucket, int64_t i);
    int (*output_shape)(const void *model, int64_t i, int64_t *shape);
    const char *(*op_name)(int64_t bucket, int64_t i);
    const char *(*status_text)(int status);
    const char *(*missing_feature)(void);
    const char *(*version)(void);
    int (*threads)(const void *model);
    void (*set_profile)(void *model, int64_t *ns);
} functions;

static const struct {
    const char *name;
    size_t offset;
} function_table[] = {
    {"create", offsetof(functions, create)}, {"run_bucket", offsetof(functions, run_bucket)},
    {"run_range", offsetof(functions, run_range)}, {"destroy", offsetof(functions, destroy)},
    {"n_inputs", offsetof(functions, n_inputs)}, {"n_outputs", offsetof(functions, n_outputs)},
    {"n_buckets", offsetof(functions, n_buckets)}, {"n_ops", offsetof(functions, n_ops)},
    {"bucket_input", offsetof(functions, bucket_input)}, {"bucket_output", offsetof(functions, bucket_output)},
    {"output_shape", offsetof(functions, output_shape)}, {"op_name", offsetof(functions, op_name)},
    {"status_text", offsetof(functions, status_text)}, {"missing_feature", offsetof(functions, missing_feature)},
    {"version", offsetof(functions, version)}, {"threads", offsetof(functions, threads)},
    {"set_profile", offsetof(functions, set_profile)},
};

typedef struct {
    char *memory, *data; /* the whole mapping; where the value begins */
    size_t memory_bytes, bytes;
} value;

typedef struct {
    library code;
    functions f;
    void *handle;
    int64_t bucket;
    int64_t n_inputs, n_outputs;
    value inputs[MOST_VALUES], outputs[MOST_VALUES];
    const void *input_pointers[MOST_VALUES];
    void *output_pointers[MOST_VALUES];
    const char *detail; /* of the last error: the missing feature */
} model;

static inline int value_new(value *v, size_t bytes) {
    size_t inside = (bytes + BUFFER_ALIGNMENT - 1) & ~(size_t)(BUFFER_ALIGNMENT - 1);
    size_t whole = (inside + SEGMENT_GRANULE - 1) & ~(size_t)(SEGMENT_GRANULE - 1);
    *v = (value){.memory_bytes = whole + 2 * SEGMENT_GRANULE, .bytes = bytes};
    if (!(v->memory = sys_map(v->memory_bytes))) return 0;
    char *guard = (char *)(((uintptr_t)v->memory + whole + SEGMENT_GRANULE - 1) & ~(uintptr_t)(SEGMENT_GRANULE - 1));
    SYS3(NR_mprotect, guard, SEGMENT_GRANULE, 0);
    v->data = guard - inside;
    return 1;
}
static inline void value_free(value *v) {
    sys_unmap(v->memory, v->memory_bytes);
    *v = (value){0};
}

SHARED const char *model_select(model *m, int64_t bucket) {
    if (bucket < 0 || bucket >= m->f.n_buckets()) return "there is no such shape bucket";
    for (int64_t i = 0; i < m->n_inputs; i++) {
        value_free(&m->inputs[i]);
        if (!value_new(&m->inputs[i], (size_t)m->f.bucket_input(bucket, i)->size_bytes)) return "out of memory";
        m->input_pointers[i] = m->inputs[i].data;
    }
    for (int64_t i = 0; i < m->n_outputs; i++) {
        value_free(&m->outputs[i]);
        if (!value_new(&m->outputs[i], (size_t)m->f.bucket_output(bucket, i)->size_bytes)) return "out of memory";
        m->output_pointers[i] = m->outputs[i].data;
    }
    m->bucket = bucket;
    return NULL;
}

/* Returns NULL, or why it cannot be loaded (`detail` says more). */
SHARED const char *model_load(model *m, const char *library_path, const char *weights_path, int threads) {
    size_t bytes = 0;
    char *file = map_file(library_path, &bytes);
    if (!file) return "the library cannot be read";
    const char *error = library_load(&m->code, file, bytes);
    sys_unmap(file, bytes);
    if (error) return error;
    for (size_t i = 0; i < sizeof function_table / sizeof *function_table; i++) {
        void *at = library_find(&m->code, function_table[i].name);
        if (!at) {
            m->detail = function_table[i].name;
            return "the library lacks a function";
        }
        memcpy((char *)&m->f + function_table[i].offset, &at, sizeof at);
    }
    m->n_inputs = m->f.n_inputs(), m->n_outputs = m->f.n_outputs();
    if (m->n_inputs > MOST_VALUES || m->n_outputs > MOST_VALUES) return "it has more inputs or outputs than this runner takes";
    int status = m->f.create(&m->handle, weights_path, threads);
    if (status) {
        m->detail = m->f.missing_feature();
        return m->f.status_text(status);
    }
    return model_select(m, 0);
}

static inline int model_run(model *m) {
    return m->f.run_bucket(m->handle, m->bucket, m->input_pointers, m->output_pointers);
}

/* A sample is the time of `number` runs, back to back; one that is shorter than `least_ns` is taken again with more of them.
 * Adds pairs (number, nanoseconds) to `samples`. Returns the status of a run that failed, or 0. */
SHARED int model_benchmark(model *m, int64_t number, int64_t repeat, int64_t least_ns,
                           int64_t warmup, int64_t pause_ns, buffer *samples) {
    int status = 0;
    for (int64_t i = 0; i < warmup && !status; i++) status = model_run(m);
    if (number < 1) number = 1;
    for (int64_t r = 0; r < repeat && !status; r++) {
        int64_t ns;
        if (r && pause_ns > 0) sleep_ns(pause_ns);
        for (;;) {
            int64_t begun = sys_now_ns();
            for (int64_t i = 0; i < number && !status; i++) status = model_run(m);
            ns = sys_now_ns() - begun;
            if (ns >= least_ns || status) break;
            int64_t enough = (int64_t)((double)least_ns * (double)number / (double)(ns > 1000 ? ns : 1000)) + 1;
            number = enough > number * 8 / 5 + 1 ? enough : number * 8 / 5 + 1;
        }
        int64_t pair[2] = {number, ns};
        add(samples, pair, sizeof pair);
    }
    return status;
}

/* Adds, for each of `repeat` runs of the ops [first, end) (end < 0: of all), a row with the nanoseconds of every op. */
SHARED int model_profile(model *m, int64_t first, int64_t end, int64_t repeat, buffer *rows) {
    size_t row = (size_t)m->f.n_ops(m->bucket) * sizeof(int64_t);
    int status = model_run(m);
    for (int64_t r = 0; r < repeat && !status; r++) {
        if (!reserve(rows, row)) return 6;
        int64_t *at = (int64_t *)(void *)(rows->at + rows->used);
        memset(at, 0, row);
        m->f.set_profile(m->handle, at);
        status = end < 0 ? model_run(m)
                         : m->f.run_range(m->handle, m->bucket, m->input_pointers, m->output_pointers, first, end);
        m->f.set_profile(m->handle, NULL);
        rows->used += row;
    }
    return status;
}

static inline size_t tensor_bytes_of(const tensor *t, const int64_t *shape) {
    size_t most = 1, now = 1;
    for (int32_t d = 0; d < t->rank; d++) most *= (size_t)t->shape[d], now *= (size_t)shape[d];
    return most ? (size_t)t->size_bytes / most * now : 0;
}
#endif
