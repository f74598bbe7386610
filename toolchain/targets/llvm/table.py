"""Plans -> C text of constant tables in the form of runtime/plan.h. Compiling it takes 20 ms, so a changed plan costs that
and a link; C rather than assembler because the compiler then checks the tables against the structures the runtime reads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from toolchain.core.target import Target
from toolchain.targets.llvm.cpu_check import required_features
from toolchain.targets.llvm.format import VERSION
from toolchain.targets.llvm.plan import (
    Call,
    Copy,
    If,
    Loop,
    Op,
    Plan,
    Repeat,
    Slot,
    Value,
    Zero,
    calls,
    children,
    own_slots,
    slots_of,
    walk,
)

_HIDDEN = '__attribute__((visibility("hidden")))'


def c_string(text: str) -> str:
    """A C string literal of any text: bytes other than plain letters, digits and a few signs become octal escapes."""
    plain = re.compile(rb"[A-Za-z0-9 _.,:;/+()\[\]=-]")
    return '"' + "".join(chr(b) if plain.match(bytes([b])) else f"\\{b:03o}" for b in text.encode("utf-8", "replace")) + '"'


def table_source(plans: Sequence[Plan], target: Target, weights_digest: str) -> str:
    """The tables of verified plans, one per shape bucket; `weights_digest` is the SHA-256 of the weights they share."""
    symbols = sorted({s for plan in plans for call in calls(plan) for s, _ in call.phases})
    number = {symbol: i for i, symbol in enumerate(symbols)}
    features = [
        f"{{{c_string(f.name)}, {f.leaf}u, {f.subleaf}, {f.reg}, {f.mask}u}}" for f in required_features(target)
    ]
    tables = [_Tables(plan) for plan in plans]
    first, most_slots = plans[0], max(t.most_slots for t in tables)
    lines = [
        '#include <stddef.h>\n#include "plan.h"',
        *(f'extern tc_kernel k{i} __asm__({c_string(s)}) {_HIDDEN};' for s, i in number.items()),
        *(line for bucket, t in enumerate(tables) for line in t.source(bucket, number)),
        _array("tc_feature", "features", features),
        _array("tc_plan", "plans", [t.row(bucket) for bucket, t in enumerate(tables)]),
        "const tc_network tc_the_network = {",
        f"    {c_string(VERSION)}, plans, features,",
        f"    {len(plans)}, {len(first.inputs)}, {len(first.outputs)}, {len(features)}, {most_slots},",
        f"    {int(any('amx' in plan.permissions for plan in plans))},",
        f"    {first.weights_bytes}, {max(p.arena_bytes for p in plans)}, {max(p.scratch_bytes for p in plans)},",
        f"    {{{', '.join(str(b) for b in bytes.fromhex(weights_digest))}}}",
        "};",
    ]
    return "\n".join(lines) + "\n"


def _array(ctype: str, name: str, rows: Sequence[str]) -> str:
    """C has no empty arrays: those get one element of zeros that nobody counts."""
    body = "".join(f"    {row},\n" for row in rows) or "    0,\n"
    return f"static const {ctype} {name}[] = {{\n{body}}};"


def _tensors(name: str, values: tuple[Value, ...]) -> list[str]:
    shapes, rows = [], []
    for i, v in enumerate(values):
        shapes.append(f"static const int64_t {name}_{i}[] = {{{', '.join(map(str, v.shape)) or '0'}}};")
        extents = f"{name}_{i}_extents" if v.extents else "NULL"
        if v.extents:
            shapes.append(f"static const int64_t {extents}[] = {{{', '.join(map(str, v.extents))}}};")
        rows.append(f"{{{c_string(v.name)}, {c_string(v.dtype)}, {name}_{i}, {len(v.shape)}, {v.size_bytes}, {extents}}}")
    return [*shapes, _array("tc_tensor", name, rows)]


class _Tables:
    """The rows of a plan's tables while they are collected."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.ops: list[str] = []
        self.slots: list[str] = []
        self.phases: list[tuple[str, int]] = []
        self.strides: list[int] = [0]  # index 0 means "does not move"
        self.most_slots = 3  # COPY and ZERO use the third for their size
        self.add_ops(plan.ops, ())

    def source(self, bucket: int, number: Mapping[str, int]) -> list[str]:
        """The arrays of this plan, their names ending in the bucket's number. number: of kernels by symbol."""
        return [
            _array("tc_slot", f"slots{bucket}", self.slots),
            _array("tc_phase", f"phases{bucket}", [f"{{k{number[s]}, {extent}}}" for s, extent in self.phases]),
            _array("int64_t", f"strides{bucket}", [str(s) for s in self.strides]),
            _array("tc_op", f"ops{bucket}", self.ops),
            _array("tc_range", f"zero{bucket}", [f"{{{offset}, {size}}}" for offset, size in self.plan.zero]),
            *_tensors(f"inputs{bucket}", self.plan.inputs),
            *_tensors(f"outputs{bucket}", self.plan.outputs),
        ]

    def row(self, b: int) -> str:
        """This plan in the table of plans."""
        return (f"{{ops{b}, slots{b}, phases{b}, strides{b}, inputs{b}, outputs{b}, zero{b}, {len(self.ops)}, "
                f"{len(self.plan.zero)}, {int(self.plan.scheduler == 'steal')}}}")

    def add_ops(self, ops: tuple[Op, ...], around: tuple[tuple[int, ...], ...]) -> None:
        """`around`: for each loop around, outermost first, the strides of the slots of `ops` and all inside them."""
        for op in ops:
            taken = self._add_op(op, around)
            match op:
                case Repeat(body=body, strides=strides) | Loop(body=body, strides=strides):
                    n = len(slots_of(body))
                    inside = tuple(s[taken : taken + n] for s in around)
                    self.add_ops(body, (*inside, strides or (0,) * n))
                case If():
                    n = len(slots_of(children(op)))
                    self.add_ops(children(op), tuple(s[taken : taken + n] for s in around))
            used = taken + len(slots_of(children(op)))
            around = tuple(s[used:] for s in around)

    def _add_op(self, op: Op, around: tuple[tuple[int, ...], ...]) -> int:
        own = own_slots(op)
        first_slot, first_phase = len(self.slots), len(self.phases)
        self.most_slots = max(self.most_slots, len(own))
        for i, slot in enumerate(own):
            self.slots.append(self._slot(slot, [s[i] for s in around]))
        count = chunks = otherwise = 0
        body = sum(1 for _ in walk(children(op)))
        match op:
            case Call():
                self.phases += op.phases
                chunks = op.chunks
            case Copy(size_bytes=n) | Zero(size_bytes=n) | Repeat(count=n) | Loop(max_count=n):
                count = n
            case If():
                otherwise = sum(1 for _ in walk(op.otherwise))
                body -= otherwise
        kind = f"TC_{type(op).__name__.upper()}"
        n_phases = len(self.phases) - first_phase
        self.ops.append(
            f"{{{c_string(op.name)}, {count}, {kind}, {chunks}, {first_slot}, {len(own)}, {first_phase}, {n_phases}, "
            f"{body}, {otherwise}}}"
        )
        return len(own)

    def _slot(self, slot: Slot, strides: list[int]) -> str:
        bases = {"weights": 0, "arena": 1, "input": 2 + slot.at, "output": 2 + len(self.plan.inputs) + slot.at}
        offset = slot.offset_bytes + (slot.at if slot.segment in ("weights", "arena") else 0)
        index = 0
        if any(strides):
            index = len(self.strides)
            self.strides += strides
        return f"{{{bases[slot.segment]}, {index}, {offset}}}"
