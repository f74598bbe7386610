"""A hundred of NNSmith's models, kept here: outside models for every test run, without NNSmith and torch.

    python -m tests.fuzz.corpus STATE ...       chooses them anew, out of the folders of runs with --generator nnsmith
"""

from __future__ import annotations

import argparse
import io
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

from .builder import Case, case_of
from .run import results

FILE = Path(__file__).with_name("nnsmith.zip")
COUNT = 100
MOST_BYTES = 6000           # of a model and its inputs


def read_corpus() -> dict[str, Case]:
    """The cases by name, each with what ONNX Runtime makes of it."""
    with zipfile.ZipFile(FILE) as archive:
        return {name.removesuffix(".onnx"): _case(archive, name) for name in archive.namelist() if name.endswith(".onnx")}


def _case(archive: zipfile.ZipFile, name: str) -> Case:
    model = onnx.load_model_from_string(archive.read(name))
    with np.load(io.BytesIO(archive.read(name.replace(".onnx", ".npz")))) as arrays:
        return case_of(model, dict(arrays))


# ---- choosing them

def features(model: onnx.ModelProto) -> set[tuple]:
    """What a model has that others may not: operators with their attributes, and which operator reads which."""
    made = {o: n.op_type for n in model.graph.node for o in n.output}
    alone = {(n.op_type, *sorted(onnx.helper.printable_attribute(a) for a in n.attribute if a.name != "value"))
             for n in model.graph.node}
    return alone | {(made[i], n.op_type) for n in model.graph.node for i in n.input if i in made}


def candidates(state: Path) -> Iterator[tuple[str, int, set[tuple]]]:
    """Models of a run that pass, as small as they should be: stem, size, features."""
    for seed, found in results(state / "log.jsonl").items():
        stem = state / "models" / str(seed)
        if found["kind"] == "passed" and not found["detail"]:
            size = sum(stem.with_suffix(end).stat().st_size for end in (".onnx", ".npz"))
            if size <= MOST_BYTES:
                yield str(stem), size, features(onnx.load_model(stem.with_suffix(".onnx")))


def choose(pool: list[tuple[str, int, set[tuple]]]) -> list[str]:
    """COUNT of them, each in turn the one that adds most for its size."""
    seen: set[tuple] = set()
    chosen = []
    for _ in range(min(COUNT, len(pool))):
        best = max(pool, key=lambda c: (len(c[2] - seen) / (c[1] + 1000), -c[1]))
        pool.remove(best)
        chosen.append(best[0])
        seen |= best[2]
    return chosen


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.corpus", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("states", type=Path, nargs="+")
    stems = choose([c for state in parser.parse_args().states for c in candidates(state)])
    with zipfile.ZipFile(FILE, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for stem in sorted(map(Path, stems), key=lambda s: (s.parent.parent.name, int(s.name))):
            for end in (".onnx", ".npz"):       # a date of no meaning: the same models make the same file
                info = zipfile.ZipInfo(f"{stem.parent.parent.name}-{stem.name}{end}")
                archive.writestr(info, stem.with_suffix(end).read_bytes(), zipfile.ZIP_DEFLATED)
    print(f"{len(stems)} models, {FILE.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
