"""Print how fast fp32 networks run on this x86 machine beside ONNX Runtime and OpenVINO: python benchmarks/x86.py

    speed    every workload: the rivals' best, ours, and the ratio with its 95 % interval, for each of --threads
    busy     the same with two threads while another process spins on one core: how much slower each contender gets
    layers   each layer of ResNet-18, MobileNet and the encoder against the machine's measured peak and bandwidth
    load     loading an artifact and its first inference, beside ONNX Runtime's session; memory of a run
    call     what a run() from Python costs
    cold     an untuned build of ResNet-18 with an empty store

Contenders live in processes of their own, stopped while another runs (toolchain/report/measure.py); a measurement whose
bursts vary by more than 5 % is marked unstable. All numbers go to a JSON file; what it knows of the same artifact, rivals,
threads and time is not measured again (--again: it is), so an interrupted run goes on. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from figures import build_small_model, cold_build
from processes import compile_sources, spread
from recipe_builds import RECIPES, RecipeBuild, inputs_of, recipe_builds, single_model_project, user_store
from results import Figure, Results, failed, show
from rich.console import Console
from rich.table import Table
from speed import key_of, speed_of

from toolchain.build.store import Store
from toolchain.core.errors import ToolchainError
from toolchain.graph.serialize import load_files
from toolchain.report import console
from toolchain.report.contenders import is_installed, missing_baselines
from toolchain.report.facts import BuildFacts, BuildReport, MachineFacts, MeasureFacts, from_json, to_json
from toolchain.report.statistics import geometric_mean
from toolchain.report.system import watch_system
from toolchain.report.tables import layer_section
from toolchain.targets import presets
from toolchain.targets.llvm.module import Module
from toolchain.tasks.data import samples
from toolchain.tasks.machine import machine_facts
from toolchain.tasks.measure import profile
from toolchain.tasks.steps import assembled_folder

Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Workload:
    """A line of the table: patterns of "recipe/model", and the ratio (best rival's time / ours) to reach and to aim for.

    Several models give their geometric mean.
    """

    name: str
    models: tuple[str, ...]
    reach: float
    aim: float

    def has(self, build: str) -> bool:
        return any(fnmatchcase(build, pattern) for pattern in self.models)


LIGHT = tuple(f"light/{name}" for name in (
    "alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet", "vgg19", "zfnet512"))
WORKLOADS = (
    Workload("ResNet-18", ("paper/resnet18",), 1.3, 1.6),
    Workload("MobileNet v1", ("paper/mobilenet",), 1.25, 1.4),
    Workload("DQN", ("paper/dqn",), 1.3, 1.6),
    Workload("DCGAN generator", ("paper/dcgan",), 1.3, 1.6),
    Workload("LSTM language model", ("paper/lstm",), 1.1, 1.25),
    Workload("encoder, 128 tokens", ("paper/encoder",), 1.2, 1.4),
    Workload("the nine light models, geometric mean", LIGHT, 1.25, 1.5),
    Workload("PP-OCRv4 detection", ("ocr/detect",), 1.2, 1.5),
    Workload("PP-OCRv4 recognition", ("ocr/read",), 1.2, 1.5),
)
ONE_THREAD = (1.15, 1.4)                    # geometric mean of the same models on one thread
NOT_BELOW = 1.0                             # any model of any recipe
BUSY_MODELS = ("paper/resnet18", "paper/mobilenet", "paper/encoder", "paper/lstm", "paper/dqn")
BUSY_SECONDS = 12.0                         # of each contender: 200 runs and more of ResNet-18, also at half its speed
LAYERED = ("paper/resnet18", "paper/mobilenet", "paper/encoder")
FIRST_RUNS = 7
RUNTIME_BYTES = 10_000_000                  # what a run may need besides weights and planned arena


def main() -> int:
    options = parse_arguments()
    compile_sources()
    results = Results(options.json)
    screen = Console(width=None if sys.stdout.isatty() else 140)
    for name, why in missing_baselines(options.against).items():
        print(f"{name} is left out: {why}", file=sys.stderr)
    with watch_system() as system:
        for name in options.only:
            print(f"measuring: {name}", file=sys.stderr)
            try:
                SECTIONS[name](options, results, screen)
            except ToolchainError as error:
                show(name, [failed(name, "", str(error), "")], screen)
    results.put("system", "last", to_json(system()))
    print(f"all numbers: {options.json}", file=sys.stderr)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=_sections, default=tuple(SECTIONS), metavar="NAME,...", help="some of the sections")
    parser.add_argument("--threads", type=_numbers, default=(2, 1), metavar="N,...", help="of speed  [default: 2,1]")
    parser.add_argument("--models", type=_words, default=("*",), metavar="PATTERN,...",
                        help='of speed, busy and layers, as "paper/resnet18"  [default: all]')
    parser.add_argument("--root", type=Path, default=RECIPES, help="the folder of the recipes  [default: %(default)s]")
    parser.add_argument("--time", type=float, default=3.0, help="seconds per contender and model  [default: %(default)s]")
    parser.add_argument("--against", type=_words, default=("onnxruntime", "openvino"), metavar="NAME,...", help="the rivals")
    parser.add_argument("--again", action="store_true", help="measure anew what is known")
    parser.add_argument("--cold-runs", type=int, default=3, help="cold builds  [default: %(default)s]")
    parser.add_argument("--json", type=Path, default=Path(".tc/x86.json"), metavar="FILE", help="[default: %(default)s]")
    return parser.parse_args()


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in _words(text))


def _sections(text: str) -> tuple[str, ...]:
    if unknown := [word for word in _words(text) if word not in SECTIONS]:
        raise argparse.ArgumentTypeError(f"no section {unknown[0]!r}: there are {', '.join(SECTIONS)}")
    return _words(text)


def builds_of(options: argparse.Namespace, wanted: Sequence[str] = ("*",)) -> list[RecipeBuild]:
    """The recipes' builds that --models and `wanted` both mean."""
    recipes = sorted(path.parent.name for path in options.root.glob("*/deployfile.yaml"))
    found = recipe_builds(recipes, (), options.root)
    return [b for b in found if all(any(fnmatchcase(b.name, p) for p in patterns) for patterns in (wanted, options.models))]


# -- speed ------------------------------------------------------------------------------------------------------------


def measure_speed(options: argparse.Namespace, results: Results, screen: Console) -> None:
    for threads in options.threads:
        found = measure_all(options, results, builds_of(options), threads)
        screen.print(speed_table(found, threads))
        screen.print()


def measure_all(
    options: argparse.Namespace, results: Results, builds: Sequence[RecipeBuild], threads: int, *, busy: bool = False,
) -> dict[str, Facts]:
    """The facts of each build by its name; a build that fails is said and left out."""
    found: dict[str, Facts] = {}
    seconds = max(options.time, BUSY_SECONDS) if busy else options.time
    with user_store() as store:
        for build in builds:
            known = {} if options.again else results.data["speed"]
            try:
                facts = speed_of(store, build, known, against=options.against, threads=threads, seconds=seconds, busy=busy)
            except ToolchainError as error:
                print(f"  {build.name}: {str(error).splitlines()[0]}", file=sys.stderr)
                continue
            results.put("speed", key_of(build, threads, busy), facts)
            found[build.name] = facts
            print(f"  {build.name}: {ratio_text(facts)}", file=sys.stderr)
    return found


def best_rival(facts: Facts) -> str:
    """The rival with the smallest median; "" when none ran."""
    ran: Sequence[str] = [name for name in facts["speedup"] if name in facts["medians_us"]]
    return min(ran, key=lambda name: facts["medians_us"][name], default="")


def ratio(facts: Facts) -> tuple[float, float, float]:
    """(best rival's time / ours, and its 95 % interval), paired by bursts. Needs a rival that ran."""
    median, low, high = facts["speedup"][best_rival(facts)]
    return median, low, high


def ratio_text(facts: Facts) -> str:
    if not best_rival(facts):
        return "; ".join(f"{name} failed: {error.splitlines()[0]}" for name, error in facts["errors"].items()) or "no rival"
    median, low, high = ratio(facts)
    return f"{median:.2f} [{low:.2f}, {high:.2f}] of {best_rival(facts)}{marks([facts])}"


def marks(measured: Sequence[Facts]) -> str:
    """What makes a number less than it seems."""
    return ((", unstable" if any(f["unstable"] for f in measured) else "")
            + ("" if all(f["passed"] for f in measured) else ", WRONG OUTPUTS"))


def speed_table(found: Mapping[str, Facts], threads: int) -> Table:
    """The table of the workloads; below it every other model that was measured, and what holds for all of them."""
    table = _table(f"fp32, {threads} thread{'s' * (threads > 1)}, batch 1",
                   ("workload", "rivals' best", "ours", "ratio [95 %]", "to reach", "aim", ""))
    useful = {name: facts for name, facts in found.items() if best_rival(facts)}
    in_table: list[float] = []
    for workload in WORKLOADS:
        own = {name: facts for name, facts in useful.items() if workload.has(name)}
        if own:
            in_table += [ratio(facts)[0] for facts in own.values()]
            table.add_row(*_row(workload, own, threads))
    if threads == 1 and in_table:
        mean = geometric_mean(in_table)
        table.add_row("all of these, geometric mean", "", "", f"{mean:.2f}", *_goal(mean, *ONE_THREAD))
    for name, facts in useful.items():
        if not any(w.has(name) and len(w.models) == 1 for w in WORKLOADS):
            table.add_row(f"  {name}", _rival_text(facts), _ms(facts["medians_us"]["ours"]), _interval(facts), "",
                          "", marks([facts]).lstrip(", "))
    if useful:
        worst = min(useful, key=lambda name: ratio(useful[name])[0])
        least = ratio(useful[worst])[0]
        table.add_row(f"least of {len(useful)} models: {worst}", "", "", f"{least:.2f}", f">= {NOT_BELOW}", "",
                      "reached" if least >= NOT_BELOW else "not reached")
    return table


def _row(workload: Workload, own: Mapping[str, Facts], threads: int) -> tuple[str, ...]:
    """A model, or the geometric mean of several (of those that were measured)."""
    reach, aim = (workload.reach, workload.aim) if threads > 1 else (0.0, 0.0)
    missing = f" ({len(own)} of {len(workload.models)})" if len(own) < len(workload.models) else ""
    if len(workload.models) == 1:
        ((facts, median),) = ((f, ratio(f)[0]) for f in own.values())
        *goals, verdict = _goal(median, reach, aim)
        return (workload.name, _rival_text(facts), _ms(facts["medians_us"]["ours"]), _interval(facts), *goals,
                (verdict + marks([facts])).lstrip(", "))
    means = [geometric_mean([ratio(f)[k] for f in own.values()]) for k in range(3)]
    *goals, verdict = _goal(means[0], reach, aim)
    return (workload.name + missing, "", "", f"{means[0]:.2f} [{means[1]:.2f}, {means[2]:.2f}]", *goals,
            (verdict + marks(list(own.values()))).lstrip(", "))


def _goal(median: float, reach: float, aim: float) -> tuple[str, str, str]:
    """(to reach, to aim for, verdict); nothing where there is no goal."""
    if not reach:
        return "", "", ""
    return f"{reach:g}", f"{aim:g}", "aim reached" if median >= aim else "reached" if median >= reach else "not reached"


def _rival_text(facts: Facts) -> str:
    return f"{_ms(facts['medians_us'][best_rival(facts)])} {best_rival(facts)}"


def _interval(facts: Facts) -> str:
    median, low, high = ratio(facts)
    return f"{median:.2f} [{low:.2f}, {high:.2f}]"


def _ms(time_us: float) -> str:
    return f"{time_us / 1e3:.3f} ms" if time_us < 1e3 else f"{time_us / 1e3:.2f} ms"


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


# -- a busy core ------------------------------------------------------------------------------------------------------


def measure_busy(options: argparse.Namespace, results: Results, screen: Console) -> None:
    """Two threads, with and without a process that spins on one core: busy median / quiet median, ours and the rivals'."""
    builds = builds_of(options, BUSY_MODELS)
    quiet = measure_all(options, results, builds, 2)
    busy = measure_all(options, results, builds, 2, busy=True)
    table = _table("one core busy with another process, two threads", (
        "workload", "contender", "quiet", "busy", "slower by", "runs", "to reach", ""))
    for name in busy:
        if name in quiet:
            for row in busy_rows(name, quiet[name], busy[name]):
                table.add_row(*row)
    screen.print(table)
    screen.print()


def busy_rows(name: str, quiet: Facts, busy: Facts) -> Iterator[tuple[str, ...]]:
    """A line per contender; ours says whether it degrades no more than ONNX Runtime does."""
    contenders = from_json(MeasureFacts, busy["facts"]).contenders
    runs = {c.name: sum(len(burst) for burst in c.bursts_us) for c in contenders}
    factor = {n: busy["medians_us"][n] / quiet["medians_us"][n] for n in busy["medians_us"] if n in quiet["medians_us"]}
    for contender, slower in factor.items():
        goal = verdict = ""
        if contender == "ours" and "onnxruntime" in factor:
            goal = f"<= {factor['onnxruntime']:.2f}x"
            verdict = ("reached" if slower <= factor["onnxruntime"] else "not reached") + marks([quiet, busy])
        yield (name, contender, _ms(quiet["medians_us"][contender]), _ms(busy["medians_us"][contender]), f"{slower:.2f}x",
               str(runs[contender]), goal, verdict)


# -- layers -----------------------------------------------------------------------------------------------------------


def measure_layers(options: argparse.Namespace, results: Results, screen: Console) -> None:
    """The roofline of each layer, as `tc report` shows it, at the first of --threads; the ceilings are measured now."""
    threads = options.threads[0]
    machine = machine_facts(presets.target("host"), threads)
    with user_store() as store:
        for build in builds_of(options, LAYERED):
            report = layered(store, build, machine, threads)
            results.put("layers", key_of(build, threads), to_json(report))
            console.show_section(layer_section(report, 1000), screen)


def layered(store: Store, build: RecipeBuild, machine: MachineFacts, threads: int) -> BuildReport:
    inputs = inputs_of(store, build, build.bucket.measure)
    data = asdict(build.binding.data or build.model.data)
    (sample, *_) = samples({"data": data}, inputs, load_files(inputs["graph"].files))
    with tempfile.TemporaryDirectory(prefix="tc-figures-") as temporary:
        folder = assembled_folder(inputs["module"], Path(temporary) / "artifact")
        described = json.loads((folder / "manifest.json").read_text())["layers"]
        with Module.load(folder, threads) as module:
            layers = profile(module, sample.inputs, described[module.bucket_of(sample.inputs)])
    facts = BuildFacts(build.name, build.tasks.build.model, build.tasks.build.target, "fp32", 0)
    return BuildReport(facts, layers=layers, machine=machine, measure=MeasureFacts(threads, 0, 0.0, (), ()))


# -- loading, calling, building ---------------------------------------------------------------------------------------


def measure_load(options: argparse.Namespace, results: Results, screen: Console) -> None:
    """Fresh processes, ours and ONNX Runtime's in turns."""
    (build,) = recipe_builds(("paper",), ("resnet18",), options.root)
    with tempfile.TemporaryDirectory(prefix="tc-figures-") as temporary, user_store() as store:
        module = inputs_of(store, build, build.bucket.measure)["module"]
        paths = {"ours": assembled_folder(module, Path(temporary) / "artifact"),
                 "onnxruntime": single_model_project(store, build, Path(temporary) / "project")}
        kinds = [kind for kind in paths if kind == "ours" or is_installed(kind)]
        found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
        for _ in range(FIRST_RUNS):
            for kind in kinds:
                found[kind].append(child(kind, paths[kind]))
    planned = module.meta["weights_bytes"] + module.meta["arena_bytes"]
    figures = [figure for kind in kinds for figure in load_figures(kind, found[kind], planned)]
    results.put("sections", "load", [asdict(f) for f in figures])
    show("loading ResNet-18, and its first inference", figures, screen)


def load_figures(kind: str, runs: Sequence[Mapping[str, float]], planned_bytes: int) -> Iterator[Figure]:
    how = f"{FIRST_RUNS} fresh processes, NumPy imported beforehand, files in the disk's cache"
    both = spread([run["load_ms"] + run["first_ms"] for run in runs])
    reach = "<= 50 ms" if kind == "ours" else ""
    yield Figure(f"{kind}: load + first inference", f"{both.median:.1f} ms", reach, str(both), how, {"runs": list(runs)})
    for part in ("import_ms", "load_ms", "first_ms"):
        values = spread([run[part] for run in runs])
        yield Figure(f"  {part.removesuffix('_ms')}", f"{values.median:.1f} ms", "", str(values), how)
    grown = spread([run["grown_bytes"] / 1e6 for run in runs])
    reach = f"<= {(planned_bytes + RUNTIME_BYTES) / 1e6:.1f} MB" if kind == "ours" else ""
    planned = f"weights + arena {planned_bytes / 1e6:.1f} MB"
    yield Figure("  memory it then holds", f"{grown.median:.1f} MB", reach, planned, how)


def child(kind: str, path: Path, threads: int = 2) -> dict[str, float]:
    """What benchmarks/first_run.py says in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("first_run.py")), kind, str(path), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "TC_STORE": ""})
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def measure_call(options: argparse.Namespace, results: Results, screen: Console) -> None:
    with tempfile.TemporaryDirectory(prefix="tc-figures-") as temporary:
        build_small_model(Path(temporary) / "small", {"TC_STORE": f"{temporary}/store"})
        (folder,) = (Path(temporary) / "small" / "build").iterdir()
        cost = child("call", folder)
    how = "a network of one Neg of three numbers: the call is all there is, so this is what it costs above the native time"
    figures = [Figure("run() from Python", f"{cost['run_us']:.1f} us", "<= 15 us", "", how, cost),
               Figure("the same on bound arrays", f"{cost['bound_us']:.1f} us", "", "", how)]
    results.put("sections", "call", [asdict(f) for f in figures])
    show("the cost of a call", figures, screen)


def measure_cold(options: argparse.Namespace, results: Results, screen: Console) -> None:
    (build,) = recipe_builds(("paper",), ("resnet18",), options.root)
    figures = cold_build(build, options.cold_runs, first=False, reach="<= 3 s")
    results.put("sections", "cold", [asdict(f) for f in figures])
    show("a cold build", figures, screen)


SECTIONS: dict[str, Callable[[argparse.Namespace, Results, Console], None]] = {
    "speed": measure_speed,
    "busy": measure_busy,
    "layers": measure_layers,
    "load": measure_load,
    "call": measure_call,
    "cold": measure_cold,
}


if __name__ == "__main__":
    sys.exit(main())
