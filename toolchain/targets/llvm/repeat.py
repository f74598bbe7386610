"""A kernel run many times over on several threads, with no Python in between: what `tc tune` times.

    lanes   lane 0 is whoever calls, the others wait for it: they spin, for to wake them would take longer than many kernels
            do, and now and then let others run
    a run   each phase is cut in as many equal parts as there are lanes, as the runtime cuts it; all meet behind each phase

Runs rotate over the tables of a kernel's buffers, one behind the other.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Sequence

import llvmlite.binding as llvm
import numpy as np

from toolchain.targets.llvm.load import LoadedKernel, jit

SPINS = 1024            # some microseconds: more than lanes that have equal parts wait for each other

_TEXT = """
%job = type { i64, [15 x i64], i64, i64, i64, ptr, i64, ptr, i64, ptr, ptr }
%part = type { ptr, i64, i64 }

define internal void @meet(ptr %count, i64 %lanes, ptr %yield) {
  %old = atomicrmw add ptr %count, i64 1 seq_cst
  %round = udiv i64 %old, %lanes
  %next = add i64 %round, 1
  %wanted = mul i64 %next, %lanes
  br label %wait
wait:
  %spins = phi i64 [1, %0], [%spins.next, %spin], [%spins.next, %rest]
  %now = load atomic i64, ptr %count seq_cst, align 8
  %met = icmp uge i64 %now, %wanted
  br i1 %met, label %done, label %spin
spin:
  %spins.next = add i64 %spins, 1
  %tired = and i64 %spins, SPINS_MASK
  %is.tired = icmp eq i64 %tired, 0
  br i1 %is.tired, label %rest, label %wait
rest:
  call i32 %yield()
  br label %wait
done:
  ret void
}

define void @tc_lane(ptr %job, i64 %lane) {
entry:
  %lanes.at = getelementptr %job, ptr %job, i64 0, i32 2
  %lanes = load i64, ptr %lanes.at
  %yield.at = getelementptr %job, ptr %job, i64 0, i32 10
  %yield = load ptr, ptr %yield.at
  %is.first = icmp eq i64 %lane, 0
  br label %begin
begin:
  call void @meet(ptr %job, i64 %lanes, ptr %yield)
  %n.at = getelementptr %job, ptr %job, i64 0, i32 3
  %n = load i64, ptr %n.at
  %none = icmp eq i64 %n, 0
  br i1 %none, label %end, label %what
what:
  %first.at = getelementptr %job, ptr %job, i64 0, i32 4
  %first = load i64, ptr %first.at
  %tables.at = getelementptr %job, ptr %job, i64 0, i32 5
  %tables = load ptr, ptr %tables.at
  %copies.at = getelementptr %job, ptr %job, i64 0, i32 6
  %copies = load i64, ptr %copies.at
  %parts.at = getelementptr %job, ptr %job, i64 0, i32 7
  %all.parts = load ptr, ptr %parts.at
  %phases.at = getelementptr %job, ptr %job, i64 0, i32 8
  %phases = load i64, ptr %phases.at
  %scratch.at = getelementptr %job, ptr %job, i64 0, i32 9
  %scratches = load ptr, ptr %scratch.at
  %mine = mul i64 %lane, %phases
  %parts = getelementptr %part, ptr %all.parts, i64 %mine
  %scratch.place = getelementptr ptr, ptr %scratches, i64 %lane
  %scratch = load ptr, ptr %scratch.place
  br label %run
run:
  %i = phi i64 [0, %what], [%i.next, %run.end]
  %nth = add i64 %first, %i
  %copy = urem i64 %nth, %copies
  %table.at = getelementptr ptr, ptr %tables, i64 %copy
  %table = load ptr, ptr %table.at
  br label %phase
phase:
  %p = phi i64 [0, %run], [%p.next, %phase.end]
  %task.at = getelementptr %part, ptr %parts, i64 %p, i32 0
  %task = load ptr, ptr %task.at
  %low.at = getelementptr %part, ptr %parts, i64 %p, i32 1
  %low = load i64, ptr %low.at
  %high.at = getelementptr %part, ptr %parts, i64 %p, i32 2
  %high = load i64, ptr %high.at
  %some = icmp slt i64 %low, %high
  br i1 %some, label %call, label %phase.end
call:
  call void %task(ptr %table, i64 %low, i64 %high, ptr %scratch)
  br label %phase.end
phase.end:
  call void @meet(ptr %job, i64 %lanes, ptr %yield)
  %p.next = add i64 %p, 1
  %more = icmp slt i64 %p.next, %phases
  br i1 %more, label %phase, label %run.end
run.end:
  %i.next = add i64 %i, 1
  %again = icmp slt i64 %i.next, %n
  br i1 %again, label %run, label %told
told:
  br i1 %is.first, label %end, label %begin
end:
  ret void
}
"""


class _Job(ctypes.Structure):
    """What all lanes do next; as %job. met: how many have come to meeting points, on cache lines of its own."""

    _fields_ = (("met", ctypes.c_int64), ("apart", ctypes.c_int64 * 15), ("lanes", ctypes.c_int64), ("n", ctypes.c_int64),
                ("first", ctypes.c_int64), ("tables", ctypes.c_void_p), ("copies", ctypes.c_int64),
                ("parts", ctypes.c_void_p), ("phases", ctypes.c_int64), ("scratch", ctypes.c_void_p),
                ("sched_yield", ctypes.c_void_p))


class _Part(ctypes.Structure):
    """A lane's part of a phase; as %part."""

    _fields_ = (("task", ctypes.c_void_p), ("low", ctypes.c_int64), ("high", ctypes.c_int64))


class Lanes:
    """Threads that run kernels together. Use as a context manager: the threads end with it."""

    def __init__(self, lanes: int) -> None:
        self.lanes, self._lane = lanes, _compiled()
        self._memory = np.zeros(ctypes.sizeof(_Job) + 128, np.uint8)
        self._job = _Job.from_address(self._memory.ctypes.data + -self._memory.ctypes.data % 128)
        self._job.lanes, self._job.sched_yield = lanes, ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value
        self._cpus = os.sched_getaffinity(0)
        self._threads = [threading.Thread(target=self._serve, args=(lane,), daemon=True) for lane in range(1, lanes)]

    def __enter__(self) -> Lanes:
        for thread in self._threads:
            thread.start()
        self._stay(0)
        return self

    def __exit__(self, *_: object) -> None:
        self._job.n = 0
        self._lane(ctypes.addressof(self._job), 0)
        for thread in self._threads:
            thread.join()
        os.sched_setaffinity(0, self._cpus)

    def _serve(self, lane: int) -> None:
        self._stay(lane)
        self._lane(ctypes.addressof(self._job), lane)

    def _stay(self, lane: int) -> None:
        """On a core of one's own: two that wait for each other in turns on one look to the system as if they did little."""
        if 1 < self.lanes <= len(self._cpus):
            os.sched_setaffinity(0, {sorted(self._cpus)[lane]})

    def run(self, repeated: Repeated, n: int, first: int = 0) -> None:
        """n runs of a kernel, the first of them on table `first`."""
        if not n:
            return
        job = self._job
        job.n, job.first, job.tables, job.copies = n, first, ctypes.addressof(repeated.tables), len(repeated.tables)
        job.parts, job.phases = ctypes.addressof(repeated.parts), repeated.phases
        job.scratch = ctypes.addressof(repeated.scratch)
        self._lane(ctypes.addressof(job), 0)


class Repeated:
    """A kernel cut for so many lanes, with the memory it runs on. scratch: one for each lane."""

    def __init__(
        self, loaded: LoadedKernel, copies: Sequence[Sequence[np.ndarray]], workspace: Sequence[np.ndarray],
        scratch: Sequence[np.ndarray],
    ) -> None:
        lanes, self.phases = len(scratch), len(loaded.phases)
        self._kept = (loaded, [loaded.table(buffers, workspace) for buffers in copies], list(scratch))
        self.tables = (ctypes.c_void_p * len(copies))(*map(ctypes.addressof, self._kept[1]))
        self.scratch = (ctypes.c_void_p * lanes)(*(s.ctypes.data for s in scratch))
        parts = [_Part(ctypes.cast(task, ctypes.c_void_p).value, extent * lane // lanes, extent * (lane + 1) // lanes)
                 for lane in range(lanes) for task, extent in loaded.phases]
        self.parts = (_Part * len(parts))(*parts)


@functools.cache
def _compiled() -> ctypes._FuncPointer:      # type: ignore[name-defined]
    """tc_lane(job, lane), which runs without the interpreter's lock."""
    text = _TEXT.replace("SPINS_MASK", str(SPINS - 1))
    library = llvm.JITLibraryBuilder().add_ir(text).export_symbol("tc_lane").link(jit(), "tc_lane")
    made = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(library["tc_lane"])
    made.library = library      # the code lives as long as the function
    return made


__all__ = ["Lanes", "Repeated"]
