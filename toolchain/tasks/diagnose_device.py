"""Find the first kernel of an artifact that computes something else on a device: each runs there alone, on the values that
the graph interpreter makes of the network, and is compared with what the interpreter makes of them.

    for each fused node, in order:     its kernel, made again as the artifact's was, in a library whose one run calls it
    the first that differs             a Finding, as `diagnose` makes one here

What only shows in the whole artifact (memory that one kernel spoils for another) is not found this way.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from toolchain.core.dtype import to_numpy
from toolchain.core.errors import CodegenError, DeviceError
from toolchain.core.layout import TensorType
from toolchain.core.target import Target
from toolchain.graph.infer import where
from toolchain.graph.interpret import evaluate
from toolchain.graph.ir import Graph, Node
from toolchain.remote.board import LostError
from toolchain.remote.model import RemoteModel
from toolchain.remote.session import Session
from toolchain.targets.llvm.format import weights_header
from toolchain.targets.llvm.link import cached_runtime_object
from toolchain.tasks.boards import RUN_LIMIT_S
from toolchain.tasks.compile import compile_workload
from toolchain.tasks.diagnose import Finding, differs
from toolchain.tasks.optimize import workload_of
from toolchain.tasks.plan import answers_of
from toolchain.tasks.tuning.boards import EMPTY, candidate_library
from toolchain.tasks.tuning.trial_run import Workload

SLOT = 1                        # beside the artifact, which has the first one
LIBRARY, WEIGHTS = "kernel.so", "none.bin"


def first_wrong_kernel(
    session: Session, graph: Graph, target: Target, schedules: Mapping[str, str], inputs: Mapping[str, np.ndarray],
) -> Finding | None:
    """graph: the optimized one; schedules: tuned answers by kernel, as the artifact states them. None: every kernel alone is
    right there. Bodies of control flow are not looked into."""
    session.upload(WEIGHTS, weights_header(EMPTY, 0))
    values: dict[str, np.ndarray] = {**graph.params, **inputs}
    for node in graph.nodes:
        made = evaluate(node, [values[i] if i else None for i in node.inputs])
        expected = {name: array for name, array in zip(node.outputs, made, strict=True) if name}
        if node.op == "Fused" and (found := _judged(session, node, graph, target, schedules, values, expected)) is not None:
            return found
        values.update(expected)
    return None


def _judged(
    session: Session, node: Node, graph: Graph, target: Target, schedules: Mapping[str, str],
    values: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray],
) -> Finding | None:
    """What one kernel does wrong there."""
    read = {i: values[i] for i in node.inputs if i}

    def found(what: str, got: Mapping[str, np.ndarray]) -> Finding:
        return Finding(node, f"{where(node)}: on {session.board.name!r} {what}", read, got, expected)
    try:
        got = _run_there(session, node, graph, target, schedules.get(node.attrs["kernel"], ""), read)
    except LostError:
        raise
    except (DeviceError, CodegenError) as error:
        return found(f"it does not run: {error.what}", {})
    for name, array in expected.items():
        if what := differs(node, name, got[name], array):
            return found(what, got)
    return None


def _run_there(
    session: Session, node: Node, graph: Graph, target: Target, schedule: str, read: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """What a node's kernel makes of these values, on the device. Raises DeviceError, CodegenError."""
    kernel, _ = compile_workload(workload_of(node.attrs["body"]).body, target, answers_of(schedule))
    names, outputs = [i for i in node.inputs if i], [o for o in node.outputs if o]
    stored = [_packed(graph.types[name], read[name]) for name in names]
    room = [np.zeros(graph.types[o].layout.size(graph.types[o].shape), to_numpy(graph.types[o].dtype)) for o in outputs]
    types = tuple(graph.types[name] for name in (*names, *outputs))
    workload = Workload(types, len(names), ((*stored, *room),), ())
    library = candidate_library(kernel, workload, target, cached_runtime_object(target).read_bytes())
    session.upload(LIBRARY, library)
    with RemoteModel(session, SLOT, LIBRARY, WEIGHTS, threads=1) as model:
        model.set_inputs([a.tobytes() or b"\0" for a in {id(a): a for a in stored}.values()])
        model.run(RUN_LIMIT_S)
        found = {}
        for n, name in enumerate(outputs):
            t, (_, data) = graph.types[name], model.output(n)
            storage = np.frombuffer(data, to_numpy(t.dtype), room[n].size)
            found[name] = np.array(t.layout.unpack(storage, t.shape))
    return found


def _packed(t: TensorType, array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(t.layout.pack(array.reshape(t.shape)).reshape(-1))


__all__ = ["first_wrong_kernel"]
