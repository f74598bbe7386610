"""Static cycles of a whole kernel: its blocks of machine code, each by `llvm-mca`, times how often each runs.

    LLVM text      h3: %i3 = phi i64 [0, ...   icmp slt i64 %n3, 784      h3 runs 784 times in each run of what is around
    assembly       .LBB0_4:   // %h3                                          names of blocks survive code generation
    llvm-mca       cycles of one run of that block, in a steady state         (mca.py)

Extents are constants everywhere, so how often a block runs is a product of extents; a branch counts as taken. The sum knows
no caches: what data cost on their way is `te.tune.traffic`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from toolchain.core.target import Target
from toolchain.targets.llvm.emit import emit
from toolchain.targets.llvm.mca import static_cycles
from toolchain.targets.llvm.object import assembly
from toolchain.targets.llvm.split_tasks import split_tasks
from toolchain.te.loop_ir import PrimFunc

SYMBOL = "k"

_DEFINE = re.compile(r"define .*@([\w.]+)\(")
_LABEL = re.compile(r"(\w+):$")
_HEADER = re.compile(r"h(\d+)$")
_EXIT = re.compile(r"e(\d+)$")
_BOUND = re.compile(r"%c(\d+) = icmp slt i64 %n\d+, (\S+)$")
_FUNCTION = re.compile(r"([A-Za-z_][\w$.]*):")
_BLOCK = re.compile(r"(?:\.L(BB\w+):|(?://|#) %bb\.\d+:)(?:\s+(?://|#) %([\w.]+))?")
_IN_LOOP = re.compile(r"\s*(?://|#)\s+in Loop: Header=(BB\w+)")
_COMMENT = re.compile(r"\s*(?://|##|# ).*")
_INSTRUCTION = re.compile(r"\s+[a-z]")


@dataclass(frozen=True, slots=True)
class CodeBlock:
    """A basic block of a function's machine code: name: in the LLVM text ("": LLVM made it); label: of a jump there; header:
    the label of the loop it stands in ("": none)."""

    function: str
    name: str
    label: str
    header: str
    instructions: tuple[str, ...]


def kernel_cycles(func: PrimFunc, target: Target) -> float:
    """Of one run of all phases on one core. func: lowered.

    Raises MissingToolError: llvm-mca is not installed; CodegenError.
    """
    weighed = instruction_runs(func, target)
    distinct = list(dict.fromkeys(instructions for instructions, _ in weighed))
    cycles = dict(zip(distinct, static_cycles(distinct, target), strict=True))
    return sum(cycles[instructions] * count for instructions, count in weighed)


def instruction_runs(func: PrimFunc, target: Target) -> list[tuple[tuple[str, ...], int]]:
    """(the instructions of a block, how often it runs) of all blocks; see `kernel_cycles`."""
    text, extents = emitted(func, target)
    blocks = list(code_blocks(assembly(text, target)))
    return [(block.instructions, count) for block, count in _counted(blocks, run_counts(text, extents))]


def emitted(func: PrimFunc, target: Target) -> tuple[str, dict[str, int]]:
    """The LLVM text of a lowered function, and its parallel extents by exported function."""
    tasks = split_tasks(func)
    return emit(func, target, tasks, SYMBOL), {f"{SYMBOL}_{n}": phase.parallel for n, phase in enumerate(tasks.phases)}


def run_counts(text: str, extents: Mapping[str, int]) -> dict[tuple[str, str], int]:
    """How often each block of an `emit` text runs, by function and name."""
    counts: dict[tuple[str, str], int] = {}
    for function, lines in _functions(text):
        bounds = {m[1]: m[2] for line in lines if (m := _BOUND.search(line))}
        around, count = [], 1
        for line in lines:
            if (label := _LABEL.match(line)) is None:
                continue
            if m := _HEADER.match(label[1]):
                bound = bounds[m[1]]
                around.append(count)
                count *= int(bound) if bound.isdigit() else extents[function.removesuffix(".task")]
            elif _EXIT.match(label[1]):
                count = around.pop()
            counts[function, label[1]] = count
    return counts


def _functions(text: str) -> Iterator[tuple[str, list[str]]]:
    name, lines = "", list[str]()
    for line in text.splitlines():
        if m := _DEFINE.match(line):
            name, lines = m[1], []
        elif line == "}":
            yield name, lines
        else:
            lines.append(line)


def code_blocks(assembly: str) -> Iterator[CodeBlock]:
    """Every block with instructions of an `object.assembly`, in order."""
    function, name, label, header = "", "", "", ""
    found: list[str] = []

    def made() -> Iterator[CodeBlock]:
        if found:
            yield CodeBlock(function, name, label, header, tuple(found))
    for line in assembly.splitlines():
        if m := _BLOCK.match(line):
            yield from made()
            label, name, header, found = m[1] or "", m[2] or "", "", []
        elif not line.startswith(".") and (m := _FUNCTION.match(line)):
            yield from made()
            function, name, label, header, found = m[1], "", "", "", []
        elif m := _IN_LOOP.match(line):
            header = m[1]
        elif _INSTRUCTION.match(line) and (plain := _COMMENT.sub("", line).rstrip()):
            found.append(plain)
    yield from made()


def _counted(blocks: list[CodeBlock], counts: Mapping[tuple[str, str], int]) -> Iterator[tuple[CodeBlock, int]]:
    """A block that LLVM made itself runs as often as the loop it stands in goes round; outside of all, once."""
    labels = {block.label: block for block in blocks if block.label}
    for block in blocks:
        count = counts.get((block.function, block.name))
        if count is None and (loop := labels.get(block.header)) is not None:
            count = counts.get((loop.function, loop.name))
        yield block, 1 if count is None else count


__all__ = ["CodeBlock", "code_blocks", "emitted", "instruction_runs", "kernel_cycles", "run_counts"]
