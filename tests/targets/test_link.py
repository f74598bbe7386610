"""Compiling and linking with zig: what it makes, and what it says when it cannot."""

from __future__ import annotations

import importlib.util
import subprocess

import pytest
from small_plans import HOST, Slot, fold, kernels, own_store, plan_of

from toolchain.core.errors import CodegenError, MissingToolError
from toolchain.core.target import Target
from toolchain.targets.llvm import link
from toolchain.targets.llvm.header import API
from toolchain.targets.llvm.plan import Call
from toolchain.targets.llvm.runner_program import MACHINES, runner_program

__all__ = ["own_store"]

X, Y = Slot("input", 0), Slot("output", 0)
PLAN = plan_of(fold(X, Y))


def make(name: str = "small", plan=PLAN, objects=None) -> bytes:
    table = link.table_object((plan,), HOST, "00" * 32)
    runtime = link.cached_runtime_object(HOST).read_bytes()
    return link.link_shared(kernels() if objects is None else objects, table, runtime, HOST, name=name)


def dynamic_symbols(library: bytes) -> dict[str, bool]:
    """Name -> whether it is defined, of a 64-bit little-endian ELF library (ELF specification, chapter 1)."""
    u = lambda at, n: int.from_bytes(library[at : at + n], "little")  # noqa: E731
    table, size, count = u(0x28, 8), u(0x3A, 2), u(0x3C, 2)
    headers = range(table, table + size * count, size)
    sections = [(u(s + 4, 4), u(s + 0x18, 8), u(s + 0x20, 8), u(s + 0x28, 4)) for s in headers]
    _, start, length, strings = next(s for s in sections if s[0] == 11)
    names = sections[strings][1]
    symbols = {}
    for at in range(start + 24, start + length, 24):
        begin = names + u(at, 4)
        symbols[library[begin : library.index(b"\0", begin)].decode()] = u(at + 6, 2) != 0
    return symbols


def test_exports_the_api_and_imports_nothing():
    assert dynamic_symbols(make()) == {f"small_{name}": True for name in API}


def test_equal_inputs_give_equal_bytes_and_no_path_gets_in(tmp_path, monkeypatch):
    first = make()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("TC_STORE", str(tmp_path / "store"))  # compiles the runtime again
    monkeypatch.chdir(tmp_path)
    assert make() == first
    assert b"/tmp" not in first and str(tmp_path).encode() not in first and b"runtime/" not in first


def test_order_of_objects_does_not_matter():
    more = link.compile_c("int unused_but_linked;", HOST, name="more.c", includes={})
    assert make(objects={**kernels(), "b": more}) == make(objects={"b": more, **kernels()})


def test_a_missing_kernel_names_it_and_how_to_repeat(monkeypatch, tmp_path):
    plan = plan_of(Call("k", (("conv_abc", 1),), (X, Y)))
    with pytest.raises(CodegenError, match=r"undefined.*conv_abc") as error:
        make(plan=plan, objects={})
    assert "set TC_DUMP=DIR" in str(error.value)
    monkeypatch.setenv("TC_DUMP", str(tmp_path))
    with pytest.raises(CodegenError) as error:
        make(plan=plan, objects={})
    command = next(line for line in str(error.value).splitlines() if line.startswith("$ "))[2:]
    repeated = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert repeated.returncode != 0 and "conv_abc" in repeated.stderr


def test_a_kernel_that_imports_is_refused():
    calls_libc = link.compile_c(
        "double exp(double); void fold(double *x) { *x = exp(*x); }", HOST, name="k.c", includes={}
    )
    with pytest.raises(CodegenError, match=r"undefined.*exp"):
        make(objects={"k": calls_libc})


def test_kernels_may_use_the_runtimes_memcpy():
    source = "void *memcpy(void *, const void *, unsigned long); void fold(void **b) { memcpy(b[1], b[0], 256); }"
    assert make(objects={"k": link.compile_c(source, HOST, name="k.c", includes={})})


def test_c_errors_show_the_line():
    with pytest.raises(CodegenError, match=r"wrong\.c:1:.*error"):
        link.compile_c("int f(void) { return x; }", HOST, name="wrong.c", includes={})


def test_without_ziglang(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingToolError, match=r"ziglang.*not installed"):
        make()


def test_hidden_commands_are_optional(tmp_path):
    """Where zig has no bare tool of that name, the fallback runs."""
    link.run_zig(["no-such-command"], tmp_path, what="x", fallback=["version"])
    with pytest.raises(CodegenError, match="unknown command"):
        link.run_zig(["no-such-command"], tmp_path, what="x")


def test_a_tool_that_does_not_end_is_stopped(monkeypatch, tmp_path):
    script = tmp_path / "zig"
    script.write_text("#!/bin/sh\nsleep 60\n")
    script.chmod(0o755)
    monkeypatch.setattr(link, "zig_path", lambda: script)
    monkeypatch.setattr(link, "TIMEOUT_S", 0.1)
    with pytest.raises(CodegenError, match="no end after"):
        link.run_zig(["cc"], tmp_path, what="compiling")


def test_a_damaged_runtime_object_is_made_again():
    path = link.cached_runtime_object(HOST)
    good = path.read_bytes()
    path.write_bytes(good[:100])
    assert link.cached_runtime_object(HOST).read_bytes() == good
    path.with_suffix(".sha256").unlink()
    assert link.cached_runtime_object(HOST).read_bytes() == good


@pytest.mark.parametrize("machine", MACHINES)
def test_the_boards_program_compiles_with_the_runtimes_headers(machine):
    """runner/ takes system calls and memory functions from runtime/: a change there must leave it whole."""
    assert runner_program(machine)[:4] == b"\x7fELF"


def test_the_runtime_compiles_for_aarch64():
    target = Target("board", "aarch64", "aarch64-unknown-linux-gnu", features=("+neon", "+dotprod"))
    table = link.table_object((PLAN,), target, "00" * 32)
    runtime = link.cached_runtime_object(target).read_bytes()
    kernel = link.compile_c("void fold(void **b) { b[1] = b[0]; }", target, name="k.c", includes={})
    library = link.link_shared({"k": kernel}, table, runtime, target, name="small")
    assert library[18] == 183  # EM_AARCH64
    assert dynamic_symbols(library) == {f"small_{name}": True for name in API}


def test_other_cpus_are_refused_by_name():
    with pytest.raises(CodegenError, match="loongarch64"):
        link.cached_runtime_object(Target("board", "loongarch64", "loongarch64-unknown-linux-gnu"))
