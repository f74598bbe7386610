"""A kernel that does not compile: the screen names the model's nodes, the kernel and the folder with all that is needed to
look into it; `tc explain` says so later, and run.sh writes every form of the kernel."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from toolchain.build import executor
from toolchain.cli import main
from toolchain.core.errors import CodegenError
from toolchain.targets.llvm import object as llvm_object

KERNEL = re.compile(r"conv_relu-[0-9a-f]{12}")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a network of a convolution and a Relu, for a CPU whose kernels LLVM refuses, in this process."""
    w = numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), "w")
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="/features/conv1"),
             helper.make_node("Relu", ["c"], ["y"], name="/features/relu1")]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in (("x", (1, 3, 8, 8)), ("y", (1, 8, 6, 6))))
    graph = helper.make_graph(nodes, "net", [x], [y], [w])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "net.onnx")
    (tmp_path / "deployfile.yaml").write_text(
        "version: 1\nmodels:\n  net: {path: net.onnx}\ntargets:\n  x86: {kind: x86, cpu: x86-64-v3}\n")

    def refuse(*_: object) -> None:
        raise CodegenError("LLVM refuses the generated text: error\n<string>:12:1: expected an instruction")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TC_STORE", str(tmp_path / "store"))
    for name in ("NO_COLOR", "FORCE_COLOR", "CI", "GITHUB_ACTIONS", "TC_DEBUG", "TC_DUMP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(executor, "available_cores", lambda: 0)
    monkeypatch.setattr(llvm_object, "optimize", refuse)
    return tmp_path


def test_a_failing_kernel_names_nodes_kernel_and_folder(project, capsys, golden) -> None:
    assert main(["build"]) == 1
    err = KERNEL.sub("conv_relu-KEY", capsys.readouterr().err)
    golden(re.sub(r"\d{8}-\d{6}(-\d+)+", "RUN", err[err.index("\nfailed:") + 1:]))
    (folder,) = (project / ".tc" / "failed").iterdir()
    assert main(["explain", folder.name]) == 0
    told = KERNEL.sub("conv_relu-KEY", capsys.readouterr().out)
    assert told.endswith("it failed last time: CodegenError: conv_relu: no schedule fits:\n"
                         "reproduce: .tc/failed/kernel:conv_relu-KEY@x86/run.sh\n")
    done = subprocess.run([folder / "run.sh"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr                    # nothing is refused in that process
    assert {p.suffix for p in (folder / "dump" / "conv_relu").iterdir()} == {".txt", ".ll", ".o"}
