from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from te_workloads import Workload, chain, conv2d, matmul, row_statistics

import toolchain.te as te
from toolchain.core.errors import ScheduleError
from toolchain.te.expr import Bin
from toolchain.te.lower.shared import nodes

small = st.integers(1, 9)


def stage(work: Workload, s: te.Schedule, name: str) -> te.Tensor:
    return s[name].tensor


def test_inlining_shares_what_is_read_twice():
    """Thirty stages that each read the one before twice are thirty products, not 2**30."""
    x = te.placeholder((8,), name="X")
    v = x
    for n in range(30):
        v = te.compute((8,), lambda i, v=v: v[i] * v[i], name=f"V{n}")
    s = te.create_schedule(v)
    for n in range(29):
        s[f"V{n}"].compute_inline()
    assert sum(isinstance(n, Bin) for n in nodes(s.func.body)) == 30


def test_recomputes_the_halo_of_a_window(golden):
    work = chain(4, 10)
    s = te.create_schedule(work.output)
    s["Q"].compute_inline()
    _, _ = s["D"].split("j_2", 4)
    s["P"].compute_at(s["D"], "j_2_0")
    golden(te.to_text(s.func))
    work.check(s.func)


@given(n=small, m=small, factor=small, at=st.integers(0, 2), inner_first=st.booleans())
@settings(max_examples=60)
def test_chain_at_any_loop(n, m, factor, at, inner_first):
    work = chain(n, m)
    s = te.create_schedule(work.output)
    jo, ji = s["D"].split("j_2", min(factor, m))
    loops = ["i_2", jo, ji]
    s["P"].compute_at(s["D"], loops[at])
    s["Q"].compute_at(s["P"], s["P"].op.axis[0]) if inner_first else s["Q"].compute_at(s["D"], loops[at])
    work.check(s.func)


@given(n=small, m=small, factor=small, inner=st.booleans())
@settings(max_examples=60)
def test_row_statistics_at_the_row(n, m, factor, inner):
    work = row_statistics(n, m)
    s = te.create_schedule(work.output)
    io, ii = s["D"].split(work.output.op.axis[0], min(factor, n))
    for name in ("S", "E", "M"):
        s[name].compute_at(s["D"], ii if inner else io)
        s[name].set_scope("lane")
    work.check(s.func)


def test_four_stages_in_a_row_loop(golden):
    work = row_statistics(6, 10)
    s = te.create_schedule(work.output)
    for name in ("S", "E", "M"):
        s[name].compute_at(s["D"], work.output.op.axis[0])
    golden(te.to_text(s.func))
    work.check(s.func)


@given(y=st.integers(1, 6), x=st.integers(1, 6), o=st.integers(1, 5), stride=st.integers(1, 2), pad=st.integers(0, 2))
@settings(max_examples=40)
def test_register_tile_of_a_convolution(y, x, o, stride, pad):
    work = conv2d(2, 3, 7, 6, 5, 3, stride, pad)
    s = te.create_schedule(work.output)
    n, oc, oy, ox = work.output.op.axis
    oo, oi = s["R"].split(oc, o)
    yo, yi = s["R"].split(oy, min(y, oy.extent))
    xo, xi = s["R"].split(ox, min(x, ox.extent))
    s["R"].reorder(n, oo, yo, xo, yi, xi, oi)
    s["Y"].set_scope("local")
    s["Y"].compute_at(s["R"], xo)
    _, oc, oy, ox = s["Y"].op.axis
    s["Y"].reorder(*s["Y"].op.reduce_axis, oy, ox, oc)
    s["Y"].vectorize(oc)
    s["R"].vectorize(oi)
    work.check(s.func)


@given(factor=st.integers(1, 49), inner=st.booleans())
@settings(max_examples=40)
def test_fused_rows_and_columns(factor, inner):
    """Flattened 7x7: the box of a fused tile covers whole rows where the tile crosses one."""
    work = conv2d(1, 2, 7, 7, 3, 3, 1, 1)
    s = te.create_schedule(work.output)
    _, _, y, x = work.output.op.axis
    p = s["R"].fuse(y, x)
    po, pi = s["R"].split(p, factor)
    s["Y"].compute_at(s["R"], pi if inner else po)
    work.check(s.func)


def test_a_fused_tile_reads_at_most_the_rows_it_touches():
    work = conv2d(1, 2, 7, 7, 3, 1, 1, 0)
    s = te.create_schedule(work.output)
    _, _, y, x = work.output.op.axis
    po, _ = s["R"].split(s["R"].fuse(y, x), 13)
    s["Y"].compute_at(s["R"], po)
    assert [v.extent for v in s["Y"].op.axis] == [1, 1, 3, 7]       # 13 positions touch up to three rows of seven


@given(n=st.integers(2, 12), k=st.integers(1, 4), data=st.data())
@settings(max_examples=60)
def test_division_and_modulo_in_the_read(n, k, data):
    """Upsampling by k reads P[i // k]; a gather of columns reads P[i % n]."""
    X = te.placeholder((n,), name="X")
    P = te.compute((n,), lambda i: X[i] + 1.0, name="P")
    D = te.compute((n * k,), lambda i: P[i // k] + P[i % n], name="D")
    work = Workload(D, (X,), lambda x: (x + 1).repeat(k) + [float(v) for v in list(x + 1) * k])
    s = te.create_schedule(D)
    io, ii = s[D].split(D.op.axis[0], data.draw(st.integers(1, n * k)))
    try:
        s[P].compute_at(s[D], data.draw(st.sampled_from([io, ii])))
    except ScheduleError as e:
        assert "without a constant distance" in str(e)              # i//k and i%n drift apart
        return
    work.check(s.func)


def test_two_readers_share_one_box():
    X = te.placeholder((20,), name="X")
    P = te.compute((20,), lambda i: X[i] * 2.0, name="P")
    E = te.compute((16,), lambda i: P[i + 1] + P[i], name="E")
    D = te.compute((16,), lambda i: E[i] + P[i + 4], name="D")
    work = Workload(D, (X,), lambda x: 2 * (x[1:17] + x[:16] + x[4:20]))
    s = te.create_schedule(D)
    io, _ = s[D].split(D.op.axis[0], 4)
    s[E].compute_at(s[D], io)
    s[P].compute_at(s[D], io)
    assert s[P].op.axis[0].extent == 8                              # 4 + the reach of the furthest reader
    work.check(s.func)


def test_a_guarded_read_outside_the_domain():
    X = te.placeholder((6,), name="X")
    P = te.compute((6,), lambda i: X[i] + 1.0, name="P")
    D = te.compute((8,), lambda i: te.select(te.all(i >= 1, i < 7), P[i - 1], 0.0), name="D")
    s = te.create_schedule(D)
    io, _ = s[D].split(D.op.axis[0], 3)
    s[P].compute_at(s[D], io)
    Workload(D, (X,), lambda x: [0, *(x + 1), 0]).check(s.func)


def test_scope_decides_which_loops_vary():
    for scope, extent in (("local", 1), ("shared", 8), ("global", 32)):
        X = te.placeholder((32,), name="X")
        P = te.compute((32,), lambda i, X=X: X[i] + 1.0, name="P")
        D = te.compute((32,), lambda i, P=P: P[i] * 2.0, name="D")
        s = te.create_schedule(D)
        bx, tx = s[D].split(D.op.axis[0], 8)
        s[D].bind(bx, "blockIdx.x")
        s[D].bind(tx, "threadIdx.x")
        s[P].set_scope(scope)
        s[P].compute_at(s[D], tx)
        assert s[P].op.axis[0].extent == extent, scope


def test_refusals():
    work = chain(4, 8)
    s = te.create_schedule(work.output)
    with pytest.raises(ScheduleError, match="compute_at: loop 'j_2' does not read Q"):
        s["Q"].compute_at(s["D"], "j_2")
    with pytest.raises(ScheduleError, match="compute_at: D is an output of main"):
        s["D"].compute_at(s["P"], "i_1")
    s["P"].split("j_1", 2)
    with pytest.raises(ScheduleError, match="compute_at: P already has steps or was moved"):
        s["P"].compute_at(s["D"], "j_2")
    with pytest.raises(ScheduleError, match="compute_at: X is an input, not a stage"):
        s["X"].compute_at(s["D"], "j_2")


def test_boxes_that_drift_apart_are_refused():
    X = te.placeholder((16,), name="X")
    P = te.compute((16,), lambda i: X[i] + 1.0, name="P")
    D = te.compute((16,), lambda i: P[i] + P[15 - i], name="D")
    s = te.create_schedule(D)
    io, _ = s[D].split(D.op.axis[0], 2)
    with pytest.raises(ScheduleError, match="need parts of dimension 0 without a constant distance"):
        s[P].compute_at(s[D], io)


@given(m=small, n=small, k=small, at=st.sampled_from(["i", "j"]))
@settings(max_examples=40)
def test_cache_write_and_read(m, n, k, at):
    work = matmul(m, n, k)
    s = te.create_schedule(work.output)
    C = work.output
    CC = s.cache_write(C, "local")
    AA = s.cache_read(work.inputs[0], "local", CC)
    s[CC].compute_at(s[C], at)
    s[AA].compute_at(s[CC], s[CC].op.axis[0])
    work.check(s.func)


def test_cache_read_of_one_reader(golden):
    work = chain(2, 4)
    s = te.create_schedule(work.output)
    s.cache_read(work.inputs[0], "shared")
    golden(te.to_text(s.func))
    work.check(s.func)
    with pytest.raises(ScheduleError, match="cache_read: D does not read X"):
        s.cache_read(work.inputs[0], "shared", work.output)


def test_inline_a_chain(golden):
    work = chain(3, 5)
    s = te.create_schedule(work.output)
    s["Q"].compute_inline()
    s["P"].compute_inline()
    golden(te.to_text(s.func))
    work.check(s.func)


def test_inline_refuses():
    work = conv2d(1, 2, 4, 4, 2, 1, 1, 0)
    s = te.create_schedule(work.output)
    with pytest.raises(ScheduleError, match="compute_inline: Y is a reduction"):
        s["Y"].compute_inline()
    with pytest.raises(ScheduleError, match="compute_inline: R is an output of main"):
        s["R"].compute_inline()


def test_refuses_a_vectorized_loop():
    work = matmul(2, 1, 2)
    s = te.create_schedule(work.output)
    local = s.cache_write(work.output, "local")
    s[work.output].vectorize("i")
    for loop in ("i", "j"):
        with pytest.raises(ScheduleError, match="compute_at: 'i' is vectorized, C_local would be computed inside"):
            s[local].compute_at(s[work.output], loop)


def test_refuses_what_a_reduction_starts_from_inside_of_its_loop():
    """The start value is needed before the first iteration of the reduction."""
    work = conv2d(1, 2, 4, 4, 2, 3, 1, 0)
    s = te.create_schedule(work.output)
    copy = s.cache_read(s["B"].tensor, "local", s["Y"].tensor)
    for loop in ("ic", "kh", "kw"):
        with pytest.raises(ScheduleError, match="compute_at: Y starts from B_local, before its reduction loop 'ic'"):
            s[copy].compute_at(s["Y"], loop)
    s[copy].compute_at(s["Y"], "x")
    work.check(s.func)
