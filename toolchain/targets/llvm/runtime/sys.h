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

#if defined(__x86_64__)
enum {
    NR_read = 0, NR_close = 3, NR_lseek = 8, NR_mmap = 9, NR_mprotect = 10, NR_munmap = 11, NR_sigprocmask = 14, NR_pread = 17,
    NR_yield = 24, NR_madvise = 28, NR_getpid = 39, NR_clone = 56, NR_arch_prctl = 158, NR_futex = 202, NR_getaffinity = 204,
    NR_clock_gettime = 228, NR_openat = 257
};

static inline long sys_call(long n, long a, long b, long c, long d, long e, long f) {
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall" : "+a"(n) : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
    return n;
}

static inline void cpu_pause(void) { __builtin_ia32_pause(); }

static inline int64_t cpu_ticks(void) {
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (int64_t)(((uint64_t)high << 32) | low);
}

/* The floating-point environment decides results (rounding, denormals): all lanes compute in the default one. */
static inline uint64_t fp_environment(void) {
    uint32_t mxcsr;
    __asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
    return mxcsr;
}
static inline void set_fp_environment(uint64_t value) {
    uint32_t mxcsr = (uint32_t)value;
    __asm__ volatile("ldmxcsr %0" : : "m"(mxcsr));
}
enum { FP_DEFAULT = 0x1f80 };

#elif defined(__aarch64__)
enum {
    NR_openat = 56, NR_close = 57, NR_lseek = 62, NR_read = 63, NR_pread = 67, NR_futex = 98, NR_clock_gettime = 113,
    NR_getaffinity = 123, NR_yield = 124, NR_sigprocmask = 135, NR_getpid = 172, NR_munmap = 215, NR_clone = 220, NR_mmap = 222,
    NR_mprotect = 226, NR_madvise = 233
};

static inline long sys_call(long n, long a, long b, long c, long d, long e, long f) {
    register long x8 __asm__("x8") = n;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
}

static inline void cpu_pause(void) { __asm__ volatile("isb" ::: "memory"); }

static inline int64_t cpu_ticks(void) {
    int64_t ticks;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(ticks));
    return ticks;
}

static inline uint64_t fp_environment(void) {
    uint64_t fpcr;
    __asm__ volatile("mrs %0, fpcr" : "=r"(fpcr));
    return fpcr;
}
static inline void set_fp_environment(uint64_t value) { __asm__ volatile("msr fpcr, %0" : : "r"(value)); }
enum { FP_DEFAULT = 0 };

#else
#error "the runtime knows the system calls of x86-64 and AArch64 Linux only"
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

/* The kernel's CPU features of AArch64: entry `key` (16 AT_HWCAP, 26 AT_HWCAP2) of the auxiliary vector. */
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
    long id;
#if defined(__x86_64__)
    register void *child_word __asm__("r10") = &t->id;
    register long tls __asm__("r8") = 0;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xor %%ebp, %%ebp\n\t"
                     "pop %%rax\n\t"
                     "pop %%rdi\n\t"
                     "call *%%rax\n\t"
                     "xor %%edi, %%edi\n\t"
                     "mov $60, %%eax\n\t"
                     "syscall\n"
                     "1:"
                     : "=a"(id)
                     : "a"(NR_clone), "D"(flags), "S"(top), "d"(&t->id), "r"(child_word), "r"(tls)
                     : "rcx", "r11", "memory");
#else
    register long x8 __asm__("x8") = NR_clone;
    register long x0 __asm__("x0") = flags;
    register void *x1 __asm__("x1") = top;
    register void *x2 __asm__("x2") = &t->id;
    register long x3 __asm__("x3") = 0;
    register void *x4 __asm__("x4") = &t->id;
    __asm__ volatile("svc 0\n\t"
                     "cbnz x0, 1f\n\t"
                     "mov x29, xzr\n\t"
                     "ldp x1, x0, [sp], #16\n\t"
                     "blr x1\n\t"
                     "mov x0, xzr\n\t"
                     "mov x8, #93\n\t"
                     "svc 0\n"
                     "1:"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4)
                     : "x30", "memory");
    id = x0;
#endif
    return !sys_failed(id);
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
