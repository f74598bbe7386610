/* What the runtime needs of AArch64 and its Linux: system calls, a thread's start, the CPU's clock. */
#ifndef TC_AARCH64_H
#define TC_AARCH64_H
#include <stdint.h>

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

static inline uint64_t sys_auxiliary(uint64_t key);

/* Whether an entry of the auxiliary vector (16 AT_HWCAP, 26 AT_HWCAP2) has all bits of `mask`. */
static inline int cpu_feature(uint32_t leaf, uint32_t subleaf, uint32_t reg, uint64_t mask) {
    (void)subleaf, (void)reg;
    return (sys_auxiliary(leaf) & mask) == mask;
}

/* clone(): the new thread calls the function at top[0] with top[1], then ends itself. Returns its id, or a negative error. */
static inline long clone_thread(long flags, void **top, void *word) {
    register long x8 __asm__("x8") = NR_clone;
    register long x0 __asm__("x0") = flags;
    register void *x1 __asm__("x1") = top;
    register void *x2 __asm__("x2") = word;
    register long x3 __asm__("x3") = 0;
    register void *x4 __asm__("x4") = word;
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
    return x0;
}
#endif
