"""Shapes that depend on data: the importer's rules against ONNX Runtime, by the interpreter and by compiled code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from small_models import imported, make_model, run_onnxruntime

from toolchain import onnx_backend
from toolchain.core.errors import ImportModelError, UsageError
from toolchain.graph.importers.bounded_rules import RULES
from toolchain.graph.interpret import interpret
from toolchain.graph.passes import PASSES, run_passes
from toolchain.graph.serialize import from_json, to_json
from toolchain.graph.text import to_text

node = helper.make_node


def ints(*values: int) -> np.ndarray:
    return np.array(values, "int64")


# float32 x[4, 6], c[9], flags bool[9], box[12, 4], score[1, 3, 12]; each chain ends in what its name is mapped to
BASE = {
    "x": (4, 6), "c": (9,), "r": (9, 4), "flags": (9,), "boxes": (1, 12, 4), "scores": (1, 3, 12), "k": (1,),
    "map": (1, 2, 8, 8),
}
DTYPES = {"flags": "bool", "k": "int64"}
PICK = [node("Compress", ["r", "flags"], ["p"], axis=0)]                                     # p: [n, 4]
NMS = [node("NonMaxSuppression", ["boxes", "scores", "most", "iou", "least"], ["sel"])]      # sel: [n, 3]
CONSTANTS: dict[str, np.ndarray] = {
    "most": ints(3), "iou": np.array([0.4], "float32"), "least": np.array([0.3], "float32"), "zero": ints(0), "one": ints(1),
    "two": ints(2), "minus": ints(-1), "flat": ints(-1), "pairs": ints(-1, 2), "rows": ints(-1, 2, 2), "keep": ints(0, 2, 2),
    "w": np.arange(12, dtype="float32").reshape(4, 3), "far": ints(2**62), "three": ints(3), "s0": np.array(0, "int64"),
    "s1": np.array(1, "int64"), "two_scalar": np.array(2, "int64"), "axes01": ints(0, 1), "hundred": ints(5),
    "kernel": np.ones((2, 2, 3, 3), "float32"), "values": np.array([2.0, 5.0], "float32"), "depth": np.array(6, "int64"),
}


def _sliced(start: str, end: str, axis: str = "zero", step: str = "one") -> list[onnx.NodeProto]:
    return [*PICK, node("Slice", ["p", start, end, axis, step], ["y"])]


def _yolo() -> list[onnx.NodeProto]:
    """The end of a detector: boxes and scores by the selected indices, joined with the class."""
    return [
        *NMS,
        node("Gather", ["sel", "s0"], ["batch"], axis=1), node("Gather", ["sel", "s1"], ["class"], axis=1),
        node("Gather", ["sel", "two_scalar"], ["which"], axis=1),
        node("Squeeze", ["boxes", "zero"], ["all_boxes"]), node("Gather", ["all_boxes", "which"], ["box"], axis=0),
        node("GatherND", ["scores", "sel"], ["score"]), node("Unsqueeze", ["score", "one"], ["score2"]),
        node("Cast", ["class"], ["class_f"], to=1), node("Cast", ["batch"], ["batch_f"], to=1),
        node("Unsqueeze", ["class_f", "one"], ["class2"]), node("Unsqueeze", ["batch_f", "one"], ["batch2"]),
        node("Concat", ["batch2", "box", "class2", "score2"], ["y"], axis=1),
    ]


CASES: dict[str, list[onnx.NodeProto]] = {
    "non_zero": [node("NonZero", ["x"], ["y"])],
    "non_zero_rows": [node("NonZero", ["x"], ["i"]), node("Transpose", ["i"], ["y"])],
    "non_zero_gather": [
        node("NonZero", ["c"], ["i"]), node("Squeeze", ["i", "zero"], ["j"]), node("Gather", ["r", "j"], ["y"])],
    "non_zero_of_picked": [*PICK, node("NonZero", ["p"], ["y"])],
    "compress": PICK + [node("Relu", ["p"], ["y"])],
    "compress_columns": [node("Transpose", ["r"], ["t"]), node("Compress", ["t", "flags"], ["y"], axis=1)],
    "compress_elements": [node("Compress", ["x", "flags"], ["y"])],
    "unique": [node("Unique", ["c"], ["y", "first", "inverse", "counts"])],
    "unique_unsorted": [node("Unique", ["c"], ["y", "", "inverse"], sorted=0)],
    "unique_columns": [node("Unique", ["x"], ["y", "first"], axis=1)],
    "unique_of_picked": [*PICK, node("Unique", ["p"], ["y", "first", "inverse", "counts"])],
    "nms": NMS + [node("Identity", ["sel"], ["y"])],
    "yolo": _yolo(),
    "broadcast": [*PICK, node("ReduceSum", ["p", "one"], ["s"], keepdims=1), node("Div", ["p", "s"], ["y"])],
    "two_results": [*PICK, node("Neg", ["p"], ["y"]), node("ReduceMax", ["p"], ["z"], axes=[1])],
    "reduce_mean": [*PICK, node("ReduceMean", ["p"], ["y"], axes=[0])],
    "reduce_max": [*PICK, node("ReduceMax", ["p"], ["y"], axes=[0], keepdims=0)],
    "reduce_all": [*PICK, node("ReduceL2", ["p"], ["y"], keepdims=0)],
    "softmax": [*PICK, node("Softmax", ["p"], ["y"], axis=0)],
    "cum_sum": [*PICK, node("CumSum", ["p", "s0"], ["y"], reverse=1)],
    "matmul_rows": [*PICK, node("MatMul", ["p", "w"], ["y"])],
    "matmul_inner": [*PICK, node("Transpose", ["p"], ["t"]), node("MatMul", ["t", "p"], ["y"])],
    "matmul_outer": [*PICK, node("Transpose", ["p"], ["t"]), node("MatMul", ["p", "t"], ["y"])],
    "gemm": [*PICK, node("Gemm", ["p", "w"], ["y"])],
    "slice_first": _sliced("zero", "two"),
    "slice_last": _sliced("minus", "far"),
    "slice_all_but_last": _sliced("zero", "minus"),
    "slice_every_second": _sliced("zero", "far", step="two"),
    "slice_backwards": _sliced("minus", "least_int", step="minus"),
    "slice_other_axis": _sliced("one", "three", axis="one"),
    "slice_by_data": [node("Slice", ["r", "zero", "k", "zero", "one"], ["y"])],
    "gather_last": [*PICK, node("Gather", ["p", "minus"], ["y"], axis=0)],
    "concat": [
        *PICK, node("Slice", ["r", "zero", "two", "zero", "one"], ["h"]),
        node("Concat", ["h", "p", "h", "p"], ["y"], axis=0)],
    "concat_other_axis": [*PICK, node("Concat", ["p", "p"], ["y"], axis=1)],
    "reshape_flat": [*PICK, node("Reshape", ["p", "flat"], ["y"])],
    "reshape_pairs": [*PICK, node("Reshape", ["p", "pairs"], ["y"])],
    "reshape_rows": [*PICK, node("Reshape", ["p", "rows"], ["q"]), node("Add", ["q", "q"], ["y"])],
    "reshape_keep": [*PICK, node("Reshape", ["p", "keep"], ["y"])],
    "reshape_columns": [*PICK, node("Transpose", ["p"], ["t"]), node("Reshape", ["t", "flat"], ["y"])],
    "flatten": [*PICK, node("Reshape", ["p", "rows"], ["q"]), node("Flatten", ["q"], ["y"])],
    "shape_of": [*PICK, node("Shape", ["p"], ["y"])],
    "size_of": [*PICK, node("Size", ["p"], ["y"])],
    "reshape_by_shape": [
        *PICK, node("Shape", ["p"], ["s"]), node("Gather", ["s", "zero"], ["n"]),
        node("Concat", ["n", "two", "two"], ["t"], axis=0), node("Reshape", ["p", "t"], ["y"])],
    "expand": [
        *PICK, node("Shape", ["p"], ["s"]), node("ReduceMax", ["r"], ["m"], keepdims=1), node("Expand", ["m", "s"], ["e"]),
        node("Add", ["e", "p"], ["y"])],
    "constant_and_range": [
        *PICK, node("Shape", ["p"], ["s"]), node("Gather", ["s", "s0"], ["n"]), node("Range", ["s0", "n", "s1"], ["i"]),
        node("Unsqueeze", ["n", "zero"], ["n1"]), node("ConstantOfShape", ["n1"], ["z"]), node("Cast", ["i"], ["f"], to=1),
        node("Add", ["f", "z"], ["y"])],
    "top_k_of_picked": [
        *PICK, node("Shape", ["p"], ["s"]), node("Gather", ["s", "zero"], ["n"]), node("Min", ["n", "hundred"], ["least_n"]),
        node("Transpose", ["p"], ["t"]), node("TopK", ["t", "least_n"], ["y", "z"], axis=1)],
    "top_k_by_row": [*PICK, node("TopK", ["p", "two"], ["y", "z"], axis=1)],
    "arg_max": [*PICK, node("ArgMax", ["p"], ["y"], axis=0)],
    "where": [*PICK, node("Greater", ["p", "w0"], ["g"]), node("Where", ["g", "p", "w0"], ["y"])],
    "one_hot": [node("NonZero", ["c"], ["i"]), node("OneHot", ["i", "depth", "values"], ["y"])],
    "split": [*PICK, node("Split", ["p"], ["y", "z"], axis=1)],
    "picked_twice": [*PICK, node("ReduceMax", ["p"], ["m"], axes=[1], keepdims=0), node("Greater", ["m", "w0"], ["g"]),
                     node("Compress", ["p", "g"], ["y"], axis=0)],
    "regions": [
        *PICK, node("Abs", ["p"], ["a"]), node("Shape", ["p"], ["s"]), node("Gather", ["s", "zero"], ["n"]),
        node("ConstantOfShape", ["n"], ["b"], value=helper.make_tensor("v", 7, [1], [0])),
        node("RoiAlign", ["map", "a", "b"], ["q"], output_height=3, output_width=3), node("Conv", ["q", "kernel"], ["y"])],
}
CONSTANTS |= {"least_int": ints(-(2**62)), "w0": np.array([0.5], "float32")}

# the same number of rows, which only a run can tell: selected by the flags backwards
BACK = [*PICK, node("Slice", ["flags", "minus", "least_int", "zero", "minus"], ["back"]),
        node("Compress", ["r", "back"], ["q"], axis=0)]                                         # q: [n, 4] as well
LENGTH = [*PICK, node("Shape", ["p"], ["s"]), node("Gather", ["s", "zero"], ["n"])]             # n: [1]
COUNT = [node("Cast", ["flags"], ["counted"], to=7), node("ReduceSum", ["counted"], ["n"], keepdims=0)]     # n: no extent
VALUES = [node("Unsqueeze", ["c", "one"], ["column"]), node("Compress", ["column", "flags"], ["v"], axis=0)]   # v: [n, 1]


def _body(name: str, nodes: list[onnx.NodeProto], *outputs: str) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, [], [onnx.ValueInfoProto(name=o) for o in outputs])


def _loop(nodes: list[onnx.NodeProto], states: dict[str, int], *outputs: str) -> onnx.GraphProto:
    """A body of a Loop: float32 states of these numbers of dimensions."""
    inputs = [helper.make_tensor_value_info("round", 7, []), helper.make_tensor_value_info("going", 9, [])]
    inputs += [helper.make_tensor_value_info(n, 1, [None] * rank) for n, rank in states.items()]
    return helper.make_graph([*nodes, node("Identity", ["going"], ["on"])], "body", inputs,
                             [onnx.ValueInfoProto(name=o) for o in ("on", *outputs)])


CASES |= {
    "equal_when_run": [*BACK, node("Add", ["p", "q"], ["y"])],
    "broadcast_when_run": [*VALUES, node("Transpose", ["v"], ["row"]), node("Add", ["v", "row"], ["y"])],
    "all_of_them": [*PICK, node("Add", ["p", "r"], ["y"])],
    "known_length": [*PICK, node("MatMul", ["square", "p"], ["y"])],
    "matmul_by_other_length": [*BACK, node("Transpose", ["p"], ["t"]), node("MatMul", ["t", "q"], ["y"])],
    "matmul_of_vectors": [*VALUES, node("Squeeze", ["v", "one"], ["w1"]), node("MatMul", ["w1", "v"], ["y"])],
    "gemm_inner": [*BACK, node("Gemm", ["p", "q", "w0"], ["y"], transA=1, alpha=0.5, beta=2.0)],
    "gather_nd": [*PICK, node("NonZero", ["p"], ["i"]), node("Transpose", ["i"], ["j"]),
                  node("GatherND", ["p", "j"], ["y"])],
    "gather_nd_from_end": [*PICK, node("GatherND", ["p", "last_row"], ["y"])],
    "gather_nd_batch": [*BACK, node("ArgMax", ["q"], ["i"], axis=1), node("GatherND", ["p", "i"], ["y"], batch_dims=1)],
    "gather_elements": [*BACK, node("ArgMax", ["q"], ["i"], axis=1), node("GatherElements", ["p", "i"], ["y"], axis=1)],
    "scatter_elements": [*PICK, node("ArgMax", ["p"], ["i"], axis=0),
                         node("ScatterElements", ["p", "i", "one_row"], ["y"], axis=0, reduction="add")],
    "scatter_elements_along": [*BACK, node("Shape", ["p"], ["s"]), node("ConstantOfShape", ["s"], ["z"]),
                               node("ArgMax", ["q"], ["i"], axis=1),
                               node("Slice", ["q", "zero", "one", "one"], ["u"]),
                               node("ScatterElements", ["z", "i", "u"], ["y"], axis=1)],
    "scatter_nd": [*PICK, node("NonZero", ["flags"], ["i"]), node("Transpose", ["i"], ["j"]),
                   node("ScatterND", ["nil", "j", "p"], ["y"])],
    "scatter_nd_into": [*PICK, node("ScatterND", ["p", "last_rows", "one_row"], ["y"])],
    "concat_when_equal": [*BACK, node("Concat", ["p", "q"], ["y"], axis=1)],
    "squeeze_one": [*PICK, node("ReduceMax", ["p"], ["m"], keepdims=1), node("Greater", ["m", "w0"], ["g"]),
                    node("Reshape", ["g", "flat"], ["g1"]), node("Compress", ["m", "g1"], ["o"], axis=0),
                    node("Squeeze", ["o", "zero"], ["y"])],
    "tile": [*PICK, node("Tile", ["p", "pairs2"], ["y"])],
    "tile_by_data": [*LENGTH, node("Concat", ["n", "two"], ["times"], axis=0), node("Tile", ["x", "times"], ["y"])],
    "pad": [*PICK, node("Pad", ["p", "pads"], ["y"])],
    "pad_edge": [*PICK, node("Pad", ["p", "pads"], ["y"], mode="edge")],
    "pad_reflect": [*PICK, node("Concat", ["nil", "p"], ["j"], axis=0), node("Pad", ["j", "pads1"], ["y"], mode="reflect")],
    "pad_to_length": [*LENGTH, node("Sub", ["nine", "n"], ["missing"]),
                      node("Concat", ["zero", "zero", "missing", "zero"], ["amounts"], axis=0),
                      node("Pad", ["p", "amounts", "fill"], ["y"])],
    "split": [*PICK, node("Split", ["p"], ["y", "z"], axis=1)],
    "split_along": [*PICK, node("Slice", ["p", "zero", "three", "zero"], ["h"]), node("Concat", ["h", "h"], ["hh"], axis=0),
                    node("Split", ["hh"], ["y", "z"], axis=0)],
    "reshape_two_open": [*LENGTH, node("Concat", ["two", "n", "minus"], ["to"], axis=0), node("Transpose", ["p"], ["t"]),
                         node("Reshape", ["t", "to"], ["y"])],
    "reshape_open_last": [*LENGTH, node("Concat", ["two", "minus"], ["to"], axis=0), node("Reshape", ["p", "to"], ["y"])],
    "reshape_to_known": [*PICK, node("Reshape", ["p", "whole"], ["y"])],
    "flatten_both": [*LENGTH, node("Transpose", ["p"], ["t"]), node("MatMul", ["p", "t"], ["m"]),
                     node("Unsqueeze", ["m", "zero"], ["u"]), node("Flatten", ["u"], ["y"], axis=2)],
    "range_of_count": [*COUNT, node("Range", ["s1", "n", "two_scalar"], ["y"])],
    "range_down": [*COUNT, node("Range", ["n", "s0", "minus_scalar"], ["y"])],
    "range_of_floats": [*COUNT, node("Cast", ["n"], ["nf"], to=1), node("Range", ["f0", "nf", "fhalf"], ["y"])],
    "constant_of_count": [*COUNT, node("Unsqueeze", ["n", "zero"], ["n1"]), node("ConstantOfShape", ["n1"], ["y"])],
    "expand_to_count": [*COUNT, node("Unsqueeze", ["n", "zero"], ["n1"]), node("Concat", ["n1", "one"], ["to"], axis=0),
                        node("Slice", ["x", "zero", "one", "zero"], ["xr"]), node("Expand", ["xr", "to"], ["y"])],
    "expand_or_keep": [*LENGTH, node("Concat", ["n", "minus"], ["to"], axis=0), node("Equal", ["to", "minus"], ["e"]),
                       node("Where", ["e", "ones2", "to"], ["to1"]), node("Slice", ["x", "zero", "one", "zero"], ["xr"]),
                       node("Expand", ["xr", "to1"], ["y"])],
    "slice_to_count": [*COUNT, node("Unsqueeze", ["n", "zero"], ["n1"]), node("Slice", ["r", "zero", "n1", "zero"], ["y"])],
    "top_k_by_data": [*COUNT, node("Unsqueeze", ["n", "zero"], ["n1"]), node("TopK", ["c", "n1"], ["y", "z"])],
    "arg_max_last": [*PICK, node("ArgMax", ["p"], ["y"], axis=0, select_last_index=1)],
    "trilu": [*PICK, node("Trilu", ["p"], ["y"], upper=0)],
    "matmul_integer": [*PICK, node("Cast", ["p"], ["i8"], to=3), node("Transpose", ["i8"], ["t"]),
                       node("MatMulInteger", ["t", "i8", "zp"], ["y"])],
    "branch_reads": [*PICK, node("Size", ["p"], ["s"]), node("Greater", ["s", "two_scalar"], ["many"]), node(
        "If", ["many"], ["y"], then_branch=_body("t", [node("Slice", ["p", "one", "far", "zero"], ["a"])], "a"),
        else_branch=_body("e", [node("Abs", ["p"], ["b"])], "b"))],
    "branches_of_two_shapes": [*COUNT, node("Greater", ["n", "two_scalar"], ["many"]), node(
        "If", ["many"], ["kept"], then_branch=_body("t", [node("Identity", ["r"], ["a"])], "a"),
        else_branch=_body("e", [node("Slice", ["r", "zero", "zero", "zero"], ["b"])], "b")), node("Neg", ["kept"], ["y"])],
    "branches_of_two_ranks": [*COUNT, node("Greater", ["n", "two_scalar"], ["many"]), node(
        "If", ["many"], ["kept"], then_branch=_body("t", [node("Identity", ["w0"], ["a"])], "a"),
        else_branch=_body("e", [node("ReduceMax", ["r"], ["b"], keepdims=0)], "b")), node("Add", ["kept", "x"], ["y"])],
    "loop_reads": [*PICK, node("Loop", ["two_scalar", "", "x1"], ["y"], body=_loop([
        node("ReduceSum", ["p", "zero"], ["sum"], keepdims=1), node("Add", ["state", "sum"], ["next"])],
        {"state": 2}, "next"))],
    "loop_after_its_first_round": [*COUNT, node("Loop", ["far_scalar", "", "f0"], ["y"], body=helper.make_graph([
        node("Add", ["state", "x"], ["next"]), node("Less", ["round", "n"], ["on"])], "body", [
            helper.make_tensor_value_info("round", 7, []), helper.make_tensor_value_info("going", 9, []),
            helper.make_tensor_value_info("state", 1, None)],
        [onnx.ValueInfoProto(name=o) for o in ("on", "next")]))],
}
CONSTANTS |= {
    "square": np.ones((3, 9), "float32"), "last_row": np.array([[-1, 0], [0, -1]], "int64"),
    "nil": np.zeros((9, 4), "float32"), "last_rows": np.array([[-1]], "int64"),
    "one_row": np.ones((1, 4), "float32"), "pairs2": ints(2, 1), "pads": ints(1, 0, 2, 1), "pads1": ints(1, 1, 1, 0),
    "nine": ints(9), "fill": np.array(7, "float32"), "whole": ints(3, 12), "minus_scalar": np.array(-1, "int64"),
    "f0": np.array(0, "float32"), "fhalf": np.array(0.5, "float32"), "ones2": ints(1, 1), "zp": np.array(3, "int8"),
    "x1": np.ones((1, 4), "float32"), "far_scalar": np.array(2**40, "int64"),
}
EMPTY_FAILS = {
    "regions", "reduce_max", "reduce_mean", "arg_max", "arg_max_last", "gather_last", "gather_nd_from_end",
    "gather_nd_batch", "gather_elements", "scatter_elements", "scatter_elements_along", "matmul_integer",
    "scatter_nd_into", "pad_edge", "reshape_two_open",
}           # of no rows: undefined


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for n in nodes:
        yield n
        for a in n.attribute:
            yield from _all_nodes(a.g.node)


def model(name: str) -> onnx.ModelProto:
    nodes = CASES[name]
    read = {i for n in _all_nodes(nodes) for i in n.input}
    made = [o for n in nodes for o in n.output if o]
    ends = [o for o in made if o in ("y", "z", "first", "inverse", "counts")]
    graph = make_model(nodes, {n: s for n, s in BASE.items() if n in read}, ends,
                       {n: a for n, a in CONSTANTS.items() if n in read}, dtypes=DTYPES)
    for output in graph.graph.output:               # their element types are for ONNX to infer
        output.ClearField("type")
    return onnx.shape_inference.infer_shapes(graph)


def data(proto: onnx.ModelProto, seed: int) -> dict[str, np.ndarray]:
    """Random numbers with repetitions and zeros; seed 1: nothing is selected, seed 2: everything, seed 3: one."""
    rng = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    for i in proto.graph.input:
        shape = BASE[i.name]
        match i.name:
            case "flags":
                found[i.name] = rng.random(shape) > {1: 2.0, 2: -1.0}.get(seed, 0.5) if seed != 3 else np.arange(9) == 4
            case "k":
                found[i.name] = np.full(shape, {1: 0, 2: 9}.get(seed, 4), "int64")
            case "boxes":
                corner = rng.random((*shape[:2], 2)) * 5
                found[i.name] = np.concatenate([corner, corner + rng.random((*shape[:2], 2)) * 4], 2).astype("float32")
            case "scores":
                found[i.name] = np.round(rng.random(shape) * (0.2 if seed == 1 else 1), 1).astype("float32")
            case "map":
                found[i.name] = rng.standard_normal(shape).astype("float32")
            case _:
                found[i.name] = np.round(rng.standard_normal(shape) * (seed != 1)).astype("float32") + (seed == 2)
    return found


def check(made: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray], what: str) -> None:
    assert list(made) == list(right), what
    for name, want in right.items():
        got = made[name]
        assert (got.shape, got.dtype) == (want.shape, want.dtype), f"{what}: {name} is {got.shape}, not {want.shape}"
        # sums of a dozen float32 in another order
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6, err_msg=f"{what}: {name}")


@pytest.mark.parametrize("name", CASES)
def test_like_onnx_runtime(name: str):
    proto = model(name)
    graph = imported(proto, supported=None)
    assert to_text(from_json(to_json(graph))) == to_text(graph) and from_json(to_json(graph)).extents == graph.extents
    for seed in (0, 1, 2, 3):
        inputs = data(proto, seed)
        if seed == 1 and name in EMPTY_FAILS:
            continue
        try:
            right = run_onnxruntime(proto, inputs)
        except onnxruntime.capi.onnxruntime_pybind11_state.Fail:        # what does not fit, does not fit here either
            with pytest.raises(UsageError, match="does not fit"):
                interpret(graph, inputs)
            continue
        check(graph.results(interpret(graph, inputs)), right, f"imported, seed {seed}")
        if seed == 0:
            passed = run_passes(graph, PASSES)
            check(passed.results(interpret(passed, inputs)), right, "after the passes")


COMPILED = (
    "non_zero", "unique", "unique_of_picked", "yolo", "concat", "slice_backwards", "reshape_columns", "top_k_of_picked",
    "matmul_inner", "picked_twice", "constant_and_range", "equal_when_run", "broadcast_when_run", "gather_nd", "scatter_nd",
    "pad_to_length", "tile_by_data", "range_of_count", "branch_reads", "branches_of_two_shapes",
    "branches_of_two_ranks", "loop_reads", "loop_after_its_first_round",
)


@pytest.mark.skipif(not onnx_backend.supports_device("CPU"), reason="runs x86 code in this process")
@pytest.mark.parametrize("name", COMPILED)
def test_compiled(name: str):
    proto = model(name)
    prepared = onnx_backend.prepare(proto)
    for seed in (0, 1, 2):
        inputs = data(proto, seed)
        check(prepared.run(inputs)._asdict(), run_onnxruntime(proto, inputs), f"seed {seed}")


@pytest.mark.parametrize(("nodes", "message"), [
    ([node("Tile", ["r", "kk"], ["y"])], "has no bound"),
    ([node("Range", ["s0", "k", "s1"], ["y"])], "has no bound"),
    ([*PICK, node("Squeeze", ["p"], ["y"])], "Squeeze without axes would drop a dimension"),         # found by the fuzzer
    ([*PICK, node("Det", ["p"], ["y"])], "Det of a value whose shape depends on data is not supported"),
    ([node("Reshape", ["r", "k"], ["y"])], "has no bound"),
    ([*PICK, node("Loop", ["far_scalar", "", "p"], ["y"], body=_loop([node("Neg", ["state"], ["next"])], {"state": 2},
                                                                    "next"))],
     "the shape of a loop's state depends on data"),
    ([node("If", ["go"], ["k1"], then_branch=_body("t", [node("Identity", ["one"], ["a"])], "a"),
           else_branch=_body("e", [node("Identity", ["s1"], ["b"])], "b")), node("Unsqueeze", ["k1", "zero"], ["y"])],
     "the number of dimensions of 'k1' depends on data"),
])
def test_what_has_no_rule_is_refused(nodes: Sequence[onnx.NodeProto], message: str):
    inputs = {"r": (9, 4), "flags": (9,), "k": (1,), "kk": (2,), "go": ()}
    proto = make_model(nodes, inputs, ["y"], CONSTANTS, dtypes={**DTYPES, "go": "bool", "kk": "int64"})
    with pytest.raises(ImportModelError) as e:
        imported(proto)
    assert message in e.value.what and e.value.where.startswith("node ")


def test_equal_selections_have_equal_extents():
    """Two Compress with one condition may be added: their extents are one value."""
    nodes = [*PICK, node("Compress", ["r", "flags"], ["q"], axis=0), node("Add", ["p", "q"], ["y"])]
    proto = make_model(nodes, {"r": (9, 4), "flags": (9,)}, ["y"], dtypes=DTYPES)
    inputs = data(proto, 0)
    graph = imported(proto)
    check(graph.results(interpret(graph, inputs)), run_onnxruntime(proto, inputs), "two")
    assert graph.own_outputs == ("y",) and len(graph.outputs) == 2


def test_rules_are_for_onnx_operators():
    assert all(onnx.defs.has(op) for op in RULES)


