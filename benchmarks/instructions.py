"""Instructions that a network's kernels execute on a CPU that is not here, layer by layer: counted, not run.

    python benchmarks/instructions.py model.onnx [...] [--cpu cortex-a53] [--features=+dotprod] [--layers]

Extents are constants everywhere, so how often each block of machine code runs is known (`targets/llvm/static_cycles.py`; a
branch counts as taken). Left out: the runtime between kernels, some thousand instructions per run. Of one thread, as any
number of threads executes the same.

    multiply-add     fmla, smlal, sdot, ...: vectors         load, store      any
    move             dup, ins, zip, ext, ...: between registers, and packing
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from toolchain.core.errors import ToolchainError
from toolchain.core.target import Target
from toolchain.graph.importers.onnx import import_onnx
from toolchain.graph.ir import Graph
from toolchain.kernels.build import anchor_name
from toolchain.targets.base import backend
from toolchain.targets.features import with_features
from toolchain.targets.llvm.static_cycles import instruction_runs
from toolchain.targets.presets import target
from toolchain.tasks.optimize import optimize_graph
from toolchain.tasks.tuning.static_cost import as_built
from toolchain.te.lower import lower

KINDS = {
    "multiply-add": re.compile(r"fml[as]|fmadd|[su]mlal2?|[su]mull2?|[su]adalp|[su]dot"),
    "load": re.compile(r"ld"), "store": re.compile(r"st"),
    "move": re.compile(r"dup|ins|zip|uzp|trn|ext|f?mov|rev|tbl|xtn|[su]xtl|[su]shll"),
}


def kind_of(instruction: str) -> str:
    word = instruction.split()[0]
    return next((name for name, pattern in KINDS.items() if pattern.match(word)), "other")


def counted(body: Graph, on: Target) -> Counter[str]:
    """Executed instructions by kind, of the kernel that a build makes."""
    _, func = as_built(body, on)
    total: Counter[str] = Counter()
    for instructions, runs in instruction_runs(lower(func, on, backend(on).passes), on):
        for instruction in instructions:
            total[kind_of(instruction)] += runs
    return total


def network(path: Path, on: Target, layers: bool) -> None:
    graph, workloads = optimize_graph(import_onnx(path), on)
    calls = [n.attrs["kernel"] for n in graph.nodes if n.op == "Fused"]
    found = {key: counted(w.body, on) for key, w in workloads.items()}
    total: Counter[str] = Counter()
    for key in calls:
        total.update(found[key])
    if layers:
        for key, times in Counter(calls).most_common():
            print(line(f"  {times} x {anchor_name(workloads[key].body)}", found[key]))
    print(line(f"{path.name} on {on.name}", total), flush=True)


def line(name: str, counts: Counter[str]) -> str:
    kinds = "".join(f"{counts[kind] / 1e6:>14.2f}" for kind in (*KINDS, "other"))
    return f"{name:44}{counts.total() / 1e6:>10.2f}{kinds}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--cpu", default="cortex-a53", help="a preset of kind aarch64")
    parser.add_argument("--features", default="", help="more features, separated by commas: +dotprod")
    parser.add_argument("--layers", action="store_true", help="a line for each distinct kernel")
    given = parser.parse_args(arguments)
    try:
        on = with_features(target(given.cpu), [f for f in given.features.split(",") if f])
        print(f"{'millions of instructions':44}{'all':>10}" + "".join(f"{kind:>14}" for kind in (*KINDS, "other")))
        for path in given.models:
            network(path, on, given.layers)
    except ToolchainError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
