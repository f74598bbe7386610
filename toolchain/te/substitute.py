"""Replacing what stands in expressions and statements: loop variables by indices, loads by other expressions.

An `Index` is a leaf for the generic rewriter of core; here it is entered, and what comes out is canonical again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from toolchain.core.rewrite import map_children
from toolchain.te.expr import (
    Atom,
    Bin,
    Compare,
    Const,
    Dynamic,
    Expr,
    FloorDiv,
    FloorMod,
    Index,
    IndexLike,
    Load,
    Ramp,
    Select,
    Var,
    compare,
    div_mod,
    index,
    logical,
    variables,
)


def substitute_index(idx: Index, mapping: Mapping[Var, IndexLike]) -> Index:
    """Replace variables in an index; the result is canonical again. The same object when nothing is replaced."""
    if not any(_mentions(atom, mapping) for atom, _ in idx.terms):
        return idx
    result: Expr = Index((), idx.constant)
    for atom, c in idx.terms:
        result = result + _substitute_atom(atom, mapping) * c
    return result  # type: ignore[return-value]


def _mentions(atom: Atom, mapping: Mapping[Var, IndexLike]) -> bool:
    match atom:
        case Var():
            return atom in mapping
        case FloorDiv(inner, _) | FloorMod(inner, _):
            return any(_mentions(a, mapping) for a, _ in inner.terms)
        case Dynamic(value):
            return any(v in mapping for v in variables(value))
    raise TypeError(atom)


def _substitute_atom(atom: Atom, mapping: Mapping[Var, IndexLike]) -> Index:
    match atom:
        case Var():
            return index(mapping.get(atom, atom))
        case FloorDiv(inner, k):
            return div_mod(substitute_index(inner, mapping), k)[0]
        case FloorMod(inner, k):
            return div_mod(substitute_index(inner, mapping), k)[1]
        case Dynamic(value, low, high):
            return index(substitute(value, mapping), low, high)
    raise TypeError(atom)


def rebuild(node: Any) -> Any:
    """The smart constructor of a node whose children changed: decides comparisons, drops dead branches. None: nothing to do.

    A rule for `rewrite`, shared by `substitute` and by every pass that narrows ranges.
    """
    match node:
        case Compare(op, idx, bound):
            new = compare(op, idx, bound)
            return None if isinstance(new, Compare) and new.index == idx and new.bound == bound else new
        case Select(Const(value=taken), a, b):
            return a if taken else b
        case Bin("and" | "or" as op, a, b) if a.dtype == "bool" and (isinstance(a, Const) or isinstance(b, Const)):
            return logical(op, a, b)
    return None


def substitute(node: Any, mapping: Mapping[Var, IndexLike]) -> Any:
    """Replace loop variables in an expression or statement and simplify what their new ranges decide.

    A variable standing as a value (not inside an Index) becomes the Index it maps to. Parts that are shared stay shared.
    """
    known: dict[int, Any] = {}

    def rule(n: Any) -> Any:
        match n:
            case Var() if n in mapping:
                return index(mapping[n])
        return rebuild(n)

    def visit(n: Any) -> Any:
        if isinstance(n, Index):
            return substitute_index(n, mapping)
        if isinstance(n, Ramp):
            base = substitute_index(n.base, mapping)
            return n if base is n.base else replace(n, base=base)
        if (new := known.get(id(n))) is None:
            new = known[id(n)] = rewrite_indices(n, visit, rule)
        return new

    return visit(node)


def rewrite_indices(node: Any, visit: Callable[[Any], Any], rule: Callable[[Any], Any]) -> Any:
    """One bottom-up step that treats an Index as a leaf handed to `visit`."""
    rebuilt = map_children(node, visit)
    new = rule(rebuilt)
    return rebuilt if new is None else new


def _is_dynamic(atom: Atom) -> bool:
    """Whether a value loaded at run time is in it, perhaps below divisions."""
    match atom:
        case FloorDiv(inner, _) | FloorMod(inner, _):
            return any(_is_dynamic(a) for a, _ in inner.terms)
    return isinstance(atom, Dynamic)


def rewrite_loads(node: Any, rule: Callable[[Load], Expr | None]) -> Any:
    """Apply `rule` to each Load, also those inside dynamic indices. Parts that are shared stay shared."""
    known: dict[int, Any] = {}

    def dynamic(idx: Index) -> Index:
        if not any(_is_dynamic(a) for a, _ in idx.terms):
            return idx
        result: Expr = Index((), idx.constant)
        for atom, c in idx.terms:
            match atom:
                case Dynamic(value, low, high):
                    part = index(rewrite_loads(value, rule), low, high)
                case FloorDiv(inner, k):
                    part = index(dynamic(inner) // k)
                case FloorMod(inner, k):
                    part = index(dynamic(inner) % k)
                case _:
                    part = Index(((atom, 1),))
            result = result + part * c
        return result  # type: ignore[return-value]

    def visit(n: Any) -> Any:
        if isinstance(n, Index):
            return dynamic(n)
        if (new := known.get(id(n))) is None:
            new = known[id(n)] = rewrite_indices(n, visit, lambda x: rule(x) if isinstance(x, Load) else None)
        return new

    return visit(node)
