"""Every default schedule of small networks in the loop-IR interpreter, and compiled, against the graph interpreter.

The networks are the recipes' own at reduced sizes: fewer channels, rows, steps and tokens, the same operators and windows.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from running import BOARD, HOST, RUNNABLE, close, compiled, expected, interpreted

from toolchain.core.dtype import is_float, to_numpy
from toolchain.core.errors import ScheduleError
from toolchain.core.target import Target
from toolchain.graph.importers.onnx import import_onnx
from toolchain.graph.ir import Graph
from toolchain.kernels.build import anchor_name, schedule
from toolchain.kernels.sketches.select import SKETCHES
from toolchain.tasks.optimize import optimize_graph
from toolchain.te.loop_ir import PrimFunc

pytestmark = pytest.mark.skipif(HOST.kind != "x86", reason="runs x86 code in this process")

RECIPE = Path(__file__).parents[2] / "recipes" / "paper" / "models.py"
TARGETS = [HOST, *(t for t in RUNNABLE if t.name == "x86-64-v2"), BOARD]
RTOL = 1e-4                 # sums of a few hundred products, in another order; exp, tanh, erf within 5 ulp


@cache
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("paper_models", RECIPE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def squeeze(out: Path) -> None:
    """SqueezeNet's first layers: a strided convolution, a pool with ceil_mode off the grid, two fire modules, its head."""
    net = recipe().Network("squeeze", seed=1)
    x = net.relu(net.conv("image", "conv1", 3, 24, 3, stride=2, bias=True))
    x, cin = net.op("MaxPool", "pool1", x, kernel_shape=[3, 3], strides=[2, 2]), 24
    for name, squeezed, expanded in (("fire2", 8, 16), ("fire3", 9, 20)):
        s = net.relu(net.conv(x, f"{name}.squeeze", cin, squeezed, 1, bias=True))
        one = net.relu(net.conv(s, f"{name}.one", squeezed, expanded, 1, bias=True))
        three = net.relu(net.conv(s, f"{name}.three", squeezed, expanded, 3, pad=1, bias=True))
        x, cin = net.op("Concat", name, one, three, axis=1), 2 * expanded
    x = net.relu(net.conv(x, "conv10", cin, 10, 1, bias=True))
    net.op("Softmax", "prob", net.op("Flatten", "flat", net.op("GlobalAveragePool", "pool10", x), axis=1), axis=-1)
    net.write(out, {"image": (1, [1, 3, 33, 35])}, {"classes": [1, 10]})


def residual(out: Path) -> None:
    """A residual block with a projection, a depthwise-separable layer, batch norm everywhere, a linear layer."""
    net = recipe().Network("residual", seed=2)
    first = net.relu(net.batch_norm(net.conv("image", "conv1", 3, 16, 7, stride=2, pad=3), "bn1", 16))
    main = net.relu(net.batch_norm(net.conv(first, "conv2", 16, 32, 3, stride=2, pad=1), "bn2", 32))
    main = net.batch_norm(net.conv(main, "conv3", 32, 32, 3, pad=1), "bn3", 32)
    short = net.batch_norm(net.conv(first, "short", 16, 32, 1, stride=2), "bn4", 32)
    x = net.relu(net.op("Add", "sum", main, short))
    x = net.relu(net.batch_norm(net.conv(x, "depthwise", 32, 32, 3, pad=1, groups=32), "bn5", 32))
    x = net.relu(net.batch_norm(net.conv(x, "pointwise", 32, 48, 1), "bn6", 48))
    x = net.op("AveragePool", "pool", x, kernel_shape=[2, 2], strides=[2, 2])
    net.linear(net.op("Flatten", "flat", x, axis=1), "fc", 48 * 2 * 2, 10)
    net.write(out, {"image": (1, [1, 3, 19, 19])}, {"scores": [1, 10]})


def generator(out: Path) -> None:
    """Two transposed convolutions with batch norm, tanh."""
    net = recipe().Network("generator", seed=3)
    x = net.relu(net.batch_norm(net.deconv("z", "deconv1", 20, 17, 4, 2, 1), "bn1", 17))
    net.op("Tanh", "tanh", net.deconv(x, "deconv2", 17, 3, 4, 2, 1))
    net.write(out, {"z": (1, [1, 20, 4, 5])}, {"image": [1, 3, 16, 20]})


NETWORKS: dict[str, Callable[[Path], None]] = {
    "squeeze": squeeze, "residual": residual, "generator": generator,
    "lstm": lambda out: recipe().lstm(out, hidden=20, vocabulary=37, steps=3),
    "encoder": lambda out: recipe().encoder(out, layers=1, width=36, heads=3, tokens=9),
}


def random_inputs(body: Graph) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: (rng.uniform(-1, 1, t.shape) if is_float(t.dtype) else rng.integers(0, 2, t.shape)).astype(to_numpy(t.dtype))
        for name in body.inputs for t in [body.types[name]]
    }


def default_schedule(body: Graph, target: Target) -> PrimFunc:
    """The first sketch that takes the group, as a build has it."""
    for sketch in SKETCHES:
        try:
            return schedule(body, target, sketch).func
        except ScheduleError:
            continue
    raise AssertionError(f"no sketch takes {anchor_name(body)}")


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("network", NETWORKS)
def test_schedules_keep_the_meaning(network: str, target: Target, tmp_path: Path):
    NETWORKS[network](tmp_path / "model.onnx")
    _, workloads = optimize_graph(import_onnx(tmp_path / "model.onnx"), target)
    assert workloads
    for workload in workloads.values():
        inputs, name = random_inputs(workload.body), anchor_name(workload.body)
        want = expected(workload.body, inputs)
        func = default_schedule(workload.body, target)
        for what, made in (("scheduled", interpreted(func, workload.body, inputs)),
                           ("compiled", compiled(workload.body, inputs, target))):
            for got, right in zip(made, want, strict=True):
                close(got, right, RTOL, RTOL, f"{what} {name}")
