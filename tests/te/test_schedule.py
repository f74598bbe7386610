from __future__ import annotations

import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from te_workloads import Workload, chain, conv2d, matmul, relu, row_statistics

import toolchain.te as te
from toolchain.core.errors import CodegenError, ScheduleError
from toolchain.core.layout import Layout
from toolchain.core.target import Target
from toolchain.te.loop_ir import For, loops
from toolchain.te.lower import lower


def scheduled() -> te.Schedule:
    work = conv2d(1, 4, 6, 6, 8, 3, 1, 1)
    s = te.create_schedule(work.output)
    n, o, y, x = work.output.op.axis
    s["R"].reorder(n, y, o, x)
    s["Y"].set_scope("local")
    s["Y"].compute_at(s["R"], o)
    s["Y"].split(s["Y"].op.reduce_axis[0], 2)
    s["R"].parallel(y)
    s.set_layout(work.inputs[0], Layout.parse("NCHW4c+h1"))
    s.cache_read(work.inputs[1], "local", s["Y"].tensor)
    return s


def test_replays_from_json():
    s = scheduled()
    steps = te.steps_from_json(json.loads(json.dumps(te.steps_to_json(s.steps))))
    again = te.replay(te.create_schedule(conv2d(1, 4, 6, 6, 8, 3, 1, 1).output).func, steps)
    assert te.to_text(again.func) == te.to_text(s.func)
    assert te.steps_to_json(again.steps) == te.steps_to_json(s.steps)


def test_an_unknown_step_is_refused():
    with pytest.raises(ScheduleError, match="no primitive 'explode'"):
        te.replay(te.create_schedule(relu(4).output).func, [te.Step("explode", ())])


def test_steps_print():
    s = te.create_schedule(relu(8).output)
    s["Y"].split("i", 4)
    assert list(map(str, s.steps)) == ["split(i, 4)"]


def test_several_outputs_share_a_function(golden):
    X = te.placeholder((4,), name="X")
    P = te.compute((4,), lambda i: X[i] + 1.0, name="P")
    Q = te.compute((4,), lambda i: P[i] * 2.0, name="Q")
    s = te.create_schedule([Q, P], name="both")
    golden(te.to_text(s.func))
    out = te.interpret(s.func, {"X": np.arange(4, dtype=np.float32)})
    np.testing.assert_array_equal(out["P"], [1, 2, 3, 4])
    np.testing.assert_array_equal(out["Q"], [2, 4, 6, 8])


def test_inputs_give_the_order_and_cut_the_graph():
    X, W = te.placeholder((4,), name="X"), te.placeholder((4,), name="W")
    P = te.compute((4,), lambda i: X[i] + 1.0, name="P")
    Q = te.compute((4,), lambda i: P[i] * W[i], name="Q")
    assert [t.name for t in te.create_schedule(Q, inputs=[W, X]).func.params] == ["W", "X", "Q"]
    cut = te.create_schedule(Q, inputs=[P, W]).func
    assert [t.name for t in cut.params] == ["P", "W", "Q"]
    with pytest.raises(ScheduleError, match="main also reads W"):
        te.create_schedule(Q, inputs=[X])
    with pytest.raises(ScheduleError, match="X is not computed"):
        te.create_schedule(X)


def test_two_tensors_of_one_name_are_refused():
    X = te.placeholder((4,), name="T")
    Y = te.compute((4,), lambda i: X[i], name="T")
    with pytest.raises(ScheduleError, match="two tensors of main are named 'T'"):
        te.create_schedule(Y)


def test_the_users_own_axes_stay_valid_when_renamed():
    work = row_statistics(4, 6)
    s = te.create_schedule(work.output)
    k2 = s["S"].tensor.op.reduce_axis[0]                    # named k in the definition, renamed k_1 in the function
    assert k2.name == "k"
    outer, _ = s["S"].split(k2, 2)
    assert outer.name == "k_1_0"
    work.check(s.func)


def test_a_reduce_axis_used_by_two_stages():
    X = te.placeholder((3, 4), name="X")
    k = te.reduce_axis(4, "k")
    P = te.compute((3,), lambda i: te.sum(X[i, k], axis=k), name="P")
    Q = te.compute((3,), lambda i: te.sum(X[i, k] * P[i], axis=k), name="Q")
    s = te.create_schedule(Q)
    s[P].split(k, 2)
    s[Q].split(k, 2)
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(te.interpret(s.func, {"X": x})["Q"], x.sum(1) ** 2)


STEPS = (
    "split", "split", "fuse", "reorder", "vectorize", "unroll", "parallel", "partition", "compute_at", "compute_at",
    "cache_write", "cache_read", "rfactor", "compute_inline", "prefetch", "decompose_reduction",
    "cache_window", "compute_with", "reuse_buffer",
)
AVX2 = Target("avx2", "x86", features=("+avx2", "+fma"), vector_bits=256)


@pytest.fixture(autouse=True, scope="module")
def _recursion_limit():
    """lower() may raise Python's recursion limit; Hypothesis warns when that happens during a test."""
    lower(te.create_schedule(relu(1).output).func, AVX2)


def random_workload(data: st.DataObject) -> Workload:
    def n(high: int) -> int:
        return data.draw(st.integers(1, high))

    match data.draw(st.sampled_from(["matmul", "conv2d", "rows", "chain"])):
        case "matmul":
            return matmul(n(7), n(7), n(7))
        case "conv2d":
            return conv2d(1, n(3), 2 + n(3), 2 + n(3), n(4), n(3), n(2), n(2) - 1)
        case "rows":
            return row_statistics(n(6), n(8))
    return chain(n(6), n(8))


def random_step(data: st.DataObject, func: te.PrimFunc) -> tuple:
    """A primitive with arguments that name things there are; many are refused."""
    nest = list(loops(func.body))
    loop = data.draw(st.sampled_from(nest))
    tensor = data.draw(st.sampled_from([t.name for t in func.buffers]))
    name = data.draw(st.sampled_from(STEPS))
    match name:
        case "split":
            return name, loop.var.name, data.draw(st.integers(1, loop.extent + 2))
        case "fuse":
            return name, loop.var.name, loop.body.var.name if isinstance(loop.body, For) else "none"
        case "reorder":
            return name, *data.draw(st.permutations([s.var.name for s in nest]))[:3]
        case "compute_at" | "rfactor":
            return name, tensor, loop.var.name
        case "cache_write" | "cache_read":
            return name, tensor, "local"
        case "compute_inline" | "decompose_reduction":
            return name, tensor
        case "cache_window":
            return name, tensor, loop.var.name, "local"
        case "prefetch":
            return name, tensor, loop.var.name, 1
        case "compute_with":
            return name, loop.var.name, data.draw(st.sampled_from(nest)).var.name
        case "reuse_buffer":
            return name, tensor, data.draw(st.sampled_from([t.name for t in func.outputs]))
    return name, loop.var.name


@given(st.data())
@settings(max_examples=150)
def test_random_schedules_keep_the_result(data):
    """Any sequence of primitives that is accepted computes the same, lowered too, and replays to the same text."""
    work = random_workload(data)
    first = te.create_schedule(work.output).func
    s = te.Schedule(first)
    for _ in range(data.draw(st.integers(1, 8))):
        with suppress(ScheduleError):
            s.apply(*random_step(data, s.func))
    work.check(s.func)
    assert te.to_text(te.replay(first, s.steps).func) == te.to_text(s.func)
    try:
        lowered = lower(s.func, AVX2)
    except CodegenError:            # nested vectors and the like: refused, never wrong
        return
    work.check(lowered)


def test_pieces_that_interleave_start_one_by_one():
    """Even rows, then odd rows: the range of the second lies inside that of the first, its places do not."""
    work = matmul(7, 3, 5)
    s = te.create_schedule(work.output)
    _, i = s["C"].split("i", 2)
    s["C"].reorder("j", "i_0", "k")
    s["C"].partition(i)
    work.check(s.func)
    work.check(lower(s.func, AVX2))


def test_pieces_inside_of_strided_pieces_only_accumulate():
    """Chunks of a reduction over the same even rows."""
    work = matmul(8, 3, 6)
    s = te.create_schedule(work.output)
    ko, ki = s["C"].split("k", 4)
    s["C"].reorder(ko, "i", "j", ki)
    s["C"].partition(ko)
    s["C"].partition("i")
    work.check(lower(s.func, AVX2))


def test_a_guarded_piece_starts_no_more_than_it_stores():
    """The middle piece is padded to six and guarded: the last one is not inside of it."""
    X = te.placeholder((7,), name="X")
    a = te.reduce_axis(3, "a")
    Y = te.compute((7,), lambda i: te.max(
        te.select(te.all(i + a >= 1, i + a < 8), X[i + a - 1], -100.0), axis=a), name="Y")
    s = te.create_schedule(Y)
    _, middle, _ = s[Y].partition("i")
    s[Y].split(middle, 6)
    x = np.arange(7, dtype=np.float32) % 3
    want = np.maximum(np.maximum(x, np.append(x[1:], -100)), np.append(-100, x[:-1]))
    for func in (s.func, lower(s.func, AVX2)):
        np.testing.assert_array_equal(te.interpret(func, {"X": x})["Y"], want)
