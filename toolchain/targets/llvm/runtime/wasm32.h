/* What the runtime asks of the system, in a WebAssembly module that imports nothing: there is memory, and one thread.
 *
 * Files, other threads and the clock are the host's: create_from_memory takes weights that the host has put there, one lane
 * computes, nothing ever sleeps. What would need them says no. */
#ifndef TC_WASM32_H
#define TC_WASM32_H
#include <stddef.h>
#include <stdint.h>

enum { WASM_PAGE = 1 << 16, WASM_ALIGNMENT = 1 << 12 };

extern unsigned char __heap_base; /* the linker's: where the module's own data and stack end */

/* Zeroed memory, or NULL. It is taken off the end and never given back: an instance is thrown away as a whole. */
static void *sys_map(size_t bytes) {
    static uint64_t end;
    uint64_t at = ((end ? end : (uintptr_t)&__heap_base) + WASM_ALIGNMENT - 1) & ~(uint64_t)(WASM_ALIGNMENT - 1);
    uint64_t has = (uint64_t)__builtin_wasm_memory_size(0) * WASM_PAGE;
    if (at + bytes > has) {
        size_t more = (size_t)((at + bytes - has + WASM_PAGE - 1) / WASM_PAGE);
        if (__builtin_wasm_memory_grow(0, more) == (size_t)-1) return NULL;
    }
    end = at + bytes;
    return (void *)(uintptr_t)at;
}
static void sys_unmap(void *at, size_t bytes) { (void)at, (void)bytes; }

static long sys_open(const char *path, size_t *bytes) { return (void)path, (void)bytes, -1; }
static int sys_read(long fd, char *to, size_t at, size_t end) { return (void)fd, (void)to, (void)at, (void)end, 0; }
static void sys_close(long fd) { (void)fd; }

static void sys_yield(void) {}
static int32_t sys_pid(void) { return 1; }
static int sys_cpus(void) { return 1; }
static int64_t sys_now_ns(void) { return 0; }
static inline int64_t cpu_ticks(void) { return 0; }
static inline void cpu_pause(void) {}
static inline uint64_t fp_environment(void) { return 0; }
static inline void set_fp_environment(uint64_t value) { (void)value; }
enum { FP_DEFAULT = 0 };

static inline int cpu_feature(uint32_t leaf, uint32_t subleaf, uint32_t reg, uint64_t mask) {
    return (void)leaf, (void)subleaf, (void)reg, (void)mask, 1; /* an engine without them does not take the module */
}

static void futex_wait(const _Atomic uint32_t *word, uint32_t value) { (void)word, (void)value; }
static void futex_wake(const _Atomic uint32_t *word, int n) { (void)word, (void)n; }
static void block_signals(uint64_t *old) { *old = 0; }
static void restore_signals(const uint64_t *old) { (void)old; }

typedef struct {
    int none;
} os_thread;
static int thread_start(os_thread *t, void (*run)(void *), void *argument) { return (void)t, (void)run, (void)argument, 0; }
static void thread_join(os_thread *t) { (void)t; }
static void thread_forget(os_thread *t) { (void)t; }

/* Memory for the host's weights, inputs and outputs: zeroed, aligned to 64 bytes and more; 0 where there is none left. */
__attribute__((visibility("hidden"))) void *tc_allocate(size_t bytes) { return sys_map(bytes); }
#endif
