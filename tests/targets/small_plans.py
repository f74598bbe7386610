"""Small kernels in C with the signature of compiled ones, and what each computes in NumPy: plans to test the runtime with.

All work on 64 uint32 (256 bytes) per buffer, so buffers at multiples of 256 are the same or apart.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from toolchain.core.target import Target
from toolchain.targets.llvm.artifact import write_artifact
from toolchain.targets.llvm.link import compile_c
from toolchain.targets.llvm.module import Module
from toolchain.targets.llvm.plan import Call, Copy, If, Loop, Op, Plan, Repeat, Slot, Value, Zero, own_slots, slots_of

HOST = Target("host", "x86", f"{os.uname().machine}-unknown-linux-gnu")
N, CELL = 64, 256

KERNELS = """
#include <stdint.h>
enum { N = 64 };
/* y = 3x + w + i */
void mix(void *const *b, int64_t lo, int64_t hi, void *scratch) {
    const uint32_t *x = b[0], *w = b[1];
    uint32_t *y = b[2];
    for (int64_t i = lo; i < hi; i++) y[i] = 3 * x[i] + w[i] + (uint32_t)i;
}
/* two phases through a workspace: y = x backwards + 1, wrong without a barrier between them */
void turn_1(void *const *b, int64_t lo, int64_t hi, void *scratch) {
    for (int64_t i = lo; i < hi; i++) ((uint32_t *)b[2])[i] = ((const uint32_t *)b[0])[i] + 1;
}
void turn_2(void *const *b, int64_t lo, int64_t hi, void *scratch) {
    for (int64_t i = lo; i < hi; i++) ((uint32_t *)b[1])[i] = ((const uint32_t *)b[2])[N - 1 - i];
}
/* y[i] = sum of x[j] ^ i over j, held in the lane's scratch on the way; all ones when scratch is not aligned */
void fold(void *const *b, int64_t lo, int64_t hi, void *scratch) {
    volatile uint32_t *mine = scratch;
    for (int64_t i = lo; i < hi; i++) {
        uint32_t sum = 0;
        for (int j = 0; j < N; j++) mine[j] = ((const uint32_t *)b[0])[j] ^ (uint32_t)i;
        for (int j = 0; j < N; j++) sum += mine[j];
        ((uint32_t *)b[1])[i] = (uintptr_t)scratch % 64 ? ~0u : sum;
    }
}
/* x[0] += 1; the byte at b[1] becomes x[0] % 5 != 0 */
void count(void *const *b, int64_t lo, int64_t hi, void *scratch) {
    uint32_t *x = b[0];
    x[0] += 1;
    *(unsigned char *)b[1] = x[0] % 5 != 0;
}
/* as mix, but the first quarter costs a thousand times as much: lanes must help each other out */
void uneven(void *const *b, int64_t lo, int64_t hi, void *scratch) {
    for (int64_t i = lo; i < hi; i++)
        for (volatile int k = 0; k < (i < N / 4 ? 5000 : 5); k++) mix(b, i, i + 1, scratch);
}
/* y = x / 2 in float, of the smallest normal number: zero where the CPU flushes denormals */
void halve(void *const *b, int64_t lo, int64_t hi, void *scratch) {
    for (int64_t i = lo; i < hi; i++) ((float *)b[1])[i] = ((const float *)b[0])[i] * 0.5f;
}
"""
SCRATCH_BYTES = 4 * N


@functools.cache
def kernels() -> dict[str, bytes]:
    return {"all": compile_c(KERNELS, HOST, name="kernels.c", includes={})}


def call(*symbols: str, buffers: tuple[Slot, ...], extent: int = N, chunks: int = 0) -> Call:
    return Call("all", tuple((s, extent) for s in symbols), buffers, name="+".join(symbols), chunks=chunks)


def mix(x: Slot, w: Slot, y: Slot, chunks: int = 0) -> Call:
    return call("mix", buffers=(x, w, y), chunks=chunks)


def turn(x: Slot, y: Slot, workspace: Slot) -> Call:
    return call("turn_1", "turn_2", buffers=(x, y, workspace))


def fold(x: Slot, y: Slot) -> Call:
    return call("fold", buffers=(x, y))


def count(x: Slot, condition: Slot) -> Call:
    return call("count", buffers=(x, condition), extent=1)


def arena(cell: int) -> Slot:
    return Slot("arena", cell * CELL)


def weights(cell: int = 0) -> Slot:
    return Slot("weights", cell * CELL)


def values(n: int, name: str) -> tuple[Value, ...]:
    return tuple(Value(f"{name}{i}", "uint32", (N,)) for i in range(n))


def plan_of(*ops: Op, name: str = "small", cells: int = 16, scheduler: str = "steal", n_weights: int = 4) -> Plan:
    """Two inputs, two outputs, an arena of `cells` buffers, weights of `n_weights`."""
    return Plan(
        name, values(2, "x"), values(2, "y"), ops, n_weights * CELL, cells * CELL, SCRATCH_BYTES, scheduler=scheduler
    )


def some_weights(plan: Plan) -> bytes:
    return np.random.default_rng(7).integers(0, 256, plan.weights_bytes, np.uint8).tobytes()


def some_inputs(plan: Plan, seed: int = 1) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {v.name: random.integers(0, 2**32, v.shape, np.uint32) for v in plan.inputs}


def write(plan: Plan, folder: Path) -> Path:
    write_artifact(folder, plan.name, (plan,), kernels(), some_weights(plan), HOST)
    return folder


def load(plan: Plan, folder: Path, threads: int = 1) -> Module:
    return Module.load(write(plan, folder), threads)


class Reference:
    """Runs a plan in Python, on one array per segment: what the C interpreter is compared with."""

    def __init__(self, plan: Plan, inputs: dict[str, np.ndarray]) -> None:
        self.plan = plan
        self.memory = {
            ("weights", 0): np.frombuffer(some_weights(plan), np.uint8).copy(),
            ("arena", 0): np.zeros(plan.arena_bytes, np.uint8),
            **{("input", i): inputs[v.name].copy().view(np.uint8) for i, v in enumerate(plan.inputs)},
            **{("output", i): np.zeros(v.size_bytes, np.uint8) for i, v in enumerate(plan.outputs)},
        }
        self.run(plan.ops, lambda _: 0)

    @property
    def outputs(self) -> dict[str, np.ndarray]:
        return {v.name: self.memory["output", i].view(v.dtype).reshape(v.shape) for i, v in enumerate(self.plan.outputs)}

    def at(self, slot: Slot, moved: int, size: int) -> np.ndarray:
        whole = slot.segment in ("weights", "arena")
        start = slot.offset_bytes + moved + (slot.at if whole else 0)
        return self.memory[slot.segment, 0 if whole else slot.at][start : start + size]

    def run(self, ops: tuple[Op, ...], shift: Callable[[int], int]) -> None:
        """`shift(k)`: how far the loops around have moved the k-th slot of `ops` and all inside them."""
        k = 0
        for op in ops:
            own = len(own_slots(op))
            places = [(s, shift(k + i)) for i, s in enumerate(own_slots(op))]
            self.run_op(op, places, lambda i, first=k + own: shift(first + i))
            k += len(slots_of((op,)))

    def run_op(self, op: Op, places: list[tuple[Slot, int]], inside: Callable[[int], int]) -> None:
        match op:
            case Call(name=name):
                FORMULAS[name](*(self.at(*place, CELL) for place in places))
            case Copy(size_bytes=n):
                self.at(*places[1], n)[:] = self.at(*places[0], n)
            case Zero(size_bytes=n):
                self.at(*places[0], n)[:] = 0
            case Repeat(count=n, body=body, strides=strides):
                for i in range(n):
                    self.run(body, lambda k, i=i: inside(k) + i * (strides[k] if strides else 0))
            case Loop(max_count=n, body=body, strides=strides):
                for i in range(n):
                    if not self.at(*places[0], 1)[0]:
                        break
                    self.run(body, lambda k, i=i: inside(k) + i * (strides[k] if strides else 0))
            case If(then=then, otherwise=otherwise):
                if self.at(*places[0], 1)[0]:
                    self.run(then, inside)
                else:
                    self.run(otherwise, lambda k: inside(len(slots_of(then)) + k))


def _mix(x: np.ndarray, w: np.ndarray, y: np.ndarray) -> None:
    y.view(np.uint32)[:] = x.view(np.uint32) * np.uint32(3) + w.view(np.uint32) + np.arange(N, dtype=np.uint32)


def _turn(x: np.ndarray, y: np.ndarray, workspace: np.ndarray) -> None:
    workspace.view(np.uint32)[:] = x.view(np.uint32) + np.uint32(1)
    y[:] = workspace.view(np.uint32)[::-1].copy().view(np.uint8)


def _fold(x: np.ndarray, y: np.ndarray) -> None:
    y.view(np.uint32)[:] = (x.view(np.uint32)[None] ^ np.arange(N, dtype=np.uint32)[:, None]).sum(1, dtype=np.uint32)


def _count(x: np.ndarray, condition: np.ndarray) -> None:
    x.view(np.uint32)[0] += np.uint32(1)
    condition[0] = x.view(np.uint32)[0] % 5 != 0


FORMULAS = {"mix": _mix, "uneven": _mix, "turn_1+turn_2": _turn, "fold": _fold, "count": _count}


@pytest.fixture(scope="session", autouse=True)
def own_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The runtime's object in a store of the test's own, not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TC_STORE", str(tmp_path_factory.mktemp("store")))
        yield
