"""The fuzzer's command line.

    python -m tests.fuzz.run --count 5000                               our own networks, seeds 1 to 5000
    python -m tests.fuzz.run --generator nnsmith --count 2000           NNSmith's (pip install -e ".[fuzz]", several GB)
    python -m tests.fuzz.run --metamorphic --count 2000                 passes off, on, in random subsets; AVX2 and AVX-512
    python -m tests.fuzz.run --only 17                                  one case, in this process, described

Verdicts, models and minimized failures are kept in a folder (--out): the same command goes on where it was cut off. After
a repair, `--again wrong crashed` judges those once more. Cases run in child processes, so that a crash costs one.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx

from toolchain.tasks.code import code_digest

from .builder import Case, case_of
from .generate import generate
from .minimize import describe, minimize
from .stack import Stack, Variant, Verdict, metamorphic, random_variant

BATCH = 200
MOST_S = 120.0          # of one case, in processor time: a hang. A busy machine is none
MOST_IDLE_S = 1800.0    # of one case, by the clock: a deadlock
LINKED = 4              # one case in so many becomes a shared library, run by the C runtime: that costs as much as the rest
KINDS = ("passed", "unstable", "refused", "wrong", "crashed")
FAILURES = ("wrong", "crashed")


# ---- where cases come from

def make_nothing(seeds: Sequence[int], args: argparse.Namespace) -> None:
    """Our own networks are made when they are judged."""


def make_nnsmith(seeds: Sequence[int], args: argparse.Namespace) -> None:
    """Write the models of those seeds that were not tried yet, with the Python that has NNSmith."""
    tried = results(args.out / "models" / "log.jsonl")
    missing = [s for s in seeds if s not in tried]
    if missing and subprocess.run([args.python, "-m", "tests.fuzz.nnsmith_models", "--out", str(args.out / "models"),
                                   "--dtypes", *args.dtypes, "--", *map(str, missing)]).returncode:
        sys.exit("NNSmith made no models; fix: pip install -e '.[fuzz]', or name an interpreter that has it with --python")


def models(out: Path, seed: int) -> Path:
    return out / "models" / str(seed)


def read_case(out: Path, seed: int) -> Case:
    """A model that is there, its inputs, and what ONNX Runtime makes of them. Raises LookupError: no such case, and why."""
    stem = models(out, seed)
    if not (file := stem.with_suffix(".onnx")).exists():
        raise LookupError("the generator made no model of this seed")
    try:
        with np.load(stem.with_suffix(".npz")) as arrays:
            return case_of(onnx.load_model(file), dict(arrays))
    except Exception as error:
        raise LookupError(f"ONNX Runtime does not run it: {error}") from None


MAKE: dict[str, Callable[[Sequence[int], argparse.Namespace], None]] = {"own": make_nothing, "nnsmith": make_nnsmith}
CASE: dict[str, Callable[[Path, int], Case]] = {"own": lambda out, seed: generate(seed), "nnsmith": read_case}


# ---- judging

def variants_of(seed: int, all_of_them: bool = False) -> tuple[Variant, ...]:
    """How a case is compiled: plainly, at random, or both; or the four ways of a metamorphic check."""
    rng = random.Random(seed)
    if all_of_them:
        return metamorphic(rng)
    return rng.choice(((Variant(),), (random_variant(rng),), (Variant(), random_variant(rng))))


def save(folder: Path, seed: int, case: Case, text: str) -> None:
    (folder / f"{seed}.onnx").write_bytes(case.model.SerializeToString())
    np.savez(folder / f"{seed}.npz", **case.inputs)
    (folder / f"{seed}.txt").write_text(f"{text}\n\n{describe(case)}")


def work(seeds: Sequence[int], args: argparse.Namespace) -> None:
    """In the child: append a line before and after each case."""
    with tempfile.TemporaryDirectory(prefix="tc-fuzz-") as temporary, (args.out / "log.jsonl").open("a") as log:
        stack, code = Stack(Path(temporary)), code_digest("graph", "kernels", "targets", "te", "tasks")[:8]
        for seed in seeds:
            print(json.dumps({"begin": seed}), file=log, flush=True)
            variants = variants_of(seed, args.metamorphic)
            try:
                case = CASE[args.generator](args.out, seed)
                verdict = stack.check(case, variants, link=seed % LINKED == 0)
            except LookupError as error:
                verdict = Verdict("no model", str(error))
            found = {"seed": seed, "kind": verdict.kind, "detail": verdict.detail, "code": code}
            print(json.dumps(found), file=log, flush=True)
            if verdict.kind in FAILURES:
                first = verdict.detail.split(":")[0]
                again = functools.partial(stack.check, variants=variants, link=seed % LINKED == 0)
                small = minimize(case, lambda c, a=again, k=first, w=verdict: (
                    (found := a(c)).kind == w.kind and found.detail.split(":")[0] == k))
                save(args.out, seed, small, f"{verdict.detail}\nsmaller: {again(small).detail}")


def results(log: Path) -> dict[int, dict]:
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return {line["seed"]: line for line in lines if "seed" in line}


def unfinished(log: Path) -> int | None:
    """The case the log ends in: the child was at it."""
    lines = log.read_text().splitlines() if log.exists() else []
    last = json.loads(lines[-1]) if lines else {}
    return last.get("begin")


def run_batch(seeds: Sequence[int], args: argparse.Namespace) -> None:
    """A child for some cases; what it was at when it crashed or hung is noted, and left out from then on."""
    log = args.out / "log.jsonl"
    options = ["--out", str(args.out), "--generator", args.generator, *(["--metamorphic"] if args.metamorphic else [])]
    child = subprocess.Popen([sys.executable, "-m", "tests.fuzz.run", *options, "--batch", *map(str, seeds)])
    size, since, spent = -1, 0.0, 0.0
    while child.poll() is None:
        time.sleep(0.2)
        if (now := log.stat().st_size if log.exists() else 0) != size:
            size, since, spent = now, time.monotonic(), processor_s(child.pid)
        elif processor_s(child.pid) - spent > MOST_S or time.monotonic() - since > MOST_IDLE_S:
            child.send_signal(signal.SIGABRT)
            child.wait()
    if child.returncode and (seed := unfinished(log)) is not None:
        detail = f"the process ended with {child.returncode}"
        with log.open("a") as file:
            print(json.dumps({"seed": seed, "kind": "crashed", "detail": detail}), file=file)
        save(args.out, seed, CASE[args.generator](args.out, seed), detail)


def processor_s(pid: int) -> float:
    """What a process, and the children it waited for, have used so far; 0 when it has gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def judge(args: argparse.Namespace) -> dict[int, dict]:
    """Judge cases until `count` have a verdict; those of an earlier run count, except what is to be done again."""
    log, done = args.out / "log.jsonl", set[int]()
    while True:
        found = results(log)
        found = {s: line for s, line in found.items() if s >= args.seed and (s in done or line["kind"] not in args.again)}
        missing = args.count - sum(line["kind"] != "no model" for line in found.values())
        if missing <= 0:
            break
        fresh = (s for s in range(args.seed, args.seed + 10 * args.count) if s not in found)
        left = [s for s, _ in zip(fresh, range(min(BATCH, missing)))]
        if not left:
            break
        MAKE[args.generator](left, args)
        run_batch(left, args)
        done.update(left)
        print(f"{len(found)} before this batch; {summary(results(log).values()).splitlines()[0]}", file=sys.stderr)
    return dict(sorted(found.items()))


def summary(found: Iterable[dict]) -> str:
    found = list(found)
    counts = Counter(line["kind"] for line in found)
    special = sum(line["kind"] == "passed" and bool(line["detail"]) for line in found)
    passed = f"{counts['passed']} passed" + (f" ({special} with NaN or Inf on the way)" if special else "")
    lines = [", ".join([passed, *(f"{counts[k]} {k}" for k in KINDS[1:]), *([f"{counts['no model']} without a model"]
                                                                              if counts["no model"] else [])])]
    codes = Counter(line.get("code", "unknown") for line in found)
    if len(codes) > 1:
        lines.append("  by versions of the code: " + ", ".join(f"{n} {code}" for code, n in codes.items()))
    first = {line["seed"]: line["detail"].splitlines()[0] for line in found if line["detail"]}
    refused = Counter(re.sub(r"\d+", "N", first[line["seed"]])[:150] for line in found if line["kind"] == "refused")
    lines += [f"  refused {n:4}  {text}" for text, n in refused.most_common()]
    lines += [f"  {line['kind']} {line['seed']}: {first[line['seed']][:200]}" for line in found
              if line["kind"] in (*FAILURES, "unstable")]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", choices=list(MAKE), default="own")
    parser.add_argument("--count", type=int, default=100, help="how many cases")
    parser.add_argument("--seed", type=int, default=1, help="the first one")
    parser.add_argument("--metamorphic", action="store_true", help="compile each case in four ways and compare them")
    parser.add_argument("--out", type=Path, help="for the state (default: one below the system's temporary folder)")
    parser.add_argument("--again", nargs="*", default=[], metavar="KIND", help="judge cases of these verdicts once more")
    parser.add_argument("--dtypes", nargs="*", default=["f32"], help="of NNSmith's inputs; none named: all it knows")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has NNSmith and torch")
    parser.add_argument("--only", type=int, help="one case, described")
    parser.add_argument("--batch", type=int, nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    kind = f"{args.generator}-metamorphic" if args.metamorphic else args.generator
    args.out = args.out or Path(tempfile.gettempdir()) / "toolchain-fuzz" / kind
    args.out.mkdir(parents=True, exist_ok=True)
    if args.batch:
        work(args.batch, args)
        return 0
    if args.only is not None:
        MAKE[args.generator]([args.only], args)
        case, variants = CASE[args.generator](args.out, args.only), variants_of(args.only, args.metamorphic)
        with tempfile.TemporaryDirectory(prefix="tc-fuzz-") as temporary:
            verdict = Stack(Path(temporary)).check(case, variants)
        print(describe(case), *variants, f"{verdict.kind} {verdict.detail}", sep="\n")
        return int(verdict.kind in FAILURES)
    found = judge(args).values()
    print(summary(found))
    return int(any(line["kind"] in FAILURES for line in found))


if __name__ == "__main__":
    sys.exit(main())
