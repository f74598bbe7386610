"""The schedule primitives: pure functions (PrimFunc, names and numbers) -> (PrimFunc, new loop variables or tensors)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from toolchain.te.loop_ir import PrimFunc
from toolchain.te.primitives.annotate import bind, parallel, pragma, unroll, vectorize
from toolchain.te.primitives.cache import cache_read, cache_write
from toolchain.te.primitives.cache_window import cache_window
from toolchain.te.primitives.compute_at import compute_at
from toolchain.te.primitives.compute_with import compute_with
from toolchain.te.primitives.inline import compute_inline
from toolchain.te.primitives.partition import partition
from toolchain.te.primitives.prefetch import prefetch
from toolchain.te.primitives.restructure import fuse, reorder, split
from toolchain.te.primitives.rfactor import rfactor
from toolchain.te.primitives.storage import double_buffer, reuse_buffer, set_layout, set_scope, storage_align
from toolchain.te.primitives.tensorize import decompose_reduction, tensorize

Primitive = Callable[..., tuple[PrimFunc, tuple[Any, ...]]]

PRIMITIVES: Mapping[str, Primitive] = {     # what `replay` looks steps up in: a name here is a name in stored records
    "split": split,
    "fuse": fuse,
    "reorder": reorder,
    "vectorize": vectorize,
    "unroll": unroll,
    "parallel": parallel,
    "bind": bind,
    "pragma": pragma,
    "compute_at": compute_at,
    "compute_with": compute_with,
    "compute_inline": compute_inline,
    "cache_write": cache_write,
    "cache_read": cache_read,
    "cache_window": cache_window,
    "set_scope": set_scope,
    "set_layout": set_layout,
    "double_buffer": double_buffer,
    "storage_align": storage_align,
    "reuse_buffer": reuse_buffer,
    "partition": partition,
    "prefetch": prefetch,
    "rfactor": rfactor,
    "decompose_reduction": decompose_reduction,
    "tensorize": tensorize,
}
