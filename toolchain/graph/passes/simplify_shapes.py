"""Rules of `simplify` that move, drop or merge operators which only rearrange elements. See simplify.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from toolchain.core import dtype as dtypes
from toolchain.graph.ir import Node
from toolchain.graph.passes.rewriting import Rewriting, Rule


def same_type(node: Node, state: Rewriting) -> bool:
    """Whether the first output has the type of the first input."""
    return state.types[node.output] == state.types[node.inputs[0]]


def drop_identity(node: Node, state: Rewriting) -> str | None:
    """Identity(x) -> x; and any operator of this rule whose output always equals its input when their types are equal."""
    return node.inputs[0] if same_type(node, state) else None


def drop_dropout(node: Node, state: Rewriting) -> str | None:
    """Dropout(x) -> x at inference, when nobody reads its mask."""
    training = node.inputs[2] if len(node.inputs) > 2 else ""
    if any(state.uses[mask] for mask in node.outputs[1:]) or (training and state.uniform(training) != 0):
        return None
    return node.inputs[0]


def as_reshape(node: Node, state: Rewriting) -> Sequence[Node]:
    """Squeeze, Unsqueeze, Flatten -> Reshape to the shape that comes out."""
    return [reshape(node, node.inputs[0], state)]


def reshape(node: Node, value: str, state: Rewriting) -> Node:
    """A Reshape of `value` that makes the output of `node`."""
    shape = state.int64(*state.shape(node.output))
    return Node("Reshape", (value, shape), (node.output,), name=node.name, sources=node.sources)


def simplify_reshape(node: Node, state: Rewriting) -> Sequence[Node] | str | None:
    """Reshape to the shape a value has already -> the value; Reshape(Reshape(x)) -> Reshape(x); 0 and -1 are resolved."""
    x, shape = node.inputs[:2]
    if same_type(node, state):
        return x
    if inner := state.made_by(x, "Reshape"):
        return [reshape(node, inner.inputs[0], state)]
    if state.integers(shape) != state.shape(node.output) or node.attrs:
        return [reshape(node, x, state)]
    return None


def permutation(node: Node, state: Rewriting) -> tuple[int, ...]:
    rank = len(state.shape(node.inputs[0]))
    return tuple(node.attrs.get("perm") or range(rank - 1, -1, -1))


def simplify_transpose(node: Node, state: Rewriting) -> Sequence[Node] | str | None:
    """Transpose(Transpose(x)) -> Transpose(x); one that moves only dimensions of extent 1 -> Reshape; identity -> x."""
    x = node.inputs[0]
    perm = permutation(node, state)
    if perm == tuple(range(len(perm))):
        return x
    moved = [d for d in perm if state.shape(x)[d] != 1]
    if moved == sorted(moved):
        return [reshape(node, x, state)]
    if inner := state.made_by(x, "Transpose"):
        first = permutation(inner, state)
        both = tuple(first[p] for p in perm)
        return [replace(node, inputs=inner.inputs, attrs={"perm": both})]
    return None


def drop_cast(node: Node, state: Rewriting) -> str | None:
    """Cast to the type a value has -> the value; Cast(Cast(x)) back to x's type over one that holds it exactly -> x."""
    x = node.inputs[0]
    if same_type(node, state):
        return x
    inner = state.made_by(x, "Cast")
    if inner and state.types[inner.inputs[0]] == state.types[node.output]:
        narrow, wide = state.types[node.output].dtype, state.types[x].dtype
        if _holds(wide, narrow):
            return inner.inputs[0]
    return None


def _holds(wide: str, narrow: str) -> bool:
    """Whether every number of one dtype is one of the other."""
    if dtypes.is_float(wide) and dtypes.is_float(narrow):
        return dtypes.bits(wide) > dtypes.bits(narrow)
    kinds = (dtypes.INTS, dtypes.UINTS)
    return any(wide in kind and narrow in kind and dtypes.bits(wide) > dtypes.bits(narrow) for kind in kinds)


def drop_slice(node: Node, state: Rewriting) -> str | None:
    """Slice that keeps every element in place -> x."""
    steps = state.integers(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] else (1,)
    return node.inputs[0] if same_type(node, state) and steps is not None and all(s == 1 for s in steps) else None


def drop_pad(node: Node, state: Rewriting) -> str | None:
    """Pad by nothing -> x."""
    pads = state.integers(node.inputs[1])
    return node.inputs[0] if pads is not None and not any(pads) else None


def drop_resize(node: Node, state: Rewriting) -> str | None:
    """Resize to the same size by factors of one -> x (samples fall on the elements, whatever the mode)."""
    scales = node.inputs[2] if len(node.inputs) > 2 else ""
    cropping = node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    stretching = node.attrs.get("keep_aspect_ratio_policy", "stretch") == "stretch"
    exact = state.uniform(scales) == 1.0 if scales else stretching
    return node.inputs[0] if same_type(node, state) and exact and not cropping else None


def drop_concat(node: Node, state: Rewriting) -> Sequence[Node] | str | None:
    """Concat of one value -> the value; operands without elements are left out."""
    full = tuple(i for i in node.inputs if state.types[i].elements)
    if len(full) == 1:
        return full[0]
    if full and len(full) < len(node.inputs):
        return [replace(node, inputs=full)]
    return None


def split_to_slices(node: Node, state: Rewriting) -> Sequence[Node] | str | None:
    """Split -> one Slice per part that is read: nodes of one output fuse with what reads them.

    a, b = Split(x, axis=1)   ->   a = Slice(x, 0, 3, axis 1); b = Slice(x, 3, 6, axis 1)
    """
    x = node.inputs[0]
    if len(node.outputs) == 1:
        return x
    axis = int(node.attrs.get("axis", 0)) % len(state.shape(x))
    nodes, start = [], 0
    for n, out in enumerate(node.outputs):
        if not out:
            return None
        end = start + state.shape(out)[axis]
        if state.uses[out]:
            inputs = (x, state.int64(start), state.int64(end), state.int64(axis), state.int64(1))
            nodes.append(Node("Slice", inputs, (out,), name=f"{node.name}.{n}", sources=node.sources))
        start = end
    return nodes


def drop_reduction(node: Node, state: Rewriting) -> Sequence[Node] | None:
    """Mean, sum, max, min or product over dimensions of extent 1 -> Reshape."""
    x = node.inputs[0]
    source, result = state.types[x], state.types[node.output]
    return [reshape(node, x, state)] if source.dtype == result.dtype and source.elements == result.elements else None


def drop_pool(node: Node, state: Rewriting) -> str | None:
    """A pooling window of one element, in steps of one, without padding -> x."""
    kernel, strides = node.attrs.get("kernel_shape", ()), node.attrs.get("strides", (1,))
    plain = all(k == 1 for k in kernel) and all(s == 1 for s in strides) and not any(node.attrs.get("pads", ()))
    one_output = not any(state.uses[o] for o in node.outputs[1:])
    return node.inputs[0] if plain and one_output and same_type(node, state) else None


def merge_pad(node: Node, state: Rewriting) -> Sequence[Node] | None:
    """Pad of the spatial dimensions, by what the window operator pads with, joins its `pads`.

    Conv(Pad(x, p), w, pads=q)                              ->   Conv(x, w, pads=p+q)
    AveragePool(Pad(x, p), pads=q, count_include_pad=1)     ->   AveragePool(x, pads=p+q, count_include_pad=1)
    MaxPool(Pad(x, p, -inf), pads=q)                        ->   MaxPool(x, pads=p+q)

    Left alone: other modes and values, padded batch or channels, cropping (negative pads), `auto_pad`, `ceil_mode`, and
    pooling windows that would lie in the padding altogether.
    """
    pad = state.made_by(node.inputs[0], "Pad")
    if pad is None or pad.attrs.get("mode", "constant") != "constant" or node.attrs.get("auto_pad", "NOTSET") != "NOTSET":
        return None
    rank = len(state.shape(node.inputs[0]))
    added = _spatial_pads(pad, rank, state)
    if added is None or node.attrs.get("ceil_mode", 0) or len(node.outputs) > 1:
        return None
    value = state.uniform(pad.inputs[2]) if len(pad.inputs) > 2 and pad.inputs[2] else 0.0
    own = tuple(node.attrs.get("pads") or (0,) * len(added))
    attrs = {**node.attrs, "pads": tuple(a + b for a, b in zip(own, added, strict=True))}
    if value != (-math.inf if node.op == "MaxPool" else 0.0):
        return None
    if node.op == "AveragePool":
        if any(own) and not node.attrs.get("count_include_pad", 0):
            return None
        attrs["count_include_pad"] = 1
    if node.op != "Conv" and any(p >= k for p, k in zip(attrs["pads"], node.attrs["kernel_shape"] * 2, strict=True)):
        return None
    return [replace(node, inputs=(pad.inputs[0], *node.inputs[1:]), attrs=attrs)]


def _spatial_pads(pad: Node, rank: int, state: Rewriting) -> tuple[int, ...] | None:
    """Pads (begins, then ends) of the dimensions after the second; None when others are padded, or any is negative."""
    pads = state.integers(pad.inputs[1])
    axes: tuple[int, ...] | None = tuple(range(rank))
    if len(pad.inputs) > 3 and pad.inputs[3]:
        axes = state.integers(pad.inputs[3])
    if pads is None or axes is None or min(pads, default=0) < 0:
        return None
    begin, end = [0] * rank, [0] * rank
    for n, axis in enumerate(axes):
        begin[axis], end[axis] = pads[n], pads[len(axes) + n]
    if any(begin[:2]) or any(end[:2]):
        return None
    return (*begin[2:], *end[2:])


SHAPE_RULES: Mapping[str, Sequence[Rule]] = {
    "Identity": (drop_identity,),
    "Dropout": (drop_dropout,),
    "Expand": (drop_identity,),
    "Tile": (drop_identity,),
    "Squeeze": (as_reshape,),
    "Unsqueeze": (as_reshape,),
    "Flatten": (as_reshape,),
    "Reshape": (simplify_reshape,),
    "Transpose": (simplify_transpose,),
    "Cast": (drop_cast,),
    "CastLike": (drop_cast,),
    "Slice": (drop_slice,),
    "Pad": (drop_pad,),
    "Resize": (drop_resize,),
    "Concat": (drop_concat,),
    "Split": (split_to_slices,),
    "ReduceMean": (drop_reduction,),
    "ReduceSum": (drop_reduction,),
    "ReduceMax": (drop_reduction,),
    "ReduceMin": (drop_reduction,),
    "ReduceProd": (drop_reduction,),
    "GlobalAveragePool": (drop_identity,),
    "GlobalMaxPool": (drop_identity,),
    "AveragePool": (drop_pool, merge_pad),
    "MaxPool": (drop_pool, merge_pad),
    "Conv": (merge_pad,),
}
