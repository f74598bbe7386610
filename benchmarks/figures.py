"""Print the figures this project promises, as measured on this machine: python benchmarks/figures.py [--only help,noop,...]

    help      `tc --help`, whole process
    noop      `tc build` of recipes/paper with nothing to do, whole process
    cold      `tc build` of ResNet-18 with an empty store, split by kind of task
    kernels   each distinct kernel of the recipes: Python time (schedule, lower, emit) and LLVM time
    speed     every model of the recipes beside the rivals installed, interleaved in one run
    memory    the most memory a cold build holds, against the model's size

Each line gives the figure, what was to be reached, the spread, and how it was measured. All numbers go to a JSON file, too,
where `speed` goes on: what was measured for the same artifact, rivals, threads and time is not measured again (--again: it
is). Nothing here fails because a number is bad: times depend on the machine and on what else it does.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from kernel_times import PARTS, KernelTime, time_kernel
from processes import compile_sources, run_once, spread, watch_memory
from recipe_builds import RECIPES, RecipeBuild, make, recipe_builds, single_model_project, user_store, write_deployfile
from results import Figure, Results, failed, in_ms, in_s, show
from rich.console import Console
from speed import key_of, speed_of

from toolchain.build.events import RunFinished, TaskFinished
from toolchain.build.runs import events_of, recorded
from toolchain.build.store import Store
from toolchain.build.worker import keep_imports
from toolchain.core.errors import ToolchainError
from toolchain.core.target import Target
from toolchain.graph.passes.memory_plan import size_bytes
from toolchain.graph.serialize import from_json, load_files
from toolchain.report.contenders import missing_baselines
from toolchain.report.facts import to_json
from toolchain.report.statistics import geometric_mean
from toolchain.report.system import watch_system

Cost = Callable[[KernelTime], float]

MIB = 1 << 20
COLD_MODEL = ("paper", "resnet18")
MEMORY_MODELS = (("paper", "resnet18"), ("light", "vgg19"), ("quickstart", "reader"))
SPEED_RECIPES = ("paper", "light", "ocr")
ALL_RECIPES = ("quickstart", *SPEED_RECIPES)


def main() -> int:
    options = parse_arguments()
    compile_sources()
    results = Results(options.json)
    screen = Console(width=None if sys.stdout.isatty() else 140)
    with watch_system() as system:
        for name in options.only:
            print(f"measuring: {name}", file=sys.stderr)
            try:
                figures = list(SECTIONS[name](options, results))
            except ToolchainError as error:
                figures = [failed(name, "", str(error), "")]
            results.put("sections", name, [asdict(f) for f in figures])
            show(name, figures, screen)
    results.put("system", "last", to_json(system()))
    print(f"all numbers: {options.json}", file=sys.stderr)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=_sections, default=tuple(SECTIONS), metavar="NAME,...", help="some of the sections")
    parser.add_argument("--models", type=_words, default=(), metavar="NAME,...",
                        help="models of the sections kernels and speed, names or patterns  [default: all]")
    parser.add_argument("--recipes", type=_words, default=(), metavar="NAME,...", help="recipes of those two sections")
    parser.add_argument("--root", type=Path, default=RECIPES, help="the folder of the recipes  [default: %(default)s]")
    parser.add_argument("--runs", type=int, default=15, help="runs of help and noop  [default: %(default)s]")
    parser.add_argument("--cold-runs", type=int, default=3, help="cold builds of each kind  [default: %(default)s]")
    parser.add_argument("--threads", type=int, default=2, help="of every contender in speed  [default: %(default)s]")
    parser.add_argument("--time", type=float, default=3.0, help="seconds per contender and model  [default: %(default)s]")
    parser.add_argument("--against", type=_words, default=("onnxruntime", "openvino"), metavar="NAME,...", help="the rivals")
    parser.add_argument("--again", action="store_true", help="measure speed anew where it is known")
    parser.add_argument("--json", type=Path, default=Path(".tc/figures.json"), metavar="FILE", help="[default: %(default)s]")
    return parser.parse_args()


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def _sections(text: str) -> tuple[str, ...]:
    if unknown := [word for word in _words(text) if word not in SECTIONS]:
        raise argparse.ArgumentTypeError(f"no section {unknown[0]!r}: there are {', '.join(SECTIONS)}")
    return _words(text)


def tc_command(*arguments: object) -> list[str]:
    """`tc` as users start it: the script beside this Python, else the module."""
    script = Path(sys.executable).parent / "tc"
    start = [str(script)] if script.is_file() else [sys.executable, "-m", "toolchain"]
    return [*start, *map(str, arguments)]


# -- whole processes --------------------------------------------------------------------------------------------------


def measure_help(options: argparse.Namespace, results: Results) -> Iterator[Figure]:
    yield process_time("tc --help", tc_command("--help"), "<= 100 ms", options.runs)
    yield process_time("an empty Python, for comparison", [sys.executable, "-I", "-c", "pass"], "", options.runs)


def measure_noop(options: argparse.Namespace, results: Results) -> Iterator[Figure]:
    name, command = "no-op tc build of recipes/paper", tc_command("build", "-C", options.root / "paper")
    if code := run_once(command).exit_code:
        yield failed(name, "<= 150 ms", f"the build before it exits with {code}", _text(command))
        return
    yield process_time(name, command, "<= 150 ms", options.runs)


def process_time(name: str, command: Sequence[str], reach: str, runs: int) -> Figure:
    """The median wall time of a program; one run before it warms the disk's cache."""
    run_once(command)
    costs = [run_once(command) for _ in range(runs)]
    if codes := sorted({c.exit_code for c in costs} - {0}):
        return failed(name, reach, f"exit {codes[0]}", _text(command))
    wall, cpu = spread([c.wall_s * 1e3 for c in costs]), spread([c.cpu_s * 1e3 for c in costs])
    value, text = in_ms(wall)
    return Figure(name, f"{value} ({cpu.median:.0f} ms of processor time)", reach, text, f"{_text(command)}, {runs} times",
                  {"wall_ms": asdict(wall), "cpu_ms": asdict(cpu)})


def _text(command: Sequence[str]) -> str:
    words = [Path(command[0]).name, *command[1:]]
    return "$ " + shlex.join(os.path.relpath(w) if w.startswith("/") else w for w in words)


# -- a cold build -----------------------------------------------------------------------------------------------------


def measure_cold(options: argparse.Namespace, results: Results) -> Iterator[Figure]:
    (build,) = recipe_builds(COLD_MODEL[:1], COLD_MODEL[1:], options.root)
    for first in (True, False):
        yield from cold_build(build, options.cold_runs, first)


def cold_build(build: RecipeBuild, runs: int, first: bool, reach: str = "<= 5 s") -> list[Figure]:
    """Whole `tc build`s of one model with empty stores; with `first`, they also compile the C runtime, once per machine."""
    title = f"cold tc build of {build.tasks.build.model}" + (", with the C runtime (once per machine)" if first else "")
    how = "TC_STORE=<empty> tc build, model file made beforehand; split: sums of task times, in the record of the median run"
    walls, split = [], []
    for _ in range(runs):
        with tempfile.TemporaryDirectory(prefix="tc-figures-") as temporary:
            folder, env = Path(temporary), {"TC_STORE": f"{temporary}/store"}
            with user_store() as store:
                single_model_project(store, build, folder / "project")
            if not first:
                build_small_model(folder / "small", env)
            cost = run_once(tc_command("build", "-C", folder / "project"), env)
            if cost.exit_code:
                return [failed(title, reach, f"exit {cost.exit_code}", how)]
            walls.append(cost.wall_s)
            split.append(split_by_kind(recorded(folder / "project")[-1]))
    value, text = in_s(spread(walls))
    middle = split[sorted(range(runs), key=walls.__getitem__)[runs // 2]]
    lines = [Figure(title, value, reach, text, how, {"wall_s": walls, "split": split})]
    for kind, (count, seconds, end_s) in middle.items():
        tasks = f"{count} task{'s' * (count > 1)}, the last done at {end_s:.2f} s"
        lines.append(Figure(f"  {kind}", f"{seconds:.2f} s", "", tasks, how))
    return lines


def split_by_kind(run: Path) -> dict[str, tuple[int, float, float]]:
    """What a run record says of each kind of task: how many ran, their seconds together, when the last one was done."""
    found: dict[str, tuple[int, float, float]] = {}
    for event in events_of(run):
        if isinstance(event, TaskFinished) and not event.cached:
            kind = event.task.partition(":")[0]
            count, seconds, _ = found.get(kind, (0, 0.0, 0.0))
            found[kind] = (count + 1, seconds + event.duration_s, event.at_s)
        elif isinstance(event, RunFinished):
            found["whole run"] = (event.ran, event.wall_s, event.at_s)
    return found


def build_small_model(folder: Path, env: Mapping[str, str]) -> None:
    """Build a model of one node, so that a store has the C runtime (and nothing else that a real model needs)."""
    import onnx
    from onnx import TensorProto, helper

    folder.mkdir(parents=True)
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [3]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "small", [x], [y])
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), folder / "small.onnx")
    write_deployfile(folder, "small", {"path": "small.onnx"})
    run_once(tc_command("build", "-C", folder), env)


# -- kernels ----------------------------------------------------------------------------------------------------------


def measure_kernels(options: argparse.Namespace, results: Results) -> Iterator[Figure]:
    kernels: list[KernelTime] = []
    errors: list[str] = []
    with user_store() as store:
        bodies = distinct_kernels(store, recipe_builds(options.recipes or ALL_RECIPES, options.models, options.root), errors)
    keep_imports()                                          # as every worker process does
    for n, (body, target, users) in enumerate([*bodies[:1], *bodies]):
        try:
            timed = time_kernel(from_json(body), target, users)
        except ToolchainError as error:
            errors.append(f"a kernel of {users[0]}: {error}")
        else:
            kernels += [timed] if n else []             # the first one, done twice, paid for what is made once per process
    if kernels:
        yield from kernel_figures(kernels)
    yield from (failed("left out", "", error.splitlines()[0], "") for error in errors)


def distinct_kernels(
    store: Store, builds: Sequence[RecipeBuild], errors: list[str],
) -> list[tuple[Mapping[str, object], Target, tuple[str, ...]]]:
    """(canonical body, target, names of the models that use it) of every kernel, each once."""
    found: dict[tuple[str, str], tuple[Mapping[str, object], Target, list[str]]] = {}
    for build in builds:
        try:
            made = make(store, build, [build.bucket.optimized, build.tasks.target])
        except ToolchainError as error:
            errors.append(f"{build.name}: {error}")
            continue
        target = made[build.tasks.target.name].meta["target"]
        for key, kernel in made[build.bucket.optimized.name].meta["kernels"].items():
            entry = found.setdefault((key, json.dumps(target)), (kernel["graph"], Target.from_json(target), []))
            entry[2].append(build.name)
    return [(body, target, tuple(users)) for body, target, users in found.values()]


def kernel_figures(kernels: Sequence[KernelTime]) -> Iterator[Figure]:
    """Medians, 90th percentiles and maxima; each part; and the slowest kernels by name."""
    how = f"{len(kernels)} distinct kernels, one after the other in one process"
    yield _over("Python per kernel (schedule + lower + emit)", "<= 10 ms", kernels, lambda k: k.python_ms, how)
    yield _over("  the same, processor time", "", kernels, lambda k: k.python_cpu_ms, how)
    yield _over("LLVM per kernel (parse + SROA + object)", "<= 30 ms", kernels, lambda k: k.wall_ms["llvm"], how)
    yield _over("  the same, processor time", "", kernels, lambda k: k.cpu_ms["llvm"], how)
    for part in PARTS[:-1]:
        yield _over(f"  {part}, processor time", "", kernels, partial(_cpu_ms, part), how)
    costs: dict[str, Cost] = {"Python": lambda k: k.python_cpu_ms, "LLVM": lambda k: k.cpu_ms["llvm"]}
    for title, cost in costs.items():
        for kernel in sorted(kernels, key=cost, reverse=True)[:3]:
            parts = ", ".join(f"{part} {ms:.1f}" for part, ms in kernel.cpu_ms.items())
            users = kernel.users[0] + (f" and {len(kernel.users) - 1} more" if kernel.users[1:] else "")
            yield Figure(f"  slowest in {title}: {kernel.name} of {users}", f"{cost(kernel):.1f} ms", "", parts, how,
                         asdict(kernel))
    plainer = Counter(k.sketch for k in kernels)
    yield Figure("  sketches taken", ", ".join(f"{name} {count}" for name, count in plainer.most_common()), "", "", how)


def _cpu_ms(part: str, kernel: KernelTime) -> float:
    return kernel.cpu_ms[part]


def _over(name: str, reach: str, kernels: Sequence[KernelTime], cost: Cost, how: str) -> Figure:
    values = spread([cost(k) for k in kernels])
    return Figure(name, f"median {values.median:.1f} ms", reach, f"p90 {values.p90:.1f}, max {values.high:.1f} ms", how,
                  asdict(values))


# -- speed ------------------------------------------------------------------------------------------------------------


def measure_speed(options: argparse.Namespace, results: Results) -> Iterator[Figure]:
    how = (f"bursts in turns, each contender in its own process, {options.threads} threads, {options.time:g} s each; "
           "speed-up = rival's time / ours")
    for name, why in missing_baselines(options.against).items():
        yield failed(name, "", why, "this rival takes no part")
    found = []
    with user_store() as store:
        for build in recipe_builds(options.recipes or SPEED_RECIPES, options.models, options.root):
            try:
                known = {} if options.again else results.data["speed"]
                facts = speed_of(store, build, known, against=options.against, threads=options.threads, seconds=options.time)
            except ToolchainError as error:
                yield failed(build.name, ">= 0.5x", str(error).splitlines()[0], how)
                continue
            results.put("speed", key_of(build, options.threads), facts)
            found.append(facts)
            print(f"  {build.name}: {speed_text(facts)}", file=sys.stderr)
            yield Figure(build.name, speed_text(facts), ">= 0.5x", spread_text(facts), times_text(facts))
    for rival in options.against:
        ratios = {f["build"]: f["speedup"][rival][0] for f in found if rival in f["speedup"]}
        if ratios:
            yield from geometric_means(rival, ratios, how)


def geometric_means(rival: str, ratios: Mapping[str, float], how: str) -> Iterator[Figure]:
    """Over all models, and over those of each recipe."""
    worst = min(ratios, key=ratios.__getitem__)
    yield Figure(f"geometric mean beside {rival}", f"{geometric_mean(list(ratios.values())):.2f}x", ">= 0.8x",
                 f"least {ratios[worst]:.2f}x ({worst}), {len(ratios)} models", how, {"ratios": dict(ratios)})
    for recipe in dict.fromkeys(name.partition("/")[0] for name in ratios):
        values = [ratio for name, ratio in ratios.items() if name.partition("/")[0] == recipe]
        yield Figure(f"  of {recipe}", f"{geometric_mean(values):.2f}x", "", f"{len(values)} models", how)


def speed_text(facts: Mapping[str, Any]) -> str:
    words = [f"{speedup:.2f}x {rival}" for rival, (speedup, _, _) in facts["speedup"].items()]
    words += [f"{name} failed: {error.splitlines()[0]}" for name, error in facts["errors"].items()]
    return ", ".join(words) + ("" if facts["passed"] else ", WRONG OUTPUTS") or "no rival"


def spread_text(facts: Mapping[str, Any]) -> str:
    intervals = ", ".join(f"{low:.2f} .. {high:.2f}" for _, low, high in facts["speedup"].values())
    return f"{intervals}{', unstable' if facts['unstable'] else ''}"


def times_text(facts: Mapping[str, Any]) -> str:
    variation = facts["variation"]
    return ", ".join(f"{name} {us / 1e3:.2f} ms ±{100 * variation[name]:.0f} %" for name, us in facts["medians_us"].items())


# -- memory -----------------------------------------------------------------------------------------------------------


def measure_memory(options: argparse.Namespace, results: Results) -> Iterator[Figure]:
    for recipe, model in MEMORY_MODELS:
        try:
            (build,) = recipe_builds((recipe,), (model,), options.root)
            yield memory_of_build(build)
        except ToolchainError as error:
            yield failed(f"{recipe}/{model}", "", str(error).splitlines()[0], "")


def memory_of_build(build: RecipeBuild) -> Figure:
    """The most memory that any process of a cold build, and all of them together, hold."""
    with tempfile.TemporaryDirectory(prefix="tc-figures-") as temporary, user_store() as store:
        model = single_model_project(store, build, Path(temporary) / "project")
        imported = make(store, build, [build.bucket.graph])[build.bucket.graph.name]
        graph = load_files(store.blobs.paths(imported.files))
        weights_bytes = sum(size_bytes(graph.types[name]) for name in graph.params)
        size = max(model.stat().st_size, weights_bytes)             # a file may compute its weights instead of holding them
        peak = watch_memory(tc_command("build", "-C", model.parent), {"TC_STORE": f"{temporary}/store"})
    reach, how = 4 * size + 500 * 10**6, "TC_STORE=<empty> tc build; VmHWM of each process, sum of Pss, from /proc"
    name = f"memory of building {build.name}"
    if peak.exit_code:
        return failed(name, f"<= {reach / MIB:.0f} MiB", f"exit {peak.exit_code}", how)
    return Figure(
        name, f"{peak.process_bytes / MIB:.0f} MiB largest process, {peak.tree_bytes / MIB:.0f} MiB all together",
        f"<= {reach / MIB:.0f} MiB", f"model {size / MIB:.1f} MiB; {peak.samples} samples; largest: {peak.process}", how,
        {**peak._asdict(), "model_bytes": size, "reach_bytes": reach})


SECTIONS: dict[str, Callable[[argparse.Namespace, Results], Iterator[Figure]]] = {
    "help": measure_help,
    "noop": measure_noop,
    "cold": measure_cold,
    "kernels": measure_kernels,
    "speed": measure_speed,
    "memory": measure_memory,
}


if __name__ == "__main__":
    sys.exit(main())
