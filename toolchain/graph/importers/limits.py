"""What a model may cost to import. A model is data from strangers: it declares sizes and counts that nobody has checked."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

MB = 1 << 20
GB = 1 << 30


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one import. The first group is checked by our own code, the second by the operating system in the child."""

    protobuf_bytes: int = 2 * GB - 1        # protobuf cannot hold more
    nodes: int = 200_000                    # after inlining functions
    depth: int = 16                         # of subgraphs and function calls
    tensor_bytes: int = 64 * GB             # initializers and external data together
    folded_bytes: int = 4 * GB              # what constant folding computes, together
    value_bytes: int = 64 * GB              # one value's declared type: larger is not a tensor but an attack or a mistake

    memory_bytes: int = 0                   # 0: four times the model's files + folded_bytes + 2 GB
    cpu_s: int = 600
    wall_s: float = 900.0

    def to_json(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


DEFAULT = Limits()
