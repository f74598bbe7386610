"""C compiler and linker: the zig binary inside the Python package `ziglang` (LLVM's clang and lld, for every target).

`zig clang` and `zig ld.lld` are the bare tools: 10 ms each, no sysroot, no cache. They are hidden commands; where a version
of zig lacks them, `zig cc` does the same more slowly. Everything runs in an empty folder on relative names, so that no path
gets into what is built, and under a time limit.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from toolchain.core.digest import digest_bytes, digest_json
from toolchain.core.errors import CodegenError, MissingToolError
from toolchain.core.settings import settings
from toolchain.core.target import Target
from toolchain.targets.llvm.header import API
from toolchain.targets.llvm.plan import Plan
from toolchain.targets.llvm.table import table_source

RUNTIME = Path(__file__).parent / "runtime"
TIMEOUT_S = 120.0
C_FLAGS = (
    "-std=c11", "-O2", "-fPIC", "-ffreestanding", "-fvisibility=hidden", "-fno-stack-protector", "-fno-ident",
    "-fno-asynchronous-unwind-tables", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror",
)  # fmt: skip
LINK_FLAGS = (
    "-shared",
    "-z", "defs",  # kernels and runtime import nothing; without this an undefined symbol shows at load time only
    "-z", "noexecstack",
    "-z", "now",
    "--gc-sections",
    "--hash-style=gnu",
    "--build-id=none",
)  # fmt: skip


def zig_path() -> Path:
    """The zig program. Raises MissingToolError when the package is not installed."""
    spec = importlib.util.find_spec("ziglang")
    path = Path(spec.origin).parent / "zig" if spec and spec.origin else None
    if path is None or not path.exists():
        raise MissingToolError(
            "the Python package 'ziglang' is not installed: no shared library can be linked",
            fix="pip install 'ziglang>=0.14,<0.18'",
        )
    return path


def zig_version() -> str:
    """The version of the installed package, without starting the program."""
    zig_path()
    return version("ziglang")


def run_zig(arguments: Sequence[str], folder: Path, *, what: str, fallback: Sequence[str] = ()) -> None:
    """Run zig in `folder`; on "unknown command" once more with `fallback`.

    Raises CodegenError with what the tool printed and the command to repeat it.
    """
    command = [str(zig_path()), *arguments]
    cache = str(settings().store / "zig")
    env = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}
    try:
        done = subprocess.run(
            command, cwd=folder, env=env, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise CodegenError(f"{what}: no end after {TIMEOUT_S:.0f} s\n$ {shlex.join(command)}") from None
    except OSError as error:
        raise MissingToolError(f"{what}: {command[0]} does not run: {error.strerror}") from None
    if done.returncode == 0:
        return
    if fallback and "unknown command" in done.stderr:
        run_zig(fallback, folder, what=what)
        return
    raise CodegenError(f"{what} (exit code {done.returncode})\n{_keep(folder, command)}\n{done.stderr.strip()[:4000]}")


def _keep(folder: Path, command: list[str]) -> str:
    """The command to repeat a failure; with TC_DUMP its files are kept too, else they are about to be deleted."""
    if (dump := settings().dump) is None:
        return f"$ {shlex.join(command)}\nset TC_DUMP=DIR to keep its input files"
    kept = Path(tempfile.mkdtemp(prefix="zig-", dir=_existing(dump)))
    for file in folder.iterdir():
        (kept / file.name).write_bytes(file.read_bytes())
    return f"$ cd {shlex.quote(str(kept))} && {shlex.join(command)}"


def _existing(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


ERRATUM = "fix-cortex-a53-835769"       # LLVM's feature; who has it wants the linker's part for 843419, too


# What every CPU of that instruction set runs, where clang's own default could be more
BASELINE = {"x86_64": [], "aarch64": [], "riscv64": ["-march=rv64gc", "-mabi=lp64d"], "wasm32": ["-msimd128", "-fno-pic"]}


def _machine_flags(target: Target) -> tuple[list[str], list[str]]:
    """(flags of the compiler, of the linker): the instruction set, and around what the first Cortex-A53 did wrong."""
    baseline = BASELINE[_machine(target)]
    return ([*baseline, f"-m{ERRATUM}"], ["--fix-cortex-a53-843419"]) if target.has(ERRATUM) else (baseline, [])


def _machine(target: Target) -> str:
    """The instruction set, as `uname -m` says. Raises CodegenError: the C runtime does not know its system calls."""
    cpu = (target.triple or "x86_64").split("-")[0]
    if cpu not in BASELINE:
        raise CodegenError(f"the C runtime has no system calls for {cpu!r} yet", where=f"target {target.name!r}")
    return cpu


def _clang_triple(target: Target) -> tuple[str, str]:
    """(clang's, zig's) spelling of the CPU and system: the runtime needs no more than that."""
    machine = _machine(target)
    if machine == "wasm32":
        return "wasm32-unknown-unknown", "wasm32-freestanding-none"
    return f"{machine}-linux-gnu", f"{machine}-linux-musl"


def compile_c(source: str, target: Target, *, name: str, includes: Mapping[str, str]) -> bytes:
    """Compile freestanding C text, with the header texts `includes` beside it, into an object file's bytes."""
    clang, zig = _clang_triple(target)
    builtin = zig_path().parent / "lib" / "include"
    with tempfile.TemporaryDirectory(prefix="tc-cc-") as temporary:
        folder = Path(temporary)
        for file, text in {name: source, **includes}.items():
            (folder / file).write_text(text, encoding="utf-8")
        tail = [*C_FLAGS, *_machine_flags(target)[0], "-c", name, "-o", "out.o"]
        run_zig(
            ["clang", f"--target={clang}", "-nostdinc", "-isystem", str(builtin), *tail],
            folder,
            what=f"compiling {name} failed",
            fallback=["cc", "-target", zig, "-nostdlib", *tail],
        )
        return (folder / "out.o").read_bytes()


def _runtime_texts(suffix: str) -> dict[str, str]:
    return {p.name: p.read_text(encoding="utf-8") for p in sorted(RUNTIME.glob(f"*{suffix}"))}


def runtime_digest(target: Target) -> str:
    """What the runtime's object depends on."""
    return digest_json([_runtime_texts(".c"), _runtime_texts(".h"), C_FLAGS, _clang_triple(target), _machine_flags(target),
                        zig_version()])


def runtime_object(target: Target, out: Path) -> None:
    """Compile the C runtime for the CPU of `target` into the file `out`; replaces it in one step."""
    data = compile_c(_runtime_texts(".c")["runtime.c"], target, name="runtime.c", includes=_runtime_texts(".h"))
    write_atomically(out, data)


def cached_runtime_object(target: Target) -> Path:
    """The runtime's object below the store, compiled on first use (0.4 s). A damaged copy is replaced."""
    folder = settings().store / "runtime"
    path = folder / f"{runtime_digest(target)[:32]}.o"
    checksum = path.with_suffix(".sha256")
    try:
        if digest_bytes(path.read_bytes()) == checksum.read_text(encoding="utf-8"):
            return path
    except OSError:
        pass
    folder.mkdir(parents=True, exist_ok=True)
    runtime_object(target, path)
    write_atomically(checksum, digest_bytes(path.read_bytes()).encode())
    return path


def table_object(plans: Sequence[Plan], target: Target, weights_digest: str) -> bytes:
    """The constant tables of the plans, one per shape bucket, as an object file."""
    text = table_source(plans, target, weights_digest)
    return compile_c(text, target, name="table.c", includes={"plan.h": (RUNTIME / "plan.h").read_text(encoding="utf-8")})


# What a WebAssembly module exports: of API what needs neither files, threads, a clock nor functions of the host
WASM_API = tuple(f for f in API if f not in ("create", "threads", "missing_feature", "set_profile", "set_after_op"))
WASM_STACK_BYTES = 1 << 20             # as a worker thread has


def link_module(objects: Mapping[str, bytes], table: bytes, runtime: bytes, target: Target, *, name: str) -> bytes:
    """What an artifact's code is made into: a shared library, or a WebAssembly module."""
    link = link_wasm if target.kind == "wasm32" else link_shared
    return link(objects, table, runtime, target, name=name)


def link_wasm(objects: Mapping[str, bytes], table: bytes, runtime: bytes, target: Target, *, name: str) -> bytes:
    """A WebAssembly module that exports its memory, tc_allocate, and tc_create_from_memory and so on; it imports nothing."""
    flags = ["--no-entry", "--gc-sections", "--stack-first", "-z", f"stack-size={WASM_STACK_BYTES}", "--strip-debug",
             *(f"--export=tc_{function}" for function in (*WASM_API, "allocate"))]
    with tempfile.TemporaryDirectory(prefix="tc-ld-") as temporary:
        folder = Path(temporary)
        files = _write_objects(folder, objects, table, runtime)
        (folder / "ld.txt").write_text("\n".join([*flags, "-o", "out.wasm", *files]), encoding="utf-8")
        linker = [part for flag in flags for part in ("-Xlinker", flag)]
        run_zig(["wasm-ld", "@ld.txt"], folder, what=f"linking {name}.wasm failed",
                fallback=["cc", "-target", _clang_triple(target)[1], "-nostdlib", *linker, "-o", "out.wasm", *files])
        return (folder / "out.wasm").read_bytes()


def _write_objects(folder: Path, objects: Mapping[str, bytes], table: bytes, runtime: bytes) -> list[str]:
    """The files to link, in an order that depends on nothing but the kernels' names."""
    files = {"table.o": table, "runtime.o": runtime}
    files |= {f"k{i}.o": objects[key] for i, key in enumerate(sorted(objects))}
    for file, data in files.items():
        (folder / file).write_bytes(data)
    return list(files)


def link_shared(objects: Mapping[str, bytes], table: bytes, runtime: bytes, target: Target, *, name: str) -> bytes:
    """Link kernels (by name), the plans' table and the runtime into the bytes of lib<name>.so.

    Exports <name>_create and so on (header.API), nothing else, and imports nothing. Equal inputs give equal bytes: objects
    go in by the order of their names, under names that do not depend on where this runs.
    """
    exports = [f"{name}_{function}" for function in API]
    renames = [f"--defsym={name}_{function}=tc_{function}" for function in API]
    with tempfile.TemporaryDirectory(prefix="tc-ld-") as temporary:
        folder = Path(temporary)
        files = _write_objects(folder, objects, table, runtime)
        script = f"{{ global: {' '.join(f'{e};' for e in exports)} local: *; }};\n"
        (folder / "exports.map").write_text(script, encoding="utf-8")
        flags = [*LINK_FLAGS, *_machine_flags(target)[1], "-soname", f"lib{name}.so", "--version-script=exports.map"]
        flags += renames
        (folder / "ld.txt").write_text("\n".join([*flags, "-o", "out.so", *files]), encoding="utf-8")
        linker = [part for flag in flags if flag != "-shared" for part in ("-Xlinker", flag)]
        run_zig(
            ["ld.lld", "@ld.txt"],
            folder,
            what=f"linking lib{name}.so failed",
            fallback=["cc", "-target", _clang_triple(target)[1], "-nostdlib", "-shared", *linker, "-o", "out.so", *files],
        )
        return (folder / "out.so").read_bytes()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that under its name there is ever only the old content or the whole new one."""
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
