"""Static cycles of the inner loops that networks spend their time in, as LLVM's model of a Cortex-A53 counts them.

    .venv/bin/python benchmarks/a53.py [--cpu cortex-a53]

Each line is an innermost loop of a kernel as a build compiles it: instructions, multiply-adds of vectors, spilled vectors,
and what `llvm-mca -mcpu=...` (Debian: the package llvm) says of one iteration. These are no times: the model knows no caches
and no memory.

    products      a matrix product in register tiles of rows x columns, the default first; values of each row for four
                  steps take a register, so that 8x12 with its 24 sums does not fit beside them
    convolutions  direct ones and depthwise ones, default schedules
    Winograd      the loops of its transforms and of its products
    packing       from row-major to blocks of channels, and back
    8 bits        a product in pairs (smull, smlal2 and sadalp of sixteen bytes; a multiply-add is one of four products there
                  as well), and by smlal, as where weights of a column are -128 twice
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from toolchain.core.errors import ToolchainError
from toolchain.core.layout import TensorType
from toolchain.core.target import Target
from toolchain.graph.importers.onnx import import_onnx
from toolchain.graph.ir import Graph, Node
from toolchain.kernels.build import anchor_name, schedule
from toolchain.kernels.layouts import weights
from toolchain.kernels.sketches.select import SKETCHES
from toolchain.kernels.tiling import matmul_tiles
from toolchain.targets.llvm.backend import LLVM
from toolchain.targets.llvm.mca import loop_cycles
from toolchain.targets.llvm.object import assembly, spills
from toolchain.targets.presets import target
from toolchain.tasks.optimize import optimize_graph
from toolchain.te.lower import lower
from toolchain.te.tune.choices import Choices

TILES = ((8, 2), (6, 3), (5, 4), (4, 4), (12, 1))            # rows, vectors of columns
HEAD = f"{'':34}{'instructions':>13}{'multiply-adds':>15}{'spills':>8}{'cycles':>9}{'per multiply-add':>18}"


def conv(channels: int, outputs: int, size: int, kernel: int, stride: int = 1, groups: int = 1) -> onnx.ModelProto:
    """A convolution with bias and relu behind one that brings channels into blocks, if there are enough of them."""
    rng, nodes, constants, x, first = np.random.default_rng(0), [], [], "x", 3
    if channels > 3:
        constants.append(numpy_helper.from_array(rng.standard_normal((channels, 3, 1, 1)).astype(np.float32), "w0"))
        nodes.append(helper.make_node("Conv", ["x", "w0"], ["h"], kernel_shape=[1, 1]))
        x = "h"
    w = rng.standard_normal((outputs, channels // groups, kernel, kernel)).astype(np.float32)
    constants += [numpy_helper.from_array(w, "w"), numpy_helper.from_array(np.zeros(outputs, np.float32), "b")]
    nodes += [helper.make_node("Conv", [x, "w", "b"], ["c"], kernel_shape=[kernel] * 2, strides=[stride] * 2,
                               pads=[kernel // 2] * 4, group=groups), helper.make_node("Relu", ["c"], ["y"])]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "net", [value("x", TensorProto.FLOAT, [1, first, size, size])],
                              [value("y", TensorProto.FLOAT, None)], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


LAYERS = {
    "7x7, 3 channels, stride 2": (conv(3, 64, 224, 7, 2), "conv"),
    "1x1, 128 channels, 28x28": (conv(128, 128, 28, 1), "conv"),
    "1x1, 512 channels, 14x14": (conv(512, 512, 14, 1), "conv"),
    "3x3, 64 channels, stride 2": (conv(64, 128, 56, 3, 2), "conv"),
    "depthwise 3x3, 14x14": (conv(512, 512, 14, 3, groups=512), "conv"),
    "depthwise 3x3, stride 2": (conv(64, 64, 112, 3, 2, groups=64), "conv"),
    "Winograd 3x3, 64 channels, 56x56": (conv(64, 64, 56, 3), "winograd"),
    "packing of 64 channels, 56x56": (conv(64, 64, 56, 3), "layout"),
}


def product(rows: int, inner: int, columns: int, vectors: int, on: Target) -> Graph:
    """A matrix product whose second operand is packed in panels of so many vectors."""
    packed = weights("KN", [(1, 0), (0, 0), (1, vectors * on.lanes())])
    types = {"a": TensorType.plain((rows, inner), "float32"), "y": TensorType.plain((rows, columns), "float32"),
             "b": TensorType.plain((inner, columns), "float32").with_layout(packed)}
    return Graph("product", (Node("MatMul", ("a", "b"), ("y",)),), ("a", "b"), ("y",), types)


def small_product(lowest: int) -> onnx.ModelProto:
    """MatMulInteger of 192x384 and 384x384 signed bytes, of which weights are no lower than that."""
    value = helper.make_tensor_value_info
    w = np.random.default_rng(0).integers(lowest, 128, (384, 384)).astype(np.int8)
    graph = helper.make_graph([helper.make_node("MatMulInteger", ["x", "w"], ["y"])], "net",
                              [value("x", TensorProto.INT8, [192, 384])], [value("y", TensorProto.INT32, None)],
                              [numpy_helper.from_array(w, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def loops(body: Graph, on: Target, answers: dict[str, str] | None = None) -> Iterator[str]:
    """Lines of a kernel: its loops with multiply-adds, or all of them where there are none. Of pairs four per smlal2."""
    each = 4 if any(node.attrs.get("pairs") for node in body.nodes) else 1
    func = lower(schedule(body, on, SKETCHES[0], Choices(answers or {})).func, on, LLVM.passes)
    code = assembly(str(LLVM.stages[0].run(func, "k", {}, on)), on)
    found, spilled = loop_cycles(code, on), len(spills(code))
    for loop in [f for f in found if f.multiply_adds] or found:
        per = f"{loop.per_multiply_add / each:.2f}" if loop.multiply_adds else ""
        yield f"{loop.instructions:>13}{loop.multiply_adds * each:>15}{spilled:>8}{loop.cycles:>9.1f}{per:>18}"


def layer(model: onnx.ModelProto, on: Target) -> list[Graph]:
    """The bodies of a network's kernels."""
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, Path(folder) / "model.onnx")
        _, workloads = optimize_graph(import_onnx(Path(folder) / "model.onnx"), on)
    return [w.body for w in workloads.values()]


def lines(on: Target) -> Iterator[str]:
    yield f"static cycles of {on.name}, one iteration of each innermost loop\n\nproducts of 192x384 and 384x384"
    best = matmul_tiles(192, 384 // on.lanes(), on, streamed=True)[0]
    default = best.columns, best.vectors
    for rows, vectors in dict.fromkeys((default, *TILES)):
        name = f"  tile {rows}x{vectors * on.lanes()}" + (" (default)" if (rows, vectors) == default else "")
        for line in loops(product(192, 384, 384, vectors, on), on, {"tile": f"1x{rows}x{vectors}"}):
            yield f"{name:34}{line}"
    yield "\nlayers"
    for name, (model, wanted) in LAYERS.items():
        body = [b for b in layer(model, on) if anchor_name(b).startswith(wanted)][-1]
        for line in loops(body, on):
            yield f"  {name:32}{line}"


    yield "\n8 bits, 192x384 and 384x384"
    for name, lowest in (("sdot" if on.has("dotprod") else "pairs", -127), ("smlal", -128)):
        (body,) = [b for b in layer(small_product(lowest), on) if "matmul" in anchor_name(b)]
        for line in loops(body, on):
            yield f"  {'by ' + name:32}{line}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cpu", default="cortex-a53", help="a preset of kind aarch64")
    try:
        found = lines(target(parser.parse_args(arguments).cpu))
        print(f"{next(found)}\n{HEAD}")
        for line in found:
            print(line)
    except ToolchainError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
