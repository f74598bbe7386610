"""The loop IR: what schedules rewrite, lowering passes refine, backends print. One IR for every target.

    Stmt   For(var, kind, body, thread)   Block(stmts)   If(condition, body)   Evaluate(call)
           Store(tensor, index, value, mask)                   Together(stores)     all values before the first store
           Update(tensors, index, combiner, value, init)       a reduction step whose initialisation is still pending

Statements name `Tensor`s; where and how a tensor is stored stands beside them in `PrimFunc.buffers`. A loop runs from 0 to
`var.extent`; a loop is a reduction loop because its variable is absent from the destination of the Update inside it.

Invariants (checked by `lower.verify`): loop variables are unique within a PrimFunc and used only inside their loop; every
tensor has a buffer; `Update` is gone after `place_init`, logical indices after `flatten_buffers`, vectorized loops after
`vectorize_loops`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from toolchain.core.layout import TensorType
from toolchain.core.rewrite import Node
from toolchain.te.combiner import Combiner
from toolchain.te.expr import Call, Expr, Index, Load, Var, distinct, parts, variables
from toolchain.te.tensor import Compute, Tensor


class ForKind(StrEnum):
    SERIAL = "serial"
    PARALLEL = "parallel"          # split among the lanes of the thread pool; at most one per root nest
    VECTORIZED = "vectorized"      # becomes lanes
    UNROLLED = "unrolled"          # stays rolled in the IR; the emitter repeats the body
    THREAD_BINDING = "thread"      # a GPU index, named by For.thread: "blockIdx.x", "threadIdx.y", ...
    VTHREAD = "vthread"            # a virtual thread (latency hiding); copies are interleaved by inject_vthread


class Stmt(Node):
    """Base of all statements."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, eq=False)
class For(Stmt):
    """`for var in range(var.extent)`; `thread` names the hardware index of a THREAD_BINDING loop."""

    var: Var
    body: Stmt
    kind: ForKind = ForKind.SERIAL
    thread: str = ""
    pragmas: tuple[tuple[str, Any], ...] = ()

    @property
    def extent(self) -> int:
        return self.var.extent


@dataclass(frozen=True, slots=True, eq=False)
class Block(Stmt):
    """Statements in order. `block(...)` builds flat ones."""

    stmts: tuple[Stmt, ...]


@dataclass(frozen=True, slots=True, eq=False)
class If(Stmt):
    condition: Expr
    body: Stmt


@dataclass(frozen=True, slots=True, eq=False)
class Store(Stmt):
    """tensor[index] = value, in the lanes where `mask` (None: all)."""

    tensor: Tensor
    index: tuple[Expr, ...]
    value: Expr
    mask: Expr | None = None


    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.tensor,)


@dataclass(frozen=True, slots=True, eq=False)
class Together(Stmt):
    """Stores that happen at once: every value (and mask, and index) is computed before the first of them stores.

    What a tuple reduction becomes: each new value may depend on all old ones. The tensors differ from store to store.
    """

    stores: tuple[Store, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Update(Stmt):
    """tensor[index] = combiner(tensor[index], value), after tensor[index] = init once before the reduction loops around it.

    A combiner of several values updates several tensors at once, all at this index; value and init are Tuples then.
    `place_init` turns it into two Stores; until then reorder and split need no special case for reductions.
    `init` None: the tensor already holds its start value (a later chunk of a split reduction).
    """

    tensors: tuple[Tensor, ...]
    index: tuple[Expr, ...]
    combiner: str | Combiner
    value: Expr
    init: Expr | None

    @property
    def tensor(self) -> Tensor:
        """The first one. Tensors that are reduced together are always stored together: it stands for all of them."""
        return self.tensors[0]


@dataclass(frozen=True, slots=True, eq=False)
class Evaluate(Stmt):
    """A call for its effect: an instruction, a barrier, a prefetch, a dependency token push or pop."""

    call: Call


@dataclass(frozen=True, slots=True)
class Buffer:
    """Where a tensor lives: the type of its storage (shape may be smaller than the tensor's after compute_at) and its scope.

    Scopes: "global" (an argument, or kernel scratch when it is no parameter), "lane" (scratch of one thread-pool lane),
    "local" (registers), "shared", and whatever the Target's scopes name.
    """

    type: TensorType
    scope: str = "global"

    def with_type(self, type: TensorType) -> Buffer:
        return Buffer(type, self.scope)


@dataclass(frozen=True, slots=True, eq=False)
class PrimFunc:
    """One kernel: parameters (inputs, then outputs), loop nest, storage, and the te definitions it was made from.

    `stages` maps each computed tensor to the definition in force, producers first; compute_at regenerates nests from it.
    """

    name: str
    params: tuple[Tensor, ...]
    body: Stmt
    buffers: Mapping[Tensor, Buffer]
    stages: Mapping[Tensor, Compute] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The parameters it computes: those with a definition, else (te.IRBuilder) those it stores to."""
        made = self.stages or {leaf.tensor for leaf in leaves(self.body) if isinstance(leaf, Store)}
        return tuple(t for t in self.params if t in made)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The other parameters."""
        made = self.outputs
        return tuple(t for t in self.params if t not in made)

    def computed_with(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """The tensors that share a stage's definition, itself among them: several when it reduces tuples."""
        return tuple(t for t, d in self.stages.items() if d is self.stages[tensor])


def block(*stmts: Stmt) -> Stmt:
    """A Block without nested or single-statement Blocks."""
    flat: list[Stmt] = []
    for s in stmts:
        flat.extend(s.stmts if isinstance(s, Block) else (s,))
    return flat[0] if len(flat) == 1 else Block(tuple(flat))


def stores(tensors: Sequence[Tensor], at: tuple[Expr, ...], value: Expr) -> Stmt:
    """tensors[at] = value: a Store, or several at once of a Tuple."""
    each = tuple(Store(t, at, v) for t, v in zip(tensors, parts(value), strict=True))
    return each[0] if len(each) == 1 else Together(each)


def statements(stmt: Stmt) -> tuple[Stmt, ...]:
    """The statements in order, whether or not a Block holds them."""
    return stmt.stmts if isinstance(stmt, Block) else (stmt,)


def walk_statements(stmt: Stmt) -> Iterator[Stmt]:
    """`stmt` and every statement below it, outer before inner. Much cheaper than `walk`: it never enters an expression."""
    stack = [stmt]
    while stack:
        stmt = stack.pop()
        yield stmt
        if isinstance(stmt, Block):
            stack.extend(reversed(stmt.stmts))
        elif isinstance(stmt, Together):
            stack.extend(reversed(stmt.stores))
        elif isinstance(stmt, For | If):
            stack.append(stmt.body)


def loops(stmt: Stmt) -> Iterator[For]:
    """Every loop, outer before inner."""
    return (s for s in walk_statements(stmt) if isinstance(s, For))


def leaves(stmt: Stmt) -> Iterator[Store | Update | Evaluate]:
    """Every Store (those of a Together one by one), Update and Evaluate, in order."""
    return (s for s in walk_statements(stmt) if isinstance(s, Store | Update | Evaluate))


def reads(stmt: Stmt | Expr, *tensors: Tensor) -> bool:
    """Whether `stmt` loads from one of `tensors` (an Update's own accumulation does not count)."""
    return any(isinstance(n, Load) and n.tensor in tensors for n in distinct(stmt))


def is_reduction_loop(loop: For, update: Update) -> bool:
    """Whether `loop`, which stands around `update`, is one of the loops that the update reduces over.

    Its variable is absent from the destination. Two kinds of loop look like that and are none: a loop of extent 1 (it
    occurs in no index), and a loop in which somebody reads the finished value (the stage was moved there by compute_at and
    starts anew in each iteration).
    """
    return (
        loop.extent > 1
        and loop.kind not in (ForKind.THREAD_BINDING, ForKind.VTHREAD)
        and not any(loop.var in variables(i) for i in update.index)
        and not reads(loop.body, *update.tensors)
    )


__all__ = [
    "Block", "Buffer", "Evaluate", "For", "ForKind", "If", "Index", "PrimFunc", "Stmt", "Store", "Together", "Update",
    "block", "is_reduction_loop", "leaves", "loops", "reads", "statements", "stores", "walk_statements",
]
