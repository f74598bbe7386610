"""A random network in the making: every node is run by ONNX Runtime as soon as it is proposed, and kept when its result is
of use for a comparison: finite, of moderate size, and few elements."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

OPSET = 23
MOST_ELEMENTS = 6000
MOST = 200.0                # of a float's magnitude: sums of such numbers keep some digits
EXTENTS = (1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33)

ort.set_default_logger_severity(4)


@dataclass(eq=False)
class Case:
    """A model, inputs, and what ONNX Runtime computed for its outputs, node by node."""

    model: onnx.ModelProto
    inputs: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    """Without optimizations: the plainest meaning of the model that ONNX Runtime has."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def case_of(model: onnx.ModelProto, arrays: dict[str, np.ndarray]) -> Case:
    """The case of a model and its inputs. Raises what ONNX Runtime raises when it refuses the model."""
    inputs = {i.name: arrays[i.name] for i in model.graph.input}
    made = session(model).run(None, inputs)
    return Case(model, inputs, dict(zip((o.name for o in model.graph.output), made, strict=True)))


def value_info(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def make_model(nodes: Sequence[onnx.NodeProto], inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray],
               constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes), "fuzz", [value_info(n, a) for n, a in inputs.items()], [value_info(n, a) for n, a in outputs.items()],
        [numpy_helper.from_array(np.asarray(a, order="C"), n) for n, a in constants.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


@dataclass(eq=False)
class Builder:
    """Nodes so far, and the value of everything. `exact`: values without rounding errors, fit for operators with jumps."""

    rng: random.Random
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    inputs: dict[str, np.ndarray] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    values: dict[str, np.ndarray] = field(default_factory=dict)
    exact: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.numpy = np.random.default_rng(self.rng.getrandbits(64))

    # ---- random choices

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def one_of(self, *choices: Any) -> Any:
        return self.rng.choice(choices)

    def shape(self, rank: int, most: int = 2000) -> tuple[int, ...]:
        while math.prod(found := tuple(self.rng.choice(EXTENTS) for _ in range(rank))) > most:
            pass
        return found

    def array(self, shape: Sequence[int], dtype: str = "float32", scale: float = 1.0) -> np.ndarray:
        """Random numbers; integers are small ones."""
        if dtype == "bool":
            return self.numpy.integers(0, 2, shape).astype(bool)
        if dtype.startswith("uint"):
            return self.numpy.integers(0, 20, shape).astype(dtype)
        if dtype.startswith("int"):
            return self.numpy.integers(-10, 11, shape).astype(dtype)
        return (self.numpy.standard_normal(shape) * scale).astype(dtype)

    # ---- values

    def name(self, base: str) -> str:
        return f"{base}{len(self.values)}"

    def input(self, shape: Sequence[int], dtype: str = "float32") -> str:
        return self._leaf(self.inputs, "x", self.array(shape, dtype))

    def given(self, array: np.ndarray) -> str:
        """An input with those numbers."""
        return self._leaf(self.inputs, "x", np.asarray(array))

    def const(self, array: Any) -> str:
        return self._leaf(self.constants, "w", np.asarray(array))

    def ints(self, *values: int) -> str:
        return self.const(np.array(values, np.int64))

    def weight(self, *shape: int) -> str:
        """A constant, scaled so that a product with it keeps its size; sometimes an input."""
        array = self.array(shape, scale=1 / math.sqrt(max(1, math.prod(shape[1:]))))
        return self.given(array) if self.chance(0.1) else self.const(array)

    def _leaf(self, kind: dict[str, np.ndarray], base: str, array: np.ndarray) -> str:
        name = self.name(base)
        kind[name] = self.values[name] = array
        self.exact.add(name)
        return name

    def some(self, rank: int | tuple[int, int] = (0, 5), dtypes: Sequence[str] = ("float32",), *, exact: bool = False,
             when: Callable[[np.ndarray], bool] = lambda a: True) -> str:
        """A value so far that fits, rather a late one; a new input when there is none, and sometimes anyway."""
        low, high = (rank, rank) if isinstance(rank, int) else rank
        fits = [n for n, a in self.values.items()
                if low <= a.ndim <= high and a.dtype.name in dtypes and (n in self.exact or not exact)
                and n not in self.constants and when(a)]
        if fits and not self.chance(0.12):
            return fits[-1 - min(int(self.rng.expovariate(0.6)), len(fits) - 1)]
        for _ in range(20):
            name = self.name("x")
            array = self.array(self.shape(self.rng.randint(max(low, min(1, high)), high)), self.rng.choice(list(dtypes)))
            if when(array):
                self.inputs[name] = self.values[name] = array
                self.exact.add(name)
                return name
        raise LookupError("no such value")

    def __getitem__(self, name: str) -> np.ndarray:
        return self.values[name]

    def op(self, op: str, *inputs: str, outputs: int = 1, exact: bool | None = None, **attrs: Any) -> list[str] | None:
        """Add a node; the names of its outputs, or None when ONNX Runtime refuses it or its result is of no use.

        exact: whether its results have no rounding errors (None: when its inputs have none).
        """
        names = [f"v{len(self.values) + k}" for k in range(outputs)]
        attrs = {k: v for k, v in attrs.items() if v is not None}
        node = helper.make_node(op, list(inputs), names, name=f"{op.lower()}_{len(self.nodes)}", **attrs)
        read = {i: self.values[i] for i in inputs if i}
        constants = {n: a for n, a in read.items() if n in self.constants}
        given = {n: a for n, a in read.items() if n not in constants}
        graph = helper.make_graph(
            [node], "one", [value_info(n, a) for n, a in given.items()],
            [onnx.ValueInfoProto(name=n) for n in names],
            [numpy_helper.from_array(np.asarray(a, order="C"), n) for n, a in constants.items()])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        try:
            made = session(model).run(None, given)
        except Exception:
            return None
        if not all(isinstance(a, np.ndarray) and of_use(a) for a in made):
            return None
        self.nodes.append(node)
        self.values.update(zip(names, made, strict=True))
        if exact is None:
            exact = all(i in self.exact for i in inputs if i)
        if exact:
            self.exact.update(names)
        return names

    # ---- the result

    def case(self) -> Case:
        """The model: everything that nobody reads is an output, and sometimes something else is one too."""
        read = {i for n in self.nodes for i in n.input}
        made = [o for n in self.nodes for o in n.output]
        outputs = [o for o in made if o not in read]
        outputs += [o for o in made if o in read and self.chance(0.08)]
        outputs += [i for i in self.inputs if i not in read and self.chance(0.3)]
        inputs = {n: a for n, a in self.inputs.items() if n in read or n in outputs}
        self.rng.shuffle(outputs)
        expected = {o: self.values[o] for o in outputs}
        constants = {n: a for n, a in self.constants.items() if n in read}
        return Case(make_model(self.nodes, inputs, expected, constants), inputs, expected)


def of_use(array: np.ndarray) -> bool:
    """Whether a comparison of what follows from it tells something."""
    if not 0 < array.size <= MOST_ELEMENTS or array.dtype.kind not in "fiub":
        return False
    if array.dtype.kind == "f":
        return bool(np.isfinite(array).all() and np.abs(array).max() < MOST)
    return array.dtype.kind == "b" or int(np.abs(array.astype(np.int64)).max()) < 1 << 20
