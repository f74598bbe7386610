"""`tc tune`: spend a budget on faster schedules, and keep those that have proved faster."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolchain.build.deployfile import DURATION
from toolchain.build.records import Records
from toolchain.build.store import Store
from toolchain.cli.build import execute
from toolchain.cli.commands import command, project_options
from toolchain.cli.compare import SEEDS, TRIALS, compare_methods
from toolchain.cli.project import Project, open_project
from toolchain.cli.screen import Style, count, cut, near, seconds, style_of
from toolchain.cli.space import Amount
from toolchain.core.artifact import Artifact
from toolchain.core.errors import TuneError, UsageError
from toolchain.core.settings import settings
from toolchain.tasks.plan import BuildTasks, Tuned
from toolchain.te.tune.searchers import SEARCHERS

if TYPE_CHECKING:
    from toolchain.remote.board import Board

INTERRUPTED = 130
NO_MODEL = ("candidates are ranked by the analytic model alone: xgboost is not installed "
            "(fix: pip install xgboost-cpu, or the extra `tune`)")
MISCOMPILED = ("wrong", "bounds")       # causes of failure that are our bug, and worth a look


@command("tune")
@click.argument("names", nargs=-1)
@project_options
@click.option("--budget", type=Amount(DURATION), help="Time to spend in all: 10m, 2h.  [default: the deployfile's]")
@click.option("--trials", type=click.IntRange(1), help="Schedules measured per kernel at most.  [default: the deployfile's]")
@click.option("--searcher", "searchers", type=click.Choice(list(SEARCHERS)), multiple=True,
              help="How schedules are proposed; several with --compare.  [default: the deployfile's; of --compare: all]")
@click.option("--compare", "compare_folder", type=click.Path(path_type=Path, file_okay=False),
              help="Change no build: run search methods beside each other, draw their curves into this folder.")
@click.option("--seeds", type=click.IntRange(1), help="Searches per method and kernel with --compare.  [default: 3]")
@click.option("--kernels", "pattern", default="", metavar="GLOB",
              help="Kernels to compare on, by name.  [default: the six with most work]")
@click.option("--seed", type=click.IntRange(0), help="Seed of the search.  [default: the deployfile's]")
@click.option("--export", "export_file", type=click.Path(path_type=Path, dir_okay=False),
              help="Tune nothing: write all records of this user as JSON lines there.")
@click.option("--import", "import_file", type=click.Path(path_type=Path, dir_okay=False, exists=True),
              help="Tune nothing: take in what --export wrote, or a log of AutoTVM (as hints).")
def tune_command(
    names: tuple[str, ...], file: Path | None, folder: Path | None, budget: float | None, trials: int | None,
    searchers: tuple[str, ...], compare_folder: Path | None, seeds: int | None, pattern: str, seed: int | None,
    export_file: Path | None, import_file: Path | None,
) -> int:
    """Spend a budget on faster schedules for the builds NAMES means; the next `tc build` uses what was found.

    The default schedule of every kernel is measured first and stays unless another one beats it side by side, alone and in
    the network. Every candidate is compared with the reference; a crash costs that candidate. Each trial is kept as soon as
    it is measured: the same command goes on where the last one was stopped. Ctrl-C ends the search and keeps what it found.

    \b
    Example:
      tc tune --budget 10m
      tc tune resnet18@x86 --trials 64 --searcher genetic
      tc tune resnet18@x86 --compare curves --searcher auto --searcher random
      tc tune --export tuning.jsonl
    """
    if export_file is not None or import_file is not None:
        return exchange(export_file, import_file)
    if compare_folder is None and (seeds is not None or pattern or len(searchers) > 1):
        raise UsageError("--seeds, --kernels and several --searcher are for comparing search methods",
                         fix="add --compare FOLDER")
    project = open_project(file, folder)
    default = project.tasks(names, lambda build, target: {})        # whatever the records say
    goals = {b.name: (b.module, *(bucket.optimized for bucket in b.buckets)) for b in default}
    built = execute(project, goals, is_result=False)
    if built.exit_code:
        return built.exit_code
    options = _options(project, default, budget, trials, next(iter(searchers), None), seed)
    store = Store(settings().store)
    try:
        with Records(settings().store) as records:
            warn_of_damage(records)
            if compare_folder is not None:
                return compare_methods(default, built.artifacts, store, records, compare_folder,
                                       searchers or list(SEARCHERS), pattern, seeds or SEEDS, trials or TRIALS)
            return _tune(project, names, default, built.artifacts, store, records, options)
    finally:
        store.close()


def _options(
    project: Project, tasks: Sequence[BuildTasks], budget: float | None, trials: int | None, searcher: str | None,
    seed: int | None,
) -> Any:
    """What the command line says, else the deployfile's section of the first build. --trials alone means no budget."""
    from toolchain.tasks.tuning.tune import Options

    stated = tasks[0].build.tune
    budget_s = budget if budget is not None else None if trials is not None else stated.budget
    return Options(budget_s, trials or stated.trials, searcher or stated.searcher, stated.seed if seed is None else seed)


def _tune(
    project: Project, names: Sequence[str], default: Sequence[BuildTasks], artifacts: Mapping[str, Artifact], store: Store,
    records: Records, options: Any,
) -> int:
    from toolchain.tasks.tuning.kernels import kernels
    from toolchain.tasks.tuning.tune import Tuning, keep_reproducer, require_time, tuned_answers

    begun = time.monotonic()
    found_kernels = kernels(default, artifacts, store)
    screen = Screen(style_of(sys.stderr, settings(), os.environ.get("TERM", "")), options.budget_s)
    by_key = {k.key: k for k in found_kernels}

    def on_trial(task: Any, trial: Any) -> None:
        screen.trial(task, trial)
        if trial.cause in MISCOMPILED and (
                kept := keep_reproducer(by_key[task.key], trial, project.state / "failed" / "tune")):
            screen.note(f"{task.name}: {trial.error}; kept in {near(str(kept))}")
    boards = boards_of(project, default)
    tuning = Tuning(found_kernels, len(default), records, options, on_trial, boards)
    screen.begin({k.key: k.name for k in tuning.open}, len(found_kernels))
    screen.note(f"candidates are ranked by a model that learns, so far from {count(tuning.taught, 'earlier trials')}"
                if tuning.learns else NO_MODEL)
    interrupted = False
    with tuning.measurer(screen.note) as measurer, screen.shown():
        try:
            tuning.search(measurer)
        except KeyboardInterrupt:
            interrupted = True
            screen.note("interrupted: confirming what was found so far (Ctrl-C again: leave it)")
        assert tuning.session is not None
        if not interrupted:
            require_time(options, tuning.session)
        found = tuning.confirm(measurer, lambda k: screen.note(f"confirming {k.name}", keep=False))
    rejected = _slower_networks(project, names, default, artifacts, store, tuned_answers(found)) if any(
        f.gain > 1 for f in found) else {}
    bad = {name for name, (_, slower) in rejected.items() if slower}
    records.choose([f.choice(tuning.machine, time.time(), rejected=bool(f.kernel.builds & bad)) for f in found
                    if f.is_known])
    for line in summary(found, rejected, time.monotonic() - begun, tuning.session.spent_s):
        print(line)
    return INTERRUPTED if interrupted else 0


def boards_of(project: Project, tasks: Sequence[BuildTasks]) -> list[Board]:
    """The devices that all these builds are tuned on; none: this machine. Raises UsageError: they are not the same."""
    from toolchain.tasks.boards import board_of

    used = list(dict.fromkeys(b.devices for b in tasks))
    if len(used) > 1:
        where = [f"{', '.join(b.name for b in tasks if b.devices == d)} on {', '.join(d) or 'this machine'}" for d in used]
        raise UsageError(f"builds that are tuned in different places: {'; '.join(where)}", fix="tune one after the other")
    return [board_of(name, project.deployfile.devices[name]) for devices in used for name in devices]


def _slower_networks(
    project: Project, names: Sequence[str], default: Sequence[BuildTasks], artifacts: Mapping[str, Artifact], store: Store,
    tuned: Tuned,
) -> dict[str, tuple[str, bool]]:
    """Per build: what comparing it with the default one showed, in words, and whether its winners are refused for it."""
    from toolchain.core.target import Target
    from toolchain.tasks.tuning.confirm import compare_networks, compare_networks_on

    tasks = project.tasks(names, tuned)
    built = execute(project, {b.name: (b.module,) for b in tasks}, keep_going=True, is_result=False, noun="tuned builds")
    told: dict[str, tuple[str, bool]] = {}
    for before, after in zip(default, tasks, strict=True):
        if after.module.name not in built.artifacts:
            told[after.name] = ("could not be built", True)
            continue
        a, b = artifacts[before.module.name], built.artifacts[after.module.name]
        if a.digest == b.digest:
            continue
        target = Target.from_json(artifacts[before.target.name].meta["target"])
        boards = boards_of(project, [before])
        verdict = (compare_networks_on(boards[0], a, b, store, target.cores) if boards else
                   compare_networks(a, b, store, target.cores))
        if verdict is None:
            told[after.name] = ("the tuned artifact does not compute the same", True)
        else:
            interval = f"{verdict.speedup:.2f}x ({verdict.low:.2f} .. {verdict.high:.2f})"
            told[after.name] = (f"{interval}, {verdict.verdict}", verdict.verdict == "slower")
    return told


def summary(
    found: Sequence[Any], networks: Mapping[str, tuple[str, bool]], wall_s: float, searched_s: float,
) -> Iterator[str]:
    """What came of it: kernels that won, failures by cause, networks."""
    winners = sorted((f for f in found if f.gain > 1), key=lambda f: f.gain, reverse=True)
    for f in winners:
        c = f.confirmed
        yield f"{f.gain:5.2f}x  {f.kernel.name}  {_us(c.default_us)} -> {_us(c.tuned_us)}  {c.winner}"
    trials = sum(f.standing.trials for f in found if f.standing is not None)
    causes: dict[str, int] = {}
    for f in found:
        for cause, n in (f.standing.failures if f.standing is not None else {}).items():
            causes[cause] = causes.get(cause, 0) + n
    failed = f", {sum(causes.values())} failed ({', '.join(f'{n} {c}' for c, n in causes.items())})" if causes else ""
    for f in found:
        if f.confirmed is not None and f.confirmed.error:
            yield f"{f.kernel.name} could not be compared with its default: {f.confirmed.error}"
    yield f"tuned {len(winners)} of {count(len(found), 'kernels')}: {count(trials, 'trials')}{failed}, {seconds(wall_s)}"
    for name, (verdict, refused) in networks.items():
        yield f"{name}: {verdict}" + ("; its default schedules stay" if refused else "")
    if winners and not all(refused for _, refused in networks.values()):
        yield "`tc build` uses what was found"


def _us(value: float) -> str:
    return f"{value / 1e3:.2f} ms" if value >= 1000 else f"{value:.1f} us"


def exchange(export_file: Path | None, import_file: Path | None) -> int:
    """Write the records, or take some in."""
    from toolchain.build.folders import write_atomically

    if export_file is not None and import_file is not None:
        raise UsageError("--export and --import at once", fix="one after the other")
    with Records(settings().store) as records:
        warn_of_damage(records)
        if import_file is not None:
            import_records(records, import_file)
        elif export_file is not None:
            lines = list(records.export())
            write_atomically(export_file, "".join(f"{line}\n" for line in lines).encode())
            print(f"wrote {export_file}: the schedules of {count(len(records.choices()), 'kernels')}")
    return 0


def import_records(records: Records, file: Path) -> None:
    """What --export wrote, or a log of AutoTVM: the first line tells."""
    from toolchain.tasks.tuning.autotvm import is_log, read_log

    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise TuneError(f"not a text file: {error}", where=str(file), fix="give JSON lines") from None
    if not (lines and is_log(lines[0])):
        print(f"took in the schedules of {count(records.merge(lines, str(file)), 'kernels')}")
        return
    log = read_log(lines, str(file))
    records.add_priors(log.priors)
    for number, why in log.refused:
        print(f"{near(str(file))}:{number}: refused: {why}", file=sys.stderr)
    left = "".join(f", {n} left out ({reason})" for reason, n in log.skipped.items())
    print(f"AutoTVM's log: {count(len(log.priors), 'rows')} taken as hints, {len(log.refused)} refused{left}")


def warn_of_damage(records: Records) -> None:
    if (damaged := records.damaged) is not None:
        print(f"warning: the tuning records were damaged; they are kept as {damaged}, and new ones begun", file=sys.stderr)


# -- progress ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Row:
    """One kernel on the screen."""

    name: str
    trials: int = 0
    default_us: float = 0.0
    best_us: float = 0.0


@dataclass(slots=True)
class Screen:
    """Progress on standard error: a changing table on a terminal; elsewhere a line per improvement."""

    style: Style
    budget_s: float | None
    rows: dict[str, _Row] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    trials: int = 0
    said: str = ""
    begun: float = field(default_factory=time.monotonic)
    live: Any = None

    def begin(self, names: Mapping[str, str], kernels: int) -> None:
        self.rows = {key: _Row(name) for key, name in names.items()}
        self._print(f"tuning {len(names)} of {count(kernels, 'kernels')} (the others leave nothing to choose)")

    def trial(self, task: Any, trial: Any) -> None:
        row = self.rows[task.key]
        row.trials += 1
        self.trials += 1
        if trial.error:
            self.failures[trial.cause] = self.failures.get(trial.cause, 0) + 1
        elif not row.default_us:
            row.default_us = row.best_us = trial.best_us
        elif trial.best_us < row.best_us:
            row.best_us = trial.best_us
            gain = row.default_us / row.best_us
            if self.live is None:
                self._print(f"{row.name}: {_us(row.best_us)}, {gain:.2f}x, trial {row.trials}")
        self._update()

    def note(self, text: str, *, keep: bool = True) -> None:
        self.said = text
        if keep or self.live is None:
            self._print(text)
        self._update()

    def _print(self, text: str) -> None:
        if self.live is not None:
            self.live.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def shown(self) -> Iterator[None]:
        if not self.style.animate:
            yield
            return
        from rich.console import Console
        from rich.live import Live

        console = Console(file=sys.stderr, force_terminal=True, no_color=not self.style.colour, width=self.style.width)
        with Live(console=console, refresh_per_second=4, transient=True) as self.live:
            yield
        self.live = None

    def _update(self) -> None:
        if self.live is not None:
            from rich.text import Text

            with suppress(ValueError):
                self.live.update(Text("\n".join(cut(line, self.style.width - 1) for line in self.lines(time.monotonic()))))

    def lines(self, now: float) -> Iterator[str]:
        """The table: every kernel, slowest first; then rates, failures, time left."""
        for row in sorted(self.rows.values(), key=lambda r: -r.best_us)[:12]:
            gain = f"{row.default_us / row.best_us:5.2f}x" if row.best_us else "      "
            yield f"{gain} {_us(row.best_us) if row.best_us else '':>10} {row.trials:5} trials  {row.name}"
        passed = now - self.begun
        failed = ", ".join(f"{n} {cause}" for cause, n in self.failures.items())
        text = f"{count(self.trials, 'trials')}, {self.trials / max(passed, 1e-3):.1f}/s"
        text += f", failed: {failed}" if failed else ""
        text += f", {seconds(max(0.0, self.budget_s - passed))} left" if self.budget_s is not None else ""
        yield text
        if self.said:
            yield self.said
