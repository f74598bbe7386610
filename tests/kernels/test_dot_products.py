"""Dot products of small integers: the kernels on every kind of instruction, their text, their machine code."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import BOARD, HOST, RUNNABLE, compiled, expected, one_node, with_types

from toolchain import te
from toolchain.core.errors import CodegenError, ScheduleError
from toolchain.core.layout import TensorType
from toolchain.core.target import Target
from toolchain.graph.infer import infer
from toolchain.graph.ir import Graph, Node, array_type
from toolchain.graph.passes import Form
from toolchain.kernels.build import schedule
from toolchain.kernels.instructions import (
    BYTES,
    PAIRED_BYTES,
    SIGNED_BYTES,
    SINGLE_WORDS,
    WORDS,
    Dot,
    bytes_and_words,
    dot,
)
from toolchain.kernels.integer_forms import panel_vectors
from toolchain.kernels.layouts import layout_options
from toolchain.kernels.sketches.select import sketch
from toolchain.targets.base import compile_kernel
from toolchain.targets.features import with_features
from toolchain.targets.llvm.backend import LLVM
from toolchain.targets.llvm.load import aligned, load
from toolchain.targets.llvm.object import assembly, innermost_loops, spills
from toolchain.targets.presets import PRESETS
from toolchain.tasks.optimize import prepare_graph
from toolchain.te.lower import lower
from toolchain.te.tune.choices import Choices

WITH_VNNI = with_features(PRESETS["x86-64-v4"], ["+avx512vnni"])
AVX_VNNI = with_features(PRESETS["x86-64-v3"], ["+avxvnni"])
HERE = [t for t in (*RUNNABLE, HOST, WITH_VNNI) if set(t.features) <= set(HOST.features)]
DOTPROD = replace(with_features(PRESETS["armv8-a"], ["+dotprod"]), name="dotprod")
TARGETS = [*HERE, BOARD, DOTPROD]


def draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    limits = np.iinfo(dtype) if dtype != "int16" else None
    low, high = (-255, 255) if limits is None else (limits.min, limits.max)
    return rng.integers(low, high + 1, shape).astype(dtype)


def packed(graph: Graph, target: Target) -> Graph:
    """The one node with its operands in the layouts it asks for."""
    (node,) = graph.nodes
    (option, *_) = layout_options(target)(node, graph)
    types = {name: graph.types[name].with_layout(layout)
             for name, layout in zip((*node.inputs, *node.outputs), (*option.inputs, *option.outputs)) if layout is not None}
    return with_types(graph, types)


def kinds(target: Target) -> list[Dot]:
    return [kind for kind in bytes_and_words(target, pairs=True) if kind is not None]


def weights(rng: np.random.Generator, shape: tuple[int, ...], kind: Dot) -> np.ndarray:
    """Where products are added in pairs: as far from zero as they may be, but for a few; in every column one -128."""
    drawn = draw(rng, shape, kind.right)
    if kind.pairs:
        drawn = np.where(rng.random(shape) < 0.7, np.where(drawn < 0, -127, 127), np.maximum(drawn, -127)).astype("int8")
        drawn.reshape(-1, math.prod(shape[1:]) if len(shape) == 4 else shape[-1])[:, 0] = -128
    return drawn


def activations(rng: np.random.Generator, shape: tuple[int, ...], kind: Dot) -> np.ndarray:
    drawn = draw(rng, shape, kind.left)
    return np.where(rng.random(shape) < 0.7, np.where(drawn < 0, -128, 127), drawn).astype("int8") if kind.pairs else drawn


def said(kind: Dot) -> dict[str, bool]:
    return {"pairs": True} if kind.pairs else {}


def product(target: Target, kind: Dot, m: int, n: int, k: int, batch: tuple[int, ...] = (), start: bool = True):
    rng = np.random.default_rng(0)
    panel = panel_vectors(1, m, n, kind, target) * target.lanes(32)
    rows, depth = -(-n // panel) * panel, -(-k // kind.group) * kind.group
    x, w = activations(rng, (*batch, m, depth), kind), weights(rng, (*batch, rows, depth), kind)
    first = draw(rng, (*batch, rows), "int32") if start else None
    graph, arrays = one_node("IntegerMatMul", [x, w, first], {"columns": n, "panel": panel, **said(kind)})
    return packed(graph, target), arrays


def convolution(
    target: Target, kind: Dot, channels: int, outputs: int, size: tuple[int, int], kernel: int = 3, **attrs: Any,
):
    rng = np.random.default_rng(0)
    lanes = target.lanes(32)
    form = Form(kind.left, kind.right, kind.group, lanes, panel_vectors(*size, outputs, kind, target) * lanes)
    block = form.block(channels)
    channels, rows = -(-channels // block) * block, -(-outputs // form.panel) * form.panel
    x, w = activations(rng, (1, channels, *size), kind), weights(rng, (rows, channels, kernel, kernel), kind)
    graph, arrays = one_node("IntegerConv", [x, w, draw(rng, (rows,), "int32")],
                             {"columns": outputs, "panel": form.panel, **said(kind), **attrs})
    return packed(graph, target), arrays


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@settings(max_examples=12)
@given(data=st.data(), m=st.integers(1, 40), n=st.integers(2, 90), k=st.integers(1, 70), start=st.booleans(),
       batch=st.sampled_from(((), (3,))))
def test_products_are_exact(target, data, m, n, k, start, batch):
    kind = data.draw(st.sampled_from(kinds(target)))
    graph, arrays = product(target, kind, m, n, k, batch, start)
    (made,) = compiled(graph, arrays, target, (sketch,))
    np.testing.assert_array_equal(made, expected(graph, arrays)[0])


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@settings(max_examples=8)
@given(data=st.data(), channels=st.integers(1, 40), outputs=st.integers(2, 70), height=st.integers(5, 12),
       width=st.integers(5, 20), stride=st.integers(1, 2), dilation=st.integers(1, 2))
def test_convolutions_are_exact(target, data, channels, outputs, height, width, stride, dilation):
    kind = data.draw(st.sampled_from(kinds(target)))
    graph, arrays = convolution(target, kind, channels, outputs, (height, width), strides=(stride, 1),
                                dilations=(1, dilation))
    (made,) = compiled(graph, arrays, target, (sketch,))
    np.testing.assert_array_equal(made, expected(graph, arrays)[0])


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@settings(max_examples=6)
@given(channels=st.integers(12, 40), size=st.tuples(st.integers(3, 9), st.integers(3, 20)), stride=st.integers(1, 2),
       kind=st.sampled_from(("uint8", "int8")))
def test_depthwise_convolutions_are_exact(target, channels, size, stride, kind):
    """Sums of the largest products there are: in float32 on the way, int32 at the end."""
    rng = np.random.default_rng(0)
    x = draw(rng, (1, channels, *size), kind)
    w = rng.choice((-255, -254, 255), (channels, 1, 3, 3)).astype(np.float32)
    graph, arrays = one_node("IntegerConv", [x, w, draw(rng, (channels,), "int32")], {
        "columns": channels, "group": channels, "strides": (stride, 1), "dilations": (1, 1)})
    graph = packed(graph, target)
    (made,) = compiled(graph, arrays, target, (sketch,))
    np.testing.assert_array_equal(made, expected(graph, arrays)[0])


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_sums_wrap_and_never_saturate(target):
    """70,000 times 255 * -128 leaves int32; in pairs of bytes it would leave int16, too."""
    for kind in kinds(target):
        depth, largest = (140_000, -128) if kind.left == "int8" else (70_000, 255)
        graph, arrays = product(target, kind, 1, 16, depth)
        lowest = -127 if kind.pairs else -128
        values = dict(zip(arrays, (largest, lowest, 3), strict=True))
        arrays = {name: np.full_like(a, values[name]) for name, a in arrays.items()}
        (made,) = compiled(graph, arrays, target, (sketch,))
        depth = arrays["v0"].shape[-1]
        assert set(made.reshape(-1)) == {np.asarray(depth * largest * lowest + 3).astype("int32").item()}


@pytest.mark.parametrize("kind,target", [(BYTES, WITH_VNNI), (WORDS, PRESETS["x86-64-v3"]), (PAIRED_BYTES, BOARD)],
                         ids=lambda x: x.name)
def test_the_schedule(golden, kind, target):
    """A small product, tensorized and lowered; the interpreter runs both."""
    graph, arrays = product(target, kind, 10, 16, 8)
    func = schedule(graph, target, sketch).func
    lowered = lower(func, target)
    golden(te.to_text(func), "scheduled")
    golden(te.to_text(lowered), "lowered")
    given_ = {f"x{n}": arrays[name] for n, name in enumerate(graph.inputs)}
    for form in (func, lowered):
        (made,) = te.interpret(form, given_).values()
        np.testing.assert_array_equal(made, expected(graph, arrays)[0])


@pytest.mark.parametrize("kind,target,place", [
    (BYTES, WITH_VNNI, "16*k_0_0 + 4*ax1 + 256"), (PAIRED_BYTES, BOARD, "64*k_0_0 + 16*ax1 + 256"),
], ids=lambda x: getattr(x, "name", ""))
def test_all_that_a_step_reads_is_prefetched(kind, target, place):
    """Where a search asks for it: each group of a step, at the same place of the next panel."""
    graph, _ = product(target, kind, 16, 64, 256)
    text = te.to_text(schedule(graph, target, sketch, Choices({"prefetch": "True"})).func)
    assert f"{place}], int32(2))" in text


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
@pytest.mark.parametrize("columns", [17, 18, 33])
def test_the_last_lanes_of_a_row_of_bytes_store_nothing_more(target, columns):
    """LLVM 22 makes four bytes of a masked store of one narrowed lane: behind the last row somebody else's would change."""
    x = te.placeholder((5, columns), name="x")
    out = te.compute((5, columns), lambda i, j: te.round(x[i, j]).astype("int32").astype("uint8"), name="out")
    s = te.create_schedule(out)
    jo, ji = s[out].split(out.op.axis[1], factor=target.lanes(32))
    s[out].unroll(jo)
    s[out].vectorize(ji)
    kernel = load(compile_kernel(s.func, target))
    values = aligned(5 * columns, np.dtype("float32"))
    values[:] = np.arange(5 * columns)
    made = aligned(5 * columns + 64, np.dtype("uint8"))
    made[:] = 0xAA
    kernel(values, made)
    np.testing.assert_array_equal(made[:5 * columns], np.arange(5 * columns))
    assert set(made[5 * columns:]) == {0xAA}


def code(graph: Graph, target: Target) -> str:
    lowered = lower(schedule(graph, target, sketch).func, target, LLVM.passes)
    return assembly(str(LLVM.stages[0].run(lowered, "k", {}, target)), target)


@pytest.mark.parametrize("kind,target,instruction", [
    (BYTES, WITH_VNNI, r"vpdpbusd\s.*%zmm"), (WORDS, WITH_VNNI, r"vpdpwssd\s.*%zmm"), (BYTES, AVX_VNNI, r"vpdpbusd\s.*%ymm"),
    (WORDS, PRESETS["x86-64-v4"], r"vpmaddwd\s.*%zmm"), (WORDS, PRESETS["x86-64-v3"], r"vpmaddwd\s.*%ymm"),
    (WORDS, PRESETS["x86-64-v2"], r"\spmaddwd\s.*%xmm"), (SINGLE_WORDS, BOARD, r"\ssmlal2?\s.*\.h\["),
    (SIGNED_BYTES, DOTPROD, r"\ssdot\s.*\.4b\["), (PAIRED_BYTES, BOARD, r"\ssadalp\s"),
    (PAIRED_BYTES, PRESETS["armv8-a"], r"\ssadalp\s"),
], ids=lambda x: getattr(x, "name", ""))
def test_hot_loops_have_the_instruction_and_no_spill(kind, target, instruction):
    for graph, _ in (product(target, kind, 128, 192, 256),
                     convolution(target, kind, 64, 64, (30, 30), strides=(1, 1), dilations=(1, 1))):
        text = code(graph, target)
        assert spills(text) == []
        hot = [loop for loop in innermost_loops(text) if any(re.search(instruction, line) for line in loop)]
        assert hot, "no dot products in a loop"
        assert not any("pmaddubsw" in line for line in text.splitlines())          # saturates


def test_the_interpreter_looks_whether_two_products_fit_16_bits() -> None:
    """-128 * (-127 - 128) does, -128 * (-128 - 128) does not."""
    graph, arrays = product(BOARD, PAIRED_BYTES, 4, 4, 16)
    func = schedule(graph, BOARD, sketch).func
    x, w = np.full_like(arrays["v0"], -128), np.full_like(arrays["v1"], -127)
    w[:, 0] = -128
    (made,) = te.interpret(func, {"x0": x, "x1": w, "x2": arrays["v2"]}).values()
    np.testing.assert_array_equal(made, np.broadcast_to(arrays["v2"] + 128 * (15 * 127 + 128), (4, 4)))
    w[2, 8] = -128
    with pytest.raises(ScheduleError, match=r"pairs.4 has 32768 in between, which is no int16"):
        te.interpret(func, {"x0": x, "x1": w, "x2": arrays["v2"]})


def test_bytes_in_pairs_take_three_instructions_per_sixteen_products() -> None:
    """In a loop: no instruction that moves or widens, as many additions as sums, each multiplied twice."""
    for graph, _ in (product(BOARD, PAIRED_BYTES, 128, 192, 256),
                     convolution(BOARD, PAIRED_BYTES, 64, 64, (30, 30), strides=(1, 1), dilations=(1, 1))):
        hot = [loop for loop in innermost_loops(code(graph, BOARD)) if any("sadalp" in line for line in loop)]
        words = [[line.split()[0] for line in loop if line.strip() and line.split()[0][0] not in "/."] for loop in hot]
        most = max(words, key=lambda loop: loop.count("sadalp"))
        steps, rest = divmod(most.count("sadalp"), 16)
        assert steps in (3, 4) and rest == 0 and most.count("smull") == most.count("smlal2") == 16 * steps
        loads = sum(2 if word == "ldp" else word in ("ldr", "ldur") for word in most)
        assert loads <= 8 * steps and len(most) <= 3 * 16 * steps + loads + 8


@pytest.mark.parametrize("target", [BOARD, PRESETS["cortex-a72"]], ids=lambda t: t.name)
def test_bytes_in_pairs_never_spill(target):
    """Sums, factors and what is under way fill the registers: windows that share what they read and such that do not, tiles
    of fewer columns at the end of a row, short sums, one row."""
    windows = ((64, 3, 1, 30), (64, 3, 2, 30), (16, 1, 1, 7), (32, 1, 1, 14), (64, 1, 2, 15), (32, 5, 1, 11), (32, 7, 2, 24),
               (48, 3, 1, 5))
    graphs = [convolution(target, PAIRED_BYTES, channels, 24, (9, width), kernel, strides=(stride,) * 2, dilations=(1, 1))
              for channels, kernel, stride, width in windows]
    rows = ((1, 384), (2, 48), (3, 64), (7, 256), (64, 16), (33, 1024))
    graphs += [product(target, PAIRED_BYTES, m, 24, k) for m, k in rows]
    for graph, _ in graphs:
        assert spills(code(graph, target)) == [], graph.types


def test_a_target_without_the_instruction_is_told() -> None:
    a, b = te.placeholder((4,), "uint8", name="a"), te.placeholder((4, 4), "int8", name="b")
    k = te.reduce_axis(4, "k")
    c = te.compute((4,), lambda i: te.sum(a[k].astype("int32") * b[i, k].astype("int32"), axis=k), name="c")
    out = te.compute((4,), lambda i: c[i] + 1, name="out")
    s = te.create_schedule(out)
    s[c].set_scope("local")
    s[c].tensorize(c.op.axis[0], dot(BYTES, 4))
    with pytest.raises(CodegenError, match=r"x86-64-v3 has no instruction for dot4.4"):
        compile_kernel(s.func, PRESETS["x86-64-v3"])


def test_columns_are_padded_no_further_than_they_gain() -> None:
    for target in (WITH_VNNI, PRESETS["x86-64-v3"]):
        lanes = target.lanes(32)
        for columns in (1, 16, 17, 80, 1000):
            panel = panel_vectors(1, 128, columns, WORDS, target) * lanes
            padded = -(-columns // panel) * panel
            assert padded < max(1.25 * columns, columns + lanes)


@pytest.mark.parametrize(("target", "kernel", "integers"), [
    (BOARD, 3, False), (BOARD, 1, True), (DOTPROD, 3, True), (PRESETS["x86-64-v3"], 3, True),
], ids=lambda x: getattr(x, "name", x))
def test_convolutions_that_floats_compute_in_fewer_multiplications_stay_floats(target, kernel, integers):
    """Where an instruction takes one factor per lane, Winograd's algorithm wins; where it takes two or four, it does not."""
    rng, pads = np.random.default_rng(0), (kernel // 2,) * 4
    params = {"w": rng.integers(-127, 128, (64, 64, kernel, kernel)).astype("int8"), "s": np.asarray(0.1, "float32")}
    types = {"x": TensorType.plain((1, 64, 56, 56), "int8")} | {n: array_type(a) for n, a in params.items()}
    nodes = (Node("DequantizeLinear", ("x", "s"), ("dx",)), Node("DequantizeLinear", ("w", "s"), ("dw",)),
             Node("Conv", ("dx", "dw"), ("y",), {"pads": pads}))
    for node in nodes:
        types[node.output] = infer(node, types, params)[0]
    after = prepare_graph(Graph("g", nodes, ("x",), ("y",), types, params), target)
    assert any(n.op == "ConvInteger" or n.op.startswith("Integer") for n in after.nodes) == integers
