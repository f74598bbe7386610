"""Operands that are turned while a function is computed of them: right at ragged ends, and in registers there are."""

from __future__ import annotations

import numpy as np
import pytest

import toolchain.te as te
from toolchain.core.target import Target
from toolchain.kernels.sketches.pointwise import pointwise
from toolchain.targets.llvm.backend import LLVM
from toolchain.targets.llvm.cpu import host_target
from toolchain.targets.llvm.load import run
from toolchain.targets.llvm.object import assembly, spills
from toolchain.targets.presets import PRESETS
from toolchain.te.expr import Call
from toolchain.te.lower import lower
from toolchain.te.tune.choices import Choices

HOST = host_target(cores=1)
RUNNABLE = [t for t in PRESETS.values() if t.kind == "x86" and set(t.features) <= set(HOST.features)]
FUNCTIONS = ["abs", "exp", "tanh", "erf", "sigmoid", "log"]
SHAPES = [(3, 40, 60), (1, 16, 16), (1, 5, 70), (1, 64, 9), (40, 16, 5)]


def turned(function: str, shape: tuple[int, int, int], target: Target, factor: bool = False) -> te.Schedule:
    """y[n, p, c] = f(x[n, c, p]) of x in `shape`; times a factor that lies as y does."""
    n, channels, columns = shape
    x, w = te.placeholder(shape, name="X"), te.placeholder((n, columns, channels), name="W")

    def value(i: te.Var, p: te.Var, c: te.Var) -> te.Expr:
        result = Call(function, (x[i, c, p],), "float32")
        return result * w[i, p, c] if factor else result
    y = te.compute((n, columns, channels), value, name="Y")
    s = te.create_schedule(y, inputs=[x, w] if factor else [x])
    pointwise(s, target, Choices())
    return s


@pytest.mark.parametrize("target", [PRESETS["x86-64-v3"], PRESETS["x86-64-v4"]], ids=lambda t: t.name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_constants_of_a_function_have_registers(function: str, shape: tuple[int, int, int], target: Target) -> None:
    """Sixteen rows of a square and fourteen constants of a sigmoid, in 32 registers, left none to compute with. (A constant
    may be read from the stack.)"""
    func = lower(turned(function, shape, target).func, target, LLVM.passes)
    code = assembly(str(LLVM.stages[0].run(func, "k", {}, target)), target)
    assert not [line for line in spills(code) if "Spill" in line]


@pytest.mark.parametrize("target", RUNNABLE, ids=lambda t: t.name)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 37, 21)], ids=str)
@pytest.mark.parametrize("factor", [False, True], ids=["alone", "with a factor"])
@pytest.mark.parametrize("function", ["abs", "sigmoid"])
def test_turned_functions_are_right(function: str, factor: bool, shape: tuple[int, int, int], target: Target) -> None:
    rng = np.random.default_rng(0)
    arrays = {"X": rng.normal(size=shape).astype(np.float32)}
    if factor:
        arrays["W"] = rng.normal(size=(shape[0], shape[2], shape[1])).astype(np.float32)
    s = turned(function, shape, target, factor)
    got = run(s.func, target, arrays)["Y"]
    wanted = te.interpret(te.create_schedule(s.func.outputs[0], inputs=list(s.func.inputs)).func, arrays)["Y"]
    np.testing.assert_allclose(got, wanted, rtol=4e-7)
