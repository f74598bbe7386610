/* What the runtime needs of RISC-V (RV64GC) and its Linux: system calls, a thread's start, the CPU's features and clock. */
#ifndef TC_RISCV64_H
#define TC_RISCV64_H
#include <stdint.h>

enum {
    NR_openat = 56, NR_close = 57, NR_lseek = 62, NR_read = 63, NR_pread = 67, NR_futex = 98, NR_clock_gettime = 113,
    NR_getaffinity = 123, NR_yield = 124, NR_sigprocmask = 135, NR_getpid = 172, NR_munmap = 215, NR_clone = 220, NR_mmap = 222,
    NR_mprotect = 226, NR_madvise = 233, NR_hwprobe = 258, NR_flush_icache = 259
};

static inline long sys_call(long n, long a, long b, long c, long d, long e, long f) {
    register long a7 __asm__("a7") = n;
    register long a0 __asm__("a0") = a;
    register long a1 __asm__("a1") = b;
    register long a2 __asm__("a2") = c;
    register long a3 __asm__("a3") = d;
    register long a4 __asm__("a4") = e;
    register long a5 __asm__("a5") = f;
    __asm__ volatile("ecall" : "+r"(a0) : "r"(a7), "r"(a1), "r"(a2), "r"(a3), "r"(a4), "r"(a5) : "memory");
    return a0;
}

static inline void cpu_pause(void) { __asm__ volatile(".4byte 0x0100000f" ::: "memory"); } /* pause: a fence to older CPUs */

static inline int64_t cpu_ticks(void) {
    int64_t ticks;
    __asm__ volatile("rdtime %0" : "=r"(ticks));
    return ticks;
}

/* The rounding mode; the flags beside it change no result. */
static inline uint64_t fp_environment(void) {
    uint64_t mode;
    __asm__ volatile("frrm %0" : "=r"(mode));
    return mode;
}
static inline void set_fp_environment(uint64_t value) { __asm__ volatile("fsrm %0" : : "r"(value)); }
enum { FP_DEFAULT = 0 };

static inline uint64_t sys_auxiliary(uint64_t key);

/* Whether a word of features has all bits of `mask`. leaf 16: AT_HWCAP, a bit per letter. TC_HWPROBE: the kernel's extension
 * bits, as far as it knows them (Linux 6.4 and later). TC_VLEN: each power of two up to the bits of a vector register. */
enum { TC_HWPROBE = 0x100, TC_VLEN = 0x101 };
static inline int cpu_feature(uint32_t leaf, uint32_t subleaf, uint32_t reg, uint64_t mask) {
    uint64_t word = 0;
    (void)subleaf, (void)reg;
    if (leaf == TC_HWPROBE) {
        int64_t pair[2] = {4 /* IMA_EXT_0 */, 0};
        if (sys_call(NR_hwprobe, (long)pair, 1, 0, 0, 0, 0) == 0 && pair[0] == 4) word = (uint64_t)pair[1];
    } else if (leaf == TC_VLEN) {
        if (sys_auxiliary(16) >> ('v' - 'a') & 1) __asm__("csrr %0, 0xc22" : "=r"(word)); /* vlenb: a power of two */
        word = word ? 16 * word - 1 : 0;
    } else {
        word = sys_auxiliary(leaf);
    }
    return (word & mask) == mask;
}

/* clone(): the new thread calls the function at top[0] with top[1], then ends itself. Returns its id, or a negative error. */
static inline long clone_thread(long flags, void **top, void *word) {
    register long a7 __asm__("a7") = NR_clone;
    register long a0 __asm__("a0") = flags;
    register void *a1 __asm__("a1") = top;
    register void *a2 __asm__("a2") = word;
    register long a3 __asm__("a3") = 0;
    register void *a4 __asm__("a4") = word;
    __asm__ volatile("ecall\n\t"
                     "bnez a0, 1f\n\t"
                     "mv s0, zero\n\t"
                     "ld t0, 0(sp)\n\t"
                     "ld a0, 8(sp)\n\t"
                     "addi sp, sp, 16\n\t"
                     "jalr t0\n\t"
                     "mv a0, zero\n\t"
                     "li a7, 93\n\t"
                     "ecall\n"
                     "1:"
                     : "+r"(a0)
                     : "r"(a7), "r"(a1), "r"(a2), "r"(a3), "r"(a4)
                     : "ra", "t0", "memory");
    return a0;
}
#endif
