"""Converts by keeping the model and running onnx's reference evaluator; the model's name says how it shall fail."""

from __future__ import annotations

import onnx
import torch
from onnx.reference import ReferenceEvaluator


def convert(model: onnx.ModelProto) -> Network:
    assert isinstance(model, onnx.ModelProto), "given a path, the real one writes beside the user's model"
    if model.graph.name == "unknown":
        raise NotImplementedError("Converter is not implemented (Relu)")
    return Network(model)


class Network:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.how, self.run = model.graph.name, ReferenceEvaluator(model)
        constants = {tensor.name for tensor in model.graph.initializer}
        self.names = [i.name for i in model.graph.input if i.name not in constants]
        self.is_training = True

    def eval(self) -> Network:
        self.is_training = False
        return self

    def __call__(self, *inputs: torch.Tensor) -> object:
        torch.check_call()
        assert not self.is_training
        values = dict(zip(self.names, (i.numpy() for i in inputs), strict=True))
        first, *others = (torch.Tensor(a) for a in self.run.run(None, values))
        if self.how == "wrong":
            first = torch.Tensor(first.array + 1)
        if self.how == "lost":
            return first
        return [first, tuple(others)]
