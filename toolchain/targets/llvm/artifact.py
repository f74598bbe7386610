"""Writes the folder that is the result of a build: library, header, weights, plan and manifest.

    lib<name>.so    kernels, plan and runtime; exports the functions of <name>.h, imports nothing
    <name>.h        the C API, with how to use it
    weights.bin     64 bytes of header (magic, size, SHA-256 of the rest), then the weights
    plan.json       what the library does, op by op: one plan per shape bucket
    <name>.wasm     for WebAssembly: the same as a module that imports nothing; in place of library and header
    <name>.mjs      beside it: JavaScript that loads and runs it
    run             for targets other than the machine that builds: the static program that runs all this there, by hand
    manifest.json   inputs, outputs, target, digests of the files and of all that went in, versions; written last

Equal inputs give equal bytes, wherever and whenever.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from toolchain.core.digest import digest_bytes
from toolchain.core.errors import CodegenError
from toolchain.core.target import Target
from toolchain.core.versions import installed_version
from toolchain.targets.llvm.buckets import verify_buckets
from toolchain.targets.llvm.format import (
    FORMAT,
    RUNTIME_VERSION,
    WEIGHTS_FILE,
    WEIGHTS_HEADER_BYTES,
    library_file,
    weights_header,
)
from toolchain.targets.llvm.header import c_identifier, header_text
from toolchain.targets.llvm.link import (
    cached_runtime_object,
    link_module,
    runtime_digest,
    table_object,
    write_atomically,
    zig_version,
)
from toolchain.targets.llvm.plan import Plan, plans_to_text
from toolchain.targets.llvm.runner_program import RUNNER_FILE

LOADER = Path(__file__).parent / "web" / "loader.mjs"
MOST_WASM_BYTES = 4 << 30              # what 32 bits address: weights, arena, scratch, inputs and outputs
_BLOCK_BYTES = 1 << 20


def write_artifact(
    out: Path,
    name: str,
    plans: Sequence[Plan],
    objects: Mapping[str, bytes],
    weights: Path | bytes | memoryview,
    target: Target,
    manifest_extra: Mapping[str, Any] | None = None,
    runtime: bytes | None = None,
    runner: bytes | None = None,
) -> None:
    """Link and write the artifact of one network into the folder `out` (made if it is not there).

    plans: one per shape bucket, in the order of the C API. objects: object files by kernel name, each once for all plans.
    weights: the weights segment, laid out as the plans' slots say, 64-byte aligned pieces (a file is copied, never held in
    memory). manifest_extra: more for the manifest (schedules, digests of sources). runtime: the C runtime's object, when it
    was compiled beforehand. runner: the program that runs the artifact where nothing is installed, if it shall have it.
    Raises CodegenError for a plan that cannot run or objects that do not link.
    """
    verify_buckets(plans)
    if target.kind == "wasm32" and (needed := _memory_bytes(plans)) > MOST_WASM_BYTES:
        raise CodegenError(f"the model needs {needed / 2**30:.1f} GiB of memory, WebAssembly has 4 GiB",
                           where=f"model {name!r}", fix="build it for another kind of target")
    identifier = c_identifier(name)
    out.mkdir(parents=True, exist_ok=True)
    weights_digest = _write_weights(out / WEIGHTS_FILE, weights, plans[0])
    library = link_module(
        objects,
        table_object(plans, target, weights_digest),
        runtime or cached_runtime_object(target).read_bytes(),
        target,
        name=identifier,
    )
    web = target.kind == "wasm32"
    files = {
        library_file(identifier, target.kind): library,
        **({f"{identifier}.mjs": LOADER.read_bytes()} if web else
           {f"{identifier}.h": header_text(plans, identifier).encode()}),
        "plan.json": plans_to_text(plans).encode(),
    }
    if runner is not None:
        files[RUNNER_FILE] = runner
    for file, data in files.items():
        write_atomically(out / file, data)
    if runner is not None:
        os.chmod(out / RUNNER_FILE, 0o755)
    sums = {file: {"sha256": digest_bytes(data), "size_bytes": len(data)} for file, data in files.items()}
    # the digest of what follows the header, which the header repeats
    sums[WEIGHTS_FILE] = {"sha256": weights_digest, "size_bytes": plans[0].weights_bytes + WEIGHTS_HEADER_BYTES}
    manifest = _manifest(name, plans, objects, target, sums)
    if both := sorted(manifest.keys() & (manifest_extra or {}).keys()):
        raise CodegenError(f"the manifest has its own {both[0]!r}", where=f"artifact {name!r}")
    write_atomically(out / "manifest.json", _json({**manifest, **(manifest_extra or {})}))


def _manifest(
    name: str, plans: Sequence[Plan], objects: Mapping[str, bytes], target: Target, files: Mapping[str, Any],
) -> dict[str, Any]:
    """What an artifact says of itself, but for what the caller adds. files: digest and size of each."""
    return {
        "format": FORMAT,
        "runtime_version": RUNTIME_VERSION,
        "name": name,
        "identifier": c_identifier(name),
        "buckets": [{"inputs": [_value(v) for v in p.inputs], "outputs": [_value(v) for v in p.outputs]} for p in plans],
        "target": target.to_json(),
        "files": files,
        "made_from": {
            "kernels": {kernel: digest_bytes(data) for kernel, data in objects.items()},
            "runtime": runtime_digest(target),
        },
        "versions": {"toolchain": installed_version("toolchain") or "unknown", "ziglang": zig_version()},
    }


def _memory_bytes(plans: Sequence[Plan]) -> int:
    """What a run of any of them takes, each bucket with inputs and outputs of its own."""
    values = sum(v.size_bytes for plan in plans for v in (*plan.inputs, *plan.outputs))
    return plans[0].weights_bytes + max(p.arena_bytes for p in plans) + max(p.scratch_bytes for p in plans) + values


def _value(value: Any) -> dict[str, Any]:
    bounded = {"bounded": [d for d, at in enumerate(value.extents) if at >= 0]} if value.extents else {}
    return {"name": value.name, "dtype": value.dtype, "shape": list(value.shape), **bounded}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def _write_weights(path: Path, weights: Path | bytes | memoryview, plan: Plan) -> str:
    """Write weights.bin in one step; returns the SHA-256 of the weights."""
    size = weights.stat().st_size if isinstance(weights, Path) else memoryview(weights).nbytes
    if size != plan.weights_bytes:
        raise CodegenError(f"{size} bytes of weights for a plan with {plan.weights_bytes}", where=f"plan {plan.name!r}")
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(bytes(WEIGHTS_HEADER_BYTES))
            digest = _copy(weights, file)
            if file.tell() != size + WEIGHTS_HEADER_BYTES:
                raise CodegenError("the weights changed while they were copied", where=str(weights)[:200])
            file.seek(0)
            file.write(weights_header(digest, size))
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return digest


def _copy(weights: Path | bytes | memoryview, file: BinaryIO) -> str:
    if not isinstance(weights, Path):
        file.write(weights)
        return digest_bytes(weights)
    digest = hashlib.sha256()
    with weights.open("rb") as source:
        while block := source.read(_BLOCK_BYTES):
            digest.update(block)
            file.write(block)
    return digest.hexdigest()
