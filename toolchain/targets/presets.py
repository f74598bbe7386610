"""Named targets, as data. `target("x86")` is this machine; the others are what they say, wherever the build runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from toolchain.core.errors import UsageError
from toolchain.core.suggest import did_you_mean
from toolchain.core.target import Target
from toolchain.targets.features import with_features

# The x86-64 psABI's micro-architecture levels, as LLVM names the features
_V2 = ("+cmov", "+crc32", "+cx16", "+cx8", "+fxsr", "+mmx", "+popcnt", "+sahf", "+sse", "+sse2", "+sse3", "+sse4.1",
       "+sse4.2", "+ssse3")
_V3 = (*_V2, "+avx", "+avx2", "+bmi", "+bmi2", "+f16c", "+fma", "+lzcnt", "+movbe", "+xsave")
_V4 = (*_V3, "+avx512bw", "+avx512cd", "+avx512dq", "+avx512f", "+avx512vl")

# Nobody knows the cores of a machine that is not here: plans are laid out for four, and any number runs them
_X86 = Target(
    "x86-64-v2", "x86", triple="x86_64-unknown-linux-gnu", cpu="x86-64", fma_per_cycle=2, cores=4, l2_bytes=1 << 20)

# Armv8.0-A: what every 64-bit Arm CPU has. The code goes around erratum 835769 of the Cortex-A53 (a load, then a 64-bit
# multiply-add), as distributions build theirs; the linker around 843419. Cryptography and CRC are optional there: left out.
# Bytes per cycle are what is published for boards of that class: of memory two (Raspberry Pi 3) to four in all, which four
# cores share; there is no L3.
_ARM = Target(
    "armv8-a", "aarch64", triple="aarch64-unknown-linux-gnu", cpu="generic",
    features=("+fix-cortex-a53-835769", "+fp-armv8", "+neon"), vector_registers=32, cores=4, l3_bytes=0,
    lane_multiply=True, l2_bytes_per_cycle=6, l3_bytes_per_cycle=1, memory_bytes_per_cycle=1)
_A53 = replace(_ARM, name="cortex-a53", cpu="cortex-a53", in_order=True)      # 32 KiB and 512 KiB: what its makers choose
_A72 = replace(_ARM, name="cortex-a72", cpu="cortex-a72", l2_bytes=1 << 20, l2_bytes_per_cycle=12)
# Armv8.2-A with the dot products that are optional there and these two have; half precision is storage only. Caches: what
# phones and small boards have of what their makers may choose, an L3 that all cores share
_DOTS = ("+dotprod", "+fp-armv8", "+neon")
_A55 = replace(_A53, name="cortex-a55", cpu="cortex-a55", features=_DOTS, l2_bytes=128 << 10, l3_bytes=1 << 20,
               l3_bytes_per_cycle=4)
_A76 = replace(_A72, name="cortex-a76", cpu="cortex-a76", features=_DOTS, fma_per_cycle=2, l1d_bytes=64 << 10,
               l2_bytes=512 << 10, l3_bytes=2 << 20, l3_bytes_per_cycle=8, memory_bytes_per_cycle=4)

# RV64GC: what Linux distributions take for granted; no vectors. Sizes and speeds are guesses from the boards there are:
# in-order cores with 32 KiB and half a megabyte or more, on one or two channels of memory. `rv64gcv` has RVA23's vectors, of
# 128 bits and more: features: [+zvl256b] promises 256 (SpacemiT K1), and the code then demands them.
_RISCV = Target(
    "rv64gc", "riscv64", triple="riscv64-unknown-linux-gnu", cpu="generic-rv64", features=("+a", "+c", "+d", "+f", "+m"),
    cores=4, l3_bytes=0, in_order=True, l2_bytes_per_cycle=6, l3_bytes_per_cycle=1, memory_bytes_per_cycle=1)

# Fixed-width SIMD, which browsers have since 2021 to 2023; caches are those of whatever machine it will be
_WASM = Target("wasm32", "wasm32", triple="wasm32-unknown-unknown", cpu="generic", features=("+simd128",), pointer_bits=32)

PRESETS: dict[str, Target] = {
    "x86-64-v2": replace(_X86, features=tuple(sorted(_V2)), vector_bits=128, vector_registers=16, has_fma=False),
    "x86-64-v3": replace(_X86, name="x86-64-v3", features=tuple(sorted(_V3)), vector_bits=256, vector_registers=16),
    "x86-64-v4": replace(_X86, name="x86-64-v4", features=tuple(sorted(_V4)), vector_bits=512, vector_registers=32),
    "armv8-a": _ARM,
    "cortex-a53": _A53,
    "cortex-a72": _A72,
    "cortex-a55": _A55,
    "cortex-a76": _A76,
    "rpi3": replace(_A53, name="rpi3", l3_bytes_per_cycle=0.5, memory_bytes_per_cycle=0.5),
    "rk3399": replace(_A72, name="rk3399", cores=2),            # its two big cores: two clusters share no cache
    "rv64gc": with_features(_RISCV, ()),
    "rv64gcv": with_features(replace(_RISCV, name="rv64gcv"), ("+v",)),
    "wasm32": with_features(_WASM, ()),
}
HOST = ("x86", "host")                      # names of the machine the build runs on
ALONE = {"wasm32": "wasm32"}                # kind -> the only CPU of that kind, which nobody has to name


def target(spec: str | Mapping[str, Any] | Target) -> Target:
    """The Target that a name, or a mapping of its fields, means.

    A mapping may start from a name: {"preset": "x86-64-v3", "cores": 8}. Raises UsageError: an unknown name or field.
    """
    match spec:
        case Target():
            return spec
        case str():
            return _named(spec)
    fields = dict(spec)
    base = _named(fields.pop("preset", "x86")).to_json()
    known = [f.name for f in dataclasses.fields(Target)]
    if unknown := sorted(set(fields) - set(known)):
        raise UsageError(f"a target has no {', '.join(unknown)}", fix=f"fields: preset, {', '.join(known)}")
    return Target.from_json({**base, **fields})


def _named(name: str) -> Target:
    if name in HOST:
        # here, for it loads LLVM: planning for a preset does not need that
        from toolchain.targets.llvm.cpu import host_target

        return host_target()
    if name in PRESETS:
        return PRESETS[name]
    raise UsageError(f"no target '{name}'", fix=did_you_mean(name, (*HOST, *PRESETS), noun="targets"))


__all__ = ["ALONE", "HOST", "PRESETS", "target"]
