"""What /proc says, read from samples of it."""

from __future__ import annotations

from toolchain.report.system import clocks_mhz, cpu_name, cpu_ticks, steal_percent, watch_system

CPUINFO = """processor\t: 0
model name\t: Example: CPU @ 2.60GHz
cpu MHz\t\t: 2596.134
flags\t\t: fpu model name

processor\t: 1
model name\t: Example: CPU @ 2.60GHz
cpu MHz\t\t: 3100.5
"""


def test_cpuinfo() -> None:
    assert cpu_name(CPUINFO) == "Example: CPU @ 2.60GHz"
    assert clocks_mhz(CPUINFO) == [2596, 3100]
    assert clocks_mhz("processor : 0\n") == []              # Arm kernels do not say
    assert cpu_name("processor : 0\n")                      # then the architecture


def test_stolen_time() -> None:
    before = cpu_ticks("cpu  100 0 50 800 10 0 0 40 0 0\ncpu0 1 2 3\n")
    after = cpu_ticks("cpu  150 0 60 850 10 0 0 80 7 7\n")
    assert before == (1000, 40) and after == (1150, 80)     # guest time is part of user time: not counted twice
    assert steal_percent(before, after) == 26.7
    assert steal_percent(before, before) == 0.0
    assert cpu_ticks("cpu 1 2\n") == (0, 0)


def test_watching_this_machine() -> None:
    with watch_system() as describe:
        pass
    system = describe()
    assert system.cores > 0 and system.kernel and system.cpu
    assert system.mhz[0] <= system.mhz[1]
