"""Print the figures of tuning: what a trial costs, how soon searches find fast schedules, how those stand beside others.

    python benchmarks/tuning.py                            everything but whole networks: some ten minutes the first time
    python benchmarks/tuning.py --only trials,quality --kernels C3,D1,D5
    python benchmarks/tuning.py --only candidates          what a candidate costs that is only looked at: half a minute
    python benchmarks/tuning.py --only networks --budget 10m --networks resnet18@x86

Sections (--only):

    trials      wall time of a trial in a session of 16 per kernel: build, check, run and the search itself; failures
    quality     the part of the best known speed after 1, 4, ... trials of each method: the whole space of each kernel is
                measured once (there is no better schedule to be found in it; of one of more than 1000, 1000 by chance and
                what the searches ask for), then every search runs on those times
    vendor      the best of `auto` after 8 trials beside ONNX Runtime on one thread, taken in turns
    candidates  microseconds of what is done to every candidate before some are built: its schedule, static rejection,
                features, the model's prediction; the shortest of several goes each, over schedules by chance
    networks    `tc tune` on whole networks of recipes/paper: the comparison it ends with

Convolutions C1..C12 are ResNet-18's, D1..D9 MobileNet's depthwise ones (TVM, OSDI 2018, table 2), GEMM is 512^3, TBG a
transposed batched product (Ansor's), T2D a transposed convolution (DCGAN's). Times are of one thread.

Every measurement is kept in --folder as soon as it is made: killed, the same command goes on where it was; another run
prints from what is there. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from rich.console import Console
from rich.table import Table
from tuning_models import DEPTHWISE, RESNET, model

from toolchain.build.records import Records
from toolchain.core.target import Target
from toolchain.graph.importers.onnx import import_onnx
from toolchain.report.statistics import geometric_mean
from toolchain.targets.llvm.cpu import host_target
from toolchain.tasks.compile import compile_workload
from toolchain.tasks.optimize import optimize_graph
from toolchain.tasks.tuning.boosted import Boosted
from toolchain.tasks.tuning.candidates import scheduled, space_of
from toolchain.tasks.tuning.compare import Comparison, drawing
from toolchain.tasks.tuning.kernels import fused_nodes
from toolchain.tasks.tuning.local import Job, LocalMeasurer
from toolchain.tasks.tuning.static import Footprint, footprint, refusal
from toolchain.tasks.tuning.tune import RecordLog
from toolchain.te.loop_ir import PrimFunc
from toolchain.te.tune.compare import Run, Shared, compare, quality
from toolchain.te.tune.features import features
from toolchain.te.tune.measure import Trial
from toolchain.te.tune.model import Sample
from toolchain.te.tune.searchers import SEARCHERS
from toolchain.te.tune.session import Entry, Limits, Session, TuneTask
from toolchain.te.tune.space import Point, Space

KERNELS = (*RESNET, *DEPTHWISE, "GEMM", "TBG", "T2D")
SECTIONS = ("candidates", "trials", "quality", "vendor")
CHECKPOINTS = (1, 4, 8, 16, 32, 64)
TRIALS, FEW_TRIALS = 64, 16
MOST = 1000             # schedules of a space that are measured
BATCH = 4
# Vendor's time / MetaSchedule's best after 64 trials (0.27, XGB, one seed, one core of a Sapphire Rapids): what 8 trials
# of ours are to reach.
METASCHEDULE = {"GEMM": 0.77, "C9": 0.65, "C12": 0.52, "C3": 1.27, "D1": 1.71, "TBG": 0.57}
ROUNDS = 7
LOOKED_AT = 8           # candidates of a kernel that are taken apart
RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "paper"


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """The kernel of a layer that computes most of it. alone: the layer has no other kernel."""

    job: Job
    space: Space
    alone: bool

    @property
    def task(self) -> TuneTask:
        return TuneTask(self.job.key, self.job.key, self.space)


def kernel(name: str, folder: Path) -> Kernel:
    """As a build for this machine has it."""
    onnx.save(model(name), folder / f"{name}.onnx")
    target = host_target()
    graph, workloads = optimize_graph(import_onnx(folder / f"{name}.onnx"), target)
    key, node = max(fused_nodes(graph), key=lambda found: found[1].flops)
    _, facts = compile_workload(workloads[key].body, target)
    return Kernel(Job(name, workloads[key].body, target, node.weights, node.flops),
                  space_of(workloads[key].body, target, facts["answers"]), len(workloads) == 1)


def measure_all(k: Kernel, shared: Shared, until_s: float, screen: Console) -> bool:
    """Every schedule of a space, the default first; of a large one MOST by chance. False: the time was over before."""
    distinct = {p.signature: p for p in (k.space.default, *k.space.all()) if not p.refused}
    default, *others = distinct.values()
    random.Random(0).shuffle(others)
    points, begun = [default, *others][:MOST], time.monotonic()
    for n in range(0, len(points), BATCH):
        if time.monotonic() > until_s:
            screen.print(f"{k.job.key}: {n} of {len(points)} schedules until the time was over", highlight=False)
            return False
        list(shared.measure(k.job.key, points[n:n + BATCH], math.inf))
    took_s = time.monotonic() - begun
    screen.print(f"{k.job.key}: {len(points)} of {len(distinct)} schedules, {took_s:.0f} s", highlight=False)
    return True


# -- sections -----------------------------------------------------------------------------------------------------------


class Forgetful:
    """A log that keeps nothing: what trials cost is measured anew."""

    def entries(self) -> Sequence[Entry]:
        return ()

    def append(self, entry: Entry) -> None:
        pass


def show_trials(kernels: Sequence[Kernel], measurer: LocalMeasurer, screen: Console) -> None:
    """One session of `auto` over all kernels, as `tc tune` runs it: what passes between trials is part of their cost."""
    trials: list[Trial] = []
    session = Session([k.task for k in kernels], measurer, Forgetful(), limits=Limits(trials=FEW_TRIALS), model=Boosted(),
                      on_trial=lambda _, trial: trials.append(trial), clock=time.monotonic)
    session.run()
    costs = sorted(t.cost_s for t in trials)
    causes = {cause: sum(t.cause == cause for t in trials) for cause in sorted({t.cause for t in trials if t.error})}
    table = Table("figure", "measured", "to reach")
    table.add_row("wall time of a trial, mean", f"{sum(costs) / len(costs):.3f} s", "<= 0.25 s")
    table.add_row("  median, 95 %", f"{statistics.median(costs):.3f} s, {costs[int(0.95 * (len(costs) - 1))]:.3f} s", "")
    table.add_row("failed candidates", f"{sum(causes.values())} of {len(trials)} {causes or ''}", "<= 2 %")
    screen.print(table)


def show_candidates(kernels: Sequence[Kernel], screen: Console) -> None:
    """What ranking a candidate takes, which is built only if it is among the best."""
    table = Table("kernel", "schedule", "static rejection", "features", "prediction", title="microseconds per candidate: "
                  "median, largest (to reach: static rejection some 50, features and prediction below 1000)",
                  title_justify="left")
    model = Boosted()
    for k in kernels:
        points = _some(k)
        model.learn(k.job.key, [Sample(p.features, p.expected, float(n + 1)) for n, p in enumerate(points)])
    for k in kernels:
        body, target, points = k.job.body, k.job.target, _some(k)
        usual = footprint(scheduled(body, target, k.space.default.answers).func, target)
        times: list[list[float]] = [[], [], []]
        for p in points:
            func = scheduled(body, target, p.answers).func
            parts = (partial(scheduled, body, target, p.answers), partial(_rejected, func, usual, target),
                     partial(features, func))
            for found, part in zip(times, parts, strict=True):
                found.append(_shortest_us(part))
        predicted = _shortest_us(partial(model.scores, points)) / len(points)
        table.add_row(k.job.key, *(f"{statistics.median(t):.0f}, {max(t):.0f}" for t in times), f"{predicted:.0f}")
    screen.print(table)


def _some(k: Kernel) -> list[Point]:
    """Schedules by chance that are not refused."""
    rng = random.Random(0)
    drawn = (k.space.sample(rng) for _ in range(20 * LOOKED_AT))
    return list(itertools.islice((p for p in drawn if not p.refused), LOOKED_AT))


def _rejected(func: PrimFunc, usual: Footprint, target: Target) -> str:
    return refusal(footprint(func, target), usual, target)


def _shortest_us(call: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return min(times) * 1e6


def show_quality(runs: Sequence[Run], searchers: Sequence[str], screen: Console) -> None:
    table = Table("method", *(f"after {n}" for n in CHECKPOINTS), title="part of the best known speed: geometric mean over "
                  "kernels, median over seeds (auto: to reach 0.90 after 16, 0.97 after 64)", title_justify="left")
    for name in searchers:
        table.add_row(name, *(f"{quality(runs, name, n)[1]:.3f}" for n in CHECKPOINTS))
    screen.print(table)
    if "auto" in searchers:
        each = Table("kernel", *(f"after {n}" for n in CHECKPOINTS), title="auto, each kernel", title_justify="left")
        for task in dict.fromkeys(r.task for r in runs):
            each.add_row(task, *(f"{quality(runs, 'auto', n, task)[1]:.3f}" for n in CHECKPOINTS))
        screen.print(each)


def show_vendor(kernels: Sequence[Kernel], shared: Shared, measurer: LocalMeasurer, folder: Path, screen: Console) -> None:
    table = Table("task", "ours after 8 trials", "ONNX Runtime", "vendor's time / ours", "to reach",
                  title="one thread, taken in turns", title_justify="left")
    parts = []
    for k in (k for k in kernels if k.job.key in METASCHEDULE):
        point = best_after(k, shared, 8)
        rival = vendor(folder / f"{k.job.key}.onnx")
        ours_us, theirs_us = [], []
        for _ in range(ROUNDS):
            theirs_us.append(rival())
            ours_us.append(min(measurer.compare(k.job.key, [point], 2)[0]))
        ours, theirs = statistics.median(ours_us), statistics.median(theirs_us)
        parts.append(theirs / ours)
        note = "" if k.alone else " (its heaviest kernel alone)"
        table.add_row(k.job.key + note, f"{ours:.1f} us", f"{theirs:.1f} us", f"{theirs / ours:.2f}",
                      f">= {METASCHEDULE[k.job.key]:.2f}")
    if parts:
        screen.print(table)
        screen.print(f"geometric mean {geometric_mean(parts):.2f}", highlight=False)


def best_after(k: Kernel, shared: Shared, trials: int) -> Point:
    """The fastest of a new search with seed 0."""
    found: list[Point] = []

    class Noting(Shared):
        def measure(self, task, points, best_cost):  # type: ignore[no-untyped-def]
            found.extend(points)
            return shared.measure(task, points, best_cost)
    compare([k.task], Noting.__new__(Noting), ["auto"], 1, trials, Boosted)
    times = {p: t.best_cost for p, t in zip(found, shared.measure(k.job.key, found, math.inf), strict=True)}
    return min(times, key=times.__getitem__)


def vendor(file: Path) -> Callable[[], float]:
    """Microseconds of a run in ONNX Runtime on one thread: the mean of as many as take 5 ms."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    inputs = {i.name: random.uniform(-1, 1, i.shape).astype(np.float32) for i in session.get_inputs()}

    def run() -> float:
        session.run(None, inputs)
        begun, n = time.perf_counter(), 0
        while (passed := time.perf_counter() - begun) < 5e-3:
            session.run(None, inputs)
            n += 1
        return passed / n * 1e6
    return run


def show_networks(names: Sequence[str], budget: str, folder: Path, screen: Console) -> None:
    """Each in its own store below the folder, so that nothing is known from before, and a killed run goes on."""
    for name in names:
        place = folder / name.replace("@", "-")
        if not place.exists():
            shutil.copytree(RECIPE, place)
        own = {**os.environ, "TC_STORE": str(place.absolute() / "store")}
        done = subprocess.run([sys.executable, "-m", "toolchain", "tune", name, "--budget", budget], cwd=place, env=own,
                              capture_output=True, text=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith((f"{name}:", "tuned "))]
        screen.print(f"{name}, --budget {budget}: {'; '.join(lines) or done.stderr[-500:]}", highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS))
    parser.add_argument("--kernels", default=",".join(KERNELS))
    parser.add_argument("--searchers", default=",".join(SEARCHERS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=math.inf, help="`quality` measures no longer than that, then ends")
    parser.add_argument("--svg", type=Path, help="draw the curves of `quality` there")
    parser.add_argument("--networks", default="resnet18@x86,mobilenet@x86,encoder@x86")
    parser.add_argument("--budget", default="10m")
    parser.add_argument("--folder", type=Path, default=Path("build") / "tuning-figures")
    a = parser.parse_args()
    only, screen = a.only.split(","), Console(width=140)
    a.folder.mkdir(parents=True, exist_ok=True)
    if any(section in only for section in SECTIONS):
        with tempfile.TemporaryDirectory(prefix="tc-tuning-") as models, Records(a.folder) as records:
            kernels = [kernel(name, Path(models)) for name in a.kernels.split(",")]
            with LocalMeasurer([k.job for k in kernels]) as measurer:
                shared = Shared(measurer, RecordLog(records, "figures"), {k.job.key: k.space for k in kernels})
                if "candidates" in only:
                    show_candidates(kernels, screen)
                if "trials" in only:
                    show_trials(kernels, measurer, screen)
                if "quality" in only:
                    until_s = time.monotonic() + a.seconds
                    done = [measure_all(k, shared, until_s, screen) for k in kernels]
                    if not all(done):
                        return
                    searchers = a.searchers.split(",")
                    runs = compare([k.task for k in kernels], shared, searchers, a.seeds, TRIALS, Boosted)
                    show_quality(runs, searchers, screen)
                    if a.svg is not None:
                        a.svg.write_text(drawing(Comparison(tuple(runs), tuple(searchers), TRIALS)))
                if "vendor" in only:
                    show_vendor(kernels, shared, measurer, Path(models), screen)
    if "networks" in only:
        show_networks(a.networks.split(","), a.budget, a.folder, screen)


if __name__ == "__main__":
    main()
