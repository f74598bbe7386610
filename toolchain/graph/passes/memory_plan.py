"""The memory plan: where every value of a graph lies while it runs. Made by plan_memory.py, checked by check_memory.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from toolchain.core import dtype as dtypes
from toolchain.core.layout import TensorType
from toolchain.graph.ir import Graph, Node
from toolchain.graph.passes.layout_options import is_elementwise

ALIGN_BYTES = 64            # one cache line, one AVX-512 vector


@dataclass(frozen=True, slots=True)
class Slot:
    """A place: `segment` is "arena", "weights" (offset in bytes), "input" or "output" (offset: which one)."""

    segment: str
    offset: int


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter's place in the weights segment. `body` names the control-flow node whose body it belongs to ("": none)."""

    name: str
    offset: int
    size_bytes: int
    body: str = ""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Static placement of all values of a graph, known at build time.

    `zero` lists (offset, bytes) of the arena to clear once when loading: storage with a halo. `workspace` has, per node (by
    its first output), the arena offsets of the buffers it asked for. `bodies` has the plans of control-flow bodies, by the
    node's first output and the attribute; their arena offsets are absolute (from `arena_base` on), "input" and "output"
    are the body's own.
    """

    slots: Mapping[str, Slot]
    arena_bytes: int
    weights: tuple[Weight, ...] = ()
    weights_bytes: int = 0
    zero: tuple[tuple[int, int], ...] = ()
    workspace: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    bodies: Mapping[tuple[str, str], MemoryPlan] = field(default_factory=dict)
    arena_base: int = 0

    def to_text(self) -> str:
        """One line per value, in the order they are placed."""
        lines = [f"arena {self.arena_bytes} bytes, weights {self.weights_bytes} bytes"]
        lines += [f"  %{name}: {slot.segment} {slot.offset}" for name, slot in self.slots.items()]
        lines += [f"  workspace of %{name}: {', '.join(map(str, offsets))}" for name, offsets in self.workspace.items()]
        lines += [f"  zero {offset} +{size}" for offset, size in self.zero]
        for (name, attr), plan in self.bodies.items():
            lines += [f"  {attr} of %{name}:", *(f"  {line}" for line in plan.to_text().splitlines())]
        return "\n".join(lines) + "\n"


def size_bytes(kind: TensorType) -> int:
    """Bytes of storage, halo and tail included."""
    return kind.layout.size(kind.shape) * dtypes.itemsize(kind.dtype)


def halo_geometry(kind: TensorType) -> tuple[str, tuple[int, ...], tuple[tuple[int, int], ...]]:
    """Where the halo lies: tensors of equal geometry, starting at one place, have it at the same bytes as far as both reach.

    float32[1, 64, 56, 56] NCHW16c+h1 and float32[1, 128, 56, 56] NCHW16c+h1 are planes of (58, 58, 16), 4 and 8 of them.
    """
    layout = kind.layout
    extents = layout.physical_shape(kind.shape)
    halos = [layout.halo[d] if block == 0 else (0, 0) for d, block in layout.dims]
    first = next((n for n, halo in enumerate(halos) if any(halo)), len(halos))
    return kind.dtype, extents[first:], tuple(halos[first:])


def aligned(size: int) -> int:
    return -(-size // ALIGN_BYTES) * ALIGN_BYTES


def overwritable(node: Node, graph: Graph) -> Iterator[str]:
    """The operands whose storage the (one) output may take: element i of the output depends on element i of them only.

    A body of elementwise operators only, an operand of the output's very shape, dtype and layout, read by such operators in
    full. Convolutions with an elementwise epilogue are not among them: partial sums may lie in the output.
    """
    if len(node.outputs) != 1:
        return
    members = node.attrs["body"].nodes if node.op == "Fused" else (node,)
    if not all(map(is_elementwise, members)):
        return
    kind = graph.types[node.output]
    for name in dict.fromkeys(node.inputs):
        if name and graph.types[name] == kind:
            yield name
