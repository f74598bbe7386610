"""Operands -> LLVM text: arithmetic, moving lanes. Knows instructions and dtypes, not the loop IR."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from toolchain.core import dtype as dtypes
from toolchain.core.errors import CodegenError
from toolchain.core.target import Target
from toolchain.targets.llvm.spelling import constant, intrinsic, is_nan, value_type, vector

FLOAT_OPS = {"+": "fadd", "-": "fsub", "*": "fmul", "/": "fdiv"}
INT_OPS = {"+": "add", "-": "sub", "*": "mul", "and": "and", "or": "or", "xor": "xor", "<<": "shl"}
ELEMENT_BITS = {"float": 32, "double": 64, "i8": 8, "i16": 16, "i32": 32, "i64": 64}
ORDER = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge"}


class Arithmetic:
    """The lines written so far, and methods that append an operation and give its operand (an SSA name or a literal)."""

    def __init__(self, declared: set[str], target: Target) -> None:
        self.declared, self.target = declared, target
        self.lines: list[str] = []
        self.count = 0

    def name(self) -> str:
        self.count += 1
        return f"%t{self.count}"

    def emit(self, text: str) -> str:
        """Append `%tN = text`; the operand."""
        self.count += 1
        name = f"%t{self.count}"
        self.lines.append(f" {name} = {text}")
        return name

    def intrinsic(self, result: str, name: str, mangled: Iterable[str], args: Iterable[tuple[str, str]]) -> str:
        """The text of a call; its declaration is noted. `args` are (type, operand)."""
        full = intrinsic(name, *mangled)
        args = tuple(args)
        self.declared.add(f"declare {result} @{full}({', '.join(t for t, _ in args)})")
        return f"call {result} @{full}({', '.join(f'{t} {a}' for t, a in args)})"

    def splat(self, element: str, scalar: str, lanes: int) -> str:
        """One scalar (a register or a constant) in every lane: the vector's name, or a constant expression."""
        if not scalar.startswith("%"):
            return f"splat ({element} {scalar})"
        if element == "i1" and self.target.kind == "x86" and self.target.vector_bits < 512:
            # without mask registers a mask is a vector of signs; LLVM takes a splat of bits through bytes on the stack
            signs = self.splat("i32", self.emit(f"sext i1 {scalar} to i32"), lanes)
            return self.emit(f"icmp slt {vector('i32', lanes)} {signs}, zeroinitializer")
        type = vector(element, lanes)
        one = self.emit(f"insertelement {type} poison, {element} {scalar}, i32 0")
        return self.emit(f"shufflevector {type} {one}, {type} poison, <{lanes} x i32> zeroinitializer")

    def pick(self, value: str, element: str, lanes: int, chosen: Sequence[int]) -> str:
        """Some lanes of a vector, in that order."""
        return self.shuffle(element, lanes, value, "poison", chosen)

    def shuffle(self, element: str, lanes: int, a: str, b: str, chosen: Sequence[int]) -> str:
        """Some lanes of two vectors: n of `a`, lanes + n of `b`."""
        type, picks = vector(element, lanes), ", ".join(f"i32 {n}" for n in chosen)
        return self.emit(f"shufflevector {type} {a}, {type} {b}, <{len(chosen)} x i32> <{picks}>")

    def transpose(self, rows: Sequence[str], element: str) -> list[str]:
        """The columns of a square of as many rows as each has lanes, a power of two: first within pieces of 128 bits, whose
        elements one instruction can interleave, then whole pieces among each other."""
        size = len(rows)
        width = min(size, 128 // ELEMENT_BITS[element])                 # of a piece
        pieces = size // width
        inside = [self._interleave(rows[g * width:(g + 1) * width], element, size, width) for g in range(pieces)]
        columns: list[str] = [""] * size
        for j in range(width):
            for piece, column in enumerate(self._exchange([group[j] for group in inside], element, size, width)):
                columns[piece * width + j] = column
        return columns

    def _interleave(self, rows: Sequence[str], element: str, size: int, width: int) -> list[str]:
        """In each piece, `width` rows of `width` elements turned: the first half of the rows with the second, repeatedly."""
        half = width // 2
        low = [piece + n // 2 + (size if n % 2 else 0) for piece in range(0, size, width) for n in range(width)]
        now = list(rows)
        for _ in range(width.bit_length() - 1):
            now = [self.shuffle(element, size, a, b, [n + shift for n in low])
                   for a, b in zip(now[:half], now[half:], strict=True) for shift in (0, half)]
        return now

    def _exchange(self, rows: Sequence[str], element: str, size: int, width: int) -> list[str]:
        """Row p's piece q to row q's piece p: the even pieces of neighbours, and the odd ones, each turned the same way."""
        if len(rows) == 1:
            return list(rows)
        even = [p + n for p in range(0, 2 * size, 2 * width) for n in range(width)]
        turned = [
            self._exchange([self.shuffle(element, size, a, b, [n + shift for n in even])
                            for a, b in zip(rows[::2], rows[1::2], strict=True)], element, size, width)
            for shift in (0, width)
        ]
        return [column for pair in zip(*turned, strict=True) for column in pair]

    def arithmetic(self, op: str, dtype: str, lanes: int, a: str, b: str) -> str:
        """`a op b` of values of one dtype, as te's Bin means it; lanes 0: scalars. Comparisons with a NaN are false, but
        != is true. Integers wrap; `//` and `%` floor, `/` truncates.
        """
        type = value_type(dtype, lanes)
        if dtypes.is_float(dtype):
            if op in FLOAT_OPS:
                return self.emit(f"{FLOAT_OPS[op]} {type} {a}, {b}")
            if op in ("max", "min"):
                return self.extremum(op, type, lanes, a, b)
            if op in ORDER:
                return self.emit(f"fcmp o{ORDER[op]} {type} {a}, {b}")
            if op in ("==", "!="):
                return self.emit(f"fcmp {'oeq' if op == '==' else 'une'} {type} {a}, {b}")
        else:
            signed = dtype in dtypes.INTS
            if op in INT_OPS:
                return self.emit(f"{INT_OPS[op]} {type} {a}, {b}")
            if op in ORDER:
                return self.emit(f"icmp {'s' if signed else 'u'}{ORDER[op]} {type} {a}, {b}")
            if op in ("==", "!="):
                return self.emit(f"icmp {'eq' if op == '==' else 'ne'} {type} {a}, {b}")
            if op in ("max", "min"):
                test = self.emit(f"icmp {'s' if signed else 'u'}{'gt' if op == 'max' else 'lt'} {type} {a}, {b}")
                return self.emit(f"select {vector('i1', lanes)} {test}, {type} {a}, {type} {b}")
            if op == ">>":
                return self.emit(f"{'ashr' if signed else 'lshr'} {type} {a}, {b}")
            if op in ("/", "//", "%"):
                return self.divide(op, dtype, lanes, a, b)
        raise CodegenError(f"no instruction for {dtype} {op}")

    def extremum(self, op: str, type: str, lanes: int, a: str, b: str) -> str:
        """max or min as x86 has it: with a NaN the result is `b`. A constant stands first: NaNs pass it.

        A constant that is a NaN stays where it is.
        """
        if self.target.kind == "aarch64":         # fmax gives the NaN, in one instruction as maxps
            name = "maximum" if op == "max" else "minimum"
            return self.emit(self.intrinsic(type, name, (type,), ((type, a), (type, b))))
        if not b.startswith("%") and not is_nan(b):
            a, b = b, a
        test = self.emit(f"fcmp o{'gt' if op == 'max' else 'lt'} {type} {a}, {b}")
        return self.emit(f"select {vector('i1', lanes)} {test}, {type} {a}, {type} {b}")

    def divide(self, op: str, dtype: str, lanes: int, a: str, b: str) -> str:
        """Integer division that never traps: x/0 is 0 (NumPy's), the lowest over -1 wraps. `/` truncates, `//` floors."""
        type, bit = value_type(dtype, lanes), vector("i1", lanes)
        zero, one = constant(0, dtype, lanes), constant(1, dtype, lanes)
        signed = dtype in dtypes.INTS
        none = self.emit(f"icmp eq {type} {b}, {zero}")
        negates = self.emit(f"icmp eq {type} {b}, {constant(-1, dtype, lanes)}") if signed else ""
        unsafe = self.emit(f"or {bit} {none}, {negates}") if signed else none
        safe = self.emit(f"select {bit} {unsafe}, {type} {one}, {type} {b}")
        quotient = self.emit(f"{'s' if signed else 'u'}div {type} {a}, {safe}")
        if signed:
            minus = self.emit(f"sub {type} {zero}, {a}")
            quotient = self.emit(f"select {bit} {negates}, {type} {minus}, {type} {quotient}")
        rest = self.emit(f"sub {type} {a}, {self.emit(f'mul {type} {quotient}, {b}')}")
        if signed and op != "/":                 # truncated towards zero: one less where the signs differ and a rest remains
            rounds = self.emit(f"icmp ne {type} {rest}, {zero}")
            differ = self.emit(f"icmp slt {type} {self.emit(f'xor {type} {rest}, {b}')}, {zero}")
            lower = self.emit(f"and {bit} {rounds}, {differ}")
            if op == "%":
                rest = self.emit(f"select {bit} {lower}, {type} {self.emit(f'add {type} {rest}, {b}')}, {type} {rest}")
            else:
                less = self.emit(f"sub {type} {quotient}, {one}")
                quotient = self.emit(f"select {bit} {lower}, {type} {less}, {type} {quotient}")
        return self.emit(f"select {bit} {none}, {type} {zero}, {type} {rest if op == '%' else quotient}")
