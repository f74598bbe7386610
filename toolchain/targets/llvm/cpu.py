"""The machine this runs on, as a Target: features from cpuid, caches from the kernel. Never from the CPU's name: it lies."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

from toolchain.core.target import Target
from toolchain.targets.features import with_vector_facts

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def host_target(cores: int | None = None) -> Target:
    """The host as a Target. `cores`: lanes to plan for (default: the CPUs this process may run on)."""
    triple = llvm.get_process_triple()
    present = sorted(name for name, on in llvm.get_host_cpu_features().items() if on)
    kind = "x86" if triple.startswith("x86_64") else triple.split("-")[0]
    features = tuple(f"+{name}" for name in present)
    base = Target("host", kind, triple=triple, cpu="x86-64" if kind == "x86" else "generic", features=features)
    return replace(with_vector_facts(base), cores=cores or len(os.sched_getaffinity(0)), **cache_sizes(CACHES))


def cache_sizes(folder: Path) -> dict[str, Any]:
    """`l1d_bytes`, `l2_bytes`, `l3_bytes`, `line_bytes` as the kernel tells them; unknown ones are left out."""
    sizes: dict[str, int] = {}
    for cache in sorted(folder.glob("index*")):
        level, kind = _read(cache / "level"), _read(cache / "type")
        if not level or kind == "Instruction" or not (size := _size_bytes(_read(cache / "size"))):
            continue
        sizes["l1d_bytes" if level == "1" else f"l{level}_bytes"] = size
        if line := _read(cache / "coherency_line_size"):
            sizes["line_bytes"] = int(line)
    return {k: v for k, v in sizes.items() if k in ("l1d_bytes", "l2_bytes", "l3_bytes", "line_bytes")}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _size_bytes(text: str) -> int:
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    if not text:
        return 0
    return int(text[:-1]) * units[text[-1]] if text[-1] in units else int(text)


__all__ = ["cache_sizes", "host_target"]
