/* What the runtime needs of x86-64 and its Linux: system calls, a thread's start, the CPU's features and clock. */
#ifndef TC_X86_64_H
#define TC_X86_64_H
#include <stdint.h>

#define TC_XCR0 0xffffffffu

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

/* Whether cpuid(leaf, subleaf) has all bits of `mask` in a register, 0-3 = eax, ebx, ecx, edx; leaf TC_XCR0: what the operating
 * system saves. */
static inline int cpu_feature(uint32_t leaf, uint32_t subleaf, uint32_t reg, uint64_t mask) {
    uint32_t r[4], last;
    if (leaf == TC_XCR0) {
        __asm__("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(1), "c"(0));
        if (!(r[2] & 1u << 27)) return 0; /* no OSXSAVE: xgetbv would trap */
        __asm__("xgetbv" : "=a"(r[0]), "=d"(r[3]) : "c"(0));
        return (((uint64_t)r[3] << 32 | r[0]) & mask) == mask;
    }
    __asm__("cpuid" : "=a"(last), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf & 0x80000000u), "c"(0));
    if (leaf > last) return 0;
    __asm__("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(subleaf));
    return (r[reg & 3] & mask) == mask;
}

/* clone(): the new thread calls the function at top[0] with top[1], then ends itself. Returns its id, or a negative error. */
static inline long clone_thread(long flags, void **top, void *word) {
    long id;
    register void *child_word __asm__("r10") = word;
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
                     : "a"(NR_clone), "D"(flags), "S"(top), "d"(word), "r"(child_word), "r"(tls)
                     : "rcx", "r11", "memory");
    return id;
}
#endif
