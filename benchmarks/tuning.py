"""Print how soon each search method finds fast schedules, and what a trial costs: python benchmarks/tuning.py

Every method searches the spaces of the same kernels with the same measurer, from the same default.
Convolutions C1..C12 are ResNet-18's, D1..D9 MobileNet's depthwise ones (TVM, OSDI 2018, table 2), GEMM is 512^3.

    gain       the default's time / the best one's after that many trials, failures included; geometric mean over kernels,
               median over seeds
    s/trial    wall time of a trial, its build, its checks and the choice of it included
    failed     candidates without a time

Times are of one thread. Afterwards the best of each kernel and its default take turns (confirmed): the minimum over many
noisy samples flatters. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from toolchain.graph.importers.onnx import import_onnx
from toolchain.report.statistics import geometric_mean
from toolchain.targets.llvm.cpu import host_target
from toolchain.tasks.compile import compile_workload
from toolchain.tasks.optimize import optimize_graph
from toolchain.tasks.tuning.candidates import space_of
from toolchain.tasks.tuning.confirm import confirm
from toolchain.tasks.tuning.kernels import fused_nodes
from toolchain.tasks.tuning.local import Job, LocalMeasurer
from toolchain.te.tune.measure import Trial
from toolchain.te.tune.searchers import SEARCHERS
from toolchain.te.tune.session import Entry, Limits, Session, TuneTask
from toolchain.te.tune.space import Space

# name -> (size, channels in, channels out, window, stride)
RESNET = {
    "C1": (224, 3, 64, 7, 2), "C2": (56, 64, 64, 3, 1), "C3": (56, 64, 64, 1, 1), "C4": (56, 64, 128, 3, 2),
    "C5": (56, 64, 128, 1, 2), "C6": (28, 128, 128, 3, 1), "C7": (28, 128, 256, 3, 2), "C8": (28, 128, 256, 1, 2),
    "C9": (14, 256, 256, 3, 1), "C10": (14, 256, 512, 3, 2), "C11": (14, 256, 512, 1, 2), "C12": (7, 512, 512, 3, 1),
}
# name -> (size, channels, stride)
MOBILENET = {
    "D1": (112, 32, 1), "D2": (112, 64, 2), "D3": (56, 128, 1), "D4": (56, 128, 2), "D5": (28, 256, 1), "D6": (28, 256, 2),
    "D7": (14, 512, 1), "D8": (14, 512, 2), "D9": (7, 1024, 1),
}
GEMM = 512
CHECKPOINTS = (1, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    job: Job
    space: Space


def model(name: str) -> onnx.ModelProto:
    """One layer and a Relu."""
    def layer(op: str, x: Sequence[int], w: Sequence[int], **attributes: object) -> onnx.ModelProto:
        weights = (np.random.default_rng(0).standard_normal(w) / 20).astype(np.float32)
        nodes = [helper.make_node(op, ["x", "w"], ["y"], **attributes), helper.make_node("Relu", ["y"], ["r"])]
        graph = helper.make_graph(nodes, name, [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
                                  [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)],
                                  [numpy_helper.from_array(weights, "w")])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if name == "GEMM":
        return layer("MatMul", (GEMM, GEMM), (GEMM, GEMM))
    if name in RESNET:
        size, channels, outputs, window, stride = RESNET[name]
        return layer("Conv", (1, channels, size, size), (outputs, channels, window, window), strides=[stride, stride],
                     pads=[window // 2] * 4)
    size, channels, stride = MOBILENET[name]
    return layer("Conv", (1, channels, size, size), (channels, 1, 3, 3), group=channels, strides=[stride, stride],
                 pads=[1] * 4)


def kernel(name: str, folder: Path) -> Kernel:
    """The kernel of a layer that computes most of it, as a build for this machine has it."""
    onnx.save(model(name), folder / "model.onnx")
    target = host_target()
    graph, workloads = optimize_graph(import_onnx(folder / "model.onnx"), target)
    key, node = max(fused_nodes(graph), key=lambda found: found[1].flops)
    _, facts = compile_workload(workloads[key].body, target)
    return Kernel(Job(name, workloads[key].body, target, node.weights, node.flops),
                  space_of(workloads[key].body, target, facts["answers"]))


class Forgetful:
    """A log that keeps nothing: each search is a new one."""

    def entries(self) -> Sequence[Entry]:
        return ()

    def append(self, entry: Entry) -> None:
        pass


def search(k: Kernel, measurer: LocalMeasurer, searcher: str, seed: int, trials: int) -> tuple[Session, list[Trial]]:
    done: list[Trial] = []
    session = Session([TuneTask(k.job.key, k.job.key, k.space)], measurer, Forgetful(), searcher=searcher, seed=seed,
                      limits=Limits(trials=trials), on_trial=lambda task, trial: done.append(trial), clock=time.monotonic)
    session.run()
    return session, done


def gains(trials: Sequence[Trial], limit: int) -> Iterator[tuple[int, float]]:
    """(trials, default's time / best so far) at each checkpoint; where a space is exhausted, the last one goes on."""
    default_us = trials[0].best_us
    for n in (c for c in CHECKPOINTS if c <= limit):
        yield n, default_us / min(t.best_us for t in trials[:n])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = ",".join((*RESNET, *MOBILENET, "GEMM"))
    parser.add_argument("--kernels", default=every)
    parser.add_argument("--searchers", default=",".join(SEARCHERS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=64)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tc-tuning-") as folder:
        kernels = [kernel(name, Path(folder)) for name in a.kernels.split(",")]
    found: dict[str, list[Mapping[int, float]]] = {}
    costs: dict[str, list[Trial]] = {}
    best: dict[str, tuple[Session, float]] = {}
    with LocalMeasurer([k.job for k in kernels]) as measurer:
        for k in kernels:
            for name in a.searchers.split(","):
                for seed in range(a.seeds):
                    session, trials = search(k, measurer, name, seed, a.trials)
                    found.setdefault(f"{name} {seed}", []).append(dict(gains(trials, a.trials)))
                    costs.setdefault(name, []).extend(trials)
                    us = min(t.best_us for t in trials)
                    if k.job.key not in best or us < best[k.job.key][1]:
                        best[k.job.key] = session, us
        show(a.searchers.split(","), a.seeds, found, costs)
        for k in kernels:
            result = confirm(k.job.key, k.space.default, best[k.job.key][0].best(k.job.key, 2), measurer)
            print(f"{k.job.key}: {result.default_us:.1f} us, confirmed {result.tuned_us:.1f} us  {result.winner or ''}")


def show(names: Sequence[str], seeds: int, found: Mapping[str, Sequence[Mapping[int, float]]],
         costs: Mapping[str, Sequence[Trial]]) -> None:
    checkpoints = list(next(iter(found.values()))[0])
    table = Table("method", *(f"gain at {n}" for n in checkpoints), "s/trial", "failed")
    for name in names:
        runs = [found[f"{name} {seed}"] for seed in range(seeds)]
        cells = [statistics.median(geometric_mean([by[n] for by in run]) for run in runs) for n in checkpoints]
        trials = costs[name]
        table.add_row(name, *(f"{c:.3f}" for c in cells), f"{sum(t.cost_s for t in trials) / len(trials):.3f}",
                      f"{sum(bool(t.error) for t in trials)} of {len(trials)}")
    Console().print(table)


if __name__ == "__main__":
    main()
