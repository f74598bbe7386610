"""What follows from a CPU's features: the width of its vectors, their number, how many multiply-adds begin per cycle."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from toolchain.core.target import Target

_WIDE = ("avx512bw", "avx512dq", "avx512f", "avx512vl")          # all of them, or 512-bit vectors are not worth it


def with_features(base: Target, features: Iterable[str]) -> Target:
    """`base` with features switched ("-avx512f", "+fma") and the vector facts that follow from them."""
    changed = tuple(features)
    names = {f.lstrip("+-") for f in changed}
    kept = [f for f in base.features if f.lstrip("+-") not in names]
    return with_vector_facts(replace(base, features=tuple(sorted((*kept, *changed)))))


def with_vector_facts(target: Target) -> Target:
    """Vector width, registers and fma as the features say."""
    if target.kind != "x86":
        return replace(target, vector_bits=128, vector_registers=32, has_fma=True)
    wide = all(target.has(f) for f in _WIDE)
    return replace(
        target,
        vector_bits=512 if wide else 256 if target.has("avx2") else 128,
        vector_registers=32 if wide else 16,
        has_fma=target.has("fma"),
        fma_per_cycle=1 if wide and _is_double_pumped(target) else 2,
    )


def _is_double_pumped(target: Target) -> bool:
    """Whether 512-bit vectors take the two 256-bit units together: AMD's first cores with AVX-512 (Zen 4), which `clzero`
    (AMD) without `avx512vp2intersect` (Zen 5) tells."""
    return target.has("clzero") and not target.has("avx512vp2intersect")


__all__ = ["with_features", "with_vector_facts"]
