"""One body run three ways: by the graph interpreter, as its te definition, and as the compiled kernel of its schedule."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from emulation import EmulatedKernel

from toolchain import te
from toolchain.core.dtype import from_numpy, to_numpy
from toolchain.core.errors import CodegenError, ScheduleError
from toolchain.core.layout import TensorType
from toolchain.core.target import Target
from toolchain.graph.infer import infer
from toolchain.graph.interpret import interpret
from toolchain.graph.ir import Graph, Node, array_type
from toolchain.kernels.build import Sketcher, schedule
from toolchain.kernels.sketches.select import SKETCHES, unscheduled
from toolchain.targets.backend import Kernel
from toolchain.targets.base import compile_kernel
from toolchain.targets.llvm.cpu import host_target
from toolchain.targets.llvm.load import LoadedKernel, aligned, load
from toolchain.targets.presets import PRESETS
from toolchain.te.loop_ir import PrimFunc

HOST = host_target(cores=2)
RUNNABLE = [t for t in PRESETS.values() if set(t.features) <= set(HOST.features)]
BOARD = PRESETS["cortex-a53"]               # emulated

Arrays = Mapping[str, np.ndarray]
RunnableKernel = Callable[..., None]        # takes the parameters' storage


def one_node(
    op: str, arrays: Sequence[np.ndarray | None], attrs: Mapping[str, Any] | None = None, constants: Collection[int] = (),
    outputs: int = 1,
) -> tuple[Graph, Arrays]:
    """The body of a kernel of one operator, and its inputs. `constants`: positions of the inputs it may bake in."""
    names = tuple("" if a is None else f"v{n}" for n, a in enumerate(arrays))
    types = {name: array_type(a) for name, a in zip(names, arrays) if a is not None}
    params = {names[n]: a for n in constants if (a := arrays[n]) is not None}
    node = Node(op, names, tuple(f"y{n}" for n in range(outputs)), attrs or {}, "node")
    types |= dict(zip(node.outputs, infer(node, types, {n: a for n, a in zip(names, arrays) if a is not None})))
    given = tuple(n for n in names if n and n not in params)
    graph = Graph("body", (node,), given, node.outputs, types, params)
    return graph, {n: a for n, a in zip(names, arrays) if a is not None and n in given}


def defined(body: Graph, arrays: Arrays) -> list[np.ndarray]:
    """The te definitions as they are, by the loop-IR interpreter."""
    return interpreted(schedule(body, HOST, unscheduled).func, body, arrays)


def interpreted(func: PrimFunc, body: Graph, arrays: Arrays) -> list[np.ndarray]:
    shapes = {t.name: t.shape for t in func.params}         # dimensions may be joined: the bytes are the same
    made = te.interpret(func, {n: a.reshape(shapes[n]) for n, a in _by_position(body, arrays).items()})
    return [made[t.name].reshape(body.types[o].shape) for o, t in zip(body.outputs, func.outputs, strict=True)]


def compiled(
    body: Graph, arrays: Arrays, target: Target = HOST, sketches: Sequence[Sketcher] = SKETCHES,
    called: Callable[[Kernel, PrimFunc, Target], RunnableKernel] | None = None,
) -> list[np.ndarray]:
    """The kernel of the first sketch that fits, in the layouts the types ask for; logical arrays in and out. called: how to
    run it, where it is neither the host's nor a board's."""
    for n, sketch in enumerate(sketches):
        try:
            func = schedule(body, target, sketch).func
            kernel = (called or callable_kernel)(compile_kernel(func, target), func, target)
        except (ScheduleError, CodegenError):
            if n == len(sketches) - 1:
                raise
            continue
        made = _run(kernel, func, _by_position(body, arrays))
        return [a.reshape(body.types[o].shape) for o, a in zip(body.outputs, made, strict=True)]
    raise AssertionError("no sketches")


def callable_kernel(kernel: Kernel, func: PrimFunc, target: Target) -> LoadedKernel | EmulatedKernel:
    """A kernel to call on arrays: in this process, or on an emulated board."""
    return load(kernel) if target.kind == HOST.kind else EmulatedKernel(kernel, func, target)


def _run(kernel: RunnableKernel, func: PrimFunc, arrays: Arrays) -> list[np.ndarray]:
    """Pack, run, unpack; the halo and the tail of every output still hold zeros afterwards."""
    types = {t: func.buffers[t].type for t in func.params}
    storage = {t: aligned(types[t].layout.size(t.shape), to_numpy(t.dtype)) for t in func.params}
    for t in func.inputs:
        storage[t][:] = types[t].layout.pack(np.asarray(arrays[t.name]).reshape(t.shape)).reshape(-1)
    kernel(*storage.values())
    made = [types[t].layout.unpack(storage[t], t.shape) for t in func.outputs]
    for t, logical in zip(func.outputs, made, strict=True):
        if types[t].layout.has_halo or types[t].layout.has_tail(t.shape):
            np.testing.assert_array_equal(types[t].layout.pack(logical).reshape(-1), storage[t],
                                          err_msg="halo or tail written")
    return made


def expected(body: Graph, arrays: Arrays) -> list[np.ndarray]:
    with np.errstate(all="ignore"):
        made = interpret(body, arrays)
    return [made[o] for o in body.outputs]


def _by_position(body: Graph, arrays: Arrays) -> Arrays:
    return {f"x{n}": np.asarray(arrays[name]) for n, name in enumerate(body.inputs)}


def close(got: np.ndarray, want: np.ndarray, rtol: float, atol: float | np.ndarray, what: str) -> None:
    """Equal shapes, dtypes and NaN; values within |got - want| <= atol + rtol*|want|; both 0: equal, zeros' signs too."""
    assert (got.shape, from_numpy(got.dtype)) == (want.shape, from_numpy(want.dtype)), what
    if rtol == 0 and np.all(atol == 0):
        wide = np.float64 if want.dtype.kind in "fV" else want.dtype
        np.testing.assert_array_equal(got.astype(wide), want.astype(wide), err_msg=what)
        if want.dtype.kind == "f":
            np.testing.assert_array_equal(np.signbit(got[want == 0]), np.signbit(want[want == 0]),
                                          err_msg=f"{what}: sign of 0")
        return
    if isinstance(atol, np.ndarray):
        share = np.abs(got.astype(np.float64) - want) / (atol + rtol * np.abs(want.astype(np.float64)))
        worst = np.unravel_index(share.argmax(), want.shape)
        assert share.max() <= 1, f"{what}: {share.max():.3g} times as far as allowed, at {worst}"
        return
    np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=rtol, atol=atol, err_msg=what)


def agree(
    body: Graph, arrays: Arrays, rtol: float = 0.0, atol: float | np.ndarray = 0.0, target: Target = HOST,
) -> None:
    """Definition and compiled kernel give what the graph interpreter gives. atol: of all elements, or of each."""
    want = expected(body, arrays)
    for what, made in (("definition", defined(body, arrays)), ("kernel", compiled(body, arrays, target))):
        assert len(made) == len(want)
        for n, (got, right) in enumerate(zip(made, want, strict=True)):
            close(got, right, rtol, atol, f"{what}, output {n}")


def with_types(graph: Graph, types: Mapping[str, TensorType]) -> Graph:
    return Graph(graph.name, graph.nodes, graph.inputs, graph.outputs, {**graph.types, **types}, graph.params)
