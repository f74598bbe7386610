/* Files of the board: reading small ones by pattern (facts below /proc and /sys), receiving whole ones, the session's folder,
 * the lease. */
#ifndef TC_FILES_H
#define TC_FILES_H
#include "digest.h"

enum { MOST_PATH = 1024, MOST_FACT_BYTES = 1 << 16 };

/* Appends at most MOST_FACT_BYTES of a file. Returns 0 when it cannot be opened. */
SHARED int read_fact(const char *path, buffer *to) {
    long fd = file_open(path, O_READ | O_NONBLOCKING, 0);
    if (sys_failed(fd)) return 0;
    if (reserve(to, MOST_FACT_BYTES)) {
        long got = read_all(fd, to->at + to->used, MOST_FACT_BYTES);
        to->used += got > 0 ? (size_t)got : 0;
    }
    file_close(fd);
    return 1;
}

/* Calls found(path) for every path that the pattern means; a component may have one '*'. */
SHARED void each_path(char *path, size_t length, const char *pattern, void (*found)(const char *, void *), void *user) {
    while (*pattern && *pattern != '*' && length < MOST_PATH - 1) path[length++] = *pattern++;
    path[length] = 0;
    if (!*pattern) {
        found(path, user);
        return;
    }
    size_t start = length;
    while (start && path[start - 1] != '/') start--;
    char head[MOST_PATH], entries[4096];
    size_t head_length = length - start;
    memcpy(head, path + start, head_length), head[head_length] = 0;
    const char *rest = pattern + 1;
    size_t middle = 0;
    while (rest[middle] && rest[middle] != '/') middle++;
    path[start] = 0;
    long fd = file_open(start ? path : ".", O_READ, 0), got;
    if (sys_failed(fd)) return;
    while ((got = SYS3(NR_getdents64, fd, entries, sizeof entries)) > 0) {
        for (long at = 0; at < got;) {
            const char *name = entries + at + 19;
            size_t n = text_length(name);
            if (name[0] != '.' && n >= head_length + middle && !memcmp(name, head, head_length) &&
                !memcmp(name + n - middle, rest, middle) && start + n < MOST_PATH - 1) {
                memcpy(path + start, name, n);
                each_path(path, start + n, rest + middle, found, user);
            }
            uint16_t size;
            memcpy(&size, entries + at + 16, sizeof size);
            at += size;
        }
    }
    file_close(fd);
}

/* Adds {u32 length of path, path, u32 length, content} for a file that can be read. */
static inline void add_fact(const char *path, void *to) {
    buffer *b = to;
    size_t before = b->used, n = text_length(path);
    add_u32(b, (uint32_t)n), add(b, path, n);
    size_t at = b->used;
    add_u32(b, 0);
    if (!read_fact(path, b)) {
        b->used = before;
        return;
    }
    uint32_t length = (uint32_t)(b->used - at - 4);
    if (!b->failed) memcpy(b->at + at, &length, sizeof length);
}

/* --- receiving a file: NAME.part first; its own name only once size and SHA-256 are those that were promised ------------- */

typedef struct {
    long fd; /* -1: none is being received */
    char part[MOST_PATH], name[MOST_PATH];
    uint64_t expected, received;
    unsigned char digest[32];
    sha256 hash;
    long error;
} reception;

/* Names are plain: no folders, not hidden. The session's folder is the working directory. */
static inline int plain_name(const char *name) {
    size_t n = text_length(name);
    for (size_t i = 0; i < n; i++)
        if (name[i] == '/') return 0;
    return n > 0 && n < 200 && name[0] != '.';
}

static inline long receive_begin(reception *r, const char *name, uint64_t size, const unsigned char digest[32]) {
    if (r->fd >= 0) file_close(r->fd);
    *r = (reception){.fd = -1, .expected = size};
    size_t n = text_length(name);
    memcpy(r->name, name, n + 1), memcpy(r->part, name, n), memcpy(r->part + n, ".part", 6);
    memcpy(r->digest, digest, 32);
    sha256_start(&r->hash);
    r->fd = file_open(r->part, O_WRITE | O_CREATE | O_TRUNCATE, 0600);
    return r->fd;
}
static inline void receive_data(reception *r, const void *data, size_t n) {
    if (r->fd < 0 || r->error) return;
    long put = write_all(r->fd, data, n);
    if (put < 0) r->error = put;
    else sha256_add(&r->hash, data, n), r->received += n;
}
/* Returns 0, a negative error of the system, or 1: not what was promised. */
static inline long receive_end(reception *r) {
    unsigned char digest[32];
    long result = r->fd < 0 ? 1 : r->error;
    sha256_end(&r->hash, digest);
    if (!result && (r->received != r->expected || memcmp(digest, r->digest, 32))) result = 1;
    if (r->fd >= 0) file_close(r->fd);
    r->fd = -1;
    if (!result) result = SYS4(NR_renameat, AT_CWD, r->part, AT_CWD, r->name);
    if (result) SYS3(NR_unlinkat, AT_CWD, r->part, 0);
    return result;
}

/* --- the session's folder -------------------------------------------------------------------------------------------- */

enum { REMOVE_FOLDER = 0x200, LOCK_EXCLUSIVE = 2, LOCK_AT_ONCE = 4 };

static inline void remove_file(const char *path, void *unused) {
    (void)unused;
    SYS3(NR_unlinkat, AT_CWD, path, 0);
}
/* Remove a folder of plain files. */
SHARED void remove_folder(const char *folder) {
    char pattern[MOST_PATH], path[MOST_PATH];
    size_t n = text_length(folder);
    if (n + 3 > MOST_PATH) return;
    memcpy(pattern, folder, n), memcpy(pattern + n, "/*", 3);
    each_path(path, 0, pattern, remove_file, NULL);
    SYS3(NR_unlinkat, AT_CWD, folder, REMOVE_FOLDER);
}

typedef struct {
    int64_t now_s;
} staleness;

/* A session's folder whose runner is dead (nobody holds its lock) and that is older than ten minutes. */
static inline void remove_stale(const char *path, void *about) {
    file_status status;
    long fd = file_open(path, O_READ | O_FOLDER | O_NO_LINK, 0); /* in a folder of everybody: no link to somebody's files */
    if (sys_failed(fd)) return;
    int64_t old = ((staleness *)about)->now_s - 600;
    if (!SYS2(NR_fstat, fd, &status) && status.modified_s < old && status.words[OWNER_WORD] == (uint32_t)SYS1(NR_getuid, 0) &&
        !sys_failed(SYS2(NR_flock, fd, LOCK_EXCLUSIVE | LOCK_AT_ONCE)))
        remove_folder(path);
    file_close(fd);
}
static inline void remove_stale_sessions(const char *pattern) {
    char path[MOST_PATH];
    int64_t time[2] = {0, 0};
    SYS2(NR_clock_gettime, 0 /* of the files' times */, time);
    staleness about = {.now_s = time[0]};
    each_path(path, 0, pattern, remove_stale, &about);
}

/* --- the lease: who holds the lock of this file has the board. The kernel frees it when the process ends, however. ------ */

/* Returns the descriptor; -E_AGAIN while another has it; another negative error. */
static inline long lease_try(const char *path) {
    for (;;) {
        file_status ours, there;
        long fd = file_open(path, O_BOTH | O_NO_LINK, 0); /* in a folder of everybody: no link to a file of this user's */
        if (fd == -E_NOENT) {
            fd = file_open(path, O_BOTH | O_CREATE | O_EXCLUSIVE, 0666);
            if (fd == -E_EXIST) continue;
            if (!sys_failed(fd)) SYS2(NR_fchmod, fd, 0666);
        }
        if (sys_failed(fd)) return fd;
        long locked = SYS2(NR_flock, fd, LOCK_EXCLUSIVE | LOCK_AT_ONCE);
        if (sys_failed(locked)) {
            file_close(fd);
            return locked;
        }
        /* the holder before us may have removed the file: then another is to be locked */
        if (!SYS2(NR_fstat, fd, &ours) && !SYS4(NR_newfstatat, AT_CWD, path, &there, 0) && ours.inode == there.inode &&
            ours.device == there.device)
            return fd;
        file_close(fd);
    }
}
static inline void lease_note(long fd, const char *who) {
    file_status status;
    if (SYS2(NR_fstat, fd, &status) || status.size_bytes > 512) return; /* not a file that we made: it is left as it is */
    SYS2(NR_ftruncate, fd, 0);
    write_all(fd, who, text_length(who));
}
#endif
