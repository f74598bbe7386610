/* A network as constant tables: what the toolchain writes out for each model (table.py); interpret.h walks one plan of it. */
#ifndef TC_PLAN_H
#define TC_PLAN_H
#include <stdint.h>

enum { TC_FORMAT = 1, TC_MAX_DEPTH = 8 };

/* One phase of a kernel over [lo, hi) of its parallel extent; `scratch` is the lane's own. */
typedef void tc_kernel(void *const *buffers, int64_t lo, int64_t hi, void *scratch);

/* Where a buffer lies: bases[base] + offset + sum over the loops around it of iteration * stride.
 * base: 0 the weights, 1 the arena, then the inputs, then the outputs. strides: index of as many strides as there are
 * loops around (outermost first), or 0: it does not move. */
typedef struct {
    uint32_t base, strides;
    int64_t offset;
} tc_slot;

typedef struct {
    tc_kernel *run;
    int64_t extent;
} tc_phase;

/* Slots: CALL the kernel's buffers; COPY source, destination; ZERO destination; IF, LOOP the condition (one byte). */
enum { TC_CALL, TC_COPY, TC_ZERO, TC_REPEAT, TC_IF, TC_LOOP, TC_FAIL };

/* Ops stand in pre-order: an op's body follows it, then IF's other branch. */
typedef struct {
    const char *name;
    int64_t count;            /* REPEAT, LOOP: (most) iterations; COPY, ZERO: bytes */
    uint32_t kind, chunks;    /* CALL: into how many chunks its extents are cut, 0: as the runtime likes */
    uint32_t slots, n_slots;
    uint32_t phases, n_phases;
    uint32_t body, otherwise; /* how many ops the body and the other branch have, all levels counted */
} tc_op;

typedef struct {
    const char *name, *dtype;
    const int64_t *shape;
    int32_t rank;
    int64_t size_bytes;
    const int64_t *extents; /* NULL: the shape is that; else per dimension -1, or where in the arena its true extent is left */
} tc_tensor;

/* A CPU feature the code needs: the arguments of the machine's cpu_feature(). */
typedef struct {
    const char *name;
    uint32_t leaf, subleaf, reg;
    uint64_t mask;
} tc_feature;

/* Bytes of the arena that are zero when a run begins, and that no op spoils: halos. */
typedef struct {
    uint64_t offset, size_bytes;
} tc_range;

/* One shape bucket: what runs for inputs of just these shapes. */
typedef struct {
    const tc_op *ops;
    const tc_slot *slots;
    const tc_phase *phases;
    const int64_t *strides;
    const tc_tensor *inputs, *outputs;
    const tc_range *zero;
    uint32_t n_ops, n_zero;
    int32_t steal;
} tc_plan;

/* All of a model. Names, types and ranks of inputs and outputs are the same in every plan, and so is `steal`; the arena,
 * scratch and most_slots are those of the plan that needs most. */
typedef struct {
    const char *version;
    const tc_plan *plans;
    const tc_feature *features;
    uint32_t n_plans, n_inputs, n_outputs, n_features, most_slots;
    int32_t amx;
    uint64_t weights_bytes, arena_bytes, scratch_bytes;
    uint8_t weights_digest[32];
} tc_network;

extern const tc_network tc_the_network __attribute__((visibility("hidden")));
#endif
