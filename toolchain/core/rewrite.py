"""One generic bottom-up rewriter for every tree of frozen dataclasses (te expressions and the loop IR).

A node class takes part by deriving from `Node`. "Nothing changed" returns the same object, so callers compare with `is`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cache
from operator import is_not
from typing import Any, TypeVar


class Node:
    """Base of all rewritable nodes. Fields that hold Nodes, or tuples of Nodes, are its children."""

    __slots__ = ()


N = TypeVar("N", bound=Node)


PLAIN = ("str", "int", "bool", "float | int | bool", "tuple[int, ...]", "ForKind")      # annotations that hold no Node


@cache
def _field_names(kind: Any) -> tuple[str, ...]:
    """The fields that may hold Nodes. (Annotations are strings in every module that defines nodes.)"""
    return tuple(f.name for f in fields(kind) if f.type not in PLAIN)


@cache
def _all_field_names(kind: Any) -> tuple[str, ...]:
    return tuple(f.name for f in fields(kind))


def children(node: Node) -> Iterator[Node]:
    """The direct children, in field order."""
    kind: Any = type(node)
    for name in _field_names(kind):
        value = getattr(node, name)
        if isinstance(value, Node):
            yield value
        elif isinstance(value, tuple):
            yield from (c for c in value if isinstance(c, Node))


def walk(node: Node) -> Iterator[Node]:
    """`node` and everything below it, parents first."""
    stack = [node]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(reversed(tuple(children(node))))


def map_children(node: N, fn: Callable[[Any], Any]) -> N:
    """Rebuild `node` with `fn` applied to each child; `node` itself when no child changed."""
    kind: Any = type(node)
    changed: dict[str, Any] = {}
    for name in _field_names(kind):
        old = getattr(node, name)
        if isinstance(old, Node):
            new = fn(old)
            if new is not old:
                changed[name] = new
        elif isinstance(old, tuple) and old:
            mapped = [fn(c) if isinstance(c, Node) else c for c in old]
            if any(map(is_not, mapped, old)):
                changed[name] = tuple(mapped)
    if not changed:
        return node
    values = [changed[f] if f in changed else getattr(node, f) for f in _all_field_names(kind)]
    return kind(*values)  # type: ignore[no-any-return]


def rewrite(node: N, rule: Callable[[Any], Any]) -> Any:
    """Bottom-up: children first, then `rule`. A rule returns None to leave the node as it is."""
    rebuilt = map_children(node, lambda child: rewrite(child, rule))
    new = rule(rebuilt)
    return rebuilt if new is None else new
