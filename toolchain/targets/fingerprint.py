"""What makes this machine's code differ from another's, read cheaply: a build with nothing to do asks this every time."""

from __future__ import annotations

import os
from pathlib import Path

_KEPT = ("vendor_id", "cpu family", "model", "stepping", "flags", "CPU implementer", "CPU part", "Features")


KINDS = {"x86_64": "x86", "amd64": "x86", "aarch64": "aarch64", "arm64": "aarch64"}      # by the machine's name in uname


def host_kind() -> str:
    """The kind of Target whose code this machine runs."""
    machine = os.uname().machine.lower()
    return KINDS.get(machine, machine)


def host_fingerprint() -> str:
    """The processor's identity and features, its caches, and how many cores this process may use, as one line each."""
    lines = [os.uname().machine, f"cores {len(os.sched_getaffinity(0))}"]
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n", 1)[0]
    except OSError:
        first = ""
    for line in first.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in _KEPT:
            lines.append(f"{name.strip()} {value.strip()}")
    for size in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")):
        lines.append(f"{size.parent.name} {size.read_text(encoding='utf-8').strip()}")
    return "\n".join(lines)
