/* What the runner asks of Linux beyond runtime/sys.h: processes, pipes, files, waiting. Raw system calls, no C library. */
#ifndef TC_LINUX_H
#define TC_LINUX_H
#include "memory.h"
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wunused-function" /* threads are the models' own business */
#include "sys.h"
#pragma clang diagnostic pop
#include "machine.h"

enum { AT_CWD = -100, O_READ = 0, O_WRITE = 1, O_BOTH = 2, O_CREATE = 0100, O_EXCLUSIVE = 0200, O_TRUNCATE = 01000,
       O_NONBLOCKING = 04000, O_CLOSE_ON_EXEC = 02000000 };
enum { SIGNAL_HUP = 1, SIGNAL_INT = 2, SIGNAL_KILL = 9, SIGNAL_PIPE = 13, SIGNAL_TERM = 15, SIGNAL_CHILD = 17,
       SIGNAL_FILE_SIZE = 25 };
enum { E_NOENT = 2, E_INTR = 4, E_AGAIN = 11, E_ACCES = 13, E_EXIST = 17, E_FBIG = 27, E_NOSPC = 28, E_DQUOT = 122 };

static inline long file_open(const char *path, int flags, int mode) {
    return SYS4(NR_openat, AT_CWD, path, flags | O_CLOSE_ON_EXEC, mode);
}
static inline void file_close(long fd) { SYS1(NR_close, fd); }
_Noreturn static inline void end_process(int code) {
    for (;;) SYS1(NR_exit_group, code);
}

#define SHARED static __attribute__((noinline, unused)) /* one copy: the program is sent to boards again and again */

/* Read or write all of it. Returns the bytes done (less at the end of the file), or a negative error. */
SHARED long read_all(long fd, void *to, size_t n) {
    size_t done = 0;
    while (done < n) {
        long got = SYS3(NR_read, fd, (char *)to + done, n - done);
        if (got == -E_INTR) continue;
        if (got < 0) return got;
        if (got == 0) break;
        done += (size_t)got;
    }
    return (long)done;
}
SHARED long write_all(long fd, const void *from, size_t n) {
    size_t done = 0;
    while (done < n) {
        long put = SYS3(NR_write, fd, (const char *)from + done, n - done);
        if (put == -E_INTR) continue;
        if (put < 0) return put;
        done += (size_t)put;
    }
    return (long)done;
}

typedef struct {
    int32_t fd;
    int16_t events, revents;
} poll_entry;
enum { POLL_IN = 1, POLL_OUT = 4 };

/* Wait for one of them, at most that long (below 0: for ever). Returns how many are ready. */
static inline long wait_for(poll_entry *entries, int n, int64_t limit_ns) {
    int64_t time[2] = {limit_ns / 1000000000, limit_ns % 1000000000};
    return sys_call(NR_ppoll, (long)entries, n, limit_ns < 0 ? 0 : (long)time, 0, 8, 0);
}

static inline void sleep_ns(int64_t ns) {
    int64_t time[2] = {ns / 1000000000, ns % 1000000000};
    SYS2(NR_nanosleep, time, 0);
}

/* A child of this process; the calling process has one thread. */
static inline long fork_process(void) { return sys_call(NR_clone, SIGNAL_CHILD, 0, 0, 0, 0, 0); }

/* Much of the kernel's `struct stat` lies alike on all machines: device, inode; size at 48, mtime at 88. The owner is a word
 * between, words[OWNER_WORD]. */
typedef struct {
    uint64_t device, inode;
    uint32_t words[8];
    int64_t size_bytes, more[4], modified_s, tail[16];
} file_status;

/* Map a whole file for reading. Returns NULL when it cannot be opened or is empty. */
SHARED void *map_file(const char *path, size_t *bytes) {
    enum { SEEK_TO_END = 2, READ = 1, PRIVATE = 2 };
    long fd = file_open(path, O_READ, 0);
    if (sys_failed(fd)) return NULL;
    long size = SYS3(NR_lseek, fd, 0, SEEK_TO_END);
    long at = size > 0 ? SYS6(NR_mmap, 0, size, READ, PRIVATE, fd, 0) : -1;
    file_close(fd);
    if (sys_failed(at)) return NULL;
    *bytes = (size_t)size;
    return (void *)at;
}

static inline size_t text_length(const char *s) {
    size_t n = 0;
    while (s[n]) n++;
    return n;
}
static inline int text_equal(const char *a, const char *b) {
    while (*a && *a == *b) a++, b++;
    return *a == *b;
}
static inline const char *after_prefix(const char *s, const char *prefix) {
    while (*prefix)
        if (*s++ != *prefix++) return NULL;
    return s;
}

/* Memory that grows: frames, answers, texts. `failed` once there is none left; what is added then is dropped. */
typedef struct {
    char *at;
    size_t used, room;
    int failed;
} buffer;

SHARED int reserve(buffer *b, size_t more) {
    if (b->used + more <= b->room) return 1;
    size_t room = b->room ? b->room : 4096;
    while (room < b->used + more) room *= 2;
    char *at = sys_map(room);
    if (!at) {
        b->failed = 1;
        return 0;
    }
    memcpy(at, b->at, b->used);
    sys_unmap(b->at, b->room);
    b->at = at, b->room = room;
    return 1;
}
SHARED void add(buffer *b, const void *data, size_t n) {
    if (!reserve(b, n)) return;
    memcpy(b->at + b->used, data, n);
    b->used += n;
}
SHARED void add_text(buffer *b, const char *s) { add(b, s, text_length(s)); }
SHARED void add_number(buffer *b, int64_t value) {
    char digits[24], *at = digits + sizeof digits;
    uint64_t rest = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
    do *--at = (char)('0' + rest % 10);
    while (rest /= 10);
    if (value < 0) *--at = '-';
    add(b, at, (size_t)(digits + sizeof digits - at));
}
static inline void add_u32(buffer *b, uint32_t value) { add(b, &value, sizeof value); }
SHARED void release_buffer(buffer *b) {
    sys_unmap(b->at, b->room);
    *b = (buffer){0};
}
#endif
