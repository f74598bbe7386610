"""Artifacts whose outputs have shapes that depend on data: what the library reports, and what Module makes of it."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import toolchain
from toolchain.targets.llvm.cpu import host_target
from toolchain.targets.llvm.link import compile_c, run_zig
from toolchain.targets.llvm.module import Module

node = helper.make_node


def selecting() -> onnx.ModelProto:
    """rows: float32[n, 4] of 9, where flags; where: int64[2, m], the zeros of x: there the inner dimension is bounded."""
    nodes = [
        node("Compress", ["x", "flags"], ["p"], axis=0), node("Mul", ["p", "two"], ["rows"]),
        node("Equal", ["x", "nil"], ["e"]), node("NonZero", ["e"], ["where"]), node("Neg", ["x"], ["same"]),
    ]
    inputs = [helper.make_tensor_value_info("x", 1, [9, 4]), helper.make_tensor_value_info("flags", 9, [9])]
    outputs = [helper.make_tensor_value_info(n, t, None) for n, t in (("rows", 1), ("where", 7), ("same", 1))]
    params = [onnx.numpy_helper.from_array(np.float32(v), n) for n, v in (("two", 2), ("nil", 0))]
    graph = helper.make_graph(nodes, "selecting", inputs, outputs, params)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


@pytest.fixture(scope="module")
def module() -> Iterator[Module]:
    with toolchain.compile(selecting(), threads=2) as made:
        yield made


def data(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    flags = rng.random(9) < {1: 0.0, 2: 1.0}.get(seed, 0.5)
    return {"x": rng.integers(-1, 2, (9, 4)).astype("float32"), "flags": flags}


def expected(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    x = given["x"]
    return {"rows": 2 * x[given["flags"]], "where": np.array(np.nonzero(x == 0)), "same": -x}


def test_outputs_have_their_true_shape(module: Module):
    for seed in (0, 1, 2, 3):
        given = data(seed)
        for name, array in module.run(given).items():
            np.testing.assert_array_equal(array, expected(given)[name])
            assert array.flags.c_contiguous


def test_bound_arrays_hold_the_elements_first(module: Module):
    given = data(0)
    bound = module.bind(given)
    bound()
    assert bound.outputs["where"].shape == (2, 36)
    want = expected(given)["where"]
    np.testing.assert_array_equal(bound.outputs["where"].reshape(-1)[:want.size], want.reshape(-1))
    given["flags"][:] = ~given["flags"]
    bound()
    np.testing.assert_array_equal(bound.results()["rows"], expected(given)["rows"])


def test_the_manifest_says_which_dimensions_are_bounds(module: Module):
    outputs = {o["name"]: o for o in module.manifest["buckets"][0]["outputs"]}
    assert outputs["rows"] == {"name": "rows", "dtype": "float32", "shape": [9, 4], "bounded": [0]}
    assert outputs["where"]["bounded"] == [1] and "bounded" not in outputs["same"]
    assert "float32 [9 at most, 4]" in (module.folder / f"{module.manifest['identifier']}.h").read_text()


def test_profile_trace_and_benchmark_work(module: Module):
    given = data(0)
    assert module.profile(given, 2) and module.benchmark(given, min_time_s=0.001).repeats
    seen: list[int] = []
    made = module.trace(given, lambda index, op: seen.append(index))
    np.testing.assert_array_equal(made["rows"], expected(given)["rows"])
    assert seen


PROGRAM = r"""
#include "@name@.h"
static long call3(long n, long a, long b, long c) {
    __asm__ volatile("syscall" : "+a"(n) : "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return n;
}
static void expect(int holds, int status) { if (!holds) call3(231, status, 0, 0); }
static float x[36], rows[36], same[36];
static unsigned char flags[9] = {1, 0, 0, 1, 0, 0, 0, 1, 0};
static int64_t where[72], shapes[3][2];

__attribute__((force_align_arg_pointer)) void _start(void) {
    const void *inputs[] = {x, flags};
    void *outputs[] = {rows, where, same};
    @name@_model *model;
    for (int i = 0; i < 36; i++) x[i] = (float)(i % 5);
    expect(@name@_create(&model, "weights.bin", 1) == @NAME@_OK, 1);
    expect(@name@_output_shape(model, 0, shapes[0]) == @NAME@_OK && shapes[0][0] == 0 && shapes[0][1] == 4, 2);
    expect(@name@_run(model, inputs, outputs) == @NAME@_OK, 3);
    expect(@name@_output(0)->shape[0] == 9 && @name@_output(0)->extents && @name@_output(0)->extents[1] == -1, 4);
    expect(!@name@_output(2)->extents && @name@_output_shape(model, 3, shapes[0]) == @NAME@_BAD_ARGUMENT, 5);
    for (int i = 0; i < 3; i++) expect(@name@_output_shape(model, i, shapes[i]) == @NAME@_OK, 6);
    call3(1, 1, (long)shapes, sizeof shapes);
    call3(1, 1, (long)rows, sizeof rows);
    call3(1, 1, (long)where, sizeof where);
    call3(231, 0, 0, 0);
}
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the program makes x86-64 system calls")
def test_from_a_c_program(module: Module, tmp_path: Path):
    module.save(tmp_path)
    name = module.manifest["identifier"]
    source = PROGRAM.replace("@NAME@", name.upper()).replace("@name@", name)
    header = (tmp_path / f"{name}.h").read_text()
    (tmp_path / "main.o").write_bytes(compile_c(source, host_target(), name="main.c", includes={f"{name}.h": header}))
    flags = ["-pie", "--dynamic-linker=/lib64/ld-linux-x86-64.so.2", "-rpath", "$ORIGIN"]
    run_zig(["ld.lld", *flags, "main.o", "-L.", f"-l{name}", "-o", "main"], tmp_path, what="linking the program")
    done = subprocess.run(["./main"], cwd=tmp_path, capture_output=True, timeout=30, check=False)
    assert done.returncode == 0
    x = np.arange(36, dtype="float32").reshape(9, 4) % 5
    rows, where = 2 * x[[0, 3, 7]], np.array(np.nonzero(x == 0))
    assert np.frombuffer(done.stdout, np.int64, 6).tolist() == [3, 4, *where.shape, 9, 4]
    np.testing.assert_array_equal(np.frombuffer(done.stdout, np.float32, rows.size, 48), rows.reshape(-1))
    np.testing.assert_array_equal(np.frombuffer(done.stdout, np.int64, where.size, 48 + 144), where.reshape(-1))


def test_shape_is_refused_of_no_output(module: Module):
    shape = (ctypes.c_int64 * 2)()
    assert module._function("output_shape")(module._handle(), 7, shape) != 0
