"""One generic bottom-up rewriter for every tree of frozen dataclasses (te expressions and the loop IR).

A node class takes part by deriving from `Node`. "Nothing changed" returns the same object, so callers compare with `is`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import cache
from typing import Any, TypeVar


class Node:
    """Base of all rewritable nodes. Fields that hold Nodes, or tuples of Nodes, are its children."""

    __slots__ = ()


N = TypeVar("N", bound=Node)


@cache
def _field_names(kind: type) -> tuple[str, ...]:
    return tuple(f.name for f in fields(kind))


def children(node: Node) -> Iterator[Node]:
    """The direct children, in field order."""
    for name in _field_names(type(node)):
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
    changed: dict[str, Any] = {}
    for name in _field_names(type(node)):
        old = getattr(node, name)
        if isinstance(old, Node):
            new = fn(old)
        elif isinstance(old, tuple) and old:
            new = tuple(fn(c) if isinstance(c, Node) else c for c in old)
            if all(a is b for a, b in zip(new, old, strict=True)):
                continue
        else:
            continue
        if new is not old:
            changed[name] = new
    return replace(node, **changed) if changed else node  # type: ignore[type-var]


def rewrite(node: N, rule: Callable[[Any], Any]) -> Any:
    """Bottom-up: children first, then `rule`. A rule returns None to leave the node as it is."""
    rebuilt = map_children(node, lambda child: rewrite(child, rule))
    new = rule(rebuilt)
    return rebuilt if new is None else new
