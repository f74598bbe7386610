"""`tc tune --compare`: search methods beside each other on a project's kernels. Changes no build."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolchain.build.records import Records
from toolchain.build.store import Store
from toolchain.cli.screen import count, near
from toolchain.core.artifact import Artifact
from toolchain.core.unit import Unit
from toolchain.tasks.plan import BuildTasks

if TYPE_CHECKING:
    from toolchain.remote.board import Board

TRIALS, SEEDS = 64, 3       # per search, per method and kernel, where nobody says how many


def compare_methods(
    default: Sequence[BuildTasks], artifacts: Mapping[str, Artifact], store: Store, records: Records, folder: Path,
    searchers: Sequence[str], pattern: str, seeds: int, trials: int, boards: Sequence[Board], unit: Unit,
) -> int:
    """Measures, prints a table, and leaves curves.svg and curves.json in `folder`. boards: what measures (none: this
    machine); unit: of what they measure."""
    from toolchain.build.folders import write_atomically
    from toolchain.tasks.tuning.compare import chosen, drawing, facts, run_comparison, table
    from toolchain.tasks.tuning.kernels import kernels
    from toolchain.tasks.tuning.tune import measurer_of

    picked = chosen(kernels(default, artifacts, store), pattern)
    total, done = len(picked) * len(searchers) * seeds, 0

    def on_run(run: Any) -> None:
        nonlocal done
        done += 1
        gain = run.best_costs[0] / run.best_costs[-1]
        print(f"[{done}/{total}] {run.task}  {run.searcher}, seed {run.seed}: {gain:.2f}x after "
              f"{count(len(run.best_costs), 'trials')}", file=sys.stderr, flush=True)

    def told(text: str) -> None:
        print(text, file=sys.stderr, flush=True)
    with measurer_of([k.job for k in picked], boards, unit, told) as measurer:
        comparison = run_comparison(picked, measurer, records, searchers, seeds, trials, on_run,
                                    [b.name for b in boards], unit)
    head, *rows = table(comparison)
    widths = [max(len(row[n]) for row in (head, *rows)) for n in range(len(head))]
    for row in (head, *rows):
        print("  ".join(cell.ljust(w) if n == 0 else cell.rjust(w) for n, (cell, w) in enumerate(zip(row, widths))))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "curves.svg", drawing(comparison).encode())
    write_atomically(folder / "curves.json", (json.dumps(facts(comparison), indent=1) + "\n").encode())
    print(f"{count(len(picked), 'kernels')}, {count(seeds, 'seeds')}, {count(comparison.measured, 'schedules')} measured "
          f"({comparison.seconds_per_trial:.2f} s each); parts of the best known speed, median of the seeds"
          f"{comparison.by}")
    print(f"wrote {near(str(folder / 'curves.svg'))} and curves.json")
    return 0
