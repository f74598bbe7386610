"""WebAssembly deployments: a real network beside x86, verified in wasmtime, run by JavaScript, measured; what is refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from programs import program

import toolchain
from toolchain.cli import main

RECIPE = Path(__file__).parents[2] / "recipes" / "paper" / "models.py"
DEPLOYFILE = """\
version: 1
models: {mobilenet: {recipe: "models.py:mobilenet"}}
targets:
  here: {kind: x86}
  web: {kind: wasm32}
report: {against: [onnxruntime], time: 1s}
"""
SCRIPT = """\
import { readFileSync } from "node:fs";
import { load } from "./NAME.mjs";
const read = (path) => readFileSync(new URL(path, import.meta.url));
const model = await load(read("NAME.wasm"), read("weights.bin"));
const bucket = Number(process.argv[2]);
const [input] = model.buckets[bucket].inputs;
const bytes = readFileSync(process.argv[3]);
const x = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
model.run({ [input.name]: x }, bucket);
const made = model.run({ [input.name]: x }, bucket);
console.log(JSON.stringify(Object.entries(made).map(([name, y]) => [name, y.shape, Array.from(y.data, Number)])));
try { model.run({ [input.name]: new Float64Array(1) }); } catch (error) { console.log(error.message); }
"""


def in_node(artifact: Path, name: str, x: np.ndarray, bucket: int = 0) -> tuple[dict[str, np.ndarray], str]:
    """What the artifact's own JavaScript makes of x, and what it says of a wrong input."""
    (artifact / "x.bin").write_bytes(x.tobytes())
    (artifact / "use.mjs").write_text(SCRIPT.replace("NAME", name))
    done = subprocess.run([program("node"), artifact / "use.mjs", str(bucket), artifact / "x.bin"], capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    made, message = done.stdout.splitlines()
    return {name: np.array(data).reshape(shape) for name, shape, data in json.loads(made)}, message


def test_a_real_network_beside_x86(workplace: Path, capfd):
    shutil.copyfile(RECIPE, workplace / "models.py")
    (workplace / "deployfile.yaml").write_text(DEPLOYFILE)
    assert main(["build"]) == 0
    capfd.readouterr()
    web = workplace / "build" / "mobilenet@web"
    files = {"manifest.json", "plan.json", "weights.bin", "mobilenet.mjs", "mobilenet.wasm"}
    assert {p.name for p in web.iterdir()} == files
    x = np.random.default_rng(0).random((1, 3, 224, 224), np.float32)
    np.save(workplace / "x.npy", x)
    made = {}
    for target in ("here", "web"):
        assert main(["run", f"mobilenet@{target}", "-i", "input=x.npy", "-o", target]) == 0
        made[target] = np.load(workplace / target / "probabilities.npy")
    np.testing.assert_allclose(made["web"], made["here"], rtol=1e-3, atol=1e-6)
    there, message = in_node(web, "mobilenet", x)
    np.testing.assert_array_equal(there["probabilities"].astype(np.float32), made["web"])     # no engine rounds otherwise
    assert message == "input 'input' must be a Float32Array of shape [1,3,224,224]"
    capfd.readouterr()
    assert main(["bench", "mobilenet@web", "--time", "100ms"]) == 0
    assert "mobilenet in wasmtime " in capfd.readouterr().out
    assert main(["bench", "mobilenet@web", "--layers"]) == 2
    assert "a WebAssembly module has no clock for its layers" in capfd.readouterr().err
    assert main(["report", "mobilenet@web", "--json", "report.json"]) == 0
    out = " ".join(capfd.readouterr().out.split())
    assert "on this machine; another engine has others" in out
    (build,) = json.loads((workplace / "report.json").read_text())["report"]["builds"]
    assert build["verify"]["engine"].startswith("wasmtime ") and all(o["passed"] for o in build["verify"]["outputs"])
    ours, rival = build["measure"]["contenders"]
    assert ours["median_us"] > 0 and ours["config"]["engine"] == build["verify"]["engine"]
    assert ours["config"]["threads"] == rival["config"]["threads"] == "1"


@pytest.fixture
def small(workplace: Path) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("NonZero", ["y"], ["n"])], "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 8])],
        [helper.make_tensor_value_info("n", TensorProto.INT64, [2, "count"])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), workplace / "net.onnx")
    (workplace / "deployfile.yaml").write_text("""\
version: 1
models: {net: {path: net.onnx, buckets: [{dims: {b: 2}}, {dims: {b: 5}}]}}
targets: {web: {kind: wasm32}}
""")
    return workplace


def test_shape_buckets_and_shapes_that_depend_on_data(small, capfd):
    assert main(["build"]) == 0
    module = toolchain.load(small / "build" / "net@web")
    assert (module.inputs, module.outputs) == (module.buckets[0].inputs, module.buckets[0].outputs)
    assert repr(module).startswith("<WasmModule 'net': x float32[2, 8] -> ") and "in 2 shape buckets>" in repr(module)
    for bucket, rows in enumerate((2, 5)):
        x = np.random.default_rng(rows).standard_normal((rows, 8)).astype(np.float32)
        expected = np.nonzero(np.maximum(x, 0))
        np.testing.assert_array_equal(module.run({"x": x})["n"], expected)
        np.testing.assert_array_equal(in_node(small / "build" / "net@web", "net", x, bucket)[0]["n"], expected)
    with pytest.raises(toolchain.core.errors.UsageError, match=r"x float32\[2, 8\]; x float32\[5, 8\]"):
        module.run({"x": np.zeros((3, 8), np.float32)})
    module.save(small / "copy")
    assert toolchain.load(small / "copy").labels == ("2x8", "5x8")


@pytest.mark.parametrize(("key", "message"), [
    ("cpu: cortex-a53", "targets.web.cpu: a target of kind wasm32 is no CPU"),
    ("features: ['-simd128']", "targets.web.features: code for WebAssembly has fixed-width SIMD, and no features to switch"),
    ("threads: 4", "targets.web.threads: a WebAssembly module has one thread"),
    ("device: pi", "targets.web.device: WebAssembly is verified and measured here, in wasmtime; devices do not run it"),
])
def test_keys_that_mean_nothing_there(small, capfd, key, message):
    file = small / "deployfile.yaml"
    file.write_text(file.read_text().replace("kind: wasm32", f"kind: wasm32, {key}") + "devices: {pi: {host: pi}}\n")
    assert main(["build"]) == 2
    assert message in capfd.readouterr().err


def test_tuning_and_a_missing_wasmtime_are_named(small, capfd, monkeypatch, tmp_path):
    assert main(["tune", "--trials", "3"]) == 2
    assert "targets.web.kind: wasm32: not yet: tuning in wasmtime" in capfd.readouterr().err
    monkeypatch.setenv("TC_STORE", str(tmp_path / "store"))
    assert main(["build"]) == 0
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "wasmtime" else find(name, *more))
    np.save("x.npy", np.zeros((2, 8), np.float32))
    capfd.readouterr()
    assert main(["run", "net@web", "-i", "x=x.npy"]) != 0
    assert "'wasmtime' is not installed: WebAssembly does not run here\nfix: pip install wasmtime" in capfd.readouterr().err
