/* The process of one loaded model: answers requests that its parent hands on. It may crash, hang or spoil its memory: the
 * parent tells the client, and others go on. It ends when its parent does. */
#ifndef TC_ENGINE_H
#define TC_ENGINE_H
#include "frame.h"
#include "model.h"

static model the_model;

/* "words: detail", in `answer`. */
static inline uint32_t fail(buffer *answer, const char *words, const char *detail) {
    answer->used = 0;
    add_text(answer, words);
    if (detail) add_text(answer, ": "), add_text(answer, detail);
    return FAILED;
}

static inline uint32_t status_answer(buffer *answer, int status) {
    return status ? fail(answer, the_model.f.status_text(status), NULL) : DONE;
}

/* library '\0' weights '\0' threads i32 */
static inline uint32_t engine_load(const char *payload, size_t n, buffer *answer) {
    size_t first = 0, second;
    while (first < n && payload[first]) first++;
    second = first + 1;
    while (second < n && payload[second]) second++;
    if (second + 5 != n) return fail(answer, "a broken request", NULL);
    int32_t threads;
    memcpy(&threads, payload + second + 1, 4);
    const char *error = model_load(&the_model, payload, payload + first + 1, threads);
    if (error) return fail(answer, error, the_model.detail);
    int64_t about[5] = {the_model.n_inputs, the_model.n_outputs, the_model.f.n_buckets(), the_model.f.n_ops(0),
                        the_model.f.threads(the_model.handle)};
    add(answer, about, sizeof about);
    add_text(answer, the_model.f.version());
    return DONE;
}

/* index i64, then the whole value */
static inline uint32_t engine_set(const char *payload, size_t n, buffer *answer) {
    int64_t index;
    if (n < sizeof index) return fail(answer, "a broken request", NULL);
    memcpy(&index, payload, sizeof index);
    if (index < 0 || index >= the_model.n_inputs) return fail(answer, "there is no such input", NULL);
    value *v = &the_model.inputs[index];
    if (n - sizeof index != v->bytes) return fail(answer, "the input has another size", NULL);
    memcpy(v->data, payload + sizeof index, v->bytes);
    return DONE;
}

/* index i64 -> rank i64, shape i64 each, the elements of that shape */
static inline uint32_t engine_get(const char *payload, size_t n, buffer *answer) {
    int64_t index, shape[64], rank;
    if (n != sizeof index) return fail(answer, "a broken request", NULL);
    memcpy(&index, payload, sizeof index);
    if (index < 0 || index >= the_model.n_outputs) return fail(answer, "there is no such output", NULL);
    const tensor *t = the_model.f.bucket_output(the_model.bucket, index);
    rank = t->rank;
    if (rank > 64 || the_model.f.output_shape(the_model.handle, index, shape)) return fail(answer, "no shape", NULL);
    add(answer, &rank, sizeof rank);
    add(answer, shape, (size_t)rank * sizeof *shape);
    add(answer, the_model.outputs[index].data, tensor_bytes_of(t, shape));
    return DONE;
}

static inline uint32_t engine_answer(const frame *f, const char *payload, buffer *answer) {
    int64_t n[5] = {0};
    memcpy(n, payload, f->length < sizeof n ? f->length : sizeof n);
    if (f->kind == LOAD) return engine_load(payload, f->length, answer);
    if (!the_model.handle) return fail(answer, "no model is loaded", NULL);
    if (f->kind == SET) return engine_set(payload, f->length, answer);
    if (f->kind == GET) return engine_get(payload, f->length, answer);
    if (f->kind == RUN) return status_answer(answer, model_run(&the_model));
    if (f->kind == BENCHMARK)       /* number, repeat, least ns of a sample, warm-up runs, pause ns */
        return status_answer(answer, model_benchmark(&the_model, n[0], n[1], n[2], n[3], n[4], answer));
    if (f->kind == PROFILE)         /* first, end, repeat */
        return status_answer(answer, model_profile(&the_model, n[0], n[1], n[2], answer));
    if (f->kind == SELECT) {
        const char *error = model_select(&the_model, n[0]);
        int64_t ops = error ? 0 : the_model.f.n_ops(n[0]);
        add(answer, &ops, sizeof ops);
        return error ? fail(answer, error, NULL) : DONE;
    }
    return fail(answer, "an unknown request", NULL);
}

/* Serve requests of the pipe `in` until it is closed. */
_Noreturn static inline void engine_main(long in, long out) {
    for (;;) {
        frame f;
        if (read_all(in, &f, sizeof f) != (long)sizeof f) end_process(0);
        buffer payload = {0}, answer = {0};
        if (!reserve(&payload, f.length + 1)) end_process(3);
        if (read_all(in, payload.at, f.length) != (long)f.length) end_process(0);
        f.word = engine_answer(&f, payload.at, &answer);
        if (answer.failed) f.word = fail(&answer, "out of memory", NULL);
        f.length = answer.used;
        if (write_all(out, &f, sizeof f) < 0 || write_all(out, answer.at, answer.used) < 0) end_process(0);
        release_buffer(&payload), release_buffer(&answer);
    }
}
#endif
