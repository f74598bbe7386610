"""Contractions without a template: random index maps, combiners and consumers, under default and random schedules."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from running import HOST, RUNNABLE

from toolchain import te
from toolchain.core.errors import CodegenError
from toolchain.core.target import Target
from toolchain.kernels.sketches.contraction import contractions
from toolchain.kernels.sketches.select import sketch
from toolchain.kernels.sketches.stages import inline_injective, reductions
from toolchain.targets.llvm.backend import LLVM
from toolchain.targets.llvm.load import run
from toolchain.targets.llvm.object import assembly, spills
from toolchain.targets.presets import PRESETS
from toolchain.te.lower import lower
from toolchain.te.tune.choices import Choices
from toolchain.te.tune.space import Made, Space

EXTENTS = (1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 19, 31, 32, 33, 40)
MOST = 60_000                   # iterations: the interpreter runs them all

Problem = tuple[list[te.Tensor], list[te.Tensor]]


def products(x: Sequence[te.Expr]) -> te.Expr:
    made = x[0]
    for other in x[1:]:
        made = made * other
    return made


TERMS: dict[str, tuple[Callable[[Sequence[te.Expr]], te.Expr], Callable[..., te.Expr]]] = {
    "product": (products, te.sum),
    "max-plus": (lambda x: sum(x[1:], x[0]), te.max),
    "min-plus": (lambda x: sum(x[1:], x[0]), te.min),
    "squared distance": (lambda x: (x[0] - x[1]) * (x[0] - x[1]), te.sum),
    "least product": (products, te.min),
    "where positive": (lambda x: te.select(x[0] > 0, products(x[1:]), x[1]), te.sum),
}


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Operands over random axes in random order, their indices plain, strided, dilated or sums of two axes."""
    rank = draw(st.integers(1, 4))
    extents = [draw(st.sampled_from(EXTENTS)) for _ in range(rank)]
    reduced = [draw(st.sampled_from(EXTENTS)) for _ in range(draw(st.integers(1, 3)))]
    while np.prod(extents) * np.prod(reduced) > MOST:
        longest = max((*extents, *reduced))
        at = extents if longest in extents else reduced
        at[at.index(longest)] = longest // 2
    dtype = draw(st.sampled_from(("float32", "float32", "float32", "float64", "int32")))
    steps = [te.reduce_axis(n, f"r{k}") for k, n in enumerate(reduced)]
    name = draw(st.sampled_from(tuple(TERMS)))
    value, combine = TERMS[name]
    all_extents = (*extents, *reduced)
    operands = []
    for n in range(draw(st.integers(2, 3))):
        used = draw(st.lists(st.integers(0, len(all_extents) - 1), min_size=1, unique=True))
        maps = []
        for a in used:
            kind = draw(st.sampled_from(("plain", "plain", "plain", "strided", "window", "window", "part")))
            scale, shift = (draw(st.integers(1, 3)), draw(st.integers(0, 2))) if kind != "plain" else (1, 0)
            other = draw(st.integers(0, len(all_extents) - 1)) if kind == "window" else None
            maps.append((kind, a, scale, shift, other))
        shape = [1 + shift + scale * (all_extents[a] - 1) + (all_extents[o] - 1 if o is not None else 0)
                 for _, a, scale, shift, o in maps]
        if np.prod(shape) > 4 * MOST:
            maps, shape = maps[:1], shape[:1]
        operands.append((te.placeholder(shape, dtype, name=f"x{n}"), maps))

    def at(maps: Sequence[Any], axes: Sequence[te.Var]) -> tuple[Any, ...]:
        places = []
        for kind, a, scale, shift, other in maps:
            place = axes[a] // 2 if kind == "part" else axes[a] * scale + shift
            places.append(place + axes[other] if other is not None else place)
        return tuple(places)

    def body(*i: te.Var) -> te.Expr:
        return combine(value([x[at(maps, (*i, *steps))] for x, maps in operands]), axis=steps)
    total = te.compute(extents, body, name="total")
    given_ = [x for x, _ in operands]
    return (given_, [total]) if draw(st.booleans()) else _behind(draw, given_, total)


def _behind(draw: st.DrawFn, inputs: list[te.Tensor], total: te.Tensor) -> Problem:
    """What is fused behind a contraction, or cannot be."""
    kind = draw(st.sampled_from(("bias", "transposed", "repeated", "shifted", "two outputs")))
    order = draw(st.permutations(range(len(total.shape))))
    bias = te.placeholder(total.shape[-1:], total.dtype, name="bias")
    if kind == "bias":
        out = te.compute(
            total.shape, lambda *i: te.select(total[i] + bias[i[-1]] > 0, total[i] + bias[i[-1]], 0), name="out")
        return [*inputs, bias], [out]
    if kind == "transposed":
        back = [order.index(d) for d in range(len(order))]
        shape = [total.shape[d] for d in order]
        return inputs, [te.compute(shape, lambda *i: total[tuple(i[d] for d in back)] * 2, name="out")]
    if kind == "repeated":
        return inputs, [te.compute((3, *total.shape), lambda *i: total[i[1:]] + 1, name="out")]
    if kind == "shifted":
        first = total.shape[0]
        return inputs, [te.compute(total.shape, lambda *i: total[(first - 1 - i[0], *i[1:])] + 1, name="out")]
    return inputs, [total, te.compute(total.shape, lambda *i: total[i] * 3, name="twice")]


def arrays(inputs: Sequence[te.Tensor], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {t.name: rng.integers(-3, 4, t.shape).astype(t.dtype) for t in inputs}


def is_contraction(problem: Problem, target: Target) -> bool:
    s = te.create_schedule(problem[1], inputs=problem[0])
    inline_injective(s)
    return bool(contractions(s, reductions(s), target))


def scheduled(problem: Problem, target: Target, choices: Choices) -> te.Schedule:
    inputs, outputs = problem
    s = te.create_schedule(outputs, inputs=inputs)
    sketch(s, target, choices)
    return s


def check(problem: Problem, target: Target, answers: dict[str, str] | None, machine: bool = True) -> te.Schedule:
    """The schedule computes what the definition's own loops do, to the bit: interpreted, and as machine code."""
    inputs, outputs = problem
    given_ = arrays(inputs, 0)
    want = te.interpret(te.create_schedule(outputs, inputs=inputs).func, given_)
    s = scheduled(problem, target, Choices(answers or {}))
    made = [te.interpret(s.func, given_)]
    if machine:
        try:
            made.append(run(s.func, target, given_))
        except CodegenError as error:
            assert answers, error                           # a default schedule is never too much code
    for got in made:
        for t in outputs:
            np.testing.assert_array_equal(got[t.name], want[t.name], err_msg=str(s))
    return s


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(problems(), st.sampled_from(RUNNABLE))
def test_default_schedules_of_random_contractions(problem: Problem, target: Target) -> None:
    assume(is_contraction(problem, target))
    check(problem, target, None)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(problems(), st.integers(0, 1 << 20), st.sampled_from(RUNNABLE))
def test_random_schedules_of_random_contractions(problem: Problem, seed: int, target: Target) -> None:
    assume(is_contraction(problem, target))
    space = Space(lambda choices: Made(str(scheduled(problem, target, choices))))
    point = space.sample(random.Random(seed))
    assert not point.refused
    check(problem, target, point.answers)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(problems(), st.sampled_from([PRESETS["cortex-a53"], PRESETS["x86-64-v2"]]))
def test_default_schedules_for_other_targets(problem: Problem, target: Target) -> None:
    assume(is_contraction(problem, target))
    check(problem, target, None, machine=False)


def einsum(equation: str, **extents: int) -> Problem:
    """As ONNX's Einsum is defined: letters of the result are axes, the others are summed over."""
    terms, result = equation.split("->")
    inputs = [te.placeholder([extents[c] for c in t], name=f"x{n}") for n, t in enumerate(terms.split(","))]
    summed = {c: te.reduce_axis(n, c) for c, n in extents.items() if c not in result}

    def value(*i: te.Var) -> te.Expr:
        at = {**summed, **dict(zip(result, i, strict=True))}
        return te.sum(products([x[tuple(at[c] for c in t)] for x, t in zip(inputs, terms.split(","), strict=True)]),
                      axis=list(summed.values()))
    return inputs, [te.compute([extents[c] for c in result], value, name="y")]


def correlation(channels: int, height: int, width: int, reach: int) -> Problem:
    n, c = 2 * reach + 1, te.reduce_axis(channels, "c")
    a, b = te.placeholder((channels, height, width)), te.placeholder((channels, height + n - 1, width + n - 1), name="B")
    return [a, b], [te.compute((n, n, height, width), lambda p, q, y, x: te.sum(a[c, y, x] * b[c, y + p, x + q], axis=c),
                               name="y")]


def max_plus(m: int, n: int, d: int) -> Problem:
    a, b, k = te.placeholder((m, d)), te.placeholder((d, n), name="B"), te.reduce_axis(d, "k")
    return [a, b], [te.compute((m, n), lambda i, j: te.max(a[i, k] + b[k, j], axis=k), name="y")]


def conv1d(channels: int, outputs: int, width: int, taps: int, dilation: int) -> Problem:
    x, w = te.placeholder((2, channels, width + dilation * (taps - 1))), te.placeholder((outputs, channels, taps), name="B")
    c, k = te.reduce_axis(channels, "c"), te.reduce_axis(taps, "k")
    total = te.compute((2, outputs, width), lambda b, o, i: te.sum(x[b, c, i + dilation * k] * w[o, c, k], axis=[c, k]))
    return [x, w], [te.compute(total.shape, lambda b, o, i: te.select(total[b, o, i] > 0, total[b, o, i], 0.0), name="y")]


def distances(m: int, n: int, d: int) -> Problem:
    a, b, k = te.placeholder((m, d)), te.placeholder((n, d), name="B"), te.reduce_axis(d, "k")
    return [a, b], [te.compute((m, n), lambda i, j: te.sum((a[i, k] - b[j, k]) * (a[i, k] - b[j, k]), axis=k), name="y")]


KNOWN: dict[str, Problem] = {
    "product": einsum("ik,kj->ij", i=384, j=384, k=384),
    "rows by rows": einsum("ik,jk->ij", i=384, j=384, k=384),
    "transposed": einsum("ki,kj->ij", i=384, j=384, k=384),
    "tensors": einsum("abcd,ebd->ace", a=8, b=16, c=64, d=32, e=64),
    "bilinear": einsum("ni,ij,nj->n", n=64, i=128, j=128),
    "bilinear outputs": einsum("ni,oij,nj->no", n=32, i=64, j=64, o=32),
    "three operands": einsum("ia,ja,ka->ijk", i=48, j=48, k=48, a=32),
    "correlation": correlation(64, 32, 48, 4),
    "max-plus": max_plus(256, 256, 256),
    "distances": distances(512, 256, 32),
    "conv1d": conv1d(64, 64, 400, 5, 1),
    "dilated conv1d": conv1d(32, 48, 1000, 3, 4),
}


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4", "cortex-a53", "cortex-a76"])
def test_no_hot_loop_spills(name: str, target: str) -> None:
    known = PRESETS[target]
    func = lower(scheduled(KNOWN[name], known, Choices()).func, known, LLVM.passes)
    assert not spills(assembly(str(LLVM.stages[0].run(func, "k", {}, known)), known))


def test_what_each_becomes() -> None:
    """The decisions that the model makes: lanes, copies, tiles."""
    def answers(name: str) -> str:
        choices = Choices()
        scheduled(KNOWN[name], replace(PRESETS["x86-64-v4"], cores=2), choices)
        asked = {q.name: q.answer for q in choices.asked.values()}
        return " ".join([asked["lanes"], *(["copied"] if asked.get("pack") == "True" else []), f"({asked['tile']})"])
    assert {name: answers(name) for name in KNOWN} == {
        "product": "d1 copied (d0:6 x4)",
        "rows by rows": "d1 copied (d0:6 x4)",
        "transposed": "d1 copied (d0:6 x4)",
        "tensors": "d2 copied (d1:4 x4)",
        "bilinear": "r1 (d0:8 x2)",
        "bilinear outputs": "r1 (d0:2 d1:8 x1)",
        "three operands": "d2 copied (d0:2 d1:3 x3)",
        "correlation": "d3 copied (d0:3 d1:9 x1)",
        "max-plus": "d1 copied (d0:4 x4)",
        "distances": "d1 copied (d0:4 x4)",
        "conv1d": "d2 (d1:8 d0:2 x1)",
        "dilated conv1d": "d2 (d1:8 x3)",
    }


def test_what_reads_nothing_twice_is_none() -> None:
    assert not is_contraction(einsum("gik,gk->gi", g=4, i=32, k=32), HOST)       # a matrix is read once: memory is the limit
    assert not is_contraction(einsum("ij->i", i=64, j=64), HOST)


def test_two_contractions_have_questions_of_their_own() -> None:
    a, b, c = (te.placeholder((40, 40), name=n) for n in "abc")
    k, r = te.reduce_axis(40, "k"), te.reduce_axis(40, "r")
    first = te.compute((40, 40), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="first")
    second = te.compute((40, 40), lambda i, j: te.sum(first[i, r] * c[r, j], axis=r), name="second")
    problem: Problem = [a, b, c], [second]
    assert is_contraction(problem, HOST)
    choices = Choices()
    scheduled(problem, HOST, choices)
    assert {"tile", "tile.1"} <= set(choices.asked)
    check(problem, HOST, {"tile": "d0:4 x1", "tile.1": "d0:2 x2"})


def test_options_keep_their_names() -> None:
    """They stand in records."""
    choices = Choices()
    scheduled(KNOWN["rows by rows"], PRESETS["x86-64-v4"], choices)
    assert {name: q.options[:3] for name, q in choices.asked.items()} == {
        "lanes": ("d1", "d0", "r0"),
        "pack": ("False", "True"),
        "tile": ("d0:6 x4", "d0:8 x3", "d0:6 x3"),
        "inner": ("d0", "d1"),
        "parallel": ("d0", "d1"),
        "unroll": ("1", "2", "3"),
    }
