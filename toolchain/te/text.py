"""The one text form of expressions, statements and functions: dumps, golden tests, errors and kernel digests use it.

    matmul(A: float32[64, 64], B: float32[64, 64]) -> (C: float32[64, 64]):
      C_local: float32[4, 16] in local
      for i_0 in parallel(16):
        for j_0 in range(4):
          ...
              C_local[i, j] += A[4*i_0 + i, k]*B[k, 16*j_0 + j]  init 0.0

A combiner of a user's stands in the head, `argmax((lhs0, lhs1), (rhs0, rhs1)) = (select(...), ...)`, an Update of tuples is
`(V[i], P[i]) = argmax((V[i], P[i]), (A[i, k], k))  init (-inf, -1)`, stores at once `(V[i], P[i]) = (..., ...)`.
Two functions that differ in meaning differ in text: constants other than float32, int64 and bool carry their type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from toolchain.te.combiner import Combiner, Operand
from toolchain.te.expr import (
    COMBINERS,
    Bin,
    Broadcast,
    Call,
    Cast,
    Compare,
    Const,
    Dynamic,
    Expr,
    FloorDiv,
    FloorMod,
    Index,
    Load,
    Ramp,
    Reduce,
    Select,
    Tuple,
    Var,
)
from toolchain.te.loop_ir import Block, Evaluate, For, ForKind, If, PrimFunc, Stmt, Store, Together, Update, walk_statements

PRECEDENCE = {
    "or": 1, "and": 2, "<": 3, "<=": 3, ">": 3, ">=": 3, "==": 3, "!=": 3, "xor": 4, "<<": 5, ">>": 5, "+": 6, "-": 6,
    "*": 7, "/": 7, "//": 7, "%": 7,
}
ATOM, PRODUCT, SUM, COMPARISON = 9, 7, 6, 3
UPDATES = {"sum": "+=", "prod": "*="}


def to_text(node: PrimFunc | Stmt | Expr) -> str:
    """The text of a function, a statement or an expression."""
    match node:
        case PrimFunc():
            return "\n".join(_func(node)) + "\n"
        case Stmt():
            return "\n".join(_stmt(node)) + "\n"
        case Expr():
            return _expr(node)[0]
    raise TypeError(f"no text form for {type(node).__name__}")


def _func(func: PrimFunc) -> Iterator[str]:
    types = func.attrs.get("types", {})

    def typed(tensor: object) -> str:
        return f"{tensor.name}: {types.get(tensor.name, func.buffers[tensor].type)}"  # type: ignore[attr-defined, index]

    inputs = ", ".join(typed(t) for t in func.inputs)
    outputs = ", ".join(typed(t) for t in func.outputs)
    yield f"{func.name}({inputs}) -> ({outputs}):"
    for tensor, buffer in func.buffers.items():
        if tensor not in func.params:
            yield f"  {tensor.name}: {buffer.type} in {buffer.scope}"
    for key, value in func.attrs.items():
        if key != "types":
            yield f"  {key} = {', '.join(value) if isinstance(value, Mapping | tuple) else value}"
    for combiner in _combiners(func.body):
        yield f"  {_definition(combiner)}"
    for line in _stmt(func.body):
        yield "  " + line


def _combiners(stmt: Stmt) -> tuple[Combiner, ...]:
    """Those a user defined, each once, in order of use."""
    return tuple(dict.fromkeys(
        s.combiner for s in walk_statements(stmt) if isinstance(s, Update) and isinstance(s.combiner, Combiner)
    ))


def _definition(combiner: Combiner) -> str:
    lhs, rhs, results = (_tuple([to_text(e) for e in side]) for side in (combiner.lhs, combiner.rhs, combiner.results))
    kinds = _tuple([o.dtype for o in combiner.lhs])
    return f"{combiner.name}({lhs}, {rhs}): {kinds} = {results}"


def _tuple(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"({', '.join(items)})"


def _stmt(stmt: Stmt) -> Iterator[str]:
    match stmt:
        case For():
            yield f"for {stmt.var.name} in {_loop_kind(stmt)}:"
            yield from _indented(stmt.body)
        case If(condition, body):
            yield f"if {to_text(condition)}:"
            yield from _indented(body)
        case Block(stmts):
            for s in stmts:
                yield from _stmt(s)
            if not stmts:
                yield "pass"
        case Store(tensor, at, value, mask):
            where = "" if mask is None else f"  where {to_text(mask)}"
            yield f"{_access(tensor.name, at)} = {to_text(value)}{where}"
        case Together(stores):
            targets, values = (_tuple(side) for side in (
                [_access(s.tensor.name, s.index) for s in stores], [to_text(s.value) for s in stores]))
            masks = ["true" if s.mask is None else to_text(s.mask) for s in stores]
            where = masks[0] if len(set(masks)) == 1 else _tuple(masks)
            yield f"{targets} = {values}" + ("" if where == "true" else f"  where {where}")
        case Update(tensors, at, combiner, value, init):
            target = _tuple([_access(t.name, at) for t in tensors])
            start = "" if init is None else f"  init {to_text(init)}"
            if isinstance(combiner, str) and combiner in UPDATES:
                yield f"{target} {UPDATES[combiner]} {to_text(value)}{start}"
            else:
                name = COMBINERS[combiner] if isinstance(combiner, str) else combiner.name
                yield f"{target} = {name}({target}, {to_text(value)}){start}"
        case Evaluate(call):
            yield to_text(call)
        case _:
            raise TypeError(f"no text form for {type(stmt).__name__}")


def _indented(stmt: Stmt) -> Iterator[str]:
    for line in _stmt(stmt):
        yield "  " + line


def _loop_kind(loop: For) -> str:
    kind = {ForKind.SERIAL: "range", ForKind.THREAD_BINDING: loop.thread}.get(loop.kind, str(loop.kind))
    pragmas = "".join(f" pragma {key}={value}" for key, value in loop.pragmas)
    return f"{kind}({loop.extent}){pragmas}"


def _access(name: str, at: tuple[Expr, ...]) -> str:
    return f"{name}[{', '.join(to_text(i) for i in at)}]"


def _expr(e: Expr) -> tuple[str, int]:
    """The text and how tightly its outermost operator binds."""
    match e:
        case Var(name):
            return name, ATOM
        case Index():
            return _index(e)
        case Const():
            return _const(e), ATOM
        case Bin(op, a, b):
            if op not in PRECEDENCE:
                return f"{op}({to_text(a)}, {to_text(b)})", ATOM
            level = PRECEDENCE[op]
            tight = "" if op in ("*", "/", "//", "%") else " "
            left, right = _at_least(a, level), _at_least(b, level if op in ("and", "or") else level + 1)
            return f"{left}{tight}{op}{tight}{right}", level
        case Compare(op, index, bound):
            return f"{_index(index)[0]} {op} {bound}", COMPARISON
        case Cast(dtype, value):
            return f"{dtype}({to_text(value)})", ATOM
        case Select(condition, a, b):
            return f"select({to_text(condition)}, {to_text(a)}, {to_text(b)})", ATOM
        case Call(name, args, dtype):
            suffix = "" if not args or args[0].dtype == dtype else f":{dtype}"
            return f"{name}({', '.join(to_text(a) for a in args)}){suffix}", ATOM
        case Load(tensor, at):
            return _access(tensor.name, at), ATOM
        case Ramp(base, stride, lanes):
            return f"ramp({to_text(base)}, {stride}, {lanes})", ATOM
        case Broadcast(value, lanes):
            return f"broadcast({to_text(value)}, {lanes})", ATOM
        case Reduce(combiner, value, axes, init):
            over = ", ".join(v.name for v in axes)
            called = combiner if isinstance(combiner, str) else combiner.name
            return f"{called}({to_text(value)}, over {over}, init {to_text(init)})", ATOM
        case Tuple(values):
            return _tuple([to_text(v) for v in values]), ATOM
        case Operand(name):
            return name, ATOM
    raise TypeError(f"no text form for {type(e).__name__}")


def _at_least(e: Expr, level: int) -> str:
    text, binds = _expr(e)
    return text if binds >= level else f"({text})"


def _const(e: Const) -> str:
    if e.dtype == "bool":
        return "true" if e.value else "false"
    return repr(e.value) if e.dtype in ("float32", "int64") else f"{e.dtype}({e.value!r})"


def _index(index: Index) -> tuple[str, int]:
    if not index.terms:
        return str(index.constant), ATOM if index.constant >= 0 else SUM
    text, level = "", ATOM
    for atom, c in index.terms:
        piece, binds = _atom(atom)
        if abs(c) != 1:
            piece = f"{abs(c)}*" + (piece if binds >= ATOM else f"({piece})")
            binds = PRODUCT
        if not text:
            text, level = (piece, binds) if c > 0 else (f"-{piece}", SUM)
        else:
            text, level = f"{text} {'+' if c > 0 else '-'} {piece}", SUM
    if index.constant:
        text, level = f"{text} {'+' if index.constant > 0 else '-'} {abs(index.constant)}", SUM
    return text, level


def _atom(atom: Var | FloorDiv | FloorMod | Dynamic) -> tuple[str, int]:
    match atom:
        case Var(name):
            return name, ATOM
        case FloorDiv(index, k):
            return f"{_within_product(index)}//{k}", PRODUCT
        case FloorMod(index, k):
            return f"{_within_product(index)}%{k}", PRODUCT
        case Dynamic(value, low, high):
            return f"index({to_text(value)}, {low}, {high})", ATOM
    raise TypeError(f"no text form for {type(atom).__name__}")


def _within_product(index: Index) -> str:
    text, binds = _index(index)
    return text if binds >= ATOM else f"({text})"
