/* All that differs from one instruction set to another in the runner, beside what models' runtimes need as well (sys.h).
 *
 * Numbers of system calls and flags: the kernel's asm/unistd.h, asm/fcntl.h and asm/stat.h of each. Relocations: each
 * machine's ELF supplement. */
#ifndef TC_MACHINE_H
#define TC_MACHINE_H
#include "sys.h"

#if defined(__x86_64__)
enum {
    NR_write = 1, NR_fstat = 5, NR_rt_sigaction = 13, NR_nanosleep = 35, NR_wait4 = 61, NR_kill = 62, NR_uname = 63,
    NR_fcntl = 72, NR_flock = 73, NR_ftruncate = 77, NR_fchmod = 91, NR_getuid = 102, NR_statfs = 137,
    NR_prctl = 157, NR_setaffinity = 203, NR_getdents64 = 217, NR_exit_group = 231, NR_unlinkat = 263, NR_renameat = 264,
    NR_newfstatat = 262, NR_ppoll = 271, NR_signalfd4 = 289, NR_dup3 = 292, NR_pipe2 = 293, NR_prlimit64 = 302
};
#else /* the numbers that newer machines share */
enum {
    NR_dup3 = 24, NR_fcntl = 25, NR_flock = 32, NR_unlinkat = 35, NR_statfs = 43, NR_ftruncate = 46,
    NR_fchmod = 52, NR_pipe2 = 59, NR_getdents64 = 61, NR_write = 64, NR_ppoll = 73, NR_signalfd4 = 74, NR_newfstatat = 79,
    NR_fstat = 80, NR_exit_group = 94, NR_nanosleep = 101, NR_setaffinity = 122, NR_kill = 129,
    NR_rt_sigaction = 134, NR_uname = 160, NR_prctl = 167, NR_getuid = 174, NR_wait4 = 260, NR_prlimit64 = 261
};
#endif

/* CALL_RUNNER_MAIN: from where the kernel starts the program, with the stack it finds there. */
#if defined(__x86_64__)
enum { O_FOLDER = 0200000, O_NO_LINK = 0400000, OWNER_WORD = 3 };
enum { ELF_MACHINE = 62, RELOCATE_ABSOLUTE = 1, RELOCATE_ENTRY = 6, RELOCATE_JUMP = 7, RELOCATE_BASE = 8,
       SEGMENT_GRANULE = 1 << 12 };
static inline void clear_instruction_cache(char *from, char *to) { (void)from, (void)to; }
#define CALL_RUNNER_MAIN \
    "    xor %ebp, %ebp\n" \
    "    mov %rsp, %rdi\n" \
    "    and $-16, %rsp\n" \
    "    call runner_main\n"

#elif defined(__aarch64__)
enum { NR_renameat = 38, O_FOLDER = 040000, O_NO_LINK = 0100000, OWNER_WORD = 2 };
enum { ELF_MACHINE = 183, RELOCATE_ABSOLUTE = 257, RELOCATE_ENTRY = 1025, RELOCATE_JUMP = 1026, RELOCATE_BASE = 1027,
       SEGMENT_GRANULE = 1 << 16 };
static inline void clear_instruction_cache(char *from, char *to) {
    uint64_t type;
    __asm__("mrs %0, ctr_el0" : "=r"(type));
    uint64_t data = 4ul << (type >> 16 & 15), code = 4ul << (type & 15);
    for (char *p = (char *)((uintptr_t)from & ~(data - 1)); p < to; p += data)
        __asm__ volatile("dc cvau, %0" : : "r"(p) : "memory");
    __asm__ volatile("dsb ish" ::: "memory");
    for (char *p = (char *)((uintptr_t)from & ~(code - 1)); p < to; p += code)
        __asm__ volatile("ic ivau, %0" : : "r"(p) : "memory");
    __asm__ volatile("dsb ish\n\tisb" ::: "memory");
}
#define CALL_RUNNER_MAIN \
    "    mov x29, #0\n" \
    "    mov x0, sp\n" \
    "    bl runner_main\n"

#elif defined(__riscv)
enum { NR_renameat = 276 /* renameat2: with no flags the same */, O_FOLDER = 0200000, O_NO_LINK = 0400000, OWNER_WORD = 2 };
enum { ELF_MACHINE = 243, RELOCATE_ABSOLUTE = 2, RELOCATE_ENTRY = 2, RELOCATE_JUMP = 5, RELOCATE_BASE = 3,
       SEGMENT_GRANULE = 1 << 12 };
static inline void clear_instruction_cache(char *from, char *to) { SYS3(NR_flush_icache, from, to, 0 /* on all CPUs */); }
#define CALL_RUNNER_MAIN \
    "    mv s0, zero\n" \
    "    mv a0, sp\n" \
    "    andi sp, sp, -16\n" \
    "    call runner_main\n"
#endif
#endif
