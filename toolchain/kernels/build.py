"""A fused group of graph nodes -> te stages -> scheduled PrimFunc. The one way a kernel comes to be, for every target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from toolchain import te
from toolchain.core import dtype as dtypes
from toolchain.core.errors import CodegenError, InternalError
from toolchain.core.layout import TensorType
from toolchain.core.target import Target
from toolchain.graph.ir import Graph, Node
from toolchain.kernels.loops import LOOPS
from toolchain.kernels.op import Op
from toolchain.kernels.table import COMPUTES, TAKES_SMALL
from toolchain.te.tune.choices import Choices


def define(body: Graph) -> tuple[list[te.Tensor], list[te.Tensor]]:
    """The te definitions of a fused body: (inputs, outputs). Stage and tensor names are ours, never the model's."""
    values: dict[str, te.Tensor] = {}
    names = {f"x{n}" for n in range(len(body.inputs))}
    for n, name in enumerate(body.inputs):
        type_ = body.types[name]
        values[name] = te.placeholder(type_.shape, dtypes.storage(type_.dtype), name=f"x{n}")
    for node in body.nodes:
        results = _compute(node, body, values, names)
        values.update({name: t for name, t in zip(node.outputs, results, strict=False) if name})
    return [values[i] for i in body.inputs], [values[o] for o in body.outputs]


def _compute(node: Node, body: Graph, values: Mapping[str, te.Tensor], names: set[str]) -> tuple[te.Tensor, ...]:
    compute = COMPUTES.get(node.op)
    if compute is None:
        raise CodegenError(f"no kernel for operator {node.op}", where=", ".join(node.sources) or node.name)
    made = compute(_op(node, body, values, names))
    return made if isinstance(made, tuple) else (made,)


def _op(node: Node, body: Graph, values: Mapping[str, te.Tensor], names: set[str]) -> Op:
    stated = [body.types[v] for v in (*node.inputs, *node.outputs) if v]
    if small := [t.dtype for t in stated if t.dtype in dtypes.SMALL and node.op not in TAKES_SMALL]:
        raise CodegenError(f"{node.op} of {small[0]} is not supported", where=", ".join(node.sources) or node.name,
                           fix="Cast or DequantizeLinear to a type that is computed with")
    constants = [_bytes(body.params[i]) if i in body.params else None for i in node.inputs]
    return Op(
        node, tuple(values.get(i) if i else None for i in node.inputs), tuple(constants),
        tuple(_stored(body.types[o]) for o in node.outputs if o),
        tuple(_stored(body.types[i]) if i else None for i in node.inputs), names,
        tuple(body.types[i].dtype if i else "" for i in node.inputs), tuple(body.types[o].dtype for o in node.outputs if o),
    )


def _stored(t: TensorType) -> TensorType:
    """The type as kernels see it: small types as bytes."""
    return replace(t, dtype=dtypes.storage(t.dtype))


def _bytes(array: np.ndarray) -> np.ndarray:
    return array.view(np.uint8) if array.dtype.name in dtypes.SMALL else array


Sketcher = Callable[[te.Schedule, Target, Choices], None]


def schedule(body: Graph, target: Target, sketch: Sketcher, choices: Choices | None = None) -> te.Schedule:
    """Define the group, attach the layouts its types ask for, and let the sketch schedule it (with the default answers,
    unless `choices` has others). What is written as loops has its order already."""
    if (loops := _loops(body)) is not None:
        return te.Schedule(loops)
    inputs, outputs = collapsed(body)
    s = te.create_schedule(outputs, name=anchor_name(body), inputs=inputs)
    for name, tensor in zip((*body.inputs, *body.outputs), (*inputs, *outputs), strict=True):
        if not (layout := body.types[name].layout).is_row_major:
            s.set_layout(tensor, layout)
    sketch(s, target, Choices() if choices is None else choices)
    return s


def collapsed(body: Graph) -> tuple[list[te.Tensor], list[te.Tensor]]:
    """The te definitions of a fused body over as few dimensions as they need: (inputs, outputs). As they are when a stage's
    sketch knows its dimensions by number (it has attrs); tensors in other layouts than row-major keep theirs."""
    inputs, outputs = define(body)
    blocked = [t for name, t in zip((*body.inputs, *body.outputs), (*inputs, *outputs), strict=True)
               if not body.types[name].layout.is_row_major]
    for stage in te.stages_of(outputs, inputs)[1]:
        assert isinstance(stage.op, te.Compute)
        single = stage.op.tag == "pool" and stage.shape[-1:] == (1,) and not blocked         # a reduction like others
        if stage.op.attrs and stage.op.tag != "concat" and not single:
            return inputs, outputs
    made, given = te.collapse(outputs, inputs, blocked)
    return given, made


def _loops(body: Graph) -> te.PrimFunc | None:
    """The loops of a body that is one operator of LOOPS, unless its te definition is better (or there is no other)."""
    if len(body.nodes) != 1 or (made := LOOPS.get(body.nodes[0].op)) is None:
        return None
    types = [body.types[i] for i in body.inputs]
    if not all(body.types[v].layout.is_row_major for v in (*body.inputs, *body.outputs)):
        if body.nodes[0].op in COMPUTES:
            return None
        raise InternalError(f"{body.nodes[0].op} is written as loops over plain tensors, and was given another layout")
    values = {name: te.placeholder(t.shape, t.dtype, name=f"x{n}") for n, (name, t) in enumerate(zip(body.inputs, types))}
    return made(_op(body.nodes[0], body, values, {t.name for t in values.values()}), anchor_name(body))


def anchor_name(body: Graph) -> str:
    """What the kernel is called in dumps and reports: its operators, the model's names left out."""
    ops = [n.op.lower() for n in body.nodes]
    return "_".join(ops[:4]) + (f"_{len(ops) - 4}more" if len(ops) > 4 else "")

