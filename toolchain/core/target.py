"""What code is generated for, as frozen data. A Target goes whole into task keys, manifests and reports.

Layers below `targets/` may read facts from a Target (vector bits, registers, caches, scopes) but never ask which kind it is.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Scope:
    """A memory scope and what may live there: `local` (vector registers), `shared`, `tile.a` (AMX), `vta.acc`, ...

    `fragment` is the shape of the one piece an instruction works on (empty: plain elements); `slots` how many of them
    there are (0: no limit); `bytes` the size in all (0: no limit). `per` says whose it is: "device", "block", "thread",
    "lane".
    `queue` is the instruction queue that fills it on a decoupled accelerator ("load", "compute"; empty: there are none).
    """

    name: str
    per: str = "device"
    fragment: tuple[int, ...] = ()
    dtype: str = ""
    slots: int = 0
    bytes: int = 0
    queue: str = ""


# Fields that came after targets had been recorded: a target that has their defaults stays the one it was.
LATER = ("lane_multiply", "in_order", "l2_bytes_per_cycle", "l3_bytes_per_cycle", "memory_bytes_per_cycle", "pointer_bits")


@dataclass(frozen=True, slots=True)
class Target:
    """One kind of device to make code for.

    kind: which backend makes its code ("x86", "aarch64", "riscv64", "wasm32", "cuda", "opencl", "vta"). triple, cpu,
    features: as LLVM spells them, features as "+avx2" or "-sse4a", sorted. cores: how many lanes the chunk counts of plans
    are made for (any number runs). fma_per_cycle: vector fused multiply-adds one core starts per cycle; sizes in bytes per
    core (l3 is shared).
    lane_multiply: a multiply-add takes one lane of a register as a factor. in_order: a core waits where the program does.
    ..._bytes_per_cycle: what one core reads, sustained (half of what current x86 cores state as the peak of their L2).
    """

    name: str
    kind: str
    triple: str = ""
    cpu: str = ""
    features: tuple[str, ...] = ()
    vector_bits: int = 128
    vector_registers: int = 16
    has_fma: bool = True
    fma_per_cycle: int = 1
    lane_multiply: bool = False
    in_order: bool = False
    pointer_bits: int = 64
    l2_bytes_per_cycle: float = 32
    l3_bytes_per_cycle: float = 10
    memory_bytes_per_cycle: float = 6
    cores: int = 1
    l1d_bytes: int = 32 * 1024
    l2_bytes: int = 512 * 1024
    l3_bytes: int = 8 * 1024 * 1024
    line_bytes: int = 64
    max_threads_per_block: int = 0
    warp_size: int = 0
    scopes: tuple[Scope, ...] = ()

    def lanes(self, dtype_bits: int = 32) -> int:
        """Elements of that size in one vector register."""
        return max(1, self.vector_bits // dtype_bits)

    def has(self, feature: str) -> bool:
        """Whether the LLVM feature of that name (without sign) is on."""
        return f"+{feature}" in self.features

    def scope(self, name: str) -> Scope | None:
        return next((s for s in self.scopes if s.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """Of the LATER fields those that differ from their default."""
        later = {f.name: f.default for f in fields(self) if f.name in LATER}
        return {name: value for name, value in asdict(self).items() if name not in later or value != later[name]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Target:
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k in known}
        values["scopes"] = tuple(
            Scope(**{**s, "fragment": tuple(s.get("fragment", ()))}) for s in data.get("scopes", ())
        )
        return cls(**values)
