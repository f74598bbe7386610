"""Whole processes from outside: how long one takes, and how much memory it and everything it starts hold.

Memory is sampled from /proc (proc(5)): `VmHWM` is the most one process ever held, so a sample late in its life still sees an
early peak; `Pss` counts a page that several processes share once, so the sum over a tree is what the tree really holds.
"""

from __future__ import annotations

import compileall
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from toolchain.report.statistics import percentile

PROC = Path("/proc")


class Cost(NamedTuple):
    """One finished process: wall time, and processor time of it and of the children it waited for."""

    wall_s: float
    cpu_s: float
    exit_code: int


@dataclass(frozen=True, slots=True)
class Spread:
    """Several numbers of one kind: their median, 10th and 90th percentile, and extremes."""

    count: int
    median: float
    p10: float
    p90: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"p10 {self.p10:.4g}, p90 {self.p90:.4g}, {self.low:.4g} to {self.high:.4g}, {self.count} values"


def spread(values: Sequence[float]) -> Spread:
    """Needs at least one value."""
    return Spread(len(values), statistics.median(values), percentile(values, 10), percentile(values, 90), min(values),
                  max(values))


def compile_sources() -> None:
    """Let measured programs find our modules compiled, as they are once installed; else each pays for it at its start."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    compileall.compile_dir(Path(__file__).resolve().parents[1] / "toolchain", quiet=1)


def run_once(command: Sequence[str], env: Mapping[str, str] | None = None) -> Cost:
    """Run a program with its output thrown away."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env=env and {**os.environ, **env})
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)      # Popen would wait for it again
    return Cost(wall_s, usage.ru_utime + usage.ru_stime, process.returncode)


class Peak(NamedTuple):
    """The most memory seen: of one process (and which one), and of the whole tree at one moment."""

    process_bytes: int
    process: str
    tree_bytes: int
    samples: int
    exit_code: int


def watch_memory(command: Sequence[str], env: Mapping[str, str] | None = None, every_s: float = 0.01) -> Peak:
    """Run a program and sample the memory of it and all its descendants until it ends."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env=env and {**os.environ, **env})
    largest, who, tree, samples = 0, "", 0, 0
    try:
        while process.poll() is None:
            together = 0
            for pid in tree_of(process.pid):
                peak_bytes, shared_out_bytes = memory_of(pid)
                together += shared_out_bytes
                if peak_bytes > largest:
                    largest, who = peak_bytes, command_line(pid)
            tree, samples = max(tree, together), samples + 1
            time.sleep(every_s)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    return Peak(largest, who, tree, samples, process.returncode)


@contextmanager
def busy_core() -> Iterator[int]:
    """Keep one core busy, the last of those this process may use, with a process that only spins; the core's number."""
    core = max(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{core}}}); print(flush=True)\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-I", "-c", code], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        process.stdout.readline()           # it is pinned now
        yield core
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def resident_bytes() -> int:
    """Memory of this process that is in RAM now, files it has mapped included."""
    return _kib(_read(PROC / "self" / "smaps_rollup"), "Rss")


def tree_of(root: int) -> list[int]:
    """The process and its descendants; those whose parent ended meanwhile are lost."""
    children: dict[int, list[int]] = {}
    for pid, parent in _parents():
        children.setdefault(parent, []).append(pid)
    found = [root]
    for pid in found:
        found += children.get(pid, ())
    return found


def _parents() -> Iterator[tuple[int, int]]:
    for name in os.listdir(PROC):
        if name.isdecimal() and (text := _read(PROC / name / "stat")):
            yield int(name), int(text.rpartition(")")[2].split()[1])        # the name in parentheses may hold anything


def memory_of(pid: int) -> tuple[int, int]:
    """(most resident memory ever, proportional share now) of a process in bytes; zeros when it has ended."""
    return _kib(_read(PROC / str(pid) / "status"), "VmHWM"), _kib(_read(PROC / str(pid) / "smaps_rollup"), "Pss")


def command_line(pid: int) -> str:
    """The beginning of a process's command: `python3 -c import sys, json` is the fork server or one of its workers."""
    words = _read(PROC / str(pid) / "cmdline").split("\0")
    return " ".join([Path(words[0]).name, *words[1:]]).strip()[:27].strip()


def _kib(text: str, name: str) -> int:
    return next((int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith(f"{name}:")), 0)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except (OSError, ProcessLookupError):
        return ""
