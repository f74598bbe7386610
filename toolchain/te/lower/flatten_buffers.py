"""flatten_buffers: logical indices become one physical element offset; layouts end here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from toolchain.core.layout import TensorType
from toolchain.core.target import Target
from toolchain.te.expr import Expr, Load, index
from toolchain.te.loop_ir import PrimFunc, Store
from toolchain.te.lower.shared import rewrite_shared
from toolchain.te.tensor import Tensor


def flatten_buffers(func: PrimFunc, target: Target) -> PrimFunc:
    """Replace each index by the element offset its buffer's layout gives it; every buffer becomes one-dimensional.

        X : float32[1, 64, 56, 56] NCHW16c+h1
        X[0, 16*cb + ci, y, x]   ->   X[53824*cb + 928*y + 16*x + ci + 944]

    The types the parameters had stay in `attrs["types"]`, by tensor name: who runs the function packs and
    unpacks with them.

    Needs: logical indices, no Update. Keeps: every value stored.
    """
    types = {t: b.type for t, b in func.buffers.items()}

    def offset(tensor: Tensor, idx: tuple[Expr, ...]) -> tuple[Expr, ...]:
        t = types[tensor]
        return (index(t.layout.offset(t.shape, idx)),)

    def rule(n: Any) -> Any:
        match n:
            case Load(tensor, idx):
                return Load(tensor, offset(tensor, idx))
            case Store(tensor, idx):
                return replace(n, index=offset(tensor, idx))
        return None

    flat = {
        t: b.with_type(TensorType.plain((b.type.layout.size(b.type.shape),), b.type.dtype)) for t, b in func.buffers.items()
    }
    attrs = {**func.attrs, "types": {t.name: types[t] for t in func.params}}
    return replace(func, body=rewrite_shared(func.body, rule), buffers=flat, attrs=attrs)


__all__ = ["flatten_buffers"]
