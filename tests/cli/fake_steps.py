"""Steps of the small project that the command-line tests build: the engine is real, what it builds is text."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolchain.build.task import Input, Result
from toolchain.core.errors import CodegenError, DeviceError, VerificationError
from toolchain.targets.presets import PRESETS

# The machine that the tests pretend to run on
HOST = {"kind": "x86", "cores": 2, "features": [*PRESETS["x86-64-v3"].features, "+avx512f"]}


def read(params: Mapping[str, Any], inputs: Mapping[str, Input], out: Path) -> Result:
    text = inputs["model"].path.read_text()
    if inputs["model"].path.with_name("offline").exists():
        raise DeviceError("the package index cannot be reached")
    if "slow" in text:
        time.sleep(60)
    (out / "text").write_text(text)
    return Result("text", {"characters": len(text), **params})


def link(params: Mapping[str, Any], inputs: Mapping[str, Input], out: Path) -> Result:
    text = inputs["graph"].files["text"].read_text()
    if "uncompilable" in text:
        print("about to fail")
        raise CodegenError("no schedule fits", where="model.onnx: node 'conv1' (Conv)", fix="use a smaller kernel")
    if "crash" in text:
        raise ZeroDivisionError("division by zero")
    (out / "module.txt").write_text(f"{params['target']}: {text}")
    return Result("module")


def verify(params: Mapping[str, Any], inputs: Mapping[str, Input], out: Path) -> Result:
    if "wrong" in inputs["module"].files["module.txt"].read_text():
        raise VerificationError("output 'y' differs from the reference by 3.0", fix="tc show graph:net")
    return Result("facts", {"python": sys.version_info[0]})
