"""Which CPU features the runtime checks before it runs anything, so that a wrong CPU gets a message and not a SIGILL.

Only extensions that code generation may use on its own are listed: a CPU without `wbnoinvd` runs the code all the same.
Source: Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E; Linux arch/arm64/include/uapi/asm/hwcap.h,
arch/riscv/include/uapi/asm/hwcap.h and hwprobe.h.
"""

from __future__ import annotations

from dataclasses import dataclass

from toolchain.core.target import Target

EAX, EBX, ECX, EDX = range(4)
XCR0 = 0xFFFFFFFF  # a pseudo leaf: the register states that the operating system saves (TC_XCR0 in runtime/plan.h)
_AVX_STATE, _AVX512_STATE, _AMX_STATE = 0x6, 0xE6, 0x60000


@dataclass(frozen=True, slots=True)
class Feature:
    """x86: bits `mask` of a register of cpuid(leaf, subleaf). AArch64: of entry `leaf` of the auxiliary vector. RISC-V: of
    that, or of what the kernel and the vector unit say (runtime/riscv64.h)."""

    name: str
    leaf: int
    subleaf: int
    reg: int
    mask: int


# LLVM's name -> (leaf, subleaf, register, bit)
X86 = {
    "cx16": (1, 0, ECX, 13), "sse3": (1, 0, ECX, 0), "ssse3": (1, 0, ECX, 9), "sse4.1": (1, 0, ECX, 19),
    "sse4.2": (1, 0, ECX, 20), "popcnt": (1, 0, ECX, 23), "movbe": (1, 0, ECX, 22), "avx": (1, 0, ECX, 28),
    "fma": (1, 0, ECX, 12), "f16c": (1, 0, ECX, 29), "avx2": (7, 0, EBX, 5), "bmi": (7, 0, EBX, 3),
    "bmi2": (7, 0, EBX, 8), "adx": (7, 0, EBX, 19), "lzcnt": (0x80000001, 0, ECX, 5), "sahf": (0x80000001, 0, ECX, 0),
    "prfchw": (0x80000001, 0, ECX, 8), "sse4a": (0x80000001, 0, ECX, 6), "xop": (0x80000001, 0, ECX, 11),
    "fma4": (0x80000001, 0, ECX, 16), "tbm": (0x80000001, 0, ECX, 21), "avx512f": (7, 0, EBX, 16),
    "avx512dq": (7, 0, EBX, 17), "avx512ifma": (7, 0, EBX, 21), "avx512cd": (7, 0, EBX, 28), "avx512bw": (7, 0, EBX, 30),
    "avx512vl": (7, 0, EBX, 31), "avx512vbmi": (7, 0, ECX, 1), "avx512vbmi2": (7, 0, ECX, 6), "gfni": (7, 0, ECX, 8),
    "avx512vnni": (7, 0, ECX, 11), "avx512bitalg": (7, 0, ECX, 12), "avx512vpopcntdq": (7, 0, ECX, 14),
    "avx512vp2intersect": (7, 0, EDX, 8), "avx512fp16": (7, 0, EDX, 23), "avx512bf16": (7, 1, EAX, 5),
    "avxvnni": (7, 1, EAX, 4), "avxifma": (7, 1, EAX, 23), "avxvnniint8": (7, 1, EDX, 4), "avxneconvert": (7, 1, EDX, 5),
    "avxvnniint16": (7, 1, EDX, 10), "amx-tile": (7, 0, EDX, 24), "amx-bf16": (7, 0, EDX, 22), "amx-int8": (7, 0, EDX, 25),
    "amx-fp16": (7, 1, EAX, 21), "amx-complex": (7, 1, EDX, 8),
}  # fmt: skip

# LLVM's name -> (AT_HWCAP 16 or AT_HWCAP2 26, bit)
AARCH64 = {
    "fp-armv8": (16, 0), "neon": (16, 1), "crc": (16, 7), "lse": (16, 8), "fullfp16": (16, 10), "rdm": (16, 12),
    "dotprod": (16, 20), "sve": (16, 22), "sve2": (26, 1), "i8mm": (26, 13), "bf16": (26, 14),
}  # fmt: skip


# LLVM's name -> (AT_HWCAP, bit: the letter), or (TC_HWPROBE in runtime/riscv64.h, bit)
HWPROBE, VLEN = 0x100, 0x101
RISCV64 = {
    **{letter: (16, ord(letter) - ord("a")) for letter in "acdfmv"},
    "zba": (HWPROBE, 3), "zbb": (HWPROBE, 4), "zbs": (HWPROBE, 5), "zfh": (HWPROBE, 27), "zfhmin": (HWPROBE, 28),
    "zvfh": (HWPROBE, 30), "zvfhmin": (HWPROBE, 31),
    **{f"zvl{1 << n}b": (VLEN, n) for n in range(8, 14)},                  # each power of two up to the register's bits
}  # fmt: skip
WORDS = {"aarch64": AARCH64, "riscv64": RISCV64, "wasm32": {}}       # an engine checks a module itself


def required_features(target: Target) -> tuple[Feature, ...]:
    """What the CPU must have to run code for `target`, in the order of its features, then the state the system must save."""
    names = [f[1:] for f in target.features if f.startswith("+")]
    if (known := WORDS.get(target.triple.split("-")[0])) is not None:
        return tuple(Feature(n, known[n][0], 0, 0, 1 << known[n][1]) for n in names if n in known)
    found = [Feature(n, *X86[n][:3], 1 << X86[n][3]) for n in names if n in X86]
    states = (
        ("avx (operating system)", "avx", _AVX_STATE),
        ("avx512 (operating system)", "avx512", _AVX512_STATE),
        ("amx (operating system)", "amx", _AMX_STATE),
    )
    found += [Feature(text, XCR0, 0, 0, mask) for text, prefix, mask in states if any(n.startswith(prefix) for n in names)]
    return tuple(found)
