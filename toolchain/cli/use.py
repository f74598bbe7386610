"""Commands that use what was built: `tc run`, `tc bench`, `tc verify`, `tc report`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolchain.build.caret import printable
from toolchain.build.deployfile import DURATION, PERCENT
from toolchain.build.store import Store
from toolchain.cli.build import execute, exports_of, withdraw_unverified
from toolchain.cli.commands import command, known_names, project_options
from toolchain.cli.project import Project, open_project
from toolchain.cli.values import Amount, OutputFile
from toolchain.core.errors import DeployfileError, ToolchainError, UsageError
from toolchain.core.settings import settings
from toolchain.core.suggest import did_you_mean

if TYPE_CHECKING:
    import numpy as np

    from toolchain.report.facts import Report
    from toolchain.targets.llvm.module import Module, OpTime, Stats
    from toolchain.targets.llvm.wasm_module import WasmModule
    from toolchain.tasks.boards import BoardModule
    from toolchain.tasks.plan import BuildTasks

RIVALS = ("onnxruntime", "openvino", "torch")
WIDTH_OF_A_LOG = 120        # columns of a report that goes to a file or a pipe


@command("run")
@click.argument("artifact", shell_complete=known_names)
@project_options
@click.option("-i", "--input", "inputs", multiple=True, metavar="NAME=FILE", help="An input's values: .npy, .npz or .pb.")
@click.option("-o", "--output-dir", type=click.Path(path_type=Path, file_okay=False), help="Write outputs there, as .npy.")
@click.option("--threads", type=click.IntRange(1), help="Threads that compute.  [default: one per CPU]")
@click.option("--device", metavar="NAME", help="Run it on that device of the deployfile.")
def run_command(
    artifact: str, file: Path | None, folder: Path | None, inputs: tuple[str, ...], output_dir: Path | None,
    threads: int | None, device: str | None,
) -> int:
    """Run ARTIFACT (a build's name, or an artifact's folder) once; print a line about each output, or write the outputs.

    \b
    Example:
      tc run resnet18@x86 -i input=image.npy -o out
    """
    with load_artifact(artifact, file, folder, threads) if device is None else on_device(
            device, artifact, file, folder, threads) as module:
        outputs = module.run(read_inputs(inputs))
        if output_dir is not None:
            for path in write_outputs(outputs, output_dir):
                print(path)
        else:
            for name, array in outputs.items():
                print(describe(name, array))
    return 0


@command("bench")
@click.argument("artifact", shell_complete=known_names)
@project_options
@click.option("-i", "--input", "inputs", multiple=True, metavar="NAME=FILE", help="Values of an input; else seeded ones.")
@click.option("--threads", type=click.IntRange(1), help="Threads that compute.  [default: one per CPU]")
@click.option("--time", "time_s", type=Amount(DURATION), default="1s", show_default=True, help="How long to measure.")
@click.option("--bucket", metavar="SHAPE", help="Measure that shape bucket only: 1x3x48x320.  [default: all]")
@click.option("--layers", is_flag=True, help="Time each layer, too.")
@click.option("--device", metavar="NAME", help="Measure on that device of the deployfile.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench_command(
    artifact: str, file: Path | None, folder: Path | None, inputs: tuple[str, ...], threads: int | None, time_s: float,
    layers: bool, bucket: str | None, device: str | None, as_json: bool,
) -> int:
    """Measure ARTIFACT (a build's name, or an artifact's folder), each of its shape buckets in turn.

    `tc report` measures it beside what else could run it.

    \b
    Example:
      tc bench resnet18@x86 --threads 2 --layers
    """
    if device is not None:
        from toolchain.cli.on_device import bench

        with on_device(device, artifact, file, folder, threads) as there:
            given = read_inputs(inputs)
            values = {n: {**seeded_inputs(there, n), **given} for n in chosen_buckets(there, bucket, given)}
            bench(there, values, time_s, layers=layers, as_json=as_json)
        return 0
    with load_artifact(artifact, file, folder, threads) as module:
        given = read_inputs(inputs)
        for number in chosen_buckets(module, bucket, given):
            values = {**seeded_inputs(module, number), **given}
            stats = module.benchmark(values, min_time_s=time_s)
            print_bench(module, number, stats, module.profile(values) if layers else (), as_json=as_json)
    return 0


def chosen_buckets(
    module: Module | BoardModule | WasmModule, label: str | None, given: Mapping[str, np.ndarray],
) -> list[int]:
    """The shape buckets that a user means by a label, or by the shapes of some inputs. Raises UsageError: there is none."""
    labels = module.labels
    if label is not None:
        if label not in labels:
            raise UsageError(f"no shape bucket '{label}'", where=module.name,
                             fix=did_you_mean(label, labels, noun="there are"))
        return [labels.index(label)]
    taking = [n for n, plan in enumerate(module.buckets)
              if all(given[v.name].shape == v.shape for v in plan.inputs if v.name in given)]
    return taking or [module.bucket_of({**seeded_inputs(module, 0), **given})]      # which raises the error that says why


def print_bench(module: Module | WasmModule, number: int, stats: Stats, times: Sequence[OpTime], *, as_json: bool) -> None:
    """The times of one bucket, which is named where there are several."""
    label = module.labels[number] if len(module.buckets) > 1 else ""
    engine = getattr(module, "engine", "")              # of WebAssembly: the times are that program's
    if as_json:
        print(json.dumps({**({"bucket": label} if label else {}), **asdict(stats), "threads": module.threads,
                          **({"engine": engine} if engine else {}), "layers": [asdict(t) for t in times]}))
        return
    name = (f"{module.name}[{label}]" if label else module.name) + (f" in {engine}" if engine else "")
    print(f"{name}: median {stats.median_us:.1f} us, p10 {stats.p10_us:.1f} us, p90 {stats.p90_us:.1f} us, "
          f"{stats.repeats} runs, {module.threads} threads")
    total = sum(t.ns for t in times) or 1
    for t in sorted(times, key=lambda t: -t.ns):
        print(f"{t.ns / 1000:>10.1f} us {100 * t.ns / total:5.1f} %  {printable(t.name)}")


def on_device(
    device: str, artifact: str, file: Path | None, folder: Path | None, threads: int | None,
) -> BoardModule:
    """The artifact, on a device of the deployfile. Raises UsageError: no such device; DeviceError."""
    from toolchain.cli.on_device import board_named, told
    from toolchain.tasks.boards import load_on

    path = artifact_folder(artifact, file, folder)
    return load_on(board_named(open_project(file, folder), device), path, threads or 0, told)


def load_artifact(artifact: str, file: Path | None, folder: Path | None, threads: int | None) -> Module | WasmModule:
    """The artifact in a folder, or of a build of the project. Raises UsageError: neither."""
    from toolchain.targets.llvm.loading import load

    return load(artifact_folder(artifact, file, folder), threads)


def artifact_folder(artifact: str, file: Path | None, folder: Path | None) -> Path:
    """The folder of a built artifact. Raises UsageError: there is none of that name; DeployfileError: the file is wrong."""
    if (Path(artifact) / "manifest.json").is_file():
        return Path(artifact)
    try:
        project = open_project(file, folder)
    except DeployfileError:
        if file is None and folder is None and "/" in artifact:
            raise UsageError(f"no artifact in '{artifact}'") from None
        raise
    names = [b.name for b in project.deployfile.all_builds()]
    matches = [b.name for b in project.deployfile.all_builds() if artifact in (b.name, b.model)]
    if len(matches) > 1:
        raise UsageError(f"'{artifact}' means several builds", fix=f"choose one of: {', '.join(matches)}")
    if not matches:
        raise UsageError(f"no build and no artifact '{artifact}'", fix=did_you_mean(artifact, names, noun="the builds are"))
    path = project.output / matches[0]
    if not (path / "manifest.json").is_file():
        raise UsageError(f"'{matches[0]}' has not been built", fix=f"tc build {matches[0]}")
    return path


def read_inputs(arguments: Sequence[str]) -> dict[str, np.ndarray]:
    """NAME=FILE, where FILE is .npy, .npz (the array of that name in it) or .pb. Raises UsageError."""
    if not arguments:
        return {}
    from toolchain.tasks.data import read_array

    found: dict[str, np.ndarray] = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not equals or not name or not path:
            raise UsageError(f"'{argument}' is not NAME=FILE", fix="write --input NAME=FILE.npy")
        if name in found:
            raise UsageError(f"input '{name}' is given twice")
        found[name] = read_array(Path(path), name)
    return found


def seeded_inputs(module: Module | BoardModule | WasmModule, bucket: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Values for every input of a bucket: numbers in [0, 1) for floats, zeros for integers (which are often indices)."""
    import numpy as np

    from toolchain.core.dtype import is_float, to_numpy

    generator = np.random.Generator(np.random.PCG64(seed))
    return {v.name: generator.random(v.shape).astype(to_numpy(v.dtype)) if is_float(v.dtype)
            else np.zeros(v.shape, to_numpy(v.dtype)) for v in module.buckets[bucket].inputs}


def write_outputs(outputs: Mapping[str, np.ndarray], folder: Path) -> list[Path]:
    """One .npy file per output; names of models never become paths unchecked."""
    import numpy as np

    from toolchain.build.folders import safe_name

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, array in outputs.items():
        path = folder / f"{safe_name(name)}.npy"
        np.save(path, array, allow_pickle=False)
        written.append(path)
    return written


def describe(name: str, array: np.ndarray) -> str:
    """output: float32[1, 1000], min -3.1, max 12.4, mean 0.02, largest at [0, 207]"""
    import numpy as np

    text = f"{printable(name)}: {array.dtype.name}[{', '.join(map(str, array.shape))}]"
    if not array.size or array.dtype.kind not in "fiu":
        return text
    if not np.isfinite(array).all():
        text += f", {int((~np.isfinite(array)).sum())} not finite"
    place = ", ".join(map(str, map(int, np.unravel_index(int(array.argmax()), array.shape))))
    text += f", min {array.min():.6g}, max {array.max():.6g}, mean {array.mean(dtype=np.float64):.6g}"
    return f"{text}, largest at [{place}]"


@command("verify")
@click.argument("names", nargs=-1, shell_complete=known_names)
@project_options
@click.option("-j", "--jobs", type=click.IntRange(1), help="Tasks side by side.  [default: one per core]")
@click.option("--json", "as_json", is_flag=True, help="Print one event per line, then the result in one.")
def verify_command(names: tuple[str, ...], file: Path | None, folder: Path | None, jobs: int | None, as_json: bool) -> int:
    """Compare the artifacts of NAMES with the reference; on failure, name the first node that differs.

    \b
    Example:
      tc verify resnet18@x86
    """
    from toolchain.tasks.commands import collect

    project = open_project(file, folder)
    tasks = project.tasks(names)
    if foreign := [b.name for b in tasks if not b.runs]:
        raise UsageError(f"this machine does not run the code of {', '.join(foreign)}", fix="verify it where it runs")
    goals = {bucket.name: (bucket.verify,) for b in tasks for bucket in b.buckets}
    built = execute(project, goals, jobs=jobs, keep_going=True, json=as_json, is_result=False)
    report = replace(collect(tasks, built.artifacts, project.folder), command="tc verify")
    show_report(report, as_json=as_json)
    return built.exit_code


@command("report")
@click.argument("names", nargs=-1, shell_complete=known_names)
@project_options
@click.option("--json", "json_file", type=OutputFile(), help="Write all facts there, too.")
@click.option("--md", "md_file", type=OutputFile(), help="Write a Markdown report there.")
@click.option("--junit", "junit_file", type=OutputFile(), help="Write JUnit XML for CI there.")
@click.option("--html", "html_file", type=OutputFile(), help="Write an HTML report there.")
@click.option("--against", metavar="LIST", help=f"Rivals to measure beside, of: {','.join(RIVALS)}.")
@click.option("--fail-on-regression", "limit", type=Amount(PERCENT), help="Exit 4 when a model became slower by more: 5%.")
@click.option("--before", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="The earlier report (--json) to compare with.  [default: this project's last]")
@click.option("--again", is_flag=True, help="Measure again, also where nothing has changed since the last report.")
def report_command(
    names: tuple[str, ...], file: Path | None, folder: Path | None, json_file: Path | None, md_file: Path | None,
    junit_file: Path | None, html_file: Path | None, against: str | None, limit: float | None, before: Path | None,
    again: bool,
) -> int:
    """Show size, accuracy, and speed of the builds NAMES means, beside the rivals that are installed.

    \b
    Example:
      tc report
      tc report --html report.html
      tc report --against onnxruntime --md report.md --fail-on-regression 5%
    """
    from toolchain.report import gate
    from toolchain.tasks.commands import collect

    project = with_rivals(open_project(file, folder), against)
    tasks = project.tasks(names)
    goals = {bucket.name: (b.module, *((bucket.verify, bucket.measure) if b.runs else ()),
                           *((b.machine,) if b.runs and not b.device else ()))
             for b in tasks for bucket in b.buckets}
    if again:
        forget_measurements(project, tasks)
    built = execute(project, goals, exports_of(project, tasks), keep_going=True, is_result=False)
    withdraw_unverified(project, tasks, built)
    report = collect(tasks, built.artifacts, project.folder)
    last = project.state / "report.json"
    limit = project.deployfile.report.fail_on_regression if limit is None else limit
    earlier = read_report(before or last) if limit is not None else None
    gates = gate.find_regressions(report, earlier, limit) if earlier is not None and limit is not None else ()
    write_reports(report, gates, json_file=json_file, md_file=md_file, junit_file=junit_file, html_file=html_file, last=last)
    show_report(report, gates)
    if limit is not None and built.exit_code == 0:
        gate.raise_on_regression(gates, limit)
    return built.exit_code


def forget_measurements(project: Project, tasks: Sequence[BuildTasks]) -> None:
    """Let the next build measure again, though nothing changed."""
    store = Store(settings().store)
    try:
        for name in {task.name for b in tasks for task in (b.machine, *(bucket.measure for bucket in b.buckets))}:
            if (past := store.past(str(project.folder), name)) is not None:
                store.drop(past.key)
    finally:
        store.close()


def with_rivals(project: Project, against: str | None) -> Project:
    """The project with another list of rivals. Raises UsageError naming an unknown one."""
    if against is None:
        return project
    names = [name.strip() for name in against.split(",") if name.strip()]
    for name in names:
        if name not in RIVALS:
            raise UsageError(f"no rival '{name}'", fix=did_you_mean(name, RIVALS))
    chosen: Any = tuple(names)
    deployfile = project.deployfile
    return project._replace(deployfile=replace(deployfile, report=replace(deployfile.report, against=chosen)))


def read_report(path: Path) -> Report | None:
    """An earlier report; None where there is none, or where it is from another version."""
    from toolchain.report.json import parse

    try:
        return parse(path.read_text(encoding="utf-8"), where=str(path))
    except FileNotFoundError:
        return None
    except ToolchainError as error:
        print(f"warning: the earlier report is not used: {printable(error.what)}", file=sys.stderr)
        return None


def show_report(report: Report, gates: Sequence[Any] = (), *, as_json: bool = False) -> None:
    """On standard output, as a person reads it, or (as_json) in one line."""
    from rich.console import Console

    from toolchain.core.settings import settings
    from toolchain.report import console
    from toolchain.report.json import render

    if as_json:
        print(render(report, one_line=True), end="")
        return
    forced = True if settings().force_color else None
    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else WIDTH_OF_A_LOG
    target = Console(no_color=settings().no_color, force_terminal=forced, highlight=False, width=width)
    console.show(report, target, gates)


def write_reports(
    report: Report, gates: Sequence[Any], *, json_file: Path | None, md_file: Path | None, junit_file: Path | None,
    html_file: Path | None, last: Path,
) -> None:
    """The report in every form asked for, each file whole or not at all; and the facts for the next comparison."""
    from toolchain.build.folders import write_atomically
    from toolchain.report import html, junit, markdown
    from toolchain.report import json as as_json

    facts = as_json.render(report).encode()
    last.parent.mkdir(exist_ok=True)
    write_atomically(last, facts)
    for path, text in ((json_file, facts), (md_file, md_file and markdown.render(report, gates).encode()),
                       (junit_file, junit_file and junit.render(report, gates).encode()),
                       (html_file, html_file and html.render(report, gates).encode())):
        if path is not None and isinstance(text, bytes):
            write_atomically(path, text)
            print(f"wrote {path}", file=sys.stderr)
