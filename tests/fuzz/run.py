"""The fuzzer's command line.

    python -m tests.fuzz.run --count 1000 --seed 1 --out /tmp/fuzz      cases 1 to 1000; failures are saved below --out
    python -m tests.fuzz.run --count 1000 --resume /tmp/fuzz/log.jsonl  what that log does not have yet
    python -m tests.fuzz.run --only 17                                  one case, in this process

Cases run in a child process, a batch each, so that a crash costs one case.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from .builder import Case
from .generate import generate
from .minimize import describe, minimize
from .stack import Stack, Variant, Verdict, random_variant

BATCH = 200
MOST_S = 120.0          # of one case: a hang


def verdict_of(stack: Stack, seed: int) -> tuple[Case, Verdict, tuple[Variant, ...]]:
    case = generate(seed)
    rng = random.Random(seed)
    variants = rng.choice(((Variant(),), (random_variant(rng),), (Variant(), random_variant(rng))))
    return case, stack.check(case, variants), variants


def save(folder: Path, seed: int, case: Case, text: str) -> None:
    (folder / f"{seed}.onnx").write_bytes(case.model.SerializeToString())
    np.savez(folder / f"{seed}.npz", **case.inputs)
    (folder / f"{seed}.txt").write_text(f"{text}\n\n{describe(case)}")


def work(seeds: list[int], out: Path) -> None:
    """In the child: append a line before and after each case."""
    with tempfile.TemporaryDirectory(prefix="tc-fuzz-") as temporary, (out / "log.jsonl").open("a") as log:
        stack = Stack(Path(temporary))
        for seed in seeds:
            print(json.dumps({"begin": seed}), file=log, flush=True)
            case, verdict, variants = verdict_of(stack, seed)
            print(json.dumps({"seed": seed, "kind": verdict.kind, "detail": verdict.detail}), file=log, flush=True)
            if verdict.kind in ("wrong", "crashed"):
                kind = verdict.detail.split(":")[0]
                small = minimize(case, lambda c, v=variants, k=kind, w=verdict: (
                    (found := stack.check(c, v)).kind == w.kind and found.detail.split(":")[0] == k))
                save(out, seed, small, f"{verdict.detail}\nsmaller: {stack.check(small, variants).detail}")


def results(log: Path) -> dict[int, dict]:
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return {line["seed"]: line for line in lines if "seed" in line}


def unfinished(log: Path) -> int | None:
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    begun = [line["begin"] for line in lines if "begin" in line]
    return begun[-1] if begun and begun[-1] not in results(log) else None


def run_batch(seeds: list[int], out: Path) -> None:
    """A child for some cases; what it was at when it crashed or hung is noted, and left out from then on."""
    log = out / "log.jsonl"
    child = subprocess.Popen([sys.executable, "-m", "tests.fuzz.run", "--out", str(out), "--batch", *map(str, seeds)])
    size, since = -1, time.monotonic()
    while child.poll() is None:
        time.sleep(0.2)
        if (now := log.stat().st_size if log.exists() else 0) != size:
            size, since = now, time.monotonic()
        elif time.monotonic() - since > MOST_S:
            child.send_signal(signal.SIGABRT)
            child.wait()
    if child.returncode and (seed := unfinished(log)) is not None:
        detail = f"the process ended with {child.returncode}"
        with log.open("a") as file:
            print(json.dumps({"seed": seed, "kind": "crashed", "detail": detail}), file=file)
        save(out, seed, generate(seed), detail)


def summary(found: dict[int, dict]) -> str:
    counts = Counter(line["kind"] for line in found.values())
    lines = [", ".join(f"{counts[k]} {k}" for k in ("passed", "refused", "wrong", "crashed"))]
    first = {seed: line["detail"].splitlines()[0] for seed, line in found.items() if line["detail"]}
    refused = Counter(re.sub(r"\d+", "N", first[seed])[:150] for seed, line in found.items() if line["kind"] == "refused")
    lines += [f"  refused {n:4}  {text}" for text, n in refused.most_common()]
    lines += [f"  {line['kind']} {seed}: {first[seed][:200]}" for seed, line in sorted(found.items())
              if line["kind"] in ("wrong", "crashed")]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="how many cases")
    parser.add_argument("--seed", type=int, default=1, help="the first one")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "toolchain-fuzz",
                        help="for the log and failures")
    parser.add_argument("--resume", type=Path, help="a log.jsonl: its cases are not run again")
    parser.add_argument("--only", type=int, help="one case, described")
    parser.add_argument("--batch", type=int, nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out = args.resume.parent if args.resume else args.out
    args.out.mkdir(parents=True, exist_ok=True)
    if args.batch:
        work(args.batch, args.out)
        return 0
    if args.only is not None:
        with tempfile.TemporaryDirectory(prefix="tc-fuzz-") as temporary:
            case, verdict, variants = verdict_of(Stack(Path(temporary)), args.only)
        print(describe(case), *variants, f"{verdict.kind} {verdict.detail}", sep="\n")
        return int(verdict.kind in ("wrong", "crashed"))
    log = args.out / "log.jsonl"
    if not args.resume:
        log.unlink(missing_ok=True)
    wanted = range(args.seed, args.seed + args.count)
    while left := [s for s in wanted if s not in results(log)][:BATCH]:
        run_batch(left, args.out)
        print(f"{len(results(log))} done: {dict(Counter(r['kind'] for r in results(log).values()))}", file=sys.stderr)
    found = {s: r for s, r in results(log).items() if s in wanted}
    print(summary(found))
    return int(any(r["kind"] in ("wrong", "crashed") for r in found.values()))


if __name__ == "__main__":
    sys.exit(main())
