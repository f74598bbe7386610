"""Running totals as loops: along a dimension that is not the innermost, one after the other, with lanes side by side.

Work: one addition per element, each read and written once. (Along the innermost dimension lanes would have to wait for each
other: there the stages of `toolchain/kernels/compute/reduce.py` are faster.)
"""

from __future__ import annotations

import math
from collections.abc import Callable

from toolchain import te
from toolchain.core import dtype as dtypes
from toolchain.kernels.op import Op, wide
from toolchain.te.expr import Expr
from toolchain.te.ir_builder import IRBuilder
from toolchain.te.loop_ir import ForKind, PrimFunc
from toolchain.te.tensor import Placeholder, Tensor

LANES = 16                                  # totals of one vector statement
STRIP_BYTES = 128                           # totals that are kept in registers at once: half the registers of SSE
PARALLEL_ELEMENTS = 16 * 1024               # below this, waking another core costs more than it brings

Scan = Callable[[Op, str], PrimFunc | None]


def running(combine: Callable[[Expr, Expr], Expr], neutral: int) -> Scan:
    """CumSum, CumProd; None along a dimension with too little inside it.

        for outer, strip of inner, in parallel:  total[:] = neutral
            for i, forwards or backwards:  total[:] = combine(total[:], x[outer, i, strip]);  y[outer, i, strip] = total[:]

    exclusive: y is written before the total grows.
    """
    def loops(op: Op, name: str) -> PrimFunc | None:
        axis, shape = int(op.constant(1).reshape(-1)[0]) % max(len(op.shape), 1), op.shape
        outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1:])
        if inner < LANES:
            return None
        joined, width = (outer, shape[axis], inner), STRIP_BYTES // dtypes.itemsize(wide(op.dtype))
        x, y = te.placeholder(joined, op.dtype, name="x0"), Tensor("y", joined, op.dtype, Placeholder())
        b, whole = IRBuilder(), inner // width * width
        for strips in ((0, inner // width, width), (whole, 1, (inner - whole) // LANES * LANES),
                       (inner // LANES * LANES, 1, inner % LANES)):
            _strips(op, b, (x, y), strips, (combine, neutral))
        return b.function(name, [x], [y])
    return loops


def _strips(
    op: Op, b: IRBuilder, tensors: tuple[Tensor, Tensor], strips: tuple[int, int, int],
    total_of: tuple[Callable[[Expr, Expr], Expr], int],
) -> None:
    """The totals of `strips`: (where the first one starts, how many there are, their width)."""
    (x, y), (first, count, width), (combine, neutral), kind = tensors, strips, total_of, wide(op.dtype)
    if not count * width:
        return
    outer, n, _ = x.shape
    lanes = LANES if width % LANES == 0 else 1
    parallel = ForKind.PARALLEL if outer * n * count * width >= PARALLEL_ELEMENTS else ForKind.SERIAL
    total = b.buffer("total", (width,), kind, "local")

    def each(body: Callable[[te.Index], None]) -> None:
        with b.loop("vector", width // lanes, ForKind.UNROLLED) as vector:
            if lanes == 1:
                body(te.index(vector))
            else:
                with b.loop("lane", lanes, ForKind.VECTORIZED) as lane:
                    body(te.index(vector) * lanes + lane)
    with b.loop("strip", outer * count, parallel) as strip:
        each(lambda k: b.store(total, (k,), te.const(neutral, kind)))
        with b.loop("i", n) as step:
            i = n - 1 - te.index(step) if op.attr("reverse", 0) else te.index(step)

            def at(k: te.Index) -> tuple[te.Index, ...]:
                return te.index(strip) // count, i, te.index(strip) % count * width + first + k

            def grow(k: te.Index) -> None:
                b.store(total, (k,), combine(total[k], x[at(k)].astype(kind)))

            def show(k: te.Index) -> None:
                b.store(y, at(k), total[k].astype(op.dtype))
            for body in (show, grow) if op.attr("exclusive", 0) else (grow, show):
                each(body)


SCANS: dict[str, Scan] = {"CumProd": running(lambda a, b: a * b, 1), "CumSum": running(lambda a, b: a + b, 0)}
