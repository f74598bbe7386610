"""The program that runs artifacts on a board: static, freestanding, 35 kB; a Linux kernel of that CPU is all it needs.

It is the same for every model and every target of an instruction set, so it is compiled once per store. runner/runner.c says
what it does.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from toolchain.core.digest import digest_bytes, digest_json
from toolchain.core.settings import settings
from toolchain.core.target import Target
from toolchain.targets.llvm.link import C_FLAGS, RUNTIME, compile_c, run_zig, write_atomically, zig_version

RUNNER = Path(__file__).parent / "runner"
RUNNER_FILE = "run"                     # its name in an artifact's folder
MACHINES = ("x86_64", "aarch64", "riscv64")        # as `uname -m` says
_SHARED = ("sys.h", "memory.h", "x86_64.h", "aarch64.h", "riscv64.h")          # of the models' own runtime
_PAGE_BYTES = {"x86_64": 1 << 12, "aarch64": 1 << 16, "riscv64": 1 << 12}       # the largest that kernels of that CPU have
_FLAGS = ("-static", "-z", "noexecstack", "-z", "norelro", "--no-rosegment", "--gc-sections", "--build-id=none", "-s")


def runner_program(machine: str) -> bytes:
    """The program for CPUs of that instruction set, from the store; compiled on first use (0.6 s)."""
    texts = {p.name: p.read_text(encoding="utf-8") for p in sorted(RUNNER.iterdir()) if p.suffix in (".c", ".h")}
    texts |= {name: (RUNTIME / name).read_text(encoding="utf-8") for name in _SHARED}
    key = digest_json([texts, C_FLAGS, _FLAGS, _PAGE_BYTES[machine], machine, zig_version()])[:32]
    path = settings().store / "runner" / key
    checksum = path.with_suffix(".sha256")
    try:
        if digest_bytes(data := path.read_bytes()) == checksum.read_text(encoding="utf-8"):
            return data
    except OSError:
        pass
    data = _compile(texts, machine)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data)
    write_atomically(checksum, digest_bytes(data).encode())
    return data


def machine_of(target: Target) -> str:
    """"aarch64-unknown-linux-gnu" -> "aarch64"."""
    return (target.triple or "x86_64").split("-")[0]


def _compile(texts: dict[str, str], machine: str) -> bytes:
    target = Target("runner", machine, triple=f"{machine}-unknown-linux-gnu")
    headers = {name: text for name, text in texts.items() if name != "runner.c"}
    made = compile_c(texts["runner.c"], target, name="runner.c", includes=headers)
    flags = [*_FLAGS, "-z", f"max-page-size={_PAGE_BYTES[machine]}"]
    linker = [part for flag in flags if flag != "-static" for part in ("-Xlinker", flag)]
    with tempfile.TemporaryDirectory(prefix="tc-ld-") as temporary:
        folder = Path(temporary)
        (folder / "runner.o").write_bytes(made)
        files = ["-o", RUNNER_FILE, "runner.o"]
        run_zig(["ld.lld", *flags, *files], folder, what="linking the runner failed",
                fallback=["cc", "-target", f"{machine}-linux-musl", "-nostdlib", "-static", *linker, *files])
        return (folder / RUNNER_FILE).read_bytes()
