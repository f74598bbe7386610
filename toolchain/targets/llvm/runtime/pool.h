/* The thread pool: lanes 0 .. lanes-1, of which lane 0 is whoever calls. One job at a time, `chunks` pieces of work.
 *
 * Each lane owns a range of chunks, the same one whenever a job has the same number of chunks (its data stays in that core's
 * cache), and takes them from the front; a lane that runs dry steals from the back of the others. The join waits for
 * *chunks*, not for threads, so a lane that the system does not schedule delays nothing it has not begun. Idle lanes spin
 * for SPIN_NS, because waking a thread costs more than most operators, then sleep on a futex.
 *
 * Without stealing (SPMD) chunk i runs on lane i, and lanes may meet at pool_barrier. */
#ifndef TC_POOL_H
#define TC_POOL_H
#include <stdatomic.h>

#include "sys.h"

enum { SPIN_NS = 80000, PAUSES_PER_CLOCK = 64, LINE = 128 /* two lines: the prefetcher fetches pairs */ };

struct pool;

typedef struct {
    _Alignas(LINE) _Atomic uint64_t range; /* chunks left: first in the low half, end in the high half */
    struct pool *pool;
    os_thread thread;
    uint32_t index;
} pool_lane;

typedef struct pool {
    _Alignas(LINE) _Atomic uint32_t epoch;   /* raised with every job; idle lanes watch it */
    _Alignas(LINE) _Atomic uint32_t sleepers; /* lanes asleep on epoch */
    _Alignas(LINE) _Atomic uint32_t pending; /* chunks of the job that are not finished */
    _Atomic uint32_t joiner_sleeps;
    _Alignas(LINE) _Atomic uint32_t arrived; /* the barrier */
    _Atomic uint32_t barrier_sleepers;
    _Alignas(LINE) _Atomic uint32_t generation;
    /* Written by the caller before it publishes the ranges; read by a lane only after it has claimed a chunk, which keeps
     * the job alive: a late lane that still looks at an old job can claim nothing of it. */
    _Alignas(LINE) void (*run)(void *context, uint32_t chunk, uint32_t lane);
    void *context;
    _Atomic uint32_t stop;
    uint32_t lanes;
    int32_t steal;
    int64_t spin_ns;
    pool_lane *lane;
} pool;

typedef struct {
    int64_t since_ns;
    uint32_t pauses;
} spin;

/* Pause once; 0 when it is time to sleep. Looks at the clock now and then (pauses take 10 to 140 cycles by CPU), and lets
 * others run: the lane that is waited for may be on this very CPU, when something else has the other ones. */
static int spin_more(spin *s, int64_t limit_ns) {
    cpu_pause();
    if (++s->pauses % PAUSES_PER_CLOCK) return limit_ns > 0;
    sys_yield();
    int64_t now = sys_now_ns();
    if (!s->since_ns) s->since_ns = now;
    return now - s->since_ns < limit_ns;
}

static uint64_t pack_range(uint32_t first, uint32_t end) { return (uint64_t)end << 32 | first; }

/* Take one chunk of lane `owner`, from the front for its owner and from the back for a thief. 0 when none is left. */
static int claim(pool_lane *owner, int thief, uint32_t *chunk) {
    uint64_t seen = atomic_load_explicit(&owner->range, memory_order_acquire), left;
    do {
        uint32_t first = (uint32_t)seen, end = (uint32_t)(seen >> 32);
        if (first >= end) return 0;
        *chunk = thief ? end - 1 : first;
        left = thief ? pack_range(first, end - 1) : pack_range(first + 1, end);
    } while (!atomic_compare_exchange_weak_explicit(&owner->range, &seen, left, memory_order_acq_rel, memory_order_acquire));
    return 1;
}

/* Run own chunks, then others', until there is nothing left to claim. */
static void work(pool *p, uint32_t self) {
    uint32_t n = p->steal ? p->lanes : 1, chunk;
    for (uint32_t k = 0; k < n; k++) {
        uint32_t owner = self + k < p->lanes ? self + k : self + k - p->lanes;
        while (claim(&p->lane[owner], k > 0, &chunk)) {
            p->run(p->context, chunk, self);
            if (atomic_fetch_sub(&p->pending, 1) == 1 && atomic_load(&p->joiner_sleeps)) futex_wake(&p->pending, 1);
        }
    }
}

/* Wait until *word is no longer `value`: spin, then sleep, counted in *sleepers so that others know whom to wake. */
static void await_change(pool *p, _Atomic uint32_t *word, uint32_t value, _Atomic uint32_t *sleepers) {
    spin s = {0, 0};
    while (atomic_load_explicit(word, memory_order_acquire) == value) {
        if (spin_more(&s, p->spin_ns)) continue;
        atomic_fetch_add(sleepers, 1);
        if (atomic_load(word) == value) futex_wait(word, value);
        atomic_fetch_sub(sleepers, 1);
    }
}

static void worker(void *argument) {
    pool_lane *self = argument;
    pool *p = self->pool;
    uint32_t epoch = 0;
    set_fp_environment(FP_DEFAULT);
    for (;;) {
        await_change(p, &p->epoch, epoch, &p->sleepers);
        epoch = atomic_load(&p->epoch);
        if (atomic_load(&p->stop)) return;
        work(p, self->index);
    }
}

static void wake_lanes(pool *p) {
    atomic_fetch_add(&p->epoch, 1);
    if (atomic_load(&p->sleepers)) futex_wake(&p->epoch, INT32_MAX);
}

/* Run chunks 0 .. chunks-1, each once, on any lane (SPMD: chunk i on lane i); return when all are finished. */
static void pool_run(pool *p, uint32_t chunks, void (*run)(void *, uint32_t, uint32_t), void *context) {
    p->run = run, p->context = context;
    atomic_store_explicit(&p->joiner_sleeps, 0, memory_order_relaxed);
    atomic_store_explicit(&p->pending, chunks, memory_order_relaxed);
    for (uint32_t i = 0; i < p->lanes; i++) {
        uint64_t first = (uint64_t)chunks * i / p->lanes, end = (uint64_t)chunks * (i + 1) / p->lanes;
        atomic_store_explicit(&p->lane[i].range, pack_range((uint32_t)first, (uint32_t)end), memory_order_release);
    }
    wake_lanes(p);
    work(p, 0);
    spin s = {0, 0};
    uint32_t left;
    while ((left = atomic_load_explicit(&p->pending, memory_order_acquire)) != 0) {
        if (spin_more(&s, p->spin_ns)) continue;
        atomic_store(&p->joiner_sleeps, 1);
        if ((left = atomic_load(&p->pending)) != 0) futex_wait(&p->pending, left);
    }
}

/* SPMD: return when every lane has come here. What a lane wrote before, all read after. */
static void pool_barrier(pool *p) {
    uint32_t generation = atomic_load_explicit(&p->generation, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&p->arrived, 1, memory_order_acq_rel) + 1 < p->lanes) {
        await_change(p, &p->generation, generation, &p->barrier_sleepers);
        return;
    }
    atomic_store_explicit(&p->arrived, 0, memory_order_relaxed);
    atomic_store(&p->generation, generation + 1);
    if (atomic_load(&p->barrier_sleepers)) futex_wake(&p->generation, INT32_MAX);
}

static void pool_stop(pool *p) {
    atomic_store(&p->stop, 1);
    wake_lanes(p);
    for (uint32_t i = 1; i < p->lanes; i++) thread_join(&p->lane[i].thread);
}

/* Start the threads of lanes 1 .. lanes-1. Returns 0, with none running, when the system refuses one. */
static int pool_start(pool *p) {
    uint64_t signals;
    uint32_t wanted = p->lanes, started = 1;
    p->spin_ns = wanted <= (uint32_t)sys_cpus() ? SPIN_NS : 0; /* more lanes than CPUs: spinning keeps others from work */
    block_signals(&signals);
    for (; started < wanted; started++) {
        pool_lane *l = &p->lane[started];
        l->pool = p, l->index = started;
        if (!thread_start(&l->thread, worker, l)) break;
    }
    restore_signals(&signals);
    if (started == wanted) return 1;
    p->lanes = started;
    pool_stop(p);
    return 0;
}

/* In the child of a fork the threads are gone: forget them and what they may have left half done. */
static int pool_restart_after_fork(pool *p) {
    for (uint32_t i = 0; i < p->lanes; i++) {
        thread_forget(&p->lane[i].thread);
        atomic_store(&p->lane[i].range, 0);
    }
    atomic_store(&p->epoch, 0);
    atomic_store(&p->sleepers, 0);
    atomic_store(&p->arrived, 0);
    atomic_store(&p->barrier_sleepers, 0);
    atomic_store(&p->stop, 0);
    return pool_start(p);
}
#endif
