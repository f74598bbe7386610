"""Our own artifacts as a contender of a measurement (`report/contenders.py` says what that is)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

import toolchain
from toolchain.report.contenders import Entry, Prepared
from toolchain.targets.llvm.loading import load
from toolchain.targets.llvm.wasm_module import WasmModule


class ArtifactContender:
    """An artifact's folder, run through its shared library, or in wasmtime, with inputs and outputs bound once."""

    def prepare(self, model: Path, inputs: Mapping[str, np.ndarray], threads: int, options: Mapping[str, str]) -> Prepared:
        self._inputs = {name: np.asarray(array, order="C") for name, array in inputs.items()}
        self._module = load(model, threads)
        self._bound = self._module.bind(self._inputs)
        engine = {"engine": self._module.engine} if isinstance(self._module, WasmModule) else {}
        return Prepared(getattr(toolchain, "__version__", ""), {"threads": f"{threads}", "io": "bound", **engine, **options})

    def call(self) -> None:
        self._bound()

    def outputs(self) -> Mapping[str, np.ndarray]:
        return self._bound.results()


def artifact_entry(folder: Path, *, name: str = "ours", options: Mapping[str, str] | None = None) -> Entry:
    """The entry of an artifact in `report.measure.measure`. options: shown as its configuration ("schedules": "default")."""
    return Entry(name, "toolchain.tasks.contender:ArtifactContender", folder, options or {}, ours=True)
