"""collapse: the same bytes over fewer dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from toolchain import te


def collapsed_text(outputs: Sequence[te.Tensor], inputs: Sequence[te.Tensor]) -> str:
    made, given_ = te.collapse(outputs, inputs)
    return str(te.create_schedule(made, inputs=given_))


def test_elementwise_and_broadcast(golden: Callable[[str], None]) -> None:
    x, b = te.placeholder((1, 64, 56, 56), name="X"), te.placeholder((1, 64, 1, 1), name="B")
    y = te.compute(x.shape, lambda n, c, h, w: x[n, c, h, w] + b[0, c, 0, 0], name="Y")
    golden(collapsed_text([y], [x, b]))


def test_reduction_over_neighbours(golden: Callable[[str], None]) -> None:
    x = te.placeholder((1, 64, 7, 7), name="X")
    r, q = te.reduce_axis(7, "r"), te.reduce_axis(7, "q")
    total = te.compute((1, 64, 1, 1), lambda n, c, h, w: te.sum(x[n, c, r, q], axis=(r, q)), name="total")
    y = te.compute(total.shape, lambda n, c, h, w: total[n, c, h, w] * (1 / 49), name="Y")
    golden(collapsed_text([y], [x]))


def test_transpose(golden: Callable[[str], None]) -> None:
    x = te.placeholder((2, 3, 56, 56), name="X")
    golden(collapsed_text([te.compute((2, 56, 56, 3), lambda n, h, w, c: x[n, c, h, w], name="Y")], [x]))


def test_what_looks_at_an_axis_keeps_it() -> None:
    x = te.placeholder((4, 5, 6), name="X")
    y = te.compute(x.shape, lambda i, j, k: te.select(te.index(j) < 3, x[i, j, k], te.const(0.0)), name="Y")
    (made,), _ = te.collapse([y], [x])
    assert made.shape == (4, 5, 6) and made is y


def test_fixed_tensors_keep_their_dimensions() -> None:
    x = te.placeholder((1, 4, 5), name="X")
    y = te.compute(x.shape, lambda i, j, k: x[i, j, k] + 1.0, name="Y")
    (made,), (given_,) = te.collapse([y], [x], [x])
    assert given_ is x and made.shape == (4, 5)


def test_gathered_rows_join() -> None:
    x, at = te.placeholder((9, 4, 5), name="X"), te.placeholder((2, 3), "int64", name="at")
    y = te.compute((2, 3, 4, 5), lambda a, b, j, k: x[te.index(at[a, b], 0, 8), j, k], name="Y")
    (made,), (rows, places) = te.collapse([y], [x, at])
    assert (made.shape, rows.shape, places.shape) == ((6, 20), (9, 20), (6,))


@st.composite
def programs(draw: st.DrawFn) -> tuple[list[te.Tensor], list[te.Tensor]]:
    """Chains of stages that move, broadcast, reduce and slice tensors of one to four dimensions."""
    shape = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=4)))
    inputs = [te.placeholder(shape, name="X")]
    values = [inputs[0]]
    for n in range(draw(st.integers(1, 4))):
        source = draw(st.sampled_from(values))
        kind = draw(st.sampled_from(("map", "broadcast", "transpose", "reduce", "guard", "slice", "reshape")))
        values.append(_stage(draw, kind, source, inputs, f"S{n}"))
    return [values[-1]], inputs


def _stage(draw: st.DrawFn, kind: str, x: te.Tensor, inputs: list[te.Tensor], name: str) -> te.Tensor:
    rank, shape = len(x.shape), x.shape
    if kind == "broadcast":
        kept = [draw(st.booleans()) for _ in shape]
        other = te.placeholder([n if k else 1 for n, k in zip(shape, kept, strict=True)], name=f"B{len(inputs)}")
        inputs.append(other)
        return te.compute(
            shape, lambda *i: x[i] + other[tuple(v if k else 0 for v, k in zip(i, kept, strict=True))], name=name)
    if kind == "transpose":
        order = draw(st.permutations(range(rank)))
        return te.compute([shape[d] for d in order], lambda *i: x[tuple(i[order.index(d)] for d in range(rank))], name=name)
    if kind == "reduce":
        axes = {d: te.reduce_axis(shape[d], f"r{d}") for d in range(rank) if draw(st.booleans())}

        def value(*i: Any) -> te.Expr:
            loaded = x[tuple(axes.get(d, v) for d, v in enumerate(i))]
            return te.sum(loaded, axis=tuple(axes.values())) if axes else loaded
        return te.compute([1 if d in axes else n for d, n in enumerate(shape)], value, name=name)
    if kind == "guard":
        d, bound = draw(st.integers(0, rank - 1)), draw(st.integers(0, 3))
        return te.compute(shape, lambda *i: te.select(te.index(i[d]) < bound, x[i], te.const(0.0)), name=name)
    if kind == "slice":
        sizes = [draw(st.integers(1, n)) for n in shape]
        first = [draw(st.integers(0, n - m)) for n, m in zip(shape, sizes, strict=True)]
        return te.compute(sizes, lambda *i: x[tuple(v + f for v, f in zip(i, first, strict=True))], name=name)
    if kind == "reshape":
        def place(f: Any) -> list[Any]:
            at = []
            for n in reversed(shape):
                at.append(te.index(f) % n)
                f = te.index(f) // n
            return at[::-1]
        return te.compute((math.prod(shape),), lambda f: x[tuple(place(f))], name=name)
    return te.compute(shape, lambda *i: x[i] * 2.0 + x[i], name=name)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(programs())
def test_the_bytes_stay_the_same(program: tuple[list[te.Tensor], list[te.Tensor]]) -> None:
    outputs, inputs = program
    made, given_ = te.collapse(outputs, inputs)
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(t.shape).astype(np.float32) for t in inputs]
    before = te.interpret(te.create_schedule(outputs, inputs=inputs).func, dict(zip((t.name for t in inputs), arrays)))
    after = te.interpret(te.create_schedule(made, inputs=given_).func,
                         {t.name: a.reshape(t.shape) for t, a in zip(given_, arrays, strict=True)})
    for old, new in zip(outputs, made, strict=True):
        assert math.prod(new.shape) == math.prod(old.shape)
        np.testing.assert_array_equal(before[old.name].reshape(-1), after[new.name].reshape(-1))
