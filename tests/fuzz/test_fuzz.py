"""A slice of the fuzzer, and that it would notice. More of it: python -m tests.fuzz.run."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from onnx import helper, numpy_helper

from toolchain.graph.importers.bounded_rules import MAKES
from toolchain.kernels.table import COMPUTES
from toolchain.tasks.compile import compile_workload

from . import schedules
from . import stack as stack_module
from .builder import Case, make_model
from .generate import generate
from .guarded import guarded
from .minimize import minimize
from .run import variants_of
from .stack import Stack, metamorphic

SEEDS = range(100)
LINKED = 10             # one case in so many becomes a shared library


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TC_STORE", str(tmp_path_factory.mktemp("store")))
        yield Stack(tmp_path_factory.mktemp("artifact"))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_network(stack, seed):
    variants = variants_of(seed)
    verdict = stack.check(generate(seed), variants, link=seed % LINKED == 0)
    assert verdict.kind in ("passed", "refused"), f"{verdict.detail}\n{[str(v) for v in variants]}"


@pytest.mark.parametrize("seed", range(1000, 1020))
def test_passes_and_targets_agree(stack, seed):
    variants = metamorphic(random.Random(seed))
    verdict = stack.check(generate(seed), variants, link=False)
    assert verdict.kind == "passed", f"{verdict.detail}\n{[str(v) for v in variants]}"


@pytest.mark.parametrize("first", range(0, 240, 40))
def test_random_schedules(first):
    assert Counter(schedules.check(seed).split(":")[0] for seed in range(first, first + 40))["passed"] > 20


def test_most_operators_occur():
    """The rest are our own, without a kernel in ONNX Runtime, or rare: tests/kernels has cases of each."""
    seen = {n.op_type for seed in range(1500) for n in generate(seed).model.graph.node}
    assert len(seen & COMPUTES.keys()) >= 0.8 * len(COMPUTES) and seen >= MAKES


def test_the_same_seed_is_the_same_case():
    assert generate(3).model == generate(3).model


def a_chain() -> Case:
    """Relu, Add, Transpose, Abs, of which only Add is of interest."""
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Add", ["a", "w"], ["b"]),
             helper.make_node("Transpose", ["b"], ["c"]), helper.make_node("Abs", ["c"], ["d"])]
    x, w = np.array([[1, -2, 3]], np.float32), np.array([-2, 1, 1], np.float32)
    expected = {"d": np.abs(np.maximum(x, 0) + w).T}
    return Case(make_model(nodes, {"x": x}, expected, {"w": w}), {"x": x}, expected)


def test_wrong_code_is_noticed_and_made_small(stack, monkeypatch):
    def sums_off_by_one(body, target):
        weights = {k: v + np.float32(1) for k, v in body.params.items()}
        return compile_workload(replace(body, params=weights), target)

    assert stack.check(a_chain()).kind == "passed"
    monkeypatch.setattr(stack_module, "compile_workload", sums_off_by_one)
    fresh = Stack(stack.folder)
    case = a_chain()
    one = numpy_helper.from_array(np.array([5], np.float32), "w")       # one element is part of the kernel's code
    case.model.graph.initializer[0].CopyFrom(one)
    case.expected["d"] = np.abs(np.maximum(case.inputs["x"], 0) + 5).T
    verdict = fresh.check(case)
    assert verdict.kind == "wrong" and "compiled: 1 threads: d[0, 0] is 7.0, not 6.0" in verdict.detail
    small = minimize(case, lambda c: fresh.check(c).kind == "wrong")
    assert [n.op_type for n in small.model.graph.node] == ["Add"]


@pytest.mark.parametrize("at_end", [False, True])
def test_guarded_arrays_hold_numbers(at_end):
    array = guarded((3, 5), np.dtype("float32"), at_end=at_end)
    array[...] = np.arange(15).reshape(3, 5)
    assert array.sum() == 105 and (array.ctypes.data + 60 * at_end) % 4096 == 0
