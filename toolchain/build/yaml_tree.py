"""YAML text -> a tree of nodes that know their line and column, by YAML 1.2 core rules.

PyYAML's own constructors follow YAML 1.1: they read `2:30` as 150, `no` as False, `017` as 15, and let the second of two
equal keys win. So only its event stream is used (libyaml's where it is there), without recursion; scalars are read here.
Refused, each with its place: tags, duplicate keys, nesting deeper than 32, more than 1 MB, aliases that expand to more than
10,000 values or contain themselves, a second document, bytes that are not UTF-8 or not printable.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_NODES = 10_000              # with aliases expanded: stops "billion laughs" before anything is copied
MAX_DIGITS = 40

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# YAML 1.2, section 10.3.2 (core schema)
_NULL = re.compile(r"null|Null|NULL|~|")
_TRUE = re.compile(r"true|True|TRUE")
_FALSE = re.compile(r"false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_CONFLICT = re.compile(r"^(<{7}( |$)|>{7}( |$)|\|{7}( |$)|={7}$)", re.MULTILINE)


class YamlError(Exception):
    """One reason why the text cannot be read; line and column count from 0."""

    def __init__(self, what: str, line: int, column: int, *, length: int = 1, fix: str = "") -> None:
        super().__init__(what)
        self.what, self.line, self.column, self.length, self.fix = what, line, column, length, fix


@dataclass(slots=True)
class Node:
    """A value of the file. `value` is a scalar, a list of Nodes, or a dict of key text -> (key Node, value Node).

    line, column: where it starts, from 0; length: characters to underline. nodes: itself and all below, aliases expanded.
    """

    value: Any
    line: int
    column: int
    length: int = 1
    nodes: int = 1
    plain: str | None = None            # the source text of an unquoted scalar

    def children(self) -> Iterator[Node]:
        if isinstance(self.value, dict):
            yield from (v for _, v in self.value.values())
        elif isinstance(self.value, list):
            yield from self.value

    def to_plain(self) -> Any:
        """dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {k: v.to_plain() for k, (_, v) in self.value.items()}
        if isinstance(self.value, list):
            return [v.to_plain() for v in self.value]
        return self.value

    def find(self, keys: tuple[str | int, ...], *, at_key: bool = False) -> Node:
        """The node at that path, or the deepest one on the way that exists. `at_key`: the last step's key, not its value."""
        node = self
        for n, step in enumerate(keys):
            if isinstance(node.value, dict) and str(step) in node.value:
                pair: tuple[Node, Node] = node.value[str(step)]
                node = pair[1]
                if n == len(keys) - 1 and at_key:
                    return pair[0]
            elif isinstance(node.value, list) and isinstance(step, int) and step < len(node.value):
                node = node.value[step]
            else:
                return node
        return node


@dataclass(slots=True)
class _Open:
    """A collection whose end event has not come yet; `key` waits for its value in a mapping."""

    node: Node
    anchor: str | None
    key: Node | None = None


def parse(data: bytes) -> tuple[Node, list[YamlError]]:
    """The tree of `data`, and the errors that do not stop reading (duplicate keys, tags). Raises YamlError for others."""
    text = decode(data)
    if conflict := _CONFLICT.search(text):
        line = text.count("\n", 0, conflict.start())
        if re.search(r"^<{7}( |$)", text, re.MULTILINE):
            raise YamlError("a merge-conflict marker", line, 0, length=7, fix="resolve the conflict and remove its markers")
    builder = _Builder()
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, text) from None
    except yaml.YAMLError as error:                 # the reader's errors carry no mark
        raise YamlError(str(error).split("\n")[0], 0, 0) from None
    if builder.root is None:
        raise YamlError("the file is empty", 0, 0, fix="`tc init` writes a first one")
    return builder.root, builder.errors


def decode(data: bytes) -> str:
    """UTF-8 text of the file's bytes. Raises YamlError: too long, not UTF-8, or characters YAML does not allow."""
    if len(data) > MAX_BYTES:
        raise YamlError(f"the file has more than {MAX_BYTES:,} bytes", 0, 0)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        good = data[: error.start].decode("utf-8-sig", errors="replace")
        line = good.count("\n")
        column = len(good) - (good.rfind("\n") + 1)
        raise YamlError(f"byte 0x{data[error.start]:02x} is not UTF-8", line, column, fix="save the file as UTF-8") from None
    if bad := _UNPRINTABLE.search(text):
        line = text.count("\n", 0, bad.start())
        column = bad.start() - (text.rfind("\n", 0, bad.start()) + 1)
        raise YamlError(f"character U+{ord(bad.group()):04X} is not allowed in YAML", line, column)
    return text


class _Builder:
    """Turns the event stream into Nodes with a stack of open collections of its own, so that depth is bounded by a check."""

    def __init__(self) -> None:
        self.root: Node | None = None
        self.errors: list[YamlError] = []
        self.open: list[_Open] = []
        self.anchors: dict[str, Node] = {}
        self.unfinished: set[str] = set()
        self.documents = self.events = 0

    def take(self, event: Any) -> None:
        self.events += 1
        if self.events > 3 * MAX_NODES:                 # at most a start and an end per value, and a key beside it
            raise YamlError(f"more than {MAX_NODES:,} values", *_place(event))
        match event:
            case yaml.ScalarEvent():
                self._refuse_tag(event)
                self._add(self._scalar(event), event.anchor)
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self._refuse_tag(event)
                self._push(event)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                closed = self.open.pop()
                self.unfinished.discard(closed.anchor or "")
                closed.node.nodes = 1 + sum(c.nodes for c in closed.node.children())
                self._add(closed.node, closed.anchor)
            case yaml.AliasEvent():
                self._add(self._alias(event), None)
            case yaml.DocumentStartEvent():
                self.documents += 1
                if self.documents > 1:
                    raise YamlError("a second document starts here", *_place(event), length=3, fix="one file, one document")

    def _push(self, event: Any) -> None:
        if len(self.open) >= MAX_DEPTH:
            raise YamlError(f"nested deeper than {MAX_DEPTH} levels", *_place(event))
        value: Any = {} if isinstance(event, yaml.MappingStartEvent) else []
        if event.anchor:
            self.unfinished.add(event.anchor)
        self.open.append(_Open(Node(value, *_place(event)), event.anchor))

    def _add(self, node: Node, anchor: str | None) -> None:
        """Put a finished node where it belongs: the root, an item, a key, or the value of the waiting key."""
        if node.nodes > MAX_NODES:
            raise YamlError(f"more than {MAX_NODES:,} values, aliases expanded", node.line, node.column)
        if anchor:
            self.anchors[anchor] = node
        if not self.open:
            self.root = node
            return
        top = self.open[-1]
        if isinstance(top.node.value, list):
            top.node.value.append(node)
        elif top.key is None:
            top.key = node
        else:
            self._set(top.node.value, top.key, node)
            top.key = None

    def _set(self, mapping: dict[str, tuple[Node, Node]], key: Node, value: Node) -> None:
        if isinstance(key.value, (dict, list)):
            self.errors.append(YamlError("a key must be a word, not a collection", key.line, key.column))
            return
        name = key.plain if key.plain is not None else str(key.value)
        if name in mapping:
            first = mapping[name][0]
            self.errors.append(YamlError(
                f"key '{clip(name)}' stands twice in this mapping (first in line {first.line + 1})", key.line, key.column,
                length=key.length, fix="keep one of the two"))
            return
        mapping[name] = (key, value)

    def _scalar(self, event: Any) -> Node:
        line, column = _place(event)
        one_line = event.end_mark.line == line
        length = max(1, event.end_mark.column - column) if one_line else 1
        if not event.implicit[0] or event.style:            # quoted or block: always a string
            return Node(event.value, line, column, length)
        try:
            return Node(resolve(event.value), line, column, length, plain=event.value)
        except ValueError:
            self.errors.append(YamlError(f"a number of {len(event.value)} digits", line, column, length=length))
            return Node(0, line, column, length, plain=event.value)

    def _alias(self, event: Any) -> Node:
        line, column = _place(event)
        name, length = clip(event.anchor), len(event.anchor) + 1
        if event.anchor in self.unfinished:
            raise YamlError(f"alias *{name} stands inside its own anchor", line, column, length=length)
        if event.anchor not in self.anchors:
            raise YamlError(f"alias *{name} has no anchor before it", line, column, length=length)
        return self.anchors[event.anchor]

    def _refuse_tag(self, event: Any) -> None:
        if event.tag is not None:
            line, column = _place(event)
            self.errors.append(YamlError(f"tag {clip(event.tag)} is not allowed", line, column, fix="remove the tag"))


def resolve(text: str) -> Any:
    """The value of an unquoted scalar by the YAML 1.2 core schema. Raises ValueError for an absurdly long number."""
    if _NULL.fullmatch(text):
        return None
    if _TRUE.fullmatch(text) or _FALSE.fullmatch(text):
        return text[0] in "tT"
    if _FLOAT.fullmatch(text) or _BASED.fullmatch(text):
        if len(text) > MAX_DIGITS:
            raise ValueError(text)
        if _BASED.fullmatch(text):
            return int(text, 0)
        return int(text) if _INT.fullmatch(text) else float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def clip(text: str, limit: int = 60) -> str:
    """A name from the file as it may stand in a message: one line of printable characters, at most `limit` of them."""
    shown = "".join(c if c.isprintable() else "?" for c in text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def _place(event: Any) -> tuple[int, int]:
    return event.start_mark.line, event.start_mark.column


def _syntax_error(error: yaml.MarkedYAMLError, text: str) -> YamlError:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line, mark.column) if mark else (0, 0)
    lines = text.splitlines() or [""]
    if line >= len(lines):                      # libyaml places "unexpected end" after the last line
        line, column = len(lines) - 1, len(lines[-1])
    what = f"not YAML: {error.problem or error.context}"
    fix = ""
    if lines[line][: column + 1].strip(" -").startswith("\t"):
        what, fix = "a tab in the indentation", "YAML indents with spaces only"
    elif "mapping values are not allowed" in what:
        fix = "check the indentation; quote a value that contains ': '"
    elif "expected ',' or" in what:
        fix = "close the bracket that is open here"
    elif "could not find expected ':'" in what:
        fix = "a key needs a colon and a space after it"
    return YamlError(what, line, column, fix=fix)
