"""Contenders for tests of `measure`: they do nothing but note their calls in a file, and fail when they are told to.

Options: log (a file all of them append to), fail (when: "prepare", "call", "crash", "hang", "talk").
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from toolchain.report.contenders import Prepared


class Fake:
    """Doubles its inputs, plus the option `offset`."""

    def prepare(self, model: Path, inputs: Mapping[str, np.ndarray], threads: int, options: Mapping[str, str]) -> Prepared:
        self._log, self._fail, self._calls = options.get("log", ""), options.get("fail", ""), 0
        self._name = options.get("name", "fake")
        if self._fail == "prepare" or options.get("refuses") == model.name:
            raise ValueError("cannot read this model")
        if self._fail == "talk":
            print("a library that prints to standard output")
        self._values = {f"{n} doubled": 2 * a + np.float32(options.get("offset", "0")) for n, a in inputs.items()}
        return Prepared("1.2", {"threads": str(threads), "model": model.name})

    def call(self) -> None:
        self._calls += 1
        if self._log:
            with open(self._log, "a") as log:
                log.write(self._name + "\n")
        if self._calls > 12:
            self._break()
        time.sleep(0.001)

    def _break(self) -> None:
        if self._fail == "call":
            raise ArithmeticError("diverged")
        if self._fail == "crash":
            print("about to fall over", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        if self._fail == "hang":
            time.sleep(600)

    def outputs(self) -> Mapping[str, np.ndarray]:
        return self._values


class Doubled(Fake):
    """Computes what the small network of test_converted.py computes: y = 2 relu(x), z = -x."""

    def outputs(self) -> Mapping[str, np.ndarray]:
        x = self._values["x doubled"] / 2
        return {"y": np.maximum(x, 0) * 2, "z": -x}
