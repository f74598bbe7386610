"""`tc doctor`: what it finds here, and what it says about what is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from toolchain.cli import doctor, main
from toolchain.cli.screen import Style


def test_it_runs_here(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for name in ("python", "llvmlite", "with LLVM", "cpu features", "cores", "governor", "store", "free disk", "tc on PATH"):
        assert name in out


def test_json(capsys):
    assert main(["doctor", "--json"]) == 0
    findings = {f["name"]: f for f in json.loads(capsys.readouterr().out)}
    assert findings["numpy"]["status"] == "ok"
    assert set(findings) >= {"python", "torch", "onnxruntime", "openvino", "ziglang", "cpu", "store"}
    assert {f["status"] for f in findings.values()} <= {"ok", "warning", "missing"}


def test_a_missing_package_says_what_it_disables_and_how_to_get_it(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", {"no-such-package": ("no_such_module", "flying", False)})
    (finding,) = doctor.packages()
    assert (finding.status, finding.disables, finding.fix) == ("missing", "flying", "pip install no-such-package")
    assert list(doctor.rows([finding], Style(False, False, 80))) == [
        "missing  no-such-package  not installed", "                          disables: flying",
        "                          fix: pip install no-such-package"]


def test_emulators_are_found_or_named(tmp_path, monkeypatch):
    (tmp_path / "qemu-riscv64-static").write_text("")
    (tmp_path / "qemu-riscv64-static").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    arm, riscv = doctor.emulators()
    assert (riscv.status, arm.status, arm.disables) == ("ok", "warning", "emulated 64-bit Arm boards")
    assert arm.fix == "apt-get install qemu-user-static"


@pytest.mark.parametrize(("content", "mode", "status"), [
    ("#!/usr/bin/python\nfrom toolchain.cli import main\n", 0o755, "ok"),
    ("\x7fELF iproute2", 0o755, "warning"), ("", 0, "warning")])
def test_whose_tc_comes_first(tmp_path, monkeypatch, content, mode, status):
    (tmp_path / "tc").write_text(content)
    (tmp_path / "tc").chmod(mode)
    monkeypatch.setenv("PATH", str(tmp_path))
    (finding,) = doctor.which_tc()
    assert finding.status == status
    if status != "ok":
        assert "python -m toolchain" in finding.fix


def test_an_old_cpu_is_told(monkeypatch):
    monkeypatch.setattr(doctor, "cpuinfo", lambda _: {"model name": "Old", "flags": "sse2 avx"})
    monkeypatch.setattr(doctor.platform, "machine", lambda: "x86_64")
    features = next(f for f in doctor.cpu() if f.name == "cpu features")
    assert (features.status, features.found) == ("warning", "none of AVX2 and later")


def test_the_store_is_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("TC_STORE", str(tmp_path / "store"))
    (tmp_path / "store/objects").mkdir(parents=True)
    (tmp_path / "store/objects/a").write_bytes(b"x" * 1500)
    findings = {f.name: f for f in doctor.store()}
    assert findings["store"].found == f"{tmp_path / 'store'}, 1.5 kB"
    assert doctor.folder_bytes(tmp_path / "nothing") == 0


def test_cpuinfo_reads_the_first_processor(tmp_path):
    (tmp_path / "cpuinfo").write_text("model name\t: A\nflags\t: a b\n\nmodel name\t: B\n")
    assert doctor.cpuinfo(tmp_path / "cpuinfo") == {"model name": "A", "flags": "a b"}
    assert doctor.cpuinfo(Path("/no/such/file")) == {}


def test_the_python_is_this_one():
    assert sys.executable in next(iter(doctor.python())).found
