"""From a scheduled PrimFunc and a Target to a Kernel: `compile_kernel`, and the table of code generators."""

from __future__ import annotations

import sys
from pathlib import Path

from toolchain.core.digest import digest_json
from toolchain.core.errors import CodegenError
from toolchain.core.settings import settings
from toolchain.core.target import Target
from toolchain.targets.backend import Backend, Kernel, Stage
from toolchain.targets.llvm.backend import LLVM
from toolchain.targets.structure import structure
from toolchain.te.loop_ir import PrimFunc
from toolchain.te.lower import COMMON, lower, write_dump
from toolchain.te.text import to_text

BACKENDS: dict[str, Backend] = {
    "x86": LLVM,
    "aarch64": LLVM,
    "riscv64": LLVM,
    "wasm32": LLVM,
}


def backend(target: Target) -> Backend:
    """The code generator for a target. Raises CodegenError when there is none."""
    if target.kind not in BACKENDS:
        raise CodegenError(f"no code generator for targets of kind {target.kind}", fix=f"kinds: {', '.join(BACKENDS)}")
    return BACKENDS[target.kind]


def kernel_symbol(lowered: PrimFunc, target: Target) -> str:
    """The name of a kernel's code: made of everything its bytes depend on, and of no other name."""
    facts = {"code": structure(lowered), "target": target.to_json(), "version": backend(target).version}
    return "k_" + digest_json(facts)[:24]


def compile_kernel(func: PrimFunc, target: Target, dump: Path | None = None) -> Kernel:
    """Lower `func` and run the target's stages. `dump` (default: TC_DUMP/name): a folder for NN.pass.txt and NN.ext.

    Raises CodegenError: what cannot be lowered or has no instruction, and code that would be too large or need too many
    registers (the caller then takes a smaller tile).
    """
    if dump is None and (env := settings()).dump is not None and env.selects(func.name):
        dump = env.dump / func.name
    generator = backend(target)
    chatty = settings().debug if settings().selects(func.name) else 0
    if chatty >= 3:
        print(to_text(func), file=sys.stderr)
    lowered = lower(func, target, generator.passes, dump)
    symbol = kernel_symbol(lowered, target)
    made: dict[str, str | bytes] = {}
    for n, stage in enumerate(generator.stages, len(COMMON) + len(generator.passes) + 1):
        made[stage.ext] = stage.run(lowered, symbol, made, target)
        write_dump(dump, n, stage.ext, content := made[stage.ext])
        if chatty >= 4 and isinstance(content, str):
            print(content, file=sys.stderr)
    binary = made[generator.stages[-1].ext]
    assert isinstance(binary, bytes)
    return generator.kernel(lowered, symbol, binary)


__all__ = ["BACKENDS", "Backend", "Kernel", "Stage", "backend", "compile_kernel", "kernel_symbol"]
