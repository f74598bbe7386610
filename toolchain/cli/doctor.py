"""`tc doctor`: what this machine offers, what each missing thing disables, and how to get it."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import click

from toolchain import __version__
from toolchain.cli.commands import command
from toolchain.cli.screen import Style, size, style_of
from toolchain.core.settings import settings

# distribution -> (module, what is missing without it, is it a baseline for comparison only)
PACKAGES: dict[str, tuple[str, str, bool]] = {
    "numpy": ("numpy", "everything", False),
    "onnx": ("onnx", "reading models", False),
    "pydantic": ("pydantic", "reading deployfiles", False),
    "PyYAML": ("yaml", "reading deployfiles", False),
    "ml_dtypes": ("ml_dtypes", "bfloat16", False),
    "llvmlite": ("llvmlite", "compiling kernels", False),
    "ziglang": ("ziglang", "linking artifacts", False),
    "click": ("click", "this command line", False),
    "rich": ("rich", "progress on a terminal", False),
    "paramiko": ("paramiko", "boards over SSH", False),
    "wasmtime": ("wasmtime", "verifying, running and measuring WebAssembly targets", True),
    "onnxruntime": ("onnxruntime", "the comparison with ONNX Runtime; verification takes the slower interpreter", True),
    "openvino": ("openvino", "the comparison with OpenVINO", True),
    "torch": ("torch", "the comparison with PyTorch", True),
    "onnx2torch": ("onnx2torch", "the comparison with PyTorch", True),
    "xgboost-cpu": ("xgboost", "the learned cost model of `tc tune`; candidates are ranked by the analytic one", True),
    "Pillow": ("PIL", "images as verification data", True),
}

# flag in /proc/cpuinfo -> what the code generator does with it
CPU_FEATURES: dict[str, str] = {
    "avx2": "8 fp32 lanes", "fma": "fused multiply-add", "f16c": "fp16 storage", "avx512f": "16 fp32 lanes, 32 registers",
    "avx512vl": "masks at every width", "avx512_vnni": "int8 dot products", "avx_vnni": "int8 dot products (256 bits)",
    "avx512_bf16": "bf16 dot products", "avx512_fp16": "fp16 arithmetic", "amx_tile": "matrix tiles",
    "amx_bf16": "bf16 matrix tiles", "amx_int8": "int8 matrix tiles",
}

EMULATORS = {"qemu-aarch64-static": "64-bit Arm", "qemu-riscv64-static": "RISC-V"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, what was found ("ok", "warning", "missing"), what that disables, and what to do."""

    name: str
    status: str
    found: str
    disables: str = ""
    fix: str = ""


@command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor_command(as_json: bool) -> int:
    """Show what is installed and found on this machine, and what each missing thing disables.

    \b
    Example:
      tc doctor --json
    """
    findings = [finding for check in CHECKS for finding in check()]
    if as_json:
        print(json.dumps([asdict(f) for f in findings], indent=2))
    else:
        style = style_of(sys.stdout, settings(), os.environ.get("TERM", ""))
        for line in rows(findings, style):
            print(line)
    return 0


def rows(findings: list[Finding], style: Style) -> Iterator[str]:
    colours = {"ok": "green", "warning": "yellow", "missing": "red"}
    name_width = max(len(f.name) for f in findings)
    for f in findings:
        yield f"{style.paint(f'{f.status:<8}', colours[f.status])} {f.name:<{name_width}}  {f.found}".rstrip()
        indent = " " * (name_width + 11)
        if f.disables:
            yield f"{indent}disables: {f.disables}"
        if f.fix:
            yield f"{indent}fix: {f.fix}"


def python() -> Iterator[Finding]:
    found = f"{platform.python_version()} at {sys.executable}"
    old = sys.version_info < (3, 11)
    yield Finding("python", "warning" if old else "ok", found, fix="3.11 or newer is needed" if old else "")
    yield Finding("toolchain", "ok", f"{__version__} at {Path(__file__).parents[1]}")


def packages() -> Iterator[Finding]:
    for name, (module, disables, optional) in PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            yield Finding(name, "warning" if optional else "missing", "not installed", disables, f"pip install {name}")
        else:
            yield Finding(name, "ok", version(name) + _llvm_version(name))


def version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "of unknown version"


def _llvm_version(name: str) -> str:
    if name != "llvmlite":
        return ""
    try:
        from llvmlite import binding
    except (ImportError, OSError) as error:         # its LLVM library does not load on this system
        return f", but it does not load: {error}"
    return f" with LLVM {'.'.join(map(str, binding.llvm_version_info))}"


def cpu() -> Iterator[Finding]:
    info = cpuinfo(Path("/proc/cpuinfo"))
    flags = set(info.get("flags", info.get("Features", "")).split())
    there = [f"{name} ({meaning})" for name, meaning in CPU_FEATURES.items() if name in flags]
    yield Finding("cpu", "ok", f"{info.get('model name', platform.processor() or platform.machine())}, {platform.machine()}")
    if platform.machine() not in ("x86_64", "AMD64"):
        yield Finding("cpu features", "warning", "not an x86-64 CPU", "building for this machine")
    elif "avx2" in flags and "fma" in flags:
        yield Finding("cpu features", "ok", ", ".join(there))
    else:
        yield Finding("cpu features", "warning", ", ".join(there) or "none of AVX2 and later", "fast kernels (4 fp32 lanes)")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("cores", "ok", f"{usable} of {os.cpu_count()} usable")


def cpuinfo(path: Path) -> dict[str, str]:
    """The first processor's entries."""
    try:
        first = path.read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def emulators() -> Iterator[Finding]:
    """What makes boards of this machine: `exec_prefix` of a device with `host: local`."""
    for name, boards in EMULATORS.items():
        if path := shutil.which(name):
            yield Finding(name, "ok", path)
        else:
            yield Finding(name, "warning", "not installed", f"emulated {boards} boards", "apt-get install qemu-user-static")


def governor() -> Iterator[Finding]:
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    try:
        name = path.read_text(encoding="utf-8").strip()
    except OSError:
        yield Finding("governor", "ok", "not visible (a virtual machine sets it outside)")
        return
    calm = name == "performance"
    yield Finding("governor", "ok" if calm else "warning", name, "" if calm else "steady measurements",
                  "" if calm else "cpupower frequency-set -g performance")


def store() -> Iterator[Finding]:
    root = settings().store
    there = next(p for p in (root, *root.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    short = free < 2e9
    yield Finding("store", "ok", f"{root}, {size(folder_bytes(root))}")
    yield Finding("free disk", "warning" if short else "ok", size(free), "large builds" if short else "",
                  "`tc gc --max-size 1GB`, or set TC_STORE" if short else "")
    if not os.access(there, os.W_OK):
        yield Finding("store folder", "missing", f"{there} cannot be written", "every build", "set TC_STORE")


def folder_bytes(folder: Path) -> int:
    """The size of all files below; 0 where there is none."""
    total = 0
    pending = [str(folder)]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue
    return total


def which_tc() -> Iterator[Finding]:
    first = shutil.which("tc")
    ours = Path(sys.executable).parent / "tc"
    if first is None:
        yield Finding("tc on PATH", "warning", "none", "typing `tc`", f"run {ours} or `python -m toolchain`")
    elif _is_ours(Path(first)):
        yield Finding("tc on PATH", "ok", first)
    else:
        yield Finding("tc on PATH", "warning", f"{first}, which is not this one", "typing `tc`",
                      "activate the virtual environment, or use `python -m toolchain`")


def _is_ours(path: Path) -> bool:
    """Whether a `tc` is a script that starts this package (iproute2's is a binary)."""
    try:
        with path.open("rb") as file:
            return b"toolchain" in file.read(2000)
    except OSError:
        return False


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (python, packages, cpu, emulators, governor, store, which_tc)
