"""The meaning of a graph: a NumPy interpreter, the reference every pass and every kernel is compared with.

ONNX operators run through onnx.reference, except those listed in `numpy_ops.RULES`; control flow and our own operators
have their rules here. Slow, plain and meant to be right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from toolchain.core.dtype import from_numpy, to_numpy
from toolchain.core.errors import ImportModelError, InternalError, UsageError
from toolchain.core.layout import TensorType
from toolchain.graph import numpy_bounded, numpy_deform, numpy_ops, winograd
from toolchain.graph.infer import where
from toolchain.graph.ir import Graph, Node
from toolchain.graph.protos import OPSET, node_proto, schema, type_proto

Arrays = Sequence[np.ndarray | None]
_RUN_PARAMS = {"log": lambda pattern, *args: None, "opsets": {"": OPSET}, "verbose": 0, "new_ops": None}


def interpret(graph: Graph, inputs: Mapping[str, np.ndarray], keep: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """Run `graph` on logical arrays; gives its outputs, and the values named in `keep` besides.

    Raises InternalError when an array is missing or when one does not have the type the graph states.
    """
    values: dict[str, np.ndarray] = dict(graph.params)
    for name in graph.inputs:
        if name not in inputs:
            raise InternalError(f"interpret {graph.name}: no array for input {name!r}")
        values[name] = _checked(inputs[name], graph.types[name], f"input {name!r}")
    wanted = dict.fromkeys((*graph.outputs, *keep))
    left = _uses(graph, wanted)
    for node in graph.nodes:
        made = evaluate(node, [values[i] if i else None for i in node.inputs])
        for name, array in zip(node.outputs, made, strict=True):
            if name:
                values[name] = _checked(array, graph.types[name], f"{where(node)} output {name!r}")
        for name in node.inputs:                # let go of what nobody reads any more: large models fit in memory
            left[name] = left.get(name, 0) - 1
            if left[name] == 0 and name not in graph.params:
                values.pop(name, None)
    return {name: values[name] for name in wanted}


def evaluate(node: Node, arrays: Arrays) -> tuple[np.ndarray, ...]:
    """One array per output of `node`, from one per input (None: a missing optional input).

    Raises ImportModelError naming the node when its operator has no reference implementation.
    """
    with np.errstate(all="ignore"):
        if (rule := RULES.get(node.op)) is not None:
            return rule(node, arrays)
        if (fast := numpy_ops.RULES.get(node.op)) is not None and (made := fast(node, arrays)) is not None:
            return tuple(np.asarray(a) for a in made)
        return _reference(node, arrays)


def _uses(graph: Graph, wanted: Iterable[str]) -> dict[str, int]:
    count: dict[str, int] = dict.fromkeys(wanted, 1)
    for node in graph.nodes:
        for name in node.inputs:
            count[name] = count.get(name, 0) + 1
    return count


def _checked(array: np.ndarray, t: TensorType, what: str) -> np.ndarray:
    """`array` if it has the type stated; onnx.reference sometimes answers in a wider dtype, which is cast back."""
    array = np.asarray(array)
    if array.shape != t.shape:
        raise InternalError(f"{what}: shape {list(array.shape)}, but the graph says {t}")
    want = to_numpy(t.dtype)
    if array.dtype == want:
        return array
    if what.startswith("input"):
        raise InternalError(f"{what}: {array.dtype}, but the graph says {t}")
    return array.astype(want)


@cache
def _builtin(op: str) -> Any:
    """onnx.reference's class of an operator; None when only ONNX's function body describes it."""
    from onnx.reference.ops._op_list import load_op  # 200 modules, which most imports and most builds never need

    try:
        return load_op("", op, OPSET)
    except (AssertionError, NotImplementedError, RuntimeError):
        return None


def _reference(node: Node, arrays: Arrays) -> tuple[np.ndarray, ...]:
    known = schema(node.op)
    if known is None:
        raise ImportModelError("ONNX has no such operator, so there is no reference for it", where=where(node))
    proto = node_proto(node)
    implementation = _builtin(node.op)
    try:
        if implementation is None:
            from onnx.reference import ReferenceEvaluator
            from onnx.reference.ops._op_list import load_op

            types = [type_proto(TensorType.plain(a.shape, from_numpy(a.dtype))) for a in arrays if a is not None]
            implementation = load_op("", node.op, OPSET, node=proto, input_types=types, evaluator_cls=ReferenceEvaluator)
        made = implementation(proto, _RUN_PARAMS).run(*(arrays if arrays else ()))
    except (NotImplementedError, AssertionError) as e:
        raise ImportModelError(f"has no reference implementation: {e}", where=where(node)) from None
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as e:
        raise ImportModelError(f"cannot be computed: {type(e).__name__}: {e}", where=where(node)) from e
    found = tuple(np.asarray(a) for a in made)
    return found[:len(node.outputs)]


def _layout(node: Node, arrays: Arrays) -> tuple[np.ndarray, ...]:
    """Layouts are how a tensor is stored; the logical array stays the same."""
    return (_given(arrays[0]),)


def _winograd_conv(node: Node, arrays: Arrays) -> tuple[np.ndarray, ...]:
    """Through the transforms as the kernel does, rounded once at the end."""
    x, u, bias = _given(arrays[0]), _given(arrays[1]), arrays[2] if len(arrays) > 2 else None
    attrs, taps = node.attrs, node.attrs.get("taps", 3)
    if node.op == "WinogradConv" and attrs.get("stride", 1) > 1:
        y = winograd.convolve_strided(x, u, attrs["pads"], attrs["m"], taps, attrs["stride"], attrs["size"])
    elif node.op == "WinogradConv":
        y = winograd.convolve(x, u, attrs["pads"], attrs["m"], taps)
    else:
        y = winograd.convolve_transposed(x, u, attrs["pads"], attrs["m"], taps, attrs["size"])
    if bias is not None:
        y = y + bias.reshape(-1, 1, 1)
    return (y.astype(x.dtype),)


def _fused(node: Node, arrays: Arrays) -> tuple[np.ndarray, ...]:
    return _run_body(node.attrs["body"], arrays)


def _run_body(body: Graph, arrays: Arrays) -> tuple[np.ndarray, ...]:
    made = interpret(body, {n: _given(a) for n, a in zip(body.inputs, arrays, strict=True)})
    return tuple(made[o] for o in body.outputs)


def _given(array: np.ndarray | None) -> np.ndarray:
    if array is None:
        raise InternalError("a required input is missing")
    return array


def _if(node: Node, arrays: Arrays) -> tuple[np.ndarray, ...]:
    taken = "then_branch" if bool(_given(arrays[0]).reshape(())) else "else_branch"
    return _run_body(node.attrs[taken], arrays[1:])


def _fail(node: Node, arrays: Arrays) -> tuple[np.ndarray, ...]:
    raise UsageError(f"the inputs lead to a part of the model that does not fit their shapes: {node.attrs['reason']}",
                     where=", ".join(node.sources),
                     fix="choose the input that decides it: models.<name>.data.inputs.<input>: {constant: ...}")


def _loop(node: Node, arrays: Arrays) -> tuple[np.ndarray, ...]:
    body: Graph = node.attrs["body"]
    count = len(arrays) - 2 - node.attrs.get("captures", 0)
    trip = None if arrays[0] is None else int(_given(arrays[0]).reshape(()))
    going = np.asarray(True) if arrays[1] is None else _given(arrays[1])
    states, captures = list(arrays[2:2 + count]), list(arrays[2 + count:])
    scans: list[list[np.ndarray]] = [[] for _ in body.outputs[1 + count:]]
    step = 0
    while bool(going.reshape(())) and (trip is None or step < trip):
        cond = going.reshape(body.types[body.inputs[1]].shape)
        first = np.asarray(step, "int64").reshape(body.types[body.inputs[0]].shape)
        going, *rest = _run_body(body, [first, cond, *states, *captures])
        states = list(rest[:count])
        for kept, value in zip(scans, rest[count:], strict=True):
            kept.append(value)
        step += 1
    stacked = [_stack(s, body.types[o], 0) for s, o in zip(scans, body.outputs[1 + count:], strict=True)]
    return (*(_given(s) for s in states), *stacked)


def _scan(node: Node, arrays: Arrays) -> tuple[np.ndarray, ...]:
    body: Graph = node.attrs["body"]
    width = node.attrs["num_scan_inputs"]
    captures = node.attrs.get("captures", 0)
    count = len(arrays) - captures - width
    outs = body.outputs[count:]
    in_axes = node.attrs.get("scan_input_axes", (0,) * width)
    in_back = node.attrs.get("scan_input_directions", (0,) * width)
    out_axes = node.attrs.get("scan_output_axes", (0,) * len(outs))
    out_back = node.attrs.get("scan_output_directions", (0,) * len(outs))
    states, fixed = list(arrays[:count]), arrays[count + width:]
    scans = [np.moveaxis(_given(a), axis, 0)[::-1 if back else 1]
             for a, axis, back in zip(arrays[count:count + width], in_axes, in_back, strict=True)]
    kept: list[list[np.ndarray]] = [[] for _ in outs]
    for step in range(len(scans[0])):
        made = _run_body(body, [*states, *(s[step] for s in scans), *fixed])
        states = list(made[:count])
        for values, value in zip(kept, made[count:], strict=True):
            values.append(value)
    stacked = [_stack(v[::-1] if back else v, body.types[o], axis)
               for v, o, axis, back in zip(kept, outs, out_axes, out_back, strict=True)]
    return (*(_given(s) for s in states), *stacked)


def _stack(values: Sequence[np.ndarray], t: TensorType, axis: int) -> np.ndarray:
    if values:
        return np.stack(values, axis)
    at = axis % (len(t.shape) + 1)
    return np.zeros((*t.shape[:at], 0, *t.shape[at:]), to_numpy(t.dtype))


def _roi_sample(node: Node, arrays: Arrays) -> tuple[np.ndarray, ...]:
    """RoiAlign with channels last."""
    x, *rest = arrays
    assert x is not None
    (made,) = evaluate(Node("RoiAlign", node.inputs, node.outputs, node.attrs), [x.transpose(0, 3, 1, 2), *rest])
    return (np.ascontiguousarray(made.transpose(0, 2, 3, 1)),)


def _grid_sample_last(node: Node, arrays: Arrays) -> tuple[np.ndarray, ...]:
    """GridSample with channels last."""
    x, grid = arrays
    assert x is not None
    (made,) = evaluate(Node("GridSample", node.inputs, node.outputs, node.attrs), [np.moveaxis(x, -1, 1), grid])
    return (np.ascontiguousarray(np.moveaxis(made, 1, -1)),)


RULES: dict[str, Callable[[Node, Arrays], tuple[np.ndarray, ...]]] = {
    **numpy_bounded.RULES, **numpy_deform.RULES,
    "Layout": _layout,
    "GridSampleLast": _grid_sample_last,
    "RoiSample": _roi_sample,
    "WinogradConv": _winograd_conv,
    "WinogradConvTranspose": _winograd_conv,
    "Fused": _fused,
    "Fail": _fail,
    "If": _if,
    "Loop": _loop,
    "Scan": _scan,
}

