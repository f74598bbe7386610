"""What `import toolchain` offers: `compile` a model in this process, `load` an artifact, both as a Module that runs."""

from __future__ import annotations

import re
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from toolchain.build.deployfile import Bucket, Build, Deployfile, Model, TargetSpec
from toolchain.build.executor import Executor
from toolchain.build.store import Store
from toolchain.core.errors import UsageError
from toolchain.core.target import Target
from toolchain.targets import presets
from toolchain.targets.llvm.loading import load
from toolchain.targets.llvm.module import Module
from toolchain.targets.llvm.wasm_module import WasmModule
from toolchain.tasks.plan import plan

if TYPE_CHECKING:
    import onnx

PRECISIONS = ("fp32",)
Shapes: TypeAlias = Mapping[str, Sequence[int]]
Dims: TypeAlias = Mapping[str, int]


def compile(
    model: str | Path | onnx.ModelProto, target: str | Target = "x86", precision: str = "fp32",
    shapes: Shapes | Sequence[Shapes] | None = None, dims: Dims | Sequence[Dims] | None = None, threads: int | None = None,
) -> Module | WasmModule:
    """Compile a model (a file, or one in memory) for a target and load it: the steps of `tc build`, nothing kept.

        module = toolchain.compile("model.onnx", shapes={"input": (1, 3, 224, 224)}, threads=2)
        outputs = module.run({"input": x})
        module.save("out/")

    target: "x86" (this machine), a preset ("x86-64-v3", "wasm32"), or a Target. shapes, dims: of inputs the model leaves
    open; numbers by symbolic dimension. A list of either makes one module for several sets of shapes, which picks by the
    inputs it is given (two lists go together element by element). threads: lanes that compute (none: one per CPU this
    process may use).
    Raises ImportModelError, CodegenError, UsageError, as a build does.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"not yet: precision {precision!r}", fix=f"choose one of: {', '.join(PRECISIONS)}")
    chosen = presets.target(target)
    folder = Path(tempfile.mkdtemp(prefix="tc-compile-"))
    try:
        module = load(_build(model, chosen, _buckets(shapes, dims), folder), threads)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(module, shutil.rmtree, folder, ignore_errors=True)
    return module


def _buckets(shapes: Shapes | Sequence[Shapes] | None, dims: Dims | Sequence[Dims] | None) -> tuple[Bucket, ...]:
    """One bucket per element of the lists; what is no list holds for all. Raises UsageError: lists that do not match."""
    lists = [value for value in (shapes, dims) if value is not None and not isinstance(value, Mapping)]
    if len(counts := {len(value) for value in lists}) > 1 or 0 in counts:
        raise UsageError(f"shapes and dims are lists of {' and '.join(str(len(value)) for value in lists)} elements",
                         fix="give both as many, at least one: together they are the shape buckets")
    return tuple(Bucket(shapes={k: tuple(v) for k, v in _element(shapes, n).items()}, dims=dict(_element(dims, n)))
                 for n in range(counts.pop() if counts else 1))


def _element(value: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None, n: int) -> Mapping[str, Any]:
    if value is None or isinstance(value, Mapping):
        return value or {}
    return value[n]


def _build(model: Any, target: Target, buckets: tuple[Bucket, ...], folder: Path) -> Path:
    """The artifact's folder, below `folder`."""
    path = _model_file(model, folder)
    name = re.sub(r"[^A-Za-z0-9_.+-]", "_", path.stem)[:64].lstrip("_.+-") or "model"
    several = {"buckets": buckets} if len(buckets) > 1 else {"shapes": buckets[0].shapes, "dims": buckets[0].dims}
    declared = Model(path=str(path.absolute()), **several)
    deployfile = Deployfile(version=1, models={name: declared}, targets={"x86": TargetSpec(kind="x86")})
    (tasks,) = plan(deployfile, (Build(name, "x86"),), folder, {"x86": target})
    store = Store(folder / "store")
    try:
        out = folder / "artifact"
        Executor(store, jobs=0).build([tasks.module], {out: tasks.module}).check()
    finally:
        store.close()
        shutil.rmtree(folder / "store", ignore_errors=True)
    return out


def _model_file(model: Any, folder: Path) -> Path:
    """The model as a file: itself, or written below `folder`."""
    if isinstance(model, (str, Path)):
        if not Path(model).is_file():
            raise UsageError("no such file", where=str(model))
        return Path(model)
    if not hasattr(model, "SerializeToString"):
        raise UsageError(f"{type(model).__name__} is neither a path nor an onnx.ModelProto")
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


__all__ = ["compile", "load"]
