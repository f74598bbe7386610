"""Ours against ONNX Runtime, operator by operator: python benchmarks/operators.py [--only 'Resize*,TopK*'] [--again]

Each model of operator_models.py is compiled with default schedules and measured beside ONNX Runtime by
toolchain.report.measure: two processes, stopped in turns, a few short bursts each. The table is sorted, the slowest first: a
ratio above 1 says that ours is faster, its interval is that of the median over the rounds. All numbers go to a JSON file,
where a later run goes on: what was measured with the same code of ours is not measured again (--again: it is).

Below the table stands each model that takes three times as long as ONNX Runtime or more, with the reason that
operator_reasons.json gives. One without a reason is named, too.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from operator_models import Case, cases
from results import Results
from rich.console import Console
from rich.table import Table

import toolchain
from toolchain.core.digest import digest_json
from toolchain.core.errors import ToolchainError
from toolchain.report.contenders import baseline_entries, version_of
from toolchain.report.measure import Processes, measure
from toolchain.report.statistics import geometric_mean
from toolchain.tasks.code import code_digest
from toolchain.tasks.contender import artifact_entry

REASONS = Path(__file__).with_name("operator_reasons.json")
SLOW = 3.0                      # times ONNX Runtime's time: from here on a reason is due
RIVAL = "onnxruntime"
RTOL, ATOL = 2e-2, 2e-2         # shows a wrong kernel, not rounding; tests compare


def main() -> int:
    options = parse_arguments()
    results, screen = Results(options.json), Console(width=None if sys.stdout.isatty() else 140)
    chosen = [c for c in cases() if any(fnmatchcase(c.name, pattern) for pattern in options.only)]
    due = [c for c in chosen if options.again or not is_known(c, options, results)]
    with tempfile.TemporaryDirectory(prefix="tc-operators-") as folder, Processes() as processes:
        with ProcessPoolExecutor(options.threads) as pool:
            jobs = [pool.submit(compile_case, c, Path(folder) / f"{n}") for n, c in enumerate(due)]
            for n, job in enumerate(jobs, 1):
                progress(f"compiled {n} of {len(due)}")
                job.result()
        for n, case in enumerate(due):
            progress(f"measured {n} of {len(due)}")
            results.put("operators", case.name, {
                "what": identity(case, options), **measure_case(case, Path(folder) / f"{n}", options, processes)})
    measured = {c.name: results.data["operators"][c.name] for c in chosen}
    show(measured, {c.name: c.family for c in chosen}, screen)
    show_slow(measured, json.loads(REASONS.read_text(encoding="utf-8")), screen)
    return 0


def progress(text: str) -> None:
    """One line that is written over, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\x1b[2K{text}", end="", file=sys.stderr)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.split(","), default=["*"], metavar="PATTERN,...",
                        help="models by name ('Softmax*')  [default: all]")
    parser.add_argument("--threads", type=int, default=2, help="of both  [default: %(default)s]")
    parser.add_argument("--rounds", type=int, default=6, help="bursts of each  [default: %(default)s]")
    parser.add_argument("--burst", type=float, default=0.03, help="seconds of a burst  [default: %(default)s]")
    parser.add_argument("--again", action="store_true", help="measure anew what is known")
    parser.add_argument("--json", type=Path, default=Path(".tc/operators.json"), metavar="FILE",
                        help="[default: %(default)s]")
    return parser.parse_args()


def identity(case: Case, options: argparse.Namespace) -> str:
    """What makes two measurements of a model the same one."""
    model, _ = case.model()
    return digest_json([code_digest("."), version_of(RIVAL), options.threads, options.rounds, options.burst,
                        model.SerializeToString().hex()])


def is_known(case: Case, options: argparse.Namespace, results: Results) -> bool:
    known = results.data.get("operators", {}).get(case.name)
    return known is not None and known["what"] == identity(case, options)


def compile_case(case: Case, folder: Path) -> None:
    """Write `folder`/artifact, or `folder`/error with what was refused."""
    folder.mkdir()
    model, _ = case.model()
    try:
        with toolchain.compile(model, threads=1) as module:
            module.save(folder / "artifact")
    except ToolchainError as error:
        (folder / "error").write_text(str(error), encoding="utf-8")


def measure_case(case: Case, folder: Path, options: argparse.Namespace, processes: Processes) -> dict[str, Any]:
    """The figures of one model that was compiled into `folder`; {"error": text} when one of the two has none."""
    if (refused := folder / "error").is_file():
        return {"error": f"ours: {refused.read_text(encoding='utf-8')}"}
    model, inputs = case.model()
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    rivals = baseline_entries((RIVAL,), folder / "model.onnx")
    facts = measure([artifact_entry(folder / "artifact"), *rivals], inputs, threads=options.threads,
                    rounds=options.rounds, burst_s=options.burst, rtol=RTOL, atol=ATOL, processes=processes)
    ours, theirs = facts.contenders
    if error := ours.error or theirs.error:
        return {"error": f"{'ours' if ours.error else RIVAL}: {error}"}
    (ratio,) = facts.comparisons
    return {"ours_us": ours.median_us, "theirs_us": theirs.median_us, "ratio": ratio.speedup, "low": ratio.low,
            "high": ratio.high, "passed": all(o.passed for o in ours.outputs)}


def show(measured: Mapping[str, Mapping[str, Any]], families: Mapping[str, str], screen: Console) -> None:
    """The table, and the geometric mean of each family."""
    table = Table(box=None, pad_edge=False, title="ours beside ONNX Runtime, the slowest first", title_justify="left")
    for heading in ("model", "ours", "ONNX Runtime", "ratio", "interval", ""):
        table.add_column(heading, justify="left" if heading in ("model", "") else "right")
    timed = {name: m for name, m in measured.items() if "error" not in m}
    for name, m in sorted(timed.items(), key=lambda item: item[1]["ratio"]):
        table.add_row(name, f"{m['ours_us']:.1f} us", f"{m['theirs_us']:.1f} us", f"{m['ratio']:.2f}",
                      f"[{m['low']:.2f}, {m['high']:.2f}]".replace("[", r"\["), "" if m["passed"] else "results differ")
    screen.print(table)
    screen.print()
    for family in dict.fromkeys(families.values()):
        ratios = [m["ratio"] for name, m in timed.items() if families[name] == family]
        if ratios:
            behind = sum(r < 1 for r in ratios)
            screen.print(f"{family}: geometric mean {geometric_mean(ratios):.2f}, worst {min(ratios):.2f}, "
                         f"{behind} of {len(ratios)} below 1")
    for name, m in measured.items():
        if "error" in m:
            screen.print(f"{name}: {m['error']}", markup=False)


def show_slow(measured: Mapping[str, Mapping[str, Any]], reasons: Mapping[str, str], screen: Console) -> None:
    """Which are slower than SLOW times ONNX Runtime, and why."""
    slow = [name for name, m in measured.items() if m.get("ratio", 1.0) < 1 / SLOW]
    screen.print(f"\n{len(slow)} of {len(measured)} take more than {SLOW:g} times as long as ONNX Runtime")
    for name in slow:
        reason = next((text for pattern, text in reasons.items() if fnmatchcase(name, pattern)), "")
        screen.print(f"  {name}: {reason or 'NO REASON GIVEN'}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
