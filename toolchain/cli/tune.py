"""`tc tune`: spend a budget on faster schedules, and keep those that have proved faster."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolchain.build.deployfile import DURATION
from toolchain.build.records import Records
from toolchain.build.store import Store
from toolchain.cli.build import execute
from toolchain.cli.commands import command, known_names, project_options
from toolchain.cli.compare import SEEDS, TRIALS, compare_methods
from toolchain.cli.project import Project, open_project
from toolchain.cli.screen import Style, count, cut, near, seconds, style_of
from toolchain.cli.values import Amount, OutputFile
from toolchain.core.artifact import Artifact
from toolchain.core.errors import TuneError, UsageError
from toolchain.core.settings import settings
from toolchain.core.unit import MICROSECONDS, STATIC_CYCLES, Unit
from toolchain.tasks.plan import UNTUNED, BuildTasks
from toolchain.tasks.tuning.deadline import Deadline
from toolchain.te.tune.searchers import SEARCHERS

if TYPE_CHECKING:
    from toolchain.remote.board import Board

INTERRUPTED = 130
NO_MODEL = ("candidates are ranked by the analytic model alone: xgboost is not installed "
            "(fix: pip install xgboost-cpu, or the extra `tune`)")
MISCOMPILED = ("wrong", "bounds")       # causes of failure that are our bug, and worth a look


@command("tune")
@click.argument("names", nargs=-1, shell_complete=known_names)
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
@click.option("--export", "export_file", type=OutputFile(),
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
    default = project.tasks(names, UNTUNED)                         # whatever the records say
    options = _options(project, default, budget, trials, next(iter(searchers), None), seed)
    deadline = Deadline(options.budget_s)                           # what is not built yet is part of the time
    goals = {b.name: (b.module, *(bucket.optimized for bucket in b.buckets)) for b in default}
    built = execute(project, goals, is_result=False)
    if built.exit_code:
        return built.exit_code
    store = Store(settings().store)
    try:
        with Records(settings().store) as records:
            told = warn_of_damage(records)
            if compare_folder is not None:
                from toolchain.cli.networks import boards_of

                boards = boards_of(project, default)
                unit = unit_of(boards, default, built.artifacts, lambda text: print(text, file=sys.stderr, flush=True))
                return compare_methods(default, built.artifacts, store, records, compare_folder,
                                       searchers or list(SEARCHERS), pattern, seeds or SEEDS, trials or TRIALS, boards, unit)
            try:
                return _tune(project, names, default, built.artifacts, store, records, options, deadline)
            finally:
                warn_of_damage(records, told)
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
    records: Records, options: Any, deadline: Deadline,
) -> int:
    from toolchain.cli.networks import Networks, boards_of
    from toolchain.tasks.tuning.earlier import versions
    from toolchain.tasks.tuning.kernels import kernels, together
    from toolchain.tasks.tuning.tune import Tuning, affordable, keep_reproducer, require_time, tuned_answers

    found_kernels = kernels(default, artifacts, store)
    screen = Screen(style_of(sys.stderr, settings(), os.environ.get("TERM", "")), options.budget_s)
    boards = boards_of(project, default)
    screen.unit = unit = unit_of(boards, default, artifacts, screen.note)
    networks = Networks(project, names, default, artifacts, store, deadline, unit)
    by_key: dict[str, Any] = {}

    def on_trial(task: Any, trial: Any) -> None:
        screen.trial(task, trial)
        if trial.cause in MISCOMPILED and (
                kept := keep_reproducer(by_key[task.key], trial, project.state / "failed" / "tune")):
            screen.note(f"{task.name}: {trial.error}; kept in {near(str(kept))}")
    try:
        weigh_graphs(networks, records, options, screen, by_key, on_trial, boards)
    except KeyboardInterrupt:
        screen.note("interrupted while algorithms and layouts were measured: nothing has changed; the same command goes on")
        return INTERRUPTED
    if networks.other:
        found_kernels = together(found_kernels, kernels(networks.other, networks.others, store))
    by_key |= {k.key: k for k in found_kernels}
    tuning = Tuning(found_kernels, len(default), records, options, on_trial, boards, deadline, unit, len(networks.other),
                    affordable(options.budget_s, len(default) + len(networks.other)))
    screen.begin({k.key: k.name for k in tuning.open}, len(found_kernels), tuning.left_out)
    screen.note(f"candidates are ranked by a model that learns, so far from {count(tuning.taught, 'earlier trials')}"
                if tuning.learns else NO_MODEL)
    if tuning.known:
        screen.note(f"{count(len(tuning.known), 'schedules')} were measured by earlier runs, and are not measured again")
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
        confirm = tuning.confirm if interrupted else tuning.confirm_and_go_on
        found = confirm(measurer, lambda k: screen.note(f"confirming {k.name}", keep=False))
    interrupted, won = interrupted or tuning.interrupted, any(f.gain > 1 for f in found)
    told, graphs = networks.compare(tuned_answers(found)) if won or networks.other else ({}, {})
    bad = {name for name, verdict in told.items() if verdict.is_refused}
    records.choose([f.choice(tuning.machine, time.time(), rejected=bool(f.kernel.builds & bad), unit=unit) for f in found
                    if f.is_known])
    records.choose_graphs(networks.choices(graphs, tuning.machine, versions()))
    for line in summary(found, told, graphs, deadline.used_s(), unit):
        print(line)
    if not interrupted and tuning.ended_early:
        print(f"ended {seconds(deadline.left_s())} before its budget: nothing was left to try")
    return INTERRUPTED if interrupted else 0


def unit_of(
    boards: Sequence[Board], tasks: Sequence[BuildTasks], artifacts: Mapping[str, Artifact],
    told: Callable[[str], None],
) -> Unit:
    """Microseconds; where the devices are emulated, static cycles, and the user is told so. Raises as `is_emulated`."""
    from toolchain.core.target import Target
    from toolchain.tasks.tuning.emulated import is_emulated
    from toolchain.tasks.tuning.static_cost import EXPLAINED

    targets = [Target.from_json(artifacts[b.target.name].meta["target"]) for b in tasks]
    if not boards or not is_emulated(boards, targets[0], told):
        return MICROSECONDS
    told(f"{', '.join(board.name for board in boards)}: emulated, so nothing is timed: {STATIC_CYCLES} ({EXPLAINED}) "
         "are optimized, a declared cost and no time")
    return STATIC_CYCLES


def weigh_graphs(
    networks: Any, records: Records, options: Any, screen: Screen, by_key: dict[str, Any], on_trial: Any,
    boards: Sequence[Board],
) -> None:
    """Measure the ways to compute heavy nodes (put into `by_key`), and find the graphs they make."""
    from toolchain.tasks.tuning import graphs
    from toolchain.tasks.tuning.tune import SOON_S, TRIAL_S, Tuning

    nodes = graphs.heavy_nodes(networks.default, networks.artifacts, networks.store)
    budget_s = None if options.budget_s is None else graphs.BUDGET * options.budget_s
    ways = graphs.distinct(nodes)
    if not nodes or (budget_s is not None and budget_s < max(SOON_S, TRIAL_S * len(ways))):
        return
    by_key |= {k.key: k for k in ways}
    tuning = Tuning(list(by_key.values()), 0, records,
                    replace(options, trials=min(options.trials, graphs.TRIALS), budget_s=budget_s), on_trial, boards,
                    unit=networks.unit)
    screen.begin({k.key: k.name for k in tuning.open}, 0)
    screen.note(f"measuring {count(len(tuning.open), 'ways')} to compute the {count(len(nodes), 'heaviest operators')}")
    with tuning.measurer(screen.note) as measurer, screen.shown():
        try:
            tuning.search(measurer)
        except TuneError as error:
            screen.note(f"algorithms and layouts stay: {error.what}")
            return
        finally:
            networks.deadline.charge(tuning.replayed_s)
    tuning.finish()
    known = {(g.graph, g.target): g.costs for g in records.graph_choices()}
    found = graphs.costs(nodes, tuning.standings(), networks.unit, tuning.all_cores)
    networks.decide_graphs({of: {**known.get(of, {}), **found.get(of, {})} for of in {**known, **found}})
    by = "what was measured" if networks.unit.is_time else networks.unit
    for b in networks.other:
        screen.note(f"{b.name}: by {by}, other algorithms or layouts are worth a try")


def summary(
    found: Sequence[Any], networks: Mapping[str, Any], graphs: Mapping[str, Any], wall_s: float, unit: Unit = MICROSECONDS,
) -> Iterator[str]:
    """What came of it: kernels that won, failures by cause, networks."""
    winners = sorted((f for f in found if f.gain > 1), key=lambda f: f.gain, reverse=True)
    for f in winners:
        c = f.confirmed
        yield f"{f.gain:5.2f}x  {f.kernel.name}  {unit.show(c.default_cost)} -> {unit.show(c.tuned_cost)}  {c.winner}"
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
    by = "" if unit.is_time else f" by {unit}"
    for name, told in networks.items():
        yield f"{name}: {told.text}{by}" + ("; its default schedules stay" if told.is_refused else "")
    for name, told in graphs.items():
        yield f"{name} with other algorithms and layouts: {told.text}{by}" + (
            "" if told.is_faster else "; those by default stay")
    if (winners and not all(told.is_refused for told in networks.values())) or any(g.is_faster for g in graphs.values()):
        yield "`tc build` uses what was found"


def exchange(export_file: Path | None, import_file: Path | None) -> int:
    """Write the records, or take some in."""
    from toolchain.build.folders import write_atomically

    if export_file is not None and import_file is not None:
        raise UsageError("--export and --import at once", fix="one after the other")
    with Records(settings().store) as records:
        told = warn_of_damage(records)
        if import_file is not None:
            import_records(records, import_file)
            warn_of_damage(records, told)
        elif export_file is not None:
            lines = list(records.export())
            if (damaged := records.damaged) is not None:            # found when it was opened, or only by reading it
                raise TuneError("the tuning records are damaged: nothing was exported", where=str(damaged),
                                fix="new ones are begun; --import FILE takes in what was exported before")
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


def warn_of_damage(records: Records, told: Path | None = None) -> Path | None:
    """Say so, unless the user has been told of that file; the file that was set aside. Damage may show when a part of the
    file is read that nobody has looked at before."""
    if (damaged := records.damaged) is not None and damaged != told:
        print(f"warning: the tuning records were damaged; they are kept as {damaged}, and new ones begun", file=sys.stderr)
    return damaged


# -- progress ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Row:
    """One kernel on the screen."""

    name: str
    trials: int = 0
    default_cost: float = 0.0
    best_cost: float = 0.0


@dataclass(slots=True)
class Screen:
    """Progress on standard error: a changing table on a terminal; elsewhere a line per improvement."""

    style: Style
    budget_s: float | None
    unit: Unit = MICROSECONDS
    rows: dict[str, _Row] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    trials: int = 0
    said: str = ""
    begun: float = field(default_factory=time.monotonic)
    live: Any = None

    def begin(self, names: Mapping[str, str], kernels: int, left_out: int = 0) -> None:
        self.rows = {key: _Row(name) for key, name in names.items()}
        if left_out:
            self._print(f"tuning {len(names)} of {count(kernels, 'kernels')}, those with most work: a budget of "
                        f"{seconds(self.budget_s or 0)} has no time for {left_out} more that could be tuned")
        elif kernels:
            self._print(f"tuning {len(names)} of {count(kernels, 'kernels')} (the others leave nothing to choose)")

    def trial(self, task: Any, trial: Any) -> None:
        row = self.rows[task.key]
        row.trials += 1
        self.trials += 1
        if row.default_cost and trial.default_cost:
            row.default_cost = min(row.default_cost, trial.default_cost)         # timed again beside this one
        if trial.error:
            self.failures[trial.cause] = self.failures.get(trial.cause, 0) + 1
        elif not row.default_cost:
            row.default_cost = row.best_cost = trial.best_cost
        elif trial.best_cost < row.best_cost:
            row.best_cost = trial.best_cost
            gain = row.default_cost / row.best_cost
            if self.live is None:
                self._print(f"{row.name}: {self.unit.show(row.best_cost)}, {gain:.2f}x, trial {row.trials}")
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
        for row in sorted(self.rows.values(), key=lambda r: -r.best_cost)[:12]:
            gain = f"{row.default_cost / row.best_cost:5.2f}x" if row.best_cost else "      "
            yield f"{gain} {self.unit.show(row.best_cost) if row.best_cost else '':>10} {row.trials:5} trials  {row.name}"
        passed = now - self.begun
        failed = ", ".join(f"{n} {cause}" for cause, n in self.failures.items())
        text = f"{count(self.trials, 'trials')}, {self.trials / max(passed, 1e-3):.1f}/s"
        text += f", failed: {failed}" if failed else ""
        text += f", {seconds(max(0.0, self.budget_s - passed))} left" if self.budget_s is not None else ""
        yield text
        if self.said:
            yield self.said
