"""PyTorch as a contender: it cannot read ONNX files, so it runs what the package onnx2torch makes of them.

What is timed is therefore PyTorch on a converted network: the converter's choice of modules, PyTorch's kernels, one call per
module from Python. `measure` compares its results with the reference and refuses it where they are not the model's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.core.errors import ImportModelError
from toolchain.report.contenders import Prepared, version_of


class Torch:
    """Eager PyTorch in inference mode on `onnx2torch.convert(model)`; nothing is compiled or traced."""

    def prepare(self, model: Path, inputs: Mapping[str, np.ndarray], threads: int, options: Mapping[str, str]) -> Prepared:
        import onnx
        import onnx2torch
        import torch

        torch.set_num_threads(threads)
        torch.set_num_interop_threads(1)
        proto = onnx.load(str(model))
        constants = {tensor.name for tensor in proto.graph.initializer}
        self._torch, self._names = torch, [o.name for o in proto.graph.output]
        constants_to_initializers(proto)
        try:
            self._network = onnx2torch.convert(proto).eval()
        except Exception as error:                          # of any kind: it does not check models, it stumbles over them
            raise ImportModelError(f"onnx2torch cannot convert it: {type(error).__name__}: {error}") from error
        self._inputs = [torch.from_numpy(np.asarray(inputs[i.name], order="C"))
                        for i in proto.graph.input if i.name not in constants]
        self.call()
        self.outputs()                                      # fails now, not after it was timed, where it has too few
        return Prepared(torch.__version__, {
            "threads": f"{torch.get_num_threads()}", "converted by": f"onnx2torch {version_of('onnx2torch')}",
            "mode": "eager, inference_mode", "torch.compile": "no", "io": "bound",
        })

    def call(self) -> None:
        with self._torch.inference_mode():
            self._results: Any = self._network(*self._inputs)

    def outputs(self) -> Mapping[str, np.ndarray]:
        found = list(_tensors(self._results))
        if len(found) != len(self._names):
            raise ImportModelError(f"onnx2torch made a network of {len(found)} outputs, the model has {len(self._names)}")
        return {name: tensor.numpy() for name, tensor in zip(self._names, found, strict=True)}


def constants_to_initializers(proto: Any) -> None:
    """Constant nodes of the main graph become initializers, in place: onnx2torch finds weights only there.

        w = Constant(value)    ->    initializer w
    """
    outputs = {o.name for o in proto.graph.output}
    for node in list(proto.graph.node):
        if node.op_type == "Constant" and node.attribute[0].name == "value" and node.output[0] not in outputs:
            tensor = proto.graph.initializer.add()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
            proto.graph.node.remove(node)


def _tensors(results: Any) -> Iterator[Any]:
    """What a converted network returns: one tensor, or those of several nodes in the order of the model's outputs."""
    if isinstance(results, (list, tuple)):
        for result in results:
            yield from _tensors(result)
    else:
        yield results
