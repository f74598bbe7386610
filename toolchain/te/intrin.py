"""Hardware instructions, declared by their meaning: a te.compute over fragments, and the scopes the fragments live in.

    A, W = te.placeholder((8, 8), "int8", name="a"), te.placeholder((8, 8), "int8", name="w")
    k = te.reduce_axis(8, "k")
    acc = te.compute((8, 8), lambda i, j: te.sum(A[i, k].astype("int32") * W[j, k].astype("int32"), axis=k), name="acc")
    gemm8x8 = te.intrin("gemm8x8", acc, scopes={A: "vta.inp", W: "vta.wgt", acc: "vta.acc"})

`tensorize` matches the meaning, the interpreter executes it, a backend encodes it. In the loop IR it is
`Evaluate(Call("gemm8x8", (acc[...], a[...], w[...])))`: each Load names the first element of a dense fragment. A reduction
accumulates onto what the output fragment holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from toolchain.core.errors import ScheduleError
from toolchain.te.create import create_func
from toolchain.te.loop_ir import Block, For, If, PrimFunc, Stmt, Update
from toolchain.te.tensor import Compute, Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Intrin:
    """An instruction: its name in the loop IR, its meaning `output`, the scope of each fragment (missing: any).

    setup: the state it needs before the kernel runs ("amx.tileconfig"), collected once per task. needs: target features.
    between: what it has in between, of the same operands, and the type which has to hold that: where it does not, the
    instruction means something else. A schedule takes it where that is known not to happen; the interpreter looks.
    """

    name: str
    output: Tensor
    scopes: Mapping[Tensor, str] = field(default_factory=dict)
    setup: str = ""
    needs: frozenset[str] = frozenset()
    between: tuple[Tensor, str] | None = None

    @property
    def definition(self) -> Compute:
        assert isinstance(self.output.op, Compute)
        return self.output.op

    @property
    def operands(self) -> tuple[Tensor, ...]:
        """The output, then the inputs in the order the meaning reads them: the order of the call's arguments."""
        return (self.output, *self.definition.input_tensors)

    def __repr__(self) -> str:
        return self.name

    def function(self) -> PrimFunc:
        """The meaning as a loop nest that continues from what the output holds."""
        func = create_func(self.output, self.name)
        return PrimFunc(func.name, func.params, _continued(func.body), func.buffers, func.stages)


def intrin(
    name: str,
    output: Tensor,
    scopes: Mapping[Tensor, str] | None = None,
    setup: str = "",
    needs: frozenset[str] = frozenset(),
    between: tuple[Tensor, str] | None = None,
) -> Intrin:
    """Declare an instruction. Raises ScheduleError: an output that is not computed, or from more than placeholders."""
    if not isinstance(output.op, Compute):
        raise ScheduleError(f"intrin {name}: {output.name} is not computed")
    if len(output.op.values) > 1:
        raise ScheduleError(f"intrin {name}: {output.name} is one of several results", fix="an instruction has one output")
    if stages := [t.name for t in output.op.input_tensors if isinstance(t.op, Compute)]:
        raise ScheduleError(f"intrin {name}: its meaning has more than one stage ({', '.join(stages)})")
    return Intrin(name, output, dict(scopes or {}), setup, needs, between)


def _continued(stmt: Stmt) -> Stmt:
    match stmt:
        case Update():
            return replace(stmt, init=None)
        case For(var, body):
            return For(var, _continued(body))
        case If(condition, body):
            return If(condition, _continued(body))
        case Block(stmts):
            return Block(tuple(_continued(s) for s in stmts))
    return stmt
