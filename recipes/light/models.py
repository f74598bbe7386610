"""The nine light models of the onnx package: whole ImageNet networks whose weights are made by ConstantOfShape nodes.

Each function copies a model of the installed package with the verification data its own test suite uses: the input is
arange(n) / n, as `onnx.backend.test.runner.Runner.generate_dummy_data` makes it; the reference output comes with the model.

With one value in every weight a network hides mistakes: channels that are swapped, or weights packed in another order, give
the same output. The functions `*_seeded` therefore write the smaller six with seeded weights, and what enters the softmax as
a second output; these have no reference output of their own.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def copy_light(name: str, out: Path) -> None:
    """Copy `light_NAME.onnx` to `out`, and its data to test_data_set_0 beside it."""
    source = FOLDER / f"light_{name}.onnx"
    shutil.copyfile(source, out)
    graph = onnx.load(source).graph
    folder = out.parent / "test_data_set_0"
    folder.mkdir(exist_ok=True)
    constants = {tensor.name for tensor in graph.initializer}
    for i, value in enumerate(v for v in graph.input if v.name not in constants):
        data = numpy_helper.from_array(ramp([d.dim_value for d in value.type.tensor_type.shape.dim]), value.name)
        (folder / f"input_{i}.pb").write_bytes(data.SerializeToString(deterministic=True))
    for i in range(len(graph.output)):
        shutil.copyfile(FOLDER / f"light_{name}_output_{i}.pb", folder / f"output_{i}.pb")


def ramp(shape: list[int]) -> np.ndarray:
    """0, 1/n, 2/n, ... in float32, divided in float64 first, as onnx does."""
    n = np.prod(shape)
    return (np.arange(n).reshape(shape) / n).astype(np.float32)


def write_seeded(name: str, out: Path, *, gain: float = 1.0) -> None:
    """Write the model with every ConstantOfShape replaced by a weight of that shape, which suits how it is used.

    gain: below 1 where additions of branches let the values grow from block to block.
    """
    model = onnx.load(FOLDER / f"light_{name}.onnx")
    graph, bits = model.graph, np.random.PCG64(1000)
    shapes = {tensor.name: numpy_helper.to_array(tensor).tolist() for tensor in graph.initializer}
    constants = {node.output[0]: shapes[node.input[0]] for node in graph.node if node.op_type == "ConstantOfShape"}
    roles = dict(_roles(graph))
    _keep(graph.node, [node for node in graph.node if node.op_type != "ConstantOfShape"])
    read = {name for node in graph.node for name in node.input}
    _keep(graph.input, [v for v in graph.input if v.name in read - shapes.keys()])
    _keep(graph.initializer, [p for p in graph.initializer if p.name in read])
    for value, shape in constants.items():
        graph.initializer.append(numpy_helper.from_array(_weight(bits, shape, roles.get(value, "weight"), gain), value))
    if graph.node[-1].op_type == "Softmax":
        graph.output.append(graph.output[0])      # a softmax keeps the shape
        graph.output[-1].name = graph.node[-1].input[0]
    model.ir_version = 8                          # before 4 every initializer had to be an input as well
    out.write_bytes(model.SerializeToString(deterministic=True))


def _keep(field: Any, items: list[Any]) -> None:
    del field[:]
    field.extend(items)


def _roles(graph: onnx.GraphProto) -> Iterator[tuple[str, str]]:
    """What each value is used for, where it is not a weight: (value, "scale" | "shift" | "variance")."""
    through = {node.input[0]: node.output[0] for node in graph.node if node.op_type == "Unsqueeze"}
    back = {new: old for old, new in through.items()}
    for node in graph.node:
        if node.op_type == "BatchNormalization":
            yield from zip(node.input[1:5], ("scale", "shift", "shift", "variance"), strict=True)
        elif node.op_type in ("Mul", "Add"):
            yield from ((back[i], "scale" if node.op_type == "Mul" else "shift") for i in node.input if i in back)
        elif node.op_type in ("Conv", "Gemm") and len(node.input) > 2:
            yield node.input[2], "shift"


def _weight(bits: np.random.PCG64, shape: list[int], role: str, gain: float) -> np.ndarray:
    """Uniform numbers from the raw stream: He-scaled weights, scales and variances around 1, shifts around 0."""
    bound = gain * math.sqrt(6 / math.prod(shape[1:]))
    low, high = {"weight": (-bound, bound), "scale": (0.8, 1.2), "shift": (-0.1, 0.1), "variance": (0.7, 1.5)}[role]
    unit = (bits.random_raw(math.prod(shape)) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
    return (np.float32(low) + unit * np.float32(high - low)).reshape(shape)


alexnet = partial(copy_light, "bvlc_alexnet")
densenet121 = partial(copy_light, "densenet121")
inception_v1 = partial(copy_light, "inception_v1")
inception_v2 = partial(copy_light, "inception_v2")
resnet50 = partial(copy_light, "resnet50")
shufflenet = partial(copy_light, "shufflenet")
squeezenet = partial(copy_light, "squeezenet")
vgg19 = partial(copy_light, "vgg19")
zfnet512 = partial(copy_light, "zfnet512")

densenet121_seeded = partial(write_seeded, "densenet121")
inception_v1_seeded = partial(write_seeded, "inception_v1")
inception_v2_seeded = partial(write_seeded, "inception_v2")
resnet50_seeded = partial(write_seeded, "resnet50", gain=0.7)
shufflenet_seeded = partial(write_seeded, "shufflenet", gain=0.6)
squeezenet_seeded = partial(write_seeded, "squeezenet")
