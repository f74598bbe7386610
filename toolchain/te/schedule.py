"""Schedules: the one mutable builder around a frozen PrimFunc, with TVM's API.

    s = te.create_schedule(C)
    io, ii = s[C].split(C.op.axis[0], factor=8)
    s[C].vectorize(ii)
    print(s)                     the loop nest now; s.func is it as data
    s.steps                      what was done, by names: replay(create_schedule(C).func, s.steps) gives the same text

Every primitive rewrites `s.func` at once. Loop handles are `Var`s; a handle that a later step consumed is refused with the
list of the loops there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from toolchain.core.errors import ScheduleError
from toolchain.core.layout import Layout
from toolchain.te.create import create_func
from toolchain.te.expr import Var
from toolchain.te.intrin import Intrin
from toolchain.te.loop_ir import PrimFunc, loops
from toolchain.te.primitives import PRIMITIVES
from toolchain.te.primitives.loops import root_nest
from toolchain.te.primitives.prefetch import LINE_BYTES
from toolchain.te.tensor import Compute, Tensor
from toolchain.te.text import to_text


@dataclass(frozen=True, slots=True)
class Step:
    """One applied primitive: its name in PRIMITIVES and its arguments (loop and tensor names, numbers, layouts)."""

    name: str
    args: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.args))})"


@dataclass(frozen=True, slots=True)
class Thread:
    """A thread axis to bind a loop to; `extent` (if given) must be the loop's."""

    name: str
    extent: int | None = None


def thread_axis(*args: Any) -> Thread:
    """thread_axis("threadIdx.x"), or TVM's thread_axis((0, 16), "threadIdx.x"); "vthread" is a virtual thread."""
    match args:
        case (str(name),):
            return Thread(name)
        case (int(extent), str(name)) | ((0, int(extent)), str(name)):
            return Thread(name, extent)
    raise ScheduleError(f"thread_axis{args}", fix='thread_axis("blockIdx.x") or thread_axis(16, "threadIdx.x")')


@dataclass(frozen=True, slots=True)
class Axes:
    """The axes of a stage as they are now; `s[CC].op.axis` reads as in TVM."""

    axis: tuple[Var, ...]
    reduce_axis: tuple[Var, ...]


class Schedule:
    """`func`, the `steps` that made it from the first nest, and handles to its loops."""

    def __init__(self, func: PrimFunc) -> None:
        self.func = func
        self.steps: tuple[Step, ...] = ()
        self._axes: dict[Tensor, Axes] = {}
        self._places: dict[Tensor, dict[Var, tuple[str, int]]] = {}
        for tensor in func.stages:
            self._add_stage(tensor)

    def __getitem__(self, tensor: Tensor | str) -> Stage:
        for known in self.func.buffers:
            if known is tensor or known.name == tensor:
                return Stage(self, known)
        name = tensor if isinstance(tensor, str) else tensor.name
        raise ScheduleError(
            f"{self.func.name} has no stage '{name}'", fix=f"pick one of: {', '.join(t.name for t in self.func.stages)}"
        )

    def __str__(self) -> str:
        """The loop nest now."""
        return to_text(self.func)

    def apply(self, name: str, *args: Any) -> tuple[Any, ...]:
        """Apply the primitive of that name (arguments as in a Step), record it, return its handles."""
        if name not in PRIMITIVES:
            raise ScheduleError(f"no primitive '{name}'", fix=f"pick one of: {', '.join(PRIMITIVES)}")
        before = self.func.stages
        self.func, handles = PRIMITIVES[name](self.func, *args)
        self.steps = (*self.steps, Step(name, args))
        if name == "compute_at":
            tensor = self[args[0]].tensor
            rank = len(tensor.shape)
            for t in self.func.computed_with(tensor):
                self._axes[t] = Axes(handles[:rank], handles[rank:])
        elif self.func.stages is not before:
            self._update_stages(before)
        return handles

    @overload
    def cache_write(self, tensor: Tensor, scope: str) -> Tensor: ...
    @overload
    def cache_write(self, tensor: tuple[Tensor, ...], scope: str) -> tuple[Tensor, ...]: ...

    def cache_write(self, tensor: Tensor | tuple[Tensor, ...], scope: str) -> Tensor | tuple[Tensor, ...]:
        """Compute `tensor` into a new tensor in `scope` first (returned); `tensor` becomes the copy from it.

        What is computed together is cached together; given the tuple of tensors (or one of them), the new ones come back.
        """
        chosen = (tensor,) if isinstance(tensor, Tensor) else tensor
        group = self.func.computed_with(chosen[0])
        made = self.apply("cache_write", chosen[0].name, scope)
        for old, new in zip(group, made, strict=True):
            for var, place in self._places[old].items():
                if place[0] == "reduce_axis":
                    self._places[new].setdefault(var, place)
        return made[group.index(tensor)] if isinstance(tensor, Tensor) else made

    def cache_read(self, tensor: Tensor, scope: str, readers: Tensor | Sequence[Tensor] = ()) -> Tensor:
        """Let `readers` (default: all) read `tensor` through a copy in `scope`, which is returned."""
        chosen = (readers,) if isinstance(readers, Tensor) else readers
        return self.apply("cache_read", tensor.name, scope, *(r.name for r in chosen))[0]  # type: ignore[no-any-return]

    def cache_window(
        self, tensor: Tensor, scope: str, at: Var | str
    ) -> tuple[Tensor, tuple[Var, ...], tuple[Var, ...]]:
        """Keep what one iteration of `at` updates of `tensor` in `scope`: the new tensor, its load axes, its store axes."""
        group = self.func.computed_with(tensor)
        handles = self.apply("cache_window", tensor.name, self.loop(at, tensor), scope)
        windows, axes, rank = handles[:len(group)], handles[len(group):], len(tensor.shape)
        return windows[group.index(tensor)], tuple(axes[:rank]), tuple(axes[rank:])

    @overload
    def rfactor(self, tensor: Tensor, axis: Var | str, position: int = 0) -> Tensor: ...
    @overload
    def rfactor(self, tensor: tuple[Tensor, ...], axis: Var | str, position: int = 0) -> tuple[Tensor, ...]: ...

    def rfactor(
        self, tensor: Tensor | tuple[Tensor, ...], axis: Var | str, position: int = 0
    ) -> Tensor | tuple[Tensor, ...]:
        """Reduce into one partial result per iteration of `axis` (returned), then reduce those into `tensor`.

        Of what is reduced together, the partial results are too: given the tuple of tensors, theirs come back.
        """
        first = tensor if isinstance(tensor, Tensor) else tensor[0]
        group = self.func.computed_with(first)
        made = self.apply("rfactor", first.name, self.loop(axis, first), position)
        return made[group.index(tensor)] if isinstance(tensor, Tensor) else made

    def set_layout(self, tensor: Tensor, layout: Layout) -> None:
        self.apply("set_layout", tensor.name, layout)

    def loop(self, handle: Var | str, tensor: Tensor | None = None) -> str:
        """The unique name of the loop a handle means, seen from `tensor`. Raises ScheduleError when it is gone."""
        if isinstance(handle, str):
            return handle
        var = handle
        if tensor is not None and (place := self._places.get(tensor, {}).get(handle)):
            var = getattr(self._axes[tensor], place[0])[place[1]]
        live = [loop.var for loop in loops(self.func.body)]
        if not any(v is var for v in live):
            raise ScheduleError(
                f"loop '{handle.name}' is no longer there: an earlier step replaced it",
                where=tensor.name if tensor else "",
                fix=f"use the handles that step returned; loops now: {', '.join(v.name for v in live)}",
            )
        return var.name

    def axes(self, tensor: Tensor) -> Axes:
        return self._axes[tensor]

    def _add_stage(self, tensor: Tensor) -> None:
        definition = self.func.stages[tensor]
        self._axes[tensor] = Axes(definition.axis, definition.reduce_axis)
        places = self._places.setdefault(tensor, {})
        for source in (definition, tensor.op):
            if isinstance(source, Compute):
                for kind in ("axis", "reduce_axis"):
                    for n, var in enumerate(getattr(source, kind)):
                        places.setdefault(var, (kind, n))

    def _update_stages(self, before: Any) -> None:
        for tensor, definition in self.func.stages.items():
            old = before.get(tensor)
            if old is None:
                self._add_stage(tensor)
            elif (old.axis, old.reduce_axis) != (definition.axis, definition.reduce_axis):
                self._axes[tensor] = Axes(definition.axis, definition.reduce_axis)


@dataclass(frozen=True, slots=True)
class Stage:
    """What `s[C]` gives: the nest that stores C, with TVM's methods. Axes are Vars (or loop names)."""

    schedule: Schedule
    tensor: Tensor

    @property
    def op(self) -> Axes:
        """The current axes; after cache_write or compute_at too."""
        return self.schedule.axes(self.tensor)

    def _apply(self, name: str, *axes: Var | str, extra: Iterable[Any] = ()) -> tuple[Any, ...]:
        return self.schedule.apply(name, *(self.schedule.loop(a, self.tensor) for a in axes), *extra)

    def _extent(self, axis: Var | str) -> int:
        name = self.schedule.loop(axis, self.tensor)
        return next((loop.extent for loop in loops(self.schedule.func.body) if loop.var.name == name), 1)

    def split(self, axis: Var | str, factor: int | None = None, nparts: int | None = None) -> tuple[Var, Var]:
        """(outer, inner); `factor` is the inner extent, `nparts` the outer one (the outer loop has at most that many)."""
        if (factor is None) == (nparts is None):
            raise ScheduleError("split needs either factor or nparts")
        if factor is None:
            assert nparts is not None
            factor = -(-self._extent(axis) // max(1, nparts))
        outer, inner = self._apply("split", axis, extra=(factor,))
        return outer, inner

    def tile(self, x: Var | str, y: Var | str, x_factor: int, y_factor: int) -> tuple[Var, Var, Var, Var]:
        """Split both and reorder to xo, yo, xi, yi."""
        xo, xi = self.split(x, x_factor)
        yo, yi = self.split(y, y_factor)
        self.reorder(xo, yo, xi, yi)
        return xo, yo, xi, yi

    def fuse(self, *axes: Var | str) -> Var:
        """One loop of nested loops, outermost first."""
        fused: Any = axes[0]
        for axis in axes[1:]:
            (fused,) = self._apply("fuse", fused, axis)
        return fused  # type: ignore[no-any-return]

    def reorder(self, *axes: Var | str) -> None:
        self._apply("reorder", *axes)

    def vectorize(self, axis: Var | str) -> None:
        self._apply("vectorize", axis)

    def unroll(self, axis: Var | str) -> None:
        self._apply("unroll", axis)

    def parallel(self, axis: Var | str) -> None:
        self._apply("parallel", axis)

    def bind(self, axis: Var | str, thread: Thread | str) -> None:
        wanted = Thread(thread) if isinstance(thread, str) else thread
        if wanted.extent not in (None, extent := self._extent(axis)):
            raise ScheduleError(f"bind: the loop has {extent} iterations, {wanted.name} {wanted.extent}")
        self._apply("bind", axis, extra=(wanted.name,))

    def pragma(self, axis: Var | str, key: str, value: Any = True) -> None:
        self._apply("pragma", axis, extra=(key, value))

    def compute_at(self, consumer: Stage | Tensor, axis: Var | str) -> None:
        """Compute this stage inside loop `axis` of `consumer`, just the part needed there."""
        reader = consumer.tensor if isinstance(consumer, Stage) else consumer
        self.schedule.apply("compute_at", self.tensor.name, self.schedule.loop(axis, reader))

    def compute_with(self, axis: Var | str, other: Stage | Tensor, other_axis: Var | str) -> None:
        """Run each iteration of `axis` behind the same iteration of `other_axis` of another stage, the loop before it."""
        before = other.tensor if isinstance(other, Stage) else other
        self.schedule.apply("compute_with", self.schedule.loop(axis, self.tensor), self.schedule.loop(other_axis, before))

    def compute_root(self) -> None:
        """Keep the stage in a root nest of its own: where every stage starts. Raises ScheduleError when it was moved."""
        root_nest(self.schedule.func, self.tensor, "compute_root")

    def compute_inline(self) -> None:
        self.schedule.apply("compute_inline", self.tensor.name)

    def set_scope(self, scope: str) -> None:
        self.schedule.apply("set_scope", self.tensor.name, scope)

    def reuse_buffer(self, output: Stage | Tensor) -> None:
        """Keep this stage in the storage of an output that is made of it, element by element."""
        reader = output.tensor if isinstance(output, Stage) else output
        self.schedule.apply("reuse_buffer", self.tensor.name, reader.name)

    def tensorize(self, axis: Var | str, intrin: Intrin) -> None:
        """Replace the nest at `axis` by the instruction; both must mean the same."""
        self._apply("tensorize", axis, extra=(intrin,))

    def decompose_reduction(self, before: Var | str | None = None) -> tuple[Var, ...]:
        """Split the pending initialisation off into a nest of its own, whose loops are returned."""
        loop = () if before is None else (self.schedule.loop(before, self.tensor),)
        return self.schedule.apply("decompose_reduction", self.tensor.name, *loop)

    def double_buffer(self) -> None:
        self.schedule.apply("double_buffer", self.tensor.name)

    def storage_align(self, axis: Var | str, factor: int, offset: int) -> None:
        """Pad storage so that neighbours along `axis` (an axis of this stage) are `offset` apart modulo `factor`."""
        name = self.schedule.loop(axis, self.tensor)
        at = next((d for d, v in enumerate(self.op.axis) if v.name == name), None)
        if at is None:
            raise ScheduleError(f"storage_align: '{name}' is no axis of {self.tensor.name}")
        self.schedule.apply("storage_align", self.tensor.name, at, factor, offset)

    def partition(self, axis: Var | str) -> tuple[Var, ...]:
        """Cut a loop where its conditions change; one loop variable per piece, in order."""
        return self._apply("partition", axis)

    def prefetch(
        self, tensor: Tensor, axis: Var | str, distance: int, level: int = 1, over: Var | str | None = None,
    ) -> tuple[Var, ...]:
        """In each iteration of `axis` prefetch what a later one reads of `tensor`, into the cache of that level; the
        iterations of `over`, a loop around it, share the lines."""
        more: tuple[int | str, ...] = () if level == 1 and over is None else (level,)
        if over is not None:
            more = (level, LINE_BYTES, self.schedule.loop(over))
        return self.schedule.apply("prefetch", tensor.name, self.schedule.loop(axis, self.tensor), distance, *more)

    def set_layout(self, layout: Layout) -> None:
        self.schedule.apply("set_layout", self.tensor.name, layout)


def create_schedule(
    outputs: Tensor | Compute | Sequence[Tensor | Compute], name: str = "main", inputs: Sequence[Tensor] | None = None
) -> Schedule:
    """A schedule with one root loop nest per computed stage, producers first. See `create_func`.

    Outputs may be given as tensors or, as in TVM, as their ops: create_schedule(C.op).
    """
    given = outputs if isinstance(outputs, Sequence) else (outputs,)
    if any(isinstance(o, Compute) and not o.outputs for o in given):
        raise ScheduleError("create_schedule: a definition that te.compute did not make", fix="pass the tensor")
    tensors = [t for o in given for t in (o.outputs if isinstance(o, Compute) else (o,))]
    return Schedule(create_func(tensors, name, inputs))


def replay(func: PrimFunc, steps: Iterable[Step]) -> Schedule:
    """Apply recorded steps to a fresh function of the same stages."""
    schedule = Schedule(func)
    for step in steps:
        schedule.apply(step.name, *step.args)
    return schedule


def steps_to_json(steps: Iterable[Step]) -> list[list[Any]]:
    """Plain data: [name, argument, ...] per step; a layout is {"axes", "dims", "halo"}, an instruction {"intrin"}."""
    return [[s.name, *(_arg_to_json(a) for a in s.args)] for s in steps]


def steps_from_json(data: Iterable[Sequence[Any]], intrinsics: Mapping[str, Intrin] | None = None) -> tuple[Step, ...]:
    """The steps of `steps_to_json`; `intrinsics` are the instructions that may occur, by name."""
    known = intrinsics or {}
    return tuple(Step(name, tuple(_arg_from_json(a, known) for a in args)) for name, *args in data)


def _arg_to_json(arg: Any) -> Any:
    match arg:
        case Layout(axes, dims, halo):
            return {"axes": axes, "dims": [list(d) for d in dims], "halo": [list(h) for h in halo]}
        case Intrin(name):
            return {"intrin": name}
        case tuple():
            return [_arg_to_json(a) for a in arg]
    return arg


def _arg_from_json(arg: Any, intrinsics: Mapping[str, Intrin]) -> Any:
    match arg:
        case {"axes": axes, "dims": dims, "halo": halo}:
            return Layout(axes, tuple((d[0], d[1]) for d in dims), tuple((h[0], h[1]) for h in halo))
        case {"intrin": name}:
            if name not in intrinsics:
                raise ScheduleError(f"a step uses the instruction {name}, which is not known here")
            return intrinsics[name]
        case list():
            return tuple(_arg_from_json(a, intrinsics) for a in arg)
    return arg
