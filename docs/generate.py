"""Writes the reference pages that say what code says: python docs/generate.py (a test compares them with the code).

    deployfile.md   every key, from the classes of toolchain/build/deployfile.py
    operators.md    every operator, from the tables of the importer, the graph passes and the kernels
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from toolchain.build.deployfile import Deployfile, Extent, Quantity, Section, strip_optional
from toolchain.graph.importers.bounded_rules import ELEMENTWISE, MAKES, RULES, along_axis, like_first, roi_align
from toolchain.graph.importers.bounded_rules import rows as by_row
from toolchain.graph.importers.contrib import DOMAIN, RECIPES
from toolchain.graph.importers.coverage import has_function
from toolchain.graph.ops import INTERNAL, OPS, FusionClass, info
from toolchain.graph.passes.decompose_recurrent import CELLS
from toolchain.kernels import compute, loops
from toolchain.kernels.op import Compute
from toolchain.kernels.table import COMPUTES, KERNELS
from toolchain.tasks.optimize import CONTROL_FLOW
from toolchain.tasks.steps import supported_operators

FOLDER = Path(__file__).parent
NOTE = "<!-- Written by docs/generate.py from the code: do not edit by hand. -->\n"


def main() -> None:
    for name, text in pages().items():
        (FOLDER / name).write_text(text)


def pages() -> dict[str, str]:
    """The text of each page, by file name."""
    return {"deployfile.md": deployfile_page(), "operators.md": operators_page()}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


# --- deployfile.md ----------------------------------------------------------------------------------------------------

DEPLOYFILE = """\
# The deployfile

One YAML file, `deployfile.yaml`, says what a project wants deployed. [deployfile.yaml.example](../deployfile.yaml.example)
shows every key in its place; this page is the reference. `tc schema` prints the same as a JSON schema, and `tc init` puts it
where the first line of a deployfile points editors to.

- Paths are relative to the deployfile. Files a build reads are part of its keys: change one, and what depends on it runs.
- YAML 1.2 rules: `yes`, `no`, `on` are text. Duplicate keys, tags, merge keys and a second document are errors.
- A duration is written `90s`, `2h`, `1h 30m`; a size `64MB`, `4GiB`; a percentage `5%`. A bare number is an error there.
- Every mistake in the file is shown at once, with line, column and, where there is one, the spelling that was meant. Exit 2.
- What is marked *not yet* has its place and meaning, but using it is an error that says so.
- `tc build` keeps what the file does not say (digests of models and data, the processor, versions) in `deployfile.lock`
  ([lockfile.md](lockfile.md)).
- A build's name is `model@target`, or `model@target.precision` where the precision is not fp32.

Only `version` and one model are required; everything else has a default. Where no tolerance is declared, the built-in one of
the precision holds: for fp32, rtol 0.001 and an atol of 0.0001 times the largest magnitude of the output; for networks that
round to 8 bits inside, 0.01 and 1/64 of it.
"""


def deployfile_page() -> str:
    parts = [NOTE, DEPLOYFILE]
    for place, kind in sections():
        parts.append(f"\n## {place}\n")
        if kind is not Deployfile:
            parts.append(f"{inspect.getdoc(kind)}\n")
        if kind.one_of and "xactly one" not in str(kind.__doc__):
            parts.append(f"Exactly one of {', '.join(f'`{k}`' for k in kind.one_of)}.\n")
        parts.append(table(("key", "value", "default", "meaning"), [key_row(f) for f in fields(kind)]))
    return "\n".join(parts)


def sections() -> Iterator[tuple[str, type[Section]]]:
    """(where it stands, class) of every section, each once: the file, then each of its sections with those inside."""
    pending: list[tuple[str, type[Section]]] = [("", Deployfile)]
    seen: set[type[Section]] = set()
    while pending:
        place, kind = pending.pop(0)
        if kind in seen:
            continue
        seen.add(kind)
        yield (f"`{place}`" if place else "The file"), kind
        inside = [(f.name, *innermost(f.type)) for f in fields(kind)]
        pending = [(f"{place}.{name}{suffix}".lstrip("."), inner) for name, suffix, inner in inside
                   if isinstance(inner, type) and issubclass(inner, Section)] + pending


def innermost(annotation: Any) -> tuple[str, Any]:
    """(how a path goes on, the type there): Mapping[str, Model] -> (".NAME", Model); tuple[Builds, ...] -> ("[]", Builds)"""
    annotation = strip_optional(annotation)
    if get_origin(annotation) is Mapping:
        return ".NAME", strip_optional(get_args(annotation)[1])
    if get_origin(annotation) is tuple:
        return "[]", strip_optional(get_args(annotation)[0])
    return "", annotation


def key_row(f: Any) -> tuple[str, str, str, str]:
    meaning = f.metadata["description"].replace("(not yet", "(*not yet*")
    return f"`{f.name}`", value_text(f.type, f.metadata), default_text(f), meaning


def value_text(annotation: Any, metadata: Mapping[str, Any]) -> str:
    bounds = [f"{sign} {metadata[k]}" for k, sign in (("gt", ">"), ("ge", "≥"), ("le", "≤")) if k in metadata]
    form = metadata.get("form", "")
    return type_text(annotation) + (f", {' and '.join(bounds)}" if bounds else "") + (f": {form}" if form else "")


def type_text(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return type_text(next(a for a in args if a is not type(None)))
    if origin is Annotated:
        (mark,) = [a for a in args[1:] if isinstance(a, (Quantity, Extent))]
        return f"{mark.unit}, such as `{mark.example}`" if isinstance(mark, Quantity) else "whole number ≥ 1"
    if origin is Mapping:
        return f"mapping of names to {plural(args[1])}"
    if origin is tuple:
        return f"list of {plural(args[0])}"
    if origin is Literal:
        return ", ".join(f"`{a}`" for a in args)
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "mapping, see below"
    return {str: "text", int: "whole number", float: "number", bool: "`true`, `false`"}[annotation]


def plural(annotation: Any) -> str:
    inner = strip_optional(annotation)
    if isinstance(inner, type) and issubclass(inner, Section):
        return "mappings, see below"
    if get_origin(inner) is tuple:
        return "lists of whole numbers"
    return {str: "texts", int: "whole numbers", float: "numbers"}.get(inner) or type_text(inner)


def default_text(f: Any) -> str:
    if f.default is MISSING and f.default_factory is MISSING:
        return "**required**"
    value = f.default if f.default is not MISSING else f.default_factory()
    if value is None or value == () or value == {} or isinstance(value, Section):
        return ""
    match value:
        case Mapping() | (Section(), *_):
            return "see meaning"
        case "":
            return ""
        case tuple():
            return f"`[{', '.join(value)}]`"
        case bool():
            return f"`{str(value).lower()}`"
        case float():
            return quantity_default(f.type, value) or f"`{value:.6g}`"
    return f"`{value}`"


def quantity_default(annotation: Any, value: Any) -> str:
    """A default as it would be written: 900.0 of a duration -> 15m."""
    marks = [a for a in (getattr(annotation, "__metadata__", None) or ()) if isinstance(a, Quantity)]
    if not marks:
        return ""
    for unit, factor in sorted(marks[0].factors.items(), key=lambda item: -item[1]):
        if value >= factor and value % factor == 0 and unit not in ("min", "KB"):
            return f"`{value / factor:g}{unit}`"
    return f"`{value}`"


# --- operators.md -----------------------------------------------------------------------------------------------------

OPERATORS = """\
# Operators

What a model may contain, and what becomes of it. `tc check` answers for your models before anything is built: every
operator with its number of nodes and share of the work, or all operators without an implementation, with node names.

- Models of ONNX opset 7 up to the newest of the installed onnx package. Older forms are rewritten to the newest one at
  import, the model's own functions are inlined, and whatever depends on constants and shapes alone is computed there.
- Shapes are static: the deployfile gives numbers to open dimensions. Where a *shape* depends on values (NonZero, Compress,
  Unique, NonMaxSuppression, a Slice with computed ends), memory and loops are made for the most it can be, and the true size
  is computed beside it: operators behind follow it (see [below](#shapes-that-depend-on-data)), sums leave the rest out, and
  outputs have their true shape. A shape without such a bound is refused.
- Inputs that steer (axes, shapes, pads, scales) must be known at build time; the error names the node and the input.
- Float16 and bfloat16 tensors are stored as such and computed in float32. Strings, sequences and optionals are refused.

The *classes* are the fusion classes of the TVM paper: elementwise, broadcast and injective operators fuse with one another;
a reduction takes up the injective operators before it; a complex (complex-out-fusable) one and a reduction take up the
elementwise and broadcast operators behind them; opaque ones stay alone, except that elementwise neighbours join row
reductions such as Softmax and LayerNormalization. See toolchain/graph/ops.py and toolchain/graph/passes/fuse_operators.py.

Each kernel is compared with the reference interpreter in tests/kernels; the te definitions stand in the files named.
"""

def operators_page() -> str:
    parts = [NOTE, OPERATORS, "\n## Operators with kernels\n"]
    for module, computes in compute_tables():
        parts.append(f"### {module.__name__.replace('.', '/')}.py\n")
        parts.append(f"{str(module.__doc__).splitlines()[0]}\n")
        named = [op for op in sorted(computes) if op not in INTERNAL or module is loops]
        parts.append(table(("class", "operators"), by_class(named)))
        notes = [(op, note) for op in named if (note := first_lines(computes[op]))]
        if notes:
            parts.append(table(("operator", "note"), notes))
    return "\n".join([*parts, *without_kernels()])


def compute_tables() -> Iterator[tuple[ModuleType, dict[str, Compute]]]:
    """(module, its part of the table of operators) for each module of kernels/compute."""
    for found in pkgutil.iter_modules(compute.__path__, f"{compute.__name__}."):
        module = importlib.import_module(found.name)
        dicts = [v for v in vars(module).values() if isinstance(v, dict) and v]
        tables = [d for d in dicts if all(COMPUTES.get(op) is definition for op, definition in d.items())]
        if any(op not in INTERNAL for part in tables for op in part):
            yield module, {op: f for part in tables for op, f in part.items()}
    yield loops, loops.LOOPS


def by_class(operators: Iterable[str]) -> list[tuple[str, str]]:
    found: dict[FusionClass, list[str]] = {}
    for op in sorted(operators):
        found.setdefault(info(op).fusion, []).append(op)
    return [(fusion.name.lower(), ", ".join(found[fusion])) for fusion in sorted(found)]


def first_lines(definition: Compute) -> str:
    """What the docstring of a te definition says first; nothing of a function that only hands on to another."""
    doc = (inspect.getdoc(definition) or "").split("\n\n")[0].replace("\n", " ") if inspect.isfunction(definition) else ""
    return doc.replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")     # else Markdown takes formulas for emphasis


SELECTING = {
    "Compress": "FlatNonZero of its condition, and a Gather; the result has as many slices as the data selects",
    "NonMaxSuppression": "BoundedNonMaxSuppression; the result has as many rows as boxes are selected",
    "NonZero": "FlatNonZero, and divisions of its positions; the result has as many columns as there are",
    "Unique": "UniqueRows, and a Gather; the result has as many slices as there are different ones",
}


FOLLOWED = {
    by_row: "the first",
    along_axis: "all but those it works along",
    like_first: "of the first input; the others are static",
    roi_align: "the number of regions",
}

BOUNDED = """\
The largest size comes from the operator (a NonZero yields at most as many indices as there are elements), or from what is
known of the numbers that decide it: constants, other shapes, types, Clip, Min, sums of masks, positions
(toolchain/graph/importers/ranges.py). Two sizes that only a run can tell to be equal, or to broadcast, are compared then; a
run in which they do not fit ends with an error that names the node.
"""


def without_kernels() -> Iterator[str]:
    supported = supported_operators()
    yield "\n## Operators that become others\n"
    rows = [(op, "a loop of the plan around its body") for op in sorted(CONTROL_FLOW) if op not in INTERNAL]
    cells = [op for op in sorted(CELLS) if op in supported]
    rows += [(", ".join(cells), "matrix products for all steps at once, and a Scan over the rest")]
    rows += [(op, made) for op, made in sorted(SELECTING.items())]
    gone = sorted(supported - KERNELS - CONTROL_FLOW - frozenset((*CELLS, *SELECTING)))
    rows += [(", ".join(gone), "nothing: they disappear at import or in graph passes")]
    expanded = sorted(op for op in OPS if op not in supported and has_function(op))
    rows += [(", ".join(expanded), "ONNX's function body, where all of it is supported for the node's types and attributes")]
    yield table(("operator", "becomes"), rows)
    yield "Any other operator that ONNX defines by a function is expanded in the same way.\n"
    yield "\n## Shapes that depend on data\n"
    yield BOUNDED
    rows = [(", ".join(sorted(op for op, rule in RULES.items() if rule is only)), which) for only, which in FOLLOWED.items()]
    rest = sorted(op for op, rule in RULES.items() if rule not in FOLLOWED and op not in MAKES and op not in ELEMENTWISE)
    rows.insert(0, (", ".join(rest) + "; every elementwise one", "any"))
    rows.insert(0, (", ".join(sorted(MAKES)), "any; their result has one of its own"))
    rows.append(("If", "of what its branches read and yield, even if one branch's shape is another's"))
    rows.append(("Loop, Scan", "of what their bodies capture; states and results are static"))
    yield table(("operator", "dimensions that may depend on data"), rows)
    yield f"\n## Operators of {DOMAIN}\n"
    yield "What ONNX Runtime's quantizer and optimizer write, as functions of ONNX's operators, each compared with its own"
    yield "results (toolchain/graph/importers/contrib.py):\n"
    yield ", ".join(sorted(RECIPES)) + ".\n"
    yield "\n## Refused, unless they can be folded\n"
    yield ", ".join(sorted(op for op in OPS if op not in supported and op not in expanded and op not in INTERNAL)) + ","
    yield "and every operator of ONNX or of another domain that this page does not name.\n"


if __name__ == "__main__":
    main()
