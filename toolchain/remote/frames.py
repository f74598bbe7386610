"""The frames that a session speaks with the board's runner; targets/llvm/runner/frame.h, the other end, says the form.

    request   kind, slot, id, milliseconds it may take, payload     ->
                                                    <-   answer: the same kind, slot and id, a status, payload
                                                    <-   HELLO, WAITING, BEAT come unasked, with id 0
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum

PROTOCOL = 1
MAGIC = b"TCF1"
HEADER_BYTES = 32
MOST_PAYLOAD_BYTES = 1 << 30
_FIELDS = struct.Struct("<4sHHIIQI")
_CRC = struct.Struct("<I")


class Kind(IntEnum):
    PING = 1
    FACTS = 2
    READ = 3
    FEATURES = 4
    CALIBRATE = 5
    PUT_BEGIN = 6
    PUT_DATA = 7
    PUT_END = 8
    REMOVE = 9
    UNLOAD = 10
    LOAD = 32
    SELECT = 33
    SET = 34
    RUN = 35
    BENCHMARK = 36
    PROFILE = 37
    GET = 38
    HELLO = 100
    WAITING = 101
    BEAT = 102


class Status(IntEnum):
    DONE = 0
    FAILED = 1
    CRASHED = 2
    TOO_LONG = 3
    REFUSED = 4


class DamagedFrame(Exception):
    """What came is no frame. Stays in this package: a session says what it means."""


@dataclass(frozen=True, slots=True)
class Frame:
    """word: of a request the milliseconds it may take (0: the runner's own limit), of an answer its Status."""

    kind: int
    slot: int = 0
    id: int = 0
    word: int = 0
    payload: bytes = b""

    def encode(self) -> bytes:
        head = _FIELDS.pack(MAGIC, self.kind, self.slot, self.id, self.word, len(self.payload), zlib.crc32(self.payload))
        return head + _CRC.pack(zlib.crc32(head)) + self.payload


@dataclass(slots=True)
class Decoder:
    """Turns bytes, in pieces as they come, into frames. preamble: what stood before the first one (a shell's greeting)."""

    most_preamble_bytes: int = 64 << 10
    preamble: bytes = b""
    started: bool = False
    _rest: bytearray | None = None

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are whole now. Raises DamagedFrame."""
        self._rest = rest = self._rest if self._rest is not None else bytearray()
        rest += data
        if not self.started:
            self._skip_preamble(rest)
        found: list[Frame] = []
        while self.started and (size := _whole_size(rest)):
            found.append(_decode(bytes(rest[:size])))
            del rest[:size]
        return found

    def _skip_preamble(self, rest: bytearray) -> None:
        """Profiles of login shells print things; a runner's first bytes are its magic number."""
        at = rest.find(MAGIC)
        end = at if at >= 0 else max(0, len(rest) - len(MAGIC) + 1)
        self.preamble += bytes(rest[:end])
        del rest[:end]
        self.started = at >= 0
        if len(self.preamble) > self.most_preamble_bytes:
            raise DamagedFrame(f"{len(self.preamble)} bytes came that no runner sends")


def _whole_size(data: bytearray) -> int:
    """Of the first frame, when all of it is there; else 0."""
    if len(data) < HEADER_BYTES:
        return 0
    head = bytes(data[:HEADER_BYTES])
    magic, *_, length, _ = _FIELDS.unpack(head[:-4])
    if magic != MAGIC or _CRC.unpack(head[-4:])[0] != zlib.crc32(head[:-4]) or length > MOST_PAYLOAD_BYTES:
        raise DamagedFrame("a frame's header is damaged")
    size: int = HEADER_BYTES + length
    return size if len(data) >= size else 0


def _decode(data: bytes) -> Frame:
    _, kind, slot, number, word, _, crc = _FIELDS.unpack(data[:HEADER_BYTES - 4])
    payload = data[HEADER_BYTES:]
    if zlib.crc32(payload) != crc:
        raise DamagedFrame("a frame's payload is damaged")
    return Frame(kind, slot, number, word, payload)
