"""Arithmetic: scalar values, canonical integer indices, and what Python's operators make of them.

    Index  sum of coefficient * atom + constant;
           atom = Var | FloorDiv(Index, k) | FloorMod(Index, k) | Dynamic(Expr, low, high)

An `Index` is canonical when built: equal indices are equal objects by content, `(16*a + b) // 16` is `a` when 0 <= b < 16,
and a comparison that the ranges decide is already a Const. There is no separate integer simplifier.

One module, because operators make nodes and nodes have the operators.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import gcd
from typing import TypeAlias, Union

from toolchain.core.errors import ScheduleError
from toolchain.core.rewrite import Node, children, walk_shared

IndexLike: TypeAlias = Union["Index", "Var", int]
ExprLike: TypeAlias = Union["Expr", int, float, bool]

COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")


class Expr(Node):
    """Base of all expressions; carries the operators. `dtype` is a field or a property of each class."""

    __slots__ = ()
    dtype: str

    def __add__(self, other: ExprLike) -> Expr:
        return binary("+", self, other)

    def __radd__(self, other: ExprLike) -> Expr:
        return binary("+", other, self)

    def __sub__(self, other: ExprLike) -> Expr:
        return binary("-", self, other)

    def __rsub__(self, other: ExprLike) -> Expr:
        return binary("-", other, self)

    def __mul__(self, other: ExprLike) -> Expr:
        return binary("*", self, other)

    def __rmul__(self, other: ExprLike) -> Expr:
        return binary("*", other, self)

    def __truediv__(self, other: ExprLike) -> Expr:
        return binary("/", self, other)

    def __rtruediv__(self, other: ExprLike) -> Expr:
        return binary("/", other, self)

    def __floordiv__(self, other: ExprLike) -> Expr:
        return binary("//", self, other)

    def __mod__(self, other: ExprLike) -> Expr:
        return binary("%", self, other)

    def __neg__(self) -> Expr:
        return binary("-", 0, self)

    def __lt__(self, other: ExprLike) -> Expr:
        return binary("<", self, other)

    def __le__(self, other: ExprLike) -> Expr:
        return binary("<=", self, other)

    def __gt__(self, other: ExprLike) -> Expr:
        return binary(">", self, other)

    def __ge__(self, other: ExprLike) -> Expr:
        return binary(">=", self, other)

    def equal(self, other: ExprLike) -> Expr:
        """`==` is object identity, as for every node; this builds the comparison."""
        return binary("==", self, other)

    def not_equal(self, other: ExprLike) -> Expr:
        return binary("!=", self, other)

    def __and__(self, other: ExprLike) -> Expr:
        return binary("and", self, other)

    def __or__(self, other: ExprLike) -> Expr:
        return binary("or", self, other)

    def astype(self, dtype: str) -> Expr:
        return cast(dtype, self)


@dataclass(frozen=True, slots=True, eq=False)
class Var(Expr):
    """A loop variable: an integer in [0, extent). Compared by identity; names are unique within one PrimFunc."""

    name: str
    extent: int

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return "int64"


@dataclass(frozen=True, slots=True)
class FloorDiv(Node):
    """index // divisor, an atom of an Index."""

    index: Index
    divisor: int


@dataclass(frozen=True, slots=True)
class FloorMod(Node):
    """index % divisor, an atom of an Index; in [0, divisor)."""

    index: Index
    divisor: int


@dataclass(frozen=True, slots=True)
class Dynamic(Node):
    """An integer only known at run time (an index loaded from a tensor), promised to lie in [low, high]."""

    value: Expr
    low: int
    high: int


Atom: TypeAlias = Var | FloorDiv | FloorMod | Dynamic


@dataclass(frozen=True, slots=True)
class Index(Expr):
    """sum(coefficient * atom) + constant. `terms` is a tuple of (atom, coefficient), no atom twice, no coefficient zero.

    Terms keep the order in which they were first added, except that equal sums compare and hash equal in any order.
    """

    terms: tuple[tuple[Atom, int], ...] = ()
    constant: int = 0

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return "int64"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Index) and self.constant == other.constant and (
            self.terms == other.terms or (len(self.terms) == len(other.terms) and set(self.terms) == set(other.terms))
        )

    def __hash__(self) -> int:
        return hash((frozenset(self.terms), self.constant))

    @property
    def is_constant(self) -> bool:
        return not self.terms

    def coefficient(self, atom: Atom) -> int:
        return next((c for a, c in self.terms if a == atom), 0)

    def range(self) -> tuple[int, int]:
        """The smallest and largest value (inclusive), from the ranges of the atoms."""
        low = high = self.constant
        for atom, c in self.terms:
            a, b = _atom_range(atom)
            low, high = (low + c * a, high + c * b) if c > 0 else (low + c * b, high + c * a)
        return low, high

    def vars(self) -> set[Var]:
        """Every loop variable it depends on, through divisions and dynamic values too."""
        found: set[Var] = set()
        for atom, _ in self.terms:
            match atom:
                case Var():
                    found.add(atom)
                case FloorDiv(inner, _) | FloorMod(inner, _):
                    found |= inner.vars()
                case Dynamic(value):
                    found |= variables(value)
        return found


def _atom_range(atom: Atom) -> tuple[int, int]:
    match atom:
        case Var(extent=extent):
            return 0, extent - 1
        case FloorDiv(index, k):
            low, high = index.range()
            return low // k, high // k
        case FloorMod(index, k):
            low, high = index.range()
            return (low % k, high % k) if low // k == high // k else (0, k - 1)
        case Dynamic(_, low, high):
            return low, high
    raise TypeError(atom)


def index(value: IndexLike | Expr, low: int | None = None, high: int | None = None) -> Index:
    """Make an Index of an int, a Var, an Index, or (with its range) of any integer expression."""
    match value:
        case Index():
            return value
        case bool():
            raise ScheduleError("a bool is not an index")
        case int():
            return Index((), value)
        case Var(extent=1):
            return Index()
        case Var():
            return Index(((value, 1),))
        case Const(value=int(number)):
            return Index((), number)
        case Expr() if low is not None and high is not None:
            return Index((), low) if low == high else Index(((Dynamic(value, low, high), 1),))
        case Expr():
            raise ScheduleError("an index computed at run time needs its range", fix="te.index(value, low, high)")
    if hasattr(value, "__index__"):             # NumPy integers
        return Index((), int(value))
    raise ScheduleError(f"not an index: {value!r}")


def indices(values: Sequence[IndexLike | Expr]) -> tuple[Index, ...]:
    return tuple(index(v) for v in values)


def _add(a: Index, b: Index, scale: int = 1) -> Index:
    terms = dict(a.terms)
    for atom, c in b.terms:
        if total := terms.get(atom, 0) + c * scale:
            terms[atom] = total
        else:
            del terms[atom]
    return _rejoin(terms, a.constant + b.constant * scale)


def _rejoin(terms: dict[Atom, int], constant: int) -> Index:
    """k*(x // k) + x % k is x: what a reshape took apart comes together again, so that strides stay visible."""
    for atom in tuple(terms):
        if not isinstance(atom, FloorMod) or atom not in terms:
            continue
        match atom.index:
            case Index(((FloorDiv(inner, a), 1),), 0):              # (x // a) % k goes with x // (a*k)
                partner = FloorDiv(inner, a * atom.divisor)
            case whole:
                partner = FloorDiv(whole, atom.divisor)
        if terms.get(partner) == (c := terms[atom]) * atom.divisor:
            del terms[partner], terms[atom]
            return _add(_scale(atom.index, c), Index(tuple(terms.items()), constant))
    return Index(tuple(terms.items()), constant)


def _scale(a: Index, k: int) -> Index:
    return Index(tuple((atom, c * k) for atom, c in a.terms), a.constant * k) if k else Index()


def div_mod(a: Index, k: int) -> tuple[Index, Index]:
    """(a // k, a % k). Terms that k divides leave the division whole; the rest stays opaque unless its range decides."""
    if k <= 0:
        raise ScheduleError(f"index divided by {k}", fix="divide indices by positive constants")
    if k == 1:
        return a, Index()
    quotient = Index(tuple((atom, c // k) for atom, c in a.terms if c % k == 0), a.constant // k)
    rest = Index(tuple((atom, c) for atom, c in a.terms if c % k), a.constant % k)
    low, high = rest.range()
    if low // k == high // k:
        return _add(quotient, Index((), low // k)), _add(rest, Index((), -(low // k) * k))
    if (finer := _common_factor(rest, k)) is not None:
        d, multiple, small = finer
        q, m = div_mod(multiple, k // d)
        return _add(quotient, q), _add(_scale(m, d), small)
    return _add(quotient, _atom(FloorDiv(rest, k))), _atom(FloorMod(rest, k))


def _common_factor(rest: Index, k: int) -> tuple[int, Index, Index] | None:
    """rest as d*multiple + small with d a factor of k and 0 <= small < d: (4*g + i) // 12 is g // 3 when i < 4."""
    for d in sorted({gcd(c, k) for _, c in rest.terms if gcd(c, k) > 1}, reverse=True):
        small = Index(tuple((a, c) for a, c in rest.terms if c % d), rest.constant % d)
        low, high = small.range()
        if low >= 0 and high < d:
            return d, Index(tuple((a, c // d) for a, c in rest.terms if c % d == 0), rest.constant // d), small
    return None


def _atom(atom: Atom) -> Index:
    """One atom as an Index, with nested divisions merged: (x // a) // b -> x // (a*b); (x % (a*b)) % b -> x % b."""
    match atom:
        case FloorDiv(Index(((FloorDiv(inner, a), 1),), 0), b):
            return div_mod(inner, a * b)[0]
        case FloorMod(Index(((FloorMod(inner, a), 1),), 0), b) if a % b == 0:
            return div_mod(inner, b)[1]
    return Index(((atom, 1),))


@dataclass(frozen=True, slots=True, eq=False)
class Const(Expr):
    value: float | int | bool
    dtype: str = "float32"


@dataclass(frozen=True, slots=True, eq=False)
class Bin(Expr):
    """op in + - * / // % max min pow and or xor << >> < <= > >= == !=; both sides of one dtype; comparisons give bool.
    `//` and `%` floor (Python's), `/` on integers truncates (C's, as ONNX Div)."""

    op: str
    a: Expr
    b: Expr

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return "bool" if self.op in COMPARISONS else self.a.dtype


@dataclass(frozen=True, slots=True, eq=False)
class Compare(Expr):
    """A comparison of indices in canonical form: `index op bound`, op one of < >= == !=, no constant on the left."""

    op: str
    index: Index
    bound: int

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return "bool"


@dataclass(frozen=True, slots=True, eq=False)
class Cast(Expr):
    """Conversion as NumPy's astype; float to integer truncates."""

    dtype: str
    value: Expr


def const(value: float | int | bool, dtype: str = "float32") -> Const:
    """A constant of that dtype (the value is converted: const(1, "float32").value is 1.0)."""
    if dtype == "bool":
        return Const(bool(value), dtype)
    return Const(float(value) if "float" in dtype else int(value), dtype)


TRUE, FALSE = const(True, "bool"), const(False, "bool")


def as_expr(value: ExprLike, like: Expr | None = None) -> Expr:
    """Python numbers become constants, of `like`'s dtype when given."""
    if isinstance(value, Expr):
        return value
    if like is not None and not isinstance(like, Index | Var):
        return const(value, like.dtype)
    if isinstance(value, bool):
        return const(value, "bool")
    return const(value, "int64" if isinstance(value, int) else "float32")


def _is_index(value: object) -> bool:
    return isinstance(value, Index | Var) or (isinstance(value, int) and not isinstance(value, bool))


def binary(op: str, a: ExprLike, b: ExprLike) -> Expr:
    """Build `a op b`: an Index when both sides are indices, a canonical Compare for index comparisons, else a Bin."""
    if _is_index(a) and _is_index(b):
        return _index_binary(op, index(a), index(b))  # type: ignore[arg-type]
    left = as_expr(a, b if isinstance(b, Expr) else None)
    right = as_expr(b, left)
    if left.dtype != right.dtype:
        raise ScheduleError(f"{left.dtype} {op} {right.dtype}", fix="make the types equal with .astype(...)")
    if op in ("and", "or"):
        return logical(op, left, right)
    return Bin(op, left, right)


def logical(op: str, a: Expr, b: Expr) -> Expr:
    """`a and b`, `a or b`; the other side when one is a constant bool."""
    for x, y in ((a, b), (b, a)):
        if isinstance(x, Const) and x.dtype == "bool":                  # of integers these are bitwise
            return (y if x.value else FALSE) if op == "and" else (TRUE if x.value else y)
    return Bin(op, a, b)


def _index_binary(op: str, a: Index, b: Index) -> Expr:
    match op:
        case "+":
            return _add(a, b)
        case "-":
            return _add(a, b, -1)
        case "*" if b.is_constant:
            return _scale(a, b.constant)
        case "*" if a.is_constant:
            return _scale(b, a.constant)
        case "//" if b.is_constant:
            return div_mod(a, b.constant)[0]
        case "%" if b.is_constant:
            return div_mod(a, b.constant)[1]
        case _ if op in COMPARISONS:
            return compare(op, a, b)
    raise ScheduleError(f"indices must stay affine: {op} of two variables", fix="cast one side with .astype")


def compare(op: str, a: IndexLike, b: IndexLike) -> Expr:
    """`a op b` of indices; a Const when the ranges decide it."""
    left = _add(index(a), index(b), -1)
    bound, left = -left.constant, Index(left.terms)
    if op == "<=":
        op, bound = "<", bound + 1
    elif op == ">":
        op, bound = ">=", bound + 1
    if left.terms and left.terms[0][1] < 0 and op in ("<", ">="):       # -x < n  ->  x >= 1 - n
        left, bound, op = _scale(left, -1), 1 - bound, ">=" if op == "<" else "<"
    if op in ("<", ">="):
        left, bound = _open_division(left, bound)
    low, high = left.range()
    match op:
        case "<" if high < bound or low >= bound:
            return TRUE if high < bound else FALSE
        case ">=" if low >= bound or high < bound:
            return TRUE if low >= bound else FALSE
        case "==" | "!=" if not low <= bound <= high or low == high:
            return TRUE if (low == bound == high) == (op == "==") else FALSE
    return Compare(op, left, bound)


def _open_division(left: Index, bound: int) -> tuple[Index, int]:
    """Sides of `<` and `>=` without common factor and outer division: 4*i < 10 -> i < 3; (i + j)//8 < 2 -> i + j < 16."""
    while left.terms:
        if (factor := math.gcd(*(c for _, c in left.terms))) > 1:
            left, bound = Index(tuple((a, c // factor) for a, c in left.terms)), -(-bound // factor)
        match left.terms:
            case ((FloorDiv(inner, k), 1),):
                left, bound = Index(inner.terms), bound * k - inner.constant
            case _:
                break
    return left, bound


def cast(dtype: str, value: Expr) -> Expr:
    if value.dtype == dtype and not isinstance(value, Index | Var):
        return value
    return const(value.value, dtype) if isinstance(value, Const) else Cast(dtype, value)


def distinct(node: Node) -> Iterator[Node]:
    """`node` and everything below it once, parents first, also what stands inside indices (which `walk` does not enter)."""
    return walk_shared(node, _below)


def _below(node: Node) -> tuple[Node, ...]:
    match node:
        case Index(terms):
            return tuple(atom for atom, _ in terms)
        case Var():
            return ()
    return children(node)


def variables(node: Node) -> set[Var]:
    """Every loop variable that occurs in an expression or statement, through indices too."""
    return node.vars() if isinstance(node, Index) else {n for n in distinct(node) if isinstance(n, Var)}
