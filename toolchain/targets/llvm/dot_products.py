"""Dot products of small integers -> LLVM text: what `kernels/instructions.py` means by dot4, dot2, sdot4, dot1 and pairs.

    dot4.16(c[..], a[..], b[..])     c += four products of bytes per lane          vpdpbusd
    dot2.16(c[..], a[..], b[..])     c += two products of words per lane           vpdpwssd, or vpmaddwd and vpaddd
    sdot4.4(c[..], a[..], b[..])     c += four products of signed bytes per lane   sdot
    dot1.4(c[..], a[..], b[..])      c += one product of words per lane            smlal
    pairs.4(c[..], a[..], b[..])     c += four products of signed bytes per lane   smull, smlal2, sadalp
    join.4(c[..], r[..])             c[j] += the lanes of vector j of four         addp

The three instructions of `pairs` wait for each other. An in-order core runs them as they stand, so those of several products
stand between (`Staggered`):

    smull  t0, x0, w0
    smull  t1, x0, w1
    ...
    smlal2 t0, x0, w0
    smull  t3, x0, w3
    ...
    sadalp c0, t0
    smlal2 t3, x0, w3
    smull  t6, x1, w2

LLVM would take fewer registers, and wait: an empty instruction behind each keeps the order (see hold_sums).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from toolchain.core.errors import CodegenError
from toolchain.core.target import Target
from toolchain.targets.llvm.arithmetic import Arithmetic
from toolchain.targets.llvm.hold_sums import holding
from toolchain.targets.llvm.spelling import vector

FACTORS = {"dot4": ("i8", 4), "dot2": ("i16", 2), "sdot4": ("i8", 4), "dot1": ("i16", 1), "pairs": ("i8", 4)}
PAIRS = "pairs"
JOIN = "join"
APART = 3                          # products between two instructions of one: an A53's multiplications take four cycles
UNDER_WAY = 2 * APART + 1          # registers of these
_MULTIPLY_ADD = {4: "x86.sse2.pmadd.wd", 8: "x86.avx2.pmadd.wd", 16: "x86.avx512.pmaddw.d.512"}


def is_dot(name: str) -> bool:
    return name.partition(".")[0] in FACTORS


def lanes_of(name: str) -> int:
    """The lanes of the accumulator."""
    return int(name.partition(".")[2])


def group_type(name: str) -> str:
    """One group of factors as a number: "i32"."""
    element, group = FACTORS[name.partition(".")[0]]
    return f"i{int(element[1:]) * group}"


def accumulate(to: Arithmetic, target: Target, name: str, c: str, a: str, b: str) -> str:
    """The operand of c + dot(a, b): a is one group of factors in all lanes (<lanes x i32> for groups of 32 bits, of which
    `group_type` tells); b the factors of each lane."""
    kind, lanes = name.partition(".")[0], lanes_of(name)
    element, group = FACTORS[kind]
    word, factors = vector("i32", lanes), vector(element, lanes * group)
    if kind == "dot1" and target.has("neon") and lanes == 4:
        product = to.emit(to.intrinsic(word, f"aarch64.neon.smull.v{lanes}i32", (), ((factors, a), (factors, b))))
        return to.emit(f"add {word} {c}, {product}")
    a = to.emit(f"bitcast {vector(group_type(name), lanes)} {a} to {factors}")
    if kind == "sdot4" and target.has("dotprod") and lanes == 4:
        return to.emit(to.intrinsic(word, "aarch64.neon.sdot.v4i32.v16i8", (), ((word, c), (factors, b), (factors, a))))
    bits = 32 * lanes
    wide = target.has("avx512vnni") and (bits == 512 or target.has("avx512vl"))
    if kind == "dot4" and (wide or (target.has("avxvnni") and bits <= 256)):
        return to.emit(to.intrinsic(word, f"x86.avx512.vpdpbusd.{bits}", (), ((word, c), (factors, a), (factors, b))))
    if kind == "dot2" and wide:
        return to.emit(to.intrinsic(word, f"x86.avx512.vpdpwssd.{bits}", (), ((word, c), (factors, a), (factors, b))))
    if kind == "dot2" and lanes in _MULTIPLY_ADD:
        product = to.emit(to.intrinsic(word, _MULTIPLY_ADD[lanes], (), ((factors, a), (factors, b))))
        return to.emit(f"add {word} {c}, {product}")
    raise CodegenError(f"{target.name} has no instruction for {name}")


def paired(
    to: Arithmetic, pointer: str, alignment: int, a: str, b: str, done: Callable[[], object]
) -> Iterator[None]:
    """c += four products per lane, of sixteen bytes of a row and of a column (c: a place in a register tile). One
    instruction each time the iterator is asked to go on. done: called when both have been read."""
    word, half, narrow = vector("i32", 4), vector("i16", 8), vector("i8", 8)

    def product(chosen: range) -> str:
        factors = [(narrow, to.pick(v, "i8", 16, chosen)) for v in (a, b)]
        return to.emit(to.intrinsic(half, "aarch64.neon.smull.v8i16", (), factors))
    total = product(range(8))
    to.lines.append(f" {holding(half, (total,), to.target)}")
    yield
    total = to.emit(f"add {half} {total}, {product(range(8, 16))}")
    done()
    to.lines.append(f" {holding(half, (total,), to.target)}")
    yield
    before = to.emit(f"load {word}, ptr {pointer}, align {alignment}")
    added = to.emit(to.intrinsic(word, "aarch64.neon.saddlp.v4i32.v8i16", (), ((half, total),)))
    after = to.emit(f"add {word} {before}, {added}")
    to.lines += [f" {holding(word, (after,), to.target)}", f" store {word} {after}, ptr {pointer}, align {alignment}"]


class Staggered:
    """Products under way, the instructions of each `APART` products from each other."""

    def __init__(self) -> None:
        self._under_way: deque[tuple[Iterator[None], int]] = deque()        # each with the step it goes on in
        self._step = 0

    def begin(self, product: Iterator[None]) -> None:
        """The next instructions of earlier products that are due, and the first of this one."""
        self._advance()
        self._go_on(product)

    def finish(self) -> None:
        """All that is left."""
        while self._under_way:
            self._advance()

    def _advance(self) -> None:
        self._step += 1
        while self._under_way and self._under_way[0][1] == self._step:
            self._go_on(self._under_way.popleft()[0])

    def _go_on(self, product: Iterator[None]) -> None:
        for _ in product:
            self._under_way.append((product, self._step + APART))
            break


def joined(to: Arithmetic, c: str, rows: list[str]) -> str:
    """The operand of c + the lanes of each of four vectors, added up: pairs of neighbours, twice."""
    word = vector("i32", 4)
    while len(rows) > 1:
        rows = [to.emit(to.intrinsic(word, "aarch64.neon.addp.v4i32", (), ((word, x), (word, y))))
                for x, y in zip(rows[::2], rows[1::2], strict=True)]
    return to.emit(f"add {word} {c}, {rows[0]}")


__all__ = ["APART", "FACTORS", "JOIN", "PAIRS", "UNDER_WAY", "Staggered", "accumulate", "group_type", "is_dot", "joined",
           "lanes_of", "paired"]
