"""What limits a layer, decided from facts: one case per sentence."""

from __future__ import annotations

import pytest
from sample_report import speed_of_threads

from toolchain.report.facts import LayerFacts, MachineFacts
from toolchain.report.roofline import level_for, roofs

# 400 GFLOP/s; GB/s read and copied: L2 (2 MiB) 200, 160; L3 (32 MiB) 50, 40; memory 20, 15
TWO = speed_of_threads(2)
MB = 10**6


def layer(time_us: float, gflop: float = 0.0, *, hot_us: float | None = None, moved: float = 0, weights: float = 0,
          kernel: str = "conv", chunks: int = 64, computed: float = 0.0) -> LayerFacts:
    return LayerFacts(kernel, (), time_us, gflop * 1e9, hot_us, int(moved * MB), int(weights * MB), computed * 1e9, chunks)


@pytest.mark.parametrize(("facts", "limit"), [
    (layer(6.0, 0.0004), "overhead: the work itself would take 1.0 us"),
    (layer(900.0, 0.2, chunks=1), "parallelism: 1 chunk for 2 threads"),
    (layer(900.0, 0.2, chunks=3), "parallelism: 3 chunks on 2 threads do not come out even"),
    (layer(600.0, 0.2), "compute: 83 % of the peak"),
    (layer(600.0, 0.8, computed=0.2), "compute: 83 % of the peak"),
    (layer(1200.0, 0.2), "the code: 42 % of what compute allows, even hot"),
    (layer(1200.0, 0.2, hot_us=1190.0, moved=0.1), "the code: 42 % of what compute allows, even hot"),
    (layer(1200.0, 0.2, hot_us=700.0, moved=10, weights=9),
     "weights cold: 1.7 times its hot time; 9.0 MB from L3 take 180 us"),
    (layer(4000.0, 0.2, hot_us=700.0, moved=1, weights=0.6),
     "threads held up: 5.7 times its hot time, of which cold data explain 6 us "
     "(something else ran on these cores, or a thread had to be woken)"),
    (layer(400.0, 0.05, hot_us=200.0, moved=4), "activations cold: 2.0 times its hot time; 4.0 MB from L3 take 100 us"),
    (layer(4000.0, 0.01, moved=60, weights=20), "memory bandwidth: 92 % of it, mostly activations"),
    (layer(15.0, moved=1.6, kernel="layout"), "conversion, L2 bandwidth: 67 % of it, mostly activations"),
    (layer(90.0, moved=1.6, kernel="layout"), "conversion, the code: 11 % of what L2 bandwidth allows, even hot"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_what_limits_a_layer(facts: LayerFacts, limit: str) -> None:
    (roof,) = roofs([facts], TWO)
    assert roof.limit == limit
    assert roof.bound_us == max(roof.compute_us, roof.memory_us) == pytest.approx(roof.share * facts.network_us)


def test_weights_of_a_network_larger_than_the_caches_come_from_memory() -> None:
    """Each weight is read once per run: what was read since has pushed it out."""
    small, large = layer(100.0, 0.01, moved=1, weights=1), layer(5000.0, 0.1, moved=60, weights=60)
    alone, *_ = roofs([small], TWO)
    beside, *_ = roofs([small, large], TWO)
    assert alone.memory_us == pytest.approx(1e6 / 200 / 1e3) and beside.memory_us == pytest.approx(1e6 / 20 / 1e3)


def test_the_nearest_level_that_holds_it() -> None:
    assert [level_for(TWO, size).name for size in (0, 2 << 20, (2 << 20) + 1, 33 << 20)] == ["L2", "L2", "L3", "memory"]


def test_ceilings_of_other_numbers_of_threads() -> None:
    """As measured; between: so many times one thread, but not above all cores; above: all cores."""
    facts = MachineFacts((speed_of_threads(1), speed_of_threads(8)))
    assert facts.at(1) is facts.speeds[0] and facts.at(8) is facts.speeds[1] and facts.at(16) is facts.speeds[1]
    three = facts.at(3)
    assert (three.threads, three.peak_gflops) == (3, 600.0)
    assert [(x.name, x.holds_bytes, x.read_gb_s) for x in three.levels] == [
        ("L2", 3 << 20, 300.0), ("L3", 32 << 20, 75.0), ("memory", 0, 20.0)]
