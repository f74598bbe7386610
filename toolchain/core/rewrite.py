"""One generic bottom-up rewriter for every tree of frozen dataclasses (te expressions and the loop IR).

A node class takes part by deriving from `Node`. "Nothing changed" returns the same object, so callers compare with `is`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cache
from operator import is_not
from typing import Any, NamedTuple, TypeAlias, TypeVar


class Node:
    """Base of all rewritable nodes. Fields that hold Nodes, or tuples of Nodes, are its children."""

    __slots__ = ()


N = TypeVar("N", bound=Node)


PLAIN = frozenset({                                      # annotations that hold no Node
    "str", "int", "bool", "float | int | bool", "tuple[int, ...]", "tuple[tuple[Atom, int], ...]", "ForKind",
})
Rebuild: TypeAlias = Callable[[Any, Callable[[Any], Any]], Any]


class _Field(NamedTuple):
    """A field that may hold Nodes; `holds` says what is known of it: one Node, a tuple of Nodes, or nothing ("any")."""

    name: str
    holds: str


def _child_fields(kind: Any) -> tuple[_Field, ...]:
    """The fields that may hold Nodes. (Annotations are strings in every module that defines nodes.)"""
    return tuple(_Field(f.name, _holds(kind, str(f.type))) for f in fields(kind) if f.type not in PLAIN)


def _holds(kind: Any, annotation: str) -> str:
    several = re.fullmatch(r"tuple\[(\w+), \.\.\.\]", annotation)
    named = vars(sys.modules[kind.__module__]).get(several[1] if several else annotation)
    if not (isinstance(named, type) and issubclass(named, Node)):
        return "any"
    return "many" if several else "one"


def _found(value: Any) -> tuple[Node, ...]:
    """The Nodes in a field of which nothing is known."""
    if isinstance(value, Node):
        return (value,)
    return tuple(c for c in value if isinstance(c, Node)) if isinstance(value, tuple) else ()


def _mapped(value: Any, fn: Callable[[Any], Any]) -> Any:
    """A field with `fn` applied to each Node in it; the same object when none changed."""
    if isinstance(value, Node):
        return fn(value)
    if not isinstance(value, tuple) or not value:
        return value
    new = [fn(c) if isinstance(c, Node) else c for c in value]
    return tuple(new) if any(map(is_not, new, value)) else value


# Walks and rewrites are most of the Python time of a compile, so each class gets functions made for its fields:
#   Select: lambda n: (n.condition, n.a, n.b,)
#   Call:   lambda n: (*n.args,)


@cache
def _reader(kind: Any) -> Callable[[Any], tuple[Node, ...]]:
    spelled = {"one": "n.{}", "many": "*n.{}", "any": "*_found(n.{})"}
    parts = "".join(spelled[f.holds].format(f.name) + ", " for f in _child_fields(kind))
    return eval(f"lambda n: ({parts})", {"_found": _found})  # type: ignore[no-any-return]


@cache
def _rebuilder(kind: Any) -> Rebuild:
    inner = _child_fields(kind)
    if not inner:
        return lambda n, fn: n
    lines = [f"{f.name} = " + (f"fn(n.{f.name})" if f.holds == "one" else f"_mapped(n.{f.name}, fn)") for f in inner]
    same = " and ".join(f"{f.name} is n.{f.name}" for f in inner)
    changed = {f.name for f in inner}
    values = ", ".join(f.name if f.name in changed else f"n.{f.name}" for f in fields(kind))
    body = "\n    ".join([*lines, f"return n if {same} else kind({values})"])
    scope: dict[str, Any] = {"kind": kind, "_mapped": _mapped}
    exec(f"def rebuild(n, fn):\n    {body}", scope)
    return scope["rebuild"]  # type: ignore[no-any-return]


def children(node: Node) -> tuple[Node, ...]:
    """The direct children, in field order."""
    kind: Any = type(node)
    return _reader(kind)(node)


def walk(node: Node) -> Iterator[Node]:
    """`node` and everything below it, parents first."""
    stack = [node]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(children(node)[::-1])


def walk_shared(node: Node, below: Callable[[Any], tuple[Node, ...]] = children) -> Iterator[Node]:
    """As `walk`, but what occurs several times (one object) only once; `below` gives what stands right below a node."""
    seen: set[int] = set()
    stack = [node]
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        stack.extend(below(node)[::-1])


def map_children(node: N, fn: Callable[[Any], Any]) -> N:
    """Rebuild `node` with `fn` applied to each child; `node` itself when no child changed."""
    kind: Any = type(node)
    return _rebuilder(kind)(node, fn)  # type: ignore[no-any-return]


def rewrite(node: N, rule: Callable[[Any], Any]) -> Any:
    """Bottom-up: children first, then `rule`. A rule returns None to leave the node as it is."""
    rebuilt = map_children(node, lambda child: rewrite(child, rule))
    new = rule(rebuilt)
    return rebuilt if new is None else new
