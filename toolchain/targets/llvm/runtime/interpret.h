/* Walks a plan: resolves each op's slots and runs its phases, with all lanes meeting between phases.
 *
 * Stealing: lane 0 walks, and every phase is one job of the pool. SPMD: every lane walks the whole plan by itself, runs its
 * share [lane/lanes, (lane+1)/lanes) of each phase, and meets the others at a barrier; for networks of tiny operators. */
#ifndef TC_INTERPRET_H
#define TC_INTERPRET_H
#include "memory.h"
#include "plan.h"
#include "pool.h"

enum { CHUNKS_PER_LANE = 4, COPY_BLOCK_BYTES = 1 << 15 };

typedef void after_op_fn(void *user, int64_t op);

/* What one lane needs while it walks. */
typedef struct {
    struct tc_model *model;
    void **buffers;                  /* room for the slots of one op */
    int64_t iteration[TC_MAX_DEPTH]; /* of the loops around, outermost first */
    uint32_t lane, depth;
    int failed;                      /* it met a FAIL: nothing more is run (SPMD: every lane meets the same one) */
} walker;

typedef struct tc_model {
    pool pool;
    const tc_plan *plan;
    char **bases;
    walker *walkers;
    char *scratch;
    size_t scratch_stride;
    int64_t *profile_ns;
    double ns_per_tick;
    after_op_fn *after_op;
    void *user;
    uint32_t first_op, end_op;       /* what this run walks */
    /* the phase that is running (stealing) */
    tc_kernel *kernel;
    void *const *buffers;
    int64_t extent, chunks;
    /* life */
    _Atomic uint32_t lock;
    _Atomic int32_t pid;
    void *own_weights, *memory;
    size_t own_weights_bytes, memory_bytes, control_bytes;
} tc_model;

static char *lane_scratch(const tc_model *m, uint32_t lane) { return m->scratch + lane * m->scratch_stride; }

static void run_chunk(void *context, uint32_t chunk, uint32_t lane) {
    const tc_model *m = context;
    m->kernel(m->buffers, m->extent * chunk / m->chunks, m->extent * (chunk + 1) / m->chunks, lane_scratch(m, lane));
}

/* Run one phase over [0, extent), on all lanes where that pays; return (SPMD: all lanes) when it is finished. */
static void run_phase(walker *w, tc_kernel *kernel, int64_t extent, uint32_t chunks) {
    tc_model *m = w->model;
    int64_t lanes = m->pool.lanes, n = chunks ? chunks : lanes * CHUNKS_PER_LANE;
    if (n > extent) n = extent;
    if (lanes > 1 && !m->plan->steal) {
        int64_t lo = extent * w->lane / lanes, hi = extent * (w->lane + 1) / lanes;
        if (lo < hi) kernel(w->buffers, lo, hi, lane_scratch(m, w->lane));
        pool_barrier(&m->pool);
    } else if (lanes == 1 || n <= 1) {
        kernel(w->buffers, 0, extent, lane_scratch(m, w->lane));
    } else {
        m->kernel = kernel, m->buffers = w->buffers, m->extent = extent, m->chunks = n;
        pool_run(&m->pool, (uint32_t)n, run_chunk, m);
    }
}

/* COPY and ZERO as kernels over blocks; their byte count rides in the buffer table. */
static void copy_blocks(void *const *buffers, int64_t lo, int64_t hi, void *scratch) {
    int64_t bytes = (int64_t)(intptr_t)buffers[2], first = lo * COPY_BLOCK_BYTES, end = hi * COPY_BLOCK_BYTES;
    memcpy((char *)buffers[1] + first, (const char *)buffers[0] + first, (size_t)((end < bytes ? end : bytes) - first));
}
static void zero_blocks(void *const *buffers, int64_t lo, int64_t hi, void *scratch) {
    int64_t bytes = (int64_t)(intptr_t)buffers[2], first = lo * COPY_BLOCK_BYTES, end = hi * COPY_BLOCK_BYTES;
    memset((char *)buffers[0] + first, 0, (size_t)((end < bytes ? end : bytes) - first));
}

static void resolve_slots(walker *w, const tc_op *op) {
    const tc_plan *plan = w->model->plan;
    const tc_slot *slot = plan->slots + op->slots;
    for (uint32_t i = 0; i < op->n_slots; i++, slot++) {
        int64_t offset = slot->offset;
        if (slot->strides)
            for (uint32_t d = 0; d < w->depth; d++) offset += w->iteration[d] * plan->strides[slot->strides + d];
        w->buffers[i] = w->model->bases[slot->base] + offset;
    }
}

/* Whether the condition of an IF or LOOP holds. SPMD: no lane goes on, and may change it, before all have read it. */
static int read_condition(walker *w, const tc_op *op) {
    resolve_slots(w, op);
    int holds = *(const volatile unsigned char *)w->buffers[0] != 0;
    if (!w->model->plan->steal && w->model->pool.lanes > 1) pool_barrier(&w->model->pool);
    return holds;
}

static void run_ops(walker *w, uint32_t first, uint32_t end);

static void run_loop(walker *w, const tc_op *op, uint32_t first) {
    uint32_t level = w->depth;
    for (int64_t i = 0; i < op->count; i++) {
        if (w->failed || (op->kind == TC_LOOP && !read_condition(w, op))) break;
        w->iteration[level] = i, w->depth = level + 1;
        run_ops(w, first, first + op->body);
        w->depth = level;
    }
}

static void run_op(walker *w, const tc_op *op, uint32_t index) {
    int64_t blocks = (op->count + COPY_BLOCK_BYTES - 1) / COPY_BLOCK_BYTES;
    uint32_t first = index + 1;
    switch (op->kind) {
    case TC_CALL:
        resolve_slots(w, op);
        for (uint32_t p = op->phases; p < op->phases + op->n_phases; p++)
            run_phase(w, w->model->plan->phases[p].run, w->model->plan->phases[p].extent, op->chunks);
        break;
    case TC_COPY:
    case TC_ZERO:
        resolve_slots(w, op);
        w->buffers[2] = (void *)(intptr_t)op->count;
        run_phase(w, op->kind == TC_COPY ? copy_blocks : zero_blocks, blocks, 0);
        break;
    case TC_IF:
        if (read_condition(w, op)) run_ops(w, first, first + op->body);
        else run_ops(w, first + op->body, first + op->body + op->otherwise);
        break;
    case TC_FAIL:
        w->failed = 1;
        break;
    default:
        run_loop(w, op, first);
    }
}

/* Run the ops [first, end), which stand on one level; lane 0 serves the hooks. */
static void run_ops(walker *w, uint32_t first, uint32_t end) {
    tc_model *m = w->model;
    int hooks = w->lane == 0 && (m->profile_ns || m->after_op);
    for (uint32_t i = first; i < end && !w->failed;) {
        const tc_op *op = m->plan->ops + i;
        int64_t start = hooks ? cpu_ticks() : 0;
        run_op(w, op, i);
        if (hooks && m->profile_ns) m->profile_ns[i] += (int64_t)((double)(cpu_ticks() - start) * m->ns_per_tick);
        if (hooks && m->after_op) m->after_op(m->user, i);
        if (m->after_op && !m->plan->steal && m->pool.lanes > 1) pool_barrier(&m->pool); /* the hook may look at memory */
        i += 1 + op->body + op->otherwise;
    }
}

static void walk(void *context, uint32_t chunk, uint32_t lane) {
    tc_model *m = context;
    m->walkers[lane].depth = 0, m->walkers[lane].failed = 0;
    run_ops(&m->walkers[lane], m->first_op, m->end_op);
}

static void run_plan(tc_model *m) {
    if (m->pool.lanes > 1 && !m->plan->steal) pool_run(&m->pool, m->pool.lanes, walk, m);
    else walk(m, 0, 0);
}
#endif
