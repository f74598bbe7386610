"""LLVM text -> object code, with SROA as the only pass; what the assembly shows; objects loaded into this process."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

import llvmlite.binding as llvm

from toolchain.core.errors import CodegenError
from toolchain.core.target import Target


@functools.cache
def initialize() -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.initialize_native_asmparser()


@functools.lru_cache(maxsize=8)
def machine(triple: str, cpu: str, features: tuple[str, ...]) -> llvm.TargetMachine:
    """The code generator for a target: position independent, codegen level 2."""
    initialize()
    return llvm.Target.from_triple(triple).create_target_machine(
        cpu=cpu, features=",".join(features), opt=2, reloc="pic", codemodel="small")


def optimize(text: str, target: Target) -> llvm.ModuleRef:
    """Parse, verify, and promote the allocas to registers. Raises CodegenError with LLVM's message."""
    tm = machine(target.triple, target.cpu, target.features)
    try:
        module = llvm.parse_assembly(text)
        module.verify()
    except RuntimeError as error:
        raise CodegenError(f"LLVM refuses the generated text: {str(error).strip()}") from error
    module.data_layout = str(tm.target_data)
    builder = llvm.create_pass_builder(tm, llvm.create_pipeline_tuning_options(speed_level=0))
    passes = llvm.create_new_module_pass_manager()
    passes.add_sroa_pass()
    passes.run(module, builder)
    return module


def object_bytes(text: str, target: Target) -> bytes:
    """The relocatable object of one module."""
    return bytes(machine(target.triple, target.cpu, target.features).emit_object(optimize(text, target)))


def assembly(text: str, target: Target) -> str:
    """What `object_bytes` encodes, as text."""
    return str(machine(target.triple, target.cpu, target.features).emit_assembly(optimize(text, target)))


# LLVM prints assembly without spill comments here: a spill is a vector register moved to or from the stack.
_STACK_VECTOR = {
    "x86_64": re.compile(r"%[xyz]mm\d+.*\(%r[sb]p\)|\(%r[sb]p\).*%[xyz]mm\d+"),
    "aarch64": re.compile(r"\b(?:str|ldr|stp|ldp|stur|ldur)\s+[qd]\d+.*\[(?:sp|x29)"),
}


def spills(text: str, triple: str) -> list[str]:
    """The lines in innermost loops of an assembly text that move a vector register to or from the stack."""
    pattern = _STACK_VECTOR[triple.split("-")[0]]
    return [line.strip() for lines in innermost_loops(text) for line in lines if pattern.search(line)]


def innermost_loops(text: str) -> Iterator[list[str]]:
    """The instructions of every loop without a loop inside: from a label to the jump back to it."""
    lines = text.splitlines()
    labels = {m.group(1): n for n, line in enumerate(lines) if (m := re.match(r"(\.L\w+):", line))}
    spans = []
    for n, line in enumerate(lines):
        if (m := re.match(r"\s+(?:j\w+|b(?:\.\w+)?|cbn?z\s+\w+,|tbn?z\s+.*,)\s+(\.L\w+)", line)) and labels.get(m.group(1), n) < n:
            spans.append((labels[m.group(1)], n))
    for first, last in spans:
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in spans):
            yield [line for line in lines[first:last + 1] if re.match(r"\s+[a-z]", line)]


__all__ = ["assembly", "initialize", "innermost_loops", "machine", "object_bytes", "optimize", "spills"]
