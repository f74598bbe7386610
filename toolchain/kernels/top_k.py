"""TopK as loops: a heap of the k best of each row."""

from __future__ import annotations

import math
from collections.abc import Callable

from toolchain import te
from toolchain.core import dtype as dtypes
from toolchain.kernels.compute.ranking import sort_key
from toolchain.kernels.compute.shape import unflatten_index
from toolchain.kernels.op import Op
from toolchain.te.expr import Bin, Expr
from toolchain.te.ir_builder import IRBuilder, Variable
from toolchain.te.loop_ir import ForKind, PrimFunc
from toolchain.te.tensor import Placeholder, Tensor

HALF = 32                                   # bits of a key, and of a position
CHILDREN = 4                                # of a place in the heap
PARALLEL_ELEMENTS = 4 * 1024                # some operations each: below this, waking another core costs more than it brings


def top_k(op: Op, name: str) -> PrimFunc | None:
    """The k first of each row in order, the lower position first among equals. None: keys of 64 bits, which leave no room.

        for row, in parallel:   heap[:k] = code(x[:k]), put in order          the smallest of the best lies on top
            for i = k, ...: if code(x[i]) > heap[0]: heap[0] = code(x[i]), sunk to its place
            for t = k-1, ..., 0: found[t] = heap[0];  heap[0] = highest, sunk

    A code is one int64: the key (toolchain/kernels/compute/ranking.py), then the position from the end. Work: a comparison
    per element, and log4(k) steps for each that is among the best so far.
    """
    axis, source, largest = op.axis("axis", -1), op.in_shape(), bool(op.attr("largest", 1))
    n, k = source[axis], op.types[0].shape[axis]
    made = [Tensor(f"y{i}", t.shape, t.dtype, Placeholder()) for i, t in enumerate(op.types)]
    if dtypes.bits(sort_key(op.x[(0,) * len(source)], largest).dtype) > HALF or not k:
        return None
    rows = (*source[:axis], *source[axis + 1:])
    b = IRBuilder()
    parallel = ForKind.PARALLEL if math.prod(source) >= PARALLEL_ELEMENTS and math.prod(rows) > 1 else ForKind.SERIAL
    with b.loop("row", math.prod(rows), parallel) as row:
        at = unflatten_index(te.index(row), rows)

        def moved(i: te.Index) -> tuple[te.Index, ...]:
            return (*at[:axis], i, *at[axis:])

        def code(i: te.Index) -> Expr:
            key = sort_key(op.x[moved(i)], largest).astype("int64")
            return Bin("<<", key, _int64(HALF)) + (n - 1 - i).astype("int64")
        heap = _Heap(b, k, code)
        if n > k:
            with b.loop("i", n - k) as i:
                heap.offer(code(te.index(i) + k))
        with b.loop("t", k) as t:
            here = moved(k - 1 - te.index(t))
            position = _int64(n - 1) - Bin("and", heap.top, _int64((1 << HALF) - 1))
            for tensor, output in zip(made, [o for o in op.node.outputs if o], strict=True):
                value = op.x[moved(te.index(position, 0, n - 1))] if output == op.node.outputs[0] else position
                b.store(tensor, here, value)
            heap.replace(_int64(dtypes.highest("int64")))
    return b.function(name, [op.x], made)


def _int64(value: int) -> Expr:
    return te.const(value, "int64")


class _Heap:
    """A heap of k codes, the smallest on top, with four children to a place: the least of them is found while a binary heap
    would wait for one of two, and the way down is half as long. Filled up to whole levels with what is larger than all."""

    def __init__(self, b: IRBuilder, k: int, first: Callable[[te.Index], Expr]) -> None:
        self.b, self.levels, self.inner, self.size = b, 1, 0, 1
        while self.size < k:
            self.levels, self.inner, self.size = self.levels + 1, self.size, CHILDREN * self.size + 1
        self.codes = b.buffer("heap", (self.size,), "int64", "lane")
        self.code, self.hole, self.child, self.least, self.sinking = (
            b.variable(name, "int64") for name in ("code", "hole", "child", "least", "sinking"))
        with b.loop("h", k) as h:
            b.store(self.codes, (h,), first(te.index(h)))
        if k < self.size:
            with b.loop("h", self.size - k) as h:
                b.store(self.codes, (te.index(h) + k,), _int64(dtypes.highest("int64")))
        if parents := -(-(k - 1) // CHILDREN):
            with b.loop("h", parents) as h:
                place = parents - 1 - te.index(h)
                b.set(self.code, self.codes[place])
                self._sink(place)

    @property
    def top(self) -> Expr:
        return self.codes[0]

    def offer(self, code: Expr) -> None:
        """Take `code` for the smallest, if it is larger."""
        self.b.set(self.code, code)
        with self.b.when(self.code.value > self.top):
            self._sink()

    def replace(self, code: Expr) -> None:
        self.b.set(self.code, code)
        self._sink()

    def _sink(self, place: te.Index | None = None) -> None:
        """The least child of the hole (at `place`, or on top) moves up until `code` is smaller than all."""
        b, code, hole, least = self.b, self.code, self.hole, self.least
        b.set(hole, 0 if place is None else place.astype("int64"))
        b.set(self.sinking, 1)
        if self.inner:
            with b.loop("level", self.levels - 1), b.when(self.sinking.value.equal(_int64(1))):
                self._find_least()
                b.set(self.sinking, te.select(least.value < code.value, _int64(1), _int64(0)))
                with b.when(self.sinking.value.equal(_int64(1))):
                    b.store(self.codes, (self._place(hole),), least.value)
                    b.set(hole, self.child.value)
                    if place is not None:                       # it may have begun at any level
                        b.set(self.sinking, te.select(hole.value < _int64(self.inner), _int64(1), _int64(0)))
        b.store(self.codes, (self._place(hole),), code.value)

    def _find_least(self) -> None:
        """The least child of the hole, and where it is."""
        first = self.hole.value * CHILDREN + 1
        found = [(self.codes[te.index(first + n, 0, self.size - 1)], _int64(n)) for n in range(CHILDREN)]
        while len(found) > 1:
            found = [(te.minimum(a, b), te.select(b < a, m, n)) for (a, n), (b, m) in zip(found[::2], found[1::2])]
        ((value, number),) = found
        self.b.set(self.least, value)
        self.b.set(self.child, first + number)

    def _place(self, variable: Variable) -> te.Index:
        return te.index(variable.value, 0, self.size - 1)


RANKED = {"TopK": top_k}
