"""The map of the house, kept: imports point down the layers, and what belongs to one place is in no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1] / "toolchain"

# Lowest first; packages of one layer do not import each other.
LAYERS = (
    ("core",), ("build", "graph", "remote", "te"), ("report", "targets"), ("kernels",), ("tasks",),
    ("api", "cli", "onnx_backend"),
    ("__main__", "__init__"),
)
# What any layer may take from the package itself: its version. And te as `from toolchain import te`, which names a layer.
OF_THE_PACKAGE = ("__version__",)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, package of ours) of each import of a module, wherever it stands, those for type checkers included."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.ImportFrom(module="toolchain", names=names):
                yield from ((node.lineno, a.name) for a in names if a.name not in OF_THE_PACKAGE)
            case ast.ImportFrom(module=str(module)) if module.startswith("toolchain."):
                yield node.lineno, module.split(".")[1]
            case ast.ImportFrom(level=level) if level:
                yield node.lineno, "a relative import"
            case ast.Import(names=names):
                yield from ((node.lineno, a.name.split(".")[1]) for a in names if a.name.startswith("toolchain."))


def modules() -> dict[str, Path]:
    """Every module by its dotted name; a package is its __init__."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def runtime_imports(path: Path, known: Iterable[str]) -> set[str]:
    """The modules of ours that Python imports for this one, at its top or inside a function. What only annotations name
    (`if TYPE_CHECKING`) is not imported: a Load knows its Tensor, and a Tensor makes Loads."""
    def statements(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if not (isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING"):
                yield child
                yield from statements(child)

    found: set[str] = set()
    for node in statements(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
    return found & set(known)


def test_no_module_imports_itself_through_others():
    known = modules()
    below = {name: runtime_imports(path, known) - {name} for name, path in known.items()}
    for package in [n for n, path in known.items() if path.name == "__init__.py"]:       # is loaded before its modules,
        for name in below:                                                               # by whoever imports one of them
            below[name] -= {package} if name.startswith(package) else set()
    try:
        tuple(TopologicalSorter(below).static_order())
    except CycleError as error:
        raise AssertionError(" -> ".join(reversed(error.args[1]))) from None


def layer_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_imports_point_down():
    level = {name: n for n, names in enumerate(LAYERS) for name in names}
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        here = layer_of(path)
        for line, there in imports(path):
            if there != here and level.get(there, len(LAYERS)) >= level[here]:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {here} may not import {there}")
    assert not wrong, "\n".join(wrong)


def test_every_package_has_its_layer():
    known = {name for names in LAYERS for name in names}
    there = {layer_of(path) for path in ROOT.rglob("*.py")}
    assert there == known


def test_llvm_text_is_written_in_one_place():
    """Instructions of LLVM's language outside targets/llvm would be schedules around the schedule language."""
    instruction = re.compile(r"getelementptr|insertelement|extractelement|shufflevector|<\d+ x (float|double|i\d+)>|"
                             r"= (load|fmul|fadd|phi|alloca) |@llvm\.|define (internal |dso_local )?void")
    found = [
        f"{path.relative_to(ROOT)}:{n}: {line.strip()}"
        for path in sorted(ROOT.rglob("*.py")) if "targets/llvm" not in path.as_posix()
        for n, line in enumerate(path.read_text().splitlines(), 1) if instruction.search(line)
    ]
    assert not found, "\n".join(found)


def test_llvm_is_used_in_one_place():
    """Only its code generator imports llvmlite, and `tc doctor`, which tells its version: other targets must not need it."""
    found = [
        str(path.relative_to(ROOT)) for path in sorted(ROOT.rglob("*.py"))
        if re.search(r"^\s*(import|from) llvmlite", path.read_text(), re.M) and "targets/llvm" not in path.as_posix()
    ]
    assert found == ["cli/doctor.py"]
