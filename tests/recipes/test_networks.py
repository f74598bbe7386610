"""The networks of the recipes vision and language, small, through the whole pipeline: compiled code against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from toolchain.onnx_backend import Compiled, compile_model
from toolchain.tasks.fetch import _load

RECIPES = Path(__file__).parents[2] / "recipes"
VIT = {"layers": 2, "width": 64, "heads": 2, "size": 64, "classes": 10}
YOLO = {"width": 8, "repeats": (1, 1, 1, 1), "size": 96, "classes": 4}
VISION: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "vit_small": (VIT, (2, 3, 64, 64)),
    "vit_small_opset12": (VIT, (1, 3, 64, 64)),
    "unet": ({"base": 8, "depth": 2, "classes": 5}, (1, 3, 36, 30)),
    "efficientnet_b0": ({"stages": ((1, 8, 1, 1, 3), (6, 16, 2, 2, 5)), "stem": 8, "head": 32, "size": 64, "classes": 10},
                        (1, 3, 64, 64)),
    "detector": (YOLO, (1, 3, 96, 96)),
    "detector_nms": (YOLO, (1, 3, 96, 96)),
}
DECODER = {"layers": 2, "width": 32, "heads": 4, "groups": 2, "hidden": 48, "words": 50, "context": 16}


@pytest.fixture(scope="module")
def vision() -> ModuleType:
    return _load(RECIPES / "vision" / "models.py")


@pytest.fixture(scope="module")
def language() -> ModuleType:
    return _load(RECIPES / "language" / "models.py")


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def compiled(path: Path, given: Mapping[str, np.ndarray]) -> Compiled:
    return compile_model(onnx.load(path), path.parent, given, {})


def assert_agrees(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> None:
    """1e-4 of the largest element: float32 sums of some hundred terms in other orders, through some dozen layers."""
    assert ours.keys() == theirs.keys()
    for name, want in theirs.items():
        assert ours[name].dtype == want.dtype and ours[name].shape == want.shape
        np.testing.assert_allclose(ours[name], want, rtol=0, atol=1e-4 * np.abs(want).max(initial=1e-3), err_msg=name)


@pytest.mark.parametrize("name", VISION)
def test_vision(name: str, vision: ModuleType, tmp_path: Path) -> None:
    sizes, shape = VISION[name]
    path = tmp_path / "model.onnx"
    getattr(vision, name)(path, **sizes)
    onnx.checker.check_model(path, full_check=True)
    rival = session(path)
    given = {rival.get_inputs()[0].name: np.random.default_rng(0).random(shape, np.float32)}
    names = [o.name for o in rival.get_outputs()]
    theirs = dict(zip(names, rival.run(names, given), strict=True))
    assert np.isfinite(theirs[names[0]]).all() and np.std(theirs[names[0]]) > 0.05
    assert_agrees(compiled(path, given)(given), theirs)


@pytest.mark.parametrize(("name", "parameters"), [("vit_small", 22_050_664), ("efficientnet_b0", 5_330_564)])
def test_whole_networks_have_the_parameters_of_the_known_ones(name: str, parameters: int, vision: ModuleType,
                                                              tmp_path: Path) -> None:
    """timm's vit_small_patch16_224; torchvision's efficientnet_b0 (5,288,548) and its 42,016 running statistics."""
    getattr(vision, name)(tmp_path / "model.onnx")
    params = onnx.load(tmp_path / "model.onnx").graph.initializer
    assert sum(int(np.prod(p.dims)) for p in params if not p.name.startswith(("int", "number"))) == parameters


def decoder_inputs(language: ModuleType, tokens: np.ndarray, past: int, cache: Mapping[str, np.ndarray] | None = None,
                   ) -> dict[str, np.ndarray]:
    """Those tokens behind `past` others, whose keys and values are in `cache` (`present.*` of an earlier run)."""
    z = language.Sizes(**DECODER)
    empty = np.zeros((1, z.groups, 0, z.depth), np.float32)
    n = tokens.shape[1]
    given = {"input_ids": tokens, "attention_mask": np.ones((1, past + n), np.int64),
             "position_ids": np.arange(past, past + n, dtype=np.int64)[None]}
    for i in range(z.layers):
        for part in ("key", "value"):
            given[f"past_key_values.{i}.{part}"] = cache[f"present.{i}.{part}"] if cache else empty
    return given


@pytest.mark.parametrize("name", ["decoder", "decoder_opset23"])
def test_a_decoder_continues_from_its_cache(name: str, language: ModuleType, tmp_path: Path) -> None:
    """Prefill and a step agree with ONNX Runtime, and the step with a prefill of all tokens at once."""
    path = tmp_path / "model.onnx"
    getattr(language, name)(path, **DECODER)
    onnx.checker.check_model(path, full_check=True)
    rival = session(path)
    outputs = [o.name for o in rival.get_outputs()]
    tokens = np.random.default_rng(0).integers(0, 50, (1, 9))
    runs = []
    cache: dict[str, np.ndarray] | None = None
    for part, past in ((tokens[:, :8], 0), (tokens[:, 8:], 8), (tokens, 0)):
        given = decoder_inputs(language, part, past, cache if past else None)
        ours = compiled(path, given)(given)
        assert_agrees(ours, dict(zip(outputs, rival.run(outputs, given), strict=True)))
        runs.append(ours["logits"])
        cache = ours
    _, step, whole = runs
    np.testing.assert_allclose(step[:, 0], whole[:, -1], rtol=0, atol=1e-5)


def test_padding_is_not_seen(language: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    language.decoder(path, **DECODER)
    tokens = np.random.default_rng(1).integers(0, 50, (1, 6))
    given = decoder_inputs(language, tokens, 0)
    given["attention_mask"] = np.array([[0, 0, 1, 1, 1, 1]])
    model = compiled(path, given)
    first = model(given)["logits"]
    given["input_ids"] = np.where(given["attention_mask"] == 1, tokens, 7)
    np.testing.assert_array_equal(model(given)["logits"][:, 2:], first[:, 2:])
    rival = session(path).run(["logits"], given)[0]
    np.testing.assert_allclose(model(given)["logits"][:, 2:], rival[:, 2:], rtol=0, atol=1e-4)


def test_a_cache_of_fixed_size_serves_every_step(language: ModuleType, tmp_path: Path) -> None:
    """Greedy decoding by one compiled step, the caches handed back each time: as the growing cache does it."""
    for name in ("decoder_opset23", "decoder_static"):
        getattr(language, name)(tmp_path / f"{name}.onnx", **DECODER)
    z = language.Sizes(**DECODER)
    growing, rival = session(tmp_path / "decoder_opset23.onnx"), session(tmp_path / "decoder_static.onnx")
    names, outputs = [o.name for o in growing.get_outputs()], [o.name for o in rival.get_outputs()]
    caches = {f"past_key_values.{i}.{part}": np.zeros((1, z.groups, z.context, z.depth), np.float32)
              for i in range(z.layers) for part in ("key", "value")}
    past: dict[str, np.ndarray] | None = None
    token = np.array([[3]])
    step = None
    for place in range(z.context):
        given = {"input_ids": token, "position_ids": np.array([[place]]), **caches}
        step = step or compiled(tmp_path / "decoder_static.onnx", given)
        ours = step(given)
        if place in (0, 7):
            assert_agrees(ours, dict(zip(outputs, rival.run(outputs, given), strict=True)))
        past = dict(zip(names, growing.run(names, decoder_inputs(language, token, place, past)), strict=True))
        np.testing.assert_allclose(ours["logits"], past["logits"], rtol=0, atol=1e-4)
        caches = {f"past_key_values.{n.removeprefix('present.')}": a for n, a in ours.items() if n != "logits"}
        token = ours["logits"][:, -1:].argmax(-1)
