/* `run lib<model>.so weights.bin ...`: a model on a board, by hand. Files are raw bytes in row-major order, or .npy. */
#ifndef TC_COMMAND_H
#define TC_COMMAND_H
#include "files.h"
#include "model.h"

static const char usage[] =
    "run lib<model>.so weights.bin [options]     run the model once, or time it\n"
    "  --input NAME=FILE     a value: .npy, or its raw bytes in row-major order; left out: zeros\n"
    "  --output NAME=FILE    where a result goes, as .npy\n"
    "  --bucket N            which shape bucket, from 0\n"
    "  --threads N           how many compute; left out: one per CPU\n"
    "  --time N              N samples of at least 20 ms each, in microseconds per run\n"
    "  --layers              time per operation\n"
    "run serve ...                               the end of a session of `tc`, on stdin and stdout\n"
    "It needs nothing but a Linux kernel. Exit codes: 0 done, 1 the model failed, 2 wrong usage.\n";

static model command_model;

_Noreturn SHARED void stop(int code, const char *what, const char *which) {
    buffer words = {0};
    add_text(&words, "error: "), add_text(&words, what);
    if (which) add_text(&words, ": "), add_text(&words, which);
    add_text(&words, "\n");
    write_all(2, words.at, words.used);
    end_process(code);
}

static inline int64_t number_of(const char *s) {
    int64_t n = 0;
    for (const char *c = s; *c; c++) {
        if (*c < '0' || *c > '9' || n > 1000000) stop(2, "no number", s);
        n = 10 * n + (*c - '0');
    }
    return n;
}

/* "name=file" -> index of that value; *file after the '='. */
static inline int64_t which_value(const char *assignment, const char **file, int output) {
    for (int64_t i = 0; i < (output ? command_model.n_outputs : command_model.n_inputs); i++) {
        const tensor *t = output ? command_model.f.bucket_output(command_model.bucket, i)
                                 : command_model.f.bucket_input(command_model.bucket, i);
        const char *rest = after_prefix(assignment, t->name);
        if (rest && *rest == '=') {
            *file = rest + 1;
            return i;
        }
    }
    stop(2, output ? "no such output" : "no such input", assignment);
}

static inline void read_input(const char *assignment) {
    const char *path;
    value *v = &command_model.inputs[which_value(assignment, &path, 0)];
    size_t bytes = 0, skip = 0;
    char *data = map_file(path, &bytes);
    if (!data) stop(2, "cannot be read", path);
    if (bytes > 12 && !memcmp(data, "\223NUMPY", 6)) {
        uint16_t short_length;
        uint32_t long_length;
        memcpy(&short_length, data + 8, 2), memcpy(&long_length, data + 8, 4);
        skip = data[6] == 1 ? 10u + short_length : 12u + (size_t)long_length;
    }
    if (bytes < skip || bytes - skip != v->bytes) stop(2, "it has another size than the input", path);
    memcpy(v->data, data + skip, v->bytes);
    sys_unmap(data, bytes);
}

static inline const char *numpy_type(const char *dtype) {
    static const char *const types[][2] = {
        {"float32", "<f4"}, {"float64", "<f8"}, {"float16", "<f2"}, {"int64", "<i8"}, {"int32", "<i4"}, {"int16", "<i2"},
        {"int8", "|i1"}, {"uint8", "|u1"}, {"uint16", "<u2"}, {"uint32", "<u4"}, {"uint64", "<u8"}, {"bool", "|b1"}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (text_equal(dtype, types[i][0])) return types[i][1];
    return "|V2"; /* bfloat16, which NumPy has no name for */
}

static inline void add_shape(buffer *b, const int64_t *shape, int32_t rank) {
    add_text(b, "(");
    for (int32_t d = 0; d < rank; d++) add_text(b, d ? ", " : ""), add_number(b, shape[d]);
    add_text(b, rank == 1 ? ",)" : ")");
}

static inline void write_output(const char *assignment) {
    const char *path;
    int64_t i = which_value(assignment, &path, 1), shape[64] = {0};
    const tensor *t = command_model.f.bucket_output(command_model.bucket, i);
    buffer b = {0};
    command_model.f.output_shape(command_model.handle, i, shape);
    add(&b, "\223NUMPY\1\0\0\0", 10);
    add_text(&b, "{'descr': '"), add_text(&b, numpy_type(t->dtype)), add_text(&b, "', 'fortran_order': False, 'shape': ");
    add_shape(&b, shape, t->rank), add_text(&b, ", }");
    while (b.used % 64 != 63) add(&b, " ", 1);
    add(&b, "\n", 1);
    uint16_t length = (uint16_t)(b.used - 10);
    memcpy(b.at + 8, &length, 2);
    add(&b, command_model.outputs[i].data, tensor_bytes_of(t, shape));
    long fd = file_open(path, O_WRITE | O_CREATE | O_TRUNCATE, 0644);
    if (sys_failed(fd) || write_all(fd, b.at, b.used) != (long)b.used) stop(1, "cannot be written", path);
    file_close(fd);
    release_buffer(&b);
}

/* 1234567 ns -> "1234.567" */
static inline void add_us(buffer *b, int64_t ns) {
    add_number(b, ns / 1000), add_text(b, ".");
    for (int64_t digit = 100; digit; digit /= 10) add_number(b, ns / digit % 10);
}

static inline void print_values(void) {
    buffer b = {0};
    int64_t shape[64] = {0};
    for (int64_t i = 0; i < command_model.n_outputs; i++) {
        const tensor *t = command_model.f.bucket_output(command_model.bucket, i);
        command_model.f.output_shape(command_model.handle, i, shape);
        add_text(&b, t->name), add_text(&b, ": "), add_text(&b, t->dtype), add_text(&b, " ");
        add_shape(&b, shape, t->rank), add_text(&b, "\n");
    }
    write_all(1, b.at, b.used);
    release_buffer(&b);
}

static inline void print_times(int64_t samples) {
    buffer rows = {0}, b = {0};
    int status = model_benchmark(&command_model, 1, samples, 20000000, 2, 0, &rows);
    if (status) stop(1, command_model.f.status_text(status), NULL);
    const int64_t *pair = (const int64_t *)(void *)rows.at;
    const int64_t *end = (const int64_t *)(void *)(rows.at + rows.used);
    for (; pair < end; pair += 2) add_us(&b, pair[1] / pair[0]), add_text(&b, " us\n");
    write_all(1, b.at, b.used);
    release_buffer(&b), release_buffer(&rows);
}

static inline void print_layers(void) {
    enum { RUNS = 10 };
    buffer rows = {0}, b = {0};
    int status = model_profile(&command_model, 0, -1, RUNS, &rows);
    if (status) stop(1, command_model.f.status_text(status), NULL);
    int64_t n = command_model.f.n_ops(command_model.bucket);
    const int64_t *ns = (const int64_t *)(void *)rows.at;
    for (int64_t op = 0; op < n; op++) {
        int64_t best = ns[op];
        for (int64_t r = 1; r < RUNS; r++) best = ns[r * n + op] < best ? ns[r * n + op] : best;
        add_us(&b, best), add_text(&b, " us  ");
        add_text(&b, command_model.f.op_name(command_model.bucket, op)), add_text(&b, "\n");
    }
    write_all(1, b.at, b.used);
    release_buffer(&b), release_buffer(&rows);
}

_Noreturn static inline void command_main(int n, char **arguments) {
    int64_t threads = 0, samples = 0, bucket = 0, layers = 0;
    if (n < 2) {
        write_all(2, usage, sizeof usage - 1);
        end_process(2);
    }
    for (int i = 2; i < n; i++) {
        const char *name = arguments[i], *following = i + 1 < n ? arguments[i + 1] : NULL;
        if (text_equal(name, "--layers")) {
            layers = 1;
            continue;
        }
        if (!following) stop(2, "an option without its value, or an unknown one", name);
        if (text_equal(name, "--threads")) threads = number_of(following);
        else if (text_equal(name, "--time")) samples = number_of(following);
        else if (text_equal(name, "--bucket")) bucket = number_of(following);
        else if (!text_equal(name, "--input") && !text_equal(name, "--output")) stop(2, "an unknown option", name);
        i++;
    }
    const char *error = model_load(&command_model, arguments[0], arguments[1], (int)threads);
    if (error) stop(1, error, command_model.detail);
    if (bucket && (error = model_select(&command_model, bucket))) stop(2, error, NULL);
    for (int i = 2; i < n - 1; i++)
        if (text_equal(arguments[i], "--input")) read_input(arguments[i + 1]);
    int status = model_run(&command_model);
    if (status) stop(1, command_model.f.status_text(status), NULL);
    for (int i = 2; i < n - 1; i++)
        if (text_equal(arguments[i], "--output")) write_output(arguments[i + 1]);
    if (!samples && !layers) print_values();
    if (samples) print_times(samples);
    if (layers) print_layers();
    command_model.f.destroy(command_model.handle);
    end_process(0);
}
#endif
