"""verify: the invariants of the loop IR at each stage of lowering (loop_ir.py lists them). Always on: one cheap walk."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from toolchain.core.errors import CodegenError
from toolchain.core.rewrite import Node
from toolchain.te.combiner import Combiner, Operand
from toolchain.te.expr import Broadcast, Expr, Index, Load, Ramp, Reduce, Tuple, Var, parts, variables
from toolchain.te.loop_ir import (
    Block,
    Evaluate,
    For,
    ForKind,
    If,
    PrimFunc,
    Stmt,
    Store,
    Together,
    Update,
    is_reduction_loop,
    leaves,
)
from toolchain.te.lower.shared import below
from toolchain.te.tensor import Tensor


def verify(func: PrimFunc, done: Collection[str] = ()) -> None:
    """Check `func` after the passes named in `done`. Raises CodegenError naming kernel, passes and tensor."""
    _Verifier(func, frozenset(done)).stmt(func.body, ())


class _Verifier:
    def __init__(self, func: PrimFunc, done: frozenset[str]) -> None:
        self.func, self.done = func, done
        self.names: set[str] = set()
        self.seen: dict[tuple[Var, ...], set[int]] = {}             # by scope: the nodes looked at

    def fail(self, what: str, fix: str = "") -> None:
        after = f" after {list(self.done)}" if self.done else ""
        raise CodegenError(what, where=f"kernel {self.func.name}{after}", fix=fix)

    def stmt(self, stmt: Stmt, scope: tuple[Var, ...]) -> None:
        match stmt:
            case Block(stmts):
                for s in stmts:
                    self.stmt(s, scope)
            case For(var, body, kind):
                if var.name in self.names:
                    self.fail(f"loop variable {var.name} is not unique")
                if kind is ForKind.VECTORIZED and "vectorize_loops" in self.done:
                    self.fail(f"vectorized loop {var.name} is left")
                self.names.add(var.name)
                if not self.done:
                    self.independent(stmt)
                self.stmt(body, (*scope, var))
            case If(condition, body):
                self.expr(condition, scope)
                self.stmt(body, scope)
            case Update(tensors, idx, combiner, value, init):
                if "place_init" in self.done:
                    self.fail(f"Update of {tensors[0].name} is left")
                for values in (value, *(() if init is None else (init,))):
                    self.reduced(tensors, combiner, values, scope)
                for e in idx:
                    self.expr(e, scope)
                for tensor in tensors:
                    self.access(tensor, idx)
            case Together(stores):
                if len({s.tensor for s in stores}) < len(stores):
                    self.fail(f"{stores[0].tensor.name} is stored twice at once")
                for s in stores:
                    self.stmt(s, scope)
            case Store(tensor, idx, value, mask):
                if value.dtype != tensor.dtype:
                    self.fail(f"{value.dtype} stored to {tensor.name}, which is {tensor.dtype}")
                for e in (*idx, value, *(() if mask is None else (mask,))):
                    self.expr(e, scope)
                self.access(tensor, idx)
            case Evaluate(call):
                self.expr(call, scope)

    def reduced(self, tensors: tuple[Tensor, ...], combiner: str | Combiner, value: Expr, scope: tuple[Var, ...]) -> None:
        """An Update's values, or what it starts from: one per tensor and operand, of the same type."""
        kinds = [t.dtype for t in tensors]
        wanted = kinds if isinstance(combiner, str) else [o.dtype for o in combiner.lhs]
        if [v.dtype for v in parts(value)] != kinds or kinds != wanted:
            self.fail(f"{value.dtype} reduced into {', '.join(map(repr, tensors))}")
        for v in parts(value):
            self.expr(v, scope)

    def independent(self, loop: For) -> None:
        """Iterations of a parallel loop share no place they store to; lanes share none but that of a reduction over them."""
        if loop.extent == 1 or loop.kind not in (ForKind.PARALLEL, ForKind.VECTORIZED):
            return
        for leaf in leaves(loop.body):
            if isinstance(leaf, Evaluate) or any(loop.var in variables(i) for i in leaf.index):
                continue
            name = leaf.tensor.name
            if loop.kind is ForKind.PARALLEL and any(self.func.buffers[t].scope == "global" for t in leaf.tensors):
                self.fail(
                    f"every iteration of parallel loop {loop.var.name} stores to the same place of {name}: a race",
                    f"give {name} the scope lane or local, or compute it outside of {loop.var.name}",
                )
            if loop.kind is ForKind.VECTORIZED and isinstance(leaf, Update) and not is_reduction_loop(loop, leaf):
                self.fail(
                    f"{name} is reduced inside vectorized loop {loop.var.name}, in one place for all lanes",
                    f"compute {name} outside of {loop.var.name} and vectorize its own loop",
                )

    def access(self, tensor: Any, idx: tuple[Expr, ...]) -> None:
        if (buffer := self.func.buffers.get(tensor)) is None:
            self.fail(f"{tensor.name} has no buffer")
        elif len(idx) != len(buffer.type.shape):
            self.fail(f"{tensor.name} has {len(buffer.type.shape)} dimensions, indexed with {len(idx)}")

    def expr(self, expr: Expr, scope: tuple[Var, ...]) -> None:
        """Each distinct node is looked at once per scope, however many statements share it."""
        seen = self.seen.setdefault(scope, set())
        stack: list[Node] = [expr]
        while stack:
            node = stack.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            stack.extend(below(node))
            match node:
                case Index() | Var():
                    if loose := (node.vars() if isinstance(node, Index) else {node}).difference(scope):
                        self.fail(f"{', '.join(sorted(v.name for v in loose))} used outside of its loop")
                case Load(tensor, idx):
                    self.access(tensor, idx)
                case Ramp() | Broadcast() if "vectorize_loops" not in self.done:
                    self.fail("lanes before vectorize_loops")
                case Reduce() | Tuple() | Operand():
                    self.fail(f"a {type(node).__name__} stands inside an expression")


__all__ = ["verify"]
