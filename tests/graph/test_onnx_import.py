"""Models of the onnx package and small ones: shapes bound, constants folded, functions and branches inlined."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from small_models import LIGHT, assert_like_onnxruntime, imported, make_model, random_inputs, run_onnxruntime, value

from toolchain.core.errors import ImportModelError, UsageError
from toolchain.graph.importers.coverage import Unsupported, unsupported
from toolchain.graph.importers.limits import Limits
from toolchain.graph.importers.onnx import import_onnx
from toolchain.graph.interpret import interpret
from toolchain.graph.text import to_text
from toolchain.graph.verify import verify

node = helper.make_node


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, "int64")


LIGHT_MODELS = sorted(p.name for p in LIGHT.glob("light_*.onnx"))


def test_the_light_models_are_there():
    assert len(LIGHT_MODELS) == 9


@pytest.mark.parametrize("name", LIGHT_MODELS)
def test_light_models_have_only_layers_left(name: str):
    """Their weights are made by hundreds of ConstantOfShape and Unsqueeze nodes: all of them fold."""
    graph = verify(import_onnx(LIGHT / name))
    assert not {n.op for n in graph.nodes} & {"ConstantOfShape", "Unsqueeze", "Shape", "Constant", "Dropout", "Identity"}
    assert len(graph.inputs) == 1 and all(n.sources for n in graph.nodes)
    assert set(graph.params) <= {i for n in graph.nodes for i in n.inputs}


@pytest.mark.parametrize("name", ["light_squeezenet.onnx", "light_bvlc_alexnet.onnx", "light_shufflenet.onnx"])
def test_light_models_compute_what_onnxruntime_does(name: str):
    """Their weights are constant, so the answer is nearly uniform; 1e-4 covers sums of 9216 terms in another order."""
    graph = import_onnx(LIGHT / name)
    x = random_inputs(graph)
    ours, theirs = interpret(graph, x), run_onnxruntime(LIGHT / name, x)
    for output in theirs:
        np.testing.assert_allclose(ours[output], theirs[output], rtol=1e-4)


def test_real_weights_compute_what_onnxruntime_does():
    rng = np.random.default_rng(0)
    params = {"w1": rng.standard_normal((8, 1, 3, 3)), "b1": rng.standard_normal(8), "w2": rng.standard_normal((4, 2, 3, 3)),
              "w3": rng.standard_normal((4, 5, 2, 2)), "b3": rng.standard_normal(5), "m": rng.standard_normal((5, 7))}
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["a"], group=4, pads=[1, 1, 1, 1], strides=[2, 1]),
        node("Relu", ["a"], ["b"]),
        node("Conv", ["b", "w2"], ["c"], group=4, dilations=[1, 2]),
        node("ConvTranspose", ["c", "w3", "b3"], ["d"], strides=[2, 2], pads=[0, 1, 1, 0]),
        node("GlobalAveragePool", ["d"], ["e"]),
        node("Flatten", ["e"], ["f"]),
        node("MatMul", ["f", "m"], ["y"]),
    ]
    model = make_model(nodes, {"x": (2, 4, 9, 10)}, ["y"], {k: v.astype("float32") for k, v in params.items()})
    assert_like_onnxruntime(model, imported(model), rtol=1e-4, atol=1e-5)


# --- shapes

DYNAMIC = make_model([node("Relu", ["x"], ["y"])], {"x": ("batch", 3, "?", "?")}, ["y"])


def test_whole_shape_is_bound():
    assert imported(DYNAMIC, shapes={"x": (2, 3, 8, 9)}).types["y"].shape == (2, 3, 8, 9)


def test_anonymous_dimensions_are_not_one_number():
    assert imported(DYNAMIC, shapes={"x": (1, 3, 48, 192)}).types["x"].shape == (1, 3, 48, 192)


def test_open_dimensions_that_all_have_names_are_asked_for_by_name():
    model = make_model([node("Add", ["a", "b"], ["y"])], {"a": ("n", "m"), "b": ("n", 4)}, ["y"])
    with pytest.raises(ImportModelError, match=r"fix: set in the deployfile .* models.<name>.dims: {n: \?, m: \?}$"):
        imported(model)
    with pytest.raises(ImportModelError, match=r"models.<name>.dims: {m: \?}$"):
        imported(model, dims={"n": 2})


def test_a_symbol_is_bound_for_all_inputs():
    model = make_model([node("Add", ["a", "b"], ["y"])], {"a": ("n", 4), "b": ("n", 4)}, ["y"])
    assert imported(model, dims={"n": 5}).types["y"].shape == (5, 4)
    assert imported(model, shapes={"a": (6, 4)}).types["b"].shape == (6, 4)


@pytest.mark.parametrize("options, message", [
    ({}, "dimensions are not known: input 'x' is [batch, 3, ?, ?]\n"
         "fix: set in the deployfile (or give toolchain.compile), with a number for each '?': "
         "models.<name>.shapes.x: [?, 3, ?, ?]"),
    ({"dims": {"batch": 2}}, "dimensions are not known: input 'x' is [batch, 3, ?, ?]\n"
                             "fix: set in the deployfile (or give toolchain.compile), with a number for each '?': "
                             "models.<name>.shapes.x: [2, 3, ?, ?]"),
    ({"shapes": {"X": (1, 3, 8, 8)}}, "shapes: there is no input 'X'\nfix: the inputs are: x"),
    ({"shapes": {"x": (1, 4, 8, 8)}}, "shapes: dimension 1 of input 'x' is 3 in the model, 4 in the deployfile"),
    ({"shapes": {"x": (3, 8, 8)}}, "shapes: shape [3, 8, 8] does not fit input 'x', which is [batch, 3, ?, ?]"),
    ({"shapes": {"x": (1, 3, 8, -1)}}, "shapes: shape [1, 3, 8, -1] does not fit input 'x', which is [batch, 3, ?, ?]"),
    ({"dims": {"height": 2}}, "dims: there is no symbolic dimension 'height'\nfix: the symbolic dimensions are: batch"),
    ({"dims": {"batch": 2}, "shapes": {"x": (1, 3, 8, 8)}}, "shapes: dimension 'batch' is 2 elsewhere, but 1 in input 'x'"),
])
def test_wrong_shapes_say_what_to_do(options: dict[str, object], message: str):
    with pytest.raises(ImportModelError) as e:
        imported(DYNAMIC, **options)
    assert str(e.value) == message


def test_unknown_rank():
    model = make_model([node("Relu", ["x"], ["y"])], {"x": None}, ["y"])
    with pytest.raises(ImportModelError, match="input 'x' is of unknown rank"):
        imported(model)
    assert imported(model, shapes={"x": ()}).types["y"].shape == ()


# --- folding

def test_shape_computations_vanish():
    nodes = [node("Shape", ["x"], ["s"]), node("Gather", ["s", "zero"], ["n"]), node("Concat", ["n", "rest"], ["t"], axis=0),
             node("Reshape", ["x", "t"], ["y"])]
    params = {"zero": ints(0), "rest": ints(-1)}
    graph = imported(make_model(nodes, {"x": (2, 3, 4)}, ["y"], params))
    assert [n.op for n in graph.nodes] == ["Reshape"] and graph.types["y"].shape == (2, 12)
    np.testing.assert_array_equal(graph.params["t"], [2, -1])


def test_initializers_listed_as_inputs_are_parameters():
    model = make_model([node("Add", ["x", "w"], ["y"])], {"x": (2,), "w": (2,)}, ["y"], {"w": np.ones(2, "float32")})
    graph = imported(model)
    assert graph.inputs == ("x",) and list(graph.params) == ["w"]


def test_folded_fills_take_no_memory():
    fill = helper.make_tensor("v", onnx.TensorProto.FLOAT, [1], [0.5])
    nodes = [node("ConstantOfShape", ["s"], ["w"], value=fill), node("MatMul", ["x", "w"], ["y"])]
    graph = imported(make_model(nodes, {"x": (1, 30_000)}, ["y"], {"s": ints(30_000, 30_000)}))
    assert graph.params["w"].strides == (0, 0) and graph.types["y"].shape == (1, 30_000)


def test_outputs_keep_their_names():
    nodes = [node("Identity", ["x"], ["a"]), node("Relu", ["x"], ["r"]), node("Identity", ["r"], ["b"]),
             node("Identity", ["r"], ["c"]), node("Identity", ["w"], ["d"])]
    model = make_model(nodes, {"x": (2,)}, ["a", "b", "c", "d"], {"w": np.ones(2, "float32")})
    graph = imported(model)
    assert graph.outputs == ("a", "b", "c", "d") and "d" in graph.params
    assert [(n.op, n.inputs, n.outputs) for n in graph.nodes] == [
        ("Relu", ("x",), ("b",)), ("Identity", ("x",), ("a",)), ("Identity", ("b",), ("c",))]
    assert_like_onnxruntime(model, graph)


def test_nodes_without_names_are_numbered_and_names_made_unique():
    nodes = [node("Relu", ["x"], ["a"]), node("Relu", ["a"], ["b"], name="n"), node("Relu", ["b"], ["y"], name="n")]
    graph = imported(make_model(nodes, {"x": (2,)}, ["y"]))
    assert [(n.name, n.sources) for n in graph.nodes] == [("Relu_0", ("Relu_0",)), ("n", ("n",)), ("n.1", ("n",))]


def test_constants_in_place_of_inputs():
    model = make_model([node("Reshape", ["x", "s"], ["y"])], {"x": (2, 6), "s": (2,)}, ["y"], dtypes={"s": "int64"})
    with pytest.raises(ImportModelError, match="depends on data"):
        imported(model)
    graph = imported(model, constants={"s": ints(3, 4)})
    assert graph.inputs == ("x",) and graph.types["y"].shape == (3, 4)


def test_missing_optional_outputs_stay_missing():
    params = {"w": np.ones((1, 8, 3), "float32"), "r": np.ones((1, 8, 2), "float32")}
    graph = imported(make_model([node("LSTM", ["x", "w", "r"], ["", "h"], hidden_size=2)], {"x": (4, 1, 3)}, ["h"], params))
    assert graph.nodes[0].outputs == ("", "h") and "" not in graph.types


# --- functions and branches

def _function(name: str, nodes: list[onnx.NodeProto], attributes: tuple[str, ...] = ()) -> onnx.FunctionProto:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    return helper.make_function("mine", name, ["a"], ["r"], nodes, imports, attributes)


MINE = {"opset_imports": [helper.make_opsetid("mine", 1)]}


def _slope(name: str) -> onnx.NodeProto:
    leaky = node("LeakyRelu", ["a"], ["t"])
    leaky.attribute.append(onnx.AttributeProto(name="alpha", ref_attr_name=name, type=onnx.AttributeProto.FLOAT))
    return leaky


def test_functions_are_inlined():
    inner = _function("half", [_slope("slope"), node("Neg", ["t"], ["r"])], ("slope",))
    outer = _function("twice", [node("half", ["a"], ["t"], domain="mine", slope=0.25),
                                node("half", ["t"], ["r"], domain="mine", slope=0.5)])
    calls = [node("twice", ["x"], ["t"], domain="mine", name="f"), node("twice", ["t"], ["y"], domain="mine", name="g")]
    model = make_model(calls, {"x": (5,)}, ["y"], functions=[inner, outer], **MINE)
    graph = imported(model)
    assert [n.op for n in graph.nodes] == ["LeakyRelu", "Neg"] * 4
    assert [n.attrs["alpha"] for n in graph.nodes[::2]] == [0.25, 0.5, 0.25, 0.5]
    assert graph.nodes[0].sources == ("f/half_0/LeakyRelu_0",)
    assert_like_onnxruntime(model, graph)


@pytest.mark.parametrize(("calls", "circle"), [
    ("loop", "loop -> loop"), ("other", "(loop -> other -> loop|other -> loop -> other)")])
def test_cyclic_functions_are_refused(calls: str, circle: str):
    functions = [_function("loop", [node(calls, ["a"], ["r"], domain="mine")]),
                 _function("other", [node("loop", ["a"], ["r"], domain="mine")])]
    model = make_model([node("loop", ["x"], ["y"], domain="mine")], {"x": (2,)}, ["y"], functions=functions, **MINE)
    with pytest.raises(ImportModelError, match=f"functions call themselves: {circle}\\b"):
        imported(model)


def test_functions_that_multiply_are_stopped():
    """Twelve functions, each calling the one before four times: 16 million nodes from 50."""
    functions = [_function("f0", [node("Relu", ["a"], ["r"])])]
    for n in range(1, 13):
        values = ("a", "t1", "t2", "t3", "r")
        steps = [node(f"f{n - 1}", [a], [b], domain="mine") for a, b in itertools.pairwise(values)]
        functions.append(_function(f"f{n}", steps))
    model = make_model([node("f12", ["x"], ["y"], domain="mine")], {"x": (2,)}, ["y"], functions=functions, **MINE)
    with pytest.raises(ImportModelError, match="more than 2000 nodes"):
        imported(model, limits=Limits(nodes=2000))


def _branch(name: str, nodes: list[onnx.NodeProto], params: dict[str, np.ndarray] | None = None) -> onnx.GraphProto:
    arrays = [numpy_helper.from_array(a, n) for n, a in (params or {}).items()]
    return helper.make_graph(nodes, name, [], [value("r")], arrays)


def _if(cond: dict[str, np.ndarray], inputs: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    yes = _branch("yes", [node("Add", ["t", "one"], ["r"])], {"one": np.ones(3, "float32")})
    no = _branch("no", [node("Mul", ["t", "w"], ["u"]), node("Sub", ["u", "x"], ["r"])])
    nodes = [node("Relu", ["x"], ["t"]), node("If", ["c"], ["i"], then_branch=yes, else_branch=no, name="choice"),
             node("Neg", ["i"], ["y"])]
    params = {"w": np.full(3, 2, "float32"), **cond}
    return make_model(nodes, {"x": (3,), **inputs}, ["y"], params, dtypes={"c": "bool"})


@pytest.mark.parametrize("taken", [True, False])
def test_a_decided_branch_is_inlined(taken: bool):
    model = _if({"c": np.asarray(taken)}, {})
    graph = imported(model)
    assert [n.op for n in graph.nodes] == (["Relu", "Add", "Neg"] if taken else ["Relu", "Mul", "Sub", "Neg"])
    assert_like_onnxruntime(model, graph)


@pytest.mark.parametrize("taken", [True, False])
def test_an_open_branch_reads_what_it_captures_as_inputs(taken: bool, golden):
    model = _if({}, {"c": ()})
    graph = imported(model)
    if taken:
        golden(to_text(graph))
    inputs = {"x": np.asarray([-1, 2, 3], "float32"), "c": np.asarray(taken)}
    np.testing.assert_array_equal(interpret(graph, inputs)["y"], run_onnxruntime(model, inputs)["y"])


def _two_rates(*, either: bool = False) -> onnx.ModelProto:
    """A model for frames of 4 and of 6: each branch has weights for its own length."""
    def branch(name: str, n: int) -> onnx.GraphProto:
        nodes = [node("MatMul", ["x", "w"], ["u"], name=f"product{n}"), node("Relu", ["u"], ["r"])]
        return _branch(name, nodes, {"w": np.arange(4 * n, dtype="float32").reshape(n, 4)})
    branches = {"then_branch": branch("yes", 4), "else_branch": branch("no", 5 if either else 6)}
    nodes = [node("If", ["c"], ["y"], name="rate", **branches)]
    return make_model(nodes, {"c": (), "x": (1, "width")}, ["y"], dtypes={"c": "bool"})


@pytest.mark.parametrize("width", [4, 6])
def test_a_branch_that_these_shapes_do_not_fit_ends_the_run(width: int):
    """As in ONNX Runtime: it is an error when it is taken, not before."""
    model = _two_rates()
    graph = verify(imported(model, dims={"width": width}))
    x = np.ones((1, width), "float32")
    fits = {"x": x, "c": np.asarray(width == 4)}
    np.testing.assert_array_equal(interpret(graph, fits)["y"], run_onnxruntime(model, fits)["y"])
    reason = f"node 'product{10 - width}' .MatMul.: does not fit its inputs"
    with pytest.raises(UsageError, match=reason) as e:
        interpret(graph, {"x": x, "c": np.asarray(width != 4)})
    assert e.value.where == "rate"


def test_a_choice_of_two_branches_that_do_not_fit_is_refused():
    with pytest.raises(ImportModelError, match=r"node 'product4' .MatMul.: does not fit"):
        imported(_two_rates(either=True), dims={"width": 7})


def test_loop_and_scan_compute_what_onnxruntime_does():
    body = helper.make_graph(
        [node("Identity", ["go"], ["more"]), node("Add", ["s", "x"], ["s2"]), node("Mul", ["s2", "two"], ["o"])], "body",
        [value("i", (), "int64"), value("go", (), "bool"), value("s", (3,))],
        [value("more", (), "bool"), value("s2", (3,)), value("o", (3,))])
    step = helper.make_graph(
        [node("Add", ["acc", "row"], ["acc2"]), node("Mul", ["acc2", "two"], ["o2"])], "step",
        [value("acc", (3,)), value("row", (3,))], [value("acc2", (3,)), value("o2", (3,))])
    nodes = [node("Loop", ["trips", "yes", "x"], ["last", "all"], body=body),
             node("Scan", ["last", "all"], ["sum", "sums"], body=step, num_scan_inputs=1, scan_input_directions=[1],
                  scan_output_axes=[1])]
    params = {"trips": np.asarray(4, "int64"), "yes": np.asarray(True), "two": np.full(3, 2, "float32")}
    model = make_model(nodes, {"x": (3,)}, ["last", "all", "sum", "sums"], params)
    graph = imported(model)
    assert graph.types["all"].shape == (4, 3) and graph.types["sums"].shape == (3, 4)
    assert graph.nodes[0].attrs["captures"] == 1 and graph.nodes[0].inputs == ("trips", "yes", "x", "x")
    assert_like_onnxruntime(model, graph)


def test_a_loop_that_is_static_round_by_round_is_written_out():
    """Its body slices by the number of the round, and a state grows."""
    nodes = [
        node("Add", ["i1", "one"], ["next"]), node("Slice", ["x", "i1", "next"], ["piece"]),
        node("Concat", ["s", "piece"], ["s2"], axis=0), node("Identity", ["go"], ["more"])]
    body = helper.make_graph([node("Unsqueeze", ["i", "nil"], ["i1"]), *nodes], "body",
                             [value("i", (), "int64"), value("go", (), "bool"), value("s", ("n", 2))],
                             [value("more", (), "bool"), value("s2", ("m", 2)), value("piece", (1, 2))])
    params = {"trips": np.asarray(3, "int64"), "yes": np.asarray(True), "one": ints(1), "nil": ints(0),
              "start": np.ones((1, 2), "float32")}
    model = make_model([node("Loop", ["trips", "yes", "start"], ["l", "a"], body=body)], {"x": (4, 2)}, ["l", "a"], params)
    graph = imported(model)
    assert graph.types["l"].shape == (4, 2) and graph.types["a"].shape == (3, 1, 2)
    assert not any(n.op == "Loop" for n in graph.nodes)
    assert_like_onnxruntime(model, graph)


def test_flex_attention_writes_its_graphs_out():
    """score_mod reads a mask from outside; onnxruntime has no such operator, so this compares with the formula."""
    mask = [node("Add", ["s", "mask"], ["t"])]
    scores = helper.make_graph(mask, "score_mod", [value("s", (1, 4, 3, 5))], [value("t", None)])
    flex = helper.make_node("FlexAttention", ["q", "k", "v"], ["y"], domain="ai.onnx.preview", score_mod=scores)
    inputs = {"q": (1, 4, 3, 8), "k": (1, 2, 5, 8), "v": (1, 2, 5, 6), "mask": (3, 5)}
    model = make_model([flex], inputs, ["y"], opset=23, opset_imports=[helper.make_opsetid("ai.onnx.preview", 1)])
    graph = imported(model)
    given = random_inputs(graph)
    q, k, v = given["q"], *(np.repeat(given[n], 2, 1) for n in "kv")
    s = q @ k.transpose(0, 1, 3, 2) / np.sqrt(8) + given["mask"]
    p = np.exp(s - s.max(-1, keepdims=True))
    # sums of eight float32, and one function
    np.testing.assert_allclose(interpret(graph, given)["y"], p / p.sum(-1, keepdims=True) @ v, rtol=1e-5, atol=1e-6)
    assert not any(n.op == "FlexAttention" for n in graph.nodes)


def test_scan_outputs_of_an_undecided_loop_are_refused():
    ends = [node("ReduceSum", ["s"], ["t"], keepdims=0), node("Cast", ["t"], ["more"], to=9)]
    body = helper.make_graph([*ends, node("Neg", ["s"], ["s2"]), node("Neg", ["s2"], ["o"])], "body",
                             [value("i", (), "int64"), value("go", (), "bool"), value("s", (3,))],
                             [value("more", (), "bool"), value("s2", (3,)), value("o", (3,))])
    params = {"trips": np.asarray(4, "int64"), "yes": np.asarray(True)}
    model = make_model([node("Loop", ["trips", "yes", "x"], ["l", "a"], body=body)], {"x": (3,)}, ["l", "a"], params)
    with pytest.raises(ImportModelError, match="number of its iterations depends on data"):
        imported(model)


# --- coverage

def test_unsupported_operators_are_listed_at_once():
    nodes = [node("Sin", ["x"], ["a"], name="s1"), node("Cos", ["a"], ["b"]), node("Sin", ["b"], ["c"], name="s2"),
             node("Magic", ["c"], ["d"], domain="them", name="m"), node("Relu", ["d"], ["y"])]
    model = make_model(nodes, {"x": (2,)}, ["y"], opset_imports=[helper.make_opsetid("them", 1)])
    with pytest.raises(ImportModelError) as e:
        imported(model, supported={"Relu"})
    assert e.value.what == ("operators without an implementation:\n  Sin (2x: s1, s2)\n  Cos (1x: Cos_1)\n"
                            "  them.Magic (1x: m)")


def test_what_folds_needs_no_implementation():
    nodes = [node("Shape", ["x"], ["s"]), node("Cast", ["s"], ["f"], to=1), node("Sin", ["f"], ["g"]),
             node("Add", ["x", "g"], ["y"])]
    assert [n.op for n in imported(make_model(nodes, {"x": (2,)}, ["y"]), supported={"Add"}).nodes] == ["Add"]


def test_operators_that_onnx_describes_by_others_are_expanded():
    model = make_model([node("HardSwish", ["x"], ["y"], name="h")], {"x": (20,)}, ["y"])
    assert [n.op for n in imported(model).nodes] == ["HardSwish"]
    graph = imported(model, supported={"HardSigmoid", "Mul", "Identity"})
    assert [(n.op, n.sources) for n in graph.nodes] == [("HardSigmoid", ("h",)), ("Mul", ("h",))]
    assert_like_onnxruntime(model, graph)


def test_unsupported_in_a_graph_looks_into_bodies():
    graph = imported(_if({}, {"c": ()}))
    found = unsupported(graph, {"Relu", "If", "Neg", "Add"})
    assert found == (Unsupported("Mul", ("Mul_0",)), Unsupported("Sub", ("Sub_1",)))


# --- malformed nodes

@pytest.mark.parametrize("attrs", [
    {"kernel_shape": [3, 3], "auto_pad": "VALID"}, {"kernel_shape": [3, 2]},
    {"kernel_shape": [4, 1], "pads": [1, 0, 0, 0]},
])
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_windows_larger_than_what_they_look_at_are_refused(op: str, attrs: dict):
    """ONNX's shape inference yields one element for them, by a division that rounds towards zero."""
    with pytest.raises(ImportModelError, match=r"a window of \[.*\] does not fit \[2, 5\] padded by"):
        imported(make_model([node(op, ["x"], ["y"], strides=[2, 1], **attrs)], {"x": (1, 1, 2, 5)}, ["y"]))


@pytest.mark.parametrize("bad, message", [
    (node("Relu", ["nowhere"], ["y"]), "reads 'nowhere', which is defined later or nowhere"),
    (node("Relu", ["x"], ["x"]), "defines 'x' a second time"),
    (node("Relu", ["x", "x"], ["y"]), "has 2 inputs, its operator takes 1 to 1"),
    (node("Relu", ["x"], ["y"], alpha=1.0), "its operator has no attribute 'alpha'"),
    (node("Concat", ["x"], ["y"]), "needs the attribute axis"),
    (node("Concat", ["x"], ["y"], axis=1.5), "attribute 'axis' is not a INT"),
    (node("Rleu", ["x"], ["y"]), "ONNX opset 17 has no operator Rleu"),
    (node("MatMul", ["x", "x"], ["y"]), "does not fit its inputs (float32[2, 3], float32[2, 3])"),
    (node("ConstantOfShape", ["n"], ["y"]), "the shape of 'y' depends on data (inputs: int64[1]), and has no bound"),
    (node("Concat", ["x"], ["y"], axis=7), "does not fit its inputs"),
    (node("Cast", ["x"], ["y"], to=8), "element type STRING is not supported"),
    (node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2]), "kernel_shape=[2, 2] does not fit 0 spatial dimensions"),
])
def test_bad_nodes_are_named(bad: onnx.NodeProto, message: str):
    bad.name = "culprit"
    with pytest.raises(ImportModelError) as e:
        imported(make_model([bad], {"x": (2, 3), "n": (1,)}, ["y"], dtypes={"n": "int64"}))
    assert e.value.where.startswith("node 'culprit' (") and message in e.value.what
