"""Compiled kernels in an artifact: tensor expressions, through the code generator, linked, and run by the C runtime."""

from __future__ import annotations

import numpy as np
import pytest
from small_plans import own_store

import toolchain.te as te
from toolchain.targets.base import compile_kernel
from toolchain.targets.llvm.artifact import write_artifact
from toolchain.targets.llvm.cpu_check import AARCH64, RISCV64, X86, required_features
from toolchain.targets.llvm.link import ERRATUM
from toolchain.targets.llvm.module import Module
from toolchain.targets.llvm.plan import Call, Plan, Repeat, Slot, Value
from toolchain.targets.presets import PRESETS, target

__all__ = ["own_store"]

M, K = 37, 48


def dense_tanh():
    """y = tanh(x @ w), rows in parallel."""
    x, w = te.placeholder((M, K), name="x"), te.placeholder((K, K), name="w")
    r = te.reduce_axis(K, name="r")
    dense = te.compute((M, K), lambda i, j: te.sum(x[i, r] * w[r, j], axis=r), name="dense")
    y = te.compute((M, K), lambda i, j: te.tanh(dense[i, j]), name="y")
    s = te.create_schedule(y)
    i, j = y.op.axis
    _, ji = s[y].split(j, factor=8)
    s[y].vectorize(ji)
    s[y].parallel(i)
    return compile_kernel(s.func, target("x86"))


@pytest.mark.parametrize("threads", [1, 3])
def test_a_network_of_compiled_kernels(tmp_path, threads):
    """A recurrence: the same kernel with another matrix of weights in each iteration."""
    kernel, size, steps = dense_tanh(), M * K * 4, 4
    offsets = np.cumsum([2 * 64 * -(-size // 64), *kernel.workspace]).tolist()
    workspace = tuple(Slot("arena", at) for at in offsets[: len(kernel.workspace)])

    def step(src: Slot, w: Slot, dst: Slot) -> Call:
        return Call(kernel.symbol, kernel.phases, (src, w, dst, *workspace), "step")

    first, second = Slot("arena", 0), Slot("arena", 64 * -(-size // 64))
    still = (0,) * len(workspace)
    pair = (step(first, Slot("weights", K * K * 4), second), step(second, Slot("weights", 2 * K * K * 4), first))
    loop = Repeat(steps, pair, (0, 2 * K * K * 4, 0, *still, 0, 2 * K * K * 4, 0, *still))
    last = step(first, Slot("weights", (2 * steps + 1) * K * K * 4), Slot("output", 0))
    value = Value("x", "float32", (M, K))
    ops = (step(Slot("input", 0), Slot("weights", 0), first), loop, last)
    n = 2 * steps + 2
    result = Value("y", "float32", (M, K))
    plan = Plan("recurrence", (value,), (result,), ops, n * K * K * 4, offsets[-1], kernel.scratch_bytes)
    weights = (np.random.default_rng(0).standard_normal((n, K, K)) / np.sqrt(K)).astype(np.float32)
    write_artifact(tmp_path, "recurrence", (plan,), {kernel.symbol: kernel.object}, weights.tobytes(), target("x86"))

    x = np.random.default_rng(1).standard_normal((M, K)).astype(np.float32)
    expected = x.astype(np.float64)
    for w in weights:
        expected = np.tanh(expected @ w)
    with Module.load(tmp_path, threads) as module:
        got = module.run({"x": x})["y"]
        np.testing.assert_allclose(got, expected, atol=1e-5)  # fp32 sums of 48 terms, ten layers of them
        np.testing.assert_array_equal(module.run({"x": x})["y"], got)


def test_this_machine_has_what_its_own_target_needs(tmp_path):
    assert required_features(target("x86"))
    plan = Plan("empty", (), (), ())
    write_artifact(tmp_path, "empty", (plan,), {}, b"", target("x86"))
    with Module.load(tmp_path) as module:
        assert module.run({}) == {}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_vector_extensions_of_presets_are_checked(name):
    """Everything but the x86-64 baseline and crc32, which code generation does not use unasked; an erratum is no feature."""
    baseline = {"cmov", "crc32", "cx8", "fxsr", "mmx", "sse", "sse2", "xsave"}
    names = {f[1:] for f in PRESETS[name].features if f.startswith("+")}
    known = {"x86": X86.keys() | baseline, "aarch64": AARCH64.keys() | {ERRATUM}, "riscv64": RISCV64.keys(),
             "wasm32": {"simd128"}}
    assert names <= known[PRESETS[name].kind]
