"""Small artifacts for boards, with kernels in C: one that works, and some that do what no model should."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from toolchain.core.target import Target
from toolchain.targets.llvm.artifact import write_artifact
from toolchain.targets.llvm.link import compile_c
from toolchain.targets.llvm.plan import Call, Plan, Slot, Value

N = 256
X = (np.arange(N, dtype=np.float32) - N / 2) / 4       # products and sums of these are exact, fused or not
SOURCE = """
#include <stdint.h>
/* y = 3x + w */
void calm(void *const *b, int64_t lo, int64_t hi, void *scratch) {
    for (int64_t i = lo; i < hi; i++) ((float *)b[2])[i] = 3 * ((const float *)b[0])[i] + ((const float *)b[1])[i];
}
void crash(void *const *b, int64_t lo, int64_t hi, void *scratch) {
    *(volatile int *)(uintptr_t)(((const float *)b[0])[0] == 0) = 1;
}
void hang(void *const *b, int64_t lo, int64_t hi, void *scratch) { for (volatile int i = 0;; i++) {} }
void beyond(void *const *b, int64_t lo, int64_t hi, void *scratch) {
    for (volatile int64_t i = lo; i < hi + 64; i++) ((volatile float *)b[2])[i] = 1;
}
void illegal(void *const *b, int64_t lo, int64_t hi, void *scratch) {
#if defined(__aarch64__)
    __asm__ volatile(".inst 0x4e829420"); /* sdot v0.4s, v1.16b, v2.16b: ARMv8.2 */
#elif defined(__riscv)
    __asm__ volatile(".4byte 0x02008057"); /* vadd.vv v0, v0, v1: no vectors in RV64GC */
#else
    __asm__ volatile("ud2");
#endif
}
/* about a millisecond */
void work(void *const *b, int64_t lo, int64_t hi, void *scratch) {
    calm(b, lo, hi, scratch);
    for (volatile int i = 0; i < 300000; i++) {}
}
"""


def target(machine: str = "x86_64", features: tuple[str, ...] = ()) -> Target:
    return Target("board", "x86" if machine == "x86_64" else machine, f"{machine}-unknown-linux-gnu", features=features)


def artifact(folder: Path, kernel: str = "calm", machine: str = "x86_64", features: tuple[str, ...] = ()) -> Path:
    """y = 3x + w, as the named kernel has it; w counts upwards."""
    made_for = target(machine, features)
    objects = {"all": compile_c(SOURCE, made_for, name="kernels.c", includes={})}
    slots = Slot("input", 0), Slot("weights", 0), Slot("output", 0)
    value = Value("x", "float32", (N,)), Value("y", "float32", (N,))
    call = Call("all", ((kernel, N),), slots, name=kernel, sources=(kernel,))
    plan = Plan("board-model", value[:1], value[1:], (call,), weights_bytes=4 * N)
    write_artifact(folder, "board-model", [plan], objects, np.arange(N, dtype=np.float32).tobytes(), made_for, {
        "kernels": {}, "metadata": {}, "layers": [[{
            "kernel": kernel, "flops": 2 * N, "computed_flops": 2 * N, "moved_bytes": 12 * N, "weights_bytes": 4 * N,
            "chunks": 1, "sources": [kernel], "schedule": "default", "workload": ""}]]})
    return folder


def expected(x: np.ndarray) -> np.ndarray:
    return (3 * x + np.arange(N)).astype(np.float32)


def files(folder: Path) -> tuple[Path, Path]:
    return folder / "libboard_model.so", folder / "weights.bin"
