"""A plan run in this process on kernels loaded into it: the same machine code as an artifact's, without linking one.

For the ONNX backend and for tests. Artifacts are run by the C runtime, which has threads; here each phase is one call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from toolchain.core.dtype import to_numpy
from toolchain.core.errors import InternalError, UsageError
from toolchain.targets.llvm.load import LoadedKernel, aligned, aligned_copy
from toolchain.targets.llvm.plan import (
    Call,
    Copy,
    Fail,
    If,
    Loop,
    Op,
    Plan,
    Repeat,
    Slot,
    Zero,
    own_slots,
    slots_of,
    verify_plan,
)

Moved = Mapping[int, int]                   # number of a slot, in the order of slots_of(plan.ops) -> bytes it has moved


class LoadedPlan:
    """A plan with its memory and kernels. Calling it runs it once: arrays of the plan's inputs in, of its outputs out."""

    def __init__(self, plan: Plan, kernels: Mapping[str, LoadedKernel], weights: Iterable[tuple[int, np.ndarray]]) -> None:
        """kernels: by symbol. weights: (offset, physical elements) of every parameter."""
        verify_plan(plan)
        self.plan, self.kernels = plan, kernels
        self._weights, self._arena = aligned(plan.weights_bytes + 64), aligned(plan.arena_bytes + 64)
        self._scratch = aligned(plan.scratch_bytes + 64)
        for offset, array in weights:
            flat = array.reshape(-1).view(np.uint8)
            self._weights[offset:offset + flat.size] = flat

    def __call__(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Needs: the inputs in order, of the plan's types."""
        for value, array in zip(self.plan.inputs, inputs, strict=True):
            if array.shape != value.shape or array.dtype != to_numpy(value.dtype):
                raise InternalError(f"input {value.name!r} is {array.dtype}{list(array.shape)}, not {value.dtype}"
                                    f"{list(value.shape)}")
        outputs = [aligned(max(1, int(np.prod(v.shape))), to_numpy(v.dtype)) for v in self.plan.outputs]
        run = _Run(self, [aligned_copy(np.asarray(a)) for a in inputs], outputs)
        run.ops(self.plan.ops, 0, {})
        whole = (o[:int(np.prod(v.shape))].reshape(v.shape) for o, v in zip(outputs, self.plan.outputs, strict=True))
        return [v.result(o, self._arena) for o, v in zip(whole, self.plan.outputs, strict=True)]


class _Run:
    """One run: where the segments lie, and the interpreter of ops. `first` is the number of the first slot of some ops."""

    def __init__(self, loaded: LoadedPlan, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
        self.loaded, self.inputs, self.outputs = loaded, inputs, outputs
        self.weights, self.arena = loaded._weights.ctypes.data, loaded._arena.ctypes.data
        self.scratch = loaded._scratch.ctypes.data

    def address(self, slot: Slot, moved: int) -> int:
        match slot.segment:
            case "weights":
                base = self.weights + slot.at
            case "arena":
                base = self.arena + slot.at
            case "input":
                base = self.inputs[slot.at].ctypes.data
            case _:
                base = self.outputs[slot.at].ctypes.data
        return base + slot.offset_bytes + moved

    def ops(self, ops: tuple[Op, ...], first: int, moved: Moved) -> None:
        for op, start in _numbered(ops, first):
            self.op(op, start, moved)

    def op(self, op: Op, first: int, moved: Moved) -> None:
        at = [self.address(slot, moved.get(first + n, 0)) for n, slot in enumerate(own_slots(op))]
        match op:
            case Call(kernel=kernel):
                self.call(kernel, at)
            case Copy(size_bytes=size):
                ctypes.memmove(at[1], at[0], size)
            case Zero(size_bytes=size):
                ctypes.memset(at[0], 0, size)
            case Repeat(count=count, body=body, strides=strides):
                for n in range(count):
                    self.ops(body, first, _advanced(moved, first, strides, n))
            case If(then=then, otherwise=otherwise):
                taken = _byte(at[0])
                inner = first + 1
                self.ops(then if taken else otherwise, inner if taken else inner + len(slots_of(then)), moved)
            case Loop(max_count=count, body=body, strides=strides):
                n = 0
                while n < count and _byte(at[0]):
                    self.ops(body, first + 1, _advanced(moved, first + 1, strides, n))
                    n += 1
            case Fail(name=reason):
                raise UsageError(f"the inputs lead to a part of the model that does not fit their shapes: {reason}")

    def call(self, symbol: str, at: Sequence[int]) -> None:
        table = (ctypes.c_void_p * len(at))(*at)
        for task, extent in self.loaded.kernels[symbol].phases:
            task(table, 0, extent, self.scratch)


def _numbered(ops: tuple[Op, ...], first: int) -> Iterator[tuple[Op, int]]:
    for op in ops:
        yield op, first
        first += len(slots_of((op,)))


def _advanced(moved: Moved, first: int, strides: Sequence[int], n: int) -> Moved:
    """Where the slots of a loop's body are in its iteration n."""
    if not n or not strides:
        return moved
    return {**moved, **{first + k: moved.get(first + k, 0) + n * step for k, step in enumerate(strides) if step}}


def _byte(address: int) -> int:
    return ctypes.c_ubyte.from_address(address).value


__all__ = ["LoadedPlan"]
