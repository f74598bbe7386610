"""`tc tune` but for its screen: kernels of built artifacts -> a session -> winners confirmed -> choices in the records.

    graphs.py     ways to compute heavy operators     kernels.py          what there is to tune
    session       (te/tune) what is measured next, until the budget is spent
    local.py      how it is measured here             confirm.py          what may take the place of a default
    boards.py     how on devices                      emulated.py   by static cycles, where a device is emulated
    boosted.py    what ranks candidates               autotvm.py    hints from other compilers' logs
    earlier.py    what sessions before have measured
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from toolchain.build.records import Choice, Records, TrialRow
from toolchain.core.digest import digest_json
from toolchain.core.errors import TuneError, UsageError
from toolchain.core.unit import MICROSECONDS, STATIC_CYCLES, Unit
from toolchain.core.versions import installed_version
from toolchain.graph.serialize import save
from toolchain.graph.text import to_text
from toolchain.remote.board import Board
from toolchain.tasks.code import code_digest
from toolchain.tasks.machine import peak_gflops
from toolchain.tasks.plan import Tuned, machine_name
from toolchain.tasks.tuning import autotvm, boosted
from toolchain.tasks.tuning.boards import BoardMeasurer
from toolchain.tasks.tuning.confirm import CANDIDATES, Comparing, Confirmed, confirm
from toolchain.tasks.tuning.deadline import END_S, Deadline, Estimate
from toolchain.tasks.tuning.earlier import CODE, conditions, known_trials, sessions_with, trial_of, versions
from toolchain.tasks.tuning.emulated import StaticMeasurer
from toolchain.tasks.tuning.kernels import TunedKernel
from toolchain.tasks.tuning.local import Job, LocalMeasurer, cores_for
from toolchain.tasks.tuning.samples import sample_text, teach
from toolchain.te.tune.measure import Measurer, Trial
from toolchain.te.tune.model import Analytic, CostModel
from toolchain.te.tune.session import Entry, Limits, Session, Standing, TuneTask
from toolchain.te.tune.space import Point

RESERVE = 0.5                   # of the budget, at most, for confirming winners and comparing networks
MARGIN = 1.2                    # of what is kept at first by guesses: what is not needed goes into more trials
CONFIRM_S = 0.8                 # what confirming one kernel takes, until it is known better, and
BUILD_S = 0.2                   # building its winner
NETWORK_S = 7.0                 # comparing one network: its processes begin, and rounds that say something
TRIAL_S = 0.2                   # a trial, and
FEW_TRIALS = 5                  # of a kernel, the default's among them: fewer find little
EARLY = 0.02                    # of a budget: a run that leaves more of it says why
SOON_S = 1.0                    # what is not worth another round of searching and confirming
MOST_HINTS = 3                  # per kernel
NO_TIME = "no time left"        # the error of a kernel that was not confirmed for that


@dataclass(frozen=True, slots=True)
class Options:
    """budget_s: wall time in all, None where only `trials` (per kernel) limits the search."""

    budget_s: float | None = None
    trials: int = 1000
    searcher: str = "auto"
    seed: int = 0


class MeasuringAndComparing(Measurer, Comparing, Protocol):
    """What `LocalMeasurer` does."""


@contextmanager
def measurer_of(
    jobs: Sequence[Job], boards: Sequence[Board], unit: Unit, told: Callable[[str], None] = lambda text: None,
) -> Iterator[LocalMeasurer | BoardMeasurer | StaticMeasurer]:
    """What measures candidates: this machine; devices; an emulated one, where the unit is STATIC_CYCLES. The worker process,
    and sessions with boards, end with the block. told: what the user may want to know of boards.

    Raises UsageError: a board is emulated; DeviceError: one is away.
    """
    if unit == STATIC_CYCLES:
        with StaticMeasurer(jobs, boards[0], told) as static:
            yield static
        return
    if boards:
        with BoardMeasurer(jobs, boards, told=told) as on_boards:
            yield on_boards
        return
    peak = (lambda: peak_gflops(jobs[0].target, 1) * max(cores_for(job.target) for job in jobs)) if jobs else None
    with LocalMeasurer(jobs, peak=peak, all_cores=True) as measurer:
        yield measurer


class RecordLog:
    """The log of one session in the records (implements `te.tune.session.Log`). unit: of the session's costs."""

    def __init__(self, records: Records, session: str, unit: Unit = MICROSECONDS) -> None:
        self.records, self.session, self.unit = records, session, unit

    def entries(self) -> Sequence[Entry]:
        return [Entry(t.workload, trial_of(t, self.unit)) for t in self.records.trials(self.session)]

    def append(self, entry: Entry) -> None:
        t = entry.trial
        if t.unit is not self.unit:
            raise ValueError(f"a cost in {t.unit} in records of {self.unit}")
        sample = sample_text(entry.point) if entry.point is not None else ""
        self.records.append(self.session, TrialRow(entry.task, t.answers, t.samples, t.error, t.cost_s, t.stopped, sample))


@dataclass(frozen=True, slots=True)
class Found:
    """What came of one kernel."""

    kernel: TunedKernel
    standing: Standing | None
    confirmed: Confirmed | None

    @property
    def gain(self) -> float:
        """Default's time / tuned time; 1: the default stays."""
        c = self.confirmed
        return c.default_cost / c.tuned_cost if c is not None and c.winner is not None else 1.0

    @property
    def default_cost(self) -> float:
        """As the search measured it; 0: it did not."""
        return self.standing.default_cost if self.standing is not None and math.isfinite(self.standing.default_cost) else 0.0

    @property
    def is_known(self) -> bool:
        """Whether it is known which schedule is the best so far: there is but one, or the others have been measured."""
        measured = self.standing is not None and (self.standing.trials > 1 or self.standing.exhausted)
        return self.kernel.space is None or (measured and (self.confirmed is None or not self.confirmed.error))

    def choice(self, machine: str, now_s: float, *, rejected: bool = False, unit: Unit = MICROSECONDS) -> Choice:
        """As the records keep it. unit: of its costs. rejected: it won alone, but the network did not become faster."""
        c = self.confirmed or Confirmed(None, *2 * (self.default_cost,))
        winner = None if rejected else c.winner
        provenance = {
            "machine": machine, "versions": versions(), "samples": {k: list(v) for k, v in (c.samples or {}).items()},
            "rejected": str(c.winner) if rejected and c.winner else "", **of_unit(unit),
        }
        return Choice(self.kernel.workload, self.kernel.target_key, winner.answers if winner else {}, self.kernel.name,
                      c.default_cost, c.tuned_cost if winner else c.default_cost, now_s, provenance)


def affordable(budget_s: float | None, comparisons: int) -> int | None:
    """How many kernels a budget holds: some trials of each and a confirmation, beside that many comparisons of networks.
    None: any number. Of the budget alone, so that a run that was killed goes on with the same ones."""
    if budget_s is None:
        return None
    search_s = budget_s - min(RESERVE * budget_s, comparisons * NETWORK_S)
    return max(1, int(search_s / (FEW_TRIALS * TRIAL_S + CONFIRM_S)))


class Tuning:
    """One run of `tc tune` over some kernels; `search`, then `confirm`."""

    def __init__(
        self, kernels: Sequence[TunedKernel], networks: int, records: Records, options: Options,
        on_trial: Callable[[TuneTask, Trial], None] = lambda task, trial: None, boards: Sequence[Board] = (),
        deadline: Deadline | None = None, unit: Unit = MICROSECONDS, others: int = 0,
        most: int | None = None,
    ) -> None:
        """networks: how many comparisons of artifacts follow if any kernel wins, which the budget has to hold; others: how
        many more follow whatever wins. boards: what candidates are
        measured on; none: this machine. deadline: of the whole run; None: the budget begins now. unit: of costs;
        STATIC_CYCLES where these boards are emulated. most: of the kernels, those with most work, that are tuned at all
        (see `affordable`); the others stay as they are."""
        self.deadline = Deadline(options.budget_s) if deadline is None else deadline
        self.kernels, self.records, self.options = list(kernels), records, options
        choosing = [k for k in kernels if k.space is not None]
        heaviest = sorted(choosing, key=lambda k: k.uses * k.job.flops, reverse=True)[:most]
        self.open = [k for k in choosing if k in heaviest]
        self.left_out = len(choosing) - len(self.open)
        self.boards, self.unit = list(boards), unit
        self.machine = machine_name([board.name for board in boards])
        self.learns, self.taught = boosted.is_installed(), 0        # earlier trials that the model knows
        self.session_id = _session_id(self.open, self.machine, options, self.learns, unit)
        same = conditions(self.open, self.machine, unit)
        self.earlier_s, begun_with = records.begin(self.session_id, {
            "machine": self.machine, "versions": versions(), "searcher": options.searcher, "seed": options.seed,
            "kernels": {k.key: k.name for k in self.open}, "begun_s": time.time(),
            "conditions": same, "known_from": sessions_with(same, records),
            "learned_from": records.trial_counts(unit) if self.learns else {}, **of_unit(unit),
            "hints": {k.key: found for k in self.open if (found := hints(k, records))}})
        self.earlier = [Limits(math.inf if budget_s is None else budget_s, int(trials))
                        for budget_s, trials in begun_with.get("runs", [])]
        self.model, self.hints = self._model(begun_with.get("learned_from", {})), begun_with.get("hints", {})
        self.known = known_trials(same, begun_with.get("known_from", {}), records, unit)
        self.log = RecordLog(records, self.session_id, unit)
        self.networks, self.others, self._confirming = networks, others, Estimate(CONFIRM_S)
        self.limits = Limits(math.inf, options.trials)
        self._on_trial = on_trial
        self.session: Session | None = None
        self._runs: list[Limits] = []
        self.interrupted = False        # while it went on after confirming

    def _model(self, learned_from: Mapping[str, int]) -> CostModel:
        """What ranks candidates: learned from what the session found when it first began, or the analytic model alone."""
        if not self.learns:
            return Analytic()
        model = boosted.Boosted()
        self.taught = teach(model, self.records.samples(learned_from))
        return model

    @property
    def all_cores(self) -> bool:
        """Whether kernels are timed on all cores, as networks run; on devices it is one thread."""
        return not self.boards

    @property
    def replayed_s(self) -> float:
        """What trials took that a process of this run has left which was killed: of its budget, too."""
        return max(0.0, self.session.replayed_s - self.earlier_s) if self.session is not None else 0.0

    def _after_s(self, winners: int) -> float:
        """What follows confirming: every network with its winners is built, which takes no longer than as many trials, and
        compared."""
        done = sum(s.trials for s in self.session.standings()) if self.session is not None else 0
        each_s = self.session.spent_s / done if self.session is not None and done else BUILD_S
        return (self.networks * (winners > 0) + self.others) * (NETWORK_S + winners * each_s)

    def _left_s(self, winners: int) -> float:
        """Before networks are compared; their comparisons never take more than a part of a small budget."""
        return self.deadline.left_s() - min(RESERVE * self.deadline.budget_s, self._after_s(winners))

    def _search_s(self) -> float:
        """What trials may take at first: the time left, without what confirming all kernels, and all winning, would take."""
        if not self.deadline.is_set:
            return math.inf
        after_s = MARGIN * (CONFIRM_S * len(self.open) + self._after_s(len(self.open)))
        return self.deadline.left_s() - min(RESERVE * self.deadline.budget_s, after_s)

    @contextmanager
    def measurer(
        self, told: Callable[[str], None] = lambda text: None,
    ) -> Iterator[LocalMeasurer | BoardMeasurer | StaticMeasurer]:
        """See `measurer_of`."""
        with measurer_of([k.job for k in self.open], self.boards, self.unit, told) as measurer:
            yield measurer

    def search(self, measurer: Measurer) -> None:
        """Until the budget is spent, or every kernel has its trials. Raises TuneError (see Session.run).

        May be interrupted at any time: what was measured is in the records, and `confirm` works with it.
        """
        tasks = [replace(k.task, hints=tuple(self.hints.get(k.key, ()))) for k in self.open]
        self.limits = replace(self.limits, budget_s=self.earlier_s + self._search_s())
        self.session = Session(tasks, measurer, self.log, searcher=self.options.searcher, seed=self.options.seed,
                               limits=self.limits, on_trial=self._on_trial, clock=self.deadline.clock, model=self.model,
                               earlier=self.earlier, known=self.known)
        try:
            self.session.run()
        finally:                                    # what an earlier process took is of this run's budget, too
            self.deadline.charge(self.replayed_s)
        self._runs = [self.limits]

    def finish(self) -> None:
        """The session has come to its end: the next one with these kernels gets a budget of its own."""
        assert self.session is not None
        for limits in self._runs:
            budget_s = limits.budget_s if math.isfinite(limits.budget_s) else None
            self.records.finish(self.session_id, self.session.spent_s, (budget_s, limits.trials))

    def standings(self) -> Mapping[str, Standing]:
        """By key."""
        assert self.session is not None
        return dict(zip((k.key for k in self.open), self.session.standings(), strict=True))

    def confirm(
        self, measurer: Comparing, on_kernel: Callable[[TunedKernel], None] = lambda kernel: None,
    ) -> list[Found]:
        """Every kernel, with its winner where one has beaten the default side by side. Those that promise most come first;
        when the budget ends, the others keep what the records had for them."""
        confirmed = dict[str, Confirmed]()
        self._confirm(measurer, self.open, confirmed, on_kernel)
        return self._found(confirmed)

    def confirm_and_go_on(
        self, measurer: MeasuringAndComparing, on_kernel: Callable[[TunedKernel], None] = lambda kernel: None,
    ) -> list[Found]:
        """`confirm`; what confirming leaves of the budget is searched on, and what that finds confirmed in turn. Where
        nothing has won, no network has to be compared, and that time goes into trials, too."""
        confirmed = dict[str, Confirmed]()
        self._confirm(measurer, self.open, confirmed, on_kernel)
        try:
            self._spend_the_rest(measurer, confirmed, on_kernel)
        except KeyboardInterrupt:
            self.interrupted = True                     # what is confirmed stays so
            return self._found(confirmed)
        self.finish()
        return self._found(confirmed)

    def _spend_the_rest(
        self, measurer: MeasuringAndComparing, confirmed: dict[str, Confirmed], on_kernel: Callable[[TunedKernel], None],
    ) -> None:
        def left_s() -> float:
            return self._left_s(sum(c.winner is not None for c in confirmed.values()))
        while self.deadline.is_set and left_s() > SOON_S:
            best = {key: s.best_cost for key, s in self.standings().items()}
            if not self._go_on(left_s() - min(left_s() / 2, self._confirming.each_s * len(self.open))):
                break
            changed = [k for k in self.open if self.standings()[k.key].best_cost < best[k.key]
                       or (k.key in confirmed and confirmed[k.key].error == NO_TIME)]
            self._confirm(measurer, changed, confirmed, on_kernel)
        if self.deadline.is_set and not any(c.winner for c in confirmed.values()):
            self._go_on(left_s() - END_S)

    def _go_on(self, for_s: float) -> bool:
        """More trials for so long; whether there were any."""
        assert self.session is not None
        trials = sum(s.trials for s in self.session.standings())
        if for_s > 0:
            self._runs.append(replace(self.limits, budget_s=self.session.spent_s + for_s))
            self.session.extend(self._runs[-1].budget_s)
        return sum(s.trials for s in self.session.standings()) > trials

    @property
    def ended_early(self) -> bool:
        """Whether time was left, and nothing to spend it on."""
        idle = self.session is not None and all(s.exhausted for s in self.session.standings())
        return self.deadline.is_set and idle and self.deadline.left_s() > EARLY * self.deadline.budget_s

    def _confirm(
        self, measurer: Comparing, kernels: Sequence[TunedKernel], confirmed: dict[str, Confirmed],
        on_kernel: Callable[[TunedKernel], None],
    ) -> None:
        standings = self.standings()
        for kernel in sorted(kernels, key=lambda k: _promise(k, standings[k.key]), reverse=True):
            candidates = self._candidates(kernel)
            if not candidates or kernel.space is None:
                continue
            if self._left_s(1 + sum(c.winner is not None for c in confirmed.values())) < 0:
                confirmed.setdefault(kernel.key, Confirmed(None, error=NO_TIME))
                continue
            on_kernel(kernel)
            begun_s = self.deadline.used_s()
            confirmed[kernel.key] = confirm(kernel.key, kernel.space.default, candidates, measurer)
            self._confirming.add(self.deadline.used_s() - begun_s)

    def _found(self, confirmed: Mapping[str, Confirmed]) -> list[Found]:
        standings = self.standings()
        return [Found(k, standings.get(k.key), confirmed.get(k.key)) for k in self.kernels]

    def _candidates(self, kernel: TunedKernel) -> list[Point]:
        """The best points that looked faster than the default, and what the records have chosen before."""
        assert self.session is not None and kernel.space is not None
        standing = self.standings()[kernel.key]
        best = self.session.best(kernel.key, CANDIDATES, standing.default_cost)
        known = self.records.choices(kernel.target_key).get(kernel.workload)
        earlier = kernel.space.point(known.answers) if known is not None and known.answers else kernel.space.default
        return best if earlier.refused or earlier in (*best, kernel.space.default) else [*best, earlier]


def keep_reproducer(kernel: TunedKernel, trial: Trial, folder: Path) -> Path | None:
    """What is needed to look at a candidate that computes something else; None: it is kept already. folder/KERNEL-... with

        graph.json, params.bin, graph.txt    the kernel's body      target.json    what it was made for
        answers.json                         the schedule           what.txt       what was wrong
    """
    place = folder / f"{kernel.name}-{kernel.workload[:12]}-{digest_json(dict(trial.answers))[:8]}"
    if place.exists():
        return None
    place.mkdir(parents=True)
    save(kernel.job.body, place)
    (place / "graph.txt").write_text(to_text(kernel.job.body), encoding="utf-8")
    (place / "target.json").write_text(json.dumps(kernel.job.target.to_json(), indent=1), encoding="utf-8")
    (place / "answers.json").write_text(json.dumps(dict(trial.answers), indent=1), encoding="utf-8")
    (place / "what.txt").write_text(f"{trial.error}\n", encoding="utf-8")
    return place


def _promise(kernel: TunedKernel, standing: Standing) -> float:
    """Microseconds of a run that its best candidate may save."""
    gain = standing.default_cost - standing.best_cost
    return kernel.uses * max(0.0, gain) if math.isfinite(gain) else 0.0


def require_time(options: Options, session: Session) -> None:
    """Raises UsageError: the budget did not hold a single candidate. TuneError: not even a default could be measured."""
    standings = session.standings()
    failures = sum((s.failures for s in standings), Counter())
    if standings and failures.total() >= len(standings) and all(math.isinf(s.default_cost) for s in standings):
        raise TuneError(f"no default schedule could be measured: {session.first_error()}")
    if standings and all(s.trials <= 1 for s in standings) and not all(s.exhausted for s in standings):
        raise UsageError(f"a budget of {options.budget_s or 0:g} s is too small for one candidate: the default schedules "
                         "stay", fix="give a larger --budget")


def tuned_answers(found: Sequence[Found]) -> Tuned:
    """For `plan`: the winners' answers by target and workload, in graphs that Target facts decide."""
    by_target: dict[str, dict[str, dict[str, str]]] = {}
    for f in found:
        if f.confirmed is not None and f.confirmed.winner is not None:
            by_target.setdefault(f.kernel.target_key, {})[f.kernel.workload] = f.confirmed.winner.answers
    return Tuned(lambda build, target: by_target.get(target, {}))


def hints(kernel: TunedKernel, records: Records) -> list[dict[str, str]]:
    """Answers that did well elsewhere: confirmed on other targets, or in another compiler's log."""
    assert kernel.space is not None
    elsewhere = records.hints(kernel.workload, kernel.target_key)
    logged = autotvm.hints(kernel.job.body, kernel.job.target, kernel.space.default, records.priors)
    return [*elsewhere, *logged][:MOST_HINTS]


def _session_id(kernels: Sequence[TunedKernel], machine: str, options: Options, learns: bool, unit: Unit) -> str:
    """What makes two searches the same one, so that the second goes on where the first ended."""
    model = installed_version("xgboost-cpu") or installed_version("xgboost") if learns else ""
    return digest_json([[k.key, k.space.default.key if k.space else [], list(k.job.weights), k.uses,
                         cores_for(k.job.target)] for k in kernels]
                       + [machine, options.searcher, options.seed, code_digest(*CODE), versions(), model,
                          *of_unit(unit).values()])[:32]


def of_unit(unit: Unit) -> dict[str, str]:
    """What provenances say of it: nothing of microseconds."""
    return {} if unit.is_time else {"unit": str(unit)}
