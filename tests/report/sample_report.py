"""A report with every case in it: passes, failures, rivals that are slower, faster, unstable and dead, hostile names."""

from __future__ import annotations

from collections.abc import Mapping

from toolchain.report.facts import (
    BuildFacts,
    BuildReport,
    ContenderFacts,
    LayerFacts,
    MachineFacts,
    MachineSpeed,
    MeasureFacts,
    MemoryLevel,
    OutputError,
    Report,
    System,
    VerifyFacts,
)
from toolchain.report.statistics import compare, summarize

SYSTEM = System("Example CPU [bold]", 2, "6.1.0", "performance", (2400.0, 2600.0), 0.12, 3.5)
HOSTILE = "[red]|x|</testcase>\x1b[31m`<script>` @all #1 https://example.org"


def contender(
    name: str, base_us: float, *, ours: bool = False, wobble: float = 0.01, config: Mapping[str, str] | None = None,
    outputs: tuple[OutputError, ...] = (),
) -> ContenderFacts:
    """Eight bursts around `base_us`, which move up and down by `wobble`."""
    bursts = tuple(tuple(base_us * (1 + wobble * ((r * 7 + i) % 5 - 2) / 2) for i in range(4)) for r in range(8))
    return summarize(ContenderFacts(name, ours, "1.0", config or {"threads": "2"}, bursts, load_ms=base_us / 100,
                                    peak_bytes=90_000_000, outputs=outputs))


def measured(base_us: float, *rivals: ContenderFacts, system: System = SYSTEM, threads: int = 2) -> MeasureFacts:
    ours = contender("ours", base_us, ours=True)
    comparisons = tuple(c for c in (compare(ours, r) for r in rivals) if c)
    return MeasureFacts(threads, 8, 0.25, (ours, *rivals), comparisons, system, reference="onnxruntime")


def speed_of_threads(threads: int) -> MachineSpeed:
    """A machine of 200 GFLOP/s and 25 GB/s a core; memory is shared."""
    levels = (MemoryLevel("L2", threads << 20, 100.0 * threads, 80.0 * threads),
              MemoryLevel("L3", 32 << 20, 25.0 * threads, 20.0 * threads), MemoryLevel("memory", 0, 20.0, 15.0))
    return MachineSpeed(threads, 200.0 * threads, levels)


def report() -> Report:
    error = OutputError("logits", (1, 1000), 3.1e-6, 2.2e-6, 0.04, True)
    good = BuildReport(
        BuildFacts("resnet18@x86", "resnet18", "x86", "fp32", 47_300_000, 46_700_000, 4_100_000, 3.21, 22, 0,
                   {"model": "ab" * 32, "artifact": "cd" * 32}, {"llvmlite": "0.50"}),
        VerifyFacts("onnxruntime 1.31.1", "random, seed 0", 1e-3, 1e-4, (error,)),
        (
            LayerFacts("conv2d_7x7", ("conv1", "bn1", "conv1.relu"), 812.0, 236e6, 650.0, 3_500_000),
            LayerFacts("max_pool", ("maxpool",), 60.5, 1.8e6, 58.0, 4_000_000, chunks=56),
            LayerFacts("conv2d_3x3", ("layer1.0.conv1", "layer1.0.bn1"), 702.5, 231.2e6, 576.0, 1_750_000, 147_456,
                       schedule="tuned"),
            LayerFacts("winogradconv_relu", ("layer4.1.conv1",), 801.0, 231.2e6, 440.0, 9_600_000, 9_437_184, 57.8e6, 32),
            LayerFacts("layout", (), 9.5, 0.0, 9.0, 200_000),
        ),
        measured(
            11_200.0, contender("onnxruntime", 12_300.0, config={"threads": "2", "io": "bound"}),
            contender("openvino", 11_000.0, wobble=0.5, outputs=(error,)), contender("fast", 9_000.0),
            ContenderFacts("dead", error="was killed by SIGSEGV: \x1b[2J"),
        ),
        MachineFacts((speed_of_threads(1), speed_of_threads(2))),
    )
    bad = BuildReport(
        BuildFacts(HOSTILE, "evil", "x86", "fp32", 1234, kernels=3, tuned_kernels=2),
        VerifyFacts("onnxruntime 1.31.1", "test_data_set_0", 1e-3, 1e-4,
                    (OutputError(HOSTILE, (2,), 0.5, 0.25, 412.0, False), error), "node_<b>@user", "build/repro"),
        (LayerFacts(HOSTILE, (HOSTILE, "b", "c"), 3.0),),
        measured(150.0, contender("onnxruntime", 149.9)),
    )
    broken = BuildReport(
        BuildFacts("broken@x86", "broken", "x86", "fp32", 10),
        VerifyFacts("onnxruntime 1.31.1", "random, seed 0", 1e-3, 1e-4, (), error="the reference cannot run it"),
    )
    return Report((good, bad, broken, BuildReport(BuildFacts("new@x86", "new", "x86", "fp32", 10))),
                  "tc report", "2026-01-02", {"toolchain": "0.1.0"})
