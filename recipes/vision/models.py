"""Networks that look at images, as ONNX files with seeded weights, node by node in the forms that exporters write.

Each public function writes one model to the path it is given:

    vit_small               ViT-S/16, 224x224, batch open: 12 layers, 384 wide, 6 heads
    vit_small_opset12       the same network as opset 12 spells it: layer norm in nine nodes, axes as attributes
    unet                    U-Net with transposed convolutions, 256x256, base width 32, 21 classes
    efficientnet_b0         EfficientNet-B0, 224x224: depthwise, squeeze and excite, SiLU
    detector                YOLOv8-n, 640x640, 80 classes, distribution focal head, decoded boxes and scores
    detector_nms            the same with non-maximum suppression and the gathering of what it selected behind it

Weights are uniform and He-scaled, made from the raw PCG64 stream (whose values NumPy guarantees), so equal versions of this
file write equal bytes on every machine. The keyword arguments make smaller networks of the same structure, for tests.
Shape arithmetic (Shape, Gather, Unsqueeze, Concat, Reshape) stands where torch.onnx writes it for models with an open batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

IR_VERSION = {12: 7, 17: 8, 18: 9}


class Uniform:
    """A reproducible stream of uniform numbers: the top 24 bits of each PCG64 word, which are exact in float32."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def between(self, low: float, high: float, *shape: int) -> np.ndarray:
        words = self._bits.random_raw(math.prod(shape)) >> np.uint64(40)
        unit = words.astype(np.float32) * np.float32(2.0**-24)
        return (np.float32(low) + unit * np.float32(high - low)).reshape(shape)

    def he(self, fan_in: int, *shape: int, gain: float = 1.0) -> np.ndarray:
        """Weights that keep the second moment through a ReLU layer (He et al. 2015, section 2.2): variance 2 / fan_in."""
        bound = gain * math.sqrt(6 / fan_in)
        return self.between(-bound, bound, *shape)


class Network:
    """A half-built ONNX graph: each method adds nodes and returns the name of the value they make."""

    def __init__(self, name: str, seed: int, opset: int = 18) -> None:
        self.name, self.opset = name, opset
        self.random = Uniform(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.params: dict[str, onnx.TensorProto] = {}

    def op(self, kind: str, name: str, *inputs: str, **attrs: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attrs))
        return name

    def split(self, x: str, name: str, sizes: Sequence[int], axis: int) -> list[str]:
        outputs = [f"{name}.{i}" for i in range(len(sizes))]
        self.nodes.append(helper.make_node("Split", [x, self.ints(*sizes)], outputs, name=name, axis=axis))
        return outputs

    def param(self, name: str, array: np.ndarray) -> str:
        self.params[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def ints(self, *values: int) -> str:
        return self.param("ints." + "_".join(map(str, values)), np.array(values, np.int64))

    def index(self, value: int) -> str:
        return self.param(f"int.{value}", np.array(value, np.int64))

    def number(self, value: float) -> str:
        return self.param(f"number.{value:.9g}", np.array(value, np.float32))

    def unsqueeze(self, x: str, name: str, axis: int) -> str:
        if self.opset < 13:
            return self.op("Unsqueeze", name, x, axes=[axis])
        return self.op("Unsqueeze", name, x, self.ints(axis))

    def size(self, x: str, name: str, axis: int) -> str:
        """x.size(axis) as the exporter asks for it: a number without dimensions."""
        return self.op("Gather", f"{name}.size{axis}", self.op("Shape", f"{name}.shape{axis}", x), self.index(axis), axis=0)

    def dims(self, name: str, *sizes: str | int) -> str:
        """A shape put together from computed sizes and numbers: Unsqueeze each, then Concat."""
        parts = [self.ints(s) if isinstance(s, int) else self.unsqueeze(s, f"{name}.dim{i}", 0) for i, s in enumerate(sizes)]
        return self.op("Concat", name, *parts, axis=0)

    def conv(self, x: str, name: str, cin: int, cout: int, kernel: int, stride: int = 1, pad: int = 0, *,
             groups: int = 1, gain: float = 1.0, bias: bool = True) -> str:
        fan_in = cin // groups * kernel * kernel
        inputs = [x, self.param(f"{name}.weight", self.random.he(fan_in, cout, cin // groups, kernel, kernel, gain=gain))]
        if bias:
            inputs.append(self.param(f"{name}.bias", self.random.between(-0.1, 0.1, cout)))
        return self.op("Conv", name, *inputs, dilations=[1, 1], group=groups, kernel_shape=[kernel] * 2, pads=[pad] * 4,
                       strides=[stride] * 2)

    def batch_norm(self, x: str, name: str, channels: int, gain: float = 1.0) -> str:
        between = self.random.between
        values = (between(0.8 * gain, 1.2 * gain, channels), between(-0.1, 0.1, channels),
                  between(-0.2, 0.2, channels), between(0.7, 1.5, channels))
        kinds = ("weight", "bias", "running_mean", "running_var")
        inputs = [self.param(f"{name}.{kind}", array) for kind, array in zip(kinds, values, strict=True)]
        return self.op("BatchNormalization", name, x, *inputs, epsilon=1e-5, momentum=0.9)

    def silu(self, x: str) -> str:
        return self.op("Mul", f"{x}.silu", x, self.op("Sigmoid", f"{x}.sigmoid", x))

    def project(self, x: str, name: str, cin: int, cout: int, gain: float) -> str:
        """x @ weight + bias on the last dimension: MatMul, then Add with the bias first, as torch.onnx writes them."""
        w = self.param(f"{name}.weight", self.random.he(cin, cin, cout, gain=gain))
        b = self.param(f"{name}.bias", self.random.between(-0.1, 0.1, cout))
        return self.op("Add", name, b, self.op("MatMul", f"{name}.matmul", x, w))

    def linear(self, x: str, name: str, cin: int, cout: int, gain: float = 1.0) -> str:
        w = self.param(f"{name}.weight", self.random.he(cin, cout, cin, gain=gain))
        b = self.param(f"{name}.bias", self.random.between(-0.1, 0.1, cout))
        return self.op("Gemm", name, x, w, b, alpha=1.0, beta=1.0, transB=1)

    def layer_norm(self, x: str, name: str, width: int, epsilon: float = 1e-6) -> str:
        """One node from opset 17 on; before it the nine that compute it."""
        w = self.param(f"{name}.weight", self.random.between(0.8, 1.2, width))
        b = self.param(f"{name}.bias", self.random.between(-0.1, 0.1, width))
        if self.opset >= 17:
            return self.op("LayerNormalization", name, x, w, b, axis=-1, epsilon=epsilon)
        centred = self.op("Sub", f"{name}.sub", x, self.op("ReduceMean", f"{name}.mean", x, axes=[-1]))
        square = self.op("Pow", f"{name}.pow", centred, self.number(2.0))
        variance = self.op("ReduceMean", f"{name}.var", square, axes=[-1])
        deviation = self.op("Sqrt", f"{name}.sqrt", self.op("Add", f"{name}.eps", variance, self.number(epsilon)))
        y = self.op("Mul", f"{name}.mul", self.op("Div", f"{name}.div", centred, deviation), w)
        return self.op("Add", name, y, b)

    def gelu(self, x: str) -> str:
        erf = self.op("Erf", f"{x}.erf", self.op("Div", f"{x}.div", x, self.number(math.sqrt(2))))
        y = self.op("Mul", f"{x}.product", x, self.op("Add", f"{x}.erf1", erf, self.number(1.0)))
        return self.op("Mul", f"{x}.gelu", y, self.number(0.5))

    def write(self, out: Path, inputs: dict[str, Sequence[int | str]],
              outputs: dict[str, tuple[str, Sequence[int | str], int]]) -> None:
        """Write the model. outputs: name -> (the value it stands for, its shape, its type)."""
        renamed = {value: name for name, (value, _, _) in outputs.items()}
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [renamed.get(n, n) for n in names]
        graph = helper.make_graph(
            self.nodes, self.name,
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in inputs.items()],
            [helper.make_tensor_value_info(n, dtype, shape) for n, (_, shape, dtype) in outputs.items()],
            list(self.params.values()),
        )
        model = helper.make_model(graph, producer_name="recipes/vision", ir_version=IR_VERSION[self.opset],
                                  opset_imports=[helper.make_opsetid("", self.opset)])
        out.write_bytes(model.SerializeToString(deterministic=True))


def vit_small(out: Path, *, layers: int = 12, width: int = 384, heads: int = 6, size: int = 224, classes: int = 1000,
              opset: int = 17) -> None:
    """Dosovitskiy et al. 2021, the small variant of Steiner et al. 2022; timm's module order, the batch open."""
    net = Network("vit_small", seed=16, opset=opset)
    x = net.conv("image", "patch_embed.proj", 3, width, 16, 16, gain=0.7)
    flat = net.dims("patch_embed.flatten.shape", net.size(x, "patch_embed", 0), width, -1)
    x = net.op("Transpose", "patch_embed.tokens", net.op("Reshape", "patch_embed.flatten", x, flat), perm=[0, 2, 1])
    x = net.op("Concat", "tokens", _class_token(net, x, width), x, axis=1)
    tokens = (size // 16) ** 2 + 1
    x = net.op("Add", "pos_embed.add", x, net.param("pos_embed", net.random.between(-0.2, 0.2, 1, tokens, width)))
    for i in range(layers):
        name = f"blocks.{i}"
        attended = _self_attention(net, net.layer_norm(x, f"{name}.norm1", width), f"{name}.attn", width, heads)
        x = net.op("Add", f"{name}.add1", x, attended)
        y = net.gelu(net.project(net.layer_norm(x, f"{name}.norm2", width), f"{name}.mlp.fc1", width, 4 * width, gain=0.7))
        x = net.op("Add", f"{name}.add2", x, net.project(y, f"{name}.mlp.fc2", 4 * width, width, gain=0.5))
    x = net.op("Gather", "class_token", net.layer_norm(x, "norm", width), net.index(0), axis=1)
    x = net.linear(x, "head", width, classes, gain=0.5)
    net.write(out, {"image": ["batch", 3, size, size]}, {"logits": (x, ["batch", classes], TensorProto.FLOAT)})


def vit_small_opset12(out: Path, **sizes: int) -> None:
    """The same network for tools of 2020: no LayerNormalization operator, axes as attributes."""
    vit_small(out, opset=12, **sizes)


def _int64(value: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array([value], np.int64))


def _class_token(net: Network, x: str, width: int) -> str:
    """cls_token.expand(batch, -1, -1): the exporter replaces each -1 by the size it has, at run time."""
    token = net.param("cls_token", net.random.between(-0.2, 0.2, 1, 1, width))
    wanted = net.dims("cls_token.wanted", net.size(x, "cls_token", 0), -1, -1)
    ones = net.op("ConstantOfShape", "cls_token.ones", net.ints(3), value=_int64(1))
    minus = net.op("Mul", "cls_token.minus", ones, net.index(-1))
    shape = net.op("Where", "cls_token.shape", net.op("Equal", "cls_token.kept", wanted, minus), ones, wanted)
    return net.op("Expand", "cls_token.expand", token, shape)


def _self_attention(net: Network, x: str, name: str, width: int, heads: int) -> str:
    """qkv in one product, unbound by Gather; the scale's root on q and on k, as scaled_dot_product_attention is exported."""
    depth = width // heads
    batch, tokens = net.size(x, f"{name}.x", 0), net.size(x, f"{name}.x", 1)
    qkv = net.project(x, f"{name}.qkv", width, 3 * width, gain=0.7)
    qkv = net.op("Reshape", f"{name}.split", qkv, net.dims(f"{name}.split.shape", batch, tokens, 3, heads, depth))
    qkv = net.op("Transpose", f"{name}.heads", qkv, perm=[2, 0, 3, 1, 4])
    q, k, v = (net.op("Gather", f"{name}.{part}", qkv, net.index(i), axis=0) for i, part in enumerate("qkv"))
    root = net.number(depth**-0.25)
    q = net.op("Mul", f"{name}.q.scaled", q, root)
    k = net.op("Mul", f"{name}.k.scaled", net.op("Transpose", f"{name}.k.transposed", k, perm=[0, 1, 3, 2]), root)
    weights = net.op("Softmax", f"{name}.softmax", net.op("MatMul", f"{name}.scores", q, k), axis=-1)
    y = net.op("Transpose", f"{name}.merge", net.op("MatMul", f"{name}.context", weights, v), perm=[0, 2, 1, 3])
    y = net.op("Reshape", f"{name}.merged", y, net.dims(f"{name}.merged.shape", batch, tokens, width))
    return net.project(y, f"{name}.proj", width, width, gain=0.5)


def unet(out: Path, *, base: int = 32, depth: int = 4, size: int = 256, classes: int = 21) -> None:
    """Ronneberger et al. 2015 with batch norm and same padding; the upsampled half is padded to the skipped one's size,
    which the exporter computes at run time."""
    net = Network("unet", seed=2015, opset=17)
    x, skips = _double_conv(net, "image", "inc", 3, base), []
    for i in range(depth):
        skips.append(x)
        x = net.op("MaxPool", f"down{i}.pool", x, kernel_shape=[2, 2], strides=[2, 2])
        x = _double_conv(net, x, f"down{i}", base << i, base << (i + 1))
    for i in reversed(range(depth)):
        cin = base << (i + 1)
        w = net.param(f"up{i}.up.weight", net.random.he(cin, cin, cin // 2, 2, 2))
        b = net.param(f"up{i}.up.bias", net.random.between(-0.1, 0.1, cin // 2))
        up = net.op("ConvTranspose", f"up{i}.up", x, w, b, kernel_shape=[2, 2], strides=[2, 2])
        x = net.op("Concat", f"up{i}.concat", skips[i], _pad_like(net, up, skips[i], f"up{i}"), axis=1)
        x = _double_conv(net, x, f"up{i}", cin, cin // 2)
    x = net.conv(x, "outc", base, classes, 1)
    net.write(out, {"image": ["batch", 3, "height", "width"]},
              {"scores": (x, ["batch", classes, "height", "width"], TensorProto.FLOAT)})


def _double_conv(net: Network, x: str, name: str, cin: int, cout: int) -> str:
    for i, c in enumerate((cin, cout)):
        x = net.conv(x, f"{name}.conv{i}", c, cout, 3, 1, 1, bias=False)
        x = net.op("Relu", f"{name}.relu{i}", net.batch_norm(x, f"{name}.bn{i}", cout))
    return x


def _pad_like(net: Network, x: str, like: str, name: str) -> str:
    """F.pad(x, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2]) as torch.onnx computes its pads."""
    pads: list[str] = []
    for axis in (3, 2):
        at = f"{name}.pad{axis}"
        missing = net.op("Sub", f"{at}.missing", net.size(like, f"{at}.like", axis), net.size(x, f"{at}.own", axis))
        before = net.op("Div", f"{at}.before", missing, net.index(2))
        pads += [before, net.op("Sub", f"{at}.after", missing, before)]
    given = net.op("Cast", f"{name}.pads.given", net.dims(f"{name}.pads.dims", *pads), to=TensorProto.INT64)
    zeros = net.op("ConstantOfShape", f"{name}.pads.zeros", net.ints(4), value=_int64(0))
    pairs = net.op("Reshape", f"{name}.pads.pairs", net.op("Concat", f"{name}.pads.all", given, zeros, axis=0),
                   net.ints(-1, 2))
    backwards = net.op("Slice", f"{name}.pads.backwards", pairs, net.ints(-1), net.ints(-(2**63) + 1), net.ints(0),
                       net.ints(-1))
    columns = net.op("Transpose", f"{name}.pads.columns", backwards, perm=[1, 0])
    return net.op("Pad", f"{name}.pad", x, net.op("Reshape", f"{name}.pads", columns, net.ints(-1)), net.number(0.0),
                  mode="constant")


B0 = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
      (6, 320, 1, 1, 3))
"""Stages of EfficientNet-B0: expansion, channels, layers, stride, kernel (Tan and Le 2019, table 1)."""


def efficientnet_b0(out: Path, *, stages: Sequence[tuple[int, int, int, int, int]] = B0, stem: int = 32, head: int = 1280,
                    size: int = 224, classes: int = 1000) -> None:
    """Tan and Le 2019, torchvision's module order; inference batch norms are nodes of their own."""
    net = Network("efficientnet_b0", seed=2019, opset=17)
    x, cin = _conv_bn_silu(net, "image", "stem", 3, stem, 3, 2), stem
    for s, (expand, cout, layers, stride, kernel) in enumerate(stages):
        for i in range(layers):
            x = _inverted_residual(net, x, f"stage{s}.{i}", cin, cout, expand, kernel, stride if i == 0 else 1)
            cin = cout
    x = net.op("GlobalAveragePool", "avgpool", _conv_bn_silu(net, x, "head", cin, head, 1, 1))
    x = net.linear(net.op("Flatten", "flatten", x, axis=1), "classifier", head, classes, gain=0.5)
    net.write(out, {"image": ["batch", 3, size, size]}, {"logits": (x, ["batch", classes], TensorProto.FLOAT)})


def _conv_bn_silu(net: Network, x: str, name: str, cin: int, cout: int, kernel: int, stride: int, groups: int = 1) -> str:
    x = net.conv(x, f"{name}.conv", cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False, gain=1.2)
    return net.silu(net.batch_norm(x, f"{name}.bn", cout))


def _inverted_residual(net: Network, x: str, name: str, cin: int, cout: int, expand: int, kernel: int, stride: int) -> str:
    """1x1 expansion, depthwise, squeeze and excite on a quarter of the input's channels, 1x1 projection, residual."""
    mid = cin * expand
    y = _conv_bn_silu(net, x, f"{name}.expand", cin, mid, 1, 1) if expand != 1 else x
    y = _conv_bn_silu(net, y, f"{name}.depthwise", mid, mid, kernel, stride, groups=mid)
    squeezed = max(1, cin // 4)
    s = net.op("GlobalAveragePool", f"{name}.se.pool", y)
    s = net.silu(net.conv(s, f"{name}.se.fc1", mid, squeezed, 1))
    s = net.op("Sigmoid", f"{name}.se.scale", net.conv(s, f"{name}.se.fc2", squeezed, mid, 1))
    y = net.op("Mul", f"{name}.se", s, y)
    y = net.batch_norm(net.conv(y, f"{name}.project", mid, cout, 1, bias=False), f"{name}.project.bn", cout, gain=0.7)
    return net.op("Add", f"{name}.add", y, x) if stride == 1 and cin == cout else y


def detector(out: Path, *, width: int = 16, repeats: Sequence[int] = (1, 2, 2, 1), size: int = 640,
             classes: int = 80) -> None:
    """YOLOv8 (Jocher et al. 2023), the nano variant, its module order and its exported form: batch norms folded, SiLU as
    Sigmoid and Mul, boxes decoded in the graph. Output: (1, 4 + classes, anchors), boxes as centre and size in pixels."""
    net = Network("detector", seed=8)
    boxes, scores = _detect(net, width, repeats, size, classes)
    first, last = _corners(net, boxes, size)
    total = net.op("Add", "head.sum", first, last)
    centre = net.op("Div", "head.centre", total, net.number(2.0))
    xywh = _in_pixels(net, net.op("Concat", "head.xywh", centre, net.op("Sub", "head.extent", last, first), axis=1), size)
    y = net.op("Concat", "head.output", xywh, scores, axis=1)
    net.write(out, {"images": [1, 3, size, size]},
              {"output0": (y, [1, 4 + classes, _anchors(size)], TensorProto.FLOAT)})


def detector_nms(out: Path, *, width: int = 16, repeats: Sequence[int] = (1, 2, 2, 1), size: int = 640, classes: int = 80,
                 per_class: int = 100) -> None:
    """The same network, boxes as corners, with NonMaxSuppression and what it selects gathered: one row per detection,
    (image, left, top, right, bottom, class, score), as detectors are exported for ONNX Runtime."""
    net = Network("detector_nms", seed=8)
    boxes, scores = _detect(net, width, repeats, size, classes)
    corners = _in_pixels(net, net.op("Concat", "head.xyxy", *_corners(net, boxes, size), axis=1), size)
    corners = net.op("Transpose", "nms.boxes", corners, perm=[0, 2, 1])
    limits = [net.param("nms.limit", np.array([per_class], np.int64)), net.param("nms.iou", np.array([0.45], np.float32)),
              net.param("nms.score", np.array([0.25], np.float32))]
    chosen = net.op("NonMaxSuppression", "nms", corners, scores, *limits)
    images, labels, places = (net.op("Gather", f"nms.{part}", chosen, net.index(i), axis=1)
                              for i, part in enumerate(("image", "class", "place")))
    pair = net.unsqueeze(images, "nms.at.image", 1), net.unsqueeze(places, "nms.at.place", 1)
    at = net.op("Concat", "nms.at", *pair, axis=1)
    columns = [net.unsqueeze(net.op("Cast", "nms.image.float", images, to=TensorProto.FLOAT), "nms.image.column", 1),
               net.op("GatherND", "nms.corners", corners, at),
               net.unsqueeze(net.op("Cast", "nms.class.float", labels, to=TensorProto.FLOAT), "nms.class.column", 1),
               net.unsqueeze(net.op("GatherND", "nms.scores", scores, chosen), "nms.score.column", 1)]
    y = net.op("Concat", "nms.rows", *columns, axis=1)
    net.write(out, {"images": [1, 3, size, size]}, {"detections": (y, ["detections", 7], TensorProto.FLOAT)})


STRIDES = (8, 16, 32)
BINS = 16
"""Values per side of a box in the distribution focal head (Li et al. 2020, Generalized Focal Loss)."""


def _anchors(size: int) -> int:
    return sum((size // s) ** 2 for s in STRIDES)


def _detect(net: Network, width: int, repeats: Sequence[int], size: int, classes: int) -> tuple[str, str]:
    """Distances of the four sides from each anchor, (1, 4, anchors), and class scores, (1, classes, anchors)."""
    c1, c2, c3, c4, c5 = (width << i for i in range(5))
    x = _conv_silu(net, _conv_silu(net, "images", "model.0", 3, c1, 3, 2), "model.1", c1, c2, 3, 2)
    x = _c2f(net, x, "model.2", c2, c2, repeats[0], residual=True)
    p3 = _c2f(net, _conv_silu(net, x, "model.3", c2, c3, 3, 2), "model.4", c3, c3, repeats[1], residual=True)
    p4 = _c2f(net, _conv_silu(net, p3, "model.5", c3, c4, 3, 2), "model.6", c4, c4, repeats[2], residual=True)
    x = _c2f(net, _conv_silu(net, p4, "model.7", c4, c5, 3, 2), "model.8", c5, c5, repeats[3], residual=True)
    p5 = _sppf(net, x, "model.9", c5)
    n4 = _c2f(net, _upsample_concat(net, p5, p4, "model.10"), "model.12", c5 + c4, c4, 1, residual=False)
    n3 = _c2f(net, _upsample_concat(net, n4, p3, "model.13"), "model.15", c4 + c3, c3, 1, residual=False)
    down = _conv_silu(net, n3, "model.16", c3, c3, 3, 2)
    n4 = _c2f(net, net.op("Concat", "model.17", down, n4, axis=1), "model.18", c3 + c4, c4, 1, residual=False)
    down = _conv_silu(net, n4, "model.19", c4, c4, 3, 2)
    n5 = _c2f(net, net.op("Concat", "model.20", down, p5, axis=1), "model.21", c4 + c5, c5, 1, residual=False)
    return _head(net, ((n3, c3), (n4, c4), (n5, c5)), classes)


def _conv_silu(net: Network, x: str, name: str, cin: int, cout: int, kernel: int, stride: int = 1) -> str:
    return net.silu(net.conv(x, f"{name}.conv", cin, cout, kernel, stride, kernel // 2, gain=1.12))


def _c2f(net: Network, x: str, name: str, cin: int, cout: int, repeats: int, *, residual: bool) -> str:
    """A convolution split in two halves; bottlenecks on the second, each one's result kept; all of them together."""
    half = cout // 2
    parts = net.split(_conv_silu(net, x, f"{name}.cv1", cin, cout, 1), f"{name}.split", (half, half), 1)
    for i in range(repeats):
        y = _conv_silu(net, parts[-1], f"{name}.m.{i}.cv1", half, half, 3)
        y = _conv_silu(net, y, f"{name}.m.{i}.cv2", half, half, 3)
        parts.append(net.op("Add", f"{name}.m.{i}.add", parts[-1], y) if residual else y)
    return _conv_silu(net, net.op("Concat", f"{name}.concat", *parts, axis=1), f"{name}.cv2", (2 + repeats) * half, cout, 1)


def _sppf(net: Network, x: str, name: str, channels: int) -> str:
    parts = [_conv_silu(net, x, f"{name}.cv1", channels, channels // 2, 1)]
    for i in range(3):
        parts.append(net.op("MaxPool", f"{name}.m.{i}", parts[-1], kernel_shape=[5, 5], pads=[2] * 4, strides=[1, 1],
                            ceil_mode=0, dilations=[1, 1]))
    return _conv_silu(net, net.op("Concat", f"{name}.concat", *parts, axis=1), f"{name}.cv2", 2 * channels, channels, 1)


def _upsample_concat(net: Network, x: str, skip: str, name: str) -> str:
    scales = net.param("upsample.scales", np.array([1, 1, 2, 2], np.float32))
    up = net.op("Resize", f"{name}.upsample", x, "", scales, coordinate_transformation_mode="asymmetric",
                cubic_coeff_a=-0.75, mode="nearest", nearest_mode="floor")
    return net.op("Concat", f"{name}.concat", up, skip, axis=1)


def _head(net: Network, levels: Sequence[tuple[str, int]], classes: int) -> tuple[str, str]:
    box_width, class_width = max(BINS, levels[0][1] // 4, 4 * BINS), max(levels[0][1], min(classes, 100))
    flat = []
    for i, (x, cin) in enumerate(levels):
        parts = []
        for branch, mid, cout in (("cv2", box_width, 4 * BINS), ("cv3", class_width, classes)):
            y = _conv_silu(net, x, f"head.{branch}.{i}.0", cin, mid, 3)
            y = _conv_silu(net, y, f"head.{branch}.{i}.1", mid, mid, 3)
            parts.append(net.conv(y, f"head.{branch}.{i}.2", mid, cout, 1, gain=15.0))     # SiLU left small differences
        y = net.op("Concat", f"head.level{i}", *parts, axis=1)
        flat.append(net.op("Reshape", f"head.level{i}.flat", y, net.ints(1, 4 * BINS + classes, -1)))
    sides, logits = net.split(net.op("Concat", "head.levels", *flat, axis=2), "head.split", (4 * BINS, classes), 1)
    bins = net.op("Reshape", "head.dfl.bins", sides, net.ints(1, 4, BINS, -1))
    bins = net.op("Transpose", "head.dfl.transpose", bins, perm=[0, 2, 1, 3])
    weights = net.op("Softmax", "head.dfl.softmax", bins, axis=1)
    arange = net.param("head.dfl.weight", np.arange(BINS, dtype=np.float32).reshape(1, BINS, 1, 1))
    distance = net.op("Conv", "head.dfl.conv", weights, arange, dilations=[1, 1], group=1, kernel_shape=[1, 1], pads=[0] * 4,
                      strides=[1, 1])
    rare = net.op("Sub", "head.rare", logits, net.number(4.0))      # a trained head says "nothing here" nearly everywhere
    return net.op("Reshape", "head.dfl", distance, net.ints(1, 4, -1)), net.op("Sigmoid", "head.scores", rare)


def _corners(net: Network, distances: str, size: int) -> tuple[str, str]:
    """Left-top and right-bottom corners in cells of each level: the anchors' centres minus and plus the distances."""
    grids = [np.stack(np.meshgrid(np.arange(size // s), np.arange(size // s))).reshape(2, -1) + 0.5 for s in STRIDES]
    anchors = net.param("head.anchors", np.concatenate(grids, 1)[None].astype(np.float32))
    first, last = (net.op("Slice", f"head.distance{i}", distances, net.ints(2 * i), net.ints(2 * i + 2), net.ints(1),
                          net.ints(1)) for i in range(2))
    return net.op("Sub", "head.first", anchors, first), net.op("Add", "head.last", anchors, last)


def _in_pixels(net: Network, boxes: str, size: int) -> str:
    strides = np.concatenate([np.full((size // s) ** 2, s, np.float32) for s in STRIDES])
    return net.op("Mul", "head.boxes", boxes, net.param("head.strides", strides.reshape(1, 1, -1)))
