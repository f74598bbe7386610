"""Time artifacts beside the rivals installed here: python benchmarks/compare.py ARTIFACT MODEL [ARTIFACT MODEL ...]

All contenders of a model take turns in processes of their own with the same number of threads (toolchain/report/measure.py).
Printed are medians, speed-ups with their 95 % intervals, and geometric means over several models. ARTIFACT is a built
folder, or - to time the rivals alone; MODEL the ONNX file it came from.

Inputs: --input NAME=FILE.npy, else test_data_set_0 beside the model, else seeded random numbers (integers: zeros).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from rich.console import Console

from toolchain.core.errors import ToolchainError, UsageError
from toolchain.report import console
from toolchain.report import json as report_json
from toolchain.report.contenders import BASELINES, Entry, baseline_entries, missing_baselines
from toolchain.report.facts import BuildFacts, BuildReport, Report
from toolchain.report.measure import measure, rounds_for
from toolchain.report.tables import accuracy, speed
from toolchain.tasks.contender import artifact_entry


def main() -> int:
    options = parse_arguments()
    try:
        report = compare_all(options)
    except ToolchainError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    screen = Console()
    for section in (speed(report), accuracy(report)):
        console.show_section(section, screen)
    if options.json:
        options.json.write_text(report_json.render(report), encoding="utf-8")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", metavar="ARTIFACT MODEL")
    parser.add_argument("--threads", type=int, default=2)
    known = ", ".join(BASELINES)
    parser.add_argument("--against", default="onnxruntime,openvino", help=f"some of {known} (default: %(default)s)")
    parser.add_argument("--time", type=float, default=3.0, help="seconds per model and contender (default: %(default)s)")
    parser.add_argument("--shape", action="append", default=[], metavar="NAME=1,3,48,320", help="where it is left open")
    parser.add_argument("--input", action="append", default=[], metavar="NAME=FILE.npy")
    parser.add_argument("--low", type=float, default=-1.0, help="smallest random value (default: %(default)s)")
    parser.add_argument("--high", type=float, default=1.0, help="largest random value (default: %(default)s)")
    parser.add_argument("--aa", action="store_true", help="ours takes part twice: shows what difference is noise")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples as a report's JSON")
    options = parser.parse_args()
    if len(options.pairs) % 2:
        parser.error("give pairs of ARTIFACT and MODEL")
    return options


def compare_all(options: argparse.Namespace) -> Report:
    against = [name for name in options.against.split(",") if name]
    for name, why in missing_baselines(against).items():
        print(f"{name} is left out: {why}", file=sys.stderr)
    pairs = zip(options.pairs[::2], options.pairs[1::2], strict=True)
    return Report(tuple(compare_one(a, Path(m), against, options) for a, m in pairs), command=" ".join(sys.argv))


def compare_one(artifact: str, model: Path, against: list[str], options: argparse.Namespace) -> BuildReport:
    if not model.is_file():
        raise UsageError("no such model", where=str(model))
    entries: list[Entry] = []
    if artifact != "-":
        entries.append(artifact_entry(Path(artifact)))
        if options.aa:
            again = entries[0]
            entries.append(Entry("ours again", again.make, again.model, again.options))
    entries += baseline_entries(against, model)
    facts = measure(entries, model_inputs(model, options), threads=options.threads, rounds=rounds_for(options.time))
    name = Path(artifact).name if artifact != "-" else model.parent.name if model.stem == "model" else model.stem
    size = sum(f.stat().st_size for f in Path(artifact).rglob("*") if f.is_file()) if artifact != "-" else 0
    return BuildReport(BuildFacts(name, model.stem, "", "fp32", size), measure=facts)


def model_inputs(model: Path, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Values for every input of the model, as the module's docstring says."""
    graph = onnx.load(model, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    shapes = {name: [int(n) for n in text.split(",")] for name, text in _pairs(options.shape)}
    found = {name: np.load(file, allow_pickle=False) for name, file in _pairs(options.input)}
    folder = model.parent / "test_data_set_0"
    random = np.random.default_rng(0)
    for i, value in enumerate(inputs):
        if value.name not in found:
            file = folder / f"input_{i}.pb"
            found[value.name] = (numpy_helper.to_array(onnx.load_tensor(file)) if file.is_file()
                                 else _generate(value, shapes, random, options))
    return found


def _generate(
    value: onnx.ValueInfoProto, shapes: Mapping[str, list[int]], random: np.random.Generator, options: argparse.Namespace
) -> np.ndarray:
    shape = shapes.get(value.name) or [d.dim_value for d in value.type.tensor_type.shape.dim]
    if any(n < 1 for n in shape):
        raise UsageError(f"the model leaves the shape of {value.name!r} open: {shape}", fix=f"give --shape {value.name}=...")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    if not np.issubdtype(dtype, np.floating):
        return np.zeros(shape, dtype)
    return random.uniform(options.low, options.high, shape).astype(dtype)


def _pairs(texts: list[str]) -> list[tuple[str, str]]:
    for text in texts:
        if "=" not in text:
            raise UsageError(f"expected NAME=VALUE, found {text!r}")
    return [(name, value) for name, _, value in (text.partition("=") for text in texts)]


if __name__ == "__main__":
    sys.exit(main())
