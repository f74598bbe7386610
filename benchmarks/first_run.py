"""One fresh process that loads a network and runs it once: python benchmarks/first_run.py ours|onnxruntime|call PATH THREADS

Prints one line of JSON. NumPy is imported beforehand, by every contender's users too; times are wall time.

    ours, onnxruntime   {"import_ms", "load_ms", "first_ms", "grown_bytes"}    grown: resident memory since before the load
    call                {"run_us", "bound_us"}     a run() from Python, and one on bound arrays, of the artifact in PATH
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from processes import resident_bytes

CALLS, BURSTS = 2000, 15


def main() -> None:
    kind, path, threads = sys.argv[1:]
    measured = call_cost(path) if kind == "call" else first_run(LOADERS[kind], path, int(threads))
    print(json.dumps(measured))


def first_run(loader: Callable[[], Callable[[str, int], Callable[[], Any]]], path: str, threads: int) -> dict[str, float]:
    """loader: does the imports, and returns a function that loads the network and returns its first run."""
    begun = time.perf_counter()
    load = loader()
    imported, before_bytes = time.perf_counter(), resident_bytes()
    run = load(path, threads)
    loaded = time.perf_counter()
    run()
    ended = time.perf_counter()
    times = {"import_ms": imported - begun, "load_ms": loaded - imported, "first_ms": ended - loaded}
    return {**{name: round(seconds * 1e3, 2) for name, seconds in times.items()},
            "grown_bytes": resident_bytes() - before_bytes}


def ours() -> Callable[[str, int], Callable[[], Any]]:
    import toolchain

    def load(path: str, threads: int) -> Callable[[], Any]:
        module = opened(path, threads)
        inputs = {v.name: np.zeros(v.shape, v.dtype) for v in module.inputs}
        return lambda: module.run(inputs)

    opened = toolchain.load
    return load


def onnxruntime() -> Callable[[str, int], Callable[[], Any]]:
    import onnxruntime as ort

    ort.set_default_logger_severity(3)

    def load(path: str, threads: int) -> Callable[[], Any]:
        settings = ort.SessionOptions()
        settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
        session = ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        kinds = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(int32)": "int32"}
        inputs = {i.name: np.zeros(i.shape, kinds[i.type]) for i in session.get_inputs()}
        return lambda: session.run(None, inputs)

    return load


LOADERS = {"ours": ours, "onnxruntime": onnxruntime}


def call_cost(path: str) -> dict[str, float]:
    """Of a network so small that the call is all there is."""
    import toolchain

    with toolchain.load(Path(path), 1) as module:
        inputs = {v.name: np.zeros(v.shape, v.dtype) for v in module.inputs}
        bound = module.bind(inputs)
        return {"run_us": best_us(lambda: module.run(inputs)), "bound_us": best_us(bound)}


def best_us(call: Callable[[], Any]) -> float:
    """The median burst of the quieter half: what others do on the machine only makes a call slower."""
    times = []
    for _ in range(BURSTS):
        begun = time.perf_counter()
        for _ in range(CALLS):
            call()
        times.append((time.perf_counter() - begun) / CALLS * 1e6)
    return round(sorted(times)[BURSTS // 4], 2)


if __name__ == "__main__":
    main()
