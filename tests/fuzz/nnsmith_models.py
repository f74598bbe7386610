"""Models by NNSmith, in a process of its own: it needs torch (several GB), its solver may hang, torch's exporter may die.

    python -m tests.fuzz.nnsmith_models --out FOLDER --dtypes f32 -- 1 2 3      FOLDER/1.onnx and 1.npz (inputs), ...

With the same versions of nnsmith, torch and z3 a seed is the same model: what NNSmith decides by the clock (how long to
search for inputs) or by the order of a set is decided otherwise here. FOLDER/log.jsonl says what became of each seed.
Needs the extra `fuzz` of pyproject.toml; imports nothing of ours, so another environment than ours will do.

Source: Liu et al., "NNSmith: Generating Diverse and Valid Test Cases for Deep Learning Compilers", ASPLOS 2023.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MOST_NODES = 10                 # of NNSmith's operators; the exporter spells some with twenty of ONNX's
MOST_ELEMENTS = 4096            # of a tensor: the NumPy interpreter has to run them too
SEARCHES, STEPS = 2, 15         # samples of inputs and weights, gradient steps each: until nothing on the way is NaN or Inf
SOLVER_MS = 60_000              # no limit for a graph of MOST_NODES: what is cut off would depend on the machine
MOST_S = 120                    # of a model: a hang
WARM = range(10)                # generated before the forks: what torch and z3 do once is done once, and always alike


class Steps:
    """For NNSmith's searches in place of the clock: each look at it is a millisecond later."""

    def __init__(self) -> None:
        self.looks = 0

    def time(self) -> float:
        self.looks += 1
        return self.looks / 1000


def generator(dtypes: Sequence[str], cache: Path) -> Any:
    """seed -> NNSmith's model, of the operators that torch exports and ONNX Runtime runs (found out once, see `cache`)."""
    os.environ["XDG_CACHE_HOME"] = str(cache)           # read by nnsmith when it is imported
    import onnx
    import torch

    torch.set_num_threads(1)
    torch.onnx.export = functools.partial(torch.onnx.export, dynamo=False)      # the other one refuses what NNSmith makes
    onnx._serialize = lambda model: model.SerializeToString()                   # gone from onnx; NNSmith 0.1.0 calls it
    from nnsmith.backends.factory import BackendFactory
    from nnsmith.graph_gen import model_gen
    from nnsmith.materialize import Model
    from nnsmith.materialize.torch import input_gen, symbolnet
    from nnsmith.narrow_spec import auto_opset

    input_gen.time = symbolnet.time = Steps()
    kind = Model.init("onnx", backend_target="cpu")
    kind.add_seed_setter()
    operators = auto_opset(kind, BackendFactory.init("onnxruntime", target="cpu", optmax=False), vulops=True)

    def generate(seed: int) -> tuple[onnx.ModelProto, dict[str, Any]]:
        graph = model_gen(operators, method="symbolic-cinit", seed=seed, max_elem_per_tensor=MOST_ELEMENTS,
                          max_nodes=1 + seed % MOST_NODES, timeout_ms=SOLVER_MS, dtype_choices=dtypes or None)
        model = kind.from_gir(graph.make_concrete())
        net = model.torch_model
        net.enable_proxy_grad()
        search = input_gen.PracticalHybridSearch(net)
        inputs = None
        for _ in range(SEARCHES):
            inputs = inputs or search.search(max_time_ms=STEPS, max_sample=1)[1]
        net.disable_proxy_grad()
        net.check_intermediate_numeric = False
        given = inputs or net.get_random_inps()
        return model.get_onnx_from_torch(), {name: value.detach().numpy() for name, value in given.items()}

    return generate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.nnsmith_models", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtypes", nargs="*", default=[], help="of its inputs: f32 f64 i32 ...; none named: all it knows")
    parser.add_argument("seeds", type=int, nargs="+")
    args = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":         # NNSmith draws from lists it made of sets
        os.execve(sys.executable, [sys.executable, "-m", "tests.fuzz.nnsmith_models", *sys.argv[1:]],
                  {**os.environ, "PYTHONHASHSEED": "0"})
    warnings.simplefilter("ignore")
    args.out.mkdir(parents=True, exist_ok=True)
    generate = generator(args.dtypes, Path(tempfile.gettempdir()) / "toolchain-fuzz" / "cache")
    for seed in WARM:
        with contextlib.suppress(Exception):
            generate(seed)
    gc.freeze()                                         # forks share what is there
    with (args.out / "log.jsonl").open("a") as log:
        for seed in args.seeds:
            detail = in_a_child(functools.partial(write, generate, seed, args.out), args.out / f"{seed}.error")
            found = {"seed": seed, "kind": "no model" if detail else "made", "detail": detail}
            print(json.dumps(found), file=log, flush=True)
    return 0


def write(generate: Any, seed: int, folder: Path) -> None:
    import numpy as np

    model, inputs = generate(seed)
    np.savez(folder / f"{seed}.npz", **inputs)
    (folder / f"{seed}.onnx").write_bytes(model.SerializeToString())


def in_a_child(work: Callable[[], None], errors: Path) -> str:
    """Do it in a fork: the solver's choices depend on what it solved before, and what hangs or dies costs one seed.

    Gives what went wrong, or "".
    """
    if not (child := os.fork()):
        status = 1
        try:
            signal.alarm(MOST_S)
            work()
            status = 0
        except BaseException as error:
            errors.write_text(f"{type(error).__name__}: {error}"[:500])
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if not status:
        return ""
    said = errors.read_text() if errors.exists() else ""
    errors.unlink(missing_ok=True)
    return said or f"the process ended with {os.waitstatus_to_exitcode(status)}"


if __name__ == "__main__":
    sys.exit(main())
