"""Who is right when two implementations differ: tolerances, and what rounding alone can do to a network's numbers.

ONNX Runtime and the NumPy interpreter are the two references. Where they differ, or compiled code differs from them, the
interpreter runs again with every rounded number moved by a few units in its last place (Monte Carlo arithmetic: Parker,
1997). Elements that move as far as the difference are decided by rounding: the case is unstable. Others are wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from toolchain.core.dtype import to_numpy
from toolchain.graph.interpret import evaluate, interpret
from toolchain.graph.ir import Graph
from toolchain.graph.ops import info

from .builder import Case

Arrays = Mapping[str, np.ndarray]
Slack = Mapping[str, np.ndarray | float]

EXACT = frozenset((
    "Abs", "ArgMax", "ArgMin", "Cast", "CastLike", "Ceil", "Clip", "Constant", "ConstantOfShape", "Equal", "Floor",
    "Greater", "GreaterOrEqual", "GlobalMaxPool", "Identity", "IsInf", "IsNaN", "Less", "LessOrEqual", "Max", "MaxPool",
    "Min", "Neg", "NonZero", "Not", "OneHot", "Range", "ReduceMax", "ReduceMin", "Relu", "Round", "Shape", "Sign", "Size",
    "TopK", "Where",
))
"""Operators that round nothing, besides those that only move elements."""

MOVES = frozenset(("move", "reshape", "gather", "scatter", "select", "constant"))

BOUNDED = frozenset(("Sigmoid", "Softmax", "Tanh", "Erf", "HardSigmoid", "Softsign", "Sin", "Cos"))
"""Their results are accurate beside 1: what is tiny may as well be 0 (ONNX Runtime's Sigmoid(-25) is)."""

RUNS, LEAST_ULP, MOST_ULP = 12, 1.0, 16.0       # noisy runs, and the size of their noise
FEW_ULP = 2.0                                   # noise that no number should feel
REACH = 4.0                                     # times what noise did: still rounding


class Judge:
    """Compares what a case computed with what it should have."""

    def __init__(self, case: Case, graph: Graph) -> None:
        """graph: as imported, before any pass. Runs it through the interpreter."""
        self.case, self.graph = case, graph
        values = [o for n in graph.nodes for o in n.outputs if o]
        found = interpret(graph, case.inputs, values)
        self.reference = graph.results(found)
        self.special = any(a.dtype.kind == "f" and not np.isfinite(a).all() for a in found.values())
        self.rough = roughness(case)
        self.unstable = ""
        self.agreed = not compare(self.reference, case.expected, self.rough)

    def interpreter(self) -> str:
        """What the interpreter of the imported graph computes otherwise than ONNX Runtime, or "".

        What Max, MaxPool or ReduceMax make of a NaN, ONNX leaves open, and ONNX Runtime to the place it stands at: where the
        two differ and there is one on the way, the case is unstable, and compiled code has to agree with either.
        """
        problem = self._decide(self.reference, {}, None)
        if problem and self.special:
            self.unstable, problem = problem, ""
        return problem

    def problem(self, made: Arrays) -> str:
        """What is wrong about outputs, or "". What rounding decides is noted in `unstable`."""
        expected = self.case.expected
        return self._decide(made, {n: spread(self.reference[n], expected[n]) for n in expected} if self.agreed else {},
                            self.reference)

    def apart(self, made: Arrays, first: Arrays) -> str:
        """What differs between two ways to compile the case, or ""."""
        if not compare(made, first, self.rough):
            return ""
        problem = compare(made, first, self.rough, self._sensitivity)
        return f"other than the first variant: {problem}" if problem else ""

    def _decide(self, made: Arrays, slack: Slack, other: Arrays | None) -> str:
        problem = compare(made, self.case.expected, self.rough, slack)
        if not problem:
            return ""
        if still := compare(made, self.case.expected, self.rough, self._sensitivity, other):
            return still
        self.unstable = self.unstable or problem
        return ""

    @cached_property
    def _sensitivity(self) -> dict[str, np.ndarray]:
        return sensitivity(self.graph, self.case.inputs, self.reference)


def sensitivity(graph: Graph, inputs: Arrays, plain: Arrays) -> dict[str, np.ndarray]:
    """Per element of the outputs: how far it may be off by rounding; inf where an integer, a NaN or an Inf changes."""
    reach = {name: np.zeros(array.shape) for name, array in plain.items()}
    for run in range(RUNS):
        ulp = LEAST_ULP * (MOST_ULP / LEAST_ULP) ** (run / (RUNS - 1))
        noisy = interpret_with_noise(graph, inputs, np.random.default_rng(run), ulp)
        for name, array in plain.items():
            if noisy[name].shape != array.shape:        # rounding decides how many there are
                reach[name][...] = np.inf
                continue
            a, b = noisy[name].astype(np.float64), array.astype(np.float64)
            with np.errstate(invalid="ignore"):
                moved = np.where(same(a, b), 0.0, np.abs(a - b))
            if array.dtype.kind != "f":
                moved[moved > 0] = np.inf
            elif ulp <= FEW_ULP:                        # no digit is left: tan(7e5)
                moved[(moved > 0.5 * np.maximum(np.abs(a), np.abs(b))) & (a * b != 0)] = np.inf
            reach[name] = np.maximum(reach[name], np.where(np.isnan(moved), np.inf, REACH * moved))
    return reach


def interpret_with_noise(graph: Graph, inputs: Arrays, rng: np.random.Generator, ulp: float) -> dict[str, np.ndarray]:
    """The interpreter; floating-point operands and results of operators that round are moved by up to `ulp` last places."""

    def noisy(array: np.ndarray | None) -> np.ndarray | None:
        if array is None or array.dtype.kind != "f":
            return array
        factor = 1 + np.finfo(array.dtype).eps * ulp * rng.uniform(-1, 1, array.shape)
        with np.errstate(all="ignore"):
            return np.asarray(array * factor).astype(array.dtype)

    values: dict[str, np.ndarray] = {**graph.params, **inputs}
    for node in graph.nodes:
        exact = node.op in EXACT or info(node.op).category in MOVES
        arrays = [values[i] if i else None for i in node.inputs]
        made = evaluate(node, arrays if exact else [noisy(a) for a in arrays])
        for name, array in zip(node.outputs, made):
            if name:
                array = np.asarray(array).astype(to_numpy(graph.types[name].dtype))
                if node.op in BOUNDED and array.dtype.kind == "f" and rng.random() < 0.5:
                    array = np.where(np.abs(array) < np.finfo(array.dtype).eps * ulp, 0, array).astype(array.dtype)
                values[name] = array if exact else noisy(array)
    return graph.results(values)


# ---- comparing

def roughness(case: Case) -> float:
    """The relative error that is fine: by the narrowest type in the network."""
    narrow = any(a.dtype == np.float16 for a in (*case.inputs.values(), *case.expected.values()))
    narrow = narrow or any(t.data_type == 10 for t in case.model.graph.initializer)
    narrow = narrow or any(n.op_type == "Cast" and n.attribute[0].i == 10 for n in case.model.graph.node)
    return 2e-2 if narrow else 2e-4


def spread(a: np.ndarray, b: np.ndarray) -> float:
    """What 30 times the distance of two correct computations allows: what the case's numbers make of rounding."""
    if a.dtype.kind != "f":
        return 0.0
    with np.errstate(invalid="ignore"):
        apart = np.abs(a.astype(np.float64) - b.astype(np.float64))
    return 30 * float(apart[np.isfinite(apart)].max(initial=0.0))


def same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a == b) | (np.isnan(a) & np.isnan(b))


def compare(made: Arrays, expected: Arrays, rough: float, slack: Slack | None = None, other: Arrays | None = None) -> str:
    """What is wrong, or "". Small integers may differ by one: a rounded tie falls either way. A NaN is equal to a NaN.

    slack: by how much an output (or each of its elements) may differ besides. other: a second answer that is as good.
    """
    for name, want in expected.items():
        got = made[name]
        if got.shape != want.shape or got.dtype != want.dtype:
            return f"{name} is {got.dtype}{list(got.shape)}, not {want.dtype}{list(want.shape)}"
        bad = differs(got, want, rough, (slack or {}).get(name, 0.0))
        if other is not None:
            bad &= differs(got, other[name], rough, 0.0)
        if bad.any():
            at = tuple(int(i) for i in np.argwhere(bad)[0])
            return f"{name}{list(at)} is {got[at]}, not {want[at]} ({int(bad.sum())} of {bad.size} elements)"
    return ""


def differs(got: np.ndarray, want: np.ndarray, rough: float, slack: np.ndarray | float) -> np.ndarray:
    """Per element: whether it is too far off."""
    a, b = got.astype(np.float64), want.astype(np.float64)
    if want.dtype.kind == "f":
        size = np.where(np.isfinite(b), np.abs(b), 0.0)
        limit = rough * (size + size.max(initial=0.0) + 0.01) + slack
    else:
        limit = (1.0 if want.dtype.itemsize == 1 and want.dtype.kind != "b" else 0.0) + slack
    with np.errstate(invalid="ignore"):
        return np.asarray(~(same(a, b) | (np.abs(a - b) <= limit) | np.isposinf(limit)))
