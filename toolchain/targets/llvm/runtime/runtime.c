/* A model's life: create, run, destroy, and what it says of itself. The linker renames tc_x to <model>_x (link.py), and the
 * header written into each artifact (header.py) declares and documents these functions: keep the three together.
 *
 * Threads: a model has its own arena and its own pool. Calls of one model take turns; different models run side by side.
 * After fork() the child's first call starts the pool anew. */
#include "buckets.h"
#include "interpret.h"

#define API __attribute__((visibility("hidden")))

enum { OK, BAD_ARGUMENT, MISSING_FEATURE, NO_FILE, NOT_WEIGHTS, OTHER_WEIGHTS, NO_MEMORY, NO_THREADS, NO_PERMISSION,
       WRONG_SHAPE, SHAPES_NEEDED, MISFIT, N_STATUS };
enum { PAGE = 4096, ARENA_ALIGNMENT = 1 << 21, MOST_LANES = 1024, SCRATCH_ALIGNMENT = 128 };

static const char *const status_text[N_STATUS] = {
    "ok",
    "wrong argument: a null pointer, weights in memory that are not 64-byte aligned, or operators or buckets that do not exist",
    "this CPU lacks an instruction set extension that the code was compiled for",
    "the weights file cannot be opened",
    "the weights file is not one: wrong size or wrong magic number",
    "the weights file belongs to another model or build",
    "out of memory",
    "the system refuses to start threads",
    "the system refuses permission to use AMX tiles",
    "no shape bucket of the model has these input shapes",
    "the model has several shape buckets: the run must be told the shapes of the inputs",
    "the inputs lead to a part of the model that does not fit their shapes",
};

/* The 64 bytes at the head of a weights file; artifact.py writes them. */
typedef struct {
    char magic[8];
    uint32_t format, header_bytes;
    uint64_t weights_bytes;
    uint8_t digest[32];
    uint8_t zero[8];
} weights_header;

API const char *tc_missing_feature(void) {
    for (uint32_t i = 0; i < tc_the_network.n_features; i++) {
        const tc_feature *f = &tc_the_network.features[i];
        if (!cpu_feature(f->leaf, f->subleaf, f->reg, f->mask)) return f->name;
    }
    return NULL;
}

static int ask_for_amx(void) {
#if defined(__x86_64__)
    return !sys_failed(SYS2(NR_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */));
#else
    return 0;
#endif
}

static int check_weights(const weights_header *h, size_t bytes) {
    static const char magic[8] = {'T', 'C', 'W', 'E', 'I', 'G', 'H', 'T'};
    if (bytes < sizeof *h || memcmp(h->magic, magic, sizeof magic) || h->format != TC_FORMAT) return NOT_WEIGHTS;
    if (h->header_bytes != sizeof *h || h->weights_bytes != bytes - sizeof *h) return NOT_WEIGHTS;
    if (h->weights_bytes != tc_the_network.weights_bytes) return OTHER_WEIGHTS;
    return memcmp(h->digest, tc_the_network.weights_digest, sizeof h->digest) ? OTHER_WEIGHTS : OK;
}

static size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

/* Cut `size` bytes off *at, whole cache lines of them. */
static void *take(char **at, size_t size) {
    void *piece = *at;
    *at += round_up(size, LINE);
    return piece;
}

/* One mapping for the small structures; one for arena and scratch, whose pages are zero as the first plan wants its halos. */
static tc_model *allocate(const tc_network *network, uint32_t lanes) {
    size_t n_bases = 2 + network->n_inputs + network->n_outputs, slots = round_up(network->most_slots * sizeof(void *), LINE);
    size_t control = round_up(sizeof(tc_model), LINE) + round_up(n_bases * sizeof(char *), LINE) +
                     round_up(lanes * sizeof(pool_lane), LINE) + round_up(lanes * sizeof(walker), LINE) + lanes * slots;
    /* an odd number of lines apart, lest the same offsets of all lanes fall into one cache set */
    size_t stride = round_up(network->scratch_bytes, SCRATCH_ALIGNMENT) + SCRATCH_ALIGNMENT;
    size_t arena = round_up(network->arena_bytes, PAGE) + PAGE, memory = arena + lanes * stride + ARENA_ALIGNMENT;
    char *at = sys_map(control), *storage = sys_map(memory);
    if (!at || !storage) {
        sys_unmap(at, control);
        sys_unmap(storage, memory);
        return NULL;
    }
    tc_model *m = take(&at, sizeof *m);
    m->control_bytes = control, m->memory = storage, m->memory_bytes = memory;
    m->bases = take(&at, n_bases * sizeof *m->bases);
    m->bases[1] = (char *)round_up((uintptr_t)storage, memory > 2 * ARENA_ALIGNMENT ? ARENA_ALIGNMENT : PAGE);
    m->scratch = m->bases[1] + arena, m->scratch_stride = stride;
    m->pool.lane = take(&at, lanes * sizeof *m->pool.lane);
    m->pool.lanes = lanes, m->pool.steal = network->plans[0].steal;
    m->walkers = take(&at, lanes * sizeof *m->walkers);
    for (uint32_t i = 0; i < lanes; i++)
        m->walkers[i] = (walker){.model = m, .buffers = take(&at, slots), .lane = i};
    return m;
}

static void release(tc_model *m) {
    sys_unmap(m->own_weights, m->own_weights_bytes);
    sys_unmap(m->memory, m->memory_bytes);
    sys_unmap(m, m->control_bytes);
}

/* A model whose weights, header and all, lie (or will) at `weights`. */
static int create(tc_model **model, const void *weights, int threads) {
    if (tc_the_network.amx && !ask_for_amx()) return NO_PERMISSION;
    int lanes = threads > 0 ? threads : sys_cpus();
    tc_model *m = allocate(&tc_the_network, (uint32_t)(lanes < MOST_LANES ? lanes : MOST_LANES));
    if (!m) return NO_MEMORY;
    m->bases[0] = (char *)weights + sizeof(weights_header);
    atomic_store(&m->pid, sys_pid());
    if (!pool_start(&m->pool)) {
        release(m);
        return NO_THREADS;
    }
    *model = m;
    return OK;
}

API int tc_create_from_memory(tc_model **model, const void *weights, size_t bytes, int threads) {
    if (!model) return BAD_ARGUMENT;
    *model = NULL;
    if (!weights || (uintptr_t)weights % 64) return BAD_ARGUMENT;
    if (tc_missing_feature()) return MISSING_FEATURE;
    int status = check_weights(weights, bytes);
    return status ? status : create(model, weights, threads);
}

enum { PIECE = 2 << 20 }; /* bytes of a file that one lane reads at a time: a huge page */

typedef struct {
    long fd;
    char *to;
    size_t bytes;
    _Atomic int failed;
} reading;

static void read_piece(void *context, uint32_t piece, uint32_t lane) {
    reading *r = context;
    size_t at = (size_t)piece * PIECE, end = at + PIECE < r->bytes ? at + PIECE : r->bytes;
    (void)lane;
    if (!sys_read(r->fd, r->to, at, end)) atomic_store(&r->failed, 1);
}

/* A model with the weights of an open file in memory of its own, on huge pages where the system has them: a run reads each
 * line of the weights once, and from small pages it waits for the TLB. All lanes read. */
static int create_from_file(tc_model **model, long fd, size_t bytes, int threads) {
    weights_header head = {0};
    if (bytes < sizeof head || !sys_read(fd, (char *)&head, 0, sizeof head)) return NOT_WEIGHTS;
    int status = check_weights(&head, bytes);
    if (status) return status;
    char *weights = sys_map(bytes);
    if (!weights) return NO_MEMORY;
    if ((status = create(model, weights, threads)) != OK) {
        sys_unmap(weights, bytes);
        return status;
    }
    (*model)->own_weights = weights, (*model)->own_weights_bytes = bytes;
    reading r = {.fd = fd, .to = weights, .bytes = bytes};
    pool_run(&(*model)->pool, (uint32_t)((bytes + PIECE - 1) / PIECE), read_piece, &r);
    if (!atomic_load(&r.failed)) return OK;
    pool_stop(&(*model)->pool);
    release(*model);
    *model = NULL;
    return NOT_WEIGHTS;
}

API int tc_create(tc_model **model, const char *path, int threads) {
    if (!model || !path) return BAD_ARGUMENT;
    size_t bytes = 0;
    *model = NULL;
    long fd = sys_open(path, &bytes);
    if (fd < 0) return NO_FILE;
    int status = !bytes ? NO_FILE : tc_missing_feature() ? MISSING_FEATURE : create_from_file(model, fd, bytes, threads);
    sys_close(fd);
    return status;
}

static void lock(tc_model *m) { /* 0 free, 1 taken, 2 taken and somebody sleeps */
    uint32_t seen = 0;
    if (atomic_compare_exchange_strong(&m->lock, &seen, 1)) return;
    while (atomic_exchange(&m->lock, 2) != 0) futex_wait(&m->lock, 2);
}
static void unlock(tc_model *m) {
    if (atomic_exchange(&m->lock, 0) == 2) futex_wake(&m->lock, 1);
}

/* In the child of a fork: restart the pool, once, while other threads that come along wait. */
static int after_fork(tc_model *m) {
    int32_t pid = sys_pid(), seen = atomic_load(&m->pid);
    while (seen != pid) {
        if (seen < 0) {
            cpu_pause();
            seen = atomic_load(&m->pid);
        } else if (atomic_compare_exchange_strong(&m->pid, &seen, -1)) {
            atomic_store(&m->lock, 0); /* whoever held it is not in this process */
            int started = pool_restart_after_fork(&m->pool);
            atomic_store(&m->pid, started ? pid : seen);
            return started;
        }
    }
    return 1;
}

/* Make `plan` the one that runs. Buckets share the arena: the halos of this one are cleared of what another has left. */
static void enter(tc_model *m, const tc_plan *plan) {
    for (uint32_t i = 0; i < plan->n_zero && m->plan && m->plan != plan; i++)
        memset(m->bases[1] + plan->zero[i].offset, 0, plan->zero[i].size_bytes);
    m->plan = plan;
}

API int tc_run_range(tc_model *m, int64_t bucket, const void *const *inputs, void *const *outputs, int64_t first, int64_t end) {
    uint32_t n_inputs = tc_the_network.n_inputs, n_outputs = tc_the_network.n_outputs;
    if (!m || (!inputs && n_inputs) || (!outputs && n_outputs)) return BAD_ARGUMENT;
    if (bucket < 0 || bucket >= (int64_t)tc_the_network.n_plans) return BAD_ARGUMENT;
    const tc_plan *plan = tc_the_network.plans + bucket;
    if (first < 0 || first > end || end > (int64_t)plan->n_ops) return BAD_ARGUMENT;
    for (uint32_t i = 0; i < n_inputs; i++)
        if (!inputs[i]) return BAD_ARGUMENT;
    for (uint32_t i = 0; i < n_outputs; i++)
        if (!outputs[i]) return BAD_ARGUMENT;
    if (!after_fork(m)) return NO_THREADS;
    lock(m);
    enter(m, plan);
    for (uint32_t i = 0; i < n_inputs; i++) m->bases[2 + i] = (char *)inputs[i];
    for (uint32_t i = 0; i < n_outputs; i++) m->bases[2 + n_inputs + i] = outputs[i];
    uint64_t environment = fp_environment();
    set_fp_environment(FP_DEFAULT);
    m->first_op = (uint32_t)first, m->end_op = (uint32_t)end;
    run_plan(m);
    set_fp_environment(environment);
    int failed = m->walkers[0].failed;
    unlock(m);
    return failed ? MISFIT : OK;
}

API int64_t tc_n_buckets(void) { return tc_the_network.n_plans; }
static const tc_plan *plan_of(int64_t bucket) {
    return bucket >= 0 && bucket < tc_n_buckets() ? tc_the_network.plans + bucket : NULL;
}

/* What a run left behind, until the next one; of a model that has never run the extents are 0. */
API int tc_output_shape(const tc_model *m, int64_t i, int64_t *shape) {
    if (!m || !shape || i < 0 || i >= (int64_t)tc_the_network.n_outputs) return BAD_ARGUMENT;
    const tc_tensor *t = (m->plan ? m->plan : tc_the_network.plans)->outputs + i;
    for (int32_t d = 0; d < t->rank; d++)
        shape[d] = t->extents && t->extents[d] >= 0 ? *(const int64_t *)(m->bases[1] + t->extents[d]) : t->shape[d];
    return OK;
}

API int tc_run_bucket(tc_model *m, int64_t bucket, const void *const *inputs, void *const *outputs) {
    const tc_plan *plan = plan_of(bucket);
    return plan ? tc_run_range(m, bucket, inputs, outputs, 0, plan->n_ops) : BAD_ARGUMENT;
}

API int tc_run(tc_model *m, const void *const *inputs, void *const *outputs) {
    return tc_n_buckets() == 1 ? tc_run_bucket(m, 0, inputs, outputs) : SHAPES_NEEDED;
}

static int complete(const int64_t *const *shapes) {
    for (uint32_t i = 0; i < tc_the_network.n_inputs; i++)
        if (!shapes || !shapes[i]) return 0;
    return 1;
}

API int64_t tc_find_bucket(const int64_t *const *shapes) { return complete(shapes) ? find_bucket(&tc_the_network, shapes) : -1; }

API int tc_run_shapes(tc_model *m, const int64_t *const *shapes, const void *const *inputs, void *const *outputs) {
    if (!complete(shapes)) return BAD_ARGUMENT;
    int64_t bucket = find_bucket(&tc_the_network, shapes);
    return bucket < 0 ? WRONG_SHAPE : tc_run_bucket(m, bucket, inputs, outputs);
}

API size_t tc_shape_error(const int64_t *const *shapes, char *to, size_t size) {
    text t = {.to = to, .room = to ? size : 0};
    if (complete(shapes)) put_shape_error(&t, &tc_the_network, shapes);
    if (t.room) to[t.length < t.room ? t.length : t.room - 1] = 0;
    return t.length;
}

API void tc_destroy(tc_model *m) {
    if (!m) return;
    if (atomic_load(&m->pid) == sys_pid()) pool_stop(&m->pool);
    release(m);
}

/* Ticks of the CPU's counter are cheaper than the clock; this measures how long one is. */
static double measure_tick_ns(void) {
    int64_t ns = sys_now_ns(), ticks = cpu_ticks(), now;
    while ((now = sys_now_ns()) - ns < 2000000) cpu_pause();
    return (double)(now - ns) / (double)(cpu_ticks() - ticks);
}

API void tc_set_profile(tc_model *m, int64_t *ns) {
    lock(m);
    if (ns && m->ns_per_tick == 0) m->ns_per_tick = measure_tick_ns();
    m->profile_ns = ns;
    unlock(m);
}

API void tc_set_after_op(tc_model *m, after_op_fn *hook, void *user) {
    lock(m);
    m->after_op = hook, m->user = user;
    unlock(m);
}

API void *tc_arena(tc_model *m, size_t *bytes) {
    if (bytes) *bytes = tc_the_network.arena_bytes;
    return m->bases[1];
}

API int tc_threads(const tc_model *m) { return (int)m->pool.lanes; }
API int64_t tc_n_inputs(void) { return tc_the_network.n_inputs; }
API int64_t tc_n_outputs(void) { return tc_the_network.n_outputs; }
API const tc_tensor *tc_bucket_input(int64_t bucket, int64_t i) {
    return plan_of(bucket) && i >= 0 && i < tc_n_inputs() ? plan_of(bucket)->inputs + i : NULL;
}
API const tc_tensor *tc_bucket_output(int64_t bucket, int64_t i) {
    return plan_of(bucket) && i >= 0 && i < tc_n_outputs() ? plan_of(bucket)->outputs + i : NULL;
}
API const tc_tensor *tc_input(int64_t i) { return tc_bucket_input(0, i); }
API const tc_tensor *tc_output(int64_t i) { return tc_bucket_output(0, i); }
API int64_t tc_n_ops(int64_t bucket) { return plan_of(bucket) ? plan_of(bucket)->n_ops : 0; }
API const char *tc_op_name(int64_t bucket, int64_t i) {
    return i >= 0 && i < tc_n_ops(bucket) ? plan_of(bucket)->ops[i].name : NULL;
}
API const char *tc_version(void) { return tc_the_network.version; }
API const char *tc_status_text(int status) { return status >= 0 && status < N_STATUS ? status_text[status] : "unknown status"; }
