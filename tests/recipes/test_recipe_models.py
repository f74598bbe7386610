"""The recipes' models: valid ONNX of the promised size, the same bytes every time, values in a sane range."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from toolchain.build.schema import check
from toolchain.tasks.fetch import _load, run_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
PAPER = ("resnet18", "mobilenet", "lstm", "dqn", "dcgan", "encoder")
LIGHT = (
    "alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet", "vgg19", "zfnet512",
)


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every model of the paper's recipe, each in a folder of its own."""
    made = {}
    for name in PAPER:
        made[name] = tmp_path_factory.mktemp(name) / "model.onnx"
        run_recipe(RECIPES / "paper" / "models.py", name, made[name])
    return made


@pytest.fixture(scope="module")
def models() -> ModuleType:
    return _load(RECIPES / "paper" / "models.py")


def flops(model: onnx.ModelProto) -> int:
    """2 per multiply-add of convolutions and matrix products, from the inferred shapes."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
              for v in (*graph.input, *graph.output, *graph.value_info)}
    shapes |= {p.name: list(p.dims) for p in graph.initializer}
    return sum(_node_flops(node, shapes) for node in graph.node)


def _node_flops(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    x, w, y = (shapes.get(name, []) for name in (*node.input, "", "")[:2] + (node.output[0],))
    match node.op_type:
        case "Conv":
            return 2 * math.prod(y) * math.prod(w[1:])
        case "ConvTranspose":
            return 2 * math.prod(x) * math.prod(w[1:])
        case "MatMul" | "Gemm":
            return 2 * math.prod(y) * x[-1]
        case "LSTM":
            return 2 * x[0] * x[1] * (math.prod(w) + math.prod(shapes[node.input[2]]))
    return 0


@pytest.mark.parametrize(("name", "gflop"), [
    ("resnet18", 3.63), ("mobilenet", 1.14), ("dcgan", 0.82), ("encoder", 2.87), ("dqn", 0.0187), ("lstm", 0.53),
])
def test_work_of_the_papers_models(name: str, gflop: float, paper: dict[str, Path]) -> None:
    model = onnx.load(paper[name])
    onnx.checker.check_model(model, full_check=True)
    assert flops(model) / 1e9 == pytest.approx(gflop, rel=0.01)


@pytest.mark.parametrize(("name", "parameters"), [
    ("resnet18", 11_699_112), ("mobilenet", 4_253_864), ("dqn", 1_693_362),
])
def test_parameters_of_the_known_architectures(name: str, parameters: int, paper: dict[str, Path]) -> None:
    """torchvision's ResNet-18 has 11,689,512 and 9,600 running statistics, Keras' MobileNet 4,253,864 with them."""
    assert sum(math.prod(p.dims) for p in onnx.load(paper[name]).graph.initializer) == parameters


@pytest.mark.parametrize("name", ["dqn", "dcgan", "mobilenet"])
def test_bytes_are_the_same_every_time(name: str, paper: dict[str, Path], tmp_path: Path) -> None:
    run_recipe(RECIPES / "paper" / "models.py", name, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == paper[name].read_bytes()


def test_weights_are_the_same_on_every_machine(paper: dict[str, Path]) -> None:
    """They come from the raw PCG64 stream and exact float32 operations: no library's choice of algorithm enters."""
    params = onnx.load(paper["dqn"]).graph.initializer
    digest = hashlib.sha256(b"".join(numpy_helper.to_array(p).tobytes() for p in params)).hexdigest()
    assert digest == "26c3d154ae574fe572b2a08ef5137fb2c60c12ad3840480914f034d2016c3c10"


def test_batch_norms_are_not_trivial(paper: dict[str, Path]) -> None:
    params = {p.name: numpy_helper.to_array(p) for p in onnx.load(paper["resnet18"]).graph.initializer}
    norms = {n: a for n, a in params.items() if "bn" in n or "downsample.1" in n}
    for kind, plain in (("running_mean", 0.0), ("running_var", 1.0), ("bias", 0.0)):
        values = np.concatenate([a.ravel() for n, a in norms.items() if n.endswith(kind)])
        assert np.mean(values == plain) < 0.01 and np.std(values) > 0.04


@pytest.mark.parametrize("name", PAPER)
def test_activations_stay_in_a_sane_range(name: str, paper: dict[str, Path]) -> None:
    ort = pytest.importorskip("onnxruntime")
    model = onnx.load(paper[name])
    outputs = {o.name for o in model.graph.output}
    extra = [n.output[0] for n in model.graph.node if n.op_type != "LSTM" and n.output[0] not in outputs]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in extra)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    feeds = {i.name: _data(paper[name], i, random) for i in session.get_inputs()}
    for value, array in zip(session.get_outputs(), session.run(None, feeds), strict=True):
        assert np.isfinite(array).all(), value.name
        assert 1e-4 < np.abs(array).max() < 100, value.name


def _data(model: Path, value: object, random: np.random.Generator) -> np.ndarray:
    file = model.parent / "test_data_set_0" / "input_0.pb"
    if file.exists():
        return numpy_helper.to_array(onnx.load_tensor(file))
    return random.standard_normal(value.shape, np.float32)  # type: ignore[attr-defined]


def test_smaller_variants_have_the_same_graph(models: ModuleType, tmp_path: Path, paper: dict[str, Path]) -> None:
    """Tests elsewhere may take a small one: same nodes per layer, other sizes."""
    models.encoder(tmp_path / "encoder.onnx", layers=2, width=32, heads=2, tokens=8)
    models.lstm(tmp_path / "lstm.onnx", hidden=16, vocabulary=50, steps=4)
    for name, layers in (("encoder", 3), ("lstm", 1)):
        small, whole = onnx.load(tmp_path / f"{name}.onnx"), onnx.load(paper[name])
        onnx.checker.check_model(small, full_check=True)
        assert len(whole.graph.node) == layers * len(small.graph.node)


@pytest.mark.parametrize("name", LIGHT)
def test_light_models_come_with_their_data(name: str, tmp_path: Path) -> None:
    run_recipe(RECIPES / "light" / "models.py", name, tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    constants = {p.name for p in graph.initializer}         # IR version 3 lists them among the inputs
    x = onnx.load_tensor(tmp_path / "test_data_set_0" / "input_0.pb")
    y = onnx.load_tensor(tmp_path / "test_data_set_0" / "output_0.pb")
    assert [x.name] == [i.name for i in graph.input if i.name not in constants]
    array = numpy_helper.to_array(x)
    assert array.shape == (1, 3, 224, 224) and array.ravel()[0] == 0 and array.max() < 1
    assert [d.dim_value for d in graph.output[0].type.tensor_type.shape.dim] == list(y.dims)


def test_a_light_model_computes_its_reference_output(tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    run_recipe(RECIPES / "light" / "models.py", "squeezenet", tmp_path / "model.onnx")
    x, y = (numpy_helper.to_array(onnx.load_tensor(tmp_path / "test_data_set_0" / f)) for f in ("input_0.pb", "output_0.pb"))
    session = ort.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"data_0": x})[0], y, rtol=1e-5)


@pytest.mark.parametrize("name", ["shufflenet", "squeezenet", "densenet121"])
def test_seeded_light_models_tell_their_classes_apart(name: str, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        run_recipe(RECIPES / "light" / "models.py", f"{name}_seeded", tmp_path / folder / "model.onnx")
    assert (tmp_path / "a" / "model.onnx").read_bytes() == (tmp_path / "b" / "model.onnx").read_bytes()
    model = onnx.load(tmp_path / "a" / "model.onnx")
    onnx.checker.check_model(model)
    assert all(node.op_type != "ConstantOfShape" for node in model.graph.node) and len(model.graph.input) == 1
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).random((1, 3, 224, 224), np.float32)
    outputs = session.run(None, {session.get_inputs()[0].name: x})
    logits = outputs[-1].ravel()
    assert logits.size == 1000 and np.unique(logits).size > 300 and 0.1 < logits.std() < 10
    assert len(outputs) == 1 + (model.graph.node[-1].op_type == "Softmax")


@pytest.mark.parametrize("recipe", ["paper", "light", "quickstart", "ocr", "speech", "vision", "language"])
def test_deployfiles_are_valid_and_name_what_is_there(recipe: str) -> None:
    folder = RECIPES / recipe
    deployfile = check((folder / "deployfile.yaml").read_bytes())
    for model in deployfile["models"].values():
        if model["recipe"]:
            file, _, function = model["recipe"].partition(":")
            assert callable(getattr(_load(folder / file), function))
        for values in model["data"]["inputs"].values():
            assert not values["image"] or (folder / values["image"]["file"]).is_file()
