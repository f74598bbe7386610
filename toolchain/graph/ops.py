"""Facts about every operator real models use: its fusion class and its category, in one table.

The four classes are those of the TVM paper (Chen et al., OSDI 2018, section 3): injective, reduction, complex-out-fusable,
opaque. Injective is divided in three here, because fusion treats them differently: elementwise (output element i reads
element i), broadcast (reads element i with some dimensions dropped) and injective (any other one-to-one map of indices).

Operators are ONNX's, in the form of the newest opset, and a few of our own (`INTERNAL`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class FusionClass(IntEnum):
    """How freely an operator fuses; ordered from the freest to the least free, as in TVM's OpPatternKind."""

    ELEMENTWISE = 0
    BROADCAST = 1
    INJECTIVE = 2
    REDUCTION = 3
    COMPLEX = 4         # complex-out-fusable: an elementwise map may join its output (Conv)
    OPAQUE = 5

    @property
    def is_injective(self) -> bool:
        """Injective in the sense of the paper: elementwise, broadcast or a plain map of indices."""
        return self <= FusionClass.INJECTIVE


@dataclass(frozen=True, slots=True)
class OpInfo:
    """`category` groups operators for reports and passes: "unary", "binary", "conv", "pool", "move", "reduce", ..."""

    fusion: FusionClass
    category: str


_E, _B, _I = FusionClass.ELEMENTWISE, FusionClass.BROADCAST, FusionClass.INJECTIVE
_R, _C, _O = FusionClass.REDUCTION, FusionClass.COMPLEX, FusionClass.OPAQUE

INTERNAL: dict[str, OpInfo] = {
    "Layout": OpInfo(_I, "move"),       # the same logical tensor in another layout; the types say which
    # x (..., K) by w (..., N, K) transposed, int32 sums that start at input 2; attrs: columns (of N; the others are
    # padding), panel (N is a multiple of it). And its convolution, without pads; group: depthwise, of float32 weights.
    # See passes/integer_products.py
    "IntegerMatMul": OpInfo(_C, "matmul"),
    "IntegerConv": OpInfo(_C, "conv"),
    "WinogradConv": OpInfo(_C, "conv"),             # x, weights (side, side, O, I), bias; attrs: m, taps, pads (winograd.py)
    "WinogradConvTranspose": OpInfo(_C, "conv"),    # weights (s, s, side, side, O, I); size: (H, W) of the output
    "DeformSample": OpInfo(_O, "resize"),               # these three: x with channels last; see kernels/sampled.py,
    "RoiSample": OpInfo(_O, "pool"),
    "GridSampleLast": OpInfo(_O, "resize"),             # and compute/sampling.py
    "FlatNonZero": OpInfo(_O, "select"),                # these three: see kernels/loops.py
    "BoundedNonMaxSuppression": OpInfo(_O, "select"),
    "UniqueRows": OpInfo(_O, "select"),
    "Fused": OpInfo(_O, "fused"),       # attrs: body (a Graph whose inputs and outputs stand for the node's, in order)
    "Fail": OpInfo(_O, "control"),      # ends the run; attrs: types (of its outputs), reason
}

OPS: dict[str, OpInfo] = {
    **INTERNAL,
    "Abs": OpInfo(_E, "unary"),
    "Acos": OpInfo(_E, "unary"),
    "Acosh": OpInfo(_E, "unary"),
    "Asin": OpInfo(_E, "unary"),
    "Asinh": OpInfo(_E, "unary"),
    "Atan": OpInfo(_E, "unary"),
    "Atanh": OpInfo(_E, "unary"),
    "BitwiseNot": OpInfo(_E, "unary"),
    "Cast": OpInfo(_E, "unary"),
    "CastLike": OpInfo(_E, "unary"),
    "Ceil": OpInfo(_E, "unary"),
    "Celu": OpInfo(_E, "unary"),
    "Clip": OpInfo(_E, "unary"),
    "Cos": OpInfo(_E, "unary"),
    "Cosh": OpInfo(_E, "unary"),
    "Elu": OpInfo(_E, "unary"),
    "Erf": OpInfo(_E, "unary"),
    "Exp": OpInfo(_E, "unary"),
    "Floor": OpInfo(_E, "unary"),
    "Gelu": OpInfo(_E, "unary"),
    "HardSigmoid": OpInfo(_E, "unary"),
    "HardSwish": OpInfo(_E, "unary"),
    "Identity": OpInfo(_E, "unary"),
    "IsInf": OpInfo(_E, "unary"),
    "IsNaN": OpInfo(_E, "unary"),
    "LeakyRelu": OpInfo(_E, "unary"),
    "Log": OpInfo(_E, "unary"),
    "Mish": OpInfo(_E, "unary"),
    "Neg": OpInfo(_E, "unary"),
    "Not": OpInfo(_E, "unary"),
    "Reciprocal": OpInfo(_E, "unary"),
    "Relu": OpInfo(_E, "unary"),
    "Round": OpInfo(_E, "unary"),
    "Selu": OpInfo(_E, "unary"),
    "Shrink": OpInfo(_E, "unary"),
    "Sigmoid": OpInfo(_E, "unary"),
    "Sign": OpInfo(_E, "unary"),
    "Sin": OpInfo(_E, "unary"),
    "Sinh": OpInfo(_E, "unary"),
    "Softplus": OpInfo(_E, "unary"),
    "Softsign": OpInfo(_E, "unary"),
    "Sqrt": OpInfo(_E, "unary"),
    "Swish": OpInfo(_E, "unary"),
    "Tan": OpInfo(_E, "unary"),
    "Tanh": OpInfo(_E, "unary"),
    "ThresholdedRelu": OpInfo(_E, "unary"),

    "Add": OpInfo(_B, "binary"),
    "And": OpInfo(_B, "binary"),
    "BitShift": OpInfo(_B, "binary"),
    "BitwiseAnd": OpInfo(_B, "binary"),
    "BitwiseOr": OpInfo(_B, "binary"),
    "BitwiseXor": OpInfo(_B, "binary"),
    "Div": OpInfo(_B, "binary"),
    "Equal": OpInfo(_B, "binary"),
    "Greater": OpInfo(_B, "binary"),
    "GreaterOrEqual": OpInfo(_B, "binary"),
    "Less": OpInfo(_B, "binary"),
    "LessOrEqual": OpInfo(_B, "binary"),
    "Mod": OpInfo(_B, "binary"),
    "Mul": OpInfo(_B, "binary"),
    "Or": OpInfo(_B, "binary"),
    "PRelu": OpInfo(_B, "binary"),
    "Pow": OpInfo(_B, "binary"),
    "Sub": OpInfo(_B, "binary"),
    "Xor": OpInfo(_B, "binary"),
    "Max": OpInfo(_B, "variadic"),
    "Mean": OpInfo(_B, "variadic"),
    "Min": OpInfo(_B, "variadic"),
    "Sum": OpInfo(_B, "variadic"),
    "Where": OpInfo(_B, "select"),
    "BatchNormalization": OpInfo(_B, "normalization"),      # at inference: one factor and one shift per channel
    "DequantizeLinear": OpInfo(_B, "quantize"),
    "QuantizeLinear": OpInfo(_B, "quantize"),

    "Concat": OpInfo(_I, "move"),
    "DepthToSpace": OpInfo(_I, "move"),
    "Expand": OpInfo(_B, "move"),
    "Flatten": OpInfo(_I, "reshape"),
    "Gather": OpInfo(_I, "gather"),
    "GatherElements": OpInfo(_I, "gather"),
    "GatherND": OpInfo(_I, "gather"),
    "Pad": OpInfo(_I, "move"),
    "Reshape": OpInfo(_I, "reshape"),
    "Resize": OpInfo(_I, "resize"),
    "ReverseSequence": OpInfo(_I, "move"),
    "Slice": OpInfo(_I, "move"),
    "SpaceToDepth": OpInfo(_I, "move"),
    "Split": OpInfo(_I, "move"),
    "Squeeze": OpInfo(_I, "reshape"),
    "Tile": OpInfo(_I, "move"),
    "Transpose": OpInfo(_I, "move"),
    "Trilu": OpInfo(_I, "move"),
    "Unsqueeze": OpInfo(_I, "reshape"),
    "CenterCropPad": OpInfo(_I, "move"),
    "OneHot": OpInfo(_I, "gather"),
    "EyeLike": OpInfo(_I, "constant"),

    "ArgMax": OpInfo(_R, "reduce"),
    "ArgMin": OpInfo(_R, "reduce"),
    "ReduceL1": OpInfo(_R, "reduce"),
    "ReduceL2": OpInfo(_R, "reduce"),
    "ReduceLogSum": OpInfo(_R, "reduce"),
    "ReduceLogSumExp": OpInfo(_R, "reduce"),
    "ReduceMax": OpInfo(_R, "reduce"),
    "ReduceMean": OpInfo(_R, "reduce"),
    "ReduceMin": OpInfo(_R, "reduce"),
    "ReduceProd": OpInfo(_R, "reduce"),
    "ReduceSum": OpInfo(_R, "reduce"),
    "ReduceSumSquare": OpInfo(_R, "reduce"),
    "GlobalAveragePool": OpInfo(_R, "pool"),
    "GlobalLpPool": OpInfo(_R, "pool"),
    "GlobalMaxPool": OpInfo(_R, "pool"),

    "AveragePool": OpInfo(_C, "pool"),
    "Conv": OpInfo(_C, "conv"),
    "ConvInteger": OpInfo(_C, "conv"),
    "ConvTranspose": OpInfo(_C, "conv"),
    "DeformConv": OpInfo(_O, "conv"),
    "Einsum": OpInfo(_O, "matmul"),
    "Gemm": OpInfo(_C, "matmul"),
    "LRN": OpInfo(_C, "normalization"),
    "LpPool": OpInfo(_C, "pool"),
    "MatMul": OpInfo(_C, "matmul"),
    "MatMulInteger": OpInfo(_C, "matmul"),
    "MaxPool": OpInfo(_C, "pool"),
    "QLinearConv": OpInfo(_C, "conv"),
    "QLinearMatMul": OpInfo(_C, "matmul"),

    "Attention": OpInfo(_O, "attention"),
    "CumSum": OpInfo(_O, "scan"),
    "Compress": OpInfo(_O, "gather"),
    "DynamicQuantizeLinear": OpInfo(_O, "quantize"),
    "GRU": OpInfo(_O, "recurrent"),
    "GridSample": OpInfo(_O, "resize"),
    "GroupNormalization": OpInfo(_O, "normalization"),
    "Hardmax": OpInfo(_O, "normalization"),
    "If": OpInfo(_O, "control"),            # attrs: then_branch, else_branch; captured values are inputs (see infer.py)
    "InstanceNormalization": OpInfo(_O, "normalization"),
    "LSTM": OpInfo(_O, "recurrent"),
    "LayerNormalization": OpInfo(_O, "normalization"),
    "LogSoftmax": OpInfo(_O, "normalization"),
    "Loop": OpInfo(_O, "control"),          # attrs: body, captures (how many of the last inputs are captured values)
    "LpNormalization": OpInfo(_O, "normalization"),
    "MaxRoiPool": OpInfo(_O, "pool"),
    "MeanVarianceNormalization": OpInfo(_O, "normalization"),
    "NonMaxSuppression": OpInfo(_O, "select"),
    "NonZero": OpInfo(_O, "select"),
    "RMSNormalization": OpInfo(_O, "normalization"),
    "RNN": OpInfo(_O, "recurrent"),
    "Range": OpInfo(_O, "constant"),
    "RoiAlign": OpInfo(_O, "pool"),
    "RotaryEmbedding": OpInfo(_O, "attention"),
    "Scan": OpInfo(_O, "control"),          # attrs: body, captures, num_scan_inputs, scan_*_axes, scan_*_directions
    "ScatterElements": OpInfo(_O, "scatter"),
    "ScatterND": OpInfo(_O, "scatter"),
    "Softmax": OpInfo(_O, "normalization"),
    "TopK": OpInfo(_O, "select"),
    "Unique": OpInfo(_O, "select"),
}

OPAQUE = OpInfo(FusionClass.OPAQUE, "other")

RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"})
"""Operators whose result differs from run to run: never folded."""


def info(op: str) -> OpInfo:
    """The facts of an operator; one that the table does not list is opaque."""
    return OPS.get(op, OPAQUE)
