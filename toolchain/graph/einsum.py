"""What an einsum equation says: the letters of each operand and of the result. Source: ONNX Einsum (NumPy's einsum)."""

from __future__ import annotations

from collections.abc import Sequence


def letters(equation: str, shapes: Sequence[Sequence[int]]) -> tuple[list[str], str]:
    """(letters of each operand's dimensions, letters of the result's); the dimensions of an ellipsis have letters of their
    own, the last of each operand the same."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    spare = [chr(0x100 + k) for k in range(max(map(len, shapes)))]
    dots = max((len(s) - len(t.replace("...", "")) for t, s in zip(terms, shapes, strict=True) if "..." in t), default=0)
    terms = [
        t.replace("...", "".join(spare[dots - (len(s) - len(t) + 3):dots])) for t, s in zip(terms, shapes, strict=True)
    ]
    if not arrow:
        once = sorted(c for c in set("".join(terms)) - {*spare} if "".join(terms).count(c) == 1)
        result = "..." + "".join(once)
    return terms, result.replace("...", "".join(spare[:dots]))


__all__ = ["letters"]
