"""`import toolchain` and what it offers."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import onnx.reference
import pytest
from small_networks import attention, conv_net, mlp

import toolchain
from toolchain.core.errors import ImportModelError, UsageError
from toolchain.targets.presets import PRESETS


def expected(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    return onnx.reference.ReferenceEvaluator(model).run(None, inputs)


def test_compile_run_save_and_load(tmp_path):
    onnx.save(conv_net(), tmp_path / "net.onnx")
    x = np.random.default_rng(0).standard_normal((1, 3, 24, 24)).astype(np.float32)
    module = toolchain.compile(tmp_path / "net.onnx", threads=2)
    (want,) = expected(conv_net(), {"image": x})
    np.testing.assert_allclose(module.run({"image": x})["probabilities"], want, rtol=1e-4, atol=1e-6)
    stats = module.benchmark({"image": x}, min_time_s=0.01)
    assert stats.repeats >= 5 and stats.median_us > 0
    module.save(tmp_path / "out")
    with toolchain.load(tmp_path / "out", threads=1) as again:
        np.testing.assert_array_equal(again.run({"image": x})["probabilities"], module.run({"image": x})["probabilities"])
    folder = module.folder
    module.close()
    del module
    assert not folder.exists(), "what was compiled in memory leaves nothing behind"


def test_models_in_memory_and_free_dimensions():
    x = np.random.default_rng(1).standard_normal((4, 20)).astype(np.float32)
    (want,) = expected(mlp(), {"x": x})
    for bound in ({"shapes": {"x": (4, 20)}}, {"dims": {"batch": 4}}):
        with toolchain.compile(mlp(), **bound) as module:
            np.testing.assert_allclose(module.run({"x": x})["y"], want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("target", ["x86-64-v3", PRESETS["x86-64-v2"]])
def test_other_targets(target):
    x = np.random.default_rng(2).standard_normal((1, 12, 32)).astype(np.float32)
    with toolchain.compile(attention(), target) as module:
        assert toolchain.Target.from_json(module.manifest["target"]) == PRESETS[getattr(target, "name", target)]
        np.testing.assert_allclose(module.run({"x": x})["y"], *expected(attention(), {"x": x}), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_compiled(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        toolchain.compile(tmp_path / "none.onnx")
    with pytest.raises(UsageError, match="neither a path nor"):
        toolchain.compile(3)
    with pytest.raises(UsageError, match="not yet: precision 'int8'"):
        toolchain.compile(mlp(), precision="int8")
    with pytest.raises(UsageError, match="no target 'x68'"):
        toolchain.compile(mlp(), "x68")
    with pytest.raises(ImportModelError, match="batch"):
        toolchain.compile(mlp())
    (tmp_path / "bad.onnx").write_bytes(b"\x00" * 10)
    with pytest.raises(ImportModelError):
        toolchain.compile(tmp_path / "bad.onnx")
    with pytest.raises(UsageError, match="no artifact here"):
        toolchain.load(tmp_path)


def test_importing_the_package_is_light():
    code = "import sys, toolchain; print(sorted(m for m in ('numpy', 'onnx', 'llvmlite') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_names_on_offer():
    assert {"compile", "load", "te", "Module", "Target"} <= set(dir(toolchain))
    assert toolchain.te.placeholder((2,), name="a").shape == (2,)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        toolchain.nothing  # noqa: B018
