"""RISC-V deployments: real networks in one deployfile with x86, verified with the outputs of emulated CPUs."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from programs import program

from toolchain.cli import main
from toolchain.core.target import Target

RECIPE = Path(__file__).parents[2] / "recipes" / "paper" / "models.py"
VECTORS = "qemu-riscv64-static -cpu rv64,zba=false,zbb=false,zbc=false,zbs=false,v=true,vlen=128"
DEPLOYFILE = f"""\
version: 1
models:
  mobilenet: {{recipe: "models.py:mobilenet"}}
  dqn: {{recipe: "models.py:dqn"}}
targets:
  here: {{kind: x86}}
  board: {{kind: riscv64, cpu: rv64gc, device: u54}}
  vectors: {{kind: riscv64, cpu: rv64gcv, device: v128}}
builds:
  - {{models: [mobilenet], targets: [vectors, here]}}
  - {{models: [dqn], targets: [board, vectors, here]}}
devices:
  u54: {{host: local, exec_prefix: qemu-riscv64-static -cpu sifive-u54}}
  v128: {{host: local, exec_prefix: "{VECTORS}"}}
report: {{against: []}}
"""


@pytest.fixture
def project(workplace: Path) -> Path:
    program("qemu-riscv64-static")
    program("llvm-mca")
    shutil.copyfile(RECIPE, workplace / "models.py")
    (workplace / "deployfile.yaml").write_text(DEPLOYFILE)
    return workplace


def build(project: Path, name: str) -> dict:
    manifest: dict = json.loads((project / "build" / name / "manifest.json").read_text())
    return manifest


def test_real_networks_beside_x86(project, capfd):
    """MobileNet with vectors, DQN with and without. What runs by hand computes what the session did."""
    assert main(["build"]) == 0
    assert "built 5 of 5 builds" in capfd.readouterr().out
    for name in ("mobilenet@vectors", "dqn@board", "dqn@vectors"):
        library = (project / "build" / name / f"lib{name.partition('@')[0]}.so").read_bytes()
        assert library[:5] == b"\x7fELF\x02" and struct.unpack_from("<H", library, 18) == (243,)          # EM_RISCV
        assert Target.from_json(build(project, name)["target"]).kind == "riscv64"
    x = np.random.default_rng(0).random((1, 4, 84, 84), np.float32)
    np.save(project / "x.npy", x)
    made = {}
    for target, device in (("here", []), ("board", ["--device", "u54"]), ("vectors", ["--device", "v128"])):
        (given,) = build(project, f"dqn@{target}")["buckets"][0]["inputs"]
        assert main(["run", f"dqn@{target}", *device, "-i", f"{given['name']}=x.npy", "-o", target]) == 0
        (file,) = (project / target).glob("*.npy")
        made[target] = np.load(file)
    for target in ("board", "vectors"):
        np.testing.assert_allclose(made[target], made["here"], rtol=1e-4, atol=1e-4 * np.abs(made["here"]).max())
        folder = project / "build" / f"dqn@{target}"
        prefix = VECTORS if target == "vectors" else "qemu-riscv64-static -cpu sifive-u54"
        by_hand = [*prefix.split(), "./run", "libdqn.so", "weights.bin", "--input", f"{given['name']}=../../x.npy",
                   "--output", f"{file.stem}=y.npy"]
        done = subprocess.run(by_hand, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        np.testing.assert_array_equal(np.load(folder / "y.npy"), made[target])


def test_what_a_board_lacks_and_what_cannot_be_done_is_named(project, capfd):
    file = project / "deployfile.yaml"
    text = file.read_text()
    file.write_text(text.replace("cpu: rv64gc, device: u54", "cpu: rv64gcv, device: u54"))
    assert main(["build", "dqn@board"]) == 5
    assert "its CPU lacks v, which target 'rv64gcv' uses" in capfd.readouterr().err
    file.write_text(text.replace("cpu: rv64gcv,", "cpu: rv64gcv, features: ['+zvl256b'],"))
    assert main(["build", "dqn@vectors"]) == 5
    assert "its CPU lacks zvl256b" in capfd.readouterr().err
    file.write_text(text.replace("cpu: rv64gc,", "cpu: cortex-a53,"))
    assert main(["build", "dqn@board"]) == 2
    assert "targets.board.cpu: CPU 'cortex-a53' is of kind aarch64, not riscv64" in capfd.readouterr().err
    file.write_text(text.replace("cpu: rv64gc, ", ""))
    assert main(["build", "dqn@board"]) == 2
    assert "name the CPU: rv64gc, rv64gcv" in capfd.readouterr().err
    file.write_text(text)
    assert main(["tune", "dqn@board", "--trials", "3"]) == 2
    refusal = "u54: emulated, and llvm-mca has no model of CPU 'generic-rv64' to count static cycles by"
    assert refusal in capfd.readouterr().err
    assert main(["build", "dqn@board"]) == 0
    assert main(["bench", "dqn@board", "--device", "u54"]) == 5
    assert "has no times: runs in qemu-riscv64-static" in capfd.readouterr().err
