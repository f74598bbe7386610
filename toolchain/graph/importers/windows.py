"""Sliding windows spelled out: auto_pad becomes pads, and strides, dilations and pads are always there."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from toolchain.core.errors import MisfitError
from toolchain.core.layout import TensorType
from toolchain.graph.infer import where
from toolchain.graph.ir import Node


class _Types(Protocol):
    @property
    def types(self) -> TypesByName: ...


class TypesByName(Protocol):
    def __getitem__(self, name: str, /) -> TensorType: ...


_WEIGHT = {"Conv": 1, "ConvInteger": 1, "ConvTranspose": 1, "QLinearConv": 3}
"""Which input holds the weights whose last dimensions are the kernel's; pools state kernel_shape."""


def explicit_window(node: Node, context: _Types) -> tuple[Node, ...]:
    """Conv(x, w) {auto_pad=SAME_UPPER, strides=[2, 2]}   ->   Conv(x, w) {kernel_shape, strides, dilations, pads}

    Needs: static types. Raises MisfitError for lists of the wrong length, a stride or dilation below 1,
    or a window larger than the padded input.
    """
    spatial = context.types[node.inputs[0]].shape[2:]
    rank = len(spatial)
    kernel = context.types[node.inputs[_WEIGHT[node.op]]].shape[2:] if node.op in _WEIGHT else node.attrs["kernel_shape"]
    strides = tuple(node.attrs.get("strides") or (1,) * rank)
    dilations = tuple(node.attrs.get("dilations") or (1,) * rank)
    pads = tuple(node.attrs.get("pads") or (0,) * (2 * rank))
    for name, values, length in (("kernel_shape", node.attrs.get("kernel_shape", kernel), rank), ("strides", strides, rank),
                                 ("dilations", dilations, rank), ("pads", pads, 2 * rank)):
        if len(values) != length or (name != "pads" and any(v < 1 for v in values)):
            raise MisfitError(f"{name}={list(values)} does not fit {rank} spatial dimensions", where=where(node))
    if tuple(node.attrs.get("kernel_shape", kernel)) != tuple(kernel):
        raise MisfitError(f"kernel_shape={list(node.attrs['kernel_shape'])}, but its weights have {list(kernel)}",
                          where=where(node))
    attrs = {k: v for k, v in node.attrs.items() if k != "auto_pad"}
    mode = node.attrs.get("auto_pad", "NOTSET")
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations))
    if node.op == "ConvTranspose":
        pads, attrs = _transposed_pads(node, mode, spatial, strides, reach, pads, attrs)
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        total = tuple(max(0, (-(-n // s) - 1) * s + r - n) for n, s, r in zip(spatial, strides, reach))
        pads = _halves(total, extra_at_end=mode == "SAME_UPPER")
        attrs.pop("ceil_mode", None)
    elif mode == "VALID":
        pads = (0,) * (2 * rank)
        attrs.pop("ceil_mode", None)
    if node.op != "ConvTranspose" and any(n + pads[d] + pads[d + rank] < reach[d] for d, n in enumerate(spatial)):
        raise MisfitError(f"a window of {list(reach)} does not fit {list(spatial)} padded by {list(pads)}",
                          where=where(node))
    return (replace(node, attrs={**attrs, "kernel_shape": tuple(kernel), "strides": strides, "dilations": dilations,
                                 "pads": pads}),)


def _halves(total: tuple[int, ...], extra_at_end: bool) -> tuple[int, ...]:
    small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    return (*small, *large) if extra_at_end else (*large, *small)


def _transposed_pads(
    node: Node, mode: str, spatial: tuple[int, ...], strides: tuple[int, ...], reach: tuple[int, ...],
    pads: tuple[int, ...], attrs: dict[str, object],
) -> tuple[tuple[int, ...], dict[str, object]]:
    """ConvTranspose: output_shape and auto_pad say how large the output is; ONNX's formula turns that into pads."""
    extra = tuple(node.attrs.get("output_padding") or (0,) * len(spatial))
    whole = tuple((n - 1) * s + r + e for n, s, r, e in zip(spatial, strides, reach, extra))
    wanted = node.attrs.get("output_shape")
    if wanted is None and mode in ("SAME_UPPER", "SAME_LOWER"):
        wanted = tuple(n * s for n, s in zip(spatial, strides))
    if mode == "VALID" and wanted is None:
        return (0,) * len(pads), attrs
    if wanted is None:
        return pads, attrs
    total = [w - n for w, n in zip(whole, tuple(wanted)[-len(spatial):])]
    grown = tuple(e + max(0, -t) for e, t in zip(extra, total))     # larger than all windows: zeros are added
    attrs = {k: v for k, v in attrs.items() if k != "output_shape"}
    if any(grown):
        attrs["output_padding"] = grown
    return _halves(tuple(max(0, t) for t in total), extra_at_end=mode == "SAME_UPPER"), attrs
