"""What boards say of themselves, and which conditions make a measurement one that proves nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from toolchain.remote.facts import (
    Conditions,
    clock_shares,
    cpu_name,
    disturbances,
    emulation,
    parse_conditions,
    throttle_flags,
)

CPU = "/sys/devices/system/cpu/cpu"
RK3399 = "".join(f"processor\t: {n}\nCPU implementer\t: 0x41\nCPU part\t: {part}\n\n"
                 for n, part in enumerate(["0xd03"] * 4 + ["0xd08"] * 2))


def test_cpus_are_named():
    assert cpu_name(RK3399) == "4 x Cortex-A53 + 2 x Cortex-A72"
    assert cpu_name("processor: 0\nCPU part: 0xfff\n") == "1 x Arm part 0xfff"
    assert cpu_name("model name\t: AMD EPYC\nmodel name\t: AMD EPYC\n") == "AMD EPYC"
    assert cpu_name("processor\t: 0\nisa\t\t: rv64imafdc\nuarch\t\t: sifive,u74-mc\n\n" * 4) == "4 x sifive,u74-mc"
    assert cpu_name("") == ""


@pytest.mark.parametrize(("prefix", "machine", "info", "expected"), [
    ("qemu-aarch64-static -cpu cortex-a53", "aarch64", "", "runs in qemu-aarch64-static"),
    ("/usr/bin/qemu-aarch64 -cpu max", "aarch64", "", "runs in qemu-aarch64"),
    ("", "aarch64", "vendor_id\t: AuthenticAMD\n", "programs for aarch64 run on a CPU of x86_64"),
    ("qemu-riscv64-static -cpu sifive-u54", "riscv64", "", "runs in qemu-riscv64-static"),
    ("", "riscv64", "vendor_id\t: AuthenticAMD\n", "programs for riscv64 run on a CPU of x86_64"),
    ("", "riscv64", "processor\t: 0\nisa\t\t: rv64imafdc\n", ""),
    ("", "aarch64", RK3399, ""), ("taskset 1", "aarch64", RK3399, ""), ("", "x86_64", "vendor_id: x", ""),
])
def test_emulators_are_noticed(prefix, machine, info, expected):
    assert emulation(prefix, machine, info) == expected


def test_conditions_are_read_from_the_kernels_files():
    found = parse_conditions({
        f"{CPU}0/cpufreq/scaling_governor": "ondemand\n", f"{CPU}1/cpufreq/scaling_governor": "ondemand\n",
        f"{CPU}0/cpufreq/scaling_cur_freq": "600000\n", f"{CPU}0/cpufreq/stats/time_in_state": "600000 10\n1200000 90\n",
        f"{CPU}1/cpufreq/stats/time_in_state": "600000 5\n1200000 5\n", "/proc/loadavg": "0.50 0.4 0.3 1/2 3\n",
        "/sys/class/thermal/thermal_zone0/temp": "48312\n", "/sys/class/thermal/thermal_zone1/temp": "51000\n",
        f"{CPU}0/thermal_throttle/core_throttle_count": "3\n",
        "/sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
    }, 7_000_000)
    spent = {600000: 150, 1200000: 950}
    assert found == Conditions(("ondemand",), (600.0,), spent, 51.0, 3, "under-voltage, throttled", 0.5, 7_000_000)
    assert parse_conditions({}) == Conditions()


def test_flags_of_a_raspberry_pi():
    assert throttle_flags("0") == throttle_flags("") == throttle_flags("nonsense") == ""
    assert throttle_flags("0x50000") == ""              # it happened before: not now
    assert throttle_flags("f") == "under-voltage, clock capped, throttled, soft temperature limit"


def test_what_disturbs_a_measurement():
    calm = Conditions(residency_ms={600000: 1000, 1200000: 5000}, calibration_ns=1_000_000)
    assert disturbances(calm, replace(calm, residency_ms={600000: 1010, 1200000: 6000}, calibration_ns=1_020_000)) == ()
    slower = replace(calm, residency_ms={600000: 1500, 1200000: 5500}, calibration_ns=1_100_000, throttle_events=2,
                     throttled_now="throttled")
    assert clock_shares(calm, slower) == ((600.0, 0.5), (1200.0, 0.5))
    assert disturbances(calm, slower) == (
        "the board says: throttled", "2 throttling events", "a loop of integers took 10 % more after than before",
        "the clock changed: 600 MHz 50%, 1200 MHz 50%")
