/* `run serve`: the board's end of a session. Reads requests from stdin, answers on stdout, and outlives neither.
 *
 *   parent   frames, files, facts, the lease, the clock of every request; runs no model's code
 *   child    one per slot that has a model (engine.h); killed when its request takes too long
 *
 * Ends, and removes the session's folder, when stdin closes, on a signal, and when the client has been silent for too long
 * (a connection that is cut without a word). Written to a client that reads nothing: the same. */
#ifndef TC_SERVER_H
#define TC_SERVER_H
#include "engine.h"
#include "files.h"

typedef struct {
    long pid, in, out; /* pid 0: no process */
} slot;

static struct {
    const char *folder, *lease_path, *who, *stale;
    long lease, signals, folder_lock;
    int64_t silence_ns, heard_ns, beat_ns;
    uint32_t cpu_words;
    uint64_t cpus[16];
    slot slots[MOST_SLOTS];
    reception file;
    char name[65][6]; /* uname */
} server;

_Noreturn SHARED void server_end(int code) {
    for (int i = 0; i < MOST_SLOTS; i++)
        if (server.slots[i].pid > 0) SYS2(NR_kill, server.slots[i].pid, SIGNAL_KILL);
    if (server.folder) remove_folder(server.folder);
    if (server.lease >= 0 && server.lease_path) SYS3(NR_unlinkat, AT_CWD, server.lease_path, 0);
    end_process(code);
}

/* Write to the client, which must read within the time of its silence. */
SHARED void server_write(const void *data, size_t n) {
    int64_t deadline = sys_now_ns() + server.silence_ns;
    for (size_t done = 0; done < n;) {
        long put = SYS3(NR_write, 1, (const char *)data + done, n - done);
        if (put > 0) {
            done += (size_t)put;
            continue;
        }
        poll_entry out[2] = {{1, POLL_OUT, 0}, {(int32_t)server.signals, POLL_IN, 0}};
        int64_t left = deadline - sys_now_ns();
        if ((put != -E_AGAIN && put != -E_INTR) || left <= 0) server_end(4);
        wait_for(out, 2, left);
        if (out[1].revents) server_end(0);
    }
}

SHARED void server_send(frame f, uint32_t status, const void *payload, size_t n) {
    f.word = status, f.length = n;
    frame_seal(&f, payload);
    server_write(&f, sizeof f);
    server_write(payload, n);
    server.beat_ns = sys_now_ns();
}
static inline void server_say(const frame *f, uint32_t status, const char *words) {
    server_send(*f, status, words, text_length(words));
}

static inline void server_beat(void) {
    int64_t now = sys_now_ns();
    if (now - server.beat_ns < server.silence_ns / 4) return;
    server_send((frame){.kind = BEAT}, DONE, "", 0);
}

enum { CLOSED_BY_PEER = 0x2000 /* POLLRDHUP: sockets, which sshd gives us; a pipe says POLLHUP unasked */ };

/* Waits until `fd` can be read or the time has come (0: none); ends when the client is gone or a signal says so. Returns
 * whether it can. Requests that come meanwhile wait in the kernel's buffers. Time for which this process was stopped (a
 * debugger, a machine that is moved) is nobody's silence and no model's slowness. */
SHARED int server_wait(long fd, int64_t until_ns) {
    for (;;) {
        int64_t now = sys_now_ns(), wait = server.silence_ns / 4;
        if (until_ns && until_ns - now < wait) wait = until_ns - now;
        if (wait <= 0) return 0;
        poll_entry e[3] = {{(int32_t)fd, POLL_IN, 0}, {(int32_t)server.signals, POLL_IN, 0}, {0, CLOSED_BY_PEER, 0}};
        wait_for(e, fd == 0 ? 2 : 3, wait);
        int64_t stopped = sys_now_ns() - now - wait;
        if (stopped > server.silence_ns / 4) {
            server.heard_ns += stopped;
            if (until_ns) until_ns += stopped;
        }
        if (e[1].revents || e[2].revents) server_end(0);
        if (e[0].revents) return 1;
        if (fd != 0) server_beat();
        else if (sys_now_ns() - server.heard_ns > server.silence_ns) server_end(4);
    }
}

SHARED int server_read(void *to, size_t n) {
    for (size_t done = 0; done < n;) {
        if (!server_wait(0, 0)) continue;
        long got = SYS3(NR_read, 0, (char *)to + done, n - done);
        if (got == -E_INTR || got == -E_AGAIN) continue;
        if (got <= 0) return 0;
        done += (size_t)got;
        server.heard_ns = sys_now_ns();
    }
    return 1;
}

/* --- the slots' processes ----------------------------------------------------------------------------------------------- */

SHARED void slot_close(slot *s) {
    if (s->pid <= 0) return;
    SYS2(NR_kill, s->pid, SIGNAL_KILL);
    SYS4(NR_wait4, s->pid, 0, 0, 0);
    file_close(s->in), file_close(s->out);
    s->pid = 0;
}

static inline int slot_open(slot *s) {
    int32_t request[2], answer[2];
    if (sys_failed(SYS2(NR_pipe2, request, O_CLOSE_ON_EXEC))) return 0;
    if (sys_failed(SYS2(NR_pipe2, answer, O_CLOSE_ON_EXEC))) return 0;
    long pid = fork_process();
    if (pid == 0) {
        uint64_t none = 0, no_core[2] = {0, 0};
        long nothing = file_open("/dev/null", O_BOTH, 0);
        SYS2(NR_prctl, 1 /* die with the parent */, SIGNAL_KILL);
        SYS4(NR_sigprocmask, 2, &none, 0, 8);
        SYS4(NR_prlimit64, 0, 4 /* core files */, no_core, 0);
        for (int fd = 0; fd < 3; fd++) SYS3(NR_dup3, nothing, fd, 0);
        for (int i = 0; i < MOST_SLOTS; i++)
            if (server.slots[i].pid > 0) file_close(server.slots[i].in), file_close(server.slots[i].out);
        file_close(server.lease), file_close(server.folder_lock), file_close(server.signals);
        file_close(request[1]), file_close(answer[0]);
        if (server.cpu_words) SYS3(NR_setaffinity, 0, server.cpu_words * 8, server.cpus);
        engine_main(request[0], answer[1]);
    }
    file_close(request[0]), file_close(answer[1]);
    if (sys_failed(pid)) return 0;
    *s = (slot){.pid = pid, .in = request[1], .out = answer[0]};
    return 1;
}

/* The process has ended: tell how. */
SHARED void slot_crashed(const frame *f, slot *s) {
    int32_t status = 0;
    buffer words = {0};
    SYS4(NR_wait4, s->pid, &status, 0, 0);
    file_close(s->in), file_close(s->out);
    s->pid = 0;
    add_text(&words, status & 127 ? "signal " : "exit ");
    add_number(&words, status & 127 ? status & 127 : status >> 8 & 255);
    server_send(*f, CRASHED, words.at, words.used);
    release_buffer(&words);
}

enum { WHOLE, LATE, ENDED };
SHARED int slot_read(const slot *s, void *to, size_t n, int64_t deadline) {
    for (size_t done = 0; done < n;) {
        if (!server_wait(s->out, deadline)) return LATE;
        long got = SYS3(NR_read, s->out, (char *)to + done, n - done);
        if (got <= 0) return ENDED;
        done += (size_t)got;
    }
    return WHOLE;
}

static inline void slot_answer(const frame *f, slot *s, int64_t deadline) {
    frame a;
    buffer answer = {0};
    int how = slot_read(s, &a, sizeof a, deadline);
    if (how == WHOLE && (a.id != f->id || a.length > MOST_PAYLOAD || !reserve(&answer, a.length + 1))) how = ENDED;
    if (how == WHOLE) how = slot_read(s, answer.at, a.length, deadline);
    if (how == WHOLE) server_send(*f, a.word, answer.at, a.length);
    if (how == LATE) slot_close(s), server_say(f, TOO_LONG, "it took longer than it may, and was ended");
    if (how == ENDED) SYS2(NR_kill, s->pid, SIGNAL_KILL), slot_crashed(f, s);
    release_buffer(&answer);
}

enum { LONGEST_MS = 600000 }; /* of a request that names no limit */

static inline void slot_request(const frame *f, const char *payload) {
    slot *s = &server.slots[f->slot % MOST_SLOTS];
    int64_t deadline = sys_now_ns() + (f->word ? (int64_t)f->word : LONGEST_MS) * 1000000;
    if (f->kind == LOAD) {
        slot_close(s);
        if (!slot_open(s)) {
            server_say(f, FAILED, "the system refuses another process");
            return;
        }
    }
    if (s->pid <= 0) server_say(f, FAILED, "no model is loaded");
    else if (write_all(s->in, f, sizeof *f) < 0 || write_all(s->in, payload, f->length) < 0) slot_crashed(f, s);
    else slot_answer(f, s, deadline);
}

/* --- what the parent answers itself ------------------------------------------------------------------------------------- */

/* How many CPUs of the set that was asked for there are, and may be used. */
static inline int64_t cpus_of_set(void) {
    uint64_t mask[128] = {0};
    int64_t n = 0;
    SYS3(NR_getaffinity, 0, sizeof mask, mask);
    for (int cpu = 0; cpu < 1024; cpu++) n += (mask[cpu / 64] & server.cpus[cpu / 64]) >> cpu % 64 & 1;
    return n;
}

/* "key value" lines: what only a system call tells. */
static inline void answer_facts(const frame *f) {
    buffer a = {0};
    static const char *const uname_keys[] = {"system", "node", "kernel", "build", "machine"};
    char name[6 * 65] = {0};
    uint64_t disk[16] = {0};
    SYS1(NR_uname, name);
    for (int i = 0; i < 5; i++) {
        if (i == 1) continue; /* the board's own name is nobody's business */
        add_text(&a, uname_keys[i]), add_text(&a, " "), add_text(&a, name + 65 * i), add_text(&a, "\n");
    }
    SYS2(NR_statfs, ".", disk);
    add_text(&a, "disk_free_bytes "), add_number(&a, (int64_t)(disk[1] * disk[4])), add_text(&a, "\n");
    add_text(&a, "cpus "), add_number(&a, sys_cpus()), add_text(&a, "\n");
    add_text(&a, "cpus_of_set "), add_number(&a, cpus_of_set()), add_text(&a, "\n");
    add_text(&a, "hwcap "), add_number(&a, (int64_t)sys_auxiliary(16)), add_text(&a, "\n");
    add_text(&a, "hwcap2 "), add_number(&a, (int64_t)sys_auxiliary(26)), add_text(&a, "\n");
    server_send(*f, DONE, a.at, a.used);
    release_buffer(&a);
}

/* Patterns, each ended by '\0' -> the files they mean, with their contents. */
static inline void answer_read(const frame *f, const char *payload) {
    buffer a = {0};
    char path[MOST_PATH];
    for (const char *p = payload; p < payload + f->length; p += text_length(p) + 1)
        if (text_length(p) < MOST_PATH) each_path(path, 0, p, add_fact, &a);
    server_send(*f, DONE, a.at, a.used);
    release_buffer(&a);
}

/* leaf, subleaf, register, mask: u32 each (runtime/plan.h, tc_feature) -> a byte each: whether the CPU has it */
static inline void answer_features(const frame *f, const char *payload) {
    buffer a = {0};
    for (size_t at = 0; at + 16 <= f->length; at += 16) {
        uint32_t asked[4];
        memcpy(asked, payload + at, sizeof asked);
        char there = (char)cpu_feature(asked[0], asked[1], asked[2], asked[3]);
        add(&a, &there, 1);
    }
    server_send(*f, DONE, a.at, a.used);
    release_buffer(&a);
}

/* A loop of dependent integer operations (xorshift, Marsaglia 2003): its time tells the clock the core really ran at. */
static inline int64_t calibrate(int64_t rounds) {
    uint64_t x = 88172645463325252ull;
    int64_t begun = sys_now_ns();
    for (int64_t i = 0; i < rounds; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        __asm__ volatile("" : "+r"(x));
    }
    return sys_now_ns() - begun;
}

static inline const char *put_error(long result) {
    if (result == -E_NOSPC || result == -E_FBIG || result == -E_DQUOT) return "disk full";
    return result == 0 ? "" : result == 1 ? "damaged" : "cannot be written";
}

static inline void answer_put(const frame *f, const char *payload) {
    if (f->kind == PUT_DATA) { /* unanswered: the end tells */
        receive_data(&server.file, payload, f->length);
        return;
    }
    if (f->kind == PUT_BEGIN) { /* size u64, SHA-256, name '\0' */
        uint64_t size;
        memcpy(&size, payload, sizeof size);
        if (f->length < 42 || payload[f->length - 1] || !plain_name(payload + 40)) server_say(f, FAILED, "a broken request");
        else {
            long fd = receive_begin(&server.file, payload + 40, size, (const unsigned char *)payload + 8);
            server_say(f, sys_failed(fd) ? FAILED : DONE, sys_failed(fd) ? put_error(fd) : "");
        }
        return;
    }
    long result = receive_end(&server.file);
    server_say(f, result ? FAILED : DONE, put_error(result));
}

static inline void server_answer(const frame *f, const char *payload) {
    if (f->kind >= LOAD) slot_request(f, payload);
    else if (f->kind == FACTS) answer_facts(f);
    else if (f->kind == READ) answer_read(f, payload);
    else if (f->kind == FEATURES) answer_features(f, payload);
    else if (f->kind == PUT_BEGIN || f->kind == PUT_DATA || f->kind == PUT_END) answer_put(f, payload);
    else if (f->kind == CALIBRATE) {
        int64_t rounds = 0;
        memcpy(&rounds, payload, f->length < 8 ? f->length : 8);
        int64_t ns = calibrate(rounds);
        server_send(*f, DONE, &ns, sizeof ns);
    } else if (f->kind == REMOVE) {
        if (f->length && !payload[f->length - 1] && plain_name(payload)) remove_file(payload, NULL);
        server_send(*f, DONE, "", 0);
    } else if (f->kind == UNLOAD) {
        slot_close(&server.slots[f->slot % MOST_SLOTS]);
        server_send(*f, DONE, "", 0);
    } else if (f->kind != PING) server_say(f, FAILED, "an unknown request");
}

/* --- from the start to the end ------------------------------------------------------------------------------------------ */

/* Wait for the board; tell the client who has it. */
static inline void server_take_lease(void) {
    int64_t told = 0;
    for (;;) {
        server.lease = lease_try(server.lease_path);
        if (server.lease >= 0) break;
        if (server.lease != -E_AGAIN) {
            server_send((frame){.kind = HELLO}, REFUSED, "the lease cannot be opened", 26);
            server_end(5);
        }
        if (!told || sys_now_ns() - told > server.silence_ns / 4) {
            buffer holder = {0};
            read_fact(server.lease_path, &holder);
            server_send((frame){.kind = WAITING}, DONE, holder.at, holder.used);
            release_buffer(&holder);
            told = sys_now_ns();
        }
        poll_entry e[2] = {{(int32_t)server.signals, POLL_IN, 0}, {0, CLOSED_BY_PEER, 0}};
        wait_for(e, 2, 50000000);
        if (e[0].revents || e[1].revents) server_end(0);
    }
    lease_note(server.lease, server.who);
}

static inline int64_t to_number(const char *s) {
    int64_t n = 0;
    while (*s >= '0' && *s <= '9') n = 10 * n + (*s++ - '0');
    return n;
}

static inline void server_options(int n, char **arguments) {
    server.silence_ns = 60000000000, server.lease = server.folder_lock = -1, server.file.fd = -1;
    for (int i = 0; i < n; i++) {
        const char *v;
        if ((v = after_prefix(arguments[i], "folder="))) server.folder = v;
        if ((v = after_prefix(arguments[i], "lease="))) server.lease_path = v;
        if ((v = after_prefix(arguments[i], "who="))) server.who = v;
        if ((v = after_prefix(arguments[i], "stale="))) server.stale = v;
        if ((v = after_prefix(arguments[i], "silence_ms="))) server.silence_ns = to_number(v) * 1000000;
        if ((v = after_prefix(arguments[i], "cpus=")))
            for (; *v; v += *v == ',') {
                int64_t cpu = to_number(v);
                if (cpu < 1024) server.cpus[cpu / 64] |= 1ull << cpu % 64, server.cpu_words = 16;
                while (*v >= '0' && *v <= '9') v++;
            }
    }
}

/* The working directory is the session's folder. */
_Noreturn static inline void server_main(int n, char **arguments) {
    uint64_t watched = 1ull << (SIGNAL_HUP - 1) | 1ull << (SIGNAL_INT - 1) | 1ull << (SIGNAL_TERM - 1);
    uint64_t ending = watched | 1ull << (SIGNAL_PIPE - 1) | 1ull << (SIGNAL_FILE_SIZE - 1); /* two are errors of write */
    server_options(n, arguments);
    SYS4(NR_sigprocmask, 0 /* block */, &ending, 0, 8);
    server.signals = SYS4(NR_signalfd4, -1, &watched, 8, O_CLOSE_ON_EXEC);
    SYS3(NR_fcntl, 1, 4 /* set flags */, O_NONBLOCKING | O_WRITE);
    server.heard_ns = sys_now_ns();
    server.folder_lock = file_open(".", O_READ, 0);
    SYS2(NR_flock, server.folder_lock, LOCK_EXCLUSIVE | LOCK_AT_ONCE);
    if (server.lease_path) server_take_lease();
    if (server.stale) remove_stale_sessions(server.stale);
    if (server.cpu_words) SYS3(NR_setaffinity, 0, server.cpu_words * 8, server.cpus);
    server.heard_ns = sys_now_ns();
    uint32_t hello[2] = {PROTOCOL, (uint32_t)sys_pid()};
    server_send((frame){.kind = HELLO}, DONE, hello, sizeof hello);
    for (;;) {
        frame f;
        buffer payload = {0};
        if (!server_read(&f, sizeof f)) server_end(0);
        if (!frame_is_whole(&f) || !reserve(&payload, f.length + 64)) server_end(6);
        if (!server_read(payload.at, f.length)) server_end(0);
        if (crc32(payload.at, f.length) != f.payload_crc) server_end(6);
        server_answer(&f, payload.at);
        release_buffer(&payload);
    }
}
#endif
