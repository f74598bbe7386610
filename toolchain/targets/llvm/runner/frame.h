/* Frames on stdin and stdout: 32 bytes of header, then the payload; numbers little-endian. toolchain/remote/frames.py is the
 * other end: keep the two together, and count PROTOCOL up for what an older one would not understand.
 *
 *   magic  kind u16  slot u16  id u32  word u32  length u64  crc32 of the payload u32  crc32 of the 28 bytes before u32
 *
 * word: of a request the milliseconds it may take (0: no limit), of an answer its status. An answer has its request's id. */
#ifndef TC_FRAME_H
#define TC_FRAME_H
#include "digest.h"

enum { PROTOCOL = 1, FRAME_MAGIC = 0x31464354 /* "TCF1" */, MOST_SLOTS = 32, MOST_PAYLOAD = 1 << 30 };

/* Requests. The runner itself answers those before LOAD, the process of the slot's model the others. */
enum { PING = 1, FACTS, READ, FEATURES, CALIBRATE, PUT_BEGIN, PUT_DATA, PUT_END, REMOVE, UNLOAD,
       LOAD = 32, SELECT, SET, RUN, BENCHMARK, PROFILE, GET };
/* What comes unasked: HELLO (PROTOCOL u32, process u32) once the lease is held, WAITING while it is not, BEAT while
 * something takes long. */
enum { HELLO = 100, WAITING, BEAT };
/* Statuses of answers; the payload of the last four is text. */
enum { DONE, FAILED, CRASHED, TOO_LONG, REFUSED };

typedef struct {
    uint32_t magic;
    uint16_t kind, slot;
    uint32_t id, word;
    uint64_t length;
    uint32_t payload_crc, header_crc;
} frame;

static inline void frame_seal(frame *f, const void *payload) {
    f->magic = FRAME_MAGIC;
    f->payload_crc = crc32(payload, f->length);
    f->header_crc = crc32(f, offsetof(frame, header_crc));
}
static inline int frame_is_whole(const frame *f) {
    return f->magic == FRAME_MAGIC && f->header_crc == crc32(f, offsetof(frame, header_crc)) && f->length <= MOST_PAYLOAD;
}
#endif
