"""A wrong kernel, spoilt memory, a spoilt halo: each is found, named, and kept in a form that shows it again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from programs import program

from toolchain import te
from toolchain.build.deployfile import Bucket, Build, Deployfile, Device, Model, TargetSpec
from toolchain.build.executor import Executor
from toolchain.build.failed import failed_folder
from toolchain.build.store import Store
from toolchain.build.task import Input
from toolchain.core.errors import VerificationError
from toolchain.graph.interpret import interpret
from toolchain.graph.passes.plan_memory import plan_memory
from toolchain.graph.passes.views import view_nodes
from toolchain.graph.serialize import load, load_files
from toolchain.kernels import table
from toolchain.kernels.compute.elementwise import pointwise
from toolchain.report.facts import VerifyFacts, from_json
from toolchain.targets.backend import Kernel
from toolchain.targets.llvm.module import Module
from toolchain.tasks import plan as plans
from toolchain.tasks.assemble import assemble_with_origins, workspaces
from toolchain.tasks.diagnose import first_wrong_op
from toolchain.tasks.steps import assembled_folder


def network(path: Path) -> None:
    """Three convolutions on blocked layouts with halos; the first one's result is read again by the third."""
    r = np.random.default_rng(0)
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1"], ["a"], "first", pads=[1, 1, 1, 1]), node("Relu", ["a"], ["ar"], "first_relu"),
        node("Conv", ["ar", "w2"], ["b"], "second", pads=[1, 1, 1, 1]), node("Relu", ["b"], ["br"], "second_relu"),
        node("Conv", ["br", "w3"], ["c"], "third", pads=[1, 1, 1, 1]), node("Add", ["c", "ar"], ["s"], "skip"),
        node("Tanh", ["s"], ["y"], "last"),
    ]
    weights = [numpy_helper.from_array((r.standard_normal(s) / 8).astype(np.float32), n)
               for n, s in (("w1", (16, 8, 3, 3)), ("w2", (16, 16, 3, 3)), ("w3", (16, 16, 3, 3)))]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "net", [value("x", TensorProto.FLOAT, [1, 8, "h", "w"])],
                              [value("y", TensorProto.FLOAT, [1, 16, "h", "w"])], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def joining(path: Path) -> None:
    """Two convolutions whose results lie one behind the other: a Concat that is a view; the second one is made first."""
    r = np.random.default_rng(0)
    node, value = helper.make_node, helper.make_tensor_value_info
    nodes = [node("Conv", ["x", "w2"], ["b"], "second"), node("Conv", ["b", "w3"], ["c"], "between"),
             node("Conv", ["c", "w3"], ["a"], "first"), node("Concat", ["a", "b"], ["j"], "join", axis=1),
             node("Relu", ["j"], ["jr"], "relu"), node("Conv", ["jr", "w4"], ["y"], "last")]
    weights = [numpy_helper.from_array((r.standard_normal(s) / 4).astype(np.float32), n)
               for n, s in (("w2", (16, 8, 1, 1)), ("w3", (16, 16, 1, 1)), ("w4", (16, 32, 1, 1)))]
    graph = helper.make_graph(nodes, "net", [value("x", TensorProto.FLOAT, [1, 8, "h", "w"])],
                              [value("y", TensorProto.FLOAT, [1, 16, "h", "w"])], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def build(folder: Path, make: Callable[[Path], None] = network, device: Device | None = None, **more: object):
    """All artifacts of the network's build, made in this process; and its store. device: a Cortex-A53 it is built for
    instead. more: keys of the model."""
    folder.mkdir(exist_ok=True)
    make(folder / "net.onnx")
    net = Model(path="net.onnx", dims={"h": 10, "w": 10}, **more)
    spec = TargetSpec(kind="aarch64", cpu="cortex-a53", device="board") if device else TargetSpec(kind="x86")
    deployfile = Deployfile(version=1, models={"net": net}, targets={"x86": spec},
                            devices={"board": device} if device else {})
    (tasks,) = plans.plan(deployfile, (Build("net", "x86"),), folder)
    store = Store(folder / "store")
    done = Executor(store, folder, jobs=0, keep_going=True).build([tasks.module, *(b.verify for b in tasks.buckets)])
    return done, store


def test_a_wrong_kernel_is_named_and_kept(tmp_path, monkeypatch):
    wrong = pointwise(lambda x: te.maximum(x, te.const(0.25, x.dtype)))
    monkeypatch.setitem(table.COMPUTES, "Relu", wrong)
    done, _ = build(tmp_path)
    assert done.exit_code == VerificationError.exit_code
    error = done.failed["verify:net@x86"]
    assert "output 'y' differs from onnxruntime" in error.what and "it computes: first, first_relu" in error.what
    facts = from_json(VerifyFacts, done.artifacts["compare:net@x86"].meta["facts"])
    assert not facts.passed and facts.first_bad_node == "first, first_relu"
    kept = tmp_path / ".tc" / "failed" / "verify:net@x86" / "inputs" / "facts" / "repro"
    body = load(kept)
    inputs = {name: np.load(kept / f"input_{n}.npy") for n, name in enumerate(body.inputs)}
    (again,) = interpret(body, inputs).values()
    np.testing.assert_allclose(again, np.load(kept / "expected_0.npy"), rtol=1e-6)
    assert np.abs(np.load(kept / "got_0.npy") - again).max() > 0.1
    model = ReferenceEvaluator(str(kept / "model.onnx"))
    (there,) = model.run(None, {name: np.load(kept / f"input_{n}.npy") for n, name in enumerate(model.input_names)})
    np.testing.assert_allclose(there, again, rtol=1e-4, atol=1e-5)


def test_a_wrong_kernel_is_named_and_kept_on_a_device(tmp_path, monkeypatch):
    """Each kernel alone, on an emulated one; where all are right, it is said that they are, and where they ran."""
    program("qemu-aarch64-static")
    device = Device(host="local", folder=str(tmp_path), exec_prefix="qemu-aarch64-static -cpu cortex-a53")
    wrong = pointwise(lambda x: te.maximum(x, te.const(0.25, x.dtype)))
    with monkeypatch.context() as patch:
        patch.setitem(table.COMPUTES, "Relu", wrong)
        done, _ = build(tmp_path / "wrong", device=device)
    what = done.failed["verify:net@x86"].what
    assert "on 'board' its result differs by 0.25" in what and "it computes: first, first_relu" in what
    kept = tmp_path / "wrong" / ".tc" / "failed" / "verify:net@x86" / "inputs" / "facts" / "repro"
    body = load(kept)
    (again,) = interpret(body, {name: np.load(kept / f"input_{n}.npy") for n, name in enumerate(body.inputs)}).values()
    np.testing.assert_allclose(again, np.load(kept / "expected_0.npy"), rtol=1e-6)
    assert np.abs(np.load(kept / "got_0.npy") - again).max() > 0.1 and (kept / "model.onnx").is_file()
    done, _ = build(tmp_path / "right", device=device)
    done.check()


def test_a_wrong_kernel_of_one_bucket_is_named_there(tmp_path, monkeypatch):
    right, wrong = table.COMPUTES["Relu"], pointwise(lambda x: te.maximum(x, te.const(0.25, x.dtype)))
    monkeypatch.setitem(table.COMPUTES, "Relu", lambda op: (wrong if op.inputs[0].shape[-1] == 12 else right)(op))
    done, _ = build(tmp_path, buckets=(Bucket(dims={"w": 10}), Bucket(dims={"w": 12})))
    assert list(done.failed) == ["verify:net[w=12]@x86"]
    assert "it computes: first, first_relu" in done.failed["verify:net[w=12]@x86"].what
    assert (failed_folder(tmp_path, "verify:net[w=12]@x86") / "inputs/facts/repro/model.onnx").is_file()
    assert from_json(VerifyFacts, done.artifacts["compare:net[w=10]@x86"].meta["facts"]).passed


def test_what_reads_a_view_of_several_values_is_judged_too(tmp_path, monkeypatch):
    wrong = pointwise(lambda x: te.maximum(x, te.const(0.25, x.dtype)))
    monkeypatch.setitem(table.COMPUTES, "Relu", wrong)
    done, store = build(tmp_path, joining)
    optimized = load_files(store.blobs.paths(done.artifacts["optimize:net@x86"].files))
    assert any(n.op == "Concat" for n in view_nodes(optimized))
    assert "relu" in from_json(VerifyFacts, done.artifacts["compare:net@x86"].meta["facts"]).first_bad_node


# --- memory ----------------------------------------------------------------------------------------------------------------

@dataclass
class Tampered:
    """A module whose memory somebody else writes to: `tamper(index, module)` after each op."""

    module: Module
    tamper: object

    def trace(self, inputs, after_op, outputs):
        def call(index, op):
            self.tamper(index, self.module)
            after_op(index, op)

        return self.module.trace(inputs, call, outputs)

    def __getattr__(self, name):
        return getattr(self.module, name)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The network, built right: (module, optimized graph, memory plan, origins, inputs)."""
    folder = tmp_path_factory.mktemp("made")
    done, store = build(folder / "project")
    done.check()
    artifact, optimized = done.artifacts["link:net@x86"], done.artifacts["optimize:net@x86"]
    place = assembled_folder(Input("module", artifact.meta, store.blobs.paths(artifact.files)), folder / "artifact")
    graph = load_files(store.blobs.paths(optimized.files))
    kernels = {key: Kernel("", b"", (), 0, tuple(sizes), 0) for key, sizes in artifact.meta["workspaces"].items()}
    memory = plan_memory(graph, workspaces(kernels))
    _, origins = assemble_with_origins("net", graph, memory, kernels)
    x = np.random.default_rng(1).standard_normal((1, 8, 10, 10)).astype(np.float32)
    with Module.load(place, 1) as module:
        yield module, graph, memory, origins, {"x": x}


def result_of(graph, source):
    """(position of its op, name) of what the kernel made of that node of the model leaves in the arena."""
    return [(at, n.output) for at, n in enumerate(graph.nodes) if source in n.sources][-1]


def overwrite(module, graph, memory, name):
    """Put a thousand into the middle of a value; gives a function that puts back what was there."""
    t = graph.types[name]
    begin = memory.slots[name].offset + 4 * t.layout.offset(t.shape, tuple(n // 2 for n in t.shape))
    place = module.arena()[begin:begin + 4]
    before = place.copy()
    place[:] = np.frombuffer(np.float32(1e3).tobytes(), np.uint8)
    return lambda: np.copyto(place, before)


@pytest.mark.parametrize("poison", [False, True])
def test_right_kernels_are_not_accused(made, poison):
    module, graph, memory, origins, inputs = made
    assert first_wrong_op(module, graph, memory, origins, inputs, poison=poison) is None


def test_a_kernel_is_judged_on_what_it_read(made):
    """The second one's result is spoilt: it is found there, and not where it is passed on."""
    module, graph, memory, origins, inputs = made
    at, name = result_of(graph, "second")

    def tamper(index, module):
        if index == at:
            overwrite(module, graph, memory, name)

    finding = first_wrong_op(Tampered(module, tamper), graph, memory, origins, inputs)
    assert finding is not None and finding.name == "second, second_relu"
    assert "its result differs by 1e+03" in finding.what


@pytest.mark.parametrize(("poison", "accused", "what"), [
    (False, "third", "its input {name!r} was overwritten after it had been computed"),
    (True, "second", "it overwrites {name!r}"),
])
def test_memory_written_by_somebody_else_is_found(made, poison, accused, what):
    """While the second runs, the first one's result changes: its reader sees it; with poison, who was running."""
    module, graph, memory, origins, inputs = made
    (_, name), (at, _) = result_of(graph, "first"), result_of(graph, "second")

    def tamper(index, module):
        if index == at:
            overwrite(module, graph, memory, name)

    finding = first_wrong_op(Tampered(module, tamper), graph, memory, origins, inputs, poison=poison)
    assert finding is not None and accused in finding.node.sources
    assert what.format(name=name) in finding.what


def test_a_spoilt_halo_is_found(made):
    module, graph, memory, origins, inputs = made
    at, name = result_of(graph, "first")
    assert graph.types[name].layout.has_halo
    first_bytes = slice(memory.slots[name].offset, memory.slots[name].offset + 4)

    def tamper(index, module):
        if index == at:
            module.arena()[first_bytes] = 1

    finding = first_wrong_op(Tampered(module, tamper), graph, memory, origins, inputs)
    module.arena()[first_bytes] = 0                                         # the module is other tests', too
    assert finding is not None and f"it spoils the zero halo of {name!r}" in finding.what


def test_reading_dead_memory_is_found(made):
    """An op that reads what nobody has written yet: right by chance, until the dead memory is poisoned."""
    module, graph, memory, origins, inputs = made
    seen = []

    def look(index, module):
        dead = module.arena()
        seen.append(np.isnan(dead[:dead.size // 4 * 4].view(np.float32)).any())

    assert first_wrong_op(Tampered(module, look), graph, memory, origins, inputs, poison=True) is None
    assert seen[0] and first_wrong_op(module, graph, memory, origins, inputs) is None


def test_the_facts_are_plain_data(made, tmp_path):
    done, _ = build(tmp_path)
    facts = json.loads(json.dumps(dict(done.artifacts["compare:net@x86"].meta)))["facts"]
    assert facts["reference"].startswith("onnxruntime")
