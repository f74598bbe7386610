"""As much of torch as the contender uses, over NumPy: PyTorch itself is gigabytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

__version__ = "9.9+fake"
_settings = {"threads": 0, "interop": 0, "inference": False}


class Tensor:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def numpy(self) -> np.ndarray:
        return self.array


def from_numpy(array: np.ndarray) -> Tensor:
    assert array.flags.c_contiguous
    return Tensor(array)


def set_num_threads(threads: int) -> None:
    _settings["threads"] = threads


def set_num_interop_threads(threads: int) -> None:
    _settings["interop"] = threads


def get_num_threads() -> int:
    return _settings["threads"]


@contextmanager
def inference_mode() -> Iterator[None]:
    _settings["inference"] = True
    yield
    _settings["inference"] = False


def check_call() -> None:
    """What a network of the real torch would not notice: that it is run as the report says."""
    assert _settings["inference"] and _settings["interop"] == 1
