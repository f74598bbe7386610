"""A failing network made small: outputs dropped, nodes cut off before and after, while the same kind of failure stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from .builder import Case, make_model, session

MOST_TRIES = 80


def minimize(case: Case, fails: Callable[[Case], bool]) -> Case:
    """The smallest case that greedy steps reach; `fails` says whether a smaller one still does."""
    tries = 0
    while tries < MOST_TRIES:
        for smaller in _smaller(case):
            tries += 1
            if fails(smaller):
                case = smaller
                break
            if tries >= MOST_TRIES:
                return case
        else:
            return case
    return case


def _smaller(case: Case) -> Iterator[Case]:
    graph = case.model.graph
    nodes = list(graph.node)
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    values = {**all_values(case), **case.inputs}
    outputs = [o.name for o in graph.output]
    made = {o for n in nodes for o in n.output}
    if len(outputs) > 1:
        for output in outputs:
            yield rebuild(nodes, [output], constants, values)
    for node in reversed(nodes):                        # begin later: what it computes is given
        kept = [n for n in nodes if n is not node]
        if len(nodes) > 1 and any(o in outputs for o in node.output):
            before = [i for i in node.input if i in made]
            rest = [o for o in outputs if o not in node.output]
            if before or rest:                          # end earlier
                yield rebuild(kept, list(dict.fromkeys([*rest, *before])), constants, values)
    for node in nodes:
        kept = [n for n in nodes if n is not node]
        if kept and not any(o in outputs for o in node.output):
            yield rebuild(kept, outputs, constants, values)


def rebuild(nodes: list[onnx.NodeProto], outputs: list[str], constants: dict[str, np.ndarray],
            values: dict[str, np.ndarray]) -> Case:
    """The network of the nodes that `outputs` need; values that none of them computes are inputs."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if any(o in needed for o in node.output):
            kept.insert(0, node)
            needed.update(i for i in node.input if i)
    made = {o for n in kept for o in n.output}
    inputs = {n: values[n] for n in values if n in needed and n not in made and n not in constants}
    weights = {n: a for n, a in constants.items() if n in needed}
    expected = {o: values[o] for o in outputs}
    return Case(make_model(kept, inputs, expected, weights), inputs, expected)


def all_values(case: Case) -> dict[str, np.ndarray]:
    """Every value that a node computes, by ONNX Runtime."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    names = [o for n in model.graph.node for o in n.output if o]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    return dict(zip(names, session(model).run(None, case.inputs), strict=True))


def describe(case: Case) -> str:
    """The network in a few lines."""
    shapes = {t.name: list(t.dims) for t in case.model.graph.initializer}
    values = {**{n: list(a.shape) for n, a in case.inputs.items()}, **shapes}
    lines = [f"inputs: {', '.join(f'{n} {a.dtype}{list(a.shape)}' for n, a in case.inputs.items())}"]
    for node in case.model.graph.node:
        operands = ", ".join(f"{i}{values[i]}" if i in shapes else i for i in node.input)
        attrs = ", ".join(onnx.helper.printable_attribute(a) for a in node.attribute)
        lines.append(f"{', '.join(node.output)} = {node.op_type}({operands}) {attrs}")
    for tensor in case.model.graph.initializer:
        if np.prod(tensor.dims) <= 8:
            lines.append(f"{tensor.name} = {numpy_helper.to_array(tensor).tolist()}")
    return "\n".join([*lines, f"outputs: {', '.join(case.expected)}"]) + "\n"
