"""Runs WebAssembly artifacts in this process, in wasmtime (PyPI): `WasmModule`. One thread; times are that engine's."""

from __future__ import annotations

import importlib.util
import math
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.core.dtype import to_numpy
from toolchain.core.errors import MissingToolError, UsageError
from toolchain.core.versions import installed_version
from toolchain.targets.llvm.artifact_files import read_artifact
from toolchain.targets.llvm.buckets import bucket_taking, shape_text, signature
from toolchain.targets.llvm.format import WEIGHTS_FILE, library_file
from toolchain.targets.llvm.module import Arrays, OpTime, Stats, copy_artifact
from toolchain.targets.llvm.plan import Plan, Value

ENGINE = "wasmtime"


class WasmModule:
    """A compiled network in wasmtime. Its public names are those of `Module`."""

    threads = 1

    def __init__(self, folder: Path, manifest: Mapping[str, Any], buckets: Sequence[Plan]) -> None:
        import wasmtime  # optional, and 20 MB of library

        self.folder, self.manifest, self.buckets = folder, manifest, tuple(buckets)
        self.name: str = manifest["name"]
        self.inputs: tuple[Value, ...] = self.buckets[0].inputs
        self.outputs: tuple[Value, ...] = self.buckets[0].outputs
        self.labels = tuple(shape_text(plan.inputs) for plan in self.buckets)
        self._inputs = Arrays("input", self.inputs)
        self._store = wasmtime.Store(wasmtime.Engine())
        code = wasmtime.Module.from_file(self._store.engine, str(folder / library_file(manifest["identifier"], "wasm32")))
        self._exports = wasmtime.Instance(self._store, code, []).exports(self._store)
        weights = (folder / WEIGHTS_FILE).read_bytes()
        place = self._place(bytes(64))
        self._call("create_from_memory", place, self._place(weights), len(weights), 1)
        (self._model,) = struct.unpack("<I", self._read(place, 4))
        self._bound: dict[int, WasmBound] = {}

    @classmethod
    def load(cls, folder: Path | str) -> WasmModule:
        """Raises MissingToolError: no wasmtime; UsageError: no whole artifact of this version."""
        where = str(folder)
        if importlib.util.find_spec(ENGINE) is None:
            raise MissingToolError("the Python package 'wasmtime' is not installed: WebAssembly does not run here",
                                   where=where, fix="pip install wasmtime")
        found = read_artifact(Path(folder))
        return cls(found.folder, found.manifest, found.plans)

    def __repr__(self) -> str:
        return f"<WasmModule {signature(self.name, self.buckets)}>"

    def bucket_of(self, inputs: Mapping[str, np.ndarray]) -> int:
        """Raises UsageError: names, types or shapes that no bucket has."""
        return bucket_taking(self.buckets, self._inputs.check(inputs), self.name)

    def bind(self, inputs: Mapping[str, np.ndarray]) -> WasmBound:
        """Put the inputs into the module's memory: each call then computes on them."""
        bucket = self.bucket_of(inputs)
        if bucket not in self._bound:
            self._bound[bucket] = WasmBound(self, bucket)
        bound = self._bound[bucket]
        bound.set(self._inputs.check(inputs))
        return bound

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute the outputs, in new arrays of their true shapes."""
        bound = self.bind(inputs)
        bound()
        return bound.results()

    def benchmark(
        self, inputs: Mapping[str, np.ndarray], min_time_s: float = 0.5, min_repeats: int = 5, warmup: int = 3,
    ) -> Stats:
        """Time runs, back to back, as `Module.benchmark`: real time of wasmtime on this machine."""
        bound = self.bind(inputs)
        times_ns: list[int] = []
        for _ in range(warmup):
            bound()
        start = time.perf_counter_ns()
        while time.perf_counter_ns() - start < min_time_s * 1e9 or len(times_ns) < min_repeats:
            before = time.perf_counter_ns()
            bound()
            times_ns.append(time.perf_counter_ns() - before)
        p10, median, p90 = np.percentile(times_ns, (10, 50, 90)) / 1e3
        return Stats(float(median), float(p10), float(p90), len(times_ns))

    def profile(self, inputs: Mapping[str, np.ndarray], repeats: int = 10) -> tuple[OpTime, ...]:
        """Raises UsageError: the module imports no clock."""
        raise UsageError("a WebAssembly module has no clock for its layers", where=self.name, fix="leave --layers out")

    def save(self, folder: Path | str) -> None:
        """Copy the artifact into `folder`."""
        copy_artifact(self.folder, self.manifest, Path(folder))

    @property
    def engine(self) -> str:
        """What runs it, for whoever shows a time: "wasmtime 50.0.1"."""
        return f"{ENGINE} {installed_version(ENGINE)}"

    def close(self) -> None:
        """Nothing to do: memory goes with the object."""

    def __enter__(self) -> WasmModule:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _place(self, data: bytes) -> int:
        """The address of a copy of `data` in the module's memory."""
        at: int = self._exports["tc_allocate"](self._store, len(data)) & 0xFFFFFFFF
        if not at:
            raise UsageError(f"no room for {len(data)} bytes more in the module's memory", where=self.name)
        self._write(at, data)
        return at

    def _write(self, at: int, data: bytes) -> None:
        self._exports["memory"].write(self._store, data, at)

    def _read(self, at: int, size: int) -> bytearray:
        found: bytearray = self._exports["memory"].read(self._store, at, at + size)
        return found

    def _call(self, function: str, *arguments: int) -> None:
        if status := self._exports[f"tc_{function}"](self._store, *arguments):
            at = self._exports["tc_status_text"](self._store, status)
            raise UsageError(self._read(at, 200).split(b"\0")[0].decode(), where=self.name)


class WasmBound:
    """A run of one bucket on inputs in the module's memory; made once per bucket, for that memory is never given back."""

    def __init__(self, module: WasmModule, bucket: int) -> None:
        self._module, self._bucket, self.plan = module, bucket, module.buckets[bucket]
        self._ins, self._outs = ([module._place(bytes(v.size_bytes)) for v in values]
                                 for values in (self.plan.inputs, self.plan.outputs))
        self._tables = [module._place(struct.pack(f"<{len(at)}I", *at) or bytes(4)) for at in (self._ins, self._outs)]
        self._shape = module._place(bytes(8 * 64))

    def set(self, arrays: Mapping[str, np.ndarray]) -> None:
        for at, v in zip(self._ins, self.plan.inputs, strict=True):
            self._module._write(at, np.ascontiguousarray(arrays[v.name]).tobytes())

    def __call__(self) -> None:
        self._module._call("run_bucket", self._module._model, self._bucket, *self._tables)

    def results(self) -> dict[str, np.ndarray]:
        """What the last run computed, in its true shapes."""
        return {v.name: self._result(n, v) for n, v in enumerate(self.plan.outputs)}

    def _result(self, n: int, value: Value) -> np.ndarray:
        shape = value.shape
        if value.extents:
            self._module._call("output_shape", self._module._model, n, self._shape)
            shape = struct.unpack(f"<{len(shape)}q", self._module._read(self._shape, 8 * len(shape)))
        dtype = np.dtype(to_numpy(value.dtype))
        data = self._module._read(self._outs[n], math.prod(shape) * dtype.itemsize)
        return np.frombuffer(data, dtype).reshape(shape)


__all__ = ["ENGINE", "WasmBound", "WasmModule"]
