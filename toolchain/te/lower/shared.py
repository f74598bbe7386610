"""Rewriting and questions for expressions that share parts: lowering makes DAGs (`r` of a polynomial is used at each step).

A plain `core.rewrite` would visit a shared part once per use and break the sharing; these visit each node once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from toolchain.core.errors import CodegenError
from toolchain.core.rewrite import Node, children, map_children, walk_shared
from toolchain.te.expr import (
    TRUE,
    Bin,
    Broadcast,
    Dynamic,
    Expr,
    FloorDiv,
    FloorMod,
    Index,
    Ramp,
    Var,
    binary,
    index,
    variables,
)


def rewrite_shared(node: Any, rule: Callable[[Any], Any]) -> Any:
    """Bottom-up like `core.rewrite`, values inside dynamic indices too; each distinct node is rebuilt once."""
    memo: dict[int, tuple[Any, Any]] = {}        # the old node is kept alive, so that its id stays its own

    def visit(n: Any) -> Any:
        if isinstance(n, Index):
            return map_dynamic(n, visit)
        if (known := memo.get(id(n))) is not None:
            return known[1]
        rebuilt = map_children(n, visit)
        new = rule(rebuilt)
        result = rebuilt if new is None else new
        memo[id(n)] = (n, result)
        return result

    return visit(node)


def map_dynamic(idx: Index, fn: Callable[[Expr], Expr]) -> Index:
    """Apply `fn` to every value an index reads at run time; the same index when there is none."""
    if not any(_has_dynamic(atom) for atom, _ in idx.terms):
        return idx
    result: Expr = Index((), idx.constant)
    for atom, c in idx.terms:
        match atom:
            case Dynamic(value, low, high):
                new: Expr = index(fn(value), low, high)
            case FloorDiv(inner, k):
                new = map_dynamic(inner, fn) // k
            case FloorMod(inner, k):
                new = map_dynamic(inner, fn) % k
            case _:
                new = index(atom)
        result = result + new * c
    return index(result)


def _has_dynamic(atom: Any) -> bool:
    match atom:
        case Dynamic():
            return True
        case FloorDiv(inner, _) | FloorMod(inner, _):
            return any(_has_dynamic(a) for a, _ in inner.terms)
    return False


def dynamic_values(idx: Index) -> Iterator[Expr]:
    """The values an index reads at run time."""
    for atom, _ in idx.terms:
        match atom:
            case Dynamic(value):
                yield value
            case FloorDiv(inner, _) | FloorMod(inner, _):
                yield from dynamic_values(inner)


def nodes(root: Node) -> Iterator[Node]:
    """Every distinct node below (and with) `root`, parents first, values inside dynamic indices too."""
    return walk_shared(root, below)


def below(node: Node) -> tuple[Node, ...]:
    """The children of a node; of an index, the values it reads at run time."""
    if isinstance(node, Index):
        return tuple(dynamic_values(node)) if node.terms else ()
    return children(node)


def depends_on(node: Node, var: Var) -> bool:
    """Whether `var` occurs in a statement or expression."""
    return any(n is var or (isinstance(n, Index) and var in n.vars()) for n in nodes(node))


def without(condition: Expr, dropped: set[Var]) -> Expr:
    """The parts of a conjunction that depend on none of these loops."""
    match condition:
        case Bin("and", a, b):
            return binary("and", without(a, dropped), without(b, dropped))
    return TRUE if variables(condition) & dropped else condition


class Lanes:
    """How many lanes expressions have (0: a scalar); remembers every answer, so asking is cheap."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Expr, int]] = {}

    def __call__(self, expr: Expr) -> int:
        if (known := self._known.get(id(expr))) is not None:
            return known[1]
        lanes = self._count(expr)
        self._known[id(expr)] = (expr, lanes)
        return lanes

    def _count(self, expr: Expr) -> int:
        match expr:
            case Ramp(lanes=lanes) | Broadcast(lanes=lanes):
                return lanes
            case Index() | Var():
                return 0
        if getattr(expr, "name", "").startswith("reduce_"):     # the horizontal reductions: lanes in, a scalar out
            return 0
        found = {n for child in children(expr) if isinstance(child, Expr) and (n := self(child))}
        if len(found) > 1:
            raise CodegenError(f"one expression mixes {sorted(found)} lanes")
        return found.pop() if found else 0


__all__ = ["Lanes", "below", "depends_on", "dynamic_values", "map_dynamic", "nodes", "rewrite_shared", "without"]
