"""Loads an artifact's folder into this process and runs it: `Module`."""

from __future__ import annotations

import _ctypes
import ctypes
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.core.dtype import to_numpy
from toolchain.core.errors import DeviceError, ToolchainError, UsageError
from toolchain.targets.fingerprint import host_kind
from toolchain.targets.llvm.artifact_files import read_artifact
from toolchain.targets.llvm.buckets import shape_text, shapes_of, signature
from toolchain.targets.llvm.format import VERSION, WEIGHTS_FILE, library_file
from toolchain.targets.llvm.plan import Fail, Op, Plan, Value, children, walk
from toolchain.targets.llvm.turn import Turn

_Pointers = ctypes.Array[ctypes.c_void_p]
_HOOK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
_MISSING_FEATURE, _NO_PERMISSION, _MISFIT = 2, 8, 11


@dataclass(frozen=True, slots=True)
class Stats:
    """How long runs took, in microseconds of wall time."""

    median_us: float
    p10_us: float
    p90_us: float
    repeats: int


@dataclass(frozen=True, slots=True)
class OpTime:
    """The time of one op (in loops: of all its iterations together), median over runs."""

    index: int
    name: str
    kind: str
    sources: tuple[str, ...]
    ns: int


def copy_artifact(folder: Path, manifest: Mapping[str, Any], to: Path) -> None:
    """Copy the files of an artifact, which the manifest lists."""
    import shutil  # loading an artifact should not pay for it

    to.mkdir(parents=True, exist_ok=True)
    for file in (*manifest["files"], "manifest.json"):      # the manifest last: without it nothing is an artifact
        part = to / f".{file}.part"
        shutil.copy(folder / file, part)                    # with its mode: `run` is a program
        os.replace(part, to / file)


class Bound:
    """A run on fixed arrays: calling it computes `outputs` from what is in `inputs` then. Costs about a microsecond.

    outputs: arrays of the largest shape each output can have; `results()` are views of them in the shapes of the last run.
    """

    def __init__(
        self, module: Module, bucket: int, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]
    ) -> None:
        self.inputs, self.outputs = inputs, outputs             # keeps the memory alive
        self._module, self._bucket = module, bucket
        self.plan = module.buckets[bucket]
        self._pointers = (module._inputs.pointers(inputs), module._outputs.pointers(outputs))
        self._shapes: dict[str, tuple[int, ...]] = {}   # of outputs whose shape depends on data, after the last run
        self._bounded = tuple((n, v) for n, v in enumerate(self.plan.outputs) if v.extents)

    def __call__(self) -> None:
        with self._module._turn:
            self._run()

    def _run(self) -> None:
        """For who has the turn already."""
        module = self._module
        if status := module._run_bucket(module._handle(), self._bucket, *self._pointers):
            raise module._error(status)
        for n, value in self._bounded:
            self._shapes[value.name] = module._output_shape(n, len(value.shape))

    def results(self) -> dict[str, np.ndarray]:
        """What the last run computed: views of `outputs`, in their true shapes."""
        return {name: array if (shape := self._shapes.get(name)) is None
                else array.reshape(-1)[:math.prod(shape)].reshape(shape) for name, array in self.outputs.items()}


class Arrays:
    """The inputs, or the outputs, of a module: what `run` asks of the arrays it is given. Every call pays for this."""

    def __init__(self, kind: str, values: tuple[Value, ...]) -> None:
        self.kind = kind
        self.expected = tuple((v.name, np.dtype(to_numpy(v.dtype)), v.shape) for v in values)
        self._pointers: type[_Pointers] = ctypes.c_void_p * max(1, len(values))

    def new(self, shapes: Sequence[tuple[int, ...]]) -> dict[str, np.ndarray]:
        return {name: np.empty(shape, dtype) for (name, dtype, _), shape in zip(self.expected, shapes, strict=True)}

    def pointers(self, arrays: Mapping[str, np.ndarray]) -> _Pointers:
        return self._pointers(*[arrays[name].ctypes.data for name, _, _ in self.expected])

    def check(self, arrays: Mapping[str, np.ndarray], *, in_place: bool = False) -> dict[str, np.ndarray]:
        """The arrays in row-major order, copied only where they are not (or refused, when they are used `in_place`).

        Names, dtypes and ranks are checked here; extents depend on the bucket.
        """
        if not isinstance(arrays, Mapping):
            raise UsageError(f"{self.kind}s are a dict of arrays, not a {type(arrays).__name__}", fix=self._names())
        checked = {}
        if unknown := [n for n in arrays if n not in {name for name, _, _ in self.expected}]:
            raise UsageError(f"there is no {self.kind} {unknown[0]!r}", fix=self._names())
        for name, dtype, shape in self.expected:
            if name not in arrays:
                raise UsageError(f"{self.kind} {name!r} is missing", fix=self._names())
            array = np.asarray(arrays[name])
            if array.dtype != dtype:
                what = f"{self.kind} {name!r} has dtype {array.dtype}, not {dtype}"
                raise UsageError(what, fix="convert it with .astype()")
            if array.ndim != len(shape):
                raise UsageError(f"{self.kind} {name!r} has shape {array.shape}: {array.ndim} dimensions, not {len(shape)} "
                                 f"as {shape}")
            flags = array.flags
            if not (flags.c_contiguous and flags.aligned and (self.kind == "input" or flags.writeable)):
                if in_place:
                    what = f"{self.kind} {name!r} is not contiguous, aligned and (outputs) writeable, but is used in place"
                    raise UsageError(what)
                array = np.require(array, requirements=["C", "A"])
            checked[name] = array
        return checked

    def _names(self) -> str:
        return f"the {self.kind}s are: {', '.join(name for name, _, _ in self.expected) or 'none'}"


class Module:
    """A compiled network in this process. Any thread may call it, and calls take turns; close() (or `with`) frees it.

    threads: lanes that compute, the calling thread included. buckets: what runs for each set of input shapes it was built
    for, each with its `inputs` and `outputs`; labels: what tools call them ("1x3x48x320"). Every method takes inputs of any
    of them. inputs, outputs: of the first.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], buckets: Sequence[Plan], threads: int) -> None:
        self.folder, self.manifest, self.buckets = folder, manifest, tuple(buckets)
        self.name: str = manifest["name"]
        self.inputs: tuple[Value, ...] = self.buckets[0].inputs
        self.outputs: tuple[Value, ...] = self.buckets[0].outputs
        self.labels = tuple(shape_text(plan.inputs) for plan in self.buckets)
        self._inputs, self._outputs = Arrays("input", self.inputs), Arrays("output", self.outputs)
        self._by_shapes = {shapes_of(plan.inputs): n for n, plan in enumerate(self.buckets)}
        self._model: ctypes.c_void_p | None = None
        self._turn = Turn()
        self._library = _open_library(folder / library_file(manifest["identifier"], manifest["target"]["kind"]))
        model = ctypes.c_void_p()
        path = os.fsencode(folder / WEIGHTS_FILE)
        if status := self._function("create")(ctypes.byref(model), path, threads):
            error = self._error(status)
            _ctypes.dlclose(self._library._handle)
            raise error
        self._model, self._run_bucket = model, self._function("run_bucket")
        self.threads = int(self._function("threads")(model))

    @classmethod
    def load(cls, folder: Path | str, threads: int | None = None, *, verify: bool = False) -> Module:
        """Load the artifact in `folder`. threads: how many compute (none: one per CPU this process may run on).

        Sizes and the library's digest are always checked; `verify` reads every file and checks its digest.
        Raises UsageError when the folder holds no whole artifact, DeviceError when this CPU cannot run it.
        """
        folder = Path(folder)
        if threads is not None and threads < 1:
            raise UsageError(f"{threads} threads", where=str(folder), fix="give 1 or more, or none for one per CPU")
        found = read_artifact(folder, host_kind(), contents=verify)
        return cls(folder, found.manifest, found.plans, threads or len(os.sched_getaffinity(0)))

    def __repr__(self) -> str:
        return f"<Module {signature(self.name, self.buckets)}, {self.threads} threads>"

    def save(self, folder: Path | str) -> None:
        """Copy the artifact into `folder`."""
        copy_artifact(self.folder, self.manifest, Path(folder))

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute the outputs, in new arrays. Raises UsageError for a wrong name or dtype, and for shapes of no bucket."""
        bound = self._bound(inputs)
        bound()
        return bound.results()

    def bucket_of(self, inputs: Mapping[str, np.ndarray]) -> int:
        """The number, from 0, of the shape bucket that takes these inputs. Raises UsageError, as `run` does."""
        return self._bucket(self._inputs.check(inputs))

    def run_range(
        self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], first: int, end: int
    ) -> None:
        """Run the ops [first, end) of the outermost level only, in pre-order numbers, on what is in the arena."""
        checked = self._inputs.check(inputs)
        bucket = self._bucket(checked)
        if not {first, end} <= self._outermost(bucket):
            raise UsageError(f"ops {first} to {end} do not begin and end on the outermost level", where=self.name)
        self._check_outputs(bucket, outputs)
        pointers = self._inputs.pointers(checked), self._outputs.pointers(outputs)
        with self._turn:
            self._native("run_range", bucket, *pointers, first, end)

    def bind(
        self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray] | None = None
    ) -> Bound:
        """Fix the arrays of later runs: `bound = m.bind({"x": x}); x[:] = ...; bound(); bound.outputs["y"]`.

        Arrays must be contiguous, because they are used in place. Without `outputs` new arrays are made.
        """
        return self._bound(inputs, outputs, in_place=True)

    def benchmark(
        self, inputs: Mapping[str, np.ndarray], min_time_s: float = 0.5, min_repeats: int = 5, warmup: int = 3
    ) -> Stats:
        """Time runs, back to back, until `min_time_s` have passed and `min_repeats` are done."""
        bound = self._bound(inputs)
        for _ in range(warmup):
            bound()
        times_ns: list[int] = []
        now = start = time.perf_counter_ns()
        while now - start < min_time_s * 1e9 or len(times_ns) < min_repeats:
            before = now
            bound()
            now = time.perf_counter_ns()
            times_ns.append(now - before)
        p10, median, p90 = np.percentile(times_ns, (10, 50, 90)) / 1e3
        return Stats(float(median), float(p10), float(p90), len(times_ns))

    def profile(self, inputs: Mapping[str, np.ndarray], repeats: int = 10) -> tuple[OpTime, ...]:
        """The time of each op that computes or moves data (loops and branches count as what is inside them)."""
        bound = self._bound(inputs)
        bound()
        ops = tuple(walk(bound.plan.ops))
        ns = np.zeros((repeats, len(ops)), np.int64)
        with self._turn:
            try:
                for row in ns:
                    self._native("set_profile", row.ctypes.data)
                    bound._run()
            finally:
                self._native("set_profile", None)
        medians = [int(median) for median in np.median(ns, axis=0)]
        return tuple(
            OpTime(i, op.name, type(op).__name__.lower(), op.sources, medians[i])
            for i, op in enumerate(ops)
            if not children(op)
        )

    def profile_range(
        self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], first: int, end: int, repeats: int = 10,
    ) -> float:
        """The median time in microseconds of the ops [first, end) when they alone run again and again (see run_range)."""
        outermost = self._outermost(self.bucket_of(inputs))
        ns = np.zeros((repeats, max(outermost)), np.int64)
        try:
            for row in ns:
                with self._turn:
                    self._native("set_profile", row.ctypes.data)
                self.run_range(inputs, outputs, first, end)
        finally:
            with self._turn:
                self._native("set_profile", None)
        return float(np.median(ns[:, sorted(outermost & {*range(first, end)})].sum(axis=1))) / 1e3

    def trace(
        self, inputs: Mapping[str, np.ndarray], after_op: Callable[[int, Op], None],
        outputs: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """As run(), and call `after_op(index, op)` after each op, while no other runs; `arena()` shows what it computed.

        outputs: arrays to compute into, for a callback that looks at them. An exception of the callback is raised here when
        the run has ended. It may not run this module.
        """
        bound = self._bound(inputs, outputs)
        ops = tuple(walk(bound.plan.ops))
        raised: list[BaseException] = []

        def call(_user: int, index: int) -> None:
            try:
                if not raised:
                    after_op(index, ops[index])
            except BaseException as error:  # an exception cannot pass through C: carried around it
                raised.append(error)

        hook = _HOOK(call)
        with self._turn:
            try:
                self._native("set_after_op", hook, None)
                bound._run()
            finally:
                self._native("set_after_op", _HOOK(), None)
        if raised:
            raise raised[0]
        return bound.results()

    def arena(self) -> np.ndarray:
        """The memory of intermediate values, which all buckets use, as bytes in place; valid until close()."""
        if not (size_bytes := max(plan.arena_bytes for plan in self.buckets)):
            return np.empty(0, np.uint8)
        address = self._function("arena")(self._handle(), None)  # not _native: hooks look at it during a run
        return np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))

    def close(self) -> None:
        """Stop the threads, free the memory, unload the library. Closing twice is fine."""
        with self._turn:
            model, self._model = self._model, None
            if model is not None:
                self._function("destroy")(model)
                _ctypes.dlclose(self._library._handle)

    def __enter__(self) -> Module:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_model", None) is not None:
            self.close()

    def _handle(self) -> ctypes.c_void_p:
        if self._model is None:
            raise UsageError("the module is closed", where=self.name)
        return self._model

    def _function(self, name: str) -> Any:
        return getattr(self._library, f"{self.manifest['identifier']}_{name}")

    def _outermost(self, bucket: int) -> set[int]:
        """Numbers of a bucket's outermost ops, and one past the last."""
        places, at = {0}, 0
        for op in self.buckets[bucket].ops:
            at += 1 + sum(1 for _ in walk(children(op)))
            places.add(at)
        return places

    def _bound(
        self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray] | None = None, *, in_place: bool = False
    ) -> Bound:
        """A run on checked inputs (copied where not contiguous, unless `in_place`), into `outputs` or new arrays."""
        checked = self._inputs.check(inputs, in_place=in_place)
        bucket = self._bucket(checked)
        if outputs is None:
            made = self._outputs.new([v.shape for v in self.buckets[bucket].outputs])
        else:
            made = self._check_outputs(bucket, outputs)
        return Bound(self, bucket, checked, made)

    def _bucket(self, checked: Mapping[str, np.ndarray]) -> int:
        """The bucket for inputs whose names, dtypes and ranks are right. Raises UsageError with the library's own words."""
        shapes = tuple([array.shape for array in checked.values()])
        if (bucket := self._by_shapes.get(shapes)) is not None:
            return bucket
        extents = [(ctypes.c_int64 * max(1, len(shape)))(*shape) for shape in shapes]
        table = (ctypes.c_void_p * len(extents))(*(ctypes.addressof(e) for e in extents))
        explain = self._function("shape_error")
        room = explain(table, None, 0) + 1
        text = ctypes.create_string_buffer(room)
        explain(table, text, room)
        what, _, fix = text.value.decode(errors="replace").partition("\nfix: ")
        raise UsageError(what, fix=fix)

    def _check_outputs(self, bucket: int, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays to compute into, which fit the bucket's outputs."""
        values = self.buckets[bucket].outputs
        checked = self._outputs.check(outputs, in_place=True)
        for v in values:
            if checked[v.name].shape != v.shape:
                raise UsageError(f"output {v.name!r} has shape {checked[v.name].shape}, not {v.shape}")
        return checked

    def _output_shape(self, index: int, rank: int) -> tuple[int, ...]:
        """The shape the last run gave an output; needs the turn."""
        shape = (ctypes.c_int64 * max(rank, 1))()
        self._native("output_shape", index, shape)
        return tuple(shape[:rank])

    def _native(self, function: str, *arguments: Any) -> None:
        """Call the library; needs the turn."""
        if status := self._function(function)(self._handle(), *arguments):
            raise self._error(status)

    def _error(self, status: int) -> ToolchainError:
        text = self._function("status_text")(status).decode()
        kind: type[ToolchainError] = DeviceError if status in (_MISSING_FEATURE, _NO_PERMISSION) else UsageError
        if status == _MISSING_FEATURE:
            text += f": {self._function('missing_feature')().decode()}"
        if status == _MISFIT:
            reasons = {op.name: None for plan in self.buckets for op in walk(plan.ops) if isinstance(op, Fail)}
            text += f": {'; '.join(reasons)}"
        return kind(text, where=f"{self.name} ({self.folder})")


def _open_library(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path.resolve()))
    except OSError as error:
        raise UsageError(f"the library cannot be loaded: {error}", where=str(path)) from None
    try:
        _bind_functions(library, path)
    except UsageError:
        _ctypes.dlclose(library._handle)
        raise
    return library


def _bind_functions(library: ctypes.CDLL, path: Path) -> None:
    """Give the functions their types. Raises UsageError for another runtime, before anything but version() is called."""
    name, pointer, i64 = path.stem.removeprefix("lib"), ctypes.c_void_p, ctypes.c_int64
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "version": (ctypes.c_char_p, []),
        "create": (ctypes.c_int, [pointer, ctypes.c_char_p, ctypes.c_int]),
        "run_bucket": (ctypes.c_int, [pointer, i64, pointer, pointer]),
        "output_shape": (ctypes.c_int, [pointer, i64, pointer]),
        "run_range": (ctypes.c_int, [pointer, i64, pointer, pointer, i64, i64]),
        "shape_error": (ctypes.c_size_t, [pointer, ctypes.c_char_p, ctypes.c_size_t]),
        "destroy": (None, [pointer]),
        "threads": (ctypes.c_int, [pointer]),
        "status_text": (ctypes.c_char_p, [ctypes.c_int]),
        "missing_feature": (ctypes.c_char_p, []),
        "set_profile": (None, [pointer, pointer]),
        "set_after_op": (None, [pointer, _HOOK, pointer]),
        "arena": (pointer, [pointer, pointer]),
    }
    for function, (result, arguments) in signatures.items():
        entry = getattr(library, f"{name}_{function}", None)
        if entry is None:
            raise UsageError(f"the library has no function {name}_{function}", where=str(path), fix="build it again")
        entry.restype, entry.argtypes = result, arguments
        if function == "version" and (found := entry()) != VERSION.encode():
            raise UsageError(f"the library is '{found.decode(errors='replace')}'; this version calls '{VERSION}'",
                             where=str(path), fix="build it again")
