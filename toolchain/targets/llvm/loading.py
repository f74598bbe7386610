"""An artifact's folder -> what runs it here: its own library, or an engine for WebAssembly."""

from __future__ import annotations

import json
from pathlib import Path

from toolchain.targets.llvm.module import Module
from toolchain.targets.llvm.wasm_module import WasmModule


def load(folder: str | Path, threads: int | None = None) -> Module | WasmModule:
    """The artifact in `folder`, ready to run. Raises UsageError: no whole artifact; DeviceError: this CPU cannot run it;
    MissingToolError: no wasmtime, for a WebAssembly module."""
    try:
        kind = json.loads((Path(folder) / "manifest.json").read_bytes())["target"]["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        kind = ""                                            # Module.load says what is wrong
    return WasmModule.load(folder) if kind == "wasm32" else Module.load(folder, threads)


__all__ = ["load"]
