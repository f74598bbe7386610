/* What the runtime asks of the operating system: memory, files, threads, sleeping, time. Raw Linux system calls, no C library.
 *
 * So a model's shared library imports nothing: it links without a sysroot, loads beside glibc of any version or musl, and the
 * same code serves a static runner on a board. The price is a rule: worker threads are made by clone() and own no C library
 * state (no errno, no thread-local storage), so they must run kernels only, and every signal is blocked in them.
 * TC_HOSTED takes threads and memory from the C library instead: race detectors only follow those. */
#ifndef TC_SYS_H
#define TC_SYS_H
#include <stddef.h>
#include <stdint.h>

#if defined(__wasm__)
#include "wasm32.h"
#else
#if defined(__x86_64__)
#include "x86_64.h"
#elif defined(__aarch64__)
#include "aarch64.h"
#elif defined(__riscv)
#include "riscv64.h"
#else
#error "the runtime knows the system calls of x86-64, AArch64 and RISC-V Linux only"
#endif

#define SYS1(n, a) sys_call(n, (long)(a), 0, 0, 0, 0, 0)
#define SYS2(n, a, b) sys_call(n, (long)(a), (long)(b), 0, 0, 0, 0)
#define SYS3(n, a, b, c) sys_call(n, (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define SYS4(n, a, b, c, d) sys_call(n, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)
#define SYS6(n, a, b, c, d, e, f) sys_call(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

static inline int sys_failed(long result) { return (unsigned long)result > -4096UL; }

#if defined(TC_HOSTED)
#include <sys/mman.h>
#define os_map(bytes, protection, flags, fd) (long)mmap(NULL, bytes, protection, flags, (int)(fd), 0)
#define os_unmap munmap
#else
#define os_map(bytes, protection, flags, fd) SYS6(NR_mmap, 0, bytes, protection, flags, fd, 0)
#define os_unmap(at, bytes) SYS2(NR_munmap, at, bytes)
#endif

/* Zeroed pages, or NULL. From 4 MiB on the pages are huge where the system has them: fewer TLB misses. */
static void *sys_map(size_t bytes) {
    enum { READ_WRITE = 3, PRIVATE_ANONYMOUS = 0x22, ADVISE_HUGE = 14 };
    long at = os_map(bytes, READ_WRITE, PRIVATE_ANONYMOUS, -1);
    if (sys_failed(at)) return NULL;
    if (bytes >= (4u << 20)) SYS3(NR_madvise, at, bytes, ADVISE_HUGE);
    return (void *)at;
}

static void sys_unmap(void *at, size_t bytes) {
    if (at) os_unmap(at, bytes);
}

/* Open a file for reading; *bytes is its size. Negative when it cannot be opened. */
static long sys_open(const char *path, size_t *bytes) {
    enum { AT_CWD = -100, READ_ONLY_CLOEXEC = 02000000, SEEK_TO_END = 2 };
    long fd = SYS4(NR_openat, AT_CWD, path, READ_ONLY_CLOEXEC, 0);
    if (sys_failed(fd)) return -1;
    long size = SYS3(NR_lseek, fd, 0, SEEK_TO_END);
    *bytes = size > 0 ? (size_t)size : 0;
    return fd;
}

/* Read bytes [at, end) of a file to `to` + at. 0 when it has fewer, or cannot be read. */
static int sys_read(long fd, char *to, size_t at, size_t end) {
    while (at < end) {
        long got = SYS4(NR_pread, fd, to + at, end - at, at);
        if (got <= 0) return 0;
        at += (size_t)got;
    }
    return 1;
}

static void sys_close(long fd) { SYS1(NR_close, fd); }

static void sys_yield(void) { SYS1(NR_yield, 0); }
static int32_t sys_pid(void) { return (int32_t)SYS1(NR_getpid, 0); }

/* How many CPUs this process may run on (its affinity mask), at least 1. */
static int sys_cpus(void) {
    uint64_t mask[128];
    long bytes = SYS3(NR_getaffinity, 0, sizeof mask, mask);
    int n = 0;
    for (long i = 0; i < bytes / 8; i++)
        for (uint64_t bits = mask[i]; bits; bits &= bits - 1) n++;
    return n > 0 ? n : 1;
}

static int64_t sys_now_ns(void) {
    int64_t time[2] = {0, 0};
    SYS2(NR_clock_gettime, 1 /* monotonic */, time);
    return time[0] * 1000000000 + time[1];
}

/* Sleep while *word is `value`; wake `n` that sleep on it. Sleepers may wake for no reason. */
static void futex_wait(const _Atomic uint32_t *word, uint32_t value) {
    SYS4(NR_futex, word, 128 /* wait, private */, value, 0);
}
static void futex_wake(const _Atomic uint32_t *word, int n) { SYS3(NR_futex, word, 129 /* wake, private */, n); }

/* The kernel's CPU features, but of x86-64: entry `key` (16 AT_HWCAP, 26 AT_HWCAP2) of the auxiliary vector. */
static inline uint64_t sys_auxiliary(uint64_t key) {
    uint64_t pair[2], found = 0;
    long fd = SYS4(NR_openat, -100, "/proc/self/auxv", 02000000, 0);
    if (sys_failed(fd)) return 0;
    while (SYS3(NR_read, fd, pair, sizeof pair) == (long)sizeof pair)
        if (pair[0] == key) found = pair[1];
    SYS1(NR_close, fd);
    return found;
}

/* Block every signal in this thread (threads started now inherit that), and undo it. */
static void block_signals(uint64_t *old) {
    uint64_t all = ~0ull;
    SYS4(NR_sigprocmask, 2 /* set */, &all, old, 8);
}
static void restore_signals(const uint64_t *old) { SYS4(NR_sigprocmask, 2, old, 0, 8); }

#if defined(TC_HOSTED)
#include <pthread.h>
typedef struct {
    pthread_t handle;
    int running;
    void (*run)(void *);
    void *argument;
} os_thread;

static void *thread_entry(void *thread) {
    ((os_thread *)thread)->run(((os_thread *)thread)->argument);
    return NULL;
}
static int thread_start(os_thread *t, void (*run)(void *), void *argument) {
    t->run = run, t->argument = argument;
    t->running = pthread_create(&t->handle, NULL, thread_entry, t) == 0;
    return t->running;
}
static void thread_join(os_thread *t) {
    if (t->running) pthread_join(t->handle, NULL);
    t->running = 0;
}
static void thread_forget(os_thread *t) { t->running = 0; }

#else
enum { STACK_BYTES = 1 << 20, GUARD_BYTES = 1 << 16 };
typedef struct {
    _Atomic uint32_t id; /* the kernel clears it, and wakes who waits on it, when the thread has ended */
    char *stack;         /* kept for the next thread_start */
} os_thread;

/* Start `run(argument)` in a new thread. Returns 0 when the system refuses. */
static int thread_start(os_thread *t, void (*run)(void *), void *argument) {
    /* VM FS FILES SIGHAND THREAD SYSVSEM PARENT_SETTID CHILD_CLEARTID */
    const long flags = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000 | 0x100000 | 0x200000;
    if (!t->stack) {
        if (!(t->stack = sys_map(STACK_BYTES))) return 0;
        SYS3(NR_mprotect, t->stack, GUARD_BYTES, 0);
    }
    void **top = (void **)(t->stack + STACK_BYTES) - 2;
    top[0] = (void *)run, top[1] = argument;
    return !sys_failed(clone_thread(flags, top, &t->id));
}

/* Wait until the thread has ended, and give its stack back. */
static void thread_join(os_thread *t) {
    uint32_t id;
    while ((id = __atomic_load_n((uint32_t *)&t->id, __ATOMIC_ACQUIRE)) != 0)
        SYS4(NR_futex, &t->id, 0 /* wait; the kernel's wake is not private */, id, 0);
    sys_unmap(t->stack, STACK_BYTES);
    t->stack = NULL;
}

/* In the child of a fork the thread does not exist; its stack does. */
static void thread_forget(os_thread *t) { __atomic_store_n((uint32_t *)&t->id, 0, __ATOMIC_RELAXED); }
#endif
#endif
#endif
