/* Which shape bucket takes inputs of given shapes, and the words for when none does.
 *
 * Shapes are given as one array of extents per input, each as long as the input's rank: the same in all buckets. */
#ifndef TC_BUCKETS_H
#define TC_BUCKETS_H
#include <stddef.h>

#include "plan.h"

static int same_shape(const tc_tensor *t, const int64_t *shape) {
    for (int32_t d = 0; d < t->rank; d++)
        if (t->shape[d] != shape[d]) return 0;
    return 1;
}

static int64_t find_bucket(const tc_network *n, const int64_t *const *shapes) {
    for (uint32_t b = 0; b < n->n_plans; b++) {
        uint32_t i = 0;
        while (i < n->n_inputs && same_shape(&n->plans[b].inputs[i], shapes[i])) i++;
        if (i == n->n_inputs) return b;
    }
    return -1;
}

/* Text into a buffer that may be too short: `length` counts on, as that of snprintf. */
typedef struct {
    char *to;
    size_t room, length;
} text;

static void put(text *t, const char *words) {
    for (; *words; words++, t->length++)
        if (t->length + 1 < t->room) t->to[t->length] = *words;
}

static void put_number(text *t, int64_t value) {
    char digits[24], *at = digits + sizeof digits - 1;
    uint64_t rest = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
    *at = 0;
    do *--at = (char)('0' + rest % 10);
    while (rest /= 10);
    if (value < 0) put(t, "-");
    put(t, at);
}

/* As Python writes it: (1, 3), (64,), (). */
static void put_shape(text *t, const int64_t *shape, int32_t rank) {
    put(t, "(");
    for (int32_t d = 0; d < rank; d++) {
        if (d) put(t, ", ");
        put_number(t, shape[d]);
    }
    put(t, rank == 1 ? ",)" : ")");
}

/* Whether an earlier bucket than `b` has the same shape of input `i`. */
static int seen_before(const tc_network *n, uint32_t b, uint32_t i) {
    for (uint32_t e = 0; e < b; e++)
        if (same_shape(&n->plans[e].inputs[i], n->plans[b].inputs[i].shape)) return 1;
    return 0;
}

/* The first input whose shape is in no bucket; n_inputs: each is in one, but never all of them together. */
static uint32_t wrong_input(const tc_network *n, const int64_t *const *shapes) {
    for (uint32_t i = 0; i < n->n_inputs; i++) {
        uint32_t b = 0;
        while (b < n->n_plans && !same_shape(&n->plans[b].inputs[i], shapes[i])) b++;
        if (b == n->n_plans) return i;
    }
    return n->n_inputs;
}

static void put_all_shapes(text *t, const tc_tensor *inputs, const int64_t *const *shapes, uint32_t n_inputs) {
    for (uint32_t i = 0; i < n_inputs; i++) {
        put(t, i ? ", '" : "'");
        put(t, inputs[i].name);
        put(t, "' ");
        put_shape(t, shapes ? shapes[i] : inputs[i].shape, inputs[i].rank);
    }
}

/* Why no bucket takes these shapes and what to do, on two lines; for shapes that one takes, nothing. */
static void put_shape_error(text *t, const tc_network *n, const int64_t *const *shapes) {
    if (find_bucket(n, shapes) >= 0) return;
    const tc_tensor *inputs = n->plans[0].inputs;
    uint32_t wrong = wrong_input(n, shapes);
    if (wrong < n->n_inputs) {
        put(t, "input '");
        put(t, inputs[wrong].name);
        put(t, "' has shape ");
        put_shape(t, shapes[wrong], inputs[wrong].rank);
        put(t, n->n_plans == 1 ? ", not " : "; the shape buckets have ");
        for (uint32_t b = 0; b < n->n_plans; b++) {
            if (seen_before(n, b, wrong)) continue;
            if (b) put(t, ", ");
            put_shape(t, n->plans[b].inputs[wrong].shape, inputs[wrong].rank);
        }
    } else {
        put(t, "no shape bucket has the inputs ");
        put_all_shapes(t, inputs, shapes, n->n_inputs);
        put(t, " together; there are ");
        for (uint32_t b = 0; b < n->n_plans; b++) {
            if (b) put(t, "; ");
            put_all_shapes(t, n->plans[b].inputs, NULL, n->n_inputs);
        }
    }
    put(t, n->n_plans == 1 ? "\nfix: give it that shape, or build the model for several shapes"
                           : "\nfix: pad or cut the inputs to the shapes of a bucket, or build with one more bucket");
    put(t, ": `buckets` in the deployfile, a list of `shapes` in toolchain.compile");
}
#endif
