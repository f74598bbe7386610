"""What a board says of itself, and the conditions it measured under: governor, clocks, temperature, throttling.

All of it is read from files of the kernel; what a board does not have is left out. `Conditions` are taken before and after a
measurement, and `disturbances` says what makes it one that proves nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from toolchain.core.errors import DeviceError
from toolchain.remote.frames import Kind
from toolchain.remote.session import Session

CALIBRATION_ROUNDS = 2_000_000          # of dependent operations: 5 ms on a slow core
CALIBRATION_LIMIT = 0.05                # by how much its time may change between before and after
TOP_CLOCK_SHARE = 0.95                  # of the time between must be spent at one clock

CPU = "/sys/devices/system/cpu/cpu*/cpufreq/"
FACT_FILES = ("/proc/cpuinfo", "/proc/meminfo", "/proc/device-tree/model", "/sys/devices/virtual/dmi/id/product_name",
              CPU + "scaling_governor", CPU + "scaling_max_freq", CPU + "cpuinfo_max_freq")
CONDITION_FILES = (CPU + "scaling_governor", CPU + "scaling_cur_freq", CPU + "stats/time_in_state", "/proc/loadavg",
                   "/sys/class/thermal/thermal_zone*/temp", "/sys/class/thermal/cooling_device*/cur_state",
                   "/sys/devices/platform/soc/soc:firmware/get_throttled",
                   "/sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count")
# What only a kernel for such a CPU writes in /proc/cpuinfo
NATIVE = {"vendor_id": "x86_64", "CPU implementer": "aarch64", "\nisa\t": "riscv64"}
# Arm's numbers of its cores, as /proc/cpuinfo has them (Linux arch/arm64/include/asm/cputype.h)
ARM_PARTS = {
    "0xd03": "Cortex-A53", "0xd04": "Cortex-A35", "0xd05": "Cortex-A55", "0xd07": "Cortex-A57", "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73", "0xd0a": "Cortex-A75", "0xd0b": "Cortex-A76", "0xd0c": "Neoverse-N1", "0xd0d": "Cortex-A77",
    "0xd41": "Cortex-A78", "0xd44": "Cortex-X1", "0xd46": "Cortex-A510",
}


@dataclass(frozen=True, slots=True)
class BoardFacts:
    """machine: as `uname -m` of the runner says. emulated: why times from here are no times of a board; empty: they are."""

    machine: str
    kernel: str
    cpu: str
    model: str
    cpus: int
    disk_free_bytes: int
    memory_bytes: int
    governors: tuple[str, ...] = ()
    max_mhz: float = 0.0
    emulated: str = ""


@dataclass(frozen=True, slots=True)
class Conditions:
    """At one moment. residency_ms: time since boot at each clock in kHz, over all cores; throttled: what says so."""

    governors: tuple[str, ...] = ()
    mhz: tuple[float, ...] = ()
    residency_ms: Mapping[int, int] = field(default_factory=dict)
    temperature_c: float = 0.0              # of the hottest zone; 0: there is none
    throttle_events: int = 0
    throttled_now: str = ""
    load: float = 0.0
    calibration_ns: int = 0


def read_files(session: Session, patterns: tuple[str, ...]) -> dict[str, str]:
    """Files of the board by their paths; a pattern's component may have one '*'."""
    data = session.request(Kind.READ, b"".join(p.encode() + b"\0" for p in patterns))
    found, at = {}, 0
    while at + 4 <= len(data):
        (length,) = struct.unpack_from("<I", data, at)
        path, at = data[at + 4:at + 4 + length].decode(errors="replace"), at + 4 + length
        (length,) = struct.unpack_from("<I", data, at)
        found[path], at = data[at + 4:at + 4 + length].decode(errors="replace"), at + 4 + length
    return found


def _said(session: Session) -> dict[str, str]:
    return dict(line.partition(" ")[::2] for line in session.request(Kind.FACTS).decode(errors="replace").splitlines())


def machine(session: Session) -> str:
    """As `uname -m` says to the runner, which an emulator may answer."""
    return _said(session).get("machine", "")


def check_cpu_set(session: Session) -> None:
    """Raises DeviceError: `cpus` names some that the board does not have, or that its user may not use; the kernel would run
    models on the others, or anywhere."""
    asked = sorted(set(session.board.cpus))
    if asked and (there := int(_said(session).get("cpus_of_set", "0"))) < len(asked):
        raise DeviceError(f"{there} of its `cpus` {', '.join(map(str, asked))} can be used", where=session.board.where, fix=(
            "name others in the deployfile; on the board, `cat /sys/fs/cgroup/cpuset.cpus.effective` or `lscpu` tells which "
            "there are"))


def board_facts(session: Session) -> BoardFacts:
    said = _said(session)
    files = read_files(session, FACT_FILES)
    info = files.get("/proc/cpuinfo", "")
    model = files.get("/proc/device-tree/model", "") or files.get("/sys/devices/virtual/dmi/id/product_name", "")
    clocks = [int(text) for path, text in files.items() if path.endswith("cpuinfo_max_freq") and text.strip().isdecimal()]
    return BoardFacts(
        machine=said.get("machine", ""), kernel=said.get("kernel", ""), cpu=cpu_name(info), model=model.strip("\0\n "),
        cpus=int(said.get("cpus", "1")), disk_free_bytes=int(said.get("disk_free_bytes", "0")),
        memory_bytes=_memory_bytes(files.get("/proc/meminfo", "")),
        governors=tuple(sorted({t.strip() for p, t in files.items() if p.endswith("scaling_governor")})),
        max_mhz=max(clocks, default=0) / 1e3, emulated=emulation(session.board.exec_prefix, said.get("machine", ""), info))


def emulation(exec_prefix: str, machine: str, cpuinfo: str) -> str:
    """Why this is no board: an emulator as exec_prefix, or a kernel that describes another kind of CPU than programs see."""
    program = exec_prefix.split()[0].rpartition("/")[2] if exec_prefix.split() else ""
    if program.startswith("qemu"):
        return f"runs in {program}"
    native = next((name for word, name in NATIVE.items() if word in cpuinfo), "")
    if machine in NATIVE.values() and native and native != machine:
        return f"programs for {machine} run on a CPU of {native}"
    return ""


def cpu_name(cpuinfo: str) -> str:
    """"4 x Cortex-A53 + 2 x Cortex-A72", "4 x sifive,u74-mc", or the model name that an x86 CPU gives."""
    fields = [line.partition(":")[::2] for line in cpuinfo.splitlines()]
    names = [value.strip() for name, value in fields if name.strip() == "model name"]
    parts = [value.strip() for name, value in fields if name.strip() == "CPU part"]
    if harts := [value.strip() for name, value in fields if name.strip() == "uarch"]:
        return " + ".join(f"{harts.count(name)} x {name}" for name in dict.fromkeys(harts))
    if not parts:
        return names[0] if names else ""
    counted = {ARM_PARTS.get(p, f"Arm part {p}"): parts.count(p) for p in parts}
    return " + ".join(f"{n} x {name}" for name, n in counted.items())


def _memory_bytes(meminfo: str) -> int:
    for line in meminfo.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def missing_features(session: Session, features: list[tuple[str, int, int, int, int]]) -> list[str]:
    """features: (name, leaf, subleaf, register, mask) as the runtime asks for them; the names of those the CPU lacks."""
    asked = b"".join(struct.pack("<4I", *feature[1:]) for feature in features)
    there = session.request(Kind.FEATURES, asked)
    if len(there) != len(features):
        raise DeviceError("the board did not say which features its CPU has", where=session.board.where)
    return [feature[0] for feature, has in zip(features, there, strict=True) if not has]


# --- conditions -----------------------------------------------------------------------------------------------------------


def conditions(session: Session) -> Conditions:
    """Now. The calibrated loop runs first, so that the clock has had the time to rise."""
    rounds = struct.pack("<q", CALIBRATION_ROUNDS)
    ns = min(struct.unpack("<q", session.request(Kind.CALIBRATE, rounds))[0] for _ in range(3))
    return parse_conditions(read_files(session, CONDITION_FILES), ns)


def parse_conditions(files: Mapping[str, str], calibration_ns: int = 0) -> Conditions:
    def ending(end: str) -> list[str]:
        return [text.strip() for path, text in sorted(files.items()) if path.endswith(end)]

    residency: dict[int, int] = {}
    for text in ending("time_in_state"):
        for line in text.splitlines():
            khz, _, ticks = line.partition(" ")
            if khz.isdecimal() and ticks.strip().isdecimal():
                residency[int(khz)] = residency.get(int(khz), 0) + 10 * int(ticks)
    temperatures = [int(t) / 1000 for p, t in files.items() if "thermal_zone" in p and t.strip().lstrip("-").isdecimal()]
    flags = "".join(ending("get_throttled"))
    return Conditions(
        governors=tuple(sorted(set(ending("scaling_governor")))),
        mhz=tuple(int(t) / 1e3 for t in ending("scaling_cur_freq") if t.isdecimal()), residency_ms=residency,
        temperature_c=max(temperatures, default=0.0),
        throttle_events=sum(int(t) for t in ending("core_throttle_count") if t.isdecimal()),
        throttled_now=throttle_flags(flags), load=float((files.get("/proc/loadavg") or "0").split()[0]),
        calibration_ns=calibration_ns)


def throttle_flags(text: str) -> str:
    """Of a Raspberry Pi's firmware, a hexadecimal number: bits 0 to 3 are about now."""
    try:
        bits = int(text, 16)
    except ValueError:
        return ""
    meanings = ("under-voltage", "clock capped", "throttled", "soft temperature limit")
    return ", ".join(words for n, words in enumerate(meanings) if bits >> n & 1)


def clock_shares(before: Conditions, after: Conditions) -> tuple[tuple[float, float], ...]:
    """(MHz, share of the time between) of each clock that was used; nothing where the kernel does not count."""
    spent = {khz: after.residency_ms[khz] - before.residency_ms.get(khz, 0) for khz in sorted(after.residency_ms)}
    total = sum(ms for ms in spent.values() if ms > 0)
    return tuple((khz / 1e3, round(ms / total, 4)) for khz, ms in spent.items() if ms > 0) if total >= 200 else ()


def disturbances(before: Conditions, after: Conditions) -> tuple[str, ...]:
    """What happened between that makes a measurement unsteady, in words."""
    found = []
    if after.throttled_now or before.throttled_now:
        found.append(f"the board says: {after.throttled_now or before.throttled_now}")
    if after.throttle_events > before.throttle_events:
        found.append(f"{after.throttle_events - before.throttle_events} throttling events")
    if before.calibration_ns and abs(after.calibration_ns / before.calibration_ns - 1) > CALIBRATION_LIMIT:
        change = 100 * (after.calibration_ns / before.calibration_ns - 1)
        found.append(f"a loop of integers took {abs(change):.0f} % {'more' if change > 0 else 'less'} after than before")
    shares = clock_shares(before, after)
    if shares and max(share for _, share in shares) < TOP_CLOCK_SHARE:
        found.append("the clock changed: " + ", ".join(f"{mhz:.0f} MHz {share:.0%}" for mhz, share in shares))
    return tuple(found)
