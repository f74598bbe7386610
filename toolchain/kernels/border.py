"""Padding by what the data hold, as loops: each row's inside is copied in vectors, its borders element by element.

The definition in toolchain/kernels/compute/shape.py finds where each element comes from by arithmetic; where that is no
plain row any more, vectors are gathered. It serves what Pad is fused with, other layouts, and the constant mode (a mask).
"""

from __future__ import annotations

import math

from toolchain import te
from toolchain.kernels.compute.shape import PadBounds, unflatten_index
from toolchain.kernels.op import Op
from toolchain.te.ir_builder import IRBuilder
from toolchain.te.loop_ir import ForKind, PrimFunc
from toolchain.te.tensor import Placeholder, Tensor

VECTOR = 16                                 # elements that are copied together
PARALLEL_ELEMENTS = 16 * 1024               # below this, waking another core costs more than it brings


def pad(op: Op, name: str) -> PrimFunc | None:
    """Pad of the modes reflect, edge and wrap; None: the constant mode, other layouts, nothing to pad.

        for row (all dimensions before the last padded one, d), in parallel:      inner: what lies behind d, contiguous
            y[row, :before] = x[source row, moved inside];  y[row, before:-after] = x[source row, :];  y[row, -after:] = ...
    """
    plain = all(t is None or t.layout.is_row_major for t in (*op.types, *op.input_types))
    bounds = PadBounds.of(op)
    padded = [d for d in range(len(op.shape)) if bounds.before[d] or bounds.after[d]]
    if bounds.mode == "constant" or not plain or not padded:
        return None
    d, source = padded[-1], op.in_shape()
    inner, (rows, places) = math.prod(source[d + 1:]), (op.shape[:d], op.shape[d])
    x = te.placeholder((math.prod(source[:d]), source[d] * inner), op.dtype, name="x0")
    y, b = Tensor("y", (math.prod(rows), places * inner), op.dtype, Placeholder()), IRBuilder()
    parallel = ForKind.PARALLEL if math.prod(op.shape) >= PARALLEL_ELEMENTS else ForKind.SERIAL
    first, end = max(bounds.before[d], 0), places - max(bounds.after[d], 0)
    with b.loop("row", math.prod(rows), parallel) as row:
        come_from = te.index(0)
        for k, i in enumerate(unflatten_index(te.index(row), rows)):
            come_from = come_from * source[k] + bounds.source(k, i)

        def copy(to: te.Index, place: te.Index, n: int) -> None:
            """n neighbours of the row, from the element `place` of its source."""
            whole = n // VECTOR * VECTOR
            if whole:
                with b.loop("block", n // VECTOR) as block, b.loop("lane", VECTOR, ForKind.VECTORIZED) as lane:
                    at = te.index(block) * VECTOR + lane
                    b.store(y, (row, to + at), x[come_from, place + at])
            if whole < n:
                with b.loop("rest", n - whole) as rest:
                    b.store(y, (row, to + whole + rest), x[come_from, place + whole + rest])
        for start, stop in ((0, first), (end, places)):
            if start < stop:
                with b.loop("border", stop - start) as j:
                    copy((te.index(j) + start) * inner, bounds.source(d, te.index(j) + start) * inner, inner)
        copy(te.index(first * inner), te.index((first - bounds.before[d]) * inner), max(end - first, 0) * inner)
    return b.function(name, [x], [y])


BORDERS = {"Pad": pad}
