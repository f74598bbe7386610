"""Passes, refusals and wrong results of the public ONNX backend test suite, per operator.

    python -m tests.onnx_backend.summary [--match REGEX] [--jobs N] [--cases] [--write-expected]
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from tests.onnx_backend.suite_cases import EXPECTED, Outcome, case_names, run_case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--match", default="", help="only cases whose name has this pattern")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--cases", action="store_true", help="one line per case that does not pass")
    parser.add_argument("--write-expected", action="store_true", help="write the refusals to expected_failures.txt")
    options = parser.parse_args()
    started = time.perf_counter()
    names = [n for n in case_names() if re.search(options.match, n)]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("fork")) as pool:       # which notices a crash
        outcomes = list(pool.map(run_case, names, chunksize=4))
    show(outcomes, options.cases)
    print(f"{time.perf_counter() - started:.0f} s, of them in cases {sum(o.seconds for o in outcomes):.0f} s; the slowest:",
          ", ".join(f"{o.name} {o.seconds:.1f} s" for o in sorted(outcomes, key=lambda o: -o.seconds)[:8]))
    if options.write_expected:
        write_expected(outcomes)


def show(outcomes: list[Outcome], cases: bool) -> None:
    by_op: dict[str, Counter[str]] = defaultdict(Counter)
    for o in outcomes:
        by_op[o.op][o.verdict] += 1
    print(f"{'operator':32} {'pass':>5} {'refused':>8} {'close':>6} {'wrong':>6}")
    for op, n in sorted(by_op.items(), key=lambda item: (-item[1]["refused"] - item[1]["wrong"], item[0])):
        print(f"{op:32} {n['pass']:5} {n['refused']:8} {n['close']:6} {n['wrong']:6}")
    reasons = Counter(o.reason for o in outcomes if o.verdict == "refused")
    for reason, count in reasons.most_common():
        print(f"{count:5}  {reason}")
    for o in sorted(outcomes, key=lambda o: o.name):
        if o.verdict in ("wrong", "close") or (cases and o.verdict != "pass"):
            print(f"{o.verdict}: {o.name}: {o.detail}")
    total = Counter(o.verdict for o in outcomes)
    constant = sum(o.constant for o in outcomes)
    print(f"of {len(outcomes)} cases: passed {total['pass']} ({constant} of them computed when building), "
          f"failed {total['close']} (within NEAR, see close.txt), refused {total['refused']}, wrong {total['wrong']}")


def write_expected(outcomes: list[Outcome]) -> None:
    refused = sorted((o for o in outcomes if o.verdict == "refused"), key=lambda o: o.name)
    lines = [f"{o.name}: {o.reason}\n" for o in refused]
    EXPECTED.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
