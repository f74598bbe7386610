"""Every operator kernels can be made for: ONNX operator -> its te definition. What is not here is reported at import."""

from __future__ import annotations

from toolchain.kernels.compute.elementwise import ELEMENTWISE
from toolchain.kernels.compute.nn import NN
from toolchain.kernels.compute.reduce import REDUCE
from toolchain.kernels.compute.resize import RESIZE
from toolchain.kernels.compute.shape import SHAPE
from toolchain.kernels.compute.winograd import WINOGRAD
from toolchain.kernels.op import Compute

COMPUTES: dict[str, Compute] = {**ELEMENTWISE, **SHAPE, **NN, **REDUCE, **RESIZE, **WINOGRAD}
