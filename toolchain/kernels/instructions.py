"""Instructions that sketches match by their meaning: dot products of small integers, a few factors per lane.

    c[l] += sum over k of a[k] * b[l, k]        l: the lanes of one vector of int32, k: 4 bytes, 2 words, or one word

The factors `a` are the same in all lanes (four bytes, broadcast), those of a lane lie together in `b`: a vector of each.
Arm's take `a` as one lane of a register. Its Armv8.0 has no dot product, but a product of words that is added to int32.
Sums wrap at 32 bits, as int32 does everywhere; no instruction taken here saturates (vpmaddubsw would).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from toolchain import te
from toolchain.core.target import Target


@dataclass(frozen=True, slots=True)
class Dot:
    """One kind of dot product: types of its factors, how many of them share a lane, which features have it (any of them),
    and which also add the sum to what is there (else that is an instruction more, and a register). lane_registers: how many
    registers can give a lane as the left factor (0: any)."""

    name: str
    left: str
    right: str
    group: int
    features: tuple[str, ...]
    accumulating: tuple[str, ...]
    lane_registers: int = 0


VNNI = ("avx512vnni", "avxvnni")
BYTES = Dot("dot4", "uint8", "int8", 4, VNNI, VNNI)                       # vpdpbusd
WORDS = Dot("dot2", "int16", "int16", 2, ("sse2",), ("avx512vnni",))      # vpmaddwd and vpaddd, or vpdpwssd
SIGNED_BYTES = Dot("sdot4", "int8", "int8", 4, ("dotprod",), ("dotprod",))  # sdot
SINGLE_WORDS = Dot("dot1", "int16", "int16", 1, ("neon",), ("neon",), 16)   # smlal
DOTS = (BYTES, SIGNED_BYTES, WORDS, SINGLE_WORDS)
NARROW = frozenset(("uint8", "int8"))


def has_dot(kind: Dot, target: Target) -> bool:
    return any(target.has(f) for f in kind.features)


def accumulates(kind: Dot, target: Target) -> bool:
    """Whether the product and the addition to the sum are one instruction."""
    return any(target.has(f) for f in kind.accumulating)


def dot_of(left: str, right: str, target: Target) -> Dot | None:
    """The target's dot product of factors of these types."""
    return next((kind for kind in DOTS if (kind.left, kind.right) == (left, right) and has_dot(kind, target)), None)


def bytes_and_words(target: Target) -> tuple[Dot | None, Dot | None]:
    """The target's dot product of bytes, and that of words."""
    found = [kind for kind in DOTS if has_dot(kind, target)]
    narrow = next((kind for kind in found if kind.left in NARROW), None)
    return narrow, next((kind for kind in found if kind.left not in NARROW), None)


@lru_cache(16)
def dot(kind: Dot, lanes: int) -> te.Intrin:
    """The instruction: "dot4.16" is four bytes per lane, 16 lanes."""
    a = te.placeholder((kind.group,), kind.left, name="a")
    b = te.placeholder((lanes, kind.group), kind.right, name="b")
    k = te.reduce_axis(kind.group, "k")
    c = te.compute((lanes,), lambda i: te.sum(a[k].astype("int32") * b[i, k].astype("int32"), axis=k), name="c")
    return te.intrin(f"{kind.name}.{lanes}", c, {c: "local"})


__all__ = ["BYTES", "DOTS", "SIGNED_BYTES", "SINGLE_WORDS", "WORDS", "Dot", "accumulates", "bytes_and_words", "dot",
           "dot_of", "has_dot"]
