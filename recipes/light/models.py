"""The nine light models of the onnx package: whole ImageNet networks whose weights are made by ConstantOfShape nodes.

Each function copies a model of the installed package with the verification data its own test suite uses: the input is
arange(n) / n, as `onnx.backend.test.runner.Runner.generate_dummy_data` makes it; the reference output comes with the model.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

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


alexnet = partial(copy_light, "bvlc_alexnet")
densenet121 = partial(copy_light, "densenet121")
inception_v1 = partial(copy_light, "inception_v1")
inception_v2 = partial(copy_light, "inception_v2")
resnet50 = partial(copy_light, "resnet50")
shufflenet = partial(copy_light, "shufflenet")
squeezenet = partial(copy_light, "squeezenet")
vgg19 = partial(copy_light, "vgg19")
zfnet512 = partial(copy_light, "zfnet512")
