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


def llvm_version() -> str:
    """The LLVM that llvmlite brings: "20.1.8"."""
    return ".".join(str(part) for part in llvm.llvm_version_info)


@functools.lru_cache(maxsize=8)
def machine(triple: str, cpu: str, features: tuple[str, ...]) -> llvm.TargetMachine:
    """The code generator for a target: position independent where objects are shared, codegen level 2."""
    initialize()
    relocations = "static" if triple.startswith("wasm") else "pic"  # a module is linked whole
    abi = "lp64d" if triple.startswith("riscv64") else ""          # else soft floats, which do not link with the runtime's
    return llvm.Target.from_triple(triple).create_target_machine(
        cpu=cpu, features=",".join(features), opt=2, reloc=relocations, codemodel="small", abiname=abi)


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
    """What `object_bytes` encodes, as text, with LLVM's remarks on what it keeps on the stack."""
    tm = machine(target.triple, target.cpu, target.features)
    tm.set_asm_verbosity(True)
    try:
        return str(tm.emit_assembly(optimize(text, target)))
    finally:
        tm.set_asm_verbosity(False)


# Of 16 bytes or more: a vector. An array that is on the stack by its size (scope `local`, indexed by a loop) has no remark.
_SPILL = re.compile(r"[#;/]+ +(?:1[6-9]|[2-9]\d|\d{3,})-byte (?:Folded )?(?:Spill|Reload)")
_PAIR = re.compile(r"\s+(?:ldp|stp)\s+x")           # AArch64: two general registers
_JUMP = re.compile(r"\s+(?:j\w*|b(?:\.\w+)?|cbn?z\s+\w+,|tbn?z\s+.*,|b\w+\s+\w+,(?:\s+\w+,)?)\s+(\.L\w+)")


def spills(text: str) -> list[str]:
    """The lines in innermost loops of an `assembly` where LLVM moves a vector register to the stack or back."""
    return [line.strip() for loop in innermost_loops(text) for line in loop if _SPILL.search(line) and not _PAIR.match(line)]


def innermost_loops(text: str) -> Iterator[list[str]]:
    """The instructions of every loop without a loop inside: from a label to the jump back to it."""
    for function in _functions(text):
        yield from _innermost(function)


def _functions(text: str) -> Iterator[list[str]]:
    lines: list[str] = []
    for line in text.splitlines():
        if re.match(r"[\w$.]+:", line) and not line.startswith("."):
            yield lines
            lines = []
        lines.append(line)
    yield lines


def _innermost(lines: list[str]) -> Iterator[list[str]]:
    labels = {m.group(1): n for n, line in enumerate(lines) if (m := re.match(r"(\.L\w+):", line))}
    jumps = ((labels.get(m.group(1), n), n) for n, line in enumerate(lines) if (m := _JUMP.match(line)))
    loops = [(first, last) for first, last in jumps if first < last]
    for first, last in loops:
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in loops):
            yield [line for line in lines[first:last + 1] if re.match(r"\s+[a-z{]", line)]


__all__ = ["assembly", "initialize", "innermost_loops", "machine", "object_bytes", "optimize", "spills"]
