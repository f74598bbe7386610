"""The machine a measurement ran on: what /proc and /sys say about it, before and after."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from toolchain.report.facts import System

PROC = Path("/proc")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


@contextmanager
def watch_system() -> Iterator[Callable[[], System]]:
    """Note clocks, load and stolen time on entry; the yielded function, called later, describes the time between."""
    load, clocks, start = os.getloadavg()[0], clocks_mhz(), cpu_ticks()
    end: list[tuple[list[float], tuple[int, int]]] = []

    def describe() -> System:
        seen, ticks = end[0] if end else (clocks_mhz(), cpu_ticks())
        both = [*clocks, *seen]
        return System(
            cpu=cpu_name(), cores=os.cpu_count() or 1, kernel=platform.release(), governor=_read(GOVERNOR).strip(),
            mhz=(min(both), max(both)) if both else (0.0, 0.0), load_average=round(load, 2),
            steal_percent=steal_percent(start, ticks),
        )

    try:
        yield describe
    finally:
        end.append((clocks_mhz(), cpu_ticks()))


def cpu_name(cpuinfo: str | None = None) -> str:
    """As /proc/cpuinfo names the first core; the architecture where it does not."""
    return _fields(cpuinfo, "model name")[0] if _fields(cpuinfo, "model name") else platform.machine()


def clocks_mhz(cpuinfo: str | None = None) -> list[float]:
    """The clock of every core now (virtual machines often show a constant)."""
    return [round(float(value)) for value in _fields(cpuinfo, "cpu MHz")]


def cpu_ticks(stat: str | None = None) -> tuple[int, int]:
    """(all, stolen) clock ticks of all cores since boot: the first line of /proc/stat, proc(5)."""
    text = _read(PROC / "stat") if stat is None else stat
    ticks = [int(t) for t in text.partition("\n")[0].split()[1:9]]
    return (sum(ticks), ticks[7]) if len(ticks) == 8 else (0, 0)


def steal_percent(start: tuple[int, int], end: tuple[int, int]) -> float:
    """Share of the ticks between that the hypervisor gave to others."""
    total, stolen = end[0] - start[0], end[1] - start[1]
    return round(100 * stolen / total, 1) if total > 0 else 0.0


def _fields(cpuinfo: str | None, name: str) -> list[str]:
    text = _read(PROC / "cpuinfo") if cpuinfo is None else cpuinfo
    return [line.partition(":")[2].strip() for line in text.splitlines() if line.partition(":")[0].strip() == name]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
