"""One logical conv2d compute in every layout: blocks, halo and packed weights are Layout data only."""

from __future__ import annotations

import numpy as np
import pytest
from te_workloads import conv2d

import toolchain.te as te
from toolchain.core.errors import ScheduleError
from toolchain.core.layout import Layout

DATA = (("NCHW", None), ("NCHW16c+h1", None), ("NHWC", "NCHW"), ("NCHW8c", None), ("NCHW4c+h2", None))
WEIGHTS = (("OIHW", None), ("OIHW16i16o", None), ("HWIO", "OIHW"), ("OIHW8i8o", None))


@pytest.mark.parametrize(("weights", "weight_axes"), WEIGHTS)
@pytest.mark.parametrize(("data", "axes"), DATA)
def test_same_result_in_every_layout(data, axes, weights, weight_axes):
    work = conv2d(1, 16, 7, 6, 32, 3, 1, 1)
    s = te.create_schedule(work.output)
    layout = Layout.parse(data, axes=axes)
    for tensor in (work.inputs[0], work.output):
        s.set_layout(tensor, layout)
    s.set_layout(work.inputs[1], Layout.parse(weights, axes=weight_axes))
    work.check(s.func)


def register_tile(mr: int, nv: int, vector: int) -> te.Schedule:
    """The register-tile recipe: blocked layouts, a tile of mr pixels x nv vectors, the reduction outside of it."""
    work = conv2d(1, 16, 8, 8, 32, 3, 1, 1)
    s = te.create_schedule(work.output, name="conv")
    n, o, y, x = work.output.op.axis
    g, o = s["R"].split(o, vector * nv)
    nb, lane = s["R"].split(o, vector)
    xo, xi = s["R"].split(x, mr)
    s["R"].reorder(n, g, y, xo, xi, nb, lane)
    s["Y"].set_scope("local")
    s["Y"].compute_at(s["R"], xo)
    s["Y"].set_layout(Layout.parse(f"NHWC{vector}c", axes="NCHW"))
    _, oc, yc, xc = s["Y"].op.axis
    ic, kh, kw = s["Y"].op.reduce_axis
    vectors, lanes = s["Y"].split(oc, vector)
    io, ii = s["Y"].split(ic, 4)
    s["Y"].reorder(io, kh, kw, ii, yc, xc, vectors, lanes)
    for loop in (ii, xc, vectors):
        s["Y"].unroll(loop)
    for loop in (xi, nb):
        s["R"].unroll(loop)
    s["Y"].vectorize(lanes)
    s["R"].vectorize(lane)
    s["R"].parallel(g)
    for tensor in (work.inputs[0], work.output):
        s.set_layout(tensor, Layout.parse(f"NCHW{vector}c+h1"))
    s.set_layout(work.inputs[1], Layout.parse(f"OIHW{vector}i{vector * nv}o"))
    work.check(s.func)
    return s


def test_register_tile(golden):
    golden(te.to_text(register_tile(4, 2, 8).func))


@pytest.mark.parametrize(("mr", "nv", "vector"), [(8, 1, 16), (3, 2, 16), (5, 1, 8)])
def test_other_register_tiles(mr, nv, vector):
    register_tile(mr, nv, vector)


def test_an_access_into_the_halo_is_in_bounds_and_beyond_is_not():
    X = te.placeholder((4, 4, 4), name="X")
    Y = te.compute((4, 4, 4), lambda c, y, x: X[c, y, x - 1], name="Y")
    s = te.create_schedule(Y)
    x = np.ones((4, 4, 4), np.float32)
    with pytest.raises(ScheduleError, match=r"X: index -1 of dimension 2 is outside \[0, 4\)"):
        te.interpret(s.func, {"X": x})
    s.set_layout(X, Layout.parse("CHW+h1"))
    y = te.interpret(s.func, {"X": x})["Y"]
    np.testing.assert_array_equal(y, np.pad(x, ((0, 0), (0, 0), (1, 0)))[:, :, :-1])


def test_a_layout_of_another_rank_is_refused():
    work = conv2d(1, 2, 4, 4, 2, 1, 1, 0)
    s = te.create_schedule(work.output)
    with pytest.raises(ScheduleError, match="set_layout: NC has 2 dimensions, R has 4"):
        s["R"].set_layout(Layout.parse("NC"))
