"""What follows from a CPU's features: the width of its vectors, their number, how many multiply-adds begin per cycle."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace

from toolchain.core.target import Target

WIDEST_BITS = 512                    # of what sketches are made for and tested with
_WIDE = ("avx512bw", "avx512dq", "avx512f", "avx512vl")          # all of them, or 512-bit vectors are not worth it


def with_features(base: Target, features: Iterable[str]) -> Target:
    """`base` with features switched ("-avx512f", "+fma") and the vector facts that follow from them."""
    changed = tuple(features)
    names = {f.lstrip("+-") for f in changed}
    kept = [f for f in base.features if f.lstrip("+-") not in names]
    return with_vector_facts(replace(base, features=tuple(sorted((*kept, *changed)))))


def with_vector_facts(target: Target) -> Target:
    """Vector width, registers and fma as the features say."""
    return FACTS.get(target.kind, _aarch64)(target)


def _x86(target: Target) -> Target:
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


def _aarch64(target: Target) -> Target:
    return replace(target, vector_bits=128, vector_registers=32, has_fma=True)


def _riscv64(target: Target) -> Target:
    """V has at least 128 bits, or as many as zvl256b and its like promise. Without V, LLVM takes four of the 32 registers of
    floats for a vector of 128 bits: eight such vectors, whose elements are independent of one another."""
    if not target.has("v"):
        return replace(target, vector_bits=128, vector_registers=8, has_fma=True)
    promised = [int(m.group(1)) for f in target.features if (m := re.fullmatch(r"\+zvl(\d+)b", f))]
    return replace(target, vector_bits=min(max(128, *promised, 0), WIDEST_BITS), vector_registers=32, has_fma=True)


def _wasm32(target: Target) -> Target:
    """Engines on x86-64 have 16 registers for vectors of 128 bits. Only relaxed SIMD fuses, and it differs by engine."""
    return replace(target, vector_bits=128, vector_registers=16, has_fma=False)


FACTS: dict[str, Callable[[Target], Target]] = {"x86": _x86, "aarch64": _aarch64, "riscv64": _riscv64,
                                                "wasm32": _wasm32}

__all__ = ["with_features", "with_vector_facts"]
