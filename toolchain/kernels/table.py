"""Every operator kernels can be made for: ONNX operator -> its te definition. What is not here is reported at import."""

from __future__ import annotations

from toolchain.kernels.compute.elementwise import ELEMENTWISE
from toolchain.kernels.compute.nn import NN
from toolchain.kernels.compute.products import PRODUCTS
from toolchain.kernels.compute.quantize import QUANTIZE
from toolchain.kernels.compute.ranking import RANKING
from toolchain.kernels.compute.reduce import REDUCE
from toolchain.kernels.compute.resize import RESIZE
from toolchain.kernels.compute.rotary import ROTARY
from toolchain.kernels.compute.sampling import SAMPLING
from toolchain.kernels.compute.shape import SHAPE
from toolchain.kernels.compute.winograd import WINOGRAD
from toolchain.kernels.loops import LOOPS
from toolchain.kernels.op import Compute

COMPUTES: dict[str, Compute] = {
    **ELEMENTWISE, **SHAPE, **NN, **REDUCE, **RESIZE, **QUANTIZE, **SAMPLING, **RANKING, **WINOGRAD, **PRODUCTS,
    **ROTARY,
}

KERNELS = frozenset((*COMPUTES, *LOOPS))
"""Every operator that becomes a kernel: by te.compute, or as loops."""

TAKES_SMALL = frozenset((
    *QUANTIZE, "BitCast", "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Layout",
    "Reshape", "ReverseSequence", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
))
"""Operators that take tensors of the small types: those that move bytes, and those that convert them."""
