"""The workloads of the TVM paper (OSDI 2018, section 6), and a transformer encoder, as ONNX files with seeded weights.

Each public function writes one model to the path it is given:

    resnet18      ResNet-18, 224x224, batch 1                                                        3.63 GFLOP
    mobilenet     MobileNet v1, width 1.0, 224x224                                                   1.14 GFLOP
    lstm          language model: 2 LSTM layers of 650, 20 steps, 10,000 words                       0.53 GFLOP
    dqn           deep Q network for 84x84x4 frames, 18 actions                                      0.019 GFLOP
    dcgan         DCGAN generator, 100 -> 64x64x3                                                    0.82 GFLOP
    encoder       transformer encoder, 6 layers, 384 wide, 6 heads, 128 tokens                       2.87 GFLOP

Weights are uniform and He-scaled, made from the raw PCG64 stream (whose values NumPy guarantees), so equal versions of this
file write equal bytes on every machine. Batch norms have non-trivial statistics, so folding them wrongly is seen.
The graphs are what exporters write today: opset 18, Conv and BatchNormalization apart, LayerNormalization as one operator,
GELU spelled with Erf, attention as MatMul and Softmax.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 18
IR_VERSION = 9


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

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self.random = Uniform(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.params: list[onnx.TensorProto] = []

    def op(self, kind: str, name: str, *inputs: str, outputs: int = 1, **attrs: object) -> str:
        outs = [name if i == 0 else f"{name}.{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, outs, name=name, **attrs))
        return name

    def param(self, name: str, array: np.ndarray) -> str:
        self.params.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def ints(self, name: str, *values: int) -> str:
        return self.param(name, np.array(values, np.int64))

    def conv(self, x: str, name: str, cin: int, cout: int, kernel: int, stride: int = 1, pad: int = 0, *,
             groups: int = 1, bias: bool = False) -> str:
        fan_in = cin // groups * kernel * kernel
        inputs = [x, self.param(f"{name}.weight", self.random.he(fan_in, cout, cin // groups, kernel, kernel))]
        if bias:
            inputs.append(self.param(f"{name}.bias", self.random.between(-0.1, 0.1, cout)))
        return self.op("Conv", name, *inputs, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4, group=groups)

    def deconv(self, x: str, name: str, cin: int, cout: int, kernel: int, stride: int, pad: int) -> str:
        fan_in = cin * kernel * kernel // (stride * stride)      # how many products one output element sums
        w = self.param(f"{name}.weight", self.random.he(fan_in, cin, cout, kernel, kernel))
        return self.op("ConvTranspose", name, x, w, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4)

    def batch_norm(self, x: str, name: str, channels: int, gain: float = 1.0) -> str:
        between = self.random.between
        scale = self.param(f"{name}.weight", between(0.8 * gain, 1.2 * gain, channels))
        shift = self.param(f"{name}.bias", between(-0.1, 0.1, channels))
        mean = self.param(f"{name}.running_mean", between(-0.2, 0.2, channels))
        variance = self.param(f"{name}.running_var", between(0.7, 1.5, channels))
        return self.op("BatchNormalization", name, x, scale, shift, mean, variance, epsilon=1e-5)

    def relu(self, x: str) -> str:
        return self.op("Relu", f"{x}.relu", x)

    def linear(self, x: str, name: str, cin: int, cout: int, gain: float = 1.0) -> str:
        """x @ weight.T + bias on rows, as Gemm (the exporters' form of a linear layer on a matrix)."""
        w = self.param(f"{name}.weight", self.random.he(cin, cout, cin, gain=gain))
        b = self.param(f"{name}.bias", self.random.between(-0.1, 0.1, cout))
        return self.op("Gemm", name, x, w, b, transB=1)

    def project(self, x: str, name: str, cin: int, cout: int, gain: float) -> str:
        """x @ weight + bias on the last dimension, as MatMul and Add (the exporters' form on three dimensions)."""
        w = self.param(f"{name}.weight", self.random.he(cin, cin, cout, gain=gain))
        b = self.param(f"{name}.bias", self.random.between(-0.1, 0.1, cout))
        return self.op("Add", name, self.op("MatMul", f"{name}.matmul", x, w), b)

    def layer_norm(self, x: str, name: str, width: int) -> str:
        w = self.param(f"{name}.weight", self.random.between(0.8, 1.2, width))
        b = self.param(f"{name}.bias", self.random.between(-0.1, 0.1, width))
        return self.op("LayerNormalization", name, x, w, b, axis=-1, epsilon=1e-5)

    def write(self, out: Path, inputs: dict[str, tuple[int, list[int]]], outputs: dict[str, list[int]]) -> None:
        """Write the model; what the last node makes becomes the (only) output."""
        self.nodes[-1].output[0], = outputs
        graph = helper.make_graph(
            self.nodes, self.name,
            [helper.make_tensor_value_info(n, dtype, shape) for n, (dtype, shape) in inputs.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in outputs.items()],
            self.params,
        )
        model = helper.make_model(
            graph, producer_name="recipes/paper", ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)]
        )
        out.write_bytes(model.SerializeToString(deterministic=True))


def write_inputs(out: Path, arrays: dict[str, np.ndarray]) -> None:
    """Verification data beside the model, in ONNX's own layout: test_data_set_0/input_N.pb."""
    folder = out.parent / "test_data_set_0"
    folder.mkdir(exist_ok=True)
    for i, (name, array) in enumerate(arrays.items()):
        (folder / f"input_{i}.pb").write_bytes(numpy_helper.from_array(array, name).SerializeToString(deterministic=True))


def resnet18(out: Path) -> None:
    """He et al. 2016: a 7x7 stem, four stages of two basic blocks, global average pool, 1,000 classes."""
    net = Network("resnet18", seed=18)
    x = net.relu(net.batch_norm(net.conv("input", "conv1", 3, 64, 7, 2, 3), "bn1", 64))
    x = net.op("MaxPool", "maxpool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    cin = 64
    for stage, cout in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            stride = 2 if stage > 1 and block == 0 else 1
            x = _basic_block(net, x, f"layer{stage}.{block}", cin, cout, stride)
            cin = cout
    x = net.op("Flatten", "flatten", net.op("GlobalAveragePool", "avgpool", x), axis=1)
    net.linear(x, "fc", 512, 1000)
    net.write(out, {"input": (TensorProto.FLOAT, [1, 3, 224, 224])}, {"logits": [1, 1000]})


def _basic_block(net: Network, x: str, name: str, cin: int, cout: int, stride: int) -> str:
    """Two 3x3 convolutions beside a shortcut; gain 0.5 on both branches keeps the sum's variance from growing."""
    y = net.relu(net.batch_norm(net.conv(x, f"{name}.conv1", cin, cout, 3, stride, 1), f"{name}.bn1", cout))
    y = net.batch_norm(net.conv(y, f"{name}.conv2", cout, cout, 3, 1, 1), f"{name}.bn2", cout, gain=0.5)
    if stride != 1 or cin != cout:
        shortcut = net.conv(x, f"{name}.downsample.0", cin, cout, 1, stride)
        x = net.batch_norm(shortcut, f"{name}.downsample.1", cout, gain=0.5)
    return net.relu(net.op("Add", f"{name}.add", y, x))


def mobilenet(out: Path) -> None:
    """Howard et al. 2017, width 1.0: thirteen depthwise-separable pairs."""
    net = Network("mobilenet", seed=1)
    x = net.relu(net.batch_norm(net.conv("input", "conv0", 3, 32, 3, 2, 1), "conv0.bn", 32))
    cin = 32
    pairs = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for i, (cout, stride) in enumerate(pairs, 1):
        x = net.conv(x, f"dw{i}", cin, cin, 3, stride, 1, groups=cin)
        x = net.relu(net.batch_norm(x, f"dw{i}.bn", cin))
        x = net.relu(net.batch_norm(net.conv(x, f"pw{i}", cin, cout, 1), f"pw{i}.bn", cout))
        cin = cout
    x = net.op("Flatten", "flatten", net.op("GlobalAveragePool", "avgpool", x), axis=1)
    net.op("Softmax", "softmax", net.linear(x, "fc", 1024, 1000, gain=0.5), axis=1)
    net.write(out, {"input": (TensorProto.FLOAT, [1, 3, 224, 224])}, {"probabilities": [1, 1000]})


def lstm(out: Path, *, hidden: int = 650, vocabulary: int = 10_000, steps: int = 20) -> None:
    """Zaremba et al. 2014, the medium model: embedding, two LSTM layers, logits of every step."""
    net = Network("lstm", seed=650)
    table = net.param("embedding.weight", net.random.between(-0.5, 0.5, vocabulary, hidden))
    x = net.op("Gather", "embedding", table, "tokens", axis=0)
    axes = net.ints("axis.directions", 1)
    for layer in range(2):
        name, bound = f"lstm.{layer}", 1 / math.sqrt(hidden)
        w = net.param(f"{name}.weight_ih", net.random.between(-bound, bound, 1, 4 * hidden, hidden))
        r = net.param(f"{name}.weight_hh", net.random.between(-bound, bound, 1, 4 * hidden, hidden))
        b = net.param(f"{name}.bias", net.random.between(-bound, bound, 1, 8 * hidden))
        net.op("LSTM", name, x, w, r, b, hidden_size=hidden)
        x = net.op("Squeeze", f"{name}.y", name, axes)
    net.project(x, "decoder", hidden, vocabulary, gain=1.0)
    net.write(out, {"tokens": (TensorProto.INT64, [steps, 1])}, {"logits": [steps, 1, vocabulary]})
    tokens = Uniform(20).between(0, vocabulary - 1, steps, 1).astype(np.int64)
    write_inputs(out, {"tokens": tokens})


def dqn(out: Path) -> None:
    """Mnih et al. 2015: three convolutions over four frames of 84x84, two linear layers."""
    net = Network("dqn", seed=84)
    x, cin = "frames", 4
    for i, (cout, kernel, stride) in enumerate(((32, 8, 4), (64, 4, 2), (64, 3, 1)), 1):
        x = net.relu(net.conv(x, f"conv{i}", cin, cout, kernel, stride, bias=True))
        cin = cout
    x = net.relu(net.linear(net.op("Flatten", "flatten", x, axis=1), "fc1", 64 * 7 * 7, 512))
    net.linear(x, "fc2", 512, 18)
    net.write(out, {"frames": (TensorProto.FLOAT, [1, 4, 84, 84])}, {"q_values": [1, 18]})


def dcgan(out: Path) -> None:
    """Radford et al. 2016, the generator: a linear layer to 4x4x1024, four transposed convolutions, tanh."""
    net = Network("dcgan", seed=100)
    x = net.linear("noise", "project", 100, 1024 * 4 * 4)
    x = net.op("Reshape", "project.view", x, net.ints("project.shape", 1, 1024, 4, 4))
    x = net.relu(net.batch_norm(x, "bn0", 1024))
    for i, (cin, cout) in enumerate(((1024, 512), (512, 256), (256, 128)), 1):
        x = net.relu(net.batch_norm(net.deconv(x, f"deconv{i}", cin, cout, 4, 2, 1), f"bn{i}", cout))
    net.op("Tanh", "tanh", net.deconv(x, "deconv4", 128, 3, 4, 2, 1))
    net.write(out, {"noise": (TensorProto.FLOAT, [1, 100])}, {"image": [1, 3, 64, 64]})


def encoder(out: Path, *, layers: int = 6, width: int = 384, heads: int = 6, tokens: int = 128) -> None:
    """Vaswani et al. 2017 with GELU, layer norm after each addition (BERT's order); input: embedded tokens."""
    net = Network("encoder", seed=384)
    net.param("attention.scale", np.array(1 / math.sqrt(width // heads), np.float32))
    for name, value in (("gelu.sqrt2", math.sqrt(2)), ("gelu.one", 1.0), ("gelu.half", 0.5)):
        net.param(name, np.array(value, np.float32))
    net.ints("attention.split", 0, 0, heads, width // heads)     # 0: keep that dimension
    net.ints("attention.merge", 0, 0, width)
    x = "hidden"
    for i in range(layers):
        attended = net.op("Add", f"layer{i}.attention.add", x, _attention(net, x, f"layer{i}.attention", width))
        x = net.layer_norm(attended, f"layer{i}.attention.norm", width)
        y = _gelu(net, net.project(x, f"layer{i}.intermediate", width, 4 * width, gain=0.7))
        y = net.project(y, f"layer{i}.output", 4 * width, width, gain=1.0)
        x = net.layer_norm(net.op("Add", f"layer{i}.output.add", x, y), f"layer{i}.output.norm", width)
    net.write(out, {"hidden": (TensorProto.FLOAT, [1, tokens, width])}, {"encoded": [1, tokens, width]})


def _attention(net: Network, x: str, name: str, width: int) -> str:
    """softmax(q k^T / sqrt(d)) v per head, and the projection of the heads put together again."""

    def split(part: str, perm: list[int]) -> str:
        y = net.project(x, f"{name}.{part}", width, width, gain=0.7)
        y = net.op("Reshape", f"{name}.{part}.heads", y, "attention.split")
        return net.op("Transpose", f"{name}.{part}.transposed", y, perm=perm)

    q, k, v = split("query", [0, 2, 1, 3]), split("key", [0, 2, 3, 1]), split("value", [0, 2, 1, 3])
    scores = net.op("Mul", f"{name}.scaled", net.op("MatMul", f"{name}.scores", q, k), "attention.scale")
    y = net.op("MatMul", f"{name}.context", net.op("Softmax", f"{name}.softmax", scores, axis=-1), v)
    y = net.op("Transpose", f"{name}.context.transposed", y, perm=[0, 2, 1, 3])
    y = net.op("Reshape", f"{name}.context.merged", y, "attention.merge")
    return net.project(y, f"{name}.out", width, width, gain=0.7)


def _gelu(net: Network, x: str) -> str:
    """x * (erf(x / sqrt 2) + 1) * 0.5, node by node as torch.onnx writes it for opset 18."""
    erf = net.op("Erf", f"{x}.erf", net.op("Div", f"{x}.div", x, "gelu.sqrt2"))
    y = net.op("Mul", f"{x}.product", x, net.op("Add", f"{x}.erf1", erf, "gelu.one"))
    return net.op("Mul", f"{x}.gelu", y, "gelu.half")
