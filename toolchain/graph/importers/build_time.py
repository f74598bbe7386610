"""Which inputs of a model must be known when it is built: those that decide a shape, an axis or how often a loop runs.

ONNX passes such numbers as tensors, so a model may leave them to be given at run time. Everything here is static, so they
become constants of the import (`import_model(..., constants=...)`).
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from toolchain.graph.importers.contrib import contrib_function

DECIDES: dict[str, tuple[int, ...]] = {
    "AffineGrid": (1,),
    "BlackmanWindow": (0,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "ConstantOfShape": (0,),
    "CumSum": (1,),
    "CumProd": (1,),
    "DFT": (1, 2),
    "Dropout": (1, 2),
    "Expand": (1,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "Loop": (0, 1),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1, 2, 3, 4),
    "NonMaxSuppression": (2,),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "STFT": (1, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "SplitToSequence": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
    **{f"Reduce{kind}": (1,) for kind in (
        "L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")},
}
"""Operator -> the inputs, by position, that its output's shape or its loops depend on by value."""

BY_SHAPE = frozenset(("Shape", "Size"))


def build_time_inputs(model: onnx.ModelProto) -> tuple[str, ...]:
    """The graph inputs whose value decides a shape somewhere, in the model's order."""
    needed: set[str] = set()
    functions = {(f.domain, f.name): f for f in model.functions}
    _mark(model.graph.node, needed, functions)
    weights = {t.name for t in model.graph.initializer}
    return tuple(i.name for i in model.graph.input if i.name in needed and i.name not in weights)


def _mark(
    nodes: Iterable[onnx.NodeProto], needed: set[str], functions: dict[tuple[str, str], onnx.FunctionProto],
) -> None:
    """Add what `nodes` need to know; walking backwards, what they need leads to what that is computed from."""
    for node in reversed(list(nodes)):
        wanted = any(o in needed for o in node.output if o)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                needed.update(o.name for o in attribute.g.output if wanted)
                _mark(attribute.g.node, needed, functions)
        if wanted and node.op_type not in BY_SHAPE:
            needed.update(i for i in node.input if i)
        function = functions.get((node.domain, node.op_type)) or contrib_function(node)
        if function is not None:
            inside = {formal for formal, actual in zip(function.output, node.output) if actual in needed}
            _mark(function.node, inside, functions)
            needed.update(given for formal, given in zip(function.input, node.input) if formal in inside and given)
        else:
            needed.update(node.input[n] for n in DECIDES.get(node.op_type, ()) if n < len(node.input) and node.input[n])


__all__ = ["DECIDES", "build_time_inputs"]
